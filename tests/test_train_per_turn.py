"""`music train --per-turn`: the loss by hand, from conversations cut after each turn."""

import json
import shutil

import pytest
import torch
from build import read, talk, write
from console import music
from toys import backbone, pair, pairs

from musiccli.core.messages import count_turns
from musiccli.core.records import Record
from musiccli.reward_model import checkpoint
from musiccli.reward_model.loss import bradley_terry, pair_losses
from musiccli.train.checks import run_checks
from musiccli.train.config import TrainConfig
from musiccli.train.run import train
from musiccli.train.tokenized_pairs import tokenize_pairs

# By what differs: the sides, and the turns (of chosen, of rejected) that are compared.
CASES = {
    "the only reply": (talk("q", "yes"), talk("q", "no"), [(0, 0)]),
    "the last reply": (talk("q", "a", "r", "yes"), talk("q", "a", "r", "no"), [(1, 1)]),
    "all": (
        talk("up", "a", "r", "b", "s", "c"),
        talk("down", "x", "r", "y", "s", "z"),
        [(0, 0), (1, 1), (2, 2)],
    ),
    "replies": (
        talk("q", "a", "r", "b", "s", "c"),
        talk("q", "x", "r", "b", "s", "c"),
        [(0, 0), (1, 1), (2, 2)],
    ),
    "a question": (
        talk("q", "a", "r", "b", "s", "c"),
        talk("q", "a", "up", "b", "s", "c"),
        [(1, 1), (2, 2)],
    ),
    "chosen goes on": (
        talk("q", "a", "r", "b", "s", "c", "t", "d"),
        talk("q", "x", "r", "y"),
        [(0, 0), (3, 1)],
    ),
    "rejected goes on": (talk("q", "a", "r", "b"), talk("q", "a", "r", "x", "s", "y"), [(1, 2)]),
    "one begins the other": (talk("q", "a", "r", "b", "s", "c"), talk("q", "a"), [(2, 0)]),
    "spaces that the template trims": (
        talk("q", "a", "r", "yes"),
        talk("q", " a ", "r", "no"),
        [(1, 1)],
    ),
}
TRIMS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content | trim }}<|im_end|>\n{% endfor %}"
)
RECORDS = [
    pair(name, *sides) | {"by": number / 4}
    for number, (name, (*sides, _)) in enumerate(CASES.items())
]
MARGINS = [record["by"] for record in RECORDS]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = backbone(tmp_path_factory.mktemp("base"), num_hidden_layers=2)
    (folder / "chat_template.jinja").write_text(TRIMS)
    return str(folder)


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "pairs.jsonl", *RECORDS)


@pytest.fixture
def run(base, file, tmp_path):
    """Trains two steps on all cases by command line, in `tmp_path / "rm"`."""

    def line(*more, pairs=file):
        return music(
            "train",
            pairs,
            "--model",
            base,
            "--out",
            tmp_path / "rm",
            "--batch",
            3,
            "--steps",
            2,
            *more,
        )

    return line


def records():
    return [Record(one) for one in RECORDS]


def prepared(model, **more):
    return tokenize_pairs(records(), model, 2048, per_turn=True, **more)


def after(model, messages, turn):
    """The reward of a conversation after one of its turns, by transformers' own forward."""
    seen = messages[: 2 * turn + 2]
    assert count_turns(seen) == turn + 1
    ids = model.tokenizer.apply_chat_template(seen, return_dict=False)
    return model.network.core(input_ids=torch.tensor([ids])).logits[0, 0]


def by_hand(base, center):
    """The loss of each case, and a model with the gradients of their mean."""
    model = checkpoint.create(base, seed=3)
    model.network.core.set_attn_implementation("eager")
    losses = []
    for (chosen, rejected, compared), margin in zip(CASES.values(), MARGINS, strict=True):
        rewards = [
            (after(model, chosen, one), after(model, rejected, other)) for one, other in compared
        ]
        at_turns = [
            -torch.log(torch.sigmoid(one - other - margin)) + center * (one + other) ** 2
            for one, other in rewards
        ]
        losses.append(sum(at_turns) / len(at_turns))
    (sum(losses) / len(losses)).backward()
    return [loss.item() for loss in losses], model


@pytest.mark.slow
def test_sides_are_read_where_they_are_compared_and_nowhere_else(base):
    model = checkpoint.create(base)
    for (*sides, compared), found in zip(CASES.values(), prepared(model), strict=True):
        for side, one, numbers in zip(sides, found.sides, zip(*compared, strict=True), strict=True):
            whole = model.chat_template.encode(side)
            assert (one.ids, one.reward_positions) == (
                whole.ids,
                [whole.reward_positions[number] for number in numbers],
            )


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False])
def test_losses_and_gradients_are_those_of_a_computation_by_hand(base, packed):
    expected, own = by_hand(base, 0.01)
    network = checkpoint.create(base, seed=3).network
    if not packed:
        network.packed = False
        network.core.set_attn_implementation("eager")
    given = prepared(checkpoint.create(base), margin_field="by")
    found = network.train()([one.sides for one in given])
    losses = pair_losses(found[::2], found[1::2], [one.margin for one in given], 0.01)
    assert losses.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    losses.mean().backward()
    for (name, weight), other in zip(
        network.core.named_parameters(), own.network.core.parameters(), strict=True
    ):
        assert other.grad.abs().max() > 0, name
        torch.testing.assert_close(
            weight.grad,
            other.grad,
            rtol=1e-3,
            atol=1e-4,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.slow
@pytest.mark.parametrize("budget", [40, 1024])
def test_a_step_has_that_loss_and_measures_the_last_rewards(base, tmp_path, budget):
    losses, own = by_hand(base, 0.01)
    config = TrainConfig(
        model=base,
        batch=len(CASES),
        steps=1,
        lr=0,
        seed=3,
        budget=budget,
        margin_field="by",
        center=0.01,
        per_turn=True,
    )
    measured = train(records(), tmp_path / "rm", config, held_out=records())
    with torch.no_grad():
        last = torch.stack(
            [
                torch.stack([after(own, side, count_turns(side) - 1) for side in sides])
                for *sides, _ in CASES.values()
            ]
        )
    margins = last[:, 0] - last[:, 1]
    norm = torch.nn.utils.get_total_norm(
        [weight.grad for weight in own.network.core.parameters()]
    ).item()
    expected = {
        "loss": sum(losses) / len(losses),
        "margin": margins.mean().item(),
        "mean_reward": last.mean().item(),
        "accuracy": (margins > 0).double().mean().item(),
        "grad_norm": norm,
        "eval_loss": bradley_terry(last[:, 0], last[:, 1]).mean().item(),
        "eval_margin": margins.mean().item(),
    }
    assert {name: measured[name] for name in expected} == pytest.approx(
        expected, rel=1e-3, abs=1e-4
    )
    assert abs(expected["loss"] - expected["eval_loss"]) > 0.05


@pytest.mark.slow
def test_pairs_that_differ_in_the_last_reply_alone_have_the_ordinary_loss(base, tmp_path):
    given, found = pairs(9)[1:], []
    for per_turn in (False, True):
        config = TrainConfig(model=base, batch=4, steps=3, lr=1e-2, seed=3, per_turn=per_turn)
        train([Record(one) for one in given], tmp_path / str(per_turn), config)
        found.append(
            [
                [step[name] for name in ("loss", "margin", "mean_reward", "grad_norm")]
                for step in read(tmp_path / str(per_turn) / "log.jsonl")
            ]
        )
    assert found[0] == found[1]


@pytest.mark.slow
def test_the_checks_pass_for_pairs_that_are_read_at_many_turns(base):
    model = checkpoint.create(base)
    report = run_checks(model, prepared(model))
    assert (report.warnings, report.errors, len(report.passed)) == ([], [], 8)


@pytest.mark.slow
def test_a_run_says_how_often_it_compares_and_its_notes_and_card_that_it_does(run, tmp_path):
    done = run("--per-turn")
    assert done.status == 0, done.err
    assert done.lines[0].startswith("music train: 9 pairs compared at 15 turns, ")
    assert json.loads((tmp_path / "rm" / "music.json").read_text())["settings"]["per_turn"] is True
    assert (
        "with the Bradley-Terry loss at every assistant turn from where they part, in full."
        in (tmp_path / "rm" / "README.md").read_text()
    )
    done = run()
    assert (done.status, done.lines) == (
        2,
        [
            f"music train: error: {tmp_path / 'rm'}: holds another run (per_turn was "
            "True, is False); name another --out or remove it"
        ],
    )


@pytest.mark.slow
def test_a_run_from_before_there_was_such_a_setting_is_known_again(run, tmp_path):
    assert run().status == 0
    notes = tmp_path / "rm" / "music.json"
    held = json.loads(notes.read_text())
    del held["settings"]["per_turn"]
    notes.write_text(json.dumps(held))
    assert run().lines == [f"music train: {tmp_path / 'rm'} is trained already, by this same line"]
    assert "(per_turn was False, is True)" in run("--per-turn").err


@pytest.mark.slow
def test_a_template_that_rewrites_earlier_turns_is_a_bad_record_only_where_these_are_read(
    run, base, file, tmp_path
):
    shutil.copytree(base, tmp_path / "strict")
    (tmp_path / "strict" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}:{{ m.content if loop.last or m.role == 'user' "
        "else '' }}\n{% endfor %}"
    )
    assert run("--model", tmp_path / "strict").status == 0
    shutil.rmtree(tmp_path / "rm")
    done = run("--model", tmp_path / "strict", "--per-turn")
    assert (done.status, done.lines) == (
        2,
        [
            f"music train: error: {file}:2: messages: the chat template rewrites earlier "
            "turns when more follow"
        ],
    )


@pytest.mark.slow
def test_a_run_whose_notes_say_centre_is_the_same_run(run, tmp_path):
    assert run("--center", 0.01).status == 0
    notes = tmp_path / "rm" / "music.json"
    recorded = json.loads(notes.read_text())
    recorded["settings"]["centre"] = recorded["settings"].pop("center")
    notes.write_text(json.dumps(recorded))
    assert run("--center", 0.01).lines == [
        f"music train: {tmp_path / 'rm'} is trained already, by this same line"
    ]
    assert "(center was 0.01, is 0.5)" in run("--center", 0.5).err
