"""Tables in Markdown, for papers and READMEs."""

from collections.abc import Iterator, Sequence

from musiccli.bench.report.tables import Table
from musiccli.core.text_safety import markdown


def document(tables: Sequence[Table], notes: Sequence[str]) -> Iterator[str]:
    """Each table under its title in bold, then the notes as a list."""
    for table in tables:
        yield f"**{_escaped(table.title)}**\n\n"
        yield _row(table.columns)
        yield _row([":--", *["--:"] * (len(table.columns) - 1)])
        yield from map(_row, table.cells)
        yield "\n"
    yield from (f"- {_escaped(note)}\n" for note in notes)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |\n"


def _escaped(text: str) -> str:
    """Text on one line and without markup. Two spaces of indentation become an em space."""
    indentation = len(text) - len(text.lstrip(" "))
    return "&emsp;" * (indentation // 2) + markdown(text.strip())
