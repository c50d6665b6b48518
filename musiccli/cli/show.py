"""music show pairs.jsonl -n 3"""

import os
import sys
from enum import StrEnum
from typing import Annotated

import typer

from musiccli.cli.run import Run, stage
from musiccli.core import records
from musiccli.core.errors import InputError


class Colour(StrEnum):
    auto = "auto"
    always = "always"
    never = "never"


@stage()
def show(
    run: Run,
    count: Annotated[
        int | None,
        typer.Option(
            "--count", "-n", min=1, show_default=False, help="Only the first so many. Default: all."
        ),
    ] = None,
    ids: Annotated[
        list[str] | None,
        typer.Option(
            "--id",
            metavar="ID",
            show_default=False,
            help="Only the record of this id; may be repeated.",
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUE",
            show_default=False,
            help="Only records whose field has this value, like metadata.subset=llmbar-natural; may be repeated.",
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            min=30, max=1000, show_default=False, help="Columns. Default: the terminal's."
        ),
    ] = None,
    color: Annotated[
        Colour, typer.Option(help="auto colours what goes to a terminal.")
    ] = Colour.auto,
    html: Annotated[
        str | None,
        typer.Option(
            "--html",
            metavar="FILE",
            show_default=False,
            help="Write one self-contained page of HTML instead.",
        ),
    ] = None,
) -> None:
    """Show records of any kind to people, two sides beside each other.

    \b
    music show pairs.jsonl -n 5
    music judge pairs.jsonl --judge MODEL | music show --where winner=tie --html ties.html
    """
    from musiccli.show import view as show

    tests = [tuple(test.split("=", 1)) for test in where or ()]
    if any(len(test) != 2 for test in tests):
        raise InputError("--where: expected FIELD=VALUE, like metadata.subset=llmbar-natural")
    chosen = show.select(
        run.read(records.parse_any, unique=False),
        ids=ids or (),
        where=tests,
        count=count,
        counts=run.counts,
    )
    if html:
        run.show(show.page(chosen, ", ".join(run.files) or "music show"), html)
    else:
        colour = color == Colour.always or (
            color == Colour.auto and run.on_terminal and not os.environ.get("NO_COLOR")
        )
        run.show(show.terminal(chosen, width=width or terminal_width(), colour=colour))
    if not run.counts["shown"]:
        run.say("no record matches")


def terminal_width() -> int:
    """Columns of the terminal, also where only standard error or input is one, as before `| less`."""
    for stream in (sys.stdout, sys.stderr, sys.stdin):
        try:
            return max(30, os.get_terminal_size(stream.fileno()).columns)
        except (OSError, ValueError):
            continue
    return 100
