"""`music bench report`: one page about one model, and what its sentences say."""

import pytest
from build import write
from console import music
from toys import backbone, pairs

from musiccli.bench.model_report import findings
from musiccli.core.records import BASELINE_PREFIX
from musiccli.reward_model import checkpoint


def row(model, subset, value, benchmark="agreement", count=100):
    return {
        "benchmark": benchmark,
        "model": model,
        "subset": subset,
        "metric": "accuracy",
        "value": value,
        "low": value - 0.1,
        "high": value + 0.1,
        "count": count,
    }


AGREEMENT = [
    row("rm", "all", 0.75),
    row("rm/last-only", "all", 0.6),
    row(f"{BASELINE_PREFIX}longest", "all", 0.62),
    row(f"{BASELINE_PREFIX}shortest", "all", 0.38),
    row("rm", "turns=2", 0.7),
    row("rm", "turns=9", 0.1, count=3),
]
SENSITIVITY = [
    row("rm", "distance>=1", 0.55, "sensitivity"),
    row("rm", "kind=swap", 0.4, "sensitivity"),
]


def test_the_sentences_say_what_it_is_good_for_what_it_reads_and_where_it_fails():
    """A subset of three pairs is not named as the weakest."""
    good, last, noticed, fails = findings(AGREEMENT, SENSITIVITY, "rm")
    assert "75.0 [65.0, 85.0]% of 100 pairs, which is better than" in good
    assert "(longest, 62.0%)" in good
    assert "last exchange it is right on 60.0 [50.0, 70.0]%" in last
    assert "of corrupted earlier turns it notices 55.0 [45.0, 65.0]%" in noticed
    assert "in sensitivity, swap: 40.0 [30.0, 50.0]% of 100 pairs" in fails


@pytest.mark.parametrize(
    "subset, words",
    [
        ("distance>=1", "before the last turn"),
        ("kind=reply,distance=1", "reply, 1 turn from the end"),
        ("distance=2", "2 turns from the end"),
    ],
)
def test_where_it_fails_is_said_in_the_words_of_the_table(subset, words):
    rows = [row("rm", subset, 0.3, "sensitivity")]
    assert f"in sensitivity, {words}: 30.0" in findings(AGREEMENT, rows, "rm")[-1]


def test_a_model_whose_interval_reaches_the_guess_is_not_called_better():
    rows = [row("rm", "all", 0.65), row(f"{BASELINE_PREFIX}longest", "all", 0.62)]
    [good] = findings(rows, [], "rm")
    assert "is not shown to be better than" in good


@pytest.mark.slow
def test_one_line_scores_measures_and_writes_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "toy"
    checkpoint.save(checkpoint.create(str(backbone(tmp_path / "base", "llama"))), folder)
    write("pairs.jsonl", *pairs(24))
    done = music("bench", "report", "pairs.jsonl", "--model", "toy", "--html", "toy.html")
    assert done.status == 0, done.err
    models = {(one["benchmark"], one["model"]) for one in done.records}
    for benchmark in ("agreement", "sensitivity"):
        assert {(benchmark, "toy"), (benchmark, "toy/last-only")} <= models
    text = (tmp_path / "toy.html").read_text()
    figure = text[text.index("<figure>") : text.index("</figure>")]
    for label in ("turns from the end, pairs", "intact scores higher", "toy/last-only"):
        assert label in figure
    for part in (
        "<li>Good for: ",
        "<li>Reads: shown only",
        "<li>Reads: of corrupted",
        "<li>Fails: ",
        "Most wrong",
        "music bench report pairs.jsonl --model toy --html toy.html",
    ):
        assert part in text
    again = music("bench", "report", "pairs.jsonl", "--model", "toy", "--html", "again.html")
    assert again.out == done.out
