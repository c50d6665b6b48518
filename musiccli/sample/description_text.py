"""The description of a dataset as text for people, in columns of a terminal."""

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from musiccli.core.messages import Message
from musiccli.core.records import Record, side_names
from musiccli.core.text_safety import visible
from musiccli.sample.describe import LEFT_ASIDE, LIKE_A_LABEL, ROWS, Description

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

MAX_PROBLEMS = 3  # that are shown one by one
MAX_MESSAGE = 400  # characters of a message that are shown of the example


def description_text(
    description: Description, names: list[str], *, width: int = 80, color: bool = False
) -> str:
    """The description, without its example, as lines of at most `width` columns.

    Args:
        description: what is shown.
        names: the datasets, as they were named.
        width: columns of a line.
        color: whether to use escape sequences.
    """
    from rich.console import Console

    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=width,
        force_terminal=color,
        no_color=not color,
        color_system="standard" if color else None,
        markup=False,
        highlight=False,
        emoji=False,
        legacy_windows=False,
    )
    for part in _parts(description, names):
        console.print(part)
    return "\n".join(line.rstrip() for line in buffer.getvalue().split("\n"))


def shortened_example(record: Record) -> Record:
    """The record with the start of each message only."""
    sides = {name: [_shortened(message) for message in record[name]] for name in side_names(record)}
    return Record({**record, **sides})


def _shortened(message: Message) -> Message:
    content: object = message["content"]
    if not isinstance(content, str) or len(content) <= MAX_MESSAGE:
        return message
    rest = len(content) - MAX_MESSAGE
    return {**message, "content": f"{content[:MAX_MESSAGE]}… ({rest:,} characters more)"}


def _parts(description: Description, names: list[str]) -> "Iterator[RenderableType]":
    rows = description.rows
    yield _heading(", ".join(names))
    if not rows:
        yield _text("holds no rows")
        return
    some = f"{rows} rows" if rows > 1 else "1 row"
    yield _text(f"the first {some}" if rows == ROWS else f"{some}, which is all")
    yield _heading("\nFormat")
    yield _formats(description)
    yield _heading("\nColumns")
    yield _columns(description)
    if not description.formats:
        return
    yield _heading("\nRecords that these rows give")
    yield _emits(description)
    if description.example:
        yield _heading(f"\nThe first record of `emit` {description.example[0]}")


def _formats(description: Description) -> "Table":
    table = _table()
    for name, count in description.formats.items():
        table.add_row(_text(f"  {count}"), _text(name))
    if description.unknown:
        table.add_row(_text(f"  {description.unknown}"), _text("no known format", "bold yellow"))
        hint = "say what the columns hold: `columns` prompt=COLUMN,chosen=COLUMN,rejected=COLUMN"
        table.add_row("", _text(hint))
    for problem in description.problems[:MAX_PROBLEMS]:
        table.add_row("  !", _text(problem, "yellow"))
    if len(description.problems) > MAX_PROBLEMS:
        more = len(description.problems) - MAX_PROBLEMS
        table.add_row("  !", _text(f"{more} more rows cannot be read", "yellow"))
    return table


def _columns(description: Description) -> "Table":
    table = _table("  column", "rows", "holds", "becomes")
    for column in description.columns:
        table.add_row(
            _text(f"  {column.name}"),
            _text(str(column.rows)),
            _text(column.holds),
            _text(column.becomes, _style(column.becomes)),
        )
    return table


def _style(becomes: str) -> str:
    if becomes.endswith(LIKE_A_LABEL):
        return "bold yellow"
    return "dim" if becomes == LEFT_ASIDE else ""


def _emits(description: Description) -> "Table":
    table = _table("  `emit`", "records", "left out")
    for facts in description.emits:
        reasons = ", ".join(f"{count} {reason}" for reason, count in facts.left_out.items())
        table.add_row(
            _text(f"  {facts.emit}"),
            _text(str(facts.records), "" if facts.records else "dim"),
            _text(reasons),
        )
    return table


def _table(*columns: str) -> "Table":
    """A table without lines. Its second column holds numbers where it has a heading."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=bool(columns), header_style="dim")
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", justify="right" if index == 1 else "left")
    return table


def _heading(text: str) -> "Text":
    return _text(text, "bold")


def _text(text: str, style: str = "") -> "Text":
    from rich.text import Text

    return Text(visible(text), style, overflow="fold")
