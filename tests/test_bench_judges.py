"""What judges are worth: counted by hand, on votes written by hand."""

import math
import random

import pytest
from build import lines, talk, votes
from console import music

from musiccli.bench.judges import JudgesConfig, check_judged_pair, metrics
from musiccli.bench.stats.baselines import first_listed
from musiccli.core.errors import RecordError
from musiccli.core.jsonl import Rejects
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats


def pair(number, *cast, long="a", **fields):
    """Two conversations; `long` is the longer. `cast`: (judge, winner in order ab, in order ba)."""
    texts = {"a": "x", "b": "y"} | {long: "longer"}
    return Record(
        {
            "id": f"p{number}",
            "votes": [vote for one in cast for vote in votes(*one)],
            **{name: talk(f"prompt {number}", texts[name]) for name in "ab"},
            **fields,
        }
    )


def of(pairs, human_field=None, stats=None):
    """Metric records by (model, metric), or (model, against, metric)."""
    config = JudgesConfig(human_field=human_field, bootstrap=200)
    rows = list(metrics([check_judged_pair(record, config) for record in pairs], config, stats))
    assert all(row["low"] is None or row["low"] <= row["value"] <= row["high"] for row in rows)
    return {
        tuple(filter(None, (row["model"], row.get("against"), row["metric"]))): row for row in rows
    }


def test_a_field_of_another_kind_does_not_end_the_count():
    rows = of([pair(0, ("j", "a", "a"), branch=["x"]), pair(1, ("j", "a", "a"))])
    assert {row["count"] for row in rows.values() if row["metric"] == "readable"} <= {2}


def share(row):
    return row["value"], row["count"]


ONE = [
    pair(0, ("j", "a", "a")),
    pair(1, ("j", "b", "b"), long="b"),
    pair(2, ("j", "a", "b")),
    pair(3, ("j", "a", "b")),
    pair(4, ("j", "b", "a")),
    pair(5, ("j", "tie", "tie")),
    pair(6, ("j", "a", "tie")),
    pair(7, ("j", None, "a")),
    pair(8, ("j", None, None)),
    pair(9, ("j", "b", "b")),
]


@pytest.mark.parametrize(
    "metric, value, count",
    [
        (
            "first_shown_wins",
            8 / 14,
            14,
        ),  # pairs 0, 1 and 9: one of two; 2 and 3: both; 4: none; 6: one; 7: none of one
        ("flip_rate", 4 / 8, 8),
        ("ties", 2 / 10, 10),
        ("inconsistent", 3 / 10, 10),
        ("unreadable", 2 / 10, 10),
        ("longer_wins", 2 / 3, 3),
    ],
)
def test_one_judge_is_counted_by_hand(metric, value, count):
    assert share(of(ONE)["j", metric]) == (pytest.approx(value), count)


def test_a_judge_that_always_takes_the_first_is_seen_with_an_interval():
    row = of([pair(number, ("j", "a", "b")) for number in range(20)])["j", "first_shown_wins"]
    assert (row["value"], row["high"], row["count"]) == (1, 1, 40)
    assert 0.8 < row["low"] < 0.9  # Wilson's of 20 prompts


def test_a_judge_nobody_could_read_has_counts_and_no_shares():
    rows = of([pair(number, ("j", None, None)) for number in range(4)])
    assert share(rows["j", "unreadable"]) == (1, 4)
    assert share(rows["j", "first_shown_wins"]) == share(rows["j", "flip_rate"]) == (None, 0)


def test_sides_of_one_length_say_nothing_of_verbosity():
    same = Record(pair(0, ("j", "a", "a")) | {"b": talk("prompt 0", "LONGER")})
    assert share(of([same, pair(1, ("j", "a", "a"))])["j", "longer_wins"]) == (1, 1)


HUMAN = [
    pair(0, ("j", "a", "a"), metadata={"human": "a"}),
    pair(1, ("j", "a", "a"), metadata={"human": "b"}),
    pair(2, ("j", "b", "b"), metadata={"human": "b"}),
    pair(3, ("j", "a", "b"), metadata={"human": "tie"}),
    pair(4, ("j", "tie", "tie"), metadata={"human": "a"}),
    pair(5, ("j", None, "a"), metadata={"human": "a"}),
    pair(6, ("j", "a", "a"), metadata={"human": None}),
]


@pytest.mark.parametrize(
    "metric, value, count",
    [
        ("agreement", 3 / 5, 5),
        ("agreement_decided", 2 / 3, 3),
        ("longer_excess", 1 / 3, 3),
        # judge: a a b tie tie; people: a b b tie a; agreed 3/5, by chance (2*2 + 1*2 + 2*1)/25
        ("kappa", (3 / 5 - 8 / 25) / (1 - 8 / 25), 5),
    ],
)
def test_agreement_with_people_is_counted_by_hand(metric, value, count):
    assert share(of(HUMAN, human_field="human")["j", "labels", metric]) == (
        pytest.approx(value),
        count,
    )


def test_without_labels_nothing_is_said_of_them():
    assert not [key for key in of(HUMAN) if "labels" in key]


def test_the_chosen_side_is_the_label_of_a_preference():
    pairs = [
        Record(
            {
                "id": f"p{number}",
                "chosen": talk(f"{number}", "yes"),
                "rejected": talk(f"{number}", "no"),
                "votes": votes("j", said, said),
            }
        )
        for number, said in enumerate(["chosen"] * 3 + ["rejected"])
    ]
    assert share(of(pairs)["j", "labels", "agreement"]) == (0.75, 4)


def test_the_winner_that_a_record_came_with_is_its_label():
    pairs = [
        pair(number, ("j", "a", "a"), given_winner=said)
        for number, said in enumerate(["a", "b", "tie", None])
    ]
    assert share(of(pairs)["j", "labels", "agreement"]) == (1 / 3, 3)
    with pytest.raises(
        RecordError, match="given_winner: is 5; it should be one of a, b, tie, null"
    ):
        check_judged_pair(pair(0, ("j", "a", "a"), given_winner=5))


def test_kappa_of_two_judges_who_are_always_right_is_one_for_preferences_too():
    pairs = [
        Record(
            {
                "id": f"p{number}",
                "chosen": talk(f"{number}", "yes"),
                "rejected": talk(f"{number}", "no"),
                "votes": votes("x", "chosen", "chosen") + votes("y", "chosen", "chosen"),
            }
        )
        for number in range(20)
    ]
    assert len({first_listed(one) for one in pairs}) == 2
    rows = of(pairs)
    assert rows["x", "y", "kappa"]["value"] == rows["x", "labels", "kappa"]["value"] == 1


def test_two_judges_by_hand_and_their_majority():
    cast = [("a", "a"), ("a", "b"), ("b", "b"), ("tie", "a"), ("a", "a"), (None, "a")]
    pairs = [
        pair(number, ("x", one, one), ("y", other, other))
        for number, (one, other) in enumerate(cast)
    ]
    rows = of(pairs)
    assert share(rows["x", "y", "agreement"]) == (3 / 5, 5)
    chance = (3 * 3 + 1 * 2 + 0) / 25
    assert share(rows["x", "y", "kappa"]) == (pytest.approx((3 / 5 - chance) / (1 - chance)), 5)
    assert share(rows["panel", "ties"]) == (2 / 6, 6)  # a against b, tie against a
    assert share(rows["panel", "unreadable"]) == (0, 6)
    assert ("panel", "flip_rate") not in rows and ("panel", "fleiss_kappa") not in rows


def fleiss(table):
    """As in the paper, item by item."""
    raters, items = sum(table[0]), len(table)
    agreed = (
        sum(sum(count * (count - 1) for count in row) / (raters * (raters - 1)) for row in table)
        / items
    )
    chance = sum((sum(column) / (items * raters)) ** 2 for column in zip(*table, strict=True))
    return (agreed - chance) / (1 - chance)


def test_fleiss_kappa_of_a_panel_item_by_item():
    chance, pairs, table = random.Random(4), [], []
    for number in range(40):
        said = [chance.choice(["a", "a", "b", "tie", "turned"]) for _ in range(4)]
        cast = [
            (f"j{place}", *(("a", "b") if one == "turned" else (one, one)))
            for place, one in enumerate(said)
        ]
        pairs.append(pair(number, *cast))
        table.append([said.count("a"), said.count("b"), said.count("tie") + said.count("turned")])
    pairs.append(
        pair(99, ("j0", None, "a"), ("j1", "a", "a"), ("j2", "a", "a"), ("j3", "a", "a"))
    )  # not read by all
    row = of(pairs)["panel", "fleiss_kappa"]
    assert (row["value"], row["count"], row["judges"]) == (pytest.approx(fleiss(table)), 40, 4)


def test_votes_of_several_files_on_one_pair_are_one_panels():
    apart = [
        pair(0, ("x", "a", "a")),
        pair(1, ("x", "a", "b")),
        pair(0, ("y", "a", "a")),
        pair(1, ("y", "b", "b")),
    ]
    together = [
        pair(0, ("x", "a", "a"), ("y", "a", "a")),
        pair(1, ("x", "a", "b"), ("y", "b", "b")),
    ]
    assert of(apart) == of(together)


def test_a_judge_that_saw_only_some_pairs_is_compared_on_those():
    pairs = [
        pair(0, ("x", "a", "a")),
        pair(1, ("x", "a", "a"), ("y", "a", "a")),
        pair(2, ("y", "b", "b")),
    ]
    rows = of(pairs)
    assert (
        rows["x", "ties"]["count"],
        rows["y", "ties"]["count"],
        rows["x", "y", "kappa"]["count"],
    ) == (2, 2, 1)
    assert (rows["x", "y", "kappa"]["value"], rows["x", "y", "agreement"]["value"]) == (
        None,
        1,
    )  # all is chance


@pytest.mark.parametrize(
    "second, said",
    [
        (pair(0, ("x", "b", "b")), "votes: x has voted on this pair before"),
        (pair(0, ("y", "b", "b"), long="b"), "id: this id stood with another pair before"),
        (pair(1, ("y", "b", "b"), ("y", "b", "b")), "votes: y has voted on this pair before"),
    ],
)
def test_a_second_vote_or_another_pair_of_the_same_id_is_refused(second, said):
    with pytest.raises(RecordError, match=said):
        of([pair(0, ("x", "a", "a")), second])


def test_a_refused_record_counts_for_nobody():
    good = [pair(0, ("x", "a", "a"), ("y", "a", "a")), pair(1, ("x", "a", "b"), ("y", "b", "b"))]
    bad = [
        pair(2, ("y", "b", "b"), ("y", "b", "b")),
        pair(1, ("x", "b", "b")),
        pair(0, ("z", "a", "a"), long="b"),
    ]
    stats = RunStats(Rejects(skip=True))
    assert of(good + bad, stats=stats) == of(good)
    assert stats.rejects.count == 3


@pytest.mark.parametrize(
    "record, field, said",
    [
        (pair(0), None, "votes: is missing; music judge adds it"),
        (
            pair(0, votes=[{"judge": "x", "order": "1", "winner": "a"}]),
            None,
            r"votes\[0\].order: is '1'; it should",
        ),
        (
            pair(0, ("panel", "a", "a")),
            None,
            r"votes\[0\].judge: is panel, which stands for something else here",
        ),
        (
            pair(0, ("x", "a", "a"), human="A"),
            "human",
            "human: is 'A'; it should be one of a, b, tie, null",
        ),
        (
            pair(0, ("x", "a", "a"), human=["a"]),
            "human",
            r"human: is \['a'\]; it should be one of a, b, tie, null",
        ),
    ],
)
def test_what_cannot_be_counted_is_named(record, field, said):
    with pytest.raises(RecordError, match=said):
        check_judged_pair(record, JudgesConfig(human_field=field))


def test_pairs_that_nobody_was_asked_about_are_counted():
    stats, same = RunStats(), talk("prompt", "x")
    record = Record({"id": 1, "a": same, "b": same, "winner": "tie", "votes": []})
    rows = list(metrics([check_judged_pair(record)], stats=stats))
    assert (rows, stats.phrases()) == ([], {"left out (same text)": 1})


def test_intervals_take_pairs_of_one_prompt_as_one():
    random_, pairs = random.Random(2), []
    for number in range(30):
        said = random_.choice("ab")
        pairs += [
            Record(
                pair(f"{number}-{copy}", ("j", said, said))
                | {"a": talk(f"prompt {number}", "longer"), "b": talk(f"prompt {number}", "y")}
            )
            for copy in range(5)
        ]
    whole, alone = of(pairs)["j", "longer_wins"], of(pairs[::5])["j", "longer_wins"]
    assert whole["value"] == alone["value"]
    assert whole["high"] - whole["low"] == pytest.approx(alone["high"] - alone["low"], rel=0.06)


@pytest.mark.slow
def test_the_command_writes_metrics_tables_and_pages(tmp_path):
    pairs = [
        pair(number, ("x/one", *"aa"), ("y/two", *("ab" if number % 3 else "bb")), human="a")
        for number in range(12)
    ]
    page = tmp_path / "page.html"
    done = music("bench", "judges", "--human-field", "human", "--html", page, given=lines(*pairs))
    assert done.status == 0, done.err
    assert {record["benchmark"] for record in done.records} == {"judges"}
    assert not [
        record
        for record in done.records
        if record["value"] is not None and math.isnan(record["value"])
    ]
    text = page.read_text("utf-8")
    assert (
        "y/two: <b>said b, the label says a</b>" in text
        and "y/two: <b>turned with the order</b>" in text
    )
    assert "x/one: <b>" not in text
    cells = [line.split() for line in done.lines]
    assert [
        "x/one",
        "12",
        "50.0",
        "[25.4,",
        "74.6]",
        "0.0",
        "[0.0,",
        "24.2]",
        "100.0",
        "[75.8,",
        "100.0]",
    ] in cells
