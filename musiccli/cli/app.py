"""The program `music` itself: its help, its global options and the order of its commands."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

from musiccli import __version__
from musiccli.cli.numbers import prepare_numbers
from musiccli.cli.paths import path_uses, refuse_same_paths, refuse_unusable_paths

# The order of the help: the commands of the pipeline, then the commands that serve them.
ORDER = (
    *("sample", "simulate", "pair", "train", "score", "serve", "judge", "bench"),
    *("show", "merge", "cache", "help"),
)


class PipelineOrder(typer.core.TyperGroup):
    """Lists the commands in the order of the pipeline."""

    def list_commands(self, ctx: object) -> list[str]:
        """The names of all commands, in the order in which help shows them."""
        return sorted(
            self.commands, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)
        )


class Command(typer.core.TyperCommand):
    """A command whose help calls its arguments as the usage line does, without Python's types."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections of arguments and of options."""
        rows: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                if parameter.param_type_name == "argument":
                    rows["Arguments"].append((parameter.metavar or record[0], record[1]))
                else:
                    rows["Options"].append(record)
        for title, records in rows.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


app = typer.Typer(
    name="music",
    cls=PipelineOrder,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="""Train and evaluate multi-turn reward models.

\b
music sample pairs.jsonl -n 100 | music simulate --turns 3 | music pair > music.jsonl
music train pairs.jsonl music.jsonl --out rm
music score heldout.jsonl --model rm | music bench agreement

Every command reads and writes JSONL. Messages for people go to standard error.
`music help` shows the manual.""",
)


def show_version(wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        print(f"music {__version__}")
        raise typer.Exit


@app.callback()
def global_options(
    version: bool = typer.Option(
        False, "--version", callback=show_version, is_eager=True, help="Print the version."
    ),
    quiet: bool = typer.Option(
        False, "--quiet", help="Say nothing but errors; may stand anywhere."
    ),
    debug: bool = typer.Option(
        False, "--debug", help="Show the whole trace of an error; may stand anywhere."
    ),
) -> None:
    """Options that stand before any command; main() has read --quiet and --debug already."""


def first_line(text: str | None) -> str:
    """The first paragraph of a docstring in one line: what a command does, in the list of all."""
    return " ".join((text or "").strip().partition("\n\n")[0].split())


def plain_command(body: Callable[..., Any]) -> Callable[..., Any]:
    """Make a command of a function that neither reads nor writes records in the common way."""

    @wraps(body)
    def command(**options: Any) -> None:
        refuse_same_paths(uses, options)
        refuse_unusable_paths(uses, options)
        body(**options)

    parameters = inspect.signature(body, eval_str=True).parameters.values()
    prepare_numbers(parameters)
    uses = path_uses({parameter.name: parameter.annotation for parameter in parameters})
    command.path_uses = uses  # type: ignore[attr-defined]  # for tests
    app.command(cls=Command, short_help=first_line(body.__doc__))(command)
    return body
