"""Intervals hold what they promise, and tests give what independent computations give."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from musiccli.bench.config import BenchConfig
from musiccli.bench.stats.bootstrap import bootstrap_interval, cluster_sums
from musiccli.bench.stats.intervals import (
    combine_proportions,
    effective_sample_size,
    proportion_interval,
    standard_error,
    wilson_interval,
)
from musiccli.bench.stats.kappa import cohen_kappa, fleiss_columns, fleiss_kappa
from musiccli.bench.stats.quantiles import normal_quantile, t_quantile
from musiccli.bench.stats.significance import detectable_difference, mcnemar_p


@pytest.mark.parametrize("right, count", [(0, 10), (3, 10), (10, 10), (81, 263), (447, 447)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_is_scipys(right, count, confidence):
    expected = stats.binomtest(right, count).proportion_ci(confidence, method="wilson")
    assert wilson_interval(right / count, count, confidence) == pytest.approx(
        (expected.low, expected.high)
    )


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_t_quantile_bounds_the_share_that_the_sums_of_the_distribution_give(confidence):
    for freedom in (1, 2, 3, 4, 9, 30, 99, 100, 101, 1000):
        quantile = t_quantile(confidence, freedom)
        assert share_within(quantile, freedom) == pytest.approx(confidence, abs=1e-9)
    assert t_quantile(confidence, 10**9) == pytest.approx(normal_quantile(confidence), rel=1e-7)


def share_within(t: float, freedom: int) -> float:
    """How much of Student's t lies within t of 0 (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle, odd = math.atan(t / math.sqrt(freedom)), freedom % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
    if odd:
        return (angle + math.sin(angle) * total) * 2 / math.pi
    return math.sin(angle) * total


@pytest.mark.parametrize(
    "freedom, published", [(1, 12.706), (2, 4.303), (9, 2.262), (30, 2.042), (120, 1.980)]
)
def test_t_quantiles_are_those_of_printed_tables(freedom, published):
    assert t_quantile(0.95, freedom) == pytest.approx(published, abs=5e-4)


@pytest.mark.parametrize("values", [[0] * 7, [1] * 30, [0.1] * 3, [1, 0, 0.5]])
def test_an_interval_holds_what_was_found(values):
    for clusters in (range(len(values)), [0] * len(values), [0, 0, *range(2, len(values))]):
        low, high = proportion_interval(values, list(clusters))
        assert 0 <= low <= np.mean(values) <= high <= 1


def test_a_share_of_single_values_has_wilsons_interval():
    assert proportion_interval([1, 0, 1, 1], range(4)) == wilson_interval(0.75, 4)


def test_half_points_vary_less_than_tosses():
    """Of 100 values, 60 of them ties: the mean's variance is 0.1 / 100, that of 250 tosses."""
    low, high = proportion_interval([0] * 20 + [0.5] * 60 + [1] * 20, range(100))
    assert (low, high) == pytest.approx(wilson_interval(0.5, 250))


def test_few_clusters_widen_an_interval_as_students_t_does():
    values, clusters = [1, 1, 0, 0] * 3, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    low, high = proportion_interval(values, clusters)
    narrow = wilson_interval(0.5, effective_sample_size(values, clusters))
    assert low < narrow[0] and high > narrow[1]
    assert (low, high) == wilson_interval(
        0.5, effective_sample_size(values, clusters), degrees_of_freedom=5
    )


def test_unclustered_outcomes_are_worth_their_count():
    assert effective_sample_size([1, 0, 0, 1, 1], [1, 2, 3, 4, 5]) == pytest.approx(5)


def test_outcomes_that_repeat_within_a_prompt_are_worth_their_prompts():
    outcomes = np.repeat([1, 0, 1, 1, 0, 0, 1, 0], 10)
    assert effective_sample_size(outcomes, np.repeat(range(8), 10)) == pytest.approx(8, rel=0.15)


@pytest.mark.parametrize(
    "outcomes, clusters, worth", [([1, 1, 1], [1, 2, 2], 2), ([1, 0], [7, 7], 1), ([1], [1], 1)]
)
def test_where_the_design_effect_cannot_be_told_prompts_are_counted(outcomes, clusters, worth):
    assert effective_sample_size(outcomes, clusters) == worth


def test_one_part_combined_keeps_its_interval():
    value, interval = combine_proportions([0.7], [(0.6, 0.78)], [1.0])
    assert (value, interval) == (pytest.approx(0.7), (pytest.approx(0.6), pytest.approx(0.78)))


def test_combined_interval_adds_distances_as_variances_add():
    value, (low, high) = combine_proportions([0.5, 0.9], [(0.2, 0.6), (0.5, 0.95)], [0.5, 0.5])
    assert (value, low, high) == pytest.approx((0.7, 0.7 - 0.25, 0.7 + np.hypot(0.05, 0.025)))


def test_totals_sum_each_column_within_each_cluster():
    assert cluster_sums([[1, 0, 1], [1, 1, 1]], [9, 4, 9]).tolist() == [[0, 1], [2, 2]]


def mean(sums):
    return sums[:, 0] / sums[:, 1]


def test_bootstrap_draws_what_drawing_clusters_one_by_one_draws():
    random = np.random.default_rng(3)
    rows = np.stack([random.integers(0, 4, 60), np.full(60, 3)], axis=1).astype(float)
    fast = bootstrap_interval(rows, mean, BenchConfig(bootstrap=20_000))
    drawn = rows[random.integers(0, 60, (20_000, 60))].sum(1)
    tail = stats.norm.cdf(stats.t.ppf(0.025, 59) * (60 / 59) ** 0.5)
    assert tail < 0.024
    assert fast == pytest.approx(
        np.quantile(mean(drawn), [tail, 1 - tail]), abs=0.006
    )  # steps of 1/180


def test_bootstrap_follows_from_its_seed_and_from_nothing_else():
    rows = cluster_sums([np.sqrt(np.arange(40)), np.ones(40)], range(40))
    first = bootstrap_interval(rows, mean, BenchConfig(seed=1))
    assert (
        bootstrap_interval(rows[::-1], mean, BenchConfig(seed=1))
        == first
        != bootstrap_interval(rows, mean, BenchConfig(seed=2))
    )


@pytest.mark.parametrize("rows", [[[3.0, 5.0]], [[1.0, 1.0]] * 9, [[1.0, 2.0], [2.0, 4.0]]])
def test_where_nothing_varies_the_bootstrap_claims_nothing(rows):
    assert bootstrap_interval(np.array(rows), mean) is None


@pytest.mark.slow
def test_bootstrap_of_many_draws_and_kinds_is_done_in_bounded_pieces():
    rows = np.stack([np.linspace(0, 1, 3000), np.ones(3000)], axis=1)
    low, high = bootstrap_interval(rows, mean, BenchConfig(bootstrap=4_000))
    half = 1.96 * 12**-0.5 / 3000**0.5
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=2e-3)


def test_combined_intervals_hold_the_truth_too_even_near_one():
    random = np.random.default_rng(1)
    shares, counts, weights = (
        np.array([0.99, 0.9, 0.97]),
        np.array([28, 100, 47]),
        np.array([0.2, 0.5, 0.3]),
    )
    held = 0
    for _ in range(2000):
        found = random.binomial(counts, shares) / counts
        intervals = [
            wilson_interval(share, count) for share, count in zip(found, counts, strict=True)
        ]
        _, (low, high) = combine_proportions(found, intervals, weights)
        held += low <= shares @ weights <= high
    assert 0.93 <= held / 2000 <= 0.985


@pytest.mark.slow
@pytest.mark.parametrize(
    "first, second", [(0, 0), (1, 0), (5, 5), (10, 2), (87, 137), (2000, 2150)]
)
def test_mcnemar_is_the_exact_binomial_test(first, second):
    count = first + second
    tail = sum(math.comb(count, number) for number in range(min(first, second) + 1))
    expected = min(1.0, float(Fraction(2 * tail, 2**count)))
    assert mcnemar_p(first, second) == pytest.approx(expected, rel=1e-9)


def test_kappa_of_cohens_own_example():
    table = [[88, 14, 18], [10, 40, 10], [2, 6, 12]]  # Cohen 1960, table 1, of 200
    assert cohen_kappa(table) == pytest.approx(0.4915, abs=5e-4)


def test_kappa_by_counting_agreement_and_chance_one_by_one():
    random = np.random.default_rng(5)
    one, other = random.integers(0, 3, 200), random.integers(0, 2, 200)
    table = np.histogram2d(one, other, bins=[range(4), range(4)])[0]
    agreed = np.mean(one == other)
    chance = np.mean(one[:, None] == other[None, :])
    assert cohen_kappa(table) == pytest.approx((agreed - chance) / (1 - chance))


@pytest.mark.parametrize(
    "table, expected", [([[5, 0], [0, 5]], 1), ([[0, 5], [5, 0]], -1), ([[9, 0], [0, 0]], np.nan)]
)
def test_kappa_at_its_ends(table, expected):
    assert cohen_kappa(table) == pytest.approx(expected, nan_ok=True)


def test_detectable_difference_is_detected_four_times_in_five():
    random = np.random.default_rng(7)
    runs, count, spread = 3000, 400, 0.6
    error = spread / count**0.5
    truth = detectable_difference(error)
    gains = random.normal(truth, spread, (runs, count))
    found = [abs(row.mean()) > 1.96 * standard_error(row, np.arange(count)) for row in gains[:500]]
    assert 0.74 <= np.mean(found) <= 0.86
    assert np.mean(abs(gains.mean(1)) > 1.96 * error) == pytest.approx(0.8, abs=0.03)


def test_standard_error_counts_prompts_not_pairs():
    assert standard_error(np.repeat([0, 1, 0, 1], 25), np.repeat(range(4), 25)) == pytest.approx(
        standard_error([0, 1, 0, 1], range(4))
    )


FLEISS = """
    00060 03003 01401 00006 03030 20400 00402 20310 20040 00006
    10050 11040 03300 10050 02031 00501 30012 51000 02040 10203
    00006 01050 02013 20040 10041 05010 40002 02040 10500 00006
"""


def test_fleiss_kappa_of_his_own_example():
    """Fleiss 1971, table 1: six of a hospital's psychiatrists, thirty patients, five diagnoses."""
    table = np.array([[int(digit) for digit in row] for row in FLEISS.split()])
    assert (table.sum(0).tolist(), set(table.sum(1))) == ([26, 26, 30, 55, 43], {6})
    sums = np.stack(fleiss_columns(table), axis=1).sum(0)
    assert fleiss_kappa(sums) == pytest.approx(0.430, abs=5e-4)


@pytest.mark.parametrize(
    "table, expected", [([[3, 0], [0, 3]], 1), ([[1, 1], [1, 1]], -1), ([[4, 0], [4, 0]], np.nan)]
)
def test_fleiss_kappa_at_its_ends(table, expected):
    sums = np.stack(fleiss_columns(np.array(table)), axis=1).sum(0)
    assert fleiss_kappa(sums) == pytest.approx(expected, nan_ok=True)
