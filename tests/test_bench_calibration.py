"""Margins as probabilities, and ties: against plain computations, and intervals in simulation."""

import math
import random
from statistics import mean, median

import numpy as np
import pytest
from build import lines, talk
from console import music
from scipy.optimize import minimize_scalar

from musiccli.bench.agreement import AgreementConfig, metrics
from musiccli.bench.stats.calibration import (
    FIRST,
    SECOND,
    TIE,
    calibration_error,
    fit_temperature,
    fit_tie_threshold,
    label_probabilities,
    with_ties,
)
from musiccli.bench.stats.intervals import proportion_interval
from musiccli.core.records import Record

CONFIG = AgreementConfig(group_by=(), bootstrap=200)


def pair(number, margin, winner, model="rm"):
    return Record(
        {
            "id": f"p{number}",
            "a": talk(f"prompt {number}", "one"),
            "b": talk(f"prompt {number}", "two"),
            "winner": winner,
            "scores": {model: {"a": margin, "b": 0.0}},
        }
    )


def values(records, model="rm"):
    rows = metrics(records, CONFIG)
    return {row["metric"]: row for row in rows if row["model"] == model}


def draw(seed, count=200, ties=True):
    chance = random.Random(seed)
    winners = ["a", "b", "tie"] if ties else ["a", "b"]
    given = []
    for _ in range(count):
        winner = chance.choice(winners)
        center = {"a": 1.5, "b": -1.5, "tie": 0}[winner]
        given.append((chance.choice([0, 1, chance.gauss(center, 2)]), winner))
    return given


@pytest.mark.parametrize("seed", range(4))
def test_temperature_brier_and_calibration_error_are_plain_computations_to_1e_12(seed):
    given = draw(seed)
    found = values([pair(number, *some) for number, some in enumerate(given)])
    toward = [margin if winner == "a" else -margin for margin, winner in given if winner != "tie"]

    def loss(inverse):
        return sum(math.log1p(math.exp(-inverse * margin)) for margin in toward)

    best = minimize_scalar(loss, bounds=(0, 10), method="bounded", options={"xatol": 1e-10}).x
    temperature = found["temperature"]["value"]
    assert 1 / temperature == pytest.approx(best, rel=1e-6)
    slope = sum(margin / (1 + math.exp(margin / temperature)) for margin in toward)
    assert slope == pytest.approx(0, abs=1e-9)
    right = [1 / (1 + math.exp(-margin / temperature)) for margin in toward]
    assert found["brier"]["value"] == pytest.approx(mean((1 - p) ** 2 for p in right), abs=1e-12)
    error, bins = 0.0, {}
    for margin, p in zip(toward, right, strict=True):
        confidence = max(p, 1 - p)
        lower = next(index for index in range(15) if confidence <= (index + 1) / 15)
        point = 0.5 if margin == 0 else float(margin > 0)
        bins.setdefault(lower, []).append((point, confidence))
    for some in bins.values():
        points, confidences = map(mean, zip(*some, strict=True))
        error += len(some) / len(toward) * abs(points - confidences)
    assert found["ece"]["value"] == pytest.approx(error, abs=1e-12)
    assert found["brier"]["low"] < found["brier"]["value"] < found["brier"]["high"]


@pytest.mark.parametrize("seed", range(4))
def test_accuracy_with_ties_is_the_best_over_every_threshold_to_1e_12(seed):
    given = draw(seed)
    found = values([pair(number, *some) for number, some in enumerate(given)])

    def accuracy(threshold):
        return mean(
            float(winner == ("tie" if abs(margin) <= threshold else "a" if margin > 0 else "b"))
            for margin, winner in given
        )

    thresholds = sorted({0.0, *(abs(margin) for margin, _ in given)})
    best = max(map(accuracy, thresholds))
    row = found["accuracy_with_ties"]
    assert (row["value"], row["count"]) == (pytest.approx(best, abs=1e-12), 200)
    assert row["threshold"] == next(t for t in thresholds if accuracy(t) == pytest.approx(best))
    ties = [abs(margin) for margin, winner in given if winner == "tie"]
    others = [abs(margin) for margin, winner in given if winner != "tie"]
    assert found["tie_margin"]["value"] == pytest.approx(median(ties), abs=1e-12)
    assert found["decided_margin"]["value"] == pytest.approx(median(others), abs=1e-12)


def test_without_ties_there_are_no_figures_of_ties():
    found = values([pair(number, *some) for number, some in enumerate(draw(0, ties=False))])
    assert found.keys() >= {"brier", "ece"} and "accuracy_with_ties" not in found


def test_baselines_have_no_calibration():
    rows = list(metrics([pair(n, *some) for n, some in enumerate(draw(1, 20))], CONFIG))
    assert {row["model"] for row in rows if row["metric"] == "brier"} == {"rm"}


@pytest.mark.parametrize(
    "margins, temperature, probabilities",
    [
        ([1.0, 2.0, 0.0], 0.0, [1, 1, 0.5]),  # separable: no errors
        ([1.0, -1.0], None, [0.5, 0.5]),  # says nothing
        ([-1.0, -3.0], None, [0.5, 0.5]),  # worse than nothing
        ([0.0, 0.0], None, [0.5, 0.5]),
    ],
)
def test_margins_that_no_temperature_fits(margins, temperature, probabilities):
    assert fit_temperature(np.array(margins)) == temperature
    assert label_probabilities(np.array(margins), temperature).tolist() == probabilities


def test_the_scale_of_rewards_changes_the_temperature_alone():
    margins = np.random.default_rng(0).normal(0.5, 1, 300)
    small, large = fit_temperature(margins), fit_temperature(margins * 1e6)
    assert large == pytest.approx(small * 1e6, rel=1e-12)
    first = label_probabilities(margins, small)
    assert label_probabilities(margins * 1e6, large) == pytest.approx(first, abs=1e-12)
    assert calibration_error(first, margins) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["brier", "accuracy_with_ties"])
def test_95_percent_intervals_hold_the_truth(metric):
    """Two pairs of each of 150 prompts; the temperature and the threshold are fitted anew."""
    random, sets, prompts = np.random.default_rng(3), 1000, 150
    clusters = np.repeat(np.arange(prompts), 2)
    intervals, found = [], []
    for _ in range(sets):
        shared = np.repeat(random.normal(0, 0.7, prompts), 2)
        quality = random.normal(0, 1.2, 2 * prompts) + shared
        labels = np.where(np.abs(quality) < 0.4, TIE, np.where(quality > 0, FIRST, SECOND))
        margins = 3 * quality + random.normal(0, 3, 2 * prompts)
        if metric == "brier":
            decided = labels != TIE
            toward = np.where(labels == FIRST, margins, -margins)[decided]
            points = (1 - label_probabilities(toward, fit_temperature(toward))) ** 2
            intervals.append(proportion_interval(points, clusters[decided]))
        else:
            points = with_ties(margins, fit_tie_threshold(margins, labels)) == labels
            intervals.append(proportion_interval(points, clusters))
        found.append(points.mean())
    truth = mean(map(float, found))
    held = mean(float(low <= truth <= high) for low, high in intervals)
    assert 0.93 <= held <= 0.97


def test_the_command_shows_calibration_beside_accuracy():
    records = [pair(number, *some) for number, some in enumerate(draw(2, 40))]
    done = music("bench", "agreement", "--bootstrap", 100, given=lines(*records))
    assert done.status == 0, done.err
    assert "Calibration of margins, and ties" in done.err and "% right with ties" in done.err
