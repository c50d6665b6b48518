"""Models on the same pairs: how much more often one is right than another."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from musiccli.bench.config import BenchConfig
from musiccli.bench.stats.baselines import is_baseline
from musiccli.bench.stats.bootstrap import bootstrap_interval_of_counts
from musiccli.bench.stats.intervals import Interval
from musiccli.bench.stats.outcomes import MetricRecord, ScoredPairs, metric_record
from musiccli.bench.stats.quantiles import t_quantile
from musiccli.bench.stats.significance import (
    MCNEMAR,
    T_BY_PROMPT,
    detectable_difference,
    holm_adjusted,
    mcnemar_p,
    mean_p,
)

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

MANY_MODELS = 4  # from here on one is the best, and the others are tested against it
MAX_BOOTSTRAPPED = 10  # models whose differences are bootstrapped; of 100 that takes minutes


def compare_models(
    benchmark: str, pairs: ScoredPairs, subset: str, mask: "Array | None", config: BenchConfig
) -> Iterator[MetricRecord]:
    """Metric records that compare models with each other, baselines left out.

    Every two models are compared. Of more than MAX_BOOTSTRAPPED models that is so of all pairs (the
    subset "all", or no mask); in other subsets each is then compared with the best.

    - `accuracy_difference`; its interval is a paired bootstrap over prompts. Of more than
      MAX_BOOTSTRAPPED models it is Student's t interval with a standard error by prompts.
    - `difference_p`: the p-value of the difference, and by which `test`: McNemar's where no prompt
      is repeated, else a t-test of the differences summed by prompt.
    - `detectable_difference`: the true difference that such a set of pairs would show to be
      significant with a probability (power) of 80%.
    - `holm_p`, from MANY_MODELS models on: the p-value of each model against the best, adjusted for
      the number of models.
    """
    points = SubsetPoints(pairs, mask)
    if len(points.models) < 2:
        return
    best = points.best()
    against_best: dict[str, float] = {}
    is_large = len(points.models) > MAX_BOOTSTRAPPED
    is_part = mask is not None and subset != "all"  # "all" may be a choice of the pairs, too
    for first, second in combinations(points.models, 2):
        if best not in (first, second) and is_large and is_part:
            continue
        gains = points.gains(first, second)
        if gains is None:
            continue
        yield from _comparison(benchmark, subset, first, second, gains, config, is_large)
        if best in (first, second):
            against_best[second if best == first else first] = gains.p
    if len(points.models) >= MANY_MODELS:
        yield from holm_records(benchmark, subset, best, against_best, points.counts)


def holm_records(
    benchmark: str,
    subset: str,
    best: str,
    p_values: Mapping[str, float],
    counts: Mapping[str, int],
) -> Iterator[MetricRecord]:
    """A metric record `holm_p` for each model that was tested against the best."""
    adjusted = holm_adjusted([*p_values.values()])
    for model, p in zip(p_values, adjusted, strict=True):
        yield metric_record(
            benchmark, model, subset, "holm_p", p, None, counts[model], against=best
        )


def _comparison(
    benchmark: str,
    subset: str,
    first: str,
    second: str,
    gains: "Gains",
    config: BenchConfig,
    is_large: bool,
) -> Iterator[MetricRecord]:
    """The metric records of two models."""

    def record(metric: str, value: float, interval: Any = None, **extra: object) -> MetricRecord:
        return metric_record(
            benchmark, first, subset, metric, value, interval, gains.count, against=second, **extra
        )

    interval = gains.t_interval(config) if is_large else gains.bootstrap_interval(config)
    yield record("accuracy_difference", gains.mean, interval, prompts=len(gains.sums))
    right_alone = {"only_first": gains.only_first, "only_second": gains.only_second}
    yield record("difference_p", gains.p, test=gains.test, **right_alone)
    if gains.standard_error > 0:
        difference = detectable_difference(gains.standard_error, config.confidence)
        yield record("detectable_difference", difference)


@dataclass(frozen=True)
class Gains:
    """What a first model gains over a second one, on the pairs that both of them scored.

    Attributes:
        sums: by prompt: right pairs of the first model minus those of the second.
        sizes: by prompt: how many pairs there are.
        only_first: how many pairs the first model alone has right.
        only_second: how many pairs the second model alone has right.
    """

    sums: "Array"
    sizes: "Array"
    only_first: int
    only_second: int

    @property
    def count(self) -> int:
        """How many pairs there are."""
        return int(self.sizes.sum())

    @property
    def mean(self) -> float:
        """The difference of the two accuracies."""
        return float(self.sums.sum() / self.sizes.sum())

    @property
    def standard_error(self) -> float:
        """The standard error of `mean` by prompts; nan where there is only one."""
        groups = len(self.sums)
        if groups < 2:
            return math.nan
        residuals = self.sums - self.mean * self.sizes
        return math.sqrt(groups / (groups - 1) * float(residuals @ residuals)) / self.count

    @property
    def test(self) -> str:
        """The name of the test: McNemar's takes pairs as independent."""
        return MCNEMAR if len(self.sums) == self.count else T_BY_PROMPT

    @property
    def p(self) -> float:
        """The two-sided p-value of the hypothesis that both models are right equally often."""
        if self.test == MCNEMAR:
            return mcnemar_p(self.only_first, self.only_second)
        return mean_p(self.mean, self.standard_error, len(self.sums))

    def t_interval(self, config: BenchConfig) -> Interval | None:
        """Student's t interval of `mean`; None where the standard error is 0 or unknown."""
        error = self.standard_error
        if not error > 0:
            return None
        reach = t_quantile(config.confidence, len(self.sums) - 1) * error
        return max(-1.0, self.mean - reach), min(1.0, self.mean + reach)

    def bootstrap_interval(self, config: BenchConfig) -> Interval | None:
        """The bootstrap interval of `mean`; None where it shows no spread."""
        import numpy as np

        lowest, width = int(self.sums.min()), int(self.sizes.max()) + 1
        codes = (self.sums - lowest) * width + self.sizes
        codes, counts = np.unique(codes, return_counts=True)
        rows = np.stack([codes // width + lowest, codes % width], axis=1).astype(float)
        return bootstrap_interval_of_counts(
            rows, counts, lambda sums: sums[:, 0] / sums[:, 1], config
        )


class SubsetPoints:
    """The points of every model on the pairs of one subset, ordered by prompt.

    Attributes:
        models: the models that scored any of the pairs, baselines left out.
        counts: how many pairs each model scored.
    """

    def __init__(self, pairs: ScoredPairs, mask: "Array | None"):
        import numpy as np

        prompts = pairs.prompts if mask is None else pairs.prompts[mask]
        order = np.argsort(prompts, kind="stable")
        prompts = prompts[order]
        is_first = np.concatenate([[True], prompts[1:] != prompts[:-1]])
        self._starts = is_first.nonzero()[0] if len(prompts) else np.zeros(0, int)
        self._is_right: dict[str, Array] = {}
        self._is_scored: dict[str, Array] = {}
        self._rights: dict[str, Array] = {}  # by prompt
        self.counts: dict[str, int] = {}
        for model in pairs.models:
            if is_baseline(model):
                continue
            right, is_scored = pairs.right_and_scored(model, mask)
            if is_scored.any():
                self._is_right[model], self._is_scored[model] = right[order], is_scored[order]
                self.counts[model] = int(is_scored.sum())
                self._rights[model] = self._by_prompt(right[order])
        self._sizes = self._by_prompt(np.ones(len(prompts), bool))

    @property
    def models(self) -> list[str]:
        """The models that scored any of the pairs."""
        return [*self._is_right]

    def _by_prompt(self, values: "Array") -> "Array":
        import numpy as np

        return np.add.reduceat(values, self._starts, dtype=np.int64)

    def best(self) -> str:
        """The model with the highest accuracy; of equal ones the first."""
        return max(self.models, key=lambda model: self._is_right[model].sum() / self.counts[model])

    def gains(self, first: str, second: str) -> Gains | None:
        """What `first` gains over `second`; None where they have no pair in common."""
        right, other_right = self._is_right[first], self._is_right[second]
        total = len(right)
        if self.counts[first] == self.counts[second] == total:
            sums, sizes = self._rights[first] - self._rights[second], self._sizes
        else:
            both = self._is_scored[first] & self._is_scored[second]
            if not both.any():
                return None
            right, other_right = right & both, other_right & both
            sizes = self._by_prompt(both)
            sums = (self._by_prompt(right) - self._by_prompt(other_right))[sizes > 0]
            sizes = sizes[sizes > 0]
        only_first = int((right & ~other_right).sum())
        only_second = int((other_right & ~right).sum())
        return Gains(sums, sizes, only_first, only_second)


def undistinguished(rows: Sequence[MetricRecord], confidence: float) -> dict[str, set[str]]:
    """By subset: the best model of each run, and those that `holm_p` does not tell from it.

    Args:
        rows: metric records.
        confidence: one minus the level of the tests.
    """
    models: dict[str, set[str]] = {}
    for row in rows:
        if row["metric"] == "holm_p":
            names = models.setdefault(row["subset"], set())
            names.add(row["against"])
            if row["value"] > 1 - confidence:
                names.add(row["model"])
    return models
