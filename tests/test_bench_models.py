"""Many models side by side: who is best, who cannot be told from the best, and tables for them."""

import random

import numpy as np
import pytest
from build import lines, scored_pair, talk
from console import music
from scipy.stats import binomtest

from musiccli.bench import agreement
from musiccli.bench.config import BenchConfig
from musiccli.bench.report.tables import Table, narrow_tables
from musiccli.bench.stats import comparisons
from musiccli.bench.stats.comparisons import Gains
from musiccli.bench.stats.intervals import standard_error
from musiccli.bench.stats.significance import holm_adjusted, mean_p
from musiccli.core.records import Record


def pairs(models: int, count: int, per_prompt: int = 1) -> list[dict]:
    """Pairs on which a later model is right more often."""
    draws = random.Random(1)
    records = []
    for number in range(count):
        scores = {
            f"rm{model}": {
                "chosen": int(draws.random() < 0.5 + 0.4 * model / models),
                "rejected": 0.5,
            }
            for model in range(models)
        }
        first = f"prompt {number // per_prompt}"
        records.append(
            scored_pair(number, 0, 0, scores=scores)
            | {"chosen": talk(first, "yes"), "rejected": talk(first, "no")}
        )
    return records


def metrics(records: list[dict], **settings) -> list[dict]:
    config = agreement.AgreementConfig(group_by=("turns",), bootstrap=200, **settings)
    return list(agreement.metrics(map(Record, records), config))


def test_holm_is_the_published_example():
    """Four hypotheses: 0.01 x 4, 0.04 x 2 and 0.03 x 3 in order, 0.005 x 4; never descending."""
    assert holm_adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_adjusted([0.9, 0.8]) == [1, 1] and holm_adjusted([]) == []


def test_the_best_is_tested_against_each_by_the_exact_test():
    records = pairs(5, 200)
    rows = metrics(records)
    right = {
        model: np.array([one["scores"][model]["chosen"] for one in records])
        for model in records[0]["scores"]
    }
    best = max(right, key=lambda model: right[model].mean())
    others = [model for model in right if model != best]
    expected = []
    for model in others:
        only = int((right[best] > right[model]).sum()), int((right[best] < right[model]).sum())
        expected.append(binomtest(only[0], sum(only)).pvalue)
    holm = [row for row in rows if row["metric"] == "holm_p" and row["subset"] == "all"]
    assert {row["against"] for row in holm} == {best}
    by_model = {row["model"]: row["value"] for row in holm}
    assert [by_model[model] for model in others] == pytest.approx(holm_adjusted(expected), rel=1e-9)


def test_repeated_prompts_are_tested_by_prompt():
    """Each prompt three times with the same outcome is worth no more than once."""
    once = [one for one in pairs(4, 60)]
    thrice = [one | {"id": f"{one['id']}/{copy}"} for one in once for copy in range(3)]
    p_once, p_thrice = (
        {row["model"]: row["value"] for row in metrics(records) if row["metric"] == "holm_p"}
        for records in (once, thrice)
    )
    assert p_thrice == pytest.approx(p_once, abs=0.05)
    assert min(p_thrice.values()) > 1e-6


def test_p_where_nothing_varies_is_that_of_the_common_sign():
    assert (
        mean_p(1.0, 0.0, 3) == 0.25 and mean_p(0.0, 0.0, 3) == 1 and mean_p(1, float("nan"), 1) == 1
    )


@pytest.mark.parametrize("per_prompt", [1, 3])
def test_the_standard_error_is_that_of_the_gains_of_each_pair(per_prompt):
    draws = np.random.default_rng(0)
    first, second = draws.random((2, 90)) < [[0.7], [0.6]]
    prompts = np.arange(90) // per_prompt
    gains = first * 1 - second
    sums = np.bincount(prompts, gains).astype(int)
    sizes = np.bincount(prompts)
    result = Gains(sums, sizes, int((gains > 0).sum()), int((gains < 0).sum()))
    assert result.mean == pytest.approx(gains.mean(), rel=1e-12)
    assert result.standard_error == pytest.approx(standard_error(gains, prompts), rel=1e-12)


def test_intervals_of_many_models_are_those_of_few_within_what_a_bootstrap_can_tell():
    draws = np.random.default_rng(0)
    gains = draws.choice([-1, 0, 1], 400, p=[0.1, 0.7, 0.2])
    result = Gains(gains, gains * 0 + 1, int((gains > 0).sum()), int((gains < 0).sum()))
    config = BenchConfig(bootstrap=20_000)
    assert result.t_interval(config) == pytest.approx(result.bootstrap_interval(config), abs=0.004)


def test_the_work_of_a_hundred_models_grows_with_their_pairs_in_one_subset_only(monkeypatch):
    """4,950 comparisons of all pairs and 99 of each other subset; none is bootstrapped."""
    monkeypatch.setattr(Gains, "bootstrap_interval", None)
    rows = metrics(pairs(100, 40))
    counts = {
        subset: sum(
            row["metric"] == "accuracy_difference" and row["subset"] == subset for row in rows
        )
        for subset in ("all", "turns=1")
    }
    assert counts == {"all": 4950, "turns=1": 99}
    assert sum(row["metric"] == "holm_p" for row in rows) == 2 * 99


def test_from_four_models_on_models_are_rows_and_the_best_have_a_star(tmp_path):
    records = pairs(5, 300)
    page = tmp_path / "page.html"
    done = music("bench", "agreement", "--by", "turns", "--html", page, given=lines(*records))
    assert done.status == 0, done.err
    rows = [line.split() for line in done.lines]
    start = next(index for index, row in enumerate(rows) if row == ["all", "turns=1"])
    table = rows[start + 2 : start + 9]
    assert [row[0] for row in table] == ["rm4", "rm3", "rm2", "rm1", "rm0", "best", "pairs"]
    values = [float(row[1].rstrip("*")) for row in table[:5]]
    assert values == sorted(values, reverse=True)
    assert table[0][1].endswith("*") and not table[4][1].endswith("*")
    assert "Against rm4, in points" in done.err and "McNemar" not in done.err
    assert "Every two models" not in done.err
    text = page.read_text()
    assert "Every two models" in text and "Against rm4" in text


@pytest.mark.parametrize("models, listed", [(3, False), (4, True)])
def test_three_models_stay_columns(models, listed):
    done = music("bench", "agreement", "--by", "turns", given=lines(*pairs(models, 30)))
    assert ("Against" in done.err) is listed and ("McNemar" in done.err) is not listed


def test_a_model_that_scored_other_pairs_is_compared_on_the_common_ones():
    records = pairs(4, 40)
    for one in records[:20]:
        del one["scores"]["rm0"]
    for one in records[20:]:
        del one["scores"]["rm1"]
    rows = metrics(records)
    differences = {
        frozenset((row["model"], row["against"])): row["count"]
        for row in rows
        if row["metric"] == "accuracy_difference" and row["subset"] == "all"
    }
    assert (
        frozenset({"rm0", "rm1"}) not in differences
        and differences[frozenset({"rm2", "rm3"})] == 40
    )
    assert differences[frozenset({"rm0", "rm3"})] == 20
    assert comparisons.undistinguished(rows, 0.95)["all"] <= {"rm0", "rm1", "rm2", "rm3"}


def test_a_wide_table_is_divided_and_each_part_has_the_names():
    cells = [["a" * 30, *map(str, range(10))], ["b", *["1.0 [0.5, 1.5]"] * 10]]
    parts = narrow_tables(Table("title", ["", *"abcdefghij"], cells), 80)
    assert [len(part.columns) for part in parts] == [4, 4, 4, 2]
    assert all(part.cells[0][0] == "a" * 30 for part in parts)
    assert [column for part in parts for column in part.columns[1:]] == [*"abcdefghij"]
    small = Table("title", ["", "a"], [["x", "1"]])
    assert narrow_tables(small) == [small]
