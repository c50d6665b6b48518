"""music sample skywork -n 1000 > seeds.jsonl"""

from enum import StrEnum
from typing import Annotated

import typer

from musiccli.cli.options import SEED
from musiccli.cli.run import Run, stage
from musiccli.core.errors import InputError


class Emit(StrEnum):
    seeds = "seeds"
    prompts = "prompts"
    pairs = "pairs"
    comparisons = "comparisons"
    conversations = "conversations"
    corruptions = "corruptions"
    contrasts = "contrasts"


class Kind(StrEnum):
    reply = "reply"
    user = "user"
    drop_user = "drop_user"
    swap = "swap"


class Turn(StrEnum):
    any = "any"
    last = "last"


class Speaker(StrEnum):
    user = "user"
    assistant = "assistant"
    any = "any"


@stage(reads=False)
def sample(
    run: Run,
    datasets: Annotated[
        list[str],
        typer.Argument(
            metavar="DATASET",
            show_default=False,
            help="JSON, JSONL or Parquet files, a folder, - for JSONL on standard input, a hub id (OWNER/NAME), or: "
            "skywork, ultrafeedback, ultrainteract, hh, hh-helpful, hh-harmless, rewardbench, rewardbench2, "
            "mt-bench-human.",
        ),
    ],
    emit: Annotated[Emit, typer.Option(help="What to make of each row.")] = Emit.seeds,
    count: Annotated[
        int | None,
        typer.Option(
            "--count",
            "-n",
            min=1,
            show_default=False,
            help="Choose so many at random; without it, all.",
        ),
    ] = None,
    seed: SEED = 0,
    next_speaker: Annotated[
        Speaker,
        typer.Option(
            "--next", help="Who speaks after a seed: it is cut after the other's message."
        ),
    ] = Speaker.user,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=False,
            help="Cut seeds earlier, and drop other records, that are longer than this; a token "
            "is reckoned as 4 characters. Without it, any length.",
        ),
    ] = None,
    kind: Annotated[
        list[Kind] | None,
        typer.Option(
            show_default=False,
            help="Of corruptions, only these; may be given several times. Without it, all.",
        ),
    ] = None,
    turn: Annotated[
        Turn,
        typer.Option(
            help="Of contrasts, which turn has a reply to something else: any, drawn for each conversation, or the last, "
            "the single-turn ablation."
        ),
    ] = Turn.any,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATASET",
            show_default=False,
            help="Drop what overlaps this benchmark: the same first prompt, or 13 words in a row of any (characters, in "
            "scripts that set no words apart).",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            show_default=False,
            help="The part of a hub dataset or folder; without it, train, or all of a folder.",
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="COMMIT",
            show_default=False,
            help="Pin a hub dataset; short names are pinned already.",
        ),
    ] = None,
) -> None:
    """Read datasets of many formats and write seeds, prompts, pairs, comparisons or conversations, without repeats.

    corruptions are conversations, each beside itself with one thing wrong at one turn: see music bench sensitivity.
    contrasts are preferences to train on, made without an LLM: each conversation once, over itself with one reply out
    of another conversation. Both keep all conversations in memory, to borrow from.

    \b
    music sample skywork -n 1000 --max-tokens 1024 --exclude rewardbench | music simulate > branches.jsonl
    music sample hh.jsonl.gz --emit pairs --on-error skip > pairs.jsonl
    music sample pairs.jsonl --emit contrasts -n 5000 > contrasts.jsonl
    """
    from musiccli.sample import sampler as sample
    from musiccli.sample import sources

    if (kind and emit is not Emit.corruptions) or (
        turn is Turn.last and emit is not Emit.contrasts
    ):
        raise InputError("--kind is for --emit corruptions, and --turn for --emit contrasts")
    rows = sources.rows(datasets, run.rejects, split=split, revision=revision, say=run.say)
    benchmark = (
        sample.Benchmark(sample.read(sources.rows(exclude, run.rejects, say=run.say), run.rejects))
        if exclude
        else None
    )
    run.write(
        sample.sample(
            rows,
            emit,
            count=count,
            seed=seed,
            next_speaker=next_speaker,
            max_tokens=max_tokens,
            kinds=kind or (),
            last_turn=turn is Turn.last,
            benchmark=benchmark,
            rejects=run.rejects,
            counts=run.counts,
        )
    )
