"""Sensitivity: what counts as noticed, where, and what it is worth."""

import random

import pytest
from build import talk

from musiccli.bench.config import BenchConfig
from musiccli.bench.sensitivity import check_corruption_pair, metrics, notes, tables
from musiccli.core.errors import RecordError
from musiccli.core.records import Record
from musiccli.sample.config import SampleConfig
from musiccli.sample.sampler import sample


def pair(number, kind, distance, intact, corrupted, model="rm", shift=0, **more):
    prompt = {"role": "user", "content": f"prompt {number}"}
    sides = {
        "chosen": [prompt, {"role": "assistant", "content": "x" * 50}],
        "rejected": [prompt, {"role": "assistant", "content": "y" * (50 + shift)}],
    }
    scores = {
        name: dict(zip(sides, both, strict=True))
        for name, both in {model: (intact, corrupted), **more}.items()
    }
    return Record(
        {
            "id": f"{number}/{kind}-{distance}",
            **sides,
            "corruption": {"kind": kind, "distance": distance},
            "metadata": {"conversation": number},
            "scores": scores,
        }
    )


def rows(pairs):
    return list(metrics(pairs, BenchConfig(bootstrap=200)))


def row(found, subset, model="rm", metric="accuracy"):
    [one] = [
        one
        for one in found
        if (one["subset"], one["model"], one["metric"]) == (subset, model, metric)
    ]
    return one


def test_a_corruption_is_noticed_if_the_intact_side_scores_strictly_higher():
    found = rows([pair(0, "reply", 0, 1, 0), pair(1, "reply", 0, 0, 1), pair(2, "reply", 0, 1, 1)])
    assert (row(found, "all")["value"], row(found, "all")["count"], row(found, "all")["ties"]) == (
        pytest.approx(1 / 3),
        3,
        1,
    )


def test_accuracy_is_given_by_kind_by_distance_and_by_both():
    found = rows(
        [
            pair(0, "swap", 0, 1, 0),
            pair(0, "reply", 0, 1, 0),
            pair(0, "reply", 2, 0, 1),
            pair(1, "reply", 10, 1, 1),
            pair(1, "drop_user", 2, 1, 0),
            pair(2, "user", 2, 1, 0),
        ]
    )
    assert [
        (one["subset"], one["value"], one["count"]) for one in found if one["model"] == "rm"
    ] == [
        ("all", pytest.approx(3 / 5), 5),
        ("distance>=1", pytest.approx(1 / 3), 3),
        ("distance=0", 1, 2),
        ("distance=2", 0.5, 2),
        ("distance=10", 0, 1),
        ("kind=reply", pytest.approx(1 / 3), 3),
        ("kind=user", 1, 1),
        ("kind=swap", 1, 1),
        ("kind=drop_user", 1, 1),
        ("kind=reply,distance=0", 1, 1),
        ("kind=reply,distance=2", 0, 1),
        ("kind=reply,distance=10", 0, 1),
        ("kind=user,distance=2", 1, 1),
        ("kind=swap,distance=0", 1, 1),
        ("kind=drop_user,distance=2", 1, 1),
    ]


def test_a_model_that_reads_the_last_turn_only_ties_before_it():
    found = rows(
        [
            pair(number, "reply", distance, 1, 0 if distance == 0 else 1)
            for number in range(20)
            for distance in range(4)
        ]
    )
    before, last = row(found, "distance>=1"), row(found, "distance=0")
    assert (before["value"], before["ties"], before["count"]) == (0, 60, 60)
    assert (last["value"], last["ties"]) == (1, 0)


def test_the_mean_difference_in_length_stands_beside_every_accuracy():
    found = rows(
        [
            pair(0, "reply", 0, 1, 0, shift=3),
            pair(1, "reply", 1, 1, 0, shift=-4),
            pair(2, "drop_user", 0, 1, 0, shift=-30),
        ]
    )
    shifts = {one["subset"]: one["length_difference"] for one in found if one["model"] == "rm"}
    assert {subset: shift for subset, shift in shifts.items() if "," not in subset} == {
        "all": -0.5,
        "distance>=1": -4,
        "distance=0": 3,
        "distance=1": -4,
        "kind=reply": -0.5,
        "kind=drop_user": -30,
    }
    assert row(found, "kind=drop_user", "baseline/longest")["value"] == 1
    assert row(found, "kind=reply", "baseline/longest")["value"] == 0.5


def test_figures_over_several_kinds_leave_out_the_one_that_length_gives_away():
    found = rows([pair(0, "reply", 1, 0, 1), pair(1, "drop_user", 1, 1, 0)])
    assert [
        row(found, subset)["count"]
        for subset in ("all", "distance>=1", "distance=1", "kind=drop_user")
    ] == [1] * 4
    assert row(found, "all")["value"] == 0
    assert (
        row(rows([pair(1, "drop_user", 1, 1, 0)]), "all")["value"] == 1
    )  # where nothing else is there


def test_corruptions_of_one_conversation_are_one():
    chance = random.Random(0)
    noticed = [chance.random() < 0.5 for _ in range(30)]
    many = [
        pair(number, "reply", distance, won, 0.5)
        for number, won in enumerate(noticed)
        for distance in range(6)
    ]
    together, alone = (row(rows(pairs), "all") for pairs in (many, many[::6]))
    assert (together["low"], together["high"]) == pytest.approx(
        (alone["low"], alone["high"]), abs=0.012
    )


def test_branches_of_one_tree_are_one():
    """Conversations that open alike share what a model sees, whatever each of them is called."""
    chance = random.Random(1)
    alone = [pair(number, "reply", 0, chance.random() < 0.5, 0.5) for number in range(30)]
    branches = [
        Record(
            {
                **one,
                "id": f"{one['id']}-{branch}",
                "metadata": {"conversation": f"{number}-{branch}"},
            }
        )
        for number, one in enumerate(alone)
        for branch in range(6)
    ]
    together, once = (row(rows(pairs), "all") for pairs in (branches, alone))
    assert (together["low"], together["high"]) == pytest.approx(
        (once["low"], once["high"]), abs=0.012
    )


def test_two_models_are_compared():
    found = rows([pair(number, "reply", number % 3, 1, 0, other=(0, 1)) for number in range(30)])
    difference = row(found, "distance>=1", metric="accuracy_difference")
    assert (difference["value"], difference["against"], difference["prompts"]) == (1, "other", 20)


def test_the_notes_say_how_two_models_differ_before_the_last_turn():
    found = rows([pair(n, "reply", n % 2, 1, 0, other=(n % 4 < 2, 0.5)) for n in range(20)])
    differences = [note for note in notes(found) if " - " in note]
    assert [note.partition(" [")[0] for note in differences] == [
        "before the last turn: rm - other: +50.0"
    ]


def test_the_table_has_no_rows_for_the_only_kind():
    def labels(*kinds):
        found = rows([pair(n, kind, 1, 1, 0) for n, kind in enumerate(kinds)])
        [table] = tables(found, BenchConfig())
        return [cells[0].strip() for cells in table.cells]

    assert labels("reply", "reply") == ["all", "before the last turn", "1 turn from the end"]
    several = labels("reply", "swap")[3:]
    assert several == ["reply", "1 turn from the end", "swap", "1 turn from the end"]


def test_what_sample_makes_is_what_bench_reads():
    def talk(number):
        return [
            {
                "role": ("user", "assistant")[turn % 2],
                "content": f"{number} {turn} " + "x" * (number * turn % 7),
            }
            for turn in range(6)
        ]

    made = list(
        sample(
            (("f", Record({"id": number, "messages": talk(number)})) for number in range(12)),
            SampleConfig(emit="corruptions"),
        )
    )
    found = rows(
        [
            check_corruption_pair(Record(one | {"scores": {"rm": {"chosen": 1, "rejected": 0}}}))
            for one in made
        ]
    )
    dropped = sum(one["corruption"]["kind"] == "drop_user" for one in made)
    assert (row(found, "all")["value"], row(found, "all")["count"]) == (1, len(made) - dropped)
    assert {one["subset"] for one in found} >= {
        "kind=reply",
        "kind=user",
        "kind=swap",
        "kind=drop_user",
        "distance=2",
    }


def test_one_kind_and_contrasts_are_read_too():
    def talk(number):
        return [
            {"role": ("user", "assistant")[turn % 2], "content": f"{number} {turn}"}
            for turn in range(6)
        ]

    source = [("f", Record({"id": number, "messages": talk(number)})) for number in range(12)]
    for emit, settings, count in (("corruptions", {"kinds": ["reply"]}, 36), ("contrasts", {}, 12)):
        made = sample(source, SampleConfig(emit=emit, **settings))
        found = rows(
            [
                check_corruption_pair(
                    Record(one | {"scores": {"rm": {"chosen": 1, "rejected": 0}}})
                )
                for one in made
            ]
        )
        assert row(found, "all")["count"] == row(found, "kind=reply")["count"] == count
        assert not {one["subset"] for one in found} & {"kind=user", "kind=swap", "kind=drop_user"}


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"corruption": None},
            "corruption: is missing; music sample writes it where it corrupts conversations",
        ),
        ({"corruption": {"kind": "reply"}}, "corruption.distance: should be a whole number"),
        ({"corruption": {"distance": 1}}, "corruption.kind: should be a name without commas"),
        (
            {"corruption": {"kind": "a,b", "distance": 1}},
            "corruption.kind: should be a name without commas",
        ),
        ({"scores": None}, "has no scores; run music score first"),
        ({"chosen": None}, "chosen: is missing; it should be a list of messages"),
    ],
)
def test_a_record_that_cannot_be_counted_says_why(change, message):
    with pytest.raises(RecordError) as caught:
        check_corruption_pair(Record(pair(0, "reply", 0, 1, 0) | change))
    assert str(caught.value) == message


def test_of_many_models_every_two_are_compared_on_all_corruptions():
    """11 models are 55 pairs; other subsets have the 10 against the best alone."""
    models = [f"rm{number}" for number in range(11)]
    records = [
        {
            "id": str(number),
            "chosen": talk(f"q{number}", "one", "more", "two"),
            "rejected": talk(f"q{number}", "won", "more", "two"),
            "corruption": {"kind": "reply", "distance": 1},
            "scores": {
                model: {"chosen": (number * 7 + place * 3) % 5, "rejected": 2}
                for place, model in enumerate(models)
            },
        }
        for number in range(12)
    ]
    rows = [
        row["subset"]
        for row in metrics(map(Record, records))
        if row["metric"] == "accuracy_difference"
    ]
    assert (rows.count("all"), rows.count("kind=reply")) == (55, 10)
