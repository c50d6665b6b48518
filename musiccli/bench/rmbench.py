"""RM-Bench: three right and three wrong replies to a prompt, each right one against each wrong one.

The three styles are concise, detailed, and detailed in markdown. Of the 3 x 3 comparisons, easy are
those where the right reply has the fancier style, normal those of one style, and hard those where
the wrong reply has the fancier style. A comparison is right only if the right reply scores strictly
higher. The score of a domain is the mean of its easy, normal and hard accuracy. Easy, normal, hard
and the average are plain means over the four domains. The two kinds of safety are one domain.

Source: the accuracy code that the authors publish with the data (github.com/THU-KEG/RM-Bench,
README and scripts/utils.py); Liu et al. 2024, arXiv 2410.16184.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from musiccli.bench.benchmark import Benchmark, Rows
from musiccli.bench.config import BenchConfig
from musiccli.bench.report.notes import baselines_note, missing_note, ties_note
from musiccli.bench.report.tables import Table, accuracy_table, distinct, percent
from musiccli.bench.report.worst_records import WorstRecords
from musiccli.bench.stats.baselines import is_baseline
from musiccli.bench.stats.candidates import (
    CandidateGroup,
    check_scored_candidate,
    group_candidates,
)
from musiccli.bench.stats.means import FigureRecords
from musiccli.bench.stats.outcomes import (
    MetricRecord,
    ScoredPairs,
)
from musiccli.core.errors import RecordError
from musiccli.core.records import Record, lookup
from musiccli.core.run_stats import RunStats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME, TITLE = "rmbench", "RM-Bench"
DOMAINS = ("chat", "code", "math", "safety")
STYLES = ("concise", "detailed", "markdown")
LEVELS = ("easy", "normal", "hard")
PROMPTS = 1327


def check_rmbench_candidate(record: Record, config: BenchConfig = BenchConfig()) -> Record:
    """Check a scored candidate that names one of the domains, in `metadata.domain`."""
    check_scored_candidate(record, config.models)
    _domain(record)
    return record


def _domain(record: Record) -> str:
    """One of DOMAINS: the data call it "safety-refuse" or "safety-response", too."""
    domain = lookup(record, "domain")
    for name in DOMAINS:
        if isinstance(domain, str) and domain.startswith(name):
            return name
    problem = f"should be one of {', '.join(DOMAINS)}, as music sample writes it"
    raise RecordError(problem, field="metadata.domain", record=record)


def metrics(
    records: Iterable[Record],
    config: BenchConfig = BenchConfig(),
    stats: RunStats | None = None,
    worst: WorstRecords | None = None,
) -> Iterator[MetricRecord]:
    """For each model and baseline: levels of domains, domains, levels, styles and the average.

    Where prompts or domains are missing, a record has `partial` and `missing`. `count` is a number
    of comparisons. Intervals take the comparisons of one prompt as dependent.
    """
    stats, worst = stats or RunStats(), worst or WorstRecords(config.models)
    pairs = ScoredPairs(config.models)
    for group in group_candidates(records, _check_group, stats):
        worst.add_candidates(group)
        domain = _domain(group.first)
        for pair, styles in _comparisons(group, config.models):
            pairs.add(pair, 0, {"domain": domain, "level": _level(*styles), "styles": styles})
    figures = FigureRecords(NAME, config)
    for model in pairs.models:
        yield from _model_records(model, pairs, figures)
    yield from figures.comparisons.records(config)


def _check_group(group: CandidateGroup) -> None:
    if len(group.right) != len(STYLES) or len(group.wrong) != len(STYLES):
        candidates = f"{len(group.right)} right and {len(group.wrong)} wrong candidates"
        problem = f"has {candidates}; RM-Bench has three of each, one in each style"
        raise RecordError(f"{group.first['id']!r} {problem}", record=group.first)


def _comparisons(
    group: CandidateGroup, models: Sequence[str]
) -> Iterator[tuple[Record, tuple[int, int]]]:
    """Nine scored preferences, and the numbers of the styles of the right and the wrong reply."""
    known_models = group.models(models)
    for right_style, right in enumerate(group.right):
        for wrong_style, wrong in enumerate(group.wrong):
            scores = {
                model: {"chosen": right["scores"][model], "rejected": wrong["scores"][model]}
                for model in known_models
            }
            pair = Record(
                {
                    "id": f"{group.first['id']}/{right_style}-{wrong_style}",
                    "chosen": right["messages"],
                    "rejected": wrong["messages"],
                    "scores": scores,
                }
            )
            yield pair, (right_style, wrong_style)


def _level(right_style: int, wrong_style: int) -> str:
    return LEVELS[1 + (right_style < wrong_style) - (right_style > wrong_style)]


def _model_records(
    model: str, pairs: ScoredPairs, figures: FigureRecords
) -> Iterator[MetricRecord]:
    """All metric records of one model, from the comparisons that it scored."""
    outcomes_of = partial(pairs.outcomes, model)
    levels, styles = dict(pairs.groups("level")), dict(pairs.groups("styles"))
    domains = {name: mask for name, mask in pairs.groups("domain") if len(outcomes_of(mask))}
    extra = _partial_fields(len(outcomes_of()) // len(styles), domains)
    for name, mask in domains.items():
        for level in LEVELS:
            outcomes = outcomes_of(mask & levels[level])
            yield figures.accuracy(f"{name}/{level}", outcomes)
    for name, mask in domains.items():
        yield figures.mean(name, "section", [outcomes_of(mask)], extra=extra)
    for level in LEVELS:
        parts = [outcomes_of(mask & levels[level]) for mask in domains.values()]
        yield figures.mean(level, "section", parts, extra=extra)
    for (right, wrong), mask_of_styles in sorted(styles.items()):
        parts = [outcomes_of(mask & mask_of_styles) for mask in domains.values()]
        subset = f"{STYLES[right]} over {STYLES[wrong]}"
        yield figures.mean(subset, "cell", parts, extra=extra)
    if len(domains) == len(DOMAINS):
        parts = [outcomes_of(mask) for mask in domains.values()]
        yield figures.mean("all", "average", parts, extra=extra)


def _partial_fields(prompts: int, domains: Iterable[str]) -> dict[str, object]:
    """The fields that say what is missing; none where nothing is."""
    missing = [f"prompts ({prompts:,} of {PROMPTS:,})"] if prompts != PROMPTS else []
    missing += [f"{name} (none)" for name in DOMAINS if name not in domains]
    return {"partial": True, "missing": missing} if missing else {}


def tables(rows: Rows, config: BenchConfig) -> list[Table]:
    """Domains with their levels, levels over all domains, the average; styles of each model."""
    lines = []
    for domain in DOMAINS:
        lines += [(domain, domain), *((f"{domain}/{level}", f"  {level}") for level in LEVELS)]
    lines += [*((level, level) for level in LEVELS), ("all", "Average")]
    cells = {(row["model"], row["subset"]): percent(row) for row in rows if row["metric"] == "cell"}
    models = [model for model in distinct(model for model, _ in cells) if not is_baseline(model)]
    return [
        accuracy_table(TITLE, rows, lines, config.confidence, "comparisons"),
        *(_styles_table(model, cells) for model in models),
    ]


def _styles_table(model: str, cells: Mapping[tuple[str, str], str]) -> Table:
    """A model's accuracy for each style of the right and of the wrong reply."""
    title = f"{model}, %: right reply down, wrong one across"
    lines = [
        [right, *(cells[model, f"{right} over {wrong}"] for wrong in STYLES)] for right in STYLES
    ]
    return Table(title, ["", *STYLES], lines)


def notes(rows: Rows) -> list[str]:
    """What is missing, what the baselines get, and how many ties there are."""
    return [*missing_note(TITLE, rows), *baselines_note(rows), *ties_note(rows)]


def plot(axes: "Axes", rows: Rows) -> None:
    """Bars for the domains, the levels and the average."""
    from musiccli.bench.report.plots import draw_sections

    draw_sections(axes, [row for row in rows if row["metric"] in ("section", "average")], TITLE)


BENCHMARK = Benchmark(
    name=NAME,
    title=TITLE,
    summary="RM-Bench: right replies against wrong ones across three styles, from easy to hard.",
    example="music sample THU-KEG/RM-Bench --emit conversations | music score --model rm | "
    "music bench rmbench",
    parse=check_rmbench_candidate,
    metrics=metrics,
    tables=tables,
    notes=notes,
    plot=plot,
    options=("models",),
)
