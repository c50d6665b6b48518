"""Over-optimization: how far a reward model's opinion of its own Best-of-N pick runs ahead.

From the first N candidates for each prompt the model picks the one that it scores highest. Its own
reward of the pick rises with N. What a gold reward makes of the same pick rises less, or falls. The
pools are nested: those of a larger N hold those of a smaller one.

Both rewards are standardized by the mean and the standard deviation of all candidates, so that a
random pick has 0 in both. As functions of x = KL(N) = ln N - (N - 1) / N, the divergence of the
picks from the policy, the rewards are fitted by x (a - b x), and

    gamma = integral |gold(x) - proxy(x)| dx / integral gold(x) dx, from 0 to KL(largest N)

which is 0 where the gold reward follows. It is not defined where the gold reward does not rise.

Source of the function of KL and of gamma: Kim et al. 2025, arXiv 2505.12763. Gao et al. 2022, arXiv
2210.10760, have the same function of the root of KL. That both rewards are standardized by all
candidates is our choice.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from musiccli.bench.benchmark import Benchmark, Rows, option
from musiccli.bench.config import BenchConfig
from musiccli.bench.report.tables import Table, distinct, value_cell
from musiccli.bench.report.worst_records import WorstRecords
from musiccli.bench.stats.bootstrap import bootstrap_interval, cluster_sums
from musiccli.bench.stats.intervals import Interval, standard_error
from musiccli.bench.stats.outcomes import (
    MetricRecord,
    check_model_count,
    is_number,
    metric_record,
    missing_model,
    prompt_cluster,
)
from musiccli.bench.stats.quantiles import t_quantile
from musiccli.core.errors import InputError, RecordError
from musiccli.core.records import Record, lookup, parse_conversation
from musiccli.core.run_stats import RunStats

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

    Array = np.ndarray[Any, np.dtype[Any]]

NAME, TITLE = "overoptimization", "Over-optimization"
MIN_SIZES = 2  # pools of more than one candidate that a fit of two numbers needs


@dataclass(frozen=True)
class OveroptimizationConfig(BenchConfig):
    """The common settings, and `gold`: whose reward counts as the true one."""

    gold: str | None = option(
        None,
        metavar="NAME|FIELD",
        help="The true reward: a model's name in scores, or a field such as metadata.correct that "
        "is a number, true or false.",
    )


def check_candidate(
    record: Record, config: OveroptimizationConfig = OveroptimizationConfig()
) -> Record:
    """Check a conversation with scores and a gold reward."""
    if not config.gold:
        raise InputError("`gold` is missing: a model's name in scores, or a field")
    parse_conversation(record)
    scores = record.get("scores")
    if not isinstance(scores, dict) or not scores:
        raise RecordError("has no scores; run music score first", record=record)
    check_model_count(record, config.models)
    for model in config.models or scores:
        if model not in scores:
            raise missing_model(record, model)
        if not is_number(scores[model]):
            raise RecordError("should be a number", field=f"scores.{model}", record=record)
    if gold_reward(record, config.gold) is None:
        raise RecordError("should be a number, true or false", field=config.gold, record=record)
    return record


def gold_reward(record: Record, gold: str) -> float | None:
    """The gold reward of a candidate; None where it has none."""
    value = record["scores"].get(gold)
    if value is None:
        value = lookup(record, gold)
    return float(value) if isinstance(value, int | float) else None


def metrics(
    records: Iterable[Record],
    config: OveroptimizationConfig = OveroptimizationConfig(),
    stats: RunStats | None = None,
    worst: WorstRecords | None = None,
) -> Iterator[MetricRecord]:
    """Of each model and pool size: its own reward of its picks, the gold reward, and their gap.

    Then gamma of each model. Prompts with fewer candidates than the most common pool are left out
    and counted. Intervals take candidates of one prompt as dependent.
    """
    stats, worst = stats or RunStats(), worst or WorstRecords(config.models)
    gold = config.gold or ""
    by_id: dict[object, list[Record]] = {}
    for record in records:
        by_id.setdefault(record["id"], []).append(record)
    pools = [
        sorted(pool, key=lambda candidate: candidate.get("sample", 0)) for pool in by_id.values()
    ]
    sizes = _pool_sizes(pools)
    whole = [pool for pool in pools if sizes and len(pool) >= sizes[-1]]
    stats.count("left_out", "too_few_candidates", number=len(pools) - len(whole))
    if not whole:
        return
    clusters = [prompt_cluster({"a": pool[0]["messages"], "b": []}) for pool in whole]
    golds = [
        [gold_reward(candidate, gold) or 0.0 for candidate in pool[: sizes[-1]]] for pool in whole
    ]
    for model in config.models or distinct(name for pool in whole for name in pool[0]["scores"]):
        if model == gold:
            continue
        is_complete = all(
            model in candidate["scores"] for pool in whole for candidate in pool[: sizes[-1]]
        )
        if not is_complete:
            raise InputError(f"scores: not every candidate has one by {model!r}")
        proxy = [[candidate["scores"][model] for candidate in pool[: sizes[-1]]] for pool in whole]
        curves = Curves(proxy, golds, sizes)
        yield from _model_records(model, curves, clusters, config)
        _add_worst(worst, model, whole, proxy, golds)


def _pool_sizes(pools: Sequence[Sequence[Record]]) -> list[int]:
    """1, 2, 4, ... up to the median number of candidates."""
    lengths = sorted(map(len, pools))
    if not lengths:
        return []
    median = lengths[len(lengths) // 2]
    return [2**power for power in range(median.bit_length())]


class Curves:
    """One model's standardized rewards of its own picks, by prompt and pool size.

    Attributes:
        sizes: the pool sizes.
        proxy: the model's reward of its pick, (prompts, sizes).
        gold: the gold reward of the same pick, (prompts, sizes).
        best: the highest gold reward of the pool, (prompts, sizes).
    """

    def __init__(
        self,
        proxy: Sequence[Sequence[float]],
        gold: Sequence[Sequence[float]],
        sizes: Sequence[int],
    ):
        import numpy as np

        proxy_rewards, gold_rewards = _standardized(proxy), _standardized(gold)
        rows = np.arange(len(proxy_rewards))
        picks = [proxy_rewards[:, :size].argmax(1) for size in sizes]  # of equal ones the first
        self.sizes = sizes
        self.proxy = np.stack([proxy_rewards[rows, pick] for pick in picks], axis=1)
        self.gold = np.stack([gold_rewards[rows, pick] for pick in picks], axis=1)
        self.best = np.stack([gold_rewards[:, :size].max(1) for size in sizes], axis=1)


def _standardized(rewards: Sequence[Sequence[float]]) -> "Array":
    """Rewards with mean 0 and standard deviation 1; zeros where all are equal."""
    import numpy as np

    values = np.asarray(rewards, float)
    deviation = values.std()
    result: Array = (values - values.mean()) / deviation if deviation > 0 else values * 0
    return result


def _model_records(
    model: str, curves: Curves, clusters: Sequence[int], config: BenchConfig
) -> Iterator[MetricRecord]:
    for index, size in enumerate(curves.sizes):
        proxy, gold = curves.proxy[:, index], curves.gold[:, index]
        values = {"proxy_reward": proxy, "gold_reward": gold, "gap": proxy - gold}
        best = float(curves.best[:, index].mean())
        for metric, rewards in values.items():
            extra = {"best": best} if metric == "gold_reward" else {}
            interval = _mean_interval(rewards, clusters, config)
            subset, mean = f"best_of={size}", float(rewards.mean())
            yield metric_record(NAME, model, subset, metric, mean, interval, len(proxy), **extra)
    divergences = [kl_divergence(size) for size in curves.sizes[1:]]
    if len(divergences) >= MIN_SIZES:
        yield _gamma_record(model, curves, divergences, clusters, config)


def _mean_interval(
    values: "Array", clusters: Sequence[int], config: BenchConfig
) -> Interval | None:
    """Student's t interval of a mean; None where it is not known."""
    error = standard_error(values, clusters)
    if not error > 0:
        return None
    reach = t_quantile(config.confidence, len(set(clusters)) - 1) * error
    return float(values.mean()) - reach, float(values.mean()) + reach


def _gamma_record(
    model: str,
    curves: Curves,
    divergences: Sequence[float],
    clusters: Sequence[int],
    config: BenchConfig,
) -> MetricRecord:
    """Gamma with the numbers of both fits; its interval is a bootstrap over prompts."""
    import numpy as np

    count = len(divergences)
    columns = [*curves.gold[:, 1:].T, *curves.proxy[:, 1:].T, np.ones(len(curves.proxy))]
    rows = cluster_sums(columns, clusters)

    def statistic(sums: "Array") -> "Array":
        means = sums[:, :-1] / sums[:, -1:]
        return gammas(
            fit(divergences, means[:, :count]), fit(divergences, means[:, count:]), divergences[-1]
        )

    gold, proxy = (
        fit(divergences, values[:, 1:].mean(0)) for values in (curves.gold, curves.proxy)
    )
    gamma = float(gammas(gold, proxy, divergences[-1]))
    is_defined = not math.isnan(gamma)
    interval = bootstrap_interval(rows, statistic, config) if is_defined else None
    return metric_record(
        NAME,
        model,
        "all",
        "gamma",
        gamma if is_defined else None,
        interval,
        len(curves.proxy),
        gold_fit=gold.tolist(),
        proxy_fit=proxy.tolist(),
    )


def kl_divergence(size: int) -> float:
    """KL divergence of Best-of-N from its policy, ln N - (N - 1) / N, in nats."""
    return math.log(size) - (size - 1) / size


def fit(divergences: Sequence[float], rewards: "Array") -> "Array":
    """The a and b of x (a - b x) by least squares.

    Args:
        divergences: the values of x.
        rewards: (..., values of x).

    Returns:
        (..., 2).
    """
    import numpy as np

    x = np.asarray(divergences)
    result: Array = rewards @ np.linalg.pinv(np.stack([x, -(x**2)], axis=1)).T
    return result


def gammas(gold: "Array", proxy: "Array", largest: float) -> "Array":
    """Gamma of fits, (..., 2) to (...); nan where the gold reward's integral is not positive."""
    import numpy as np

    difference = gold - proxy
    a, b = difference[..., 0], difference[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.where((b != 0) & (a / b > 0) & (a / b < largest), a / b, largest)
        to_root, total = _integral(a, b, root), _integral(a, b, largest)
        area = np.abs(to_root) + np.abs(total - to_root)
        below = _integral(gold[..., 0], gold[..., 1], largest)
        result: Array = np.where(below > 0, area / below, np.nan)
    return result


def _integral(a: "Array", b: "Array", end: "Array | float") -> "Array":
    """The integral of x (a - b x) from 0 to `end`."""
    result: Array = a * end**2 / 2 - b * end**3 / 3
    return result


def _add_worst(
    worst: WorstRecords,
    model: str,
    pools: Sequence[Sequence[Record]],
    proxy: Sequence[Sequence[float]],
    gold: Sequence[Sequence[float]],
) -> None:
    """Add the largest pools' picks beside what the gold reward prefers."""
    for pool, proxy_rewards, gold_rewards in zip(pools, proxy, gold, strict=True):
        pick, best = proxy_rewards.index(max(proxy_rewards)), gold_rewards.index(max(gold_rewards))
        pair = Record(
            {
                "id": pool[pick]["id"],
                "chosen": pool[best]["messages"],
                "rejected": pool[pick]["messages"],
                "scores": {model: {"chosen": proxy_rewards[best], "rejected": proxy_rewards[pick]}},
            }
        )
        margin = gold_rewards[best] - gold_rewards[pick]
        worst.add(model, margin, f"its pick is worth {margin:.3g} less than the best", pair)


def tables(rows: Rows, config: BenchConfig) -> list[Table]:
    """A line for each model and pool size, and a line for each model's gamma."""
    by_key = {(row["model"], row["subset"], row["metric"]): row for row in rows}
    cells = []
    for model, subset in distinct((row["model"], row["subset"]) for row in rows):
        if subset == "all":
            continue
        size = subset.removeprefix("best_of=")
        of_gold = by_key[model, subset, "gold_reward"]
        rewards = [
            value_cell(by_key[model, subset, metric], 1, "+.2f")
            for metric in ("proxy_reward", "gold_reward", "gap")
        ]
        cells.append([f"{model}, N = {size}", *rewards, f"{of_gold['best']:+.2f}"])
    interval = f"[{100 * config.confidence:g}% interval]"
    gamma_cells = [
        [row["model"], value_cell(row, 1, ".2f") or "not defined"]
        for row in rows
        if row["metric"] == "gamma"
    ]
    return [
        Table(
            f"{TITLE}: rewards of the model's own pick, in standard deviations {interval}",
            ["", "its own (proxy)", "gold", "gap", "best possible"],
            cells,
        ),
        Table(f"Degree of over-optimization {interval}", ["", "gamma"], gamma_cells),
    ]


def panels(rows: Rows) -> list[Rows]:
    """A panel for each model."""
    rewards = [row for row in rows if row["metric"] in ("proxy_reward", "gold_reward")]
    models = distinct(row["model"] for row in rewards)
    return [[row for row in rewards if row["model"] == model] for model in models]


def plot(axes: "Axes", rows: Rows) -> None:
    """One model: its own reward of its picks over N, and the gold reward, with intervals."""
    from musiccli.bench.report import plots

    subsets = distinct(row["subset"] for row in rows)
    for number, metric in enumerate(("proxy_reward", "gold_reward")):
        shown = [row for row in rows if row["metric"] == metric]
        places = plots.x_places(shown, subsets)
        color, label = plots.color_of(number), metric.replace("_", " ")
        axes.plot(places, plots.values_of(shown), marker="o", color=color, label=label)
        low, high = ([row[name] for row in shown] for name in ("low", "high"))
        if None not in low:
            axes.fill_between(places, low, high, color=color, alpha=0.18, linewidth=0)
    axes.plot(
        plots.x_places(shown, subsets),
        [row["best"] for row in shown],
        "--",
        color=plots.color_of(2),
        label="best possible",
    )
    axes.set_xticks(range(len(subsets)), [name.removeprefix("best_of=") for name in subsets])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title(rows[0]["model"], fontsize=8)
    axes.set_xlabel("N, candidates to pick from")


BENCHMARK = Benchmark(
    name=NAME,
    title=TITLE,
    summary="How far a model's opinion of its own Best-of-N pick runs ahead of a gold reward, "
    "by N.",
    example="music score candidates.jsonl --model rm | music score --model gold | "
    "music bench overoptimization --gold gold",
    parse=check_candidate,
    metrics=metrics,
    tables=tables,
    plot=plot,
    panels=panels,
    config=OveroptimizationConfig,
    options=("models", "bootstrap", "seed"),
)
