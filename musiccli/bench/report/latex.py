"""Tables in LaTeX, for papers that load booktabs."""

from collections.abc import Iterator, Sequence

from musiccli.bench.report.tables import Table
from musiccli.core.text_safety import latex, visible


def document(tables: Sequence[Table], notes: Sequence[str]) -> Iterator[str]:
    """Each table with its title as the caption, then the notes as comments."""
    for table in tables:
        yield "\\begin{table}\n\\centering\n"
        yield f"\\caption{{{latex(table.title)}}}\n"
        yield f"\\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}\n\\toprule\n"
        yield _row(table.columns) + "\\midrule\n"
        yield from map(_row, table.cells)
        yield "\\bottomrule\n\\end{tabular}\n\\end{table}\n\n"
    yield from (f"% {' '.join(visible(note).split())}\n" for note in notes)


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(_cell, cells)) + " \\\\\n"


def _cell(text: str) -> str:
    """A cell, in braces where it begins with [ or *: the row before it would take these."""
    indentation = len(text) - len(text.lstrip(" "))
    cell = "\\quad " * (indentation // 2) + latex(text.strip())
    return f"{{{cell}}}" if cell.startswith(("[", "*")) else cell
