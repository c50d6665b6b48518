"""music sample skywork -n 1000 > seeds.jsonl"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from musiccli.cli.option_names import as_typed
from musiccli.cli.options import SEED
from musiccli.cli.paths import READ
from musiccli.cli.run import Run, stage
from musiccli.cli.show import Color, terminal_width, use_color
from musiccli.core.errors import InputError
from musiccli.core.jsonl import Rejects
from musiccli.core.run_stats import RunStats
from musiccli.sample.config import ContrastTurn, CorruptionKind, Emit, Ranked, SampleConfig, Speaker

if TYPE_CHECKING:
    from musiccli.sample.column_mapping import ColumnMapping

MAX_WIDTH = 80  # columns of a description


@stage(reads=False)
def sample(
    run: Run,
    datasets: Annotated[
        list[str],
        typer.Argument(
            metavar="DATASET",
            show_default=False,
            help="JSON, JSONL, CSV, TSV, Parquet or Arrow files, a folder, - for JSON or JSONL on "
            "standard input, a hub id (OWNER/NAME), or a short name, as skywork; music help "
            "datasets lists them.",
        ),
        READ,
    ],
    emit: Annotated[
        Emit, typer.Option(help="The kind of record to make of each row.")
    ] = SampleConfig.emit,
    count: Annotated[
        int | None,
        typer.Option(
            "--count",
            "-n",
            min=1,
            show_default=False,
            help="Choose this many records at random; without it, keep all.",
        ),
    ] = SampleConfig.count,
    seed: SEED = SampleConfig.seed,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COLUMN,...",
            show_default=False,
            help="The columns of rows that no format fits: prompt=question,chosen=answers.0, "
            "rejected=answers.1, or a=left,b=right,winner=label:1=a,2=b; other names become "
            "metadata; without it, rows are recognized by their columns.",
        ),
    ] = None,
    describe: Annotated[
        bool,
        typer.Option(
            "--describe",
            help="Write no records, but what the first rows are, what each column becomes and "
            "what each --emit gives.",
        ),
    ] = False,
    next_speaker: Annotated[
        Speaker,
        typer.Option(
            "--next", help="Who speaks after a seed: it ends with the other speaker's message."
        ),
    ] = SampleConfig.next_speaker,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=False,
            help="Shorten seeds to this length, and drop other records that are longer, counting "
            "4 characters as a token; without it, any length.",
        ),
    ] = SampleConfig.max_tokens,
    kinds: Annotated[
        list[CorruptionKind] | None,
        typer.Option(
            "--kind",
            metavar=f"<{'|'.join(CorruptionKind)}>",
            show_default=False,
            help="Make only this kind of corruption; may be given several times; without it, all.",
        ),
    ] = None,
    turn: Annotated[
        ContrastTurn,
        typer.Option(
            help="The turn whose reply a contrast replaces: any, drawn for each conversation, or "
            "the last."
        ),
    ] = SampleConfig.turn,
    label: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="The label that ranks replies, where a dataset has several, as PKU-SafeRLHF has "
            "helpfulness and safety; without it, the dataset's first.",
        ),
    ] = SampleConfig.label,
    ranked: Annotated[
        Ranked,
        typer.Option(
            help="The pairs of a row with several ranked replies: all, or the best over the worst."
        ),
    ] = SampleConfig.ranked,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATASET",
            show_default=False,
            help="Drop what overlaps this benchmark: the same first prompt, or 13 successive words "
            "of any prompt (characters, in scripts without spaces).",
        ),
        READ,
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="The configuration of a hub dataset that has several.",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="The part of a hub dataset or folder; without it, train, or all of a folder.",
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="COMMIT",
            show_default=False,
            help="The version of a hub dataset; short names have a fixed one.",
        ),
    ] = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Read hub datasets as they arrive, and keep nothing on the disk; without it, they "
            "are downloaded once.",
        ),
    ] = False,
) -> None:
    """Read datasets of many formats and write seeds, prompts, pairs, comparisons or conversations.

    Repeated records are dropped. corruptions are preferences to evaluate on: each conversation
    over itself with one thing wrong at one turn (see music bench sensitivity). contrasts are
    preferences to train on, made without an LLM: each conversation over itself with one reply
    from another conversation. Both hold all conversations in memory.

    \b
    music sample judgments.csv --describe
    music sample skywork -n 1000 --exclude rewardbench | music simulate > branches.jsonl
    music sample hh.jsonl.gz --emit pairs --on-error skip > pairs.jsonl
    music sample pairs.jsonl --emit contrasts -n 5000 > contrasts.jsonl
    """
    from musiccli.sample.column_mapping import map_columns, parse_mapping
    from musiccli.sample.sampler import read_excluded, sample
    from musiccli.sample.sources import read_rows

    if kinds and emit is not Emit.corruptions:
        raise InputError("--kind is for --emit corruptions")
    if turn is ContrastTurn.last and emit is not Emit.contrasts:
        raise InputError("--turn is for --emit contrasts")
    pairs = emit in (Emit.pairs, Emit.comparisons)
    if (label or ranked is not Ranked.all) and not (pairs or describe):
        raise InputError("--label and --ranked are for --emit pairs and --emit comparisons")
    settings = SampleConfig(
        emit=emit,
        count=count,
        seed=seed,
        next_speaker=next_speaker,
        max_tokens=max_tokens,
        kinds=tuple(kinds or SampleConfig.kinds),
        turn=turn,
        label=label,
        ranked=ranked,
    )
    mapping = parse_mapping(columns) if columns else None
    part = HubPart(config, split, revision, stream)
    if describe:
        run.show(_description(datasets, part, settings, mapping, run))
        return
    rows = read_rows(datasets, **part._asdict(), stats=run.stats)
    if mapping:
        rows = map_columns(rows, mapping, run.stats)
    excluded = read_excluded(exclude, run.stats) if exclude else None
    run.write(sample(rows, settings, excluded=excluded, stats=run.stats))


class HubPart(NamedTuple):
    """Which part and version of the datasets is read, and whether it is kept on the disk."""

    config: str | None
    split: str | None
    revision: str | None
    stream: bool


def _description(
    names: list[str],
    part: HubPart,
    settings: SampleConfig,
    mapping: "ColumnMapping | None",
    run: Run,
) -> Iterator[str]:
    """The description of datasets, and a record of them as `music show` shows it."""
    from musiccli.sample.describe import UnreadableLines, describe
    from musiccli.sample.description_text import description_text, shortened_example
    from musiccli.sample.sources import read_rows
    from musiccli.show.terminal import terminal_text

    unreadable = UnreadableLines()
    stats = RunStats(Rejects(skip=True, report=unreadable.append), run.say)
    rows = read_rows(names, **part._asdict(), stats=stats)
    description = describe(rows, settings, mapping, unreadable)
    width, color = min(terminal_width(), MAX_WIDTH), use_color(Color.auto, run.on_terminal)
    yield as_typed(description_text(description, names, width=width, color=color))
    if description.example:
        example = shortened_example(description.example[1])
        yield from terminal_text([example], width=width, color=color)
