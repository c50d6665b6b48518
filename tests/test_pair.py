"""Branches become preferences or are dropped under a name; scored candidates become contests."""

from collections import Counter
from functools import partial

import pytest
from build import lines, talk
from console import music

from musiccli.core.errors import RecordError
from musiccli.core.records import Record, parse_preference
from musiccli.core.run_stats import RunStats
from musiccli.pair.best_of import best_of, check_scored_candidate
from musiccli.pair.preferences import drop_reason, join_branches

SEED = ("How do I boil an egg?",)
GOOD, BAD = (
    (*SEED, "Eight minutes.", "And soft?", "Five."),
    (*SEED, "Fry it.", "I said boil!", "Bake it."),
)


def branch(name: str, contents=None, identifier="e", sample=0, **fields) -> Record:
    rejected = (
        {"contrast": [{"message": 1, "instruction": "How do I fry an egg?"}]}
        if name == "rejected"
        else {}
    )
    return Record(
        {
            "id": identifier,
            "messages": talk(*(contents or (BAD if name == "rejected" else GOOD))),
            "branch": name,
            "sample": sample,
            "seed_messages": 1,
            "contrast": [],
            **rejected,
            **fields,
        },
        f"b.jsonl:{identifier}{sample}{name}",
    )


def joined(*branches: Record) -> tuple[list[dict], dict, list[str]]:
    """The preferences, the counts, and what was said."""
    messages = []
    stats = RunStats(say=messages.append)
    return list(join_branches(branches, stats)), stats.phrases(), messages


def test_a_preference_holds_both_branches_whole_and_says_where_they_part():
    bookkeeping = {"usage": {"prompt_tokens": 3}, "cost": 0.1}
    [pair], counts, messages = joined(
        branch("chosen", metadata={"topic": "eggs"}, extra=[1], **bookkeeping),
        branch("rejected", **bookkeeping),
    )
    assert pair == {
        "id": "e",
        "sample": 0,
        "seed_messages": 1,
        "metadata": {"topic": "eggs"},
        "extra": [1],
        "chosen": talk(*GOOD),
        "rejected": talk(*BAD),
        "first_divergence": 1,
        "contrast": [{"message": 1, "instruction": "How do I fry an egg?"}],
    }
    assert (counts, messages) == ({}, [])
    assert parse_preference(Record(pair)) == pair


def test_scores_of_both_branches_are_the_pairs_and_others_are_left_behind():
    [pair], _, _ = joined(
        branch("chosen", scores={"rm": 2.0, "other": 1.0}, turn_scores=None),
        branch("rejected", scores={"rm": -1.0}),
    )
    assert pair["scores"] == {"rm": {"chosen": 2.0, "rejected": -1.0}} and "turn_scores" not in pair
    [pair], _, _ = joined(branch("chosen", scores={"rm": 2.0}), branch("rejected"))
    assert "scores" not in pair


def test_the_order_of_the_branches_does_not_matter():
    assert (
        joined(branch("rejected"), branch("chosen"))[0]
        == joined(branch("chosen"), branch("rejected"))[0]
    )


def test_branches_that_stand_together_stream():
    def pipe():
        yield branch("chosen", identifier="one")
        yield branch("rejected", identifier="one")
        pytest.fail("the first pair should not wait for more input")

    messages = []
    assert next(join_branches(pipe(), RunStats(say=messages.append)))["id"] == "one"
    assert messages == []


def test_branches_that_stand_apart_are_held_and_that_is_said_once():
    apart = [
        branch(name, identifier=identifier)
        for name in ("chosen", "rejected")
        for identifier in "abc"
    ]
    pairs, counts, messages = joined(*apart)
    assert ([pair["id"] for pair in pairs], counts) == (["a", "b", "c"], {})
    assert messages == [
        "b.jsonl:b0chosen: branches of one id do not stand together; "
        "holding each until its partner comes"
    ]


def test_samples_of_one_id_are_pairs_of_their_own():
    branches = [
        branch(name, sample=sample) for sample in range(3) for name in ("chosen", "rejected")
    ]
    assert [(pair["id"], pair["sample"]) for pair in joined(*branches)[0]] == [
        ("e", 0),
        ("e", 1),
        ("e", 2),
    ]


@pytest.mark.parametrize(
    "chosen, rejected, reason",
    [
        ({"faults": [{"message": 2, "fault": "user goodbye"}]}, {}, "user goodbye"),
        ({}, {"faults": [{"message": 1, "fault": "contrast leak"}]}, "contrast leak"),
        (
            {"faults": [{"message": 2, "fault": "user cut off"}], "truncated": [2]},
            {},
            "user cut off",
        ),
        ({}, {"contents": GOOD}, "same text"),
        ({}, {"contents": ("How do I fry an egg?", *BAD[1:])}, "different seeds"),
        ({}, {"contrast": []}, "nothing contrasted"),
        ({"contents": GOOD[:3]}, {}, "ends with user"),
        ({}, {"contents": BAD[:3]}, "ends with user"),
    ],
)
def test_a_bad_pair_is_dropped_under_its_reason(chosen, rejected, reason):
    whole = [branch(name, identifier="whole") for name in ("chosen", "rejected")]
    pairs, counts, _ = joined(branch("chosen", **chosen), branch("rejected", **rejected), *whole)
    assert ([pair["id"] for pair in pairs], counts) == (["whole"], {f"dropped ({reason})": 1})


@pytest.mark.parametrize("chosen, rejected", [([1], []), ([], [3]), ([1, 3], [1])])
def test_a_pair_with_a_truncated_message_is_kept_and_counted_or_dropped(chosen, rejected):
    branches = [branch("chosen", truncated=chosen), branch("rejected", truncated=rejected)]
    [pair], counts, _ = joined(*branches)
    assert counts == {"pairs with truncated messages": 1}
    assert pair["truncated"] == {
        name: at for name, at in (("chosen", chosen), ("rejected", rejected)) if at
    }
    stats = RunStats()
    drop = partial(drop_reason, drop_truncated=True)
    assert list(join_branches(branches, stats, drop=drop)) == []
    assert stats.phrases() == {"dropped (truncated)": 1}


def test_a_branch_without_its_partner_is_counted():
    pairs, counts, _ = joined(branch("chosen"), branch("rejected", sample=1), branch("rejected"))
    assert ([pair["sample"] for pair in pairs], counts) == (
        [0],
        {"dropped (other branch missing)": 1},
    )


def candidates(identifier: str = "e", music=(1, 4, 2, 3), baseline=(3, 1, 2, 4)) -> list[Record]:
    return [
        Record(
            {
                "id": identifier,
                "sample": number,
                "branch": "chosen",
                "metadata": {"topic": "eggs"},
                "messages": talk("How?", f"{identifier}{number}"),
                "scores": {"music": score, "baseline": baseline_score},
            }
        )
        for number, (score, baseline_score) in enumerate(zip(music, baseline, strict=True))
    ]


def contests(records, sizes=(2, 4)) -> tuple[list[tuple], dict]:
    """(id, N, a's pick, b's pick) of each contest, and the counts."""
    stats = RunStats()
    made_contests = list(best_of(records, sizes, "music", "baseline", stats))
    for contest in made_contests:
        assert contest["models"] == {"a": "music", "b": "baseline"} and contest["metadata"] == {
            "topic": "eggs"
        }
        for side in "ab":
            assert contest[side][-1]["content"] == f"{contest['id']}{contest['picks'][side]}"
    return [
        (contest["id"], contest["best_of"], contest["picks"]["a"], contest["picks"]["b"])
        for contest in made_contests
    ], stats.phrases()


def test_each_model_picks_its_best_of_nested_pools():
    assert contests(candidates(), (1, 2, 3, 4)) == (
        [("e", 1, 0, 0), ("e", 2, 1, 0), ("e", 3, 1, 0), ("e", 4, 1, 3)],
        {"same pick": 1},
    )


def test_candidates_with_faults_take_part_and_are_counted():
    faulty = [
        candidate | {"faults": [{"message": 1, "fault": "assistant cut off"}]}
        for candidate in candidates()
    ]
    assert contests([*faulty[:3], candidates()[3]]) == (
        contests(candidates())[0],
        {"candidates with faults": 3},
    )


def picks(pool, name, sizes=(1, 2, 4, 8), seed=0):
    return {
        contest["best_of"]: contest["picks"]["a"]
        for contest in best_of(pool, sizes, name, "music", seed=seed)
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("baseline/first", {1: 0, 2: 0, 4: 0, 8: 0}),
        ("baseline/longest", {1: 0, 2: 1, 4: 1, 8: 5}),
        ("baseline/shortest", {1: 0, 2: 0, 4: 3, 8: 3}),
    ],
)
def test_a_guess_may_stand_in_place_of_a_model(name, expected):
    lengths = (5, 9, 9, 2, 7, 11, 2, 11)
    pool = [
        Record(
            {
                "id": "e",
                "sample": number,
                "messages": talk("How?", "x" * length),
                "scores": {"music": number},
            }
        )
        for number, length in enumerate(lengths)
    ]
    assert picks(pool, name) == expected
    assert check_scored_candidate(pool[0], ("music", name)) is pool[0]


@pytest.mark.slow
def test_the_random_pick_is_even_repeatable_and_another_for_each_prompt_size_and_seed():
    def drawn(seed):
        counts = Counter()
        for identifier in range(400):
            pool = [
                Record(
                    {
                        "id": identifier,
                        "sample": number,
                        "messages": talk("How?", f"{number}"),
                        "scores": {"music": 0},
                    }
                )
                for number in range(8)
            ]
            counts.update(picks(pool, "baseline/random", seed=seed).items())
        return counts

    assert drawn(0) == drawn(0) != drawn(1)
    for size in (2, 4, 8):
        each = [drawn(0)[size, number] for number in range(size)]
        assert (
            sum(each) == 400
            and max(abs(count - 400 / size) for count in each) < 4 * (400 / size) ** 0.5
        )


def test_pools_follow_the_sample_number_whatever_the_order_of_input():
    assert contests(reversed(candidates())) == contests(candidates())


def test_ids_may_come_mixed():
    mixed = [
        candidate
        for pair in zip(candidates("x"), candidates("y", baseline=(3, 1, 2, 0)), strict=True)
        for candidate in pair
    ]
    assert contests(mixed)[0] == [("x", 2, 1, 0), ("x", 4, 1, 3), ("y", 2, 1, 0), ("y", 4, 1, 0)]


def test_a_small_pool_gives_the_contests_it_can_and_is_counted():
    assert contests([*candidates("x")[:3], *candidates("y")]) == (
        [("y", 2, 1, 0), ("y", 4, 1, 3), ("x", 2, 1, 0)],
        {"ids with too few candidates": 1},
    )


def test_candidates_beyond_the_largest_pool_make_no_second_pool():
    assert contests(candidates(music=(1, 4, 2, 3, 9, 9), baseline=(3, 1, 2, 4, 9, 9))) == (
        [("e", 2, 1, 0), ("e", 4, 1, 3)],
        {"candidates beyond largest size": 2},
    )


def test_the_first_of_equal_candidates_is_picked_by_both():
    assert contests(candidates(music=(1, 1, 1, 1), baseline=(2, 2, 2, 2))) == (
        [("e", 2, 0, 0), ("e", 4, 0, 0)],
        {"same pick": 2},
    )


@pytest.mark.parametrize(
    "scores, missing, have",
    [
        ({"music": 1.5}, "baseline", "music"),
        ({}, "music", "none"),
        (None, "music", "none"),
        ({"music": 1, "baseline": None}, "baseline", "music, baseline"),
    ],
)
def test_a_missing_score_names_the_scores_there_are(scores, missing, have):
    record = candidates()[0] | {"scores": scores}
    with pytest.raises(
        RecordError, match=rf"scores: no score by '{missing}' \(scores by: {have}\); music score"
    ):
        check_scored_candidate(Record(record), ("music", "baseline"))


@pytest.mark.parametrize(
    "fields, problem",
    [
        (
            {"branch": "rejected"},
            "branch: is rejected: its replies answer altered instructions; a candidate is a chosen "
            "branch",
        ),
        ({"scores": [1.0]}, "scores: should be an object, with a number by each model"),
        ({"sample": "0"}, "sample: is a string; it should be a whole number"),
    ],
)
def test_what_is_no_candidate_is_refused(fields, problem):
    with pytest.raises(RecordError) as raised:
        check_scored_candidate(Record(candidates()[0] | fields), ("music", "baseline"))
    assert str(raised.value) == problem


def test_a_pair_that_nothing_drops_is_whole_and_a_preference_passes_through():
    faulty = branch("rejected", faults=[{"message": 1, "fault": "contrast leak"}])
    [pair] = join_branches([branch("chosen"), faulty], drop=lambda *_: None)
    assert "faults" not in pair and pair["rejected"] == talk(*BAD)
    assert list(join_branches([pair])) == [pair]


def test_truncated_pairs_are_dropped_by_an_option():
    cut = lines(branch("chosen", truncated=[1]), branch("rejected"))
    kept, dropped = music("pair", given=cut), music("pair", "--drop-truncated", given=cut)
    assert (len(kept.records), len(dropped.records)) == (1, 0)
    assert (
        "; 1 pairs with truncated messages" in kept.err and "; 1 dropped (truncated)" in dropped.err
    )
    mixed = music("pair", "--best-of", 2, "--a", "x", "--b", "y", "--drop-truncated")
    assert (mixed.status, "--drop-truncated is for pairs" in mixed.err) == (2, True)


def test_pair_joins_what_it_reads():
    done = music(
        "pair", given=lines(branch("chosen"), branch("rejected"), branch("chosen", sample=1))
    )
    assert (done.status, [pair["id"] for pair in done.records]) == (0, ["e"])
    assert done.err.startswith("music pair: 1 records written in ")
    assert done.err.endswith("; 1 dropped (other branch missing)\n")


def test_pair_best_of_takes_its_sizes_in_any_order():
    done = music(
        "pair", "--best-of", "4,2,2", "--a", "music", "--b", "baseline", given=lines(*candidates())
    )
    assert (done.status, [contest["best_of"] for contest in done.records]) == (0, [2, 4])


@pytest.mark.parametrize("score", ["1.5", True, [1]])
def test_a_score_that_is_no_number_is_named(score):
    record = candidates()[0] | {"scores": {"music": score, "baseline": 1}}
    with pytest.raises(RecordError, match=r"^scores\.music: should be a number$"):
        check_scored_candidate(Record(record), ["music", "baseline"])


def test_a_candidate_without_a_score_stops_the_run_or_is_skipped():
    records = lines(candidates("x")[0] | {"scores": {}}, *candidates("y"))
    options = ("pair", "--best-of", "2", "--a", "music", "--b", "baseline")
    stopped, skipped = (
        music(*options, given=records),
        music(*options, "--on-error", "skip", given=records),
    )
    assert (stopped.status, stopped.out, stopped.err) == (
        2,
        b"",
        "music pair: error: <stdin>:1: scores: no score by 'music' (scores by: none); music score "
        "adds scores\n",
    )
    assert (skipped.status, [contest["id"] for contest in skipped.records]) == (1, ["y"])
    assert "; 1 failed" in skipped.err


@pytest.mark.parametrize(
    "options, problem",
    [
        (["--best-of", "two"], "--best-of two: expected sizes like 2,4,8"),
        (["--best-of", "2,,4"], "--best-of 2,,4: expected sizes like 2,4,8"),
        (["--best-of", "0"], "--best-of 0: expected sizes like 2,4,8"),
        (
            ["--best-of", "2"],
            "--best-of needs --a NAME and --b NAME, the two models whose picks compete",
        ),
    ],
)
def test_wrong_sizes_and_missing_names_are_said(options, problem):
    done = music("pair", *options, given=lines(*candidates()))
    assert (done.status, done.out, done.err) == (2, b"", f"music pair: error: {problem}\n")
