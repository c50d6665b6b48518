"""RankJudge: the flawed round, what judges get right, and ratings of judges and pairs."""

import json
import math
import random
from statistics import mean

import numpy as np
import pytest
from build import lines, talk, votes
from console import music
from openai_server import serve

from musiccli.bench.config import BenchConfig
from musiccli.bench.rankjudge import check_rankjudge_record, metrics
from musiccli.bench.stats.bradley_terry import rate_judges, select_rated
from musiccli.core.errors import RecordError
from musiccli.core.records import Record

FAST = BenchConfig(bootstrap=200)


def pair(number, scores=None, flawed=2, rounds=4, domain="ml", flaw="evasion", **fields):
    """The conversation "a" has no flaw; `scores` are (of a, of b)."""
    sides = {}
    for side in "ab":
        texts = [text for turn in range(rounds) for text in (f"{number}.{turn}", f"{side}{turn}")]
        sides[side] = talk(*texts)
    record = {
        "id": f"p{number}",
        **sides,
        "winner": "a",
        "metadata": {
            "domain": domain,
            "assistant_behavior_type": flaw,
            "bad_round_index": flawed,
        },
        **fields,
    }
    if scores:
        record["scores"] = {"rm": dict(zip("ab", scores, strict=True))}
    return Record(record)


def match(number, judge, verdict, round=None, flaw=None, domain="ml"):
    """A row of RankJudge's published matches."""
    return Record(
        {
            "id": f"p{number}",
            "domain": domain,
            "pair": {"assistant_behavior_type": "evasion"},
            "model": {"name": judge},
            "judge": {
                "answer": None if verdict is None else "A",
                "correct_verdict": verdict,
                "correct_bad_round": round,
                "correct_behavior_type": flaw,
            },
        }
    )


def rows_of(records, config=FAST):
    return list(metrics([check_rankjudge_record(record) for record in records], config))


def value(rows, metric, model="rm", subset="all"):
    [row] = [
        row
        for row in rows
        if (row["metric"], row["model"], row["subset"]) == (metric, model, subset)
    ]
    return row["value"]


@pytest.mark.parametrize("seed", range(3))
def test_accuracies_by_domain_flaw_and_rounds_after_are_plain_shares_to_1e_12(seed):
    chance, given = random.Random(seed), []
    for _ in range(120):
        scores = [chance.choice([0, 1, chance.gauss(0, 1)]) for _ in "ab"]
        fields = {
            "domain": chance.choice(["ml", "med"]),
            "flaw": chance.choice(["evasion", "factual_error"]),
            "flawed": chance.randint(1, 4),
        }
        given.append((scores, fields))
    rows = rows_of([pair(n, scores, **fields) for n, (scores, fields) in enumerate(given)])
    groups = {"all": lambda fields: True}
    groups |= {f"domain={name}": lambda f, name=name: f["domain"] == name for name in ("ml", "med")}
    groups["flaw=evasion"] = lambda fields: fields["flaw"] == "evasion"
    groups |= {
        f"rounds_after={after}": lambda f, after=after: 4 - f["flawed"] == after
        for after in range(4)
    }
    for subset, belongs in groups.items():
        expected = mean(float(a > b) for (a, b), fields in given if belongs(fields))
        assert value(rows, "accuracy", subset=subset) == pytest.approx(expected, abs=1e-12)


def falls(turn_scores, flawed):
    """By hand: (falls at the flaw, share of falls elsewhere, the largest fall is there)."""
    steps = {
        turn: turn_scores[turn - 1] - turn_scores[turn - 2]
        for turn in range(2, len(turn_scores) + 1)
    }
    at_flaw = steps.pop(flawed)
    rest = list(steps.values())
    return (
        float(at_flaw < 0),
        mean(float(step < 0) for step in rest),
        float(at_flaw < 0 and all(at_flaw < step for step in rest)),
    )


@pytest.mark.parametrize("seed", range(3))
def test_where_rewards_fall_is_counted_at_the_flaw_and_elsewhere_to_1e_12(seed):
    chance, records, expected = random.Random(seed), [], []
    for number in range(60):
        flawed = chance.randint(2, 4)
        numbers = [chance.choice([0, 1, 2, chance.gauss(0, 1)]) for _ in range(4)]
        expected.append(falls(numbers, flawed))
        turn_scores = {"rm": {"a": [0, 0, 0, 0], "b": numbers}}
        records.append(pair(number, (1, 0), flawed, turn_scores=turn_scores))
    rows, (at_flaw, elsewhere, largest) = rows_of(records), map(mean, zip(*expected, strict=True))
    assert value(rows, "falls_at_flaw") == pytest.approx(at_flaw, abs=1e-12)
    assert value(rows, "falls_elsewhere") == pytest.approx(elsewhere, abs=1e-12)
    assert value(rows, "largest_fall_at_flaw") == pytest.approx(largest, abs=1e-12)
    assert value(rows, "fall_difference") == pytest.approx(at_flaw - elsewhere, abs=1e-12)


def test_a_flaw_in_the_first_round_has_no_reward_before_it():
    turn_scores = {"rm": {"a": [0] * 4, "b": [0, -1, -2, -3]}}
    rows = rows_of([pair(0, (1, 0), flawed=1, turn_scores=turn_scores)])
    assert not [row for row in rows if row["metric"] == "falls_at_flaw"]


def test_a_judge_is_right_where_all_that_it_says_is():
    records = [
        match(0, "j", True, True, True),
        match(1, "j", True, True, False),
        match(2, "j", True, None, None),
        match(3, "j", False, True, True),
        match(4, "j", None),  # could not be read: no judgment
    ]
    rows = rows_of(records)
    assert value(rows, "joint_accuracy", "j") == 0.5
    assert value(rows, "verdict_accuracy", "j") == 0.75
    assert value(rows, "flaw_accuracy", "j") == pytest.approx(2 / 3)


def test_votes_in_both_orders_must_be_right_in_both():
    rows = rows_of(
        [
            pair(0, votes=votes("j", "a", "a"), given_winner="a"),
            pair(1, votes=votes("j", "a", "b"), given_winner="a"),
            pair(
                2,
                votes=[vote | {"round": 2, "flaw": "other"} for vote in votes("j", "a", "a")],
                given_winner="a",
            ),
        ]
    )
    assert value(rows, "joint_accuracy", "j") == pytest.approx(1 / 3)
    assert value(rows, "round_accuracy", "j") == 1 and value(rows, "flaw_accuracy", "j") == 0


def authors_ratings(right):
    """Player by player as run_bradley_terry of the authors' code goes, until nothing changes."""
    judges = right.shape[1]
    right = right[(right.sum(1) > 0) & (right.sum(1) < judges)]
    wins = np.concatenate([right.sum(0), (~right).sum(1)]).astype(float)
    strength = np.ones(len(wins))
    for _ in range(20_000):
        before = strength.copy()
        for player in range(len(wins)):
            rivals = strength[judges:] if player < judges else strength[:judges]
            strength[player] = wins[player] / (1 / (strength[player] + rivals)).sum()
        strength /= strength.mean()
        if np.abs(np.log(strength / before)).max() < 1e-15:
            break
    return 400 * np.log10(strength[:judges]) + 1500


@pytest.mark.parametrize("seed", range(3))
def test_ratings_are_those_of_the_authors_loop(seed):
    random = np.random.default_rng(seed)
    skill, hardness = random.normal(size=4), random.normal(size=60)
    right = random.random((60, 4)) < 1 / (1 + np.exp(hardness[:, None] - skill))
    values, intervals, count = rate_judges(right, range(60))
    assert values == pytest.approx(authors_ratings(right), rel=1e-12)
    assert count == ((right.sum(1) > 0) & (right.sum(1) < 4)).sum()
    assert all(low < value < high for value, (low, high) in zip(values, intervals, strict=True))


def test_a_judge_that_is_always_right_has_no_rating_and_spoils_no_others():
    random = np.random.default_rng(4)
    right = random.random((50, 3)) < [0.4, 0.5, 0.6]
    with_perfect = np.column_stack([right, np.ones(50, bool)])
    values, _, _ = rate_judges(with_perfect, range(50))
    assert values[3] is None and values[:3] == pytest.approx(rate_judges(right, range(50))[0])
    assert not select_rated(np.ones((5, 2), bool))[0].any()


def test_without_a_maximum_of_the_likelihood_nobody_is_rated():
    """A and B are right wherever they differ from C and D, so their ratings grow without end."""
    hard, easy = ["1000", "0100", "1000"], ["1110", "1101", "1110"]
    right = np.array([[mark == "1" for mark in row] for row in hard + easy])
    assert rate_judges(right, range(6)) == ([None] * 4, [None] * 4, 0)
    upset = np.vstack([right, [False, False, True, False]])
    assert None not in rate_judges(upset, range(7))[0]
    matches = [
        {"id": f"p{pair}", "model": {"name": judge}, "judge": {"correct_verdict": bool(flag)}}
        for pair, row in enumerate(right)
        for judge, flag in zip("ABCD", row, strict=True)
    ]
    done = music("bench", "rankjudge", given=lines(*matches))
    assert done.status == 0 and "no Bradley-Terry ratings" in done.err


@pytest.mark.slow
def test_95_percent_intervals_of_ratings_hold_what_many_pairs_give():
    random = np.random.default_rng(5)
    skill = np.array([-0.8, -0.2, 0.1, 0.4, 0.9])

    def draw(pairs):
        hardness = np.repeat(random.normal(size=pairs // 2), 2)  # two pairs of each prompt
        return random.random((pairs, 5)) < 1 / (1 + np.exp(hardness[:, None] - skill))

    truth = rate_judges(draw(60_000), np.arange(60_000) // 2)[0]
    held, sets = 0, 200
    for _ in range(sets):
        _, intervals, _ = rate_judges(draw(300), np.arange(300) // 2)
        held += sum(low <= at <= high for at, (low, high) in zip(truth, intervals, strict=True))
    assert 0.93 <= held / (5 * sets) <= 0.97


@pytest.mark.parametrize(
    "change, message",
    [
        ({"winner": "tie"}, "winner: names no side"),
        ({"metadata": {"domain": "ml"}}, "metadata.assistant_behavior_type: is missing"),
        ({"scores": None}, "has no scores"),
        (
            {"turn_scores": {"rm": {"a": [1], "b": [1]}}},
            "turn_scores.rm: should hold 4 numbers for the conversation with the flaw",
        ),
    ],
)
def test_a_record_that_cannot_be_counted_says_why(change, message):
    with pytest.raises(RecordError) as caught:
        check_rankjudge_record(Record(pair(0, (1, 0)) | change))
    assert str(caught.value).startswith(message)


def test_a_round_that_the_conversation_does_not_have_is_refused():
    with pytest.raises(RecordError, match=r"a whole number from 1 to 4"):
        check_rankjudge_record(pair(0, (1, 0), flawed=5))


def test_the_same_pair_twice_is_refused():
    with pytest.raises(RecordError, match="names an earlier record"):
        rows_of([pair(0, (1, 0)), pair(0, (1, 0))])
    with pytest.raises(RecordError, match="j has judged this pair before"):
        rows_of([match(0, "j", True), match(0, "j", False)])


@pytest.mark.slow
def test_the_command_shows_rewards_falls_judges_and_ratings(tmp_path):
    records = [
        pair(
            number,
            (number % 3, 1),
            turn_scores={"rm": {"a": [0] * 4, "b": [1, 0, 1, 2]}},
            votes=votes("j", "a", "ab"[number % 2]) + votes("k", "a", "ab"[number % 3 > 0]),
            given_winner="a",
        )
        for number in range(12)
    ]
    done = music(
        "bench",
        "rankjudge",
        "--bootstrap",
        100,
        "--plot",
        tmp_path / "p.svg",
        given=lines(*records),
    )
    assert done.status == 0, done.err
    assert "where the reward of the flawed conversation falls" in done.err
    assert "Bradley-Terry" in done.err and math.isfinite(value(done.records, "bradley_terry", "j"))
    assert (tmp_path / "p.svg").stat().st_size


def test_a_judge_that_is_asked_by_the_set_rankjudge_is_measured_by_round_and_flaw(
    tmp_path, monkeypatch
):
    """It names the side without "b1", round 2 always, and a flaw that is right for the first."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    requests = []

    def reply(body: dict) -> str:
        requests.append(body)
        text = body["messages"][0]["content"]
        first = text[text.index("conversation A begins") : text.index("conversation A ends")]
        verdict = "B" if "b1" in first else "A"
        return json.dumps({"explanation": "E", "round": 2, "flaw": "evasion", "verdict": verdict})

    pairs = [pair(0), pair(1, flaw="disorganized"), pair(2, flawed=3)]
    with serve(reply=reply) as server:
        judged = music(
            *("judge", "--judge", "openai/one", "--prompts", "rankjudge", "--no-cache"),
            *("--api-base", server.base_url),
            given=lines(*pairs),
        )
    assert judged.status == 0, judged.err
    assert all("instruction_forgetting" in body["messages"][0]["content"] for body in requests)
    rows = music("bench", "rankjudge", given=judged.out).records
    figures = ("verdict_accuracy", "round_accuracy", "flaw_accuracy", "joint_accuracy")
    values = [value(rows, figure, "openai/one") for figure in figures]
    assert values == pytest.approx([1, 2 / 3, 2 / 3, 1 / 3])
    assert {vote["round"] for one in judged.records for vote in one["votes"]} == {2}
