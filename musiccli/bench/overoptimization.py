"""Over-optimization: how far a reward model's opinion of its own Best-of-N pick runs ahead.

Of N candidates for each prompt the model picks the one that it scores highest. Its own reward of
the pick rises with N. What a gold reward makes of the same pick rises less, or falls.

Where a gold reward scored the candidates, a prompt's figure is the mean over all choices of N of
its candidates, and of candidates of equal score each is picked equally often. That is exact, and
varies less between sets than the pick of the first N. Both rewards are standardized by the mean and
the standard deviation of all candidates, so that a random pick has 0 in both. Where a judge
compared the pick of the first N with a random candidate, both are win rates, less one half: the
judge's, and the model's own, which prefers its pick to any other. As functions of x = KL(N) = ln N
- (N - 1) / N, the divergence of the picks from the policy, they are fitted by x (a - b x), and

    gamma = integral |gold(x) - proxy(x)| dx / integral gold(x) dx, from 0 to KL(largest N)

which is 0 where the gold reward follows. It is not defined where the gold reward does not rise.

Source of the function of KL and of gamma: Kim et al. 2025, arXiv 2505.12763. Gao et al. 2022, arXiv
2210.10760, have the same function of the root of KL. The mean over all choices: Nakano et al. 2021,
arXiv 2112.09332, appendix I. That rewards are standardized by all
candidates, and that win rates take their place where a judge is the gold reward, is our choice.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from musiccli.bench.benchmark import Benchmark, Rows, option
from musiccli.bench.config import BenchConfig
from musiccli.bench.report.tables import Table, distinct, value_cell
from musiccli.bench.report.worst_records import WorstRecords
from musiccli.bench.stats.bootstrap import bootstrap_interval, cluster_sums
from musiccli.bench.stats.contests import is_same_pick
from musiccli.bench.stats.intervals import Interval, proportion_interval, standard_error
from musiccli.bench.stats.outcomes import (
    MetricRecord,
    check_model_count,
    check_reward,
    metric_record,
    missing_model,
    prompt_cluster,
)
from musiccli.bench.stats.quantiles import t_quantile
from musiccli.core.errors import InputError, RecordError
from musiccli.core.messages import same_text
from musiccli.core.records import (
    BASELINE_PREFIX,
    Record,
    lookup,
    parse_candidate,
    parse_judged,
    record_kind,
)
from musiccli.core.run_stats import RunStats

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

    Array = np.ndarray[Any, np.dtype[Any]]

NAME, TITLE = "overoptimization", "Over-optimization"
ROUNDING = 1e-12  # a mean and a standard error below it are 0
MIN_SIZES = 2  # pools of more than one candidate that a fit of two numbers needs
REWARD, WIN_RATE = "reward", "win_rate"  # what the gold and the model's own curve are made of
RANDOM_VALUE = {REWARD: 0.0, WIN_RATE: 0.5}  # of a random pick
RANDOM_PICKS = (BASELINE_PREFIX + "first", BASELINE_PREFIX + "random")


@dataclass(frozen=True)
class OveroptimizationConfig(BenchConfig):
    """The common settings, and `gold`: whose reward counts as the true one."""

    gold: str | None = option(
        None,
        metavar="NAME|FIELD",
        help="The true reward: a model's name in scores, or a field such as metadata.correct that "
        "is a number, true or false. Judged contests need none: the judge's verdict is their gold.",
    )


def check_record(
    record: Record, config: OveroptimizationConfig = OveroptimizationConfig()
) -> Record:
    """Check a candidate with scores, or a judged contest between a pick and a random candidate."""
    if record_kind(record) == "comparison":
        return check_contest(record)
    return check_candidate(record, config)


def check_candidate(record: Record, config: OveroptimizationConfig) -> Record:
    """Check a conversation with scores and a gold reward."""
    if not config.gold:
        raise InputError("`gold` is missing: a model's name in scores, or a field")
    parse_candidate(record)
    scores = record.get("scores")
    if not isinstance(scores, dict) or not scores:
        raise RecordError("has no scores; run music score first", record=record)
    check_model_count(record, config.models)
    for model in config.models or scores:
        if model not in scores:
            raise missing_model(record, model)
        check_reward(scores[model], f"scores.{model}", record)
    gold = gold_reward(record, config.gold)
    if gold is None:
        raise RecordError("should be a number, true or false", field=config.gold, record=record)
    check_reward(gold, config.gold, record)
    return record


def check_contest(record: Record) -> Record:
    """Check a judged contest whose side b is a random candidate, as music pair writes it."""
    if is_same_pick(record):
        record.setdefault("winner", "tie")
    parse_judged(record)
    models, size = record.get("models"), record.get("best_of")
    if not isinstance(models, dict) or not isinstance(models.get("a"), str):
        raise RecordError("should name the models of a and b", field="models", record=record)
    if models.get("b") not in RANDOM_PICKS:
        problem = f"should be {' or '.join(RANDOM_PICKS)}: a pick is compared with a random one"
        raise RecordError(problem, field="models.b", record=record)
    if not isinstance(size, int) or size < 1:
        raise RecordError("should be a whole number from 1 on", field="best_of", record=record)
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
    by_id: dict[object, list[Record]] = {}
    contests: dict[str, Contests] = {}
    for record in records:
        if record_kind(record) != "comparison":
            by_id.setdefault(record["id"], []).append(record)
        elif config.models and record["models"]["a"] not in config.models:
            stats.count("left_out", "another_model", record=record)
        else:
            contests.setdefault(record["models"]["a"], Contests(record["models"]["b"])).add(record)
            worst.add_contest(record)
    yield from _candidate_records(list(by_id.values()), config, stats, worst)
    for model, some in contests.items():
        curves = some.curves(stats)
        if len(curves.clusters):
            yield from _model_records(model, curves, config)


def _candidate_records(
    pools: Sequence[Sequence[Record]],
    config: OveroptimizationConfig,
    stats: RunStats,
    worst: WorstRecords,
) -> Iterator[MetricRecord]:
    """The metric records of each model that scored the candidates; a pool holds those of an id."""
    gold = config.gold or ""
    pools = [sorted(pool, key=lambda candidate: candidate.get("sample", 0)) for pool in pools]
    sizes = _pool_sizes(pools)
    whole = [pool[: sizes[-1]] for pool in pools if len(pool) >= sizes[-1]]
    whole.sort(key=lambda pool: str(pool[0]["id"]))  # sums are then rounded alike in any order
    stats.count("left_out", "too_few_candidates", number=len(pools) - len(whole))
    if not whole:
        return
    clusters = [prompt_cluster({"a": pool[0]["messages"], "b": []}) for pool in whole]
    golds = [[gold_reward(candidate, gold) or 0.0 for candidate in pool] for pool in whole]
    for model in config.models or distinct(name for pool in whole for name in pool[0]["scores"]):
        if model == gold:
            continue
        if not all(model in candidate["scores"] for pool in whole for candidate in pool):
            raise InputError(f"scores: not every candidate has one by {model!r}")
        proxy = [[candidate["scores"][model] for candidate in pool] for pool in whole]
        yield from _model_records(model, reward_curves(proxy, golds, sizes, clusters), config)
        _add_worst(worst, model, whole, proxy, golds)


def _pool_sizes(pools: Sequence[Sequence[Record]]) -> list[int]:
    """1, 2, 4, ... up to the median number of candidates."""
    lengths = sorted(map(len, pools))
    if not lengths:
        return []
    median = lengths[len(lengths) // 2]
    return [2**power for power in range(median.bit_length())]


class Curves(NamedTuple):
    """What one model's picks are worth, by prompt and pool size.

    Attributes:
        kind: REWARD or WIN_RATE.
        sizes: the pool sizes.
        proxy: what the model makes of its own pick, (prompts, sizes).
        gold: what the gold reward or the judge makes of it, (prompts, sizes).
        best: the most that gold could be, (prompts, sizes).
        clusters: the cluster of each prompt.
    """

    kind: str
    sizes: Sequence[int]
    proxy: "Array"
    gold: "Array"
    best: "Array"
    clusters: Sequence[int]


def reward_curves(
    proxy: Sequence[Sequence[float]],
    gold: Sequence[Sequence[float]],
    sizes: Sequence[int],
    clusters: Sequence[int],
) -> Curves:
    """The curves from rewards of all candidates, (prompts, candidates). They are standardized."""
    import numpy as np

    proxy_rewards, gold_rewards = np.asarray(proxy, float), np.asarray(gold, float)
    chances = pick_chances(proxy_rewards, sizes)
    best = pick_chances(gold_rewards, sizes)
    return Curves(
        REWARD,
        sizes,
        standardized_picks(proxy_rewards, chances),
        standardized_picks(gold_rewards, chances),
        standardized_picks(gold_rewards, best),
        clusters,
    )


def pick_chances(rewards: "Array", sizes: Sequence[int]) -> "Array":
    """How often each candidate is the pick, over all choices of so many of a prompt's candidates.

    Of a choice with several highest rewards each of these is the pick equally often.

    Args:
        rewards: (prompts, candidates).
        sizes: how many candidates a choice has.

    Returns:
        (sizes, prompts, candidates), which sum to 1 over the candidates.
    """
    import numpy as np
    from scipy.stats import rankdata

    candidates = rewards.shape[1]
    lower = rankdata(rewards, "min", axis=1).astype(int) - 1
    lower_or_equal = rankdata(rewards, "max", axis=1).astype(int)
    chances = []
    for size in sizes:
        among = np.array(  # the chance that all of a choice are among so many candidates
            [math.comb(some, size) / math.comb(candidates, size) for some in range(candidates + 1)]
        )
        chances.append((among[lower_or_equal] - among[lower]) / (lower_or_equal - lower))
    return np.stack(chances)


def standardized_picks(rewards: "Array", chances: "Array") -> "Array":
    """The mean rewards of picks, in standard deviations from the mean of all candidates.

    A prompt's candidates are a part of that mean and deviation, too. So each value is corrected by
    what its prompt adds to them (the influence function). That leaves the mean over prompts as it
    is, and makes it vary between prompts as much as a mean of standardized rewards does.

    Args:
        rewards: (prompts, candidates).
        chances: how often each candidate is the pick, (sizes, prompts, candidates).

    Returns:
        (prompts, sizes); zeros where all rewards are equal.
    """
    import numpy as np

    deviation = rewards.std()
    if not deviation > 0:
        return np.zeros((len(rewards), len(chances)))
    standardized = (rewards - rewards.mean()) / deviation
    picked = (chances * standardized).sum(2).T
    of_mean = standardized.mean(1, keepdims=True)
    of_deviation = ((standardized**2).mean(1, keepdims=True) - 1) / 2
    result: Array = picked - of_mean - picked.mean(0) * of_deviation
    return result


class Contests:
    """Judged contests of one model: its pick of a pool against a random candidate of the pool.

    The model prefers its own pick to every other candidate. So its own points are 1, and a half
    where the random candidate is the pick or has the same text.

    Args:
        baseline: the baseline that picks the random candidates.
    """

    def __init__(self, baseline: str) -> None:
        self._baseline = baseline
        # By the id and the pool size: the model's points and the judge's.
        self._points: dict[object, dict[int, tuple[float, float | None]]] = {}
        self._clusters: dict[object, int] = {}  # by the id; those of one prompt are equal

    def add(self, contest: Record) -> None:
        """Add a contest. The judge's points are None where its verdict could not be read.

        Raises:
            RecordError: another baseline picked the random candidate of an earlier contest.
        """
        if contest["models"]["b"] != self._baseline:
            problem = f"should be {self._baseline} as before; give the two baselines in two runs"
            raise RecordError(problem, field="models.b", record=contest)
        is_same = is_same_pick(contest) or same_text(contest["a"], contest["b"])
        gold = {"a": 1.0, "b": 0.0, "tie": 0.5}.get(contest["winner"])
        points = (0.5, 0.5) if is_same else (1.0, gold)
        self._points.setdefault(contest["id"], {})[contest["best_of"]] = points
        self._clusters.setdefault(contest["id"], prompt_cluster(contest))

    def curves(self, stats: RunStats) -> Curves:
        """The curves of the prompts that have a readable verdict at each size.

        The sizes are those that at least half of the prompts have. Other prompts are counted.
        """
        import numpy as np

        counts = Counter(size for by_size in self._points.values() for size in by_size)
        sizes = sorted(size for size, count in counts.items() if 2 * count >= len(self._points))
        rows, clusters = [], []
        for name, by_size in self._points.items():
            row = [by_size[size] for size in sizes if size in by_size]
            if len(row) < len(sizes):
                stats.count("left_out", "too_few_candidates")
            elif any(gold is None for _, gold in row):
                stats.count("left_out", "unreadable")
            else:
                rows.append(row)
                clusters.append(self._clusters[name])
        points = np.array(rows, float).reshape(len(rows), len(sizes), 2)
        proxy, gold = points[..., 0], points[..., 1]
        return Curves(WIN_RATE, sizes, proxy, gold, np.maximum(gold, 0.5), clusters)


def _model_records(model: str, curves: Curves, config: BenchConfig) -> Iterator[MetricRecord]:
    for index, size in enumerate(curves.sizes):
        proxy, gold = curves.proxy[:, index], curves.gold[:, index]
        best = {"best": float(curves.best[:, index].mean())}
        for metric, values, extra in (
            (f"proxy_{curves.kind}", proxy, {}),
            (f"gold_{curves.kind}", gold, best),
            ("gap", proxy - gold, {}),
        ):
            is_share = metric.endswith(WIN_RATE)
            interval = _mean_interval(values, curves.clusters, is_share, config)
            subset, mean = f"best_of={size}", float(values.mean())
            mean = mean if abs(mean) > ROUNDING else 0.0
            yield metric_record(NAME, model, subset, metric, mean, interval, len(values), **extra)
    if sum(size > 1 for size in curves.sizes) >= MIN_SIZES:
        yield _gamma_record(model, curves, config)


def _mean_interval(
    values: "Array", clusters: Sequence[int], is_share: bool, config: BenchConfig
) -> Interval | None:
    """Wilson's interval of a share, else Student's t interval; None where it is not known.

    Of one candidate the pick is the random one, so a share of a half each time is not in doubt, nor
    is a reward of 0.
    """
    if is_share and (values == 0.5).all():
        return None
    if is_share:
        return proportion_interval(values, clusters, config.confidence)
    error = standard_error(values, clusters)
    if not error > ROUNDING:
        return None
    reach = t_quantile(config.confidence, len(set(clusters)) - 1) * error
    return float(values.mean()) - reach, float(values.mean()) + reach


def _gamma_record(model: str, curves: Curves, config: BenchConfig) -> MetricRecord:
    """Gamma with the numbers of both fits; its interval is a bootstrap over prompts."""
    import numpy as np

    fitted = [index for index, size in enumerate(curves.sizes) if size > 1]
    divergences = [kl_divergence(curves.sizes[index]) for index in fitted]
    golds, proxies = (
        values[:, fitted] - RANDOM_VALUE[curves.kind] for values in (curves.gold, curves.proxy)
    )
    rows = cluster_sums([*golds.T, *proxies.T, np.ones(len(golds))], curves.clusters)
    count = len(fitted)

    def statistic(sums: "Array") -> "Array":
        means = sums[:, :-1] / sums[:, -1:]
        return gammas(
            fit(divergences, means[:, :count]), fit(divergences, means[:, count:]), divergences[-1]
        )

    gold, proxy = (fit(divergences, values.mean(0)) for values in (golds, proxies))
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
        len(golds),
        gold_fit=gold.tolist(),
        proxy_fit=proxy.tolist(),
    )


def kl_divergence(size: float) -> float:
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
    """A line for each model and pool size, rewards and win rates apart, and each model's gamma."""
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
            _size_lines(rows, REWARD, 1, "+.2f"),
        ),
        Table(
            f"{TITLE}: how often the model's pick beats a random candidate, % {interval}",
            ["", "by itself (proxy)", "by the judge", "gap", "best possible"],
            _size_lines(rows, WIN_RATE, 100, ".1f"),
        ),
        Table(f"Degree of over-optimization {interval}", ["", "gamma"], gamma_cells),
    ]


def _size_lines(rows: Rows, kind: str, scale: int, number_format: str) -> list[list[str]]:
    """The cells of each model and pool size, of curves of one kind."""
    by_key = {(row["model"], row["subset"], row["metric"]): row for row in rows}
    cells = []
    for gold in rows:
        if gold["metric"] != f"gold_{kind}":
            continue
        model, subset = gold["model"], gold["subset"]
        size = subset.removeprefix("best_of=")
        proxy, gap = (by_key[model, subset, metric] for metric in (f"proxy_{kind}", "gap"))
        cells.append(
            [
                f"{model}, N = {size}",
                value_cell(proxy, scale, number_format),
                value_cell(gold, scale, number_format),
                value_cell(gap, scale, f"+{number_format.removeprefix('+')}"),
                format(scale * gold["best"], number_format),
            ]
        )
    return cells


def panels(rows: Rows) -> list[Rows]:
    """A panel for each model."""
    shown = [row for row in rows if row["metric"] != "gap"]
    models = distinct(row["model"] for row in shown)
    return [[row for row in shown if row["model"] == model] for model in models]


def plot(axes: "Axes", rows: Rows) -> None:
    """One model: its own reward of its picks over N, and the gold reward, with their fits."""
    from musiccli.bench.report import plots

    gamma = {row["metric"]: row for row in rows}.get("gamma", {})
    sizes = sorted({_size(row) for row in rows if row["subset"] != "all"})
    kind = WIN_RATE if any(row["metric"].endswith(WIN_RATE) for row in rows) else REWARD
    for number, name in enumerate(("proxy", "gold")):
        shown = [row for row in rows if row["metric"] == f"{name}_{kind}"]
        label = {"proxy": "the model's own (proxy)", "gold": "gold"}[name]
        plots.draw_points(axes, [math.log2(_size(row)) for row in shown], shown, number, label)
        if gamma:
            _draw_fit(axes, gamma[f"{name}_fit"], kind, sizes[-1], plots.color_of(number))
    best = [row for row in rows if row["metric"] == f"gold_{kind}"]
    places = [math.log2(_size(row)) for row in best]
    axes.plot(
        places,
        [row["best"] for row in best],
        "--",
        color=plots.color_of(2),
        label="best possible",
    )
    axes.set_xticks([math.log2(size) for size in sizes], [str(size) for size in sizes])
    if kind == REWARD:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    title = "not defined" if gamma.get("value") is None else f"{gamma['value']:.2f}"
    axes.set_title(rows[0]["model"] + f"\ngamma {title}" * bool(gamma), fontsize=8)
    axes.set_xlabel("N, candidates to pick from")


def _size(row: MetricRecord) -> int:
    return int(row["subset"].removeprefix("best_of="))


def _draw_fit(axes: "Axes", fitted: Sequence[float], kind: str, largest: int, color: str) -> None:
    """The fitted function as a thin line from 1 candidate to the largest pool."""
    import numpy as np

    places = np.linspace(0, math.log2(largest), 60)
    x = np.array([kl_divergence(2**place) for place in places])
    values = RANDOM_VALUE[kind] + x * (fitted[0] - fitted[1] * x)
    axes.plot(places, values, color=color, linewidth=1, label="fit")


BENCHMARK = Benchmark(
    name=NAME,
    title=TITLE,
    summary="How far a model's opinion of its own Best-of-N pick runs ahead of a gold reward, "
    "or of a judge, by N.",
    example="""music score candidates.jsonl --model rm | music score --model gold | \
music bench overoptimization --gold gold
music pair scored.jsonl --best-of 2,4,8 --a rm --b baseline/first | music judge --judge MODEL | \
music bench overoptimization""",
    parse=check_record,
    metrics=metrics,
    tables=tables,
    plot=plot,
    panels=panels,
    config=OveroptimizationConfig,
    options=("models", "bootstrap", "seed"),
)
