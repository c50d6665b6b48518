"""95% intervals hold the truth between 93 and 97 times in 100: simulated where the truth is known.

Each case draws many sets as they are met in practice, with values alone or in clusters. The seeds
are fixed, so a case always passes or always fails. With 2,000 sets, a share of 95% is known to
within one point, with 1,000 to within 1.4.
"""

import math
from itertools import islice
from statistics import NormalDist

import numpy as np
import pytest

from musiccli.bench.config import BenchConfig
from musiccli.bench.stats.bootstrap import bootstrap_interval, cluster_sums
from musiccli.bench.stats.intervals import (
    combine_proportions,
    effective_sample_size,
    median_interval,
    proportion_interval,
    variance_inflation,
    wilson_interval,
)
from musiccli.bench.stats.kappa import cohen_kappa, fleiss_columns, fleiss_kappa

SETS = 2000
DRAWS = 400  # of a bootstrap; the tool's 10,000 differ by less than the simulation can tell


def sizes(random, count: int, most: int) -> np.ndarray:
    """Clusters of 1 to `most` values, `count` values in all; the cluster of each value."""
    found = random.integers(1, most + 1, count)
    return np.repeat(np.arange(count), found)[:count]


def outcomes(random, share: float, correlation: float, clusters: np.ndarray) -> np.ndarray:
    """(SETS, values) zeros and ones of mean `share`, two of one cluster correlated."""
    chance = np.full((SETS, clusters[-1] + 1), share)
    if correlation:
        strength = (1 - correlation) / correlation
        chance = random.beta(strength * share, strength * (1 - share), chance.shape)
    return random.random((SETS, len(clusters))) < chance[:, clusters]


def held(intervals: list, truth: float) -> float:
    low, high = np.array(intervals).T
    return float(np.mean((low <= truth) & (truth <= high)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "count, most, share, correlation",
    [
        (100, 1, 0.55, 0),
        (100, 1, 0.95, 0),
        (100, 8, 0.55, 0.2),
        (100, 8, 0.75, 0.2),
        (300, 4, 0.75, 0.5),
        (300, 8, 0.95, 0.1),
        (1000, 8, 0.75, 0.2),
        (1000, 1, 0.95, 0),
        (2000, 8, 0.95, 0.2),
    ],
)
def test_of_accuracies(count, most, share, correlation):
    random = np.random.default_rng(1)
    clusters = sizes(random, count, most)
    found = outcomes(random, share, correlation, clusters)
    assert 0.93 <= held([proportion_interval(row, clusters) for row in found], share) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("count, most, tied", [(100, 1, 0.3), (100, 8, 0.3), (1000, 4, 0.6)])
def test_of_win_rates_with_ties(count, most, tied):
    random = np.random.default_rng(2)
    clusters = sizes(random, count, most)
    found = np.where(random.random((SETS, count)) < tied, 0.5, outcomes(random, 0.6, 0.1, clusters))
    truth = tied / 2 + (1 - tied) * 0.6
    assert 0.93 <= held([proportion_interval(row, clusters) for row in found], truth) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("count", [10, 26, 100])
def test_of_medians(count):
    """By quantiles (k - 1) / (n - 1), as numpy has them, 10 values would hold it in 87%."""
    values = np.abs(np.random.default_rng(9).normal(size=(SETS, count)))
    intervals = [median_interval(row, range(count)) for row in values]
    assert 0.93 <= held(intervals, NormalDist().inv_cdf(0.75)) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0, 0.3, 0.6])
def test_of_weighted_means_whose_parts_share_their_tasks(correlation):
    """As RewardBench's Reasoning: half 447 problems, half 164 tasks in six languages."""
    random = np.random.default_rng(8)
    tasks = np.arange(164)
    code = outcomes(random, 0.8, correlation, np.repeat(tasks, 6)).reshape(SETS, 164, 6)
    clusters, weights = [1000 + np.arange(447), *[tasks] * 6], [1 / 2, *[1 / 12] * 6]
    apart, together = [], []
    problems = random.random((SETS, 447)) < 0.7
    for math_, in_languages in islice(zip(problems, code, strict=True), 1000):
        parts = [math_, *in_languages.T]
        shares = [part.mean() for part in parts]
        intervals = [
            proportion_interval(part, own) for part, own in zip(parts, clusters, strict=True)
        ]
        inflation = variance_inflation(parts, clusters, weights)
        apart.append(combine_proportions(shares, intervals, weights)[1])
        together.append(combine_proportions(shares, intervals, weights, inflation)[1])
    assert 0.93 <= held(together, 0.75) <= 0.97
    assert correlation < 0.5 or held(apart, 0.75) < 0.9


@pytest.mark.slow
def test_forgetting_the_prompts_or_that_they_are_few_would_not_do():
    random = np.random.default_rng(3)
    clusters = sizes(random, 100, 8)
    found = outcomes(random, 0.75, 0.5, clusters)
    naive = held([wilson_interval(row.mean(), len(row)) for row in found], 0.75)
    normal = held(
        [wilson_interval(row.mean(), effective_sample_size(row, clusters)) for row in found],
        0.75,
    )
    right = held([proportion_interval(row, clusters) for row in found], 0.75)
    assert naive < 0.85 and normal < right - 0.01


def by_bootstrap(columns: list[np.ndarray], clusters: np.ndarray, statistic) -> list:
    """The interval of each set; `columns` are (sets, values)."""
    return [
        bootstrap_interval(
            cluster_sums(rows, clusters), statistic, BenchConfig(bootstrap=DRAWS, seed=number)
        )
        for number, rows in enumerate(zip(*columns, strict=True))
    ]


def normal(random, clusters: np.ndarray, sets: int, common: float) -> np.ndarray:
    """(sets, values) normal numbers, two of one cluster correlated by `common`."""
    shared = random.normal(size=(sets, clusters[-1] + 1))[:, clusters]
    return math.sqrt(common) * shared + math.sqrt(1 - common) * random.normal(
        size=(sets, len(clusters))
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "count, most, first, second", [(100, 1, 0.8, 0.75), (100, 8, 0.8, 0.75), (300, 4, 0.95, 0.9)]
)
def test_of_differences_between_two_models_on_the_same_pairs(count, most, first, second):
    random, sets = np.random.default_rng(4), 1000
    clusters = sizes(random, count, most)
    hard = normal(random, clusters, sets, 0.4)  # what both find hard
    right = [
        math.sqrt(0.5) * hard + math.sqrt(0.5) * random.normal(size=hard.shape)
        < NormalDist().inv_cdf(accuracy)
        for accuracy in (first, second)
    ]
    gains = right[0] * 1.0 - right[1]
    intervals = by_bootstrap([gains, gains * 0 + 1], clusters, lambda sums: sums[:, 0] / sums[:, 1])
    assert 0.93 <= held(intervals, first - second) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("count, most, accuracy", [(100, 1, 0.7), (100, 8, 0.8), (300, 4, 0.9)])
def test_of_kappa(count, most, accuracy):
    """Two judges who are right equally often; one of them calls a tenth of the pairs ties."""
    random, sets = np.random.default_rng(5), 1000
    clusters = sizes(random, count, most)
    truth = normal(random, clusters, sets, 0.3) > 0
    said = [np.where(random.random(truth.shape) < accuracy, truth, ~truth) * 1 for _ in range(2)]
    said[1] = np.where(random.random(truth.shape) < 0.1, 2, said[1])
    cells = [
        ((said[0] == one) & (said[1] == other)) * 1.0 for one in range(3) for other in range(3)
    ]
    same = accuracy**2 + (1 - accuracy) ** 2
    expected = cohen_kappa(
        [[same * 0.45, (1 - same) * 0.45, 0.05], [(1 - same) * 0.45, same * 0.45, 0.05], [0, 0, 0]]
    )
    intervals = by_bootstrap(cells, clusters, lambda sums: cohen_kappa(sums.reshape(-1, 3, 3)))
    assert 0.93 <= held(intervals, float(expected)) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("count, most, accuracy", [(100, 8, 0.8), (300, 1, 0.7)])
def test_of_fleiss_kappa(count, most, accuracy):
    """Three judges who are right with the same chance; two outcomes, equally many of each."""
    random, sets = np.random.default_rng(6), 1000
    clusters = sizes(random, count, most)
    truth = normal(random, clusters, sets, 0.3) > 0
    said = np.stack(
        [np.where(random.random(truth.shape) < accuracy, truth, ~truth) for _ in range(3)]
    ).sum(0)
    columns = fleiss_columns(np.stack([said, 3 - said], axis=-1).reshape(-1, 2))
    intervals = by_bootstrap(
        [column.reshape(sets, count) for column in columns], clusters, fleiss_kappa
    )
    assert 0.93 <= held(intervals, (2 * accuracy - 1) ** 2) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("count, most, biased", [(100, 1, 0.2), (100, 8, 0.5), (1000, 4, 0.1)])
def test_of_how_often_the_first_shown_wins(count, most, biased):
    """Two votes a pair: a biased judge names the first side twice, another the same side."""
    random, sets = np.random.default_rng(7), 1000
    clusters = sizes(random, count, most)
    wins = np.where(normal(random, clusters, sets, 0.2) < NormalDist().inv_cdf(biased), 2.0, 1.0)
    intervals = by_bootstrap([wins, wins * 0 + 2], clusters, lambda sums: sums[:, 0] / sums[:, 1])
    assert 0.93 <= held(intervals, 0.5 + biased / 2) <= 0.97
