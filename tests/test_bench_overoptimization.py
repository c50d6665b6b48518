"""`music bench overoptimization`: a model's own reward of its picks, and what a gold reward makes of them."""

import math
from itertools import combinations

import numpy as np
import pytest
from build import lines, talk
from console import music
from scipy.integrate import quad
from scipy.optimize import curve_fit

from musiccli.bench import overoptimization
from musiccli.bench.overoptimization import (
    OveroptimizationConfig,
    fit,
    gammas,
    kl_divergence,
    pick_chances,
    reward_curves,
    standardized_picks,
)
from musiccli.bench.stats.intervals import standard_error
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


def test_picks_are_means_over_all_choices_and_rewards_are_standardized():
    records = candidates(20, 4, 1.0)
    for one in records:
        one["scores"]["rm"] = round(one["scores"]["rm"])  # some are equal
    proxy = np.array([one["scores"]["rm"] for one in records]).reshape(20, 4)
    gold = np.array([one["scores"]["gold"] for one in records]).reshape(20, 4)
    proxy, gold = ((rewards - rewards.mean()) / rewards.std() for rewards in (proxy, gold))
    rows = of(records)
    for size in (1, 2, 4):
        picks = [
            (prompt, pick, 1 / (math.comb(4, size) * len(highest)))
            for prompt in range(20)
            for choice in combinations(range(4), size)
            for highest in [[i for i in choice if proxy[prompt, i] == max(proxy[prompt, choice])]]
            for pick in highest
        ]
        expected = [
            sum(chance * rewards[prompt, pick] for prompt, pick, chance in picks) / 20
            for rewards in (proxy, gold)
        ]
        values = [
            rows[f"best_of={size}", metric]["value"] for metric in ("proxy_reward", "gold_reward")
        ]
        assert values == pytest.approx(expected, rel=1e-12, abs=1e-12)
        gap = rows[f"best_of={size}", "gap"]["value"]
        assert gap == pytest.approx(expected[0] - expected[1], abs=1e-12)


def test_of_one_candidate_the_rewards_are_0_and_not_in_doubt():
    rows = of(candidates(20, 4, 1.0))
    for metric in ("proxy_reward", "gold_reward", "gap"):
        row = rows["best_of=1", metric]
        assert (row["value"], row["low"], str(row["value"])) == (0, None, "0.0")


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


def integrated_gamma(gold, proxy, largest: float, points=None) -> float:
    """Gamma by numerical integration of the two fitted functions."""

    def difference(x):
        return abs(x * (gold[0] - gold[1] * x) - x * (proxy[0] - proxy[1] * x))

    area = quad(difference, 0, largest, points=points)[0]
    return area / quad(lambda x: x * (gold[0] - gold[1] * x), 0, largest)[0]


def test_the_fit_and_gamma_equal_an_independent_computation():
    """The fit by curve_fit, the areas by numerical integration; the curves cross at x = 1.2."""
    x = np.array([kl_divergence(size) for size in (2, 4, 8, 16)])
    draws = np.random.default_rng(0)
    rewards = x * (0.9 - 0.1 * x) + 0.01 * draws.normal(size=4)
    expected, _ = curve_fit(lambda x, a, b: x * (a - b * x), x, rewards)
    assert fit(x, rewards) == pytest.approx(expected, rel=1e-6)
    gold, proxy = np.array([0.9, 0.1]), np.array([0.66, -0.1])
    expected = integrated_gamma(gold, proxy, x[-1], points=[1.2])
    assert float(gammas(gold, proxy, x[-1])) == pytest.approx(expected, rel=1e-9)


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


def test_of_equal_rewards_each_is_picked_equally_often():
    curves = reward_curves([[1.0, 1.0], [1.0, 1.0]], [[0.0, 2.0], [0.0, 2.0]], [1, 2], [0, 1])
    assert curves.gold.mean(0).tolist() == [0, 0] and curves.best.mean(0).tolist() == [0, 1]
    assert curves.proxy.tolist() == [[0, 0], [0, 0]]


def test_the_spread_of_standardized_picks_is_that_of_the_mean_over_many_sets():
    """Candidates of a prompt share a part of their reward; it cancels in the standardized mean."""
    draws = np.random.default_rng(3)
    means, errors = [], []
    for _ in range(400):
        rewards = draws.normal(size=(40, 4)) + draws.normal(size=(40, 1))
        picked = standardized_picks(rewards, pick_chances(rewards, [2]))[:, 0]
        means.append(picked.mean())
        errors.append(standard_error(picked, range(40)))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


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


def contests(prompts: int, noise: float, sizes: str = "2,4,8") -> list[dict]:
    """Contests as music pair writes them, judged by the gold reward of the candidates."""
    records = candidates(prompts, 8, noise)
    golds = {(one["id"], one["sample"]): one["scores"]["gold"] for one in records}
    options = ("--best-of", sizes, "--a", "rm", "--b", "baseline/first")
    paired = music("pair", *options, given=lines(*records)).records
    for one in paired:
        a, b = (golds[one["id"], one["picks"][side]] for side in "ab")
        one["winner"] = "a" if a > b else "b" if b > a else "tie"
    return paired


def test_a_judge_is_the_gold_where_picks_met_a_random_candidate():
    """The model's own share is 1, or 1/2 where its pick is the random one; the judge's by hand."""
    records = contests(40, 2.0)
    rows = of(records, gold=None)
    for size in (2, 4, 8):
        some = [one for one in records if one["best_of"] == size]
        is_same = np.array([one["picks"]["a"] == one["picks"]["b"] for one in some])
        judged = np.array([{"a": 1, "b": 0, "tie": 0.5}[one["winner"]] for one in some])
        subset = f"best_of={size}"
        proxy = rows[subset, "proxy_win_rate"]["value"]
        assert proxy == pytest.approx(np.where(is_same, 0.5, 1).mean(), abs=1e-12)
        assert rows[subset, "gold_win_rate"]["value"] == pytest.approx(judged.mean(), abs=1e-12)
        assert rows[subset, "gold_win_rate"]["best"] == np.maximum(judged, 0.5).mean()
        assert rows[subset, "gap"]["value"] == pytest.approx(proxy - judged.mean(), abs=1e-12)
    gamma = rows["all", "gamma"]
    x = np.array([kl_divergence(size) for size in (2, 4, 8)])
    gold, proxy = (
        curve_fit(
            lambda x, a, b: x * (a - b * x),
            x,
            [rows[f"best_of={size}", f"{name}_win_rate"]["value"] - 0.5 for size in (2, 4, 8)],
        )[0]
        for name in ("gold", "proxy")
    )
    assert gamma["value"] == pytest.approx(integrated_gamma(gold, proxy, x[-1]), rel=1e-5)
    assert gamma["low"] < gamma["value"] < gamma["high"]


def test_contests_of_one_prompt_are_dependent():
    records = contests(20, 2.0)
    often = [one | {"id": f"{one['id']}-{copy}"} for copy in range(5) for one in records]
    for metric in ("gap", "proxy_win_rate"):
        once, again = (of(some, gold=None)["best_of=8", metric] for some in (records, often))
        assert (again["low"], again["high"]) == pytest.approx(
            (once["low"], once["high"]), abs=0.015
        )


def test_of_one_candidate_the_share_is_a_half_and_not_in_doubt():
    row = of(contests(9, 1.0, "1,2,4"), gold=None)["best_of=1", "gold_win_rate"]
    assert (row["value"], row["low"]) == (0.5, None)


def test_a_judge_that_agrees_with_the_model_leaves_no_gap():
    rows = of(contests(40, 0.0), gold=None)
    assert rows["best_of=8", "gap"]["value"] == 0 and rows["best_of=8", "gap"]["low"] is None
    assert rows["all", "gamma"]["value"] == pytest.approx(0, abs=1e-12)


def test_prompts_without_a_readable_verdict_at_each_size_are_left_out(tmp_path):
    records = contests(20, 1.0)
    differs = next(one for one in records if one["picks"]["a"] != one["picks"]["b"])
    differs["winner"] = None
    page, picture = tmp_path / "page.html", tmp_path / "picture.svg"
    options = ("--bootstrap", "100", "--html", page, "--plot", picture)
    done = music("bench", "overoptimization", *options, given=lines(*records[:-1]))
    assert done.status == 0, done.err
    assert "1 left out (unreadable)" in done.err
    assert "1 left out (too few candidates)" in done.err
    assert {row["count"] for row in done.records} == {18}
    assert "how often the model's pick beats a random candidate" in done.err
    assert "lost, best of 8" in page.read_text() and picture.exists()


def test_a_contest_with_another_model_is_refused():
    record = contests(1, 1.0)[0] | {"models": {"a": "rm", "b": "other"}}
    done = music("bench", "overoptimization", given=lines(record))
    assert done.status == 2 and not done.out
    assert "models.b: should be baseline/first or baseline/random" in done.err


@pytest.mark.parametrize("name", ["rm", "gold"])
def test_rewards_that_would_overflow_are_refused(name):
    records = candidates(2, 2, 1.0)
    records[1]["scores"][name] = 1.7e308
    done = music("bench", "overoptimization", "--gold", "gold", given=lines(*records))
    assert done.status == 2 and not done.out
    assert f"2: scores.{name}: is 1.7e+308, more than a reward of 32 bits can be" in done.err


def test_a_rejected_branch_is_no_candidate():
    records = candidates(2, 4, 1.0)
    for number, one in enumerate(records):
        one["branch"] = ("chosen", "rejected")[number % 2]
    done = music("bench", "overoptimization", "--gold", "gold", given=lines(*records))
    assert done.status == 2 and not done.out
    assert "2: branch: is rejected: its replies answer altered instructions" in done.err


def test_contests_of_several_models_can_stand_in_one_input():
    records = contests(9, 1.0)
    others = [one | {"models": one["models"] | {"a": "rm2"}} for one in records]
    options = ("--bootstrap", "100")
    done = music("bench", "overoptimization", *options, given=lines(*records, *others))
    assert done.status == 0, done.err
    assert {row["model"]: row["count"] for row in done.records} == {"rm": 9, "rm2": 9}


def test_contests_of_one_model_with_both_baselines_are_refused():
    """Which of the two random candidates a figure is from would be left to their order."""
    records = contests(2, 1.0)
    other = records[0] | {"models": {"a": "rm", "b": "baseline/random"}}
    done = music("bench", "overoptimization", given=lines(*records, other))
    assert done.status == 2 and not done.out
    problem = "models.b: should be baseline/first as before; give the two baselines in two runs"
    assert problem in done.err


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
