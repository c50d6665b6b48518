"""music show pairs.jsonl -n 3"""

import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer

from musiccli.cli.paths import PathUse
from musiccli.cli.run import Run, stage
from musiccli.core import jsonl, records
from musiccli.core.errors import ExitStatus, InputError

MIN_WIDTH, DEFAULT_WIDTH = 30, 100  # columns


class Color(StrEnum):
    auto = "auto"
    always = "always"
    never = "never"


@stage()
def show(
    run: Run,
    count: Annotated[
        int | None,
        typer.Option(
            "--count",
            "-n",
            min=1,
            show_default=False,
            help="Show only the first N records. Default: all.",
        ),
    ] = None,
    ids: Annotated[
        list[str] | None,
        typer.Option(
            "--id",
            metavar="ID",
            show_default=False,
            help="Show only the record with this id; may be repeated.",
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUE",
            show_default=False,
            help="Show only records whose field has this value, as in "
            "metadata.subset=llmbar-natural; may be repeated.",
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            min=MIN_WIDTH,
            max=1000,
            show_default=False,
            help="Width of a line in columns. Default: the terminal's.",
        ),
    ] = None,
    color: Annotated[
        Color, typer.Option(help="Use color. auto: only if the output is a terminal.")
    ] = Color.auto,
    html: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Write an HTML page instead: a single file that needs no other.",
        ),
        PathUse(written=True, replaces="output"),
    ] = None,
) -> None:
    """Show records of any kind to people, the two sides of a pair beside each other.

    \b
    music show pairs.jsonl -n 5
    music judge pairs.jsonl --judge MODEL | music show --where winner=tie --html ties.html
    """
    from musiccli.show.html import html_page
    from musiccli.show.selection import select_records
    from musiccli.show.terminal import terminal_text

    selected = select_records(
        run.read(records.parse_any, unique=False),
        ids=ids or (),
        where=field_values(where or ()),
        count=count,
        stats=run.stats,
    )
    if html:
        run.show(html_page(selected, ", ".join(run.files) or "music show"), html)
    else:
        run.show(
            terminal_text(
                selected, width=width or terminal_width(), color=use_color(color, run.on_terminal)
            )
        )
    if not run.stats.number("shown") and not run.stats.rejects.count:
        run.say_error("no record matches")
        raise typer.Exit(ExitStatus.PARTIAL)


def field_values(tests: Sequence[str]) -> list[tuple[str, str]]:
    """(field, value) of each FIELD=VALUE."""
    pairs = [test.partition("=") for test in tests]
    if not all(equals for _, equals, _ in pairs):
        raise InputError("--where: expected FIELD=VALUE, like metadata.subset=llmbar-natural")
    return [(field, value) for field, _, value in pairs]


def use_color(color: Color, on_terminal: bool) -> bool:
    """Whether to use color. NO_COLOR (https://no-color.org) turns it off only for `auto`."""
    if color is Color.auto:
        return on_terminal and not os.environ.get("NO_COLOR")
    return color is Color.always


def terminal_width() -> int:
    """Columns of the terminal, also if only stderr or stdin is one, as before `| less`."""
    for stream in filter(None, (sys.stdout, sys.stderr, jsonl.standard_input())):
        try:
            return max(MIN_WIDTH, os.get_terminal_size(stream.fileno()).columns)
        except (OSError, ValueError):
            continue
    return DEFAULT_WIDTH
