"""Held-out pairs in training: sets with names, a part that is split off, and an early stop."""

import json
import re

import pytest
from build import read, write
from console import music
from toys import backbone, pairs

from musiccli.reward_model.eval_names import eval_prefix, evaluated_sets


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(backbone(tmp_path_factory.mktemp("base"), num_hidden_layers=1))


@pytest.fixture
def run(base, tmp_path):
    """Trains four steps in a moment, by command line."""
    file = write(tmp_path / "pairs.jsonl", *pairs(12))
    line = ("train", file, "--model", base, "--batch", 4, "--steps", 4, "--lr", 1e-2)
    return lambda out, *more: music(*line, "--out", out, *more)


def notes(out):
    return json.loads((out / "music.json").read_bytes())


# Sets with names


@pytest.mark.parametrize("name", ["", "code", "a_b", "loss", "by"])
def test_the_sets_are_read_back_from_the_names_of_metrics(name):
    metrics = ["loss", *(eval_prefix(name) + metric for metric in ("loss", "mean_reward", "ece"))]
    assert evaluated_sets(metrics) == [name]


@pytest.mark.slow
def test_every_set_is_measured_under_its_name(run, tmp_path):
    first = write(tmp_path / "first.jsonl", *pairs(5, seed=1))
    second = write(tmp_path / "a=b.jsonl", *pairs(6, seed=2))
    out = tmp_path / "rm"
    sets = ("--eval", first, "--eval", f"code={first}", "--eval", f"other.set={second}")
    done = run(out, *sets, "--eval-every", 2, "--plot", tmp_path / "curves.svg")
    assert done.status == 0, done.err
    steps = read(out / "log.jsonl")
    assert [step["step"] for step in steps if "eval_other.set_loss" in step] == [2, 4]
    last = steps[-1]
    assert evaluated_sets(last) == ["", "code", "other.set"]
    assert last["eval_code_loss"] == last["eval_loss"] != last["eval_other.set_loss"]
    assert (last["eval_code_pairs"], last["eval_other.set_pairs"]) == (5, 6)
    assert f"eval_other.set_loss {last['eval_other.set_loss']:.4g}" in done.lines[-1]
    files = notes(out)["held_out_files"]
    assert [(file.get("set"), file["name"], file["pairs"]) for file in files] == [
        (None, "first.jsonl", 5),
        ("code", "first.jsonl", 5),
        ("other.set", "a=b.jsonl", 6),
    ]
    assert notes(out)["metrics"] == last
    card = (out / "README.md").read_text()
    assert re.findall("## On (.*)", card) == [
        "5 held-out pairs",
        "5 held-out pairs of code",
        "6 held-out pairs of other.set",
    ]
    assert f"| accuracy | {last['eval_other.set_accuracy']:.4g} |" in card
    for label in (b"held out", b"held out code", b"held out other.set"):
        assert b"<!-- " + label + b" -->" in (tmp_path / "curves.svg").read_bytes()


@pytest.mark.parametrize(
    "values, says",
    [
        (["{}", "{}"], "another set has no name, either"),
        (["x={}", "x={}"], "another set is called x"),
    ],
)
def test_two_sets_of_one_name_are_refused(run, tmp_path, values, says):
    file = write(tmp_path / "held-out.jsonl", *pairs(5, seed=1))
    values = [value.format(file) for value in values]
    done = run(tmp_path / "rm", "--eval", values[0], "--eval", values[1])
    line = f"music train: error: --eval {values[1]}: {says}; write NAME=FILE"
    assert (done.status, done.lines) == (2, [line])
    assert not (tmp_path / "rm").exists()


@pytest.mark.parametrize("value", ["in=pairs.jsonl", "in=./pairs.jsonl", "pairs.jsonl"])
def test_a_set_is_never_written_over(run, tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    done = run("rm", "--eval", value, "--plot", "pairs.jsonl")
    assert done.status == 2 and "this run's own input or output" in done.err


@pytest.mark.parametrize(
    "value, missing",
    [("code=absent.jsonl", "absent.jsonl"), ("./a=absent.jsonl", "./a=absent.jsonl")],
)
def test_a_file_that_is_missing_is_named_without_the_name_of_its_set(run, value, missing, tmp_path):
    done = run(tmp_path / "rm", "--eval", value)
    assert (done.status, len(done.lines)) == (2, 1)
    assert done.err.startswith(f"music train: error: {missing}: ")


@pytest.mark.slow
def test_what_was_dropped_is_told_of_each_set(run, tmp_path):
    record = pairs(5, seed=1)[4]
    same = write(
        tmp_path / "same.jsonl", *pairs(5, seed=1), record | {"rejected": record["chosen"]}
    )
    done = run(tmp_path / "rm", "--eval", same, "--eval", f"code={same}")
    assert done.lines[:2] == [
        f"music train: --eval{name}: 1 pairs dropped (same tokens)" for name in ("", " code")
    ]
    empty = write(tmp_path / "empty.jsonl", record | {"rejected": record["chosen"]})
    done = run(tmp_path / "rm2", "--eval", f"code={empty}")
    assert done.lines[-1] == "music train: error: --eval code: no pairs to evaluate on are left"
