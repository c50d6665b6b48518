"""Tables in Markdown, as papers and READMEs take them."""

from collections.abc import Iterator, Sequence

from musiccli.bench.report.tables import Table
from musiccli.core.text_safety import visible


def document(tables: Sequence[Table], notes: Sequence[str]) -> Iterator[str]:
    """Each table under its title in bold, then the notes as a list."""
    for table in tables:
        yield f"**{cell(table.title)}**\n\n"
        yield line(table.columns)
        yield line([":--", *["--:"] * (len(table.columns) - 1)])
        yield from map(line, table.cells)
        yield "\n"
    yield from (f"- {cell(note)}\n" for note in notes)


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(cell, cells))} |\n"


def cell(text: str) -> str:
    """Text that cannot end a cell or start markup; an indented name stays indented."""
    text = visible(text).replace("\n", " ")
    indent = len(text) - len(text.lstrip(" "))
    for sign in "\\`*_<|":
        text = text.replace(sign, f"\\{sign}")
    return "&emsp;" * (indent // 2) + text.strip()
