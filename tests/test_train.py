"""`music train`: the loss is Bradley-Terry's, and a run that was killed ends like any other."""

import json
import math
import os
import pkgutil
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path

import preloaded
import pytest
import torch
from accelerate import Accelerator
from build import read, talk, unloadable, write
from console import music, start, torchrun, wait_until
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from toys import TINY, backbone, embedded, pair, pairs, tiny
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.reward_model import checkpoint
from musiccli.reward_model.network import RewardNetwork
from musiccli.train import states
from musiccli.train.batching import plan_steps, total_steps
from musiccli.train.config import TrainConfig
from musiccli.train.log import TrainingLog
from musiccli.train.run import train
from musiccli.train.states import TrainingStates
from musiccli.train.tokenized_pairs import tokenize_pairs

TIMES = ("tokens_per_s", "pairs_per_s")
PATIENCE = 300  # seconds; torch itself waits for 30 before it kills a process


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(backbone(tmp_path_factory.mktemp("base"), num_hidden_layers=2))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "pairs.jsonl", *pairs(12))


@pytest.fixture
def run(base, file):
    """Trains six steps in a moment, by command line."""

    def line(out, *more, pairs=file, run=music):
        return run(
            "train",
            pairs,
            "--model",
            base,
            "--out",
            out,
            "--batch",
            4,
            "--steps",
            6,
            "--lr",
            1e-2,
            *more,
        )

    return line


def process(*arguments, given=None):
    """`music` as a process of its own, with `given` on its standard input."""
    return subprocess.run(
        [*preloaded.command(), *map(str, arguments)], capture_output=True, text=True, input=given
    )


def log(out):
    """What the log says, without what depends on the clock."""
    return [
        {name: value for name, value in step.items() if name not in TIMES}
        for step in read(out / "log.jsonl")
    ]


def losses(out):
    return [step["loss"] for step in read(out / "log.jsonl")]


def weights(out):
    return (out / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(base, file, tmp_path_factory):
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("finished") / "rm"
    done = music(
        "train",
        file,
        "--model",
        base,
        "--out",
        out,
        "--batch",
        4,
        "--steps",
        6,
        "--lr",
        1e-2,
        "--save-every",
        2,
    )
    assert (done.status, done.out) == (0, b""), done.err
    return out


# The loss


def forward(core, tokenizer, records):
    """(chosen, rejected) rewards of both sides padded, by transformers' own forward."""
    texts = [
        tokenizer.apply_chat_template(record[side], tokenize=False)
        for side in ("chosen", "rejected")
        for record in records
    ]
    padded = tokenizer(
        texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt"
    )
    return core(**padded).logits[:, 0].split(len(records))


def figures(margins, rewards):
    """What the log should say, by the formulas."""
    return {
        "loss": torch.log1p(torch.exp(-margins)).mean().item(),
        "margin": margins.mean().item(),
        "accuracy": (margins > 0).double().mean().item(),
        "mean_reward": rewards.mean().item(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_loss_of_a_step_is_that_of_the_padded_pairs(tmp_path, family):
    base = str(backbone(tmp_path / "base", family))
    records = [Record(one) for one in pairs(12)]
    measured = train(
        records, tmp_path / "out", TrainConfig(model=base, batch=12, steps=1, seed=3, budget=300)
    )
    torch.manual_seed(3)  # the head is drawn from it
    own = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = "<|endoftext|>"
    own.config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        chosen, rejected = forward(own, tokenizer, records)
    margins = (chosen - rejected).double()
    expected = figures(margins, torch.cat((chosen, rejected)))
    assert {name: measured[name] for name in expected} == pytest.approx(
        expected, abs=1e-5, rel=1e-4
    )
    assert abs(expected["loss"] - math.log(2)) > 0.01 and 0 < expected["accuracy"] < 1


@pytest.mark.slow
def test_a_step_is_one_of_adamw_on_the_padded_loss(tmp_path, base):
    records = [Record(one) for one in pairs(12)]
    train(
        records,
        tmp_path,
        TrainConfig(model=base, batch=12, steps=1, lr=1e-2, warmup=0, seed=3, budget=64),
    )
    model = checkpoint.create(base, seed=3)
    core = model.network.core
    core.set_attn_implementation("eager")
    chosen, rejected = forward(core, model.tokenizer, records)
    (-torch.nn.functional.logsigmoid(chosen - rejected)).mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(core.parameters(), 1.0)
    torch.optim.AdamW(core.parameters(), lr=1e-2, weight_decay=0.0).step()
    [measured] = read(tmp_path / "log.jsonl")
    assert (measured["lr"], measured["grad_norm"]) == (1e-2, pytest.approx(norm.item(), rel=1e-4))
    trained = checkpoint.load(str(tmp_path)).network.core.state_dict()
    for name, weight in core.state_dict().items():
        # Adam divides by the gradient's size. Where that is rounding, the step goes either way.
        assert (trained[name] - weight).abs().gt(1e-4).double().mean() < 2e-3, name


@pytest.mark.slow
def test_margins_and_centring_are_in_the_loss_as_published(tmp_path, base):
    records = [
        Record(one | {"metadata": {"by": number / 4}}) for number, one in enumerate(pairs(12))
    ]
    config = TrainConfig(
        model=base,
        batch=12,
        steps=1,
        lr=0,
        seed=3,
        budget=300,
        margin_field="by",
        margin_scale=2.0,
        center=0.5,
    )
    measured = train(records, tmp_path / "rm", config, held_out=records)
    model = checkpoint.create(base, seed=3)
    model.network.core.set_attn_implementation("eager")
    with torch.no_grad():
        chosen, rejected = forward(model.network.core, model.tokenizer, records)
    margins = 2 * torch.arange(12) / 4
    loss = (
        -torch.nn.functional.logsigmoid(chosen - rejected - margins)
        + 0.5 * (chosen + rejected) ** 2
    )
    assert measured["loss"] == pytest.approx(loss.mean().item(), rel=1e-4)
    assert measured["margin"] == pytest.approx(
        (chosen - rejected).mean().item(), rel=1e-4, abs=1e-5
    )
    plain = -torch.nn.functional.logsigmoid(
        chosen - rejected
    )  # held-out loss is the same for all config
    assert measured["eval_loss"] == pytest.approx(plain.mean().item(), rel=1e-4)


@pytest.mark.slow
def test_centring_draws_rewards_to_zero(tmp_path, base):
    records, found = [Record(one) for one in pairs(8)], []
    for center in (None, 0.5):
        config = TrainConfig(model=base, batch=8, steps=12, lr=1e-2, seed=2, center=center)
        found.append(train(records, tmp_path / str(center), config)["mean_reward"])
    assert abs(found[1]) < abs(found[0]) / 3


@pytest.mark.slow
@pytest.mark.parametrize("value", [None, "much", True, -1])
def test_a_pair_without_its_margin_is_a_bad_record(run, tmp_path, value):
    given = write(
        tmp_path / "in.jsonl",
        *([one | {"by": 0.5} for one in pairs(8)] + [pairs(9)[8] | {"by": value}]),
    )
    done = run(tmp_path / "rm", "--margin-field", "by", pairs=given)
    found = "missing" if value is None else repr(value)
    assert (done.status, done.lines) == (
        2,
        [
            f"music train: error: {given}:9: by: is {found}; a margin is a number from 0 up, "
            "or a list's length"
        ],
    )


def test_a_lists_length_is_a_margin_so_that_each_contrasted_turn_can_count(base):
    contrast = [{"message": 1, "instruction": "i"}, {"message": 3, "instruction": "j"}]
    records = [
        Record(pairs(3)[0] | {"contrast": contrast}),
        Record(pairs(3)[1] | {"contrast": []}),
        Record(pairs(3)[2] | {"metadata": {"contrast": contrast[:1]}}),
    ]
    found = tokenize_pairs(
        records, checkpoint.create(base), 2048, margin_field="contrast", margin_scale=0.5
    )
    assert [one.margin for one in found] == [1.0, 0.0, 0.5]


@pytest.mark.parametrize(
    "more, says",
    [
        (("--margin-scale", 0, "--margin-field", "by"), "0: give a number above 0"),
        (("--margin-scale", -1, "--margin-field", "by"), "-1: give a number above 0"),
        (("--margin-scale", 2), "2: needs --margin-field, whose margins it multiplies"),
    ],
)
def test_a_factor_of_margins_that_makes_no_sense_is_refused_before_the_model_is_loaded(
    file, tmp_path, more, says
):
    done = music(
        "train", file, "--model", unloadable(tmp_path / "base"), "--out", tmp_path / "rm", *more
    )
    assert (done.status, done.lines) == (2, [f"music train: error: --margin-scale {says}"])
    assert not (tmp_path / "rm").exists()


@pytest.mark.slow
def test_other_margins_are_another_run(run, tmp_path):
    files = [
        write(tmp_path / f"{by}.jsonl", *[one | {"by": by} for one in pairs(8)]) for by in (1, 2)
    ]
    assert run(tmp_path / "rm", "--margin-field", "by", pairs=files[0]).status == 0
    assert (
        "(margin_scale was 1.0, is 3.0; "
        in run(tmp_path / "rm", "--margin-field", "by", "--margin-scale", 3, pairs=files[0]).err
    )
    assert (
        "(the pairs are others)" in run(tmp_path / "rm", "--margin-field", "by", pairs=files[1]).err
    )


@pytest.mark.slow
def test_training_goes_on_from_a_reward_model_with_its_head(file, base, finished, tmp_path):
    line = ("train", file, "--batch", 4, "--steps", 1, "--lr", 0, "--seed", 7, "--eval", file)
    done = music(*line, "--init-from", finished, "--out", tmp_path / "rm")
    assert done.status == 0, done.err
    scores = [
        one["scores"]["x"] for one in music("score", file, "--model", finished, "--as", "x").records
    ]
    mean = sum(one["chosen"] + one["rejected"] for one in scores) / len(scores) / 2
    assert read(tmp_path / "rm" / "log.jsonl")[-1]["eval_mean_reward"] == pytest.approx(
        mean, abs=1e-4
    )
    done = music(*line, "--init-from", base, "--out", tmp_path / "other")
    assert (done.status, done.lines) == (
        2,
        [
            f"music train: error: {base}: has no trained reward head; `music train` makes a "
            "reward model of "
            "it"
        ],
    )


@pytest.mark.slow
def test_a_smaller_budget_gives_the_same_losses(run, finished, tmp_path):
    assert run(tmp_path / "rm", "--budget", 64).status == 0
    assert losses(tmp_path / "rm") == pytest.approx(losses(finished), abs=1e-5)
    assert len({round(loss, 3) for loss in losses(finished)}) == 6


@pytest.mark.slow
def test_two_processes_fed_by_a_pipe_give_the_same_losses_and_say_things_once(
    run, file, finished, tmp_path
):
    done = run(
        tmp_path / "rm",
        "--num-processes",
        2,
        "--budget",
        64,
        "--on-error",
        "skip",
        "--rejects",
        tmp_path / "bad.jsonl",
        pairs="-",
        run=lambda *line: process(*line, given=file.read_text() + '{"chosen": 3}\n'),
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    bad, planned, measured, last = done.stderr.splitlines()
    assert ":13: chosen: is a number" in bad and [
        one["chosen"] for one in read(tmp_path / "bad.jsonl")
    ] == [3]
    assert "; 2 x cpu, no mixed precision" in planned
    assert measured.startswith("music train: step 6, loss ") and last.endswith("; 1 failed")
    assert losses(tmp_path / "rm") == pytest.approx(losses(finished), abs=1e-5)
    for step, other in zip(log(tmp_path / "rm"), log(finished), strict=True):
        assert step == pytest.approx(other, abs=1e-4, rel=1e-3)


@pytest.mark.slow
def test_a_tie_is_no_success(tmp_path, base):
    model = checkpoint.create(base)
    model.network.core.score.weight.data.zero_()
    checkpoint.save(model, tmp_path / "indifferent")
    given = write(tmp_path / "pairs.jsonl", *pairs(4))
    done = music(
        "train",
        given,
        "--model",
        tmp_path / "indifferent",
        "--out",
        tmp_path / "rm",
        "--batch",
        4,
        "--lr",
        0,
        "--eval",
        given,
    )
    assert done.status == 0, done.err
    [step] = read(tmp_path / "rm" / "log.jsonl")
    assert (step["accuracy"], step["eval_accuracy"], step["eval_margin"]) == (0.0, 0.0, 0.0)
    assert step["loss"] == pytest.approx(math.log(2))


@pytest.mark.slow
def test_eight_pairs_are_learnt_by_heart(tmp_path, base):
    records = [Record(one) for one in pairs(8)]
    train(
        records,
        tmp_path,
        TrainConfig(model=base, batch=8, steps=20, lr=1e-2, schedule="constant_with_warmup"),
    )
    last = read(tmp_path / "log.jsonl")[-1]
    assert last["loss"] < 0.1 and last["accuracy"] == 1.0
    assert losses(tmp_path)[0] > 0.3


@pytest.mark.slow
def test_lora_learns_and_its_checkpoint_scores_what_was_measured(tmp_path, base):
    records = [Record(one) for one in pairs(8)]
    config = TrainConfig(
        model=base, batch=8, steps=15, lr=1e-2, lora=4, schedule="constant_with_warmup"
    )
    measured = train(records, tmp_path, config, held_out=[Record(one) for one in pairs(8)])
    assert measured["eval_loss"] < 0.3 < losses(tmp_path)[0]
    scores = music(
        "score", write(tmp_path / "in.jsonl", *pairs(8)), "--model", tmp_path, "--as", "rm"
    ).records
    margins = [one["scores"]["rm"]["chosen"] - one["scores"]["rm"]["rejected"] for one in scores]
    assert sum(margins) / 8 == pytest.approx(measured["eval_margin"], rel=1e-3)


# The plan


SIZES = [7, 300, 45, 45, 12, 90, 3, 250, 61, 18, 33]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("budget", [1, 100, 4096])
def test_every_pair_comes_once_an_epoch_in_steps_of_exactly_a_batch(ranks, budget):
    config = TrainConfig(
        batch=4, steps=22, budget=budget, seed=5
    )  # 88 pairs: eight epochs of eleven
    steps = list(plan_steps(SIZES, config, ranks))
    assert len(steps) == 22
    drawn = []
    for step in steps:
        assert len(step) == ranks
        assert len({len(batches) for batches in step}) == 1  # else some rank would wait for ever
        found = [index for batches in step for batch in batches for index in batch]
        assert len(found) == 4
        assert all(
            any(batches) and batches[-1] for batches in step
        )  # gradients are exchanged in the last
        assert all(
            len(batch) <= 1 or sum(SIZES[index] for index in batch) <= budget
            for batches in step
            for batch in batches
        )
        drawn.append(found)
    # Steps straddle epochs: after 11 steps, four epochs have passed exactly.
    for half in (drawn[:11], drawn[11:]):
        assert Counter(index for found in half for index in found) == dict.fromkeys(range(11), 4)
    assert len({*drawn[0], *drawn[1]}) == 8


def test_the_plan_follows_from_the_seed_and_steps_hold_the_same_pairs_for_any_number_of_ranks():
    def sets(ranks, seed=5):
        return [
            sorted(index for batches in step for batch in batches for index in batch)
            for step in plan_steps(SIZES, TrainConfig(batch=4, steps=9, seed=seed), ranks)
        ]

    assert list(plan_steps(SIZES, TrainConfig(batch=4, steps=9), 2)) == list(
        plan_steps(SIZES, TrainConfig(batch=4, steps=9), 2)
    )
    assert sets(1) == sets(2) == sets(3) != sets(1, seed=6)


@pytest.mark.parametrize("ranks", [1, 8])
def test_an_epoch_of_many_pairs_wastes_little(ranks):
    """What a rank could compute while it waits for the one with the most tokens is wasted."""
    draws, config = random.Random(0), TrainConfig(batch=64 * ranks, budget=4096)
    sizes = [min(2048, int(draws.lognormvariate(6, 0.8))) for _ in range(20_000)]
    computed, possible = 0, 0
    for step in plan_steps(sizes, config, ranks):
        loads = [sum(sizes[index] for batch in batches for index in batch) for batches in step]
        computed, possible = computed + sum(loads), possible + max(loads) * ranks
    assert computed / possible > 0.95


@pytest.mark.slow
def test_a_padded_step_stays_within_the_budget_and_is_the_same(tmp_path, base, monkeypatch):
    records, shapes, measured = [Record(one) for one in pairs(12)], [], []
    config = TrainConfig(model=base, batch=12, steps=1, budget=400)
    measured.append(train(records, tmp_path / "packed", config))
    pad, real = RewardNetwork.__init__, RewardNetwork._padded
    monkeypatch.setattr(
        RewardNetwork, "__init__", lambda self, model, packed: pad(self, model, packed=False)
    )
    said = []
    monkeypatch.setattr(
        RewardNetwork,
        "_padded",
        lambda self, groups: (
            shapes.append((2 * len(groups), max(len(one.ids) for group in groups for one in group)))
            or real(self, groups)
        ),
    )
    measured.append(
        train(
            records,
            tmp_path / "padded",
            config,
            check=False,
            stats=RunStats(say=said.append),
            held_out=records,
        )
    )
    assert measured[1]["loss"] == pytest.approx(measured[0]["loss"], abs=1e-5)
    assert (
        all(rows == 2 or rows * longest <= 400 for rows, longest in shapes[2:]) and len(shapes) < 24
    )
    assert " padded); " in said[0]


def test_ranks_get_about_as_many_tokens():
    for step in islice(
        plan_steps([100, 1, 1, 1, 1, 1, 1, 94] * 4, TrainConfig(batch=32, steps=3), 2), 3
    ):
        loads = [
            sum(([100, 1, 1, 1, 1, 1, 1, 94] * 4)[index] for batch in batches for index in batch)
            for batches in step
        ]
        assert abs(loads[0] - loads[1]) <= 2


@pytest.mark.parametrize(
    "pairs, config, steps",
    [
        (104_000, {"batch": 64}, 1625),
        (30, {"batch": 4}, 8),
        (30, {"batch": 4, "epochs": 2}, 15),
        (30, {"batch": 4, "steps": 3}, 3),
        (30, {"batch": 4, "epochs": 0.1}, 1),
    ],
)
def test_steps_are_those_asked_for_or_whole_passes(pairs, config, steps):
    assert total_steps(pairs, TrainConfig(**config)) == steps


# Pairs


@pytest.mark.slow
def test_pairs_that_teach_nothing_and_pairs_too_long_are_counted(base):
    long = "word " * 100
    records = [
        Record(one)
        for one in (
            pair("good", talk("q", "yes"), talk("q", "no")),
            pair("same", talk("q", "a"), talk("q", "a")),
            pair("same tokens", talk("q", "a"), talk("q", "a")),
            pair("cut", talk(long, "a", "q", "yes"), talk(long, "a", "q", "no")),
            pair("too long", talk(long, "yes"), talk(long, "no")),
            pair("parts early", talk(long, "yes", "q", "a"), talk(long, "no", "q", "a")),
        )
    ]
    stats = RunStats()
    found = tokenize_pairs(records, checkpoint.create(base), 60, stats)
    assert stats.phrases() == {
        "pairs cut to fit": 1,
        "pairs dropped (same tokens)": 2,
        "pairs dropped (too long)": 2,
    }
    assert len(found) == 2
    for sides in (one.sides for one in found):
        assert all(side.reward_positions == [len(side.ids) - 1] for side in sides)


@pytest.mark.slow
def test_what_was_dropped_and_cut_is_said_of_both_files(run, tmp_path):
    given = [
        *pairs(6),
        pair("same", talk("q", "a"), talk("q", "a")),
        pair("cut", talk("x " * 400, "a", "q", "y"), talk("x " * 400, "a", "q", "n")),
    ]
    files = [write(tmp_path / name, *given) for name in ("pairs.jsonl", "held-out.jsonl")]
    done = run(tmp_path / "rm", "--max-length", 300, "--eval", files[1], pairs=files[0])
    assert (done.status, done.lines[:4]) == (
        0,
        [
            f"music train: {start}1 pairs {what}"
            for start in ("", "--eval: ")
            for what in ("cut to fit", "dropped (same tokens)")
        ],
    )
    assert done.lines[4].startswith("music train: 7 pairs, ")


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["q", talk("q")])
def test_plain_prompt_chosen_rejected_rows_are_pairs_too(run, finished, tmp_path, prompt):
    whole = [
        pair(str(number), talk("q", f"yes {number}"), talk("q", f"no {number}"))
        for number in range(4)
    ]
    plain = [
        {"prompt": prompt, "chosen": f"yes {number}", "rejected": f"no {number}"}
        for number in range(4)
    ]
    for name, records in (("whole", whole), ("plain", plain)):
        done = run(tmp_path / name, pairs=write(tmp_path / f"{name}.jsonl", *records))
        assert done.status == 0, done.err
    assert log(tmp_path / "plain") == log(tmp_path / "whole")


@pytest.mark.slow
def test_held_out_figures_are_those_of_score(run, tmp_path):
    held_out = write(tmp_path / "held-out.jsonl", *tiny("heldout"))
    assert run(tmp_path / "rm", "--eval", held_out, "--save-every", 4).status == 0
    steps = read(tmp_path / "rm" / "log.jsonl")
    assert [step["step"] for step in steps if "eval_loss" in step] == [4, 6]
    scores = [
        one["scores"]["rm"] for one in music("score", held_out, "--model", tmp_path / "rm").records
    ]
    rewards = torch.tensor([[one["chosen"], one["rejected"]] for one in scores]).double()
    expected = figures(rewards[:, 0] - rewards[:, 1], rewards)
    assert {name: steps[-1][f"eval_{name}"] for name in expected} == pytest.approx(
        expected, abs=1e-5, rel=1e-4
    )
    bench = music(
        "bench", "agreement", given=music("score", held_out, "--model", tmp_path / "rm").out
    ).records
    partitions = {
        one["subset"].removeprefix("turns="): {"accuracy": one["value"], "pairs": one["count"]}
        for one in bench
        if one["model"] == "rm"
        and one["metric"] == "accuracy"
        and one["subset"].startswith("turns=")
    }
    assert steps[-1]["eval_by_turns"] == partitions and len(partitions) > 1
    assert (
        sum(one["pairs"] for one in steps[-1]["eval_by_divergence"].values())
        == steps[-1]["eval_pairs"]
        == 16
    )


@pytest.mark.slow
def test_held_out_pairs_are_measured_as_often_as_asked(run, file, tmp_path):
    done = run(tmp_path / "rm", "--eval", file, "--eval-every", 2, "--save-every", 5)
    assert [step["step"] for step in read(tmp_path / "rm" / "log.jsonl") if "eval_ece" in step] == [
        2,
        4,
        6,
    ]
    assert " eval_by_divergence first: " in done.lines[-1]


@pytest.mark.slow
def test_a_pair_that_the_template_refuses_is_a_bad_record(base, tmp_path):
    shutil.copytree(base, tmp_path / "strict")
    (tmp_path / "strict" / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if 'x' in m.content %}{{ raise_exception('no x') }}{% endif %}"
        "{{ m.role }}:{{ m.content }}\n{% endfor %}"
    )
    given = write(
        tmp_path / "in.jsonl",
        pair("a", talk("q", "a"), talk("q", "b")),
        pair("b", talk("q", "x"), talk("q", "b")),
    )
    line = ("train", given, "--model", tmp_path / "strict", "--out", tmp_path / "rm", "--batch", 1)
    done = music(*line)
    assert (done.status, done.lines) == (
        2,
        [f"music train: error: {given}:2: messages: the chat template refuses it: no x"],
    )
    done = music(*line, "--on-error", "skip", "--rejects", tmp_path / "bad.jsonl")
    assert (done.status, [one["id"] for one in read(tmp_path / "bad.jsonl")]) == (1, ["b"])
    assert (tmp_path / "rm" / "model.safetensors").exists()


# Stopped and started again


DYING = """
import os, signal, sys
from musiccli.train.log import TrainingLog
real = TrainingLog.add
def add(self, measured):
    real(self, measured)
    if measured["step"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)
TrainingLog.add = add
from musiccli.cli.main import main
main()
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_bit_for_bit_as_if_it_had_not_been(run, finished, tmp_path):
    def die(*line):
        return subprocess.run(
            [preloaded.python(), "-c", DYING, *map(str, line)], capture_output=True
        )

    out = tmp_path / "rm"
    assert run(out, "--save-every", 2, run=die).returncode == -signal.SIGKILL
    assert [step["step"] for step in log(out)] == [1, 2, 3, 4, 5]
    assert os.listdir(out / "checkpoints") == ["step-000004"]
    (out / "checkpoints" / "mine.txt").write_text("x")
    (out / "checkpoints" / "step-mine").mkdir()  # no state of the run
    assert not (out / "model.safetensors").exists()
    done = run(out, "--save-every", 2)
    assert (done.status, done.lines[1]) == (0, "music train: going on after step 4 of 6")
    assert weights(out) == weights(finished)
    assert log(out) == log(finished)
    assert sorted(os.listdir(out / "checkpoints")) == ["mine.txt", "step-mine"]
    assert sorted(os.listdir(out)) == sorted([*os.listdir(finished), "checkpoints"])


class Crash(Exception):
    """Stands for a kill at a certain place."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "place, call",
    [
        ("torch.distributed.checkpoint.save", 2),
        ("os.rename", 4),  # the second of a state; torch renames one file in each
        ("shutil.rmtree", 1),
        ("os.replace", 3),
        ("musiccli.reward_model.checkpoint.save", 1),
    ],
)
def test_a_crash_anywhere_in_saving_loses_nothing_that_was_saved(
    run, finished, tmp_path, place, call
):
    out, real, count = tmp_path / "rm", pkgutil.resolve_name(place), Counter()

    def crash(*args, **options):
        count["calls"] += any(str(out) in str(arg) for arg in (*args, *options.values()))
        if count["calls"] == call:
            raise Crash
        return real(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, crash)
        assert "Crash" in run(out, "--save-every", 2).err
    assert not (out / "music.json").exists()
    done = run(out, "--save-every", 2)
    assert (done.status, len([line for line in done.lines if "going on after step" in line])) == (
        0,
        1,
    ), done.err
    assert weights(out) == weights(finished)
    assert log(out) == log(finished)
    assert sorted(os.listdir(out)) == sorted(os.listdir(finished))


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [("--save-every", 2), ("--eval", TINY / "heldout.jsonl", "--eval-every", 1, "--patience", 1)],
    ids=["state", "best weights"],
)
def test_a_state_that_cannot_be_written_is_one_line(run, tmp_path, more):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))  # stands for a full disk
    try:
        done = run(tmp_path / "rm", *more)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    reason = "cannot be written ([Errno 27] File too large)"
    assert (done.status, done.lines[1:]) == (
        2,
        [f"music train: error: {tmp_path / 'rm' / 'checkpoints'}: {reason}"],
    )


@pytest.mark.slow
def test_a_run_that_was_killed_before_it_saved_starts_again(run, finished, tmp_path):
    def die(*line):
        return subprocess.run(
            [preloaded.python(), "-c", DYING, *map(str, line)], capture_output=True
        )

    out = tmp_path / "rm"
    assert run(out, run=die).returncode == -signal.SIGKILL
    assert len(log(out)) == 5
    (out / "log.jsonl").write_bytes((out / "log.jsonl").read_bytes()[:-9])
    done = run(out)
    assert (done.status, [line for line in done.lines if "going on" in line]) == (0, [])
    assert log(out) == log(finished)
    assert sorted(os.listdir(out)) == sorted(os.listdir(finished))


@pytest.mark.slow
def test_a_torn_log_line_is_written_anew(run, finished, tmp_path):
    out, real = tmp_path / "rm", TrainingLog.add

    def torn(self, measured):
        if measured["step"] == 3:
            with (out / "log.jsonl").open("ab") as stream:
                stream.write(b'{"step":3,"epo')
            raise Crash
        real(self, measured)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLog, "add", torn)
        assert "Crash" in run(out, "--save-every", 2).err
    assert run(out, "--save-every", 2).status == 0
    assert log(out) == log(finished)


@pytest.mark.slow
def test_a_finished_run_is_left_alone(run, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    done = run(finished, "--save-every", 2)
    assert (done.status, done.lines) == (
        0,
        [f"music train: {finished} is trained already, by this same line"],
    )
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.parametrize(
    "more, says",
    [
        (("--lr", 1e-3), "lr was 0.01, is 0.001"),
        (("--seed", 1), "seed was 0, is 1"),
        (("--max-length", 80), "max_length was 2048, is 80; the pairs are others"),
    ],
)
def test_other_settings_are_another_run(run, finished, more, says):
    done = run(finished, *more)
    [line] = [line for line in done.lines if "holds another run" in line]
    assert done.status == 2
    assert (
        line == f"music train: error: {finished}: holds another run ({says}); name another --out "
        "or remove it"
    )


@pytest.mark.slow
def test_other_pairs_are_another_run_also_halfway(run, finished, halfway, tmp_path):
    other = write(tmp_path / "other.jsonl", *pairs(12, seed=9))
    done = run(finished, pairs=other)
    assert (done.status, done.lines) == (
        2,
        [
            f"music train: error: {finished}: holds another run (the pairs are others); name "
            "another --out or remove it"
        ],
    )
    done = run(halfway, pairs=other)
    assert (done.status, done.lines[1:]) == (
        2,
        [
            f"music train: error: {halfway}: holds another run (the pairs are others); name "
            "another --out or remove it"
        ],
    )
    assert (halfway / "checkpoints" / "step-000004").exists()


@pytest.fixture
def halfway(run, tmp_path):
    """A run that stopped after it had saved step 4."""
    real = TrainingStates.save

    def stop(self, step):
        real(self, step)
        if step == 4:
            raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStates, "save", stop)
        assert "Crash" in run(tmp_path / "halfway", "--save-every", 2).err
    return tmp_path / "halfway"


@pytest.mark.slow
def test_a_state_saved_in_the_background_is_that_of_its_step(run, finished, tmp_path):
    """As on one GPU: the steps go on while it is written."""
    real, out = TrainingStates.save, tmp_path / "rm"

    def stop(self, step):
        self._copy_fits = lambda tensors: True
        real(self, step)
        if step == 4:
            self.wait()
            raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStates, "save", stop)
        done = run(out, "--save-every", 2)
    assert [line for line in done.lines if "distributed" in line] == []
    assert os.listdir(out / "checkpoints") == ["step-000004"]
    assert "going on after step 4 of 6" in run(out).err
    assert (log(out), weights(out)) == (log(finished), weights(finished))


def saves_in_background(self, step):
    """As on one GPU, but that the steps do not go on while a state is written."""
    self._copy_fits = lambda tensors: True
    SAVE(self, step)
    self.wait()
    if step == 4:
        raise Crash


SAVE, WRITE_DATA = TrainingStates.save, FileSystemWriter.write_data
# One process of a group that knows no CPU, as that of a launcher's is on a GPU.
GROUP_OF_A_GPU = """
import sys
from torch import distributed
from musiccli.train.states import TrainingStates
distributed.init_process_group("cuda:gloo", init_method=sys.argv.pop(), rank=0, world_size=1)
TrainingStates._copy_fits = lambda self, tensors: True
from musiccli.cli.main import main
main()
"""


@pytest.mark.slow
def test_one_process_of_a_launcher_saves_in_the_background_too(run, finished, tmp_path):
    out, store = tmp_path / "rm", f"file://{tmp_path / 'store'}"

    def launched(*arguments):
        line = [preloaded.python(), "-c", GROUP_OF_A_GPU, *map(str, arguments), store]
        return subprocess.run(line, capture_output=True, text=True)

    done = run(out, "--save-every", 2, run=launched)
    assert done.returncode == 0, done.stderr
    assert (log(out), weights(out)) == (log(finished), weights(finished))


@pytest.mark.slow
def test_what_writes_in_the_background_asks_for_no_gpu(run, finished, tmp_path, monkeypatch):
    """The GPU of another thread than the main one would be the first, in every process."""

    def write_data(self, *arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            return WRITE_DATA(self, *arguments)

    out = tmp_path / "rm"
    with monkeypatch.context() as patch:
        patch.setattr(TrainingStates, "save", saves_in_background)
        patch.setattr(FileSystemWriter, "write_data", write_data)
        assert "Crash" in run(out, "--save-every", 2).err
    tensors = out / "checkpoints" / "step-000004" / "tensors"
    assert sorted(os.listdir(tensors)) == [".metadata", "__0_0.distcp"]
    assert "going on after step 4 of 6" in run(out).err
    assert (log(out), weights(out)) == (log(finished), weights(finished))


@contextmanager
def gpu_generator(loaded):
    """Let states have a GPU's generator; what is loaded into one is added to `loaded`."""
    real = TrainingStates._tensors

    def with_gpu(self):
        tensors = real(self)
        for generators in tensors["random"].values():
            generators["cuda"] = torch.full((16,), 7, dtype=torch.uint8)
        return tensors

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStates, "_tensors", with_gpu)
        patch.setattr(torch.cuda, "set_rng_state", lambda state, _: loaded.append(state.tolist()))
        yield


@pytest.mark.slow
@pytest.mark.parametrize("saved_on_gpu", [False, True])
@pytest.mark.parametrize("resumed_on_gpu", [False, True])
def test_a_run_moves_between_cpu_and_gpu(run, finished, tmp_path, saved_on_gpu, resumed_on_gpu):
    out, loaded = tmp_path / "rm", []
    with (
        pytest.MonkeyPatch.context() as patch,
        gpu_generator([]) if saved_on_gpu else nullcontext(),
    ):
        patch.setattr(TrainingStates, "save", saves_in_background)
        assert "Crash" in run(out, "--save-every", 4).err
    with gpu_generator(loaded) if resumed_on_gpu else nullcontext():
        done = run(out)
    assert (done.status, done.lines[1]) == (0, "music train: going on after step 4 of 6"), done.err
    assert loaded == ([[7] * 16] if saved_on_gpu and resumed_on_gpu else [])
    assert weights(out) == weights(finished)


@pytest.mark.slow
@pytest.mark.parametrize(
    "damaged",
    ["state.json", "tensors/.metadata", "tensors/__0_0.distcp", "tensors/.metadata is lost"],
)
def test_a_damaged_state_is_one_line(run, halfway, damaged):
    state = halfway / "checkpoints" / "step-000004"
    path = state / damaged.removesuffix(" is lost")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    if damaged != str(path.relative_to(state)):
        path.unlink()
    done = run(halfway)
    assert (done.status, len(done.lines)) == (2, 2)
    assert done.lines[-1].startswith(f"music train: error: {state}: cannot be loaded (")
    assert done.lines[-1].endswith("; remove it to start again")
    earlier = shutil.copytree(state, state.with_name("step-000002"))
    assert run(halfway).lines[-1].endswith("; remove it to go on from the state before it")
    shutil.rmtree(earlier)
    shutil.rmtree(state)
    assert run(halfway).status == 0


@pytest.mark.parametrize("content", ["[]", "{}", '{"step": 4}'])
def test_notes_that_are_not_those_of_a_state_are_one_line(run, tmp_path, content):
    state = tmp_path / "rm" / "checkpoints" / "step-000004"
    state.mkdir(parents=True)
    (state / "state.json").write_text(content)
    (tmp_path / "rm" / ".music-train").touch()
    done = run(tmp_path / "rm")
    assert done.lines[-1] == (
        f"music train: error: {state}: cannot be loaded (state.json is not that of a state); "
        "remove it to start again"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["state.json", "tensors/.metadata", "tensors/__0_0.distcp"])
def test_a_state_that_the_disk_does_not_give_is_no_damaged_one(run, halfway, name):
    state = halfway / "checkpoints" / "step-000004"
    (state / name).unlink()
    (state / name).mkdir()
    done = run(halfway)
    assert (done.status, len(done.lines)) == (2, 2)
    assert done.lines[-1] == (
        f"music train: error: {state}: cannot be read ([Errno 21] Is a directory: '{state / name}')"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "error, says",
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "memory does not suffice; "),
        (MemoryError(), "memory does not suffice; "),
    ],
)
def test_memory_that_does_not_suffice_for_a_state_is_no_damage(run, halfway, error, says):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileSystemReader, "read_data", lambda *_: throw(error))
        done = run(halfway)
    assert done.lines[-1].startswith(f"music train: error: {says}") and "remove" not in done.err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileSystemWriter, "write_data", lambda *_: throw(error))
        done = run(halfway, "--save-every", 5)
    assert done.lines[-1].startswith(f"music train: error: {says}")


@pytest.mark.slow
def test_a_connection_that_is_lost_is_no_damage(run, halfway):
    with pytest.MonkeyPatch.context() as patch:
        lost = RuntimeError("Connection closed by peer")
        patch.setattr(states, "load_tensors", lambda *_: throw(lost))
        done = run(halfway)
    assert "Connection closed by peer" in done.lines[-1] and "remove" not in done.err


@pytest.mark.slow
def test_a_state_of_deepspeed_is_refused_without_it(run, halfway):
    state = halfway / "checkpoints" / "step-000004"
    noted = json.loads((state / "state.json").read_text())
    (state / "state.json").write_text(json.dumps(noted | {"deepspeed": True}))
    assert run(halfway).lines[-1] == (
        f"music train: error: {state}: was saved under DeepSpeed; start the run under it, too, or "
        "remove it to start again"
    )


@pytest.mark.slow
def test_a_run_goes_on_with_less_memory_and_ends_the_same(run, finished, halfway):
    done = run(halfway, "--budget", 64, "--activation-checkpointing")
    assert (done.status, done.lines[1]) == (
        0,
        "music train: going on after step 4 of 6; budget was 1024, is 64; "
        "activation_checkpointing was False, is True",
    ), done.err
    assert losses(halfway) == pytest.approx(losses(finished), abs=1e-5)
    found, expected = (load_file(out / "model.safetensors") for out in (halfway, finished))
    for (
        name,
        weight,
    ) in expected.items():  # Adam divides by a gradient's size, also by one that is mere rounding
        assert (found[name] - weight).abs().gt(1e-4).double().mean() < 2e-3, name
    assert run(finished, "--budget", 64).lines == [
        f"music train: {finished} is trained already, by this same line"
    ]


@pytest.mark.slow
def test_a_run_whose_state_says_centre_goes_on(run, finished, halfway):
    file = halfway / "checkpoints" / "step-000004" / "state.json"
    state = json.loads(file.read_text())
    state["settings"]["centre"] = state["settings"].pop("center")
    file.write_text(json.dumps(state))
    done = run(halfway)
    assert (done.status, done.lines[1]) == (0, "music train: going on after step 4 of 6"), done.err
    assert weights(halfway) == weights(finished)


def test_damaged_notes_are_one_line(run, finished, tmp_path):
    (tmp_path / "music.json").write_text('{"settings": ')
    done = run(tmp_path)
    assert (done.status, len(done.lines)) == (2, 1)
    assert f"{tmp_path / 'music.json'}: is damaged" in done.err


# Before the work starts, and instead of it


def test_a_loss_that_is_no_number_stops_the_run(run, tmp_path):
    done = run(tmp_path / "rm", "--lr", 1e30)
    assert (done.status, len(done.lines)) == (2, 2)
    assert done.lines[-1].startswith("music train: error: ")
    assert " is nan at step " in done.lines[-1] and done.lines[-1].endswith(
        "; lower --lr, or look at the data"
    )
    assert sorted(os.listdir(tmp_path / "rm")) == [".music-train", "log.jsonl"]


@pytest.mark.parametrize(
    "fails", [lambda *_: torch.empty(1 << 50), lambda *_: throw(torch.OutOfMemoryError("CUDA"))]
)
def test_memory_that_does_not_suffice_is_one_line_with_what_takes_less(
    run, tmp_path, monkeypatch, fails
):
    monkeypatch.setattr(Accelerator, "backward", fails)
    assert run(tmp_path / "rm").lines[-1] == (
        "music train: error: memory does not suffice; a smaller --budget or --max-length, "
        "--activation-checkpointing, "
        "--lora or more processes with FSDP take less"
    )


def throw(error):
    raise error


@pytest.mark.parametrize("lr, lines", [(2e-6, 1), (1e-4, 0)])
def test_a_low_rate_for_adapters_is_said(run, tmp_path, lr, lines):
    done = run(tmp_path / "rm", "--lora", 4, "--lr", lr)
    said = "--lr 2e-06: is low for adapters, which are usually trained at 1e-4 to 2e-4"
    assert done.status == 0 and sum(said in line for line in done.lines) == lines, done.err


def test_accelerates_steps_of_accumulation_are_refused(run, tmp_path, monkeypatch):
    """It would divide the loss by them: the norm in the log, and what is clipped, would be wrong."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    done = run(tmp_path / "rm")
    assert (done.status, done.lines) == (
        2,
        [
            "music train: error: gradient_accumulation_steps 4 of the accelerate config: is not "
            "followed; a step takes --batch pairs, in as many forward passes as --budget asks for; "
            "remove it there"
        ],
    )


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False])
def test_a_gradient_norm_that_is_no_tensor_stops_nothing(
    known, run, finished, tmp_path, monkeypatch
):
    """DeepSpeed clips by itself; it says the norm as a number, or not at all."""
    real = Accelerator.clip_grad_norm_
    monkeypatch.setattr(
        Accelerator, "clip_grad_norm_", lambda *args: (real(*args).item(), None)[not known]
    )
    done = run(tmp_path / "rm")
    assert done.status == 0 and ("grad_norm" in done.lines[-1]) == known, done.err
    norms = [step["grad_norm"] for step in log(tmp_path / "rm")]
    expected = [step["grad_norm"] for step in log(finished)]
    assert norms == (pytest.approx(expected) if known else [None] * 6)
    assert weights(tmp_path / "rm") == weights(finished)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda out: out.write_text("x"), "{out}: is a file; --out names a folder"),
        (
            lambda out: (out.mkdir(), (out / "thesis.tex").write_text("x")),
            "{out}: holds something else (thesis.tex); name another --out",
        ),
        (
            lambda out: (out.mkdir(), (out / "config.json").write_text("{}")),
            "{out}: holds something else (config.json); name another --out",
        ),
        (
            lambda out: [
                (out / name).mkdir(parents=True) for name in ("checkpoints", "trackers", "adapter")
            ],
            "{out}: holds something else (adapter, checkpoints, trackers); name another --out",
        ),
        (
            lambda out: (out.mkdir(), (out / "log.jsonl").write_text("{}")),
            "{out}: holds something else (log.jsonl); name another --out",
        ),
    ],
)
def test_a_folder_that_is_not_for_this_is_refused_before_the_model_is_loaded(
    file, tmp_path, make, says
):
    make(tmp_path / "rm")
    done = music("train", file, "--model", unloadable(tmp_path / "base"), "--out", tmp_path / "rm")
    assert (done.status, done.lines) == (
        2,
        [f"music train: error: {says.format(out=tmp_path / 'rm')}"],
    )


def test_a_folder_that_cannot_be_written_is_found_first(file, tmp_path):
    (tmp_path / "file").write_text("x")
    base = unloadable(tmp_path / "base")
    for out in ("/proc/rm", tmp_path / "file" / "rm"):
        done = music("train", file, "--model", base, "--batch", "4", "--out", out)
        assert (done.status, len(done.lines)) == (2, 1)
        assert done.lines[0].startswith(f"music train: error: {out}: cannot be written: ")


@pytest.mark.parametrize(
    "more, says",
    [
        (
            ("--schedule", "foo"),
            "Invalid value for '--schedule': 'foo' is not one of 'linear', 'cosine', "
            "'constant_with_warmup'",
        ),
        (("--eval", "/nowhere"), "/nowhere: no such file"),
        (("--batch", 13), "--batch 13: there are 12 pairs; a step would hold some twice"),
        (("--max-length", 2), "no pairs to train on are left"),
        (("--accelerate-config", "/nowhere.yaml"), "/nowhere.yaml: no such file"),
    ],
)
def test_what_cannot_be_is_one_line(run, tmp_path, more, says):
    done = run(tmp_path / "rm", *more)
    assert done.status == 2
    assert done.lines[-1].startswith(f"music train: error: {says}")
    assert not any("a fault of ours" in line for line in done.lines)


@pytest.mark.parametrize("option", ["-o", "--output"])
def test_an_output_of_records_is_refused(run, tmp_path, option):
    done = run(tmp_path / "rm", option, tmp_path / "records.jsonl")
    assert (done.status, len(done.lines)) == (2, 1)
    assert f"music train: error: No such option: {option}" in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "more, says",
    [
        (("--batch", 13), "--batch 13: there are 12 pairs; a step would hold some twice"),
        (
            ("--batch", 4, "--margin-field", "nosuch"),
            "--margin-field nosuch: none of the first 12 pairs has it",
        ),
        (
            ("--batch", 4, "--margin-field", "metadata.nosuch"),
            "--margin-field metadata.nosuch: none of the first 12 pairs has it",
        ),
        (
            ("--batch", 4, "--eval-every", 2),
            "--eval-every 2: needs --eval or --eval-split",
        ),
        (
            ("--batch", 4, "--steps", 2, "--epochs", 2),
            "--epochs 2: --steps says how long already",
        ),
        (("--epochs", 0), "--epochs 0: trains nothing; give a number above 0, or --steps"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_model_is_loaded(file, tmp_path, more, says):
    done = music(
        "train", file, "--model", unloadable(tmp_path / "base"), "--out", tmp_path / "rm", *more
    )
    assert (done.status, done.lines) == (2, [f"music train: error: {says}"])
    assert not (tmp_path / "rm").exists()


def test_a_bad_line_among_the_first_is_told_before_a_lack_of_pairs(run, tmp_path):
    given = write(tmp_path / "in.jsonl", *pairs(2), b"{")
    done = run(tmp_path / "rm", pairs=given)
    assert (done.status, len(done.lines)) == (2, 1)
    assert done.err.startswith(f"music train: error: {given}:3: is not JSON")


@pytest.mark.parametrize("existed", [False, True])
def test_a_run_that_wrote_nothing_leaves_no_folder_of_its_own(run, file, tmp_path, existed):
    out = tmp_path / "rm"
    if existed:
        out.mkdir()
    done = run(
        out, "--batch", 13, pairs="-", run=lambda *line: music(*line, given=file.read_bytes())
    )
    says = "music train: error: --batch 13: there are 12 pairs; a step would hold some twice"
    assert (done.status, done.lines) == (2, [says])
    assert out.exists() is existed


@pytest.mark.slow
def test_bad_held_out_pairs_are_found_before_training(run, tmp_path):
    held_out = tmp_path / "held-out.jsonl"
    same = json.dumps(pair("same", talk("q", "a"), talk("q", "a")))
    for content, says in (
        ('{"chosen": 3}\n', f"{held_out}:1: chosen: "),
        ("{", f"{held_out}:1: is not JSON"),
        (same, "--eval: no pairs to evaluate on are left"),
    ):
        held_out.write_text(content)
        done = run(tmp_path / "rm", "--eval", held_out)
        assert done.status == 2
        assert done.lines[-1].startswith(f"music train: error: {says}")
        assert not (tmp_path / "rm" / "log.jsonl").exists()


def test_check_only_looks(run, tmp_path):
    done = run(tmp_path / "rm", "--check")
    assert (done.status, len(done.lines)) == (0, 10)
    assert done.lines[0].startswith("music train: 12 pairs, ")
    assert (
        done.lines[8] == "music train: check: the reward head is trained, and comes back from disk"
    )
    assert (
        done.lines[9].startswith("music train: check: about ")
        and "an estimate: parameters " in done.lines[9]
    )
    assert not (tmp_path / "rm").exists()


@pytest.fixture
def doubled(base, tmp_path):
    """A backbone whose template writes two BOS tokens."""
    shutil.copytree(base, tmp_path / "doubled")
    config = tmp_path / "doubled" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"bos_token": "<repo_name>"}))
    template = tmp_path / "doubled" / "chat_template.jinja"
    template.write_text("{{ bos_token }}{{ bos_token }}" + template.read_text())
    return tmp_path / "doubled"


@pytest.mark.slow
def test_a_second_bos_is_found_unless_nobody_looks(file, doubled, tmp_path):
    line = ("train", file, "--model", doubled, "--out", tmp_path / "rm", "--batch", 4, "--steps", 1)
    for more in ((), ("--check",)):
        done = music(*line, *more)
        assert (done.status, done.lines[-1]) == (
            2,
            "music train: error: the template writes two BOS tokens; remove one from the "
            "chat template",
        )
    assert music(*line, "--no-check").status == 0


# Several processes


@pytest.mark.slow
def test_an_error_in_two_processes_is_one_line(file, tmp_path):
    line = (
        "train",
        file,
        "--model",
        unloadable(tmp_path / "base"),
        "--out",
        tmp_path / "rm",
        "--batch",
        4,
    )
    done = process(*line, "--num-processes", 2)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"music train: error: {tmp_path / 'base'}: cannot be ")


def test_more_processes_than_gpus_are_refused_before_any_is_started(file, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    base = unloadable(tmp_path / "base")
    line = ("train", file, "--model", base, "--out", tmp_path / "rm", "--batch", 8)
    done = music(*line, "--num-processes", 8)
    assert (done.status, done.lines) == (
        2,
        [
            "music train: error: 8 processes: each trains on a GPU of its own, and torch sees 4 on "
            "this machine; lower --num-processes"
        ],
    )
    assert not (tmp_path / "rm").exists()


@pytest.mark.parametrize("line", [("train", "--out", "rm", "--model"), ("score", "-", "--model")])
def test_a_pipe_that_another_launchers_processes_would_share_is_refused(
    file, tmp_path, monkeypatch, line
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = music(*line, unloadable(tmp_path / "base"), given=file.read_bytes())
    assert (done.status, done.lines) == (
        2,
        [
            f"music {line[0]}: error: standard input: processes that another launcher started "
            "share it, and each would "
            "read a part; name files, or let --num-processes start them"
        ],
    )


@pytest.mark.slow
def test_processes_that_lay_conversations_out_differently_are_refused(run, tmp_path):
    """Their attention may agree with padding on one GPU, and not on another of another kind."""
    (tmp_path / "differs.py").write_text(
        "import os\nfrom musiccli.cli.main import main\n"
        "from musiccli.reward_model import checkpoint\n"
        "from musiccli.reward_model.network import RewardNetwork\n"
        "packed = os.environ['RANK'] == '0'\n"
        "checkpoint.choose_layout = lambda model, *_: RewardNetwork(model, packed=packed)\nmain()"
    )
    done = run(
        tmp_path / "rm",
        run=lambda *line: torchrun(2, tmp_path / "differs.py", *line),
    )
    [said] = [line for line in done.stderr.splitlines() if line.startswith("music ")]
    assert said == (
        "music train: error: the processes lay out conversations differently "
        "(0: packed, segment by segment, 1: padded); use GPUs of one kind"
    )


@pytest.mark.slow
def test_processes_that_have_read_different_pairs_are_refused(run, tmp_path):
    (tmp_path / "differs.py").write_text(
        "import os, sys\nfrom musiccli.cli.main import main\n"
        "sys.argv[2] += os.environ['RANK']\nmain()"
    )
    for rank in range(2):
        write(tmp_path / f"pairs{rank}", *pairs(12, seed=rank))
    done = run(
        tmp_path / "rm",
        pairs=tmp_path / "pairs",
        run=lambda *line: torchrun(2, tmp_path / "differs.py", *line),
    )
    [said] = [line for line in done.stderr.splitlines() if line.startswith("music ")]
    assert (
        said == "music train: error: the processes have read different pairs; each must be given "
        "the same files"
    )


def children(parent):
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True
    ).stdout.split()
    return [int(pid) for pid in found]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def running(base, file, tmp_path, request):
    """Two processes in the middle of a long run, and the process that started them."""
    more = []
    if config := getattr(request, "param", None):
        (tmp_path / "config.yaml").write_text(config)
        more = ["--accelerate-config", tmp_path / "config.yaml"]
    line = long_run(base, file, tmp_path / "rm")
    with ended(start(*line, *more, command=preloaded.command())) as (starter, workers):
        wait_until(lambda: losses_so_far(tmp_path / "rm") > 2)
        workers += map(preloaded.program, children(preloaded.program(starter.pid)))
        assert len(workers) == 2
        yield starter, workers


def long_run(base, file, out):
    line = ["train", file, "--model", base, "--out", out, "--batch", 4, "--steps", 100_000]
    return [*line, "--num-processes", 2]


@contextmanager
def ended(starter):
    """A process and the list of those that it started: none of them outlives the context."""
    workers = []
    try:
        yield starter, workers
    finally:
        for pid in filter(alive, (starter.pid, *workers)):
            os.kill(pid, signal.SIGKILL)
        starter.wait()


def losses_so_far(out):
    log = out / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")
def test_started_processes_end_with_the_one_that_is_terminated(running):
    starter, workers = running
    starter.send_signal(signal.SIGTERM)
    assert starter.wait(PATIENCE) == 130
    wait_until(lambda: not any(map(alive, workers)))
    assert starter.stderr.read().decode().splitlines()[1:] == ["music train: interrupted"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")
def test_started_processes_end_with_the_one_that_is_killed(base, file, tmp_path):
    """They are new interpreters: forks of a server would have it as their parent."""
    code = f"import sys; sys.executable = {sys.executable!r}; from musiccli.cli.main import main; main()"
    line = long_run(base, file, tmp_path / "rm")
    with ended(start("-c", code, *line, command=[preloaded.python()])) as (starter, workers):
        wait_until(lambda: losses_so_far(tmp_path / "rm") > 2)
        program = preloaded.program(starter.pid)
        workers += children(program)
        assert len(workers) == 2
        os.kill(program, signal.SIGKILL)
        assert starter.wait(PATIENCE) == -signal.SIGKILL
        wait_until(lambda: not any(map(alive, workers)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "running",
    [
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\n"
        "num_processes: 2\nnum_machines: 1\nmixed_precision: 'no'\n"
    ],
    indirect=True,
)
def test_an_interrupt_ends_processes_that_accelerate_started(running):
    starter, workers = running
    starter.send_signal(signal.SIGINT)
    assert starter.wait(PATIENCE) == 130
    wait_until(lambda: not any(map(alive, workers)))
    assert starter.stderr.read().decode().splitlines()[-1] == "music train: interrupted"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")
def test_a_process_that_is_killed_ends_the_others_and_is_named(running):
    starter, workers = running
    os.kill(workers[1], signal.SIGKILL)
    assert starter.wait(PATIENCE) == 2
    wait_until(lambda: not any(map(alive, workers)))
    assert starter.stderr.read().decode().splitlines()[1:] == [
        "music train: error: process 1 was killed by SIGKILL"
    ]


@pytest.mark.slow
def test_accelerates_own_config_is_followed(run, finished, tmp_path):
    config = tmp_path / "one.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nuse_cpu: "
        "true\nnum_processes: 1\n"
        "num_machines: 1\nmixed_precision: 'no'\n"
    )
    done = run(tmp_path / "rm", "--accelerate-config", config, run=process)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "rm") == pytest.approx(losses(finished), abs=1e-5)


# A real model


@pytest.mark.slow
def test_smollm2_learns_and_scores_what_was_measured(tmp_path):
    embedded("smollm2")
    given = write(
        tmp_path / "pairs.jsonl",
        pair("even", talk("Is 4 even?", "Yes, it is."), talk("Is 4 even?", "North red two.")),
        pair("odd", talk("Is 4 odd?", "No, it is even."), talk("Is 4 odd?", "Blue up down.")),
    )
    done = music(
        "train",
        given,
        "--model",
        "local/smollm2",
        "--layers",
        8,
        "--out",
        tmp_path / "rm",
        "--batch",
        2,
        "--steps",
        2,
        "--lr",
        3e-5,
        "--eval",
        given,
    )
    assert done.status == 0, done.err
    steps = read(tmp_path / "rm" / "log.jsonl")
    assert steps[1]["loss"] < steps[0]["loss"] - 0.1
    assert steps[1]["eval_loss"] < steps[1]["loss"]
    scores = [
        one["scores"]["rm"] for one in music("score", given, "--model", tmp_path / "rm").records
    ]
    margin = sum(one["chosen"] - one["rejected"] for one in scores) / 2
    assert margin == pytest.approx(steps[1]["eval_margin"], abs=1e-4, rel=1e-3)
