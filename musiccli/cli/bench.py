"""music score pairs.jsonl --model rm | music bench agreement"""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from musiccli import jsonl, progress
from musiccli.cli.common import SEED, Run, app, stage
from musiccli.errors import InputError

bench = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None,
    help="""Metrics with intervals, from records that were scored or judged.

\b
music score pairs.jsonl --model rm | music bench agreement
music judge contests.jsonl --judge MODEL | music bench winrate --plot winrate.png""")
app.add_typer(bench, name="bench")

MODELS = Annotated[list[str] | None, typer.Option(
    "--model", metavar="NAME", show_default=False,
    help="Only this model's scores, under the name that score --as gave it; may be repeated. Default: all.")]
CONFIDENCE = Annotated[float, typer.Option(min=0.5, max=0.9999, help="How often an interval should hold the truth.")]
BOOTSTRAP = Annotated[int, typer.Option(min=100, max=1_000_000, metavar="DRAWS", help="Bootstrap samples.")]
PLOT = Annotated[str | None, typer.Option(
    metavar="FILE", show_default=False, help="Draw the figures as .png, .svg or .pdf, too (needs matplotlib).")]


@stage("bench rewardbench", to=bench)
def rewardbench(run: Run, model: MODELS = None, confidence: CONFIDENCE = 0.95, plot: PLOT = None) -> None:
    """RewardBench's subsets, sections and average.

    \b
    music sample rewardbench --emit pairs | music score --model rm | music bench rewardbench
    """
    from musiccli.bench import rewardbench, tables

    check(plot)
    pairs = run.read(partial(rewardbench.scored, models=model or ()))
    rows = list(rewardbench.rewardbench(pairs, model or (), confidence=confidence, counts=run.counts))
    report(run, rows, tables.rewardbench(rows, confidence), plot)


@stage("bench agreement", to=bench)
def agreement(
    run: Run,
    model: MODELS = None,
    by: Annotated[list[str] | None, typer.Option(
        metavar="FIELD", show_default=False,
        help="Also by each value of a field, like metadata.category; may be repeated. Default: turns, "
             "first_divergence.")] = None,
    confidence: CONFIDENCE = 0.95, bootstrap: BOOTSTRAP = 10_000, seed: SEED = 0, plot: PLOT = None,
) -> None:
    """How often scores agree with labels. Of two models in one file, which agrees more.

    \b
    music score votes.jsonl --model rm | music score --model base | music bench agreement --by metadata.category
    """
    from musiccli.bench import agreement, tables

    check(plot)
    pairs = run.read(partial(agreement.scored, models=model or ()))
    rows = list(agreement.agreement(pairs, model or (), by=by or agreement.BY, draws=bootstrap, confidence=confidence,
                                    seed=seed, counts=run.counts))
    report(run, rows, tables.agreement(rows, confidence), plot)


@stage("bench winrate", to=bench)
def winrate(run: Run, confidence: CONFIDENCE = 0.95, bootstrap: BOOTSTRAP = 10_000, seed: SEED = 0,
            plot: PLOT = None) -> None:
    """How often side a wins, for each N of Best-of-N.

    \b
    music pair --best-of 2,4,8 --a music --b base scored.jsonl | music judge --judge MODEL | music bench winrate
    """
    from musiccli.bench import tables, winrate

    check(plot)
    rows = list(winrate.winrate(run.read(winrate.judged), draws=bootstrap, confidence=confidence, seed=seed,
                                counts=run.counts))
    report(run, rows, tables.winrate(rows, confidence), plot)


def check(plot: str | None) -> None:
    """Refuse a picture that cannot be drawn before a long pipe has run for it."""
    if plot:
        from musiccli.bench import plots

        plots.check(plot)
        if not Path(plot).parent.is_dir():
            raise InputError(f"--plot {plot}: there is no such folder")


def report(run: Run, rows: list[dict], table: tuple[str, list[str], list[list[str]]], plot: str | None) -> None:
    """Metric records to the output, the table and what belongs to it to stderr, the picture to its file."""
    from musiccli.bench import tables

    run.write(rows)
    title, columns, cells = table
    if cells:
        progress.table(columns, cells, title)
    for note in tables.notes(rows):
        run.say(note)
    if plot and rows:
        from musiccli.bench import plots

        picture = jsonl.Output(plot)
        picture.write_bytes(plots.draw(rows, plots.check(plot)))
        picture.close()
