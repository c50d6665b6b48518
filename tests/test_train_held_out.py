"""Held-out pairs in training: sets with names, a part that is split off, and an early stop."""

import json
import math
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from build import read, talk, write
from console import music
from toys import backbone, pair, pairs, sequence

from musiccli.core.errors import InputError
from musiccli.core.records import Record
from musiccli.reward_model import checkpoint
from musiccli.reward_model.eval_names import eval_prefix, evaluated_sets
from musiccli.train import early_stopping
from musiccli.train.checks import check_bos
from musiccli.train.eval_split import split_keys, split_pairs
from musiccli.train.log import TrainingLog
from musiccli.train.pair_arrays import PairArrays, TokenizedPair, TokenizedPairs


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


# A share that is split off


def with_keys(keys, part=40):
    """Pairs with these keys, in parts; the first token of each is its number."""
    template = TokenizedPair((sequence([0, 1]), sequence([0, 2])), 4, 4, 1, "last")
    made = [
        replace(template, sides=(sequence([number, 1]), sequence([number, 2])), keys=key)
        for number, key in enumerate(keys)
    ]
    starts = range(0, len(made), part)
    return TokenizedPairs([PairArrays.of(made[start : start + part]) for start in starts])


def numbers(pairs):
    return [one.sides[0].ids[0] for one in pairs]


def keys_of(pairs):
    return {key for row in pairs.keys.tolist() for key in row if key}


def prompts(number):
    """Keys of so many pairs, of which each prompt has two."""
    return [(1000 + index // 2, 1000 + index // 2, 0) for index in range(number)]


@pytest.mark.parametrize("fraction, count", [(0.05, 10), (0.5, 100), (0.001, None)])
def test_the_fraction_is_held_out_and_no_prompt_is_on_both_sides(fraction, count):
    pairs = with_keys(prompts(200))
    if count is None:  # one pair, but every prompt has two
        with pytest.raises(InputError, match="every group of pairs with the same prompt is larger"):
            split_pairs(pairs, fraction, 0)
        return
    split = split_pairs(pairs, fraction, 0)
    assert (len(split.held_out), split.groups) == (count, count // 2)
    assert sorted(numbers(split.training) + numbers(split.held_out)) == list(range(200))
    assert numbers(split.held_out) == sorted(numbers(split.held_out))
    assert not keys_of(split.training) & keys_of(split.held_out)


def test_the_seed_and_the_keys_alone_decide():
    def held_out(seed, keys):
        split = split_pairs(with_keys(keys), 0.1, seed)
        return keys_of(split.held_out)

    keys = prompts(200)
    assert held_out(0, keys) == held_out(0, keys[::-1]) != held_out(1, keys)
    # With more data, most of what was held out still is.
    assert len(held_out(0, keys) & held_out(0, [*keys, (1, 1, 0), (2, 2, 0)])) > 8


def test_what_other_pairs_connect_stays_together():
    # A chain by prompts, by a prompt of the rejected side, and by groups; and pairs by themselves.
    chain = [(1, 1, 0), (1, 2, 0), (2, 2, 70), (3, 3, 70), (3, 3, 71), (4, 4, 71)]
    for seed in range(20):
        split = split_pairs(with_keys([*chain, *((n, n, 0) for n in range(10, 30))]), 0.3, seed)
        assert len(set(numbers(split.held_out)) & set(range(6))) in (0, 6)
        assert not keys_of(split.training) & keys_of(split.held_out)


def test_both_parts_are_random():
    keys = [(n + 1, n + 1, 0) for n in range(2000)]
    places = np.array(numbers(split_pairs(with_keys(keys, 500), 0.1, 3).held_out))
    assert len(places) == 200 and abs(places.mean() - 1000) < 150


def test_keys_are_those_of_the_first_user_message_and_of_the_group():
    def keys(chosen, rejected, **fields):
        return split_keys(Record(pair("x", chosen, rejected) | fields))

    plain = keys(talk("a  b", "x"), talk("a b", "y"))
    assert plain[0] == plain[1] and plain[2] == 0
    assert keys(talk("a b\n", "x", "c", "d", system="s"), talk("a b", "y")) == plain
    assert keys(talk("a c", "x"), talk("a b", "y"))[0] != plain[0]
    grouped = [
        keys(talk("a b", "x"), talk("a b", "y"), **fields)[2]
        for fields in ({"group": 7}, {"metadata": {"group": 7}}, {"metadata": {"group": 8}})
    ]
    assert grouped[0] == grouped[1] != grouped[2] and 0 not in grouped


def test_bos_tokens_of_the_other_part_are_not_counted(base):
    model = checkpoint.create(base)
    model.tokenizer.bos_token = "<repo_name>"
    bos = model.tokenizer.bos_token_id
    template = TokenizedPair((sequence([bos, 5]), sequence([bos, 6])), 4, 4, 1, "last")
    doubled = replace(template, sides=(sequence([bos, bos, 5]), sequence([bos, bos, 6])))
    all_pairs = TokenizedPairs([PairArrays.of([template, doubled, template])])
    with pytest.raises(InputError, match="two BOS"):
        check_bos(model, all_pairs)
    selected = all_pairs.select(np.array([True, False, True]), "")
    assert check_bos(model, selected).startswith("one BOS token")


@pytest.mark.slow
def test_a_split_is_measured_and_recorded_and_the_rest_trained(run, tmp_path):
    out = tmp_path / "rm"
    other = write(tmp_path / "other.jsonl", *pairs(5, seed=1))
    done = run(out, "--eval-split", 0.25, "--eval", f"other={other}", "--eval-every", 2)
    assert done.status == 0, done.err
    assert done.lines[0].startswith("music train: 3 of 12 pairs are held out, ")
    assert done.lines[1].startswith("music train: 9 pairs, ")
    steps = read(out / "log.jsonl")
    assert [step["step"] for step in steps if "eval_loss" in step] == [2, 4]
    assert (steps[-1]["eval_pairs"], steps[-1]["eval_other_pairs"]) == (3, 5)
    told = notes(out)
    assert (told["settings"]["eval_split"], told["eval_split"]["pairs"]) == (0.25, 3)
    assert "- 3 of the pairs, in 3 groups, were held out\n" in (out / "README.md").read_text()
    assert "trained already" in run(out, "--eval-split", 0.25, "--eval", f"other={other}").err
    assert "(eval_split was 0.25, is None; the pairs are others)" in run(out).err


@pytest.mark.parametrize(
    "more, says",
    [
        ((0,), "0: give a number between 0 and 1"),
        ((1,), "1: give a number between 0 and 1"),
        (
            (0.1, "--eval", "pairs.jsonl"),
            "0.1: takes the place of a set without a name; write --eval NAME=FILE",
        ),
    ],
)
def test_a_split_that_cannot_be_is_refused(run, tmp_path, monkeypatch, more, says):
    monkeypatch.chdir(tmp_path)
    done = run(tmp_path / "rm", "--eval-split", *more)
    assert (done.status, done.lines) == (2, [f"music train: error: --eval-split {says}"])


# An early stop


CONSTANT = ("--schedule", "constant_with_warmup", "--warmup", 0)
PATIENCE, STEPS = 2, 14


class Crash(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def trial(base, tmp_path_factory):
    """Trains a few steps with a seed, by command line."""
    folder = tmp_path_factory.mktemp("overfits")
    file = write(folder / "pairs.jsonl", *pairs(8))
    held_out = write(folder / "held-out.jsonl", *pairs(9, seed=1))

    def run(seed, out, *more, steps=STEPS):
        line = ("train", file, "--model", base, "--batch", 4, "--steps", steps, "--lr", 2e-3)
        return music(*line, *CONSTANT, "--out", out, "--eval", held_out, "--seed", seed, *more)

    return run


@pytest.fixture(scope="module")
def whole(trial, tmp_path_factory):
    """Of a seed with which the held-out loss rises: the log of all steps, where a run with patience
    should stop, the best step, and the seed."""
    folder = tmp_path_factory.mktemp("whole")
    for seed in (8, *range(20)):  # 8 does where this was written; elsewhere sums round otherwise
        assert trial(seed, folder / str(seed), "--eval-every", 1, "--no-check").status == 0
        steps = log(folder / str(seed))
        losses = [step["eval_loss"] for step in steps]
        best = 0
        for number, loss in enumerate(losses[:-1]):
            best = number if loss < losses[best] else best
            if number - best == PATIENCE:
                break
        if 0 < best == number - PATIENCE:
            return steps, number + 1, best + 1, seed
    raise AssertionError("no seed overfits; choose another learning rate")


@pytest.fixture
def overfits(trial, whole):
    """Trains with the seed with which the held-out loss rises."""
    return lambda out, *more, **settings: trial(whole[3], out, *more, **settings)


def log(out):
    """What the log says, without what depends on the clock."""
    times = ("tokens_per_s", "pairs_per_s")
    steps = read(out / "log.jsonl")
    return [{name: step[name] for name in step if name not in times} for step in steps]


def weights(out):
    return (out / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_stops_when_the_loss_has_not_fallen_and_keeps_the_best_weights(
    overfits, whole, tmp_path
):
    steps, stop, best, _ = whole
    out = tmp_path / "rm"
    done = overfits(out, "--eval-every", 1, "--patience", PATIENCE)
    assert done.status == 0, done.err
    assert log(out) == steps[:stop]
    assert (
        f"music train: stopped after step {stop} of 14; eval_loss was lowest at step {best}, "
        "whose weights are kept"
    ) in done.lines
    assert done.lines[-1].startswith(f"music train: step {best}, loss ")
    told = notes(out)
    assert told["metrics"] == read(out / "log.jsonl")[best - 1]
    assert told["early_stopping"] == {
        "metric": "eval_loss",
        "best_step": best,
        "last_step": stop,
        "stopped": True,
    }
    assert overfits(tmp_path / "best", steps=best).status == 0
    assert weights(out) == weights(tmp_path / "best")
    assert not (out / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("knows_best", [False, True])
def test_a_run_that_goes_on_stops_at_the_same_step(overfits, whole, tmp_path, knows_best):
    """It dies behind a best step that its last state does not know, or knows."""
    steps, stop, best, _ = whole
    out, real = tmp_path / "rm", TrainingLog.add
    save_every, dies_at = (best, stop) if knows_best else (best - 1, best + 1)

    def add(self, metrics):
        real(self, metrics)
        if metrics["step"] == dies_at:
            raise Crash

    line = ("--eval-every", 1, "--patience", PATIENCE, "--save-every", save_every)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLog, "add", add)
        assert "Crash" in overfits(out, *line).err
    assert any(name.startswith("best-") for name in os.listdir(out / "checkpoints"))
    done = overfits(out, *line)
    assert done.status == 0, done.err
    assert "going on after step" in done.err
    assert log(out) == steps[:stop]
    assert notes(out)["early_stopping"]["best_step"] == best
    assert overfits(tmp_path / "best", steps=best).status == 0
    assert weights(out) == weights(tmp_path / "best")


def test_weights_that_are_gone_are_named(tmp_path):
    watch = early_stopping.EarlyStopping(2, "eval_loss", tmp_path, Accelerator(cpu=True), None)
    with pytest.raises(InputError, match="best-000003: the best weights so far are gone; remove"):
        watch.resume([{"step": 3, "eval_loss": 1.0}, {"step": 4, "loss": 1.0}])


@pytest.mark.parametrize(
    "losses, best, stopped",
    [
        ([3.0, 2.0, 2.0], 2, False),
        ([3.0, 2.0, 2.0, 2.1], 2, True),
        ([3.0, 2.0, None, 2.5, 1.0], 5, False),
        ([math.nan, 2.0, math.nan], 2, False),
        ([math.inf, math.nan, math.inf], 1, True),
        ([math.nan], 1, False),
    ],
)
def test_only_a_lower_loss_is_better(tmp_path, losses, best, stopped):
    network = torch.nn.Linear(1, 1)
    watch = early_stopping.EarlyStopping(2, "eval_loss", tmp_path, Accelerator(cpu=True), network)
    for step, loss in enumerate(losses, 1):
        network.bias.data.fill_(float(step))
        watch.add({"step": step} | ({} if loss is None else {"eval_loss": loss}))
    assert (watch.best_step, watch.stopped) == (best, stopped)
    assert os.listdir(tmp_path / "checkpoints") == [f"best-{best:06}"]
    watch.restore()
    assert network.bias.item() == best


def test_best_weights_that_are_damaged_are_named(tmp_path):
    network = torch.nn.Linear(1, 1)
    watch = early_stopping.EarlyStopping(2, "eval_loss", tmp_path, Accelerator(cpu=True), network)
    watch.add({"step": 1, "eval_loss": 1.0})
    best = tmp_path / "checkpoints" / "best-000001"
    file = best / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError) as raised:
        watch.restore()
    assert str(raised.value).startswith(f"{best}: cannot be loaded (")
    assert str(raised.value).endswith(f"); remove {tmp_path} to start again")


def test_weights_of_the_last_two_states_are_kept(tmp_path):
    """The second state may still be on its way to the disk when the run dies."""
    network = torch.nn.Linear(1, 1)
    watch = early_stopping.EarlyStopping(9, "eval_loss", tmp_path, Accelerator(cpu=True), network)
    for step in range(1, 7):
        watch.add({"step": step, "eval_loss": -step})
        if step in (1, 3, 5):
            watch.state_saved()
    (tmp_path / "checkpoints" / "best-of-mine").mkdir()
    names = sorted(os.listdir(tmp_path / "checkpoints"))
    assert names == ["best-000003", "best-000005", "best-000006", "best-of-mine"]
    watch.remove()
    assert os.listdir(tmp_path / "checkpoints") == ["best-of-mine"]


@pytest.mark.parametrize(
    "more, says",
    [
        (("--eval-every", 1), "3: needs --eval or --eval-split"),
        (("--eval-split", 0.2), "3: needs --eval-every"),
    ],
)
def test_patience_with_nothing_to_measure_is_refused(run, tmp_path, more, says):
    done = run(tmp_path / "rm", "--patience", 3, *more)
    assert (done.status, done.lines) == (2, [f"music train: error: --patience {says}"])
