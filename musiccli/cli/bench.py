"""music score pairs.jsonl --model rm | music bench agreement

Each file of musiccli/bench/ that sets BENCHMARK becomes a command here.
"""

import dataclasses
import inspect
import pkgutil
from collections.abc import Generator, Iterable, MutableMapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from musiccli.bench.config import BenchConfig
from musiccli.cli.app import app
from musiccli.cli.bench_report import report
from musiccli.cli.llm_options import (
    DRY_RUN,
    PROMPTS,
    OpenClient,
    default_prompts,
    show_judge_estimate,
    with_llm_options,
)
from musiccli.cli.options import SEED
from musiccli.cli.paths import CHAT_MODEL_READ, WRITTEN
from musiccli.cli.run import Run, stage
from musiccli.core.errors import InputError
from musiccli.core.records import Record
from musiccli.judge.config import JudgeConfig

if TYPE_CHECKING:
    from musiccli.bench.benchmark import Benchmark


class BenchmarkGroup(typer.core.TyperGroup):
    """`music bench`. The benchmarks are imported when somebody asks for the group's commands."""

    @property
    def commands(self) -> MutableMapping[str, Any]:  # type: ignore[override]  # an attribute there
        """The command of each benchmark, by its name."""
        return benchmark_commands()

    @commands.setter
    def commands(self, commands: object) -> None:
        """Do nothing: typer sets it when it makes the group, without the benchmarks."""


app.add_typer(
    typer.Typer(
        cls=BenchmarkGroup,
        no_args_is_help=True,
        rich_markup_mode=None,
        short_help="Compute metrics with intervals from scored or judged records.",
        help="""Compute metrics with intervals from scored or judged records.

\b
music score pairs.jsonl --model rm | music bench agreement
music judge contests.jsonl --judge MODEL | music bench winrate --html winrate.html""",
    ),
    name="bench",
)

MODELS = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="NAME",
        show_default=False,
        help="Only this model's scores, under the name that score --as gave it; may be repeated. "
        "Default: all.",
    ),
]
CONFIDENCE = Annotated[
    float, typer.Option(min=0.5, max=0.9999, help="How often an interval should hold the truth.")
]
BOOTSTRAP = Annotated[
    int, typer.Option(min=100, max=1_000_000, metavar="DRAWS", help="Bootstrap samples.")
]
JUDGES = Annotated[
    list[str] | None,
    typer.Option(
        "--judge",
        metavar="MODEL",
        show_default=False,
        help="Also ask this LLM, in both orders, which reply of each contrasted turn is better; "
        "may be repeated. Left out: nobody is asked.",
    ),
    CHAT_MODEL_READ,
]
MAX_TOKENS = Annotated[int, typer.Option(min=1, help="Longest explanation and verdict, in tokens.")]
PLOT = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        show_default=False,
        help="Draw the figures as .png, .svg or .pdf, too (needs matplotlib).",
    ),
    WRITTEN,
]
HTML = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        show_default=False,
        help="Write one page with tables, figures, the worst records and how to reproduce it, too.",
    ),
    WRITTEN,
]
MARKDOWN = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", show_default=False, help="Write the tables as Markdown, for a paper, too."
    ),
    WRITTEN,
]
LATEX = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        show_default=False,
        help="Write the tables as LaTeX (it needs booktabs), for a paper, too.",
    ),
    WRITTEN,
]
JUDGE_OPTIONS: dict[str, tuple[Any, Any]] = {  # annotation, default
    "judges": (JUDGES, None),
    "prompts": (PROMPTS, None),
    "max_tokens": (MAX_TOKENS, JudgeConfig.max_tokens),
    "dry_run": (DRY_RUN, False),
}
FILE_OPTIONS = {
    "plot": (PLOT, None),
    "html": (HTML, None),
    "markdown": (MARKDOWN, None),
    "latex": (LATEX, None),
}


@cache
def benchmark_commands() -> MutableMapping[str, Any]:
    """A command for every file of musiccli/bench/ that sets BENCHMARK."""
    import musiccli.bench

    group = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    for file in pkgutil.iter_modules(musiccli.bench.__path__):
        module = import_module(f"musiccli.bench.{file.name}")
        if hasattr(module, "BENCHMARK"):
            add_command(module.BENCHMARK, group)
    stage("bench report", to=group)(report)
    return typer.main.get_group(group).commands


def add_command(benchmark: "Benchmark[Any]", group: typer.Typer) -> None:
    """Make a benchmark a command of the group."""

    def command(run: Run, **options: Any) -> None:
        run_benchmark(run, benchmark, **options)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(name, keyword, annotation=annotation, default=default)
        for name, (annotation, default) in command_options(benchmark).items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # for typer
    command.__doc__ = f"{benchmark.summary}\n\n\b\n{benchmark.example}"
    body = with_llm_options(command) if benchmark.asks_judges else command
    stage(f"bench {benchmark.name}", to=group)(body)


def run_benchmark(
    run: Run,
    benchmark: "Benchmark[Any]",
    *,
    plot: str | None,
    html: str | None,
    markdown: str | None,
    latex: str | None,
    open_client: OpenClient | None = None,
    **settings: Any,
) -> None:
    """Read records, compute the benchmark's metrics, and write them and the requested files."""
    from musiccli.bench.benchmark import DataDigest
    from musiccli.cli.report import Report

    judge_settings = {name: settings.pop(name, None) for name in JUDGE_OPTIONS}
    config = make_config(benchmark, settings)
    report = Report(run, benchmark, config, plot, html, markdown, latex)
    records: Iterable[Any] = run.read(
        lambda record: benchmark.parse(record, config), unique=benchmark.unique_ids
    )
    if benchmark.reads_branches:
        from musiccli.pair.preferences import join_branches

        records = join_branches(records, run.stats, drop=lambda *_: None)
    judging = {}
    if open_client and judge_settings["judges"]:
        judging = ask_judges(run, open_client, seed=config.seed, **judge_settings)
    if judge_settings["dry_run"]:
        if not judging:
            raise InputError("`dry_run`: without `judges` nobody is asked")
        for _ in benchmark.metrics(records, config, run.stats, report.worst, **judging):
            break  # all pairs are judged before the first metric
        return
    digest = DataDigest(benchmark.measured) if benchmark.measured else None
    watched = digest.watch(records) if digest else records
    rows = list(benchmark.metrics(watched, config, run.stats, report.worst, **judging))
    report.write([{**row, "data": str(digest)} for row in rows] if digest else rows)


def make_config(benchmark: "Benchmark[Any]", settings: dict[str, Any]) -> BenchConfig:
    """The benchmark's config; an option that was left out keeps the config's default."""
    values = {name: value for name, value in settings.items() if value is not None}
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(value)
    config: BenchConfig = benchmark.config(**values)
    return config


def command_options(benchmark: "Benchmark[Any]") -> dict[str, tuple[Any, Any]]:
    """The options of a benchmark's command: annotation and default, by name."""
    common: dict[str, tuple[Any, Any]] = {
        "bootstrap": (BOOTSTRAP, BenchConfig.bootstrap),
        "seed": (SEED, BenchConfig.seed),
    }
    options: dict[str, tuple[Any, Any]] = {}
    if "models" in benchmark.options:
        options["models"] = MODELS, None
    for field in dataclasses.fields(benchmark.config):
        if field.metadata:
            kind = list[str] | None if isinstance(field.default, tuple) else str | None
            described = dict(field.metadata)
            option = typer.Option(*described.pop("names"), show_default=False, **described)
            options[field.name] = Annotated[kind, option], None
    if benchmark.asks_judges:
        options |= JUDGE_OPTIONS
    options["confidence"] = CONFIDENCE, BenchConfig.confidence
    options |= {name: common[name] for name in common if name in benchmark.options}
    return options | FILE_OPTIONS


def ask_judges(
    run: Run,
    open_client: OpenClient,
    judges: list[str],
    prompts: str | None,
    max_tokens: int,
    dry_run: bool,
    seed: int,
) -> dict[str, Any]:
    """What a benchmark's `metrics` takes to ask judges: `judges` and `judge_pairs`.

    In a dry run nobody is asked, and what it would take is printed.
    """
    config = JudgeConfig(
        judges=tuple(dict.fromkeys(judges)),
        prompts=default_prompts(prompts, judges[0]),
        max_tokens=max_tokens,
        seed=seed,
    )

    def judge_pairs(pairs: Iterable[Record]) -> Generator[dict[str, Any], None, None]:
        from musiccli.judge.verdicts import judge

        if dry_run:
            show_judge_estimate(run, pairs, config, open_client.thinking_models(config.judges))
            return
        with open_client(config.judges) as client:
            yield from judge(pairs, config, client, run.stats)

    return {"judges": config.judges, "judge_pairs": judge_pairs}
