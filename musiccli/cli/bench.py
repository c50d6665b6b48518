"""music score pairs.jsonl --model rm | music bench agreement"""

from functools import partial
from typing import Annotated

import typer

from musiccli.cli.app import app
from musiccli.cli.llm_options import PROMPTS, OpenClient, default_prompts, with_llm_options
from musiccli.cli.options import SEED
from musiccli.cli.run import Run, stage

bench = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    short_help="Compute metrics with intervals from scored or judged records.",
    help="""Metrics with intervals, from records that were scored or judged.

\b
music score pairs.jsonl --model rm | music bench agreement
music judge contests.jsonl --judge MODEL | music bench winrate --html winrate.html""",
)
app.add_typer(bench, name="bench")

MODELS = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="NAME",
        show_default=False,
        help="Only this model's scores, under the name that score --as gave it; may be repeated. Default: all.",
    ),
]
CONFIDENCE = Annotated[
    float, typer.Option(min=0.5, max=0.9999, help="How often an interval should hold the truth.")
]
BOOTSTRAP = Annotated[
    int, typer.Option(min=100, max=1_000_000, metavar="DRAWS", help="Bootstrap samples.")
]
PLOT = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        show_default=False,
        help="Draw the figures as .png, .svg or .pdf, too (needs matplotlib).",
    ),
]
HTML = Annotated[
    str | None,
    typer.Option(
        "--html",
        metavar="FILE",
        show_default=False,
        help="Write one page with tables, figures, the worst records and how to reproduce it, too.",
    ),
]
MARKDOWN = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", show_default=False, help="Write the tables as Markdown, for a paper, too."
    ),
]


@stage("bench rewardbench", to=bench)
def rewardbench(
    run: Run,
    model: MODELS = None,
    confidence: CONFIDENCE = 0.95,
    plot: PLOT = None,
    html: HTML = None,
    markdown: MARKDOWN = None,
) -> None:
    """RewardBench's subsets, sections and average.

    \b
    music sample rewardbench --emit pairs | music score --model rm | music bench rewardbench
    """
    from musiccli.bench import rewardbench
    from musiccli.cli.report import Report

    report = Report(run, model, plot, html, markdown)
    pairs = run.read(partial(rewardbench.scored, models=model or ()))
    pairs = report.watch(pairs, report.worst.pairs, lambda _: "chosen")
    rows = list(
        rewardbench.rewardbench(pairs, model or (), confidence=confidence, counts=run.counts)
    )
    report.write(rows, confidence)


@stage("bench rewardbench2", to=bench)
def rewardbench2(
    run: Run,
    model: MODELS = None,
    confidence: CONFIDENCE = 0.95,
    bootstrap: BOOTSTRAP = 10_000,
    seed: SEED = 0,
    plot: PLOT = None,
    html: HTML = None,
    markdown: MARKDOWN = None,
) -> None:
    """RewardBench 2: how often the right reply of four scores highest, the score of the ties, and the average.

    \b
    music sample rewardbench2 --emit conversations | music score --model rm | music bench rewardbench2
    """
    from musiccli.bench import rewardbench2
    from musiccli.cli.report import Report

    report = Report(run, model, plot, html, markdown)
    found = run.read(partial(rewardbench2.scored, models=model or ()))
    rows = list(
        rewardbench2.rewardbench2(
            report.watch(found, report.worst.candidates),
            model or (),
            draws=bootstrap,
            confidence=confidence,
            seed=seed,
            rejects=run.rejects,
        )
    )
    report.write(rows, confidence)


@stage("bench rmbench", to=bench)
def rmbench(
    run: Run,
    model: MODELS = None,
    confidence: CONFIDENCE = 0.95,
    plot: PLOT = None,
    html: HTML = None,
    markdown: MARKDOWN = None,
) -> None:
    """RM-Bench: right replies against wrong ones across three styles, from easy to hard.

    \b
    music sample THU-KEG/RM-Bench --emit conversations | music score --model rm | music bench rmbench
    """
    from musiccli.bench import rmbench
    from musiccli.cli.report import Report

    report = Report(run, model, plot, html, markdown)
    found = run.read(partial(rmbench.scored, models=model or ()))
    rows = list(
        rmbench.rmbench(
            report.watch(found, report.worst.candidates),
            model or (),
            confidence=confidence,
            rejects=run.rejects,
        )
    )
    report.write(rows, confidence)


@stage("bench agreement", to=bench)
def agreement(
    run: Run,
    model: MODELS = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD",
            show_default=False,
            help="Also by each value of a field, like metadata.category; may be repeated. Default: turns, "
            "first_divergence.",
        ),
    ] = None,
    confidence: CONFIDENCE = 0.95,
    bootstrap: BOOTSTRAP = 10_000,
    seed: SEED = 0,
    plot: PLOT = None,
    html: HTML = None,
    markdown: MARKDOWN = None,
) -> None:
    """How often scores agree with labels. Of two models in one file, which agrees more.

    \b
    music score votes.jsonl --model rm | music score --model base | music bench agreement --by metadata.category
    """
    from musiccli.bench import agreement
    from musiccli.cli.report import Report

    report = Report(run, model, plot, html, markdown)
    pairs = run.read(partial(agreement.scored, models=model or ()))
    pairs = report.watch(pairs, report.worst.pairs, lambda pair: pair.get("winner", "chosen"))
    rows = list(
        agreement.agreement(
            pairs,
            model or (),
            by=by or agreement.BY,
            draws=bootstrap,
            confidence=confidence,
            seed=seed,
            counts=run.counts,
        )
    )
    report.write(rows, confidence)


@stage("bench sensitivity", to=bench)
def sensitivity(
    run: Run,
    model: MODELS = None,
    confidence: CONFIDENCE = 0.95,
    bootstrap: BOOTSTRAP = 10_000,
    seed: SEED = 0,
    plot: PLOT = None,
    html: HTML = None,
    markdown: MARKDOWN = None,
) -> None:
    """Whether a model reads the whole conversation: how often it notices that one turn is wrong, by how far back.

    \b
    music sample talks.jsonl --emit corruptions | music score --model rm | music score --model rm --last-only |
        music bench sensitivity --html sensitivity.html
    """
    from musiccli.bench import sensitivity
    from musiccli.cli.report import Report

    report = Report(run, model, plot, html, markdown)
    pairs = run.read(partial(sensitivity.scored, models=model or ()))
    pairs = report.watch(pairs, report.worst.pairs, lambda _: "chosen")
    rows = list(
        sensitivity.sensitivity(
            pairs, model or (), draws=bootstrap, confidence=confidence, seed=seed
        )
    )
    report.write(rows, confidence)


@stage("bench winrate", to=bench)
def winrate(
    run: Run,
    confidence: CONFIDENCE = 0.95,
    bootstrap: BOOTSTRAP = 10_000,
    seed: SEED = 0,
    plot: PLOT = None,
    html: HTML = None,
    markdown: MARKDOWN = None,
) -> None:
    """How often side a wins, for each N of Best-of-N.

    \b
    music pair --best-of 2,4,8 --a music --b base scored.jsonl | music judge --judge MODEL | music bench winrate
    """
    from musiccli.bench import winrate
    from musiccli.cli.report import Report

    report = Report(run, None, plot, html, markdown)
    contests = report.watch(run.read(winrate.judged), report.worst.contests)
    rows = list(
        winrate.winrate(
            contests, draws=bootstrap, confidence=confidence, seed=seed, counts=run.counts
        )
    )
    report.write(rows, confidence)


@stage("bench judges", to=bench)
def judges(
    run: Run,
    human_field: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            show_default=False,
            help="The field (or metadata field) with a person's verdict: a side's "
            "name, tie or null. Default: the winner that a record had when judge read it, else the chosen side.",
        ),
    ] = None,
    confidence: CONFIDENCE = 0.95,
    bootstrap: BOOTSTRAP = 10_000,
    seed: SEED = 0,
    plot: PLOT = None,
    html: HTML = None,
    markdown: MARKDOWN = None,
) -> None:
    """How far judges can be trusted: what order and length do to them, agreement with labels and with each other.

    \b
    music judge pairs.jsonl --judge openai/gpt-4o --judge gemini/gemini-1.5-pro | music bench judges
    music bench judges by-gpt.jsonl by-gemini.jsonl --human-field metadata.human
    """
    from musiccli.bench import judges
    from musiccli.cli.report import Report

    report = Report(run, None, plot, html, markdown)
    pairs = run.read(partial(judges.judged, human_field=human_field), unique=False)
    pairs = report.watch(
        pairs, report.worst.verdicts, partial(judges.label, human_field=human_field)
    )
    rows = list(
        judges.judges(
            pairs,
            human_field=human_field,
            draws=bootstrap,
            confidence=confidence,
            seed=seed,
            rejects=run.rejects,
            counts=run.counts,
        )
    )
    report.write(rows, confidence)


@stage("bench audit", to=bench)
@with_llm_options
def audit(
    run: Run,
    open_client: OpenClient,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            show_default=False,
            help="Also ask this LLM, in both orders, which reply of each contrasted "
            "turn is better; may be repeated. Left out: nobody is asked.",
        ),
    ] = None,
    prompts: PROMPTS = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest explanation and verdict.")] = 512,
    confidence: CONFIDENCE = 0.95,
    seed: SEED = 0,
    plot: PLOT = None,
    html: HTML = None,
    markdown: MARKDOWN = None,
) -> None:
    """What the contrast teaches, turn by turn: leaks, equal replies, lengths; with a judge, how noisy the labels are.

    Reads branches, all of them, or the pairs that music pair kept.

    \b
    music simulate seeds.jsonl | music pair | music bench audit --judge gemini/gemini-1.5-pro --html audit.html
    """
    from contextlib import closing

    from musiccli.bench import audit
    from musiccli.cli.report import Report
    from musiccli.judge import verdicts as judging
    from musiccli.pair import preferences as pair

    report, found = Report(run, None, plot, html, markdown), audit.Audit()
    pairs = pair.join_branches(run.read(audit.contrasted), run.stats, drop=lambda *_: None)
    turns = report.watch(found.read(pairs), report.worst.turns)
    if judge:
        settings = judging.JudgeConfig(
            judges=tuple(dict.fromkeys(judge)),
            prompts=default_prompts(prompts, judge[0]),
            max_tokens=max_tokens,
            seed=seed,
        )
        with (
            open_client(settings.judges) as client,
            closing(judging.judge(turns, settings, client, run.stats)) as judged,
        ):
            found.hear(
                report.watch(judged, report.worst.verdicts, lambda _: "chosen"), settings.judges
            )
    else:
        for _ in turns:
            pass
    report.write(list(audit.audit(found, confidence=confidence)), confidence)
