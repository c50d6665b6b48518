"""Records in a terminal, drawn by rich: the sides of a pair in two columns."""

import io
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from musiccli.core.records import Record
from musiccli.show.view import MessageView, RecordView, record_view

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

MIN_WIDTH_FOR_COLUMNS = 60  # in a narrower terminal one side stands under the other
HEIGHT = 25  # lines; nothing depends on it, but without it rich asks the system for each part
ROLE_STYLES = {
    "system": "bold magenta",
    "user": "bold cyan",
    "assistant": "bold blue",
    "tool": "bold yellow",
}
PART_STYLES = {"text": "", "call": "yellow", "thoughts": "dim italic"}
SIDE_STYLES = {"chosen": "green", "rejected": "red", "a": "blue", "b": "magenta", "messages": ""}


def terminal_text(
    records: Iterable[Record], *, width: int = 80, color: bool = False
) -> Iterator[str]:
    """Each record as lines of at most `width` columns, with escape sequences if `color`."""
    from rich.console import Group

    for record in records:
        buffer = io.StringIO()
        console = _console(buffer, width, color)
        console.print(Group(*_parts(record_view(record), width)))
        yield "\n".join(line.rstrip() for line in buffer.getvalue().split("\n")) + "\n"


def _console(file: io.StringIO, width: int, color: bool) -> "Console":
    """A console that takes nothing in a text for markup, an emoji or a number to highlight."""
    from rich.console import Console

    return Console(
        file=file,
        width=width,
        height=HEIGHT,
        force_terminal=color,
        no_color=not color,
        color_system="standard" if color else None,
        markup=False,
        highlight=False,
        emoji=False,
        legacy_windows=False,
    )


def _parts(view: RecordView, width: int) -> "Iterator[RenderableType]":
    from rich.rule import Rule
    from rich.text import Text

    heading = Text.assemble((view.id, "bold"), (f" · {view.kind}", "dim"))
    yield Rule(heading, align="left", style="dim")
    if view.facts:
        yield Text(" · ".join(view.facts), "dim")
    single = len(view.sides) == 1
    if single and view.captions[0]:
        yield Text(view.captions[0], "bold")
    yield Text()
    for message in view.shared:
        yield from _message(message)
    if view.shared:
        yield Rule(Text(view.divider, "dim"), characters="╌", style="dim")
    if single:
        for message in view.columns[0]:
            yield from _message(message)
    elif width < MIN_WIDTH_FOR_COLUMNS or not any(view.columns):
        yield from _stacked_sides(view)
    else:
        yield _two_columns(view)
    for title, explanation in view.votes:
        text = f"\n{explanation}" if explanation else ""
        yield Text.assemble((title, "bold"), text, overflow="fold")


def _message(message: MessageView, side: str = "messages") -> "Iterator[RenderableType]":
    """The label on a line, then the text, indented by two columns."""
    from rich.padding import Padding
    from rich.text import Text

    yield Text(message.label, ROLE_STYLES[message.role], overflow="fold")
    if message.instruction:
        instruction = f"answers instead: {message.instruction}"
        yield Padding(Text(instruction, "italic yellow", overflow="fold"), (0, 0, 0, 2))
    for part in message.parts:
        style = PART_STYLES[part.kind]
        if part.title:
            yield Padding(Text(part.title, f"bold {style}", overflow="fold"), (0, 0, 0, 2))
        text = Text(style=style, overflow="fold", tab_size=4)
        for segment, changed in part.segments():
            text.append(segment, f"bold underline {SIDE_STYLES[side]}" if changed else None)
        if part.text or not part.title:
            yield Padding(text, (0, 0, 0, 4 if part.title else 2))
    yield Text()


def _two_columns(view: RecordView) -> "Table":
    from rich.box import MINIMAL
    from rich.console import Group
    from rich.table import Table

    table = Table(box=MINIMAL, show_edge=False, pad_edge=False, expand=True, border_style="dim")
    for index in range(len(view.sides)):
        table.add_column(_side_heading(view, index), ratio=1, overflow="fold", vertical="top")
    for row in view.rows():
        cells = zip(row, view.sides, strict=True)
        table.add_row(
            *(Group(*_message(message, side)) if message else "" for message, side in cells)
        )
    return table


def _stacked_sides(view: RecordView) -> "Iterator[RenderableType]":
    """One side under the other; only their headings if both sides are the same."""
    for index, side in enumerate(view.sides):
        yield _side_heading(view, index)
        for message in view.columns[index]:
            yield from _message(message, side)


def _side_heading(view: RecordView, index: int) -> "Text":
    from rich.text import Text

    star = "★ " if view.winner == index else ""
    style = f"bold {SIDE_STYLES[view.sides[index]]}"
    return Text(star + view.captions[index], style, overflow="fold")
