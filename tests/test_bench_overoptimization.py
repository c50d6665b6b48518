"""`music bench overoptimization`: a model's own reward of its picks, and what a gold reward makes of them."""

import math

import numpy as np
import pytest
from build import lines, talk
from console import music
from scipy.integrate import quad
from scipy.optimize import curve_fit

from musiccli.bench import overoptimization
from musiccli.bench.overoptimization import (
    Curves,
    OveroptimizationConfig,
    fit,
    gammas,
    kl_divergence,
)
from musiccli.core.records import Record

CONFIG = OveroptimizationConfig(gold="gold", bootstrap=200)


def candidates(prompts: int, samples: int, noise: float) -> list[dict]:
    """Candidates whose gold reward a model sees through noise."""
    draws = np.random.default_rng(1)
    records = []
    for prompt in range(prompts):
        for sample in range(samples):
            gold = float(draws.normal())
            scores = {"gold": gold, "rm": gold + noise * float(draws.normal())}
            messages = talk(f"prompt {prompt}", f"reply {sample}")
            record = {"id": f"p{prompt}", "sample": sample, "messages": messages, "scores": scores}
            records.append(record)
    return records


def of(records: list[dict], **settings) -> dict:
    config = OveroptimizationConfig(**{"gold": "gold", "bootstrap": 200, **settings})
    rows = overoptimization.metrics(map(Record, records), config)
    return {(row["subset"], row["metric"]): row for row in rows}


def test_picks_are_those_of_nested_pools_and_rewards_are_standardized():
    records = candidates(20, 4, 1.0)
    proxy = np.array([one["scores"]["rm"] for one in records]).reshape(20, 4)
    gold = np.array([one["scores"]["gold"] for one in records]).reshape(20, 4)
    proxy, gold = ((rewards - rewards.mean()) / rewards.std() for rewards in (proxy, gold))
    rows = of(records)
    for size in (1, 2, 4):
        picks = proxy[:, :size].argmax(1)
        expected = proxy[range(20), picks].mean(), gold[range(20), picks].mean()
        values = [
            rows[f"best_of={size}", metric]["value"] for metric in ("proxy_reward", "gold_reward")
        ]
        assert values == pytest.approx(expected, rel=1e-12)
        gap = rows[f"best_of={size}", "gap"]["value"]
        assert gap == pytest.approx(expected[0] - expected[1], abs=1e-12)


def test_the_order_of_the_records_does_not_matter():
    records = candidates(6, 4, 1.0)
    assert of(records)["best_of=4", "gap"] == of(records[::-1])["best_of=4", "gap"]


def test_a_model_that_is_the_gold_reward_has_no_gap_and_gamma_is_0():
    rows = of(candidates(20, 8, 0.0))
    assert rows["best_of=8", "gap"]["value"] == 0
    assert rows["all", "gamma"]["value"] == pytest.approx(0, abs=1e-12)
    assert rows["best_of=8", "gold_reward"]["best"] == rows["best_of=8", "gold_reward"]["value"]


def test_gamma_grows_with_the_noise():
    noisy = [of(candidates(60, 8, noise))["all", "gamma"] for noise in (0.5, 1.0, 2.0)]
    values = [row["value"] for row in noisy]
    assert values == sorted(values) and values[0] > 0.02
    assert all(row["low"] < row["value"] < row["high"] for row in noisy)


def test_divergence_of_best_of_n():
    assert kl_divergence(1) == 0 and kl_divergence(4) == pytest.approx(math.log(4) - 0.75)


def test_the_fit_and_gamma_equal_an_independent_computation():
    """The fit by curve_fit, the areas by numerical integration; the curves cross at x = 1.2."""
    x = np.array([kl_divergence(size) for size in (2, 4, 8, 16)])
    draws = np.random.default_rng(0)
    rewards = x * (0.9 - 0.1 * x) + 0.01 * draws.normal(size=4)
    expected, _ = curve_fit(lambda x, a, b: x * (a - b * x), x, rewards)
    assert fit(x, rewards) == pytest.approx(expected, rel=1e-6)
    gold, proxy = np.array([0.9, 0.1]), np.array([0.66, -0.1])

    def difference(x):
        return abs(x * (gold[0] - gold[1] * x) - x * (proxy[0] - proxy[1] * x))

    area = quad(difference, 0, x[-1], points=[1.2])[0]
    below = quad(lambda x: x * (gold[0] - gold[1] * x), 0, x[-1])[0]
    assert float(gammas(gold, proxy, x[-1])) == pytest.approx(area / below, rel=1e-9)


def test_gamma_is_not_defined_where_the_gold_reward_falls():
    assert math.isnan(gammas(np.array([-1.0, 0.0]), np.array([1.0, 0.0]), 1.0))
    records = candidates(20, 4, 0.0)
    for one in records:
        one["scores"]["rm"] = -one["scores"]["gold"]
    row = of(records)["all", "gamma"]
    assert (row["value"], row["low"]) == (None, None)
    assert (
        "not defined"
        in music("bench", "overoptimization", "--gold", "gold", given=lines(*records)).err
    )


def test_equal_rewards_pick_the_first_candidate():
    curves = Curves([[1.0, 1.0]], [[0.0, 2.0]], [1, 2])
    assert curves.gold.tolist() == [[-1, -1]] and curves.proxy.tolist() == [[0, 0]]


def test_a_field_of_the_record_can_be_the_gold_reward_and_short_pools_are_counted(tmp_path):
    records = candidates(9, 4, 1.0)[:-3]
    for one in records:
        one["metadata"] = {"correct": one["scores"].pop("gold") > 0}
    page = tmp_path / "page.html"
    done = music(
        "bench",
        "overoptimization",
        "--gold",
        "metadata.correct",
        "--bootstrap",
        "100",
        "--html",
        page,
        given=lines(*records),
    )
    assert done.status == 0 and "1 left out (too few candidates)" in done.err
    assert "less than the best" in page.read_text()


@pytest.mark.parametrize(
    "options, problem",
    [
        ((), "--gold is missing: a model's name in scores, or a field"),
        (("--gold", "nosuch"), "nosuch: should be a number, true or false"),
    ],
)
def test_without_a_gold_reward_nothing_is_computed(options, problem):
    done = music("bench", "overoptimization", *options, given=lines(*candidates(2, 2, 1.0)))
    assert done.status == 2 and problem in done.err and not done.out
