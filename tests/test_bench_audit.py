"""The contrast audit: checks of each contrasted turn, judges of it, and label noise."""

from collections import Counter
from itertools import zip_longest

import pytest
from build import call, lines, talk
from console import music
from openai_server import serve
from scripted import no_network

from musiccli.bench.audit import ContrastedTurns, check_contrast, metrics
from musiccli.bench.report.worst_records import WorstRecords
from musiccli.core.errors import RecordError
from musiccli.core.records import Record

SEED = ("Hello there.", "Hi.", "How do I boil an egg?")
CHOSEN = (*SEED, "Eight minutes in boiling water.", "And soft?", "Take it out after five minutes.")


def pair(*rejected: str, identifier: object = "p", **fields) -> Record:
    """A pair whose two last replies are contrasted, from the last rejected messages."""
    first, asked, second = rejected
    altered = {3: "How do I fry an egg?", 5: "How do I bake a potato?"}
    return Record(
        {
            "id": identifier,
            "chosen": talk(*CHOSEN),
            "rejected": talk(*SEED, first, asked, second),
            "contrast": [
                {"message": index, "instruction": text} for index, text in altered.items()
            ],
            **fields,
        },
        f"p.jsonl:{identifier}",
    )


PLAIN = pair(
    "Heat a pan with some oil.", "No, boil!", "Put it into the oven for an hour or so, at most."
)


def measured(*pairs: Record, said: dict | None = None) -> dict:
    """{(model, subset, metric): record}; `said` holds the winners of each turn by judge."""
    outcomes = said or {}

    def judge_pairs(turns):
        for turn, *winners_of_judges in zip_longest(turns, *outcomes.values()):
            votes = [
                {"judge": judge, "winner": winner}
                for judge, winners in zip(outcomes, winners_of_judges, strict=True)
                for winner in winners or ()
            ]
            if votes:
                yield turn | {"votes": votes}

    rows = metrics(
        map(check_contrast, pairs), judge_pairs=judge_pairs if said else None, judges=[*outcomes]
    )
    return {(row["model"], row["subset"], row["metric"]): row for row in rows}


def values(rows: dict, model: str, metric: str) -> dict:
    return {
        subset: row["value"]
        for (who, subset, name), row in rows.items()
        if (who, name) == (model, metric)
    }


def test_a_judge_sees_the_shared_history_at_the_fork_and_later_one_exchange():
    fork, later = ContrastedTurns().read([PLAIN], WorstRecords())
    assert (fork["id"], later["id"]) == ("p/3", "p/5")
    assert fork["chosen"] == talk(*CHOSEN[:4]) and fork["rejected"] == PLAIN["rejected"][:4]
    assert later["chosen"] == talk(*CHOSEN[4:]) and later["rejected"] == PLAIN["rejected"][4:]
    assert not any("fry" in str(turn) or "potato" in str(turn) for turn in (fork, later))


@pytest.mark.parametrize(
    "reply, name",
    [
        ("The modified instruction asks for a fried egg.", "leak"),
        ("How do I fry an egg? In oil.", "leak"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("eight minutes, in boiling water", "same"),
    ],
)
def test_a_flaw_of_a_contrasted_reply_is_counted_at_its_turn(reply, name):
    rows = measured(pair(reply, "No, boil!", "In the oven."), PLAIN)
    assert values(rows, "contrast", name) == {"all": 0.25, "turn=1": 0.5, "turn=2": 0.0}
    others = {"leak", "refusal", "same"} - {name}
    assert {values(rows, "contrast", other)["all"] for other in others} == {0.0}


def test_an_instruction_that_was_not_rewritten_is_counted():
    bad = pair("Heat some oil.", "How do I bake a potato?", "In the oven.")
    assert values(measured(bad), "contrast", "not_rewritten") == {
        "all": 0.5,
        "turn=1": 0.0,
        "turn=2": 1.0,
    }


def test_an_instruction_that_is_a_part_of_the_users_message_was_not_rewritten():
    bad = pair("Heat some oil.", "I have a pan. How do I bake a potato?", "In the oven.")
    assert values(measured(bad), "contrast", "not_rewritten")["turn=2"] == 1.0


def test_turns_are_counted_from_the_fork():
    one = pair("Heat some oil.", "No!", "In the oven.")
    one["contrast"] = one["contrast"][
        1:
    ]  # the first reply differs, but it is the second that is contrasted
    assert set(values(measured(one), "contrast", "leak")) == {"all", "turn=2"}


def test_lengths_are_ratios_and_what_a_blind_guess_gets():
    rows = measured(pair("x" * 62, "And?", "y" * 10))  # chosen: 31 and 31 characters
    one, other = 62 / 31, 10 / 31
    ratios = {"all": (one + other) / 2, "turn=1": one, "turn=2": other}
    assert values(rows, "contrast", "length_ratio") == pytest.approx(ratios)
    assert values(rows, "contrast", "rejected_shorter") == {"all": 0.5, "turn=1": 0, "turn=2": 1}
    assert values(rows, "baseline/longest", "accuracy") == {
        "all": 0.5,
        "turn=1": 0,
        "turn=2": 1,
        "conversations": 0,
    }
    assert values(rows, "baseline/shortest", "accuracy") == {
        "all": 0.5,
        "turn=1": 1,
        "turn=2": 0,
        "conversations": 1,
    }
    assert values(rows, "baseline/longest-last-reply", "accuracy") == {"conversations": 1}


def test_a_chosen_reply_of_calls_alone_has_no_ratio_of_lengths():
    one = pair("x" * 62, "And?", "y" * 10)
    index = one["contrast"][0]["message"]
    one["chosen"][index] = call("boil", minutes=8)
    ratios = values(measured(one), "contrast", "length_ratio")
    assert ratios == pytest.approx({"all": 10 / 31, "turn=2": 10 / 31})


def test_messages_that_the_token_limit_cut_are_counted_by_side():
    rows = measured(pair("Oil.", "And?", "Oven.", truncated={"chosen": [3], "rejected": [3, 5]}))
    assert values(rows, "contrast", "chosen_truncated") == {"all": 0.5, "turn=1": 1, "turn=2": 0}
    assert values(rows, "contrast", "rejected_truncated") == {"all": 1, "turn=1": 1, "turn=2": 1}


def test_label_noise_is_what_a_judge_prefers_wrongly_and_half_of_what_it_cannot_tell():
    pairs = [pair("Oil.", "And?", "Oven.", identifier=number) for number in range(4)]
    said = [
        ["chosen", "chosen"],
        ["rejected", "rejected"],
        ["tie", "tie"],
        ["chosen", "rejected"],
        [None, "chosen"],
        ["chosen", "chosen"],
        ["chosen", "tie"],
        None,
    ]
    rows = measured(*pairs, said={"j": said})
    expected = {
        "unreadable": 1 / 7,
        "prefers_chosen": 2 / 6,
        "prefers_rejected": 1 / 6,
        "tie": 2 / 6,
        "inconsistent": 1 / 6,
        "label_noise": (1 + 3 / 2) / 6,
    }
    assert {name: values(rows, "j", name)["all"] for name in expected} == pytest.approx(expected)
    assert rows["j", "all", "label_noise"]["count"] == 6


def test_intervals_hold_the_values_and_take_turns_of_one_prompt_together():
    pairs = [
        pair("Oil." * (number % 5 + 1), "And?", "Oven " * (number % 7 + 1), identifier=number)
        for number in range(40)
    ]
    for number, one in enumerate(pairs):
        for side in ("chosen", "rejected"):
            one[side][0]["content"] = f"Hello {number % 20}."
    rows = measured(*pairs)
    assert all(
        row["low"] <= row["value"] <= row["high"] for row in rows.values() if row["low"] is not None
    )
    everyone, apart = (
        rows["contrast", "all", "leak"],
        measured(*[pair("Oil.", "And?", "Oven.")] * 40),
    )
    assert everyone["high"] < apart["contrast", "all", "leak"]["high"]


@pytest.mark.parametrize("cut", [[3], "x", 5, {"chosen": 3}, {"rejected": None}])
def test_what_was_cut_is_checked_too(cut):
    done = music(
        "bench",
        "audit",
        "--on-error",
        "skip",
        given=lines(PLAIN | {"id": "bad", "truncated": cut}, PLAIN),
    )
    assert done.lines[0] == (
        "music bench audit: <stdin>:1: truncated: should name, for each side, the messages that "
        "were cut"
    )
    assert (done.status, done.records) == (1, music("bench", "audit", given=lines(PLAIN)).records)
    [one, other] = branches(PLAIN)
    done = music("bench", "audit", given=lines(one | {"truncated": {"chosen": [3]}}, other))
    assert (done.status, done.lines) == (
        2,
        ["music bench audit: error: <stdin>:1: truncated: is an object; it should be a list"],
    )


@pytest.mark.parametrize(
    "fields, field, problem",
    [
        ({"contrast": None}, "contrast", "is missing; music simulate writes it"),
        ({"contrast": "x"}, "contrast", "a list"),
        ({"contrast": [5]}, "contrast[0]", "a message's index"),
        ({"contrast": [{"message": 3}]}, "contrast[0]", "instruction"),
        (
            {"contrast": [{"message": 2, "instruction": "i"}]},
            "contrast[0].message",
            "an assistant's",
        ),
        (
            {"contrast": [{"message": 9, "instruction": "i"}]},
            "contrast[0].message",
            "an assistant's",
        ),
    ],
)
def test_a_record_without_a_contrast_is_named(fields, field, problem):
    with pytest.raises(RecordError) as raised:
        check_contrast(Record({**PLAIN, **fields}))
    assert raised.value.field == field and problem in str(raised.value)


def branches(one: Record) -> list[dict]:
    return [
        {
            "id": one["id"],
            "branch": side,
            "sample": 0,
            "seed_messages": 3,
            "messages": one[side],
            "contrast": one["contrast"] if side == "rejected" else [],
            **(
                {"faults": [{"message": 3, "fault": "contrast leak"}]} if side == "rejected" else {}
            ),
        }
        for side in ("chosen", "rejected")
    ]


def test_branches_give_the_figures_of_the_pairs_they_make_and_none_is_dropped():
    from_pairs = music("bench", "audit", given=lines(PLAIN))
    from_branches = music("bench", "audit", given=lines(*branches(PLAIN)))
    assert (from_pairs.status, from_branches.status) == (0, 0), from_branches.err
    assert from_branches.records == from_pairs.records != []
    assert "length alone" in from_pairs.err and "longest" in from_pairs.err


@pytest.mark.slow
def test_a_judge_is_asked_in_both_orders_and_never_told(monkeypatch, tmp_path):
    no_network(monkeypatch)
    monkeypatch.setenv("MUSIC_CACHE", str(tmp_path))

    def reply(body: dict) -> str:
        text = body["messages"][0]["content"]
        first = (
            text.index("Eight minutes") if "Eight minutes" in text else text.index("Take it out")
        )
        second = (
            text.index("Heat a pan") if "Heat a pan" in text else text.index("Put it into the oven")
        )
        return "Because.\n[[A]]" if first < second else "Because.\n[[B]]"

    with serve(reply=reply) as server:
        line = ("bench", "audit", "--judge", "openai/scripted", "--api-base", server.base_url)
        line += ("--html", tmp_path / "page.html")
        planned = music(*line, "--dry-run", given=lines(PLAIN))
        assert (planned.status, planned.out, server.calls) == (0, b"", 0), planned.err
        assert not (tmp_path / "page.html").exists()
        done = music(*line, given=lines(PLAIN))
    read = sum(len(body["messages"][0]["content"]) // 4 for body in server.requests)
    rows = [line.split() for line in planned.err.splitlines()]
    assert ["judge", "openai/scripted", "4", f"{read:,}", "1,364", "unknown"] in rows
    assert (done.status, server.calls) == (0, 4), done.err
    asked = [body["messages"][0]["content"] for body in server.requests]
    assert not any("fry" in text or "potato" in text or "contrast" in text for text in asked)
    assert Counter("How do I boil an egg?" in text for text in asked) == {True: 2, False: 2}
    noise = {row["subset"]: row["value"] for row in done.records if row["metric"] == "label_noise"}
    assert noise == {"all": 0.0, "turn=1": 0.0, "turn=2": 0.0}
    assert "openai/scripted in both orders" in done.err
    assert "<svg" in (tmp_path / "page.html").read_text() or "matplotlib is missing" in done.err


def test_a_dry_run_without_a_judge_is_refused():
    done = music("bench", "audit", "--dry-run", given=lines(PLAIN))
    assert (done.status, done.out) == (2, b"")
    assert "--dry-run: without --judge nobody is asked" in done.err
