"""PPE: votes, leaderboards of LLMs, and the best of K graded samples."""

import itertools
import random
from statistics import mean

import numpy as np
import pytest
from build import lines, talk
from console import music
from scipy.optimize import minimize
from scipy.stats import kendalltau, pearsonr, spearmanr

from musiccli.bench.ppe import best_of_k, check_ppe_record, metrics, roc_auc
from musiccli.bench.stats.bradley_terry import player_strengths
from musiccli.bench.stats.intervals import proportion_interval
from musiccli.bench.stats.leaderboards import pair_brier, rank_correlations, separations
from musiccli.core.errors import RecordError
from musiccli.core.records import Record


def vote(number, winner, scores, llms=("x", "y")):
    return Record(
        {
            "id": f"q{number}",
            "a": talk(f"question {number}", "one"),
            "b": talk(f"question {number}", "two"),
            "winner": winner,
            "metadata": {"model_a": llms[0], "model_b": llms[1]},
            "scores": {"rm": dict(zip("ab", scores, strict=True))},
        }
    )


def samples(number, scores, right, source="math"):
    return [
        Record(
            {
                "id": f"{source}/{number}",
                "sample": sample,
                "messages": talk(f"{source} {number}", f"answer {sample}"),
                "metadata": {"source": source, "correct": flag},
                "scores": {"rm": score},
            }
        )
        for sample, (score, flag) in enumerate(zip(scores, right, strict=True))
    ]


def values(records, model="rm", subset="votes"):
    rows = metrics([check_ppe_record(record) for record in records])
    return {
        row["metric"]: row["value"]
        for row in rows
        if (row["model"], row["subset"]) == (model, subset)
    }


def test_ties_of_people_count_for_leaderboards_and_not_for_accuracy():
    records = [
        vote(0, "a", (1, 0)),
        vote(1, "tie", (1, 0)),
        vote(2, "b", (1, 1)),
        vote(3, None, (1, 0)),
    ]
    assert values(records)["accuracy"] == 0.5


def battles_of(seed, llms=5, count=600):
    chance = random.Random(seed)
    given = []
    for _ in range(count):
        first, second = chance.sample(range(llms), 2)
        winner = chance.choices(["a", "b", "tie"], [2 + first, 2 + second, 1])[0]
        score = chance.choice([0, chance.gauss(first - second, 2)])
        given.append((first, second, winner, score))
    return given


def strengths_by_hand(outcomes, llms=5):
    """Logistic regression of (first, second, outcome of the first), strengths 0 on average."""

    def loss(free):
        strength = np.append(free, -free.sum())
        total = 0.0
        for first, second, outcome in outcomes:
            margin = strength[first] - strength[second]
            total += np.logaddexp(0, -margin) * outcome + np.logaddexp(0, margin) * (1 - outcome)
        return total

    free = minimize(loss, np.zeros(llms - 1), tol=1e-12).x
    return np.append(free, -free.sum())


@pytest.mark.parametrize("seed", range(2))
def test_figures_of_leaderboards_are_plain_computations(seed):
    given = battles_of(seed, count=200)
    found = values(
        [
            vote(number, winner, (score, 0), (f"llm{first}", f"llm{second}"))
            for number, (first, second, winner, score) in enumerate(given)
        ]
    )
    points = {"a": 1, "b": 0, "tie": 0.5}
    people = [(first, second, points[winner]) for first, second, winner, _ in given]
    rewards = [
        (first, second, 0.5 if score == 0 else float(score > 0))
        for first, second, _, score in given
    ]
    decided = [
        (winner == "a") == (score > 0) and score != 0
        for _, _, winner, score in given
        if winner != "tie"
    ]
    assert found["accuracy"] == pytest.approx(mean(map(float, decided)), abs=1e-12)

    def rates(outcomes, llm):
        by_rival = {}
        for first, second, outcome in outcomes:
            if llm in (first, second):
                rival = second if llm == first else first
                by_rival.setdefault(rival, []).append(outcome if llm == first else 1 - outcome)
        return [mean(by_rival[rival]) for rival in sorted(by_rival)]

    rows = [pearsonr(rates(people, llm), rates(rewards, llm))[0] for llm in range(5)]
    assert found["row_wise_pearson"] == pytest.approx(mean(rows), abs=1e-12)
    boards = strengths_by_hand(people), strengths_by_hand(rewards)
    assert found["spearman"] == pytest.approx(spearmanr(*boards)[0], abs=1e-12)
    assert found["kendall"] == pytest.approx(kendalltau(*boards)[0], abs=1e-12)
    assert 0 <= found["brier"] <= 1 and found["separability"] >= abs(found["confidence_agreement"])


def test_strengths_are_the_maximum_of_the_likelihood():
    """There every player's expected wins are its wins; to 1e-9 for one and for many tables."""
    random = np.random.default_rng(0)
    wins = random.integers(1, 30, (3, 6, 6)).astype(float)
    wins[:, np.arange(6), np.arange(6)] = 0
    strengths = player_strengths(wins)
    games = wins + wins.transpose(0, 2, 1)
    expected = games / (1 + np.exp(strengths[:, None, :] - strengths[:, :, None]))
    assert expected.sum(2) == pytest.approx(wins.sum(2), abs=1e-9)
    assert strengths.mean(1) == pytest.approx(0, abs=1e-12)
    assert player_strengths(wins[1]) == pytest.approx(strengths[1], abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_separability_agreement_and_brier_are_counted_pair_by_pair_to_1e_12(seed):
    random = np.random.default_rng(seed)
    people, rewards = (random.normal(size=(200, 6)) + 2 * random.normal(size=6) for _ in range(2))

    def apart(samples, first, second):
        bounds = [np.quantile(samples[:, llm], [0.025, 0.975]) for llm in (first, second)]
        return int(bounds[0][0] > bounds[1][1]) - int(bounds[0][1] < bounds[1][0])

    pairs = list(itertools.combinations(range(6), 2))
    signs = [[apart(samples, *pair) for pair in pairs] for samples in (people, rewards)]
    assert separations(people, 0.95).tolist() == signs[0]
    assert separations(rewards, 0.95).tolist() == signs[1]
    truth = people.mean(0)
    errors = [
        (np.mean(rewards[:, first] > rewards[:, second]) - (truth[first] > truth[second])) ** 2
        for first, second in pairs
    ]
    assert pair_brier(rewards, truth) == pytest.approx(np.mean(errors), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_best_of_k_is_the_mean_over_every_draw_to_1e_12(seed):
    chance = random.Random(seed)
    scores = [chance.choice([0, 1, 2, chance.gauss(0, 1)]) for _ in range(8)]
    right = [chance.random() < 0.4 for _ in scores]
    for k in range(1, 9):
        draws = []
        for drawn in itertools.combinations(range(8), k):
            top = max(scores[index] for index in drawn)
            draws.append(mean(float(right[i]) for i in drawn if scores[i] == top))
        assert best_of_k(scores, right, k) == pytest.approx(mean(draws), abs=1e-12)


def test_curves_areas_and_roc_are_means_over_prompts_and_then_over_benchmarks():
    prompts = {
        "math": [
            ([3, 2, 1, 0], [True, False, True, False]),
            ([0, 0, 1, 2], [True, True, False, False]),
        ],
        "gpqa": [([1, 1, 0, 0], [True, False, True, False])],
    }
    records = [
        record
        for source, some in prompts.items()
        for number, (scores, right) in enumerate(some)
        for record in samples(number, scores, right, source)
    ]
    by_source = {
        source: [[best_of_k(scores, right, k) for k in range(1, 5)] for scores, right in some]
        for source, some in prompts.items()
    }
    areas = {source: mean(map(mean, curves)) for source, curves in by_source.items()}
    math = values(records, subset="math")
    assert math["best_of_4"] == 0.5 and math["area"] == pytest.approx(areas["math"], abs=1e-12)
    assert math["roc_auc"] == pytest.approx(mean([0.75, 0]), abs=1e-12)
    everything = values(records, subset="all")
    assert everything["area"] == pytest.approx(mean(areas.values()), abs=1e-12)
    assert values(records, "baseline/random", "math")["best_of_4"] == 0.5


def test_roc_counts_equal_scores_half():
    assert roc_auc([1, 2], [1, 0]) == pytest.approx((0.5 + 1 + 1 + 1) / 4)


@pytest.mark.slow
@pytest.mark.parametrize("per_prompt", [1, 2])
def test_95_percent_intervals_of_the_area_hold_the_truth(per_prompt):
    """A right sample's reward is higher by 0.7 deviations; prompts are hard or easy.

    Without equal rewards the area is a weighted sum over the ranks of the right samples.
    """
    random, sets, prompts = np.random.default_rng(6), 1000, 60
    by_rank = [
        mean(best_of_k(range(8), [rank == place for rank in range(8)], k) for k in range(1, 9))
        for place in range(8)
    ]
    shape = sets, prompts, per_prompt, 8
    right = random.random(shape) < random.beta(2, 2, (sets, prompts, 1, 1))
    ranks = (random.normal(size=shape) + 0.7 * right).argsort(-1).argsort(-1)
    areas = (np.array(by_rank)[ranks] * right).sum(-1).reshape(sets, -1)
    clusters = np.repeat(np.arange(prompts), per_prompt)
    intervals = np.array([proportion_interval(row, clusters) for row in areas])
    held = (intervals[:, 0] <= areas.mean()) & (areas.mean() <= intervals[:, 1])
    assert 0.93 <= held.mean() <= 0.97


@pytest.mark.parametrize(
    "change, message",
    [({"metadata": {}}, "metadata.model_a: is missing"), ({"winner": "x"}, "winner: is")],
)
def test_a_vote_that_cannot_be_counted_says_why(change, message):
    with pytest.raises(RecordError) as caught:
        check_ppe_record(Record(vote(0, "a", (1, 0)) | change))
    assert str(caught.value).startswith(message)


def test_a_sample_names_its_benchmark():
    sample = samples(0, [1], [True])[0] | {"metadata": {"correct": True}}
    with pytest.raises(RecordError, match=r"^metadata\.source: is missing"):
        check_ppe_record(Record(sample))


@pytest.mark.slow
def test_the_command_shows_votes_leaderboards_and_curves(tmp_path):
    votes = [
        vote(number, winner, (score, 0), (f"llm{first}", f"llm{second}"))
        for number, (first, second, winner, score) in enumerate(battles_of(0, count=60))
    ]
    graded = [record for n in range(5) for record in samples(n, [n, 1, 2, 0], [True, False] * 2)]
    done = music("bench", "ppe", "--plot", tmp_path / "p.svg", given=lines(*votes, *graded))
    assert done.status == 0, done.err
    assert "leaderboards of LLMs" in done.err and "best of 4" in done.err
    assert (tmp_path / "p.svg").stat().st_size


def test_strengths_that_differ_by_rounding_are_tied():
    strengths = np.array([0.5, 0.0, -0.5])
    assert rank_correlations(strengths, np.array([0.1, 0.1 + 1e-15, -0.2])) == pytest.approx(
        (0.75**0.5, (2 / 3) ** 0.5)
    )
