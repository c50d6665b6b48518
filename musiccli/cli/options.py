"""Options that several commands share."""

from enum import StrEnum
from typing import Annotated

import typer

from musiccli.cli.paths import READ, RECORDS_READ, WRITTEN
from musiccli.core import jsonl


class OnError(StrEnum):
    """What a run does at a bad record."""

    stop = "stop"
    skip = "skip"


FILES = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE",
        help="JSONL files, also .gz and .zst; none or - is standard input.",
        show_default=False,
    ),
    RECORDS_READ,
]
OUTPUT = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        show_default=False,
        help="Write here instead of standard output; the file appears when it is complete.",
    ),
    WRITTEN,
]
ON_ERROR = Annotated[OnError, typer.Option(help="Stop at a bad record, or skip and count it.")]
REJECTS = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        show_default=False,
        help="Keep skipped and failed records here, each with its error.",
    ),
    WRITTEN,
]
MAX_LENGTH = Annotated[
    int | None,
    typer.Option(
        min=2,
        metavar="TOKENS",
        show_default=False,
        help="Longer conversations lose oldest exchanges. Left out: what the model takes.",
    ),
]
BUDGET = Annotated[
    int,
    typer.Option(
        min=1, metavar="TOKENS", help="Tokens in one forward pass. Fewer take less memory."
    ),
]
NUM_PROCESSES = Annotated[
    int | None,
    typer.Option(
        min=1,
        show_default=False,
        help="How many processes share the work, a GPU each where there are any; default: one.",
    ),
]
ACCELERATE_CONFIG = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        show_default=False,
        help="Start by this file of accelerate's: FSDP, DeepSpeed, several machines.",
    ),
    READ,
]


def check_shard(value: str | None) -> str | None:
    """K/N as it is. Raises InputError for anything else, before a model is loaded."""
    if value:
        jsonl.parse_shard(value)
    return value


SHARD = Annotated[
    str | None,
    typer.Option(
        metavar="K/N",
        callback=check_shard,
        show_default=False,
        help="Work on part K of N of the input alone, for N machines; their outputs, joined in "
        "order by cat, are the whole run's. Left out: all of it.",
    ),
]
SEED = Annotated[int, typer.Option(help="Makes everything that is random repeatable.")]
