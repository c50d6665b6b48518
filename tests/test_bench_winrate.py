"""Win rates: what counts as what, by N, with intervals by prompt."""

import random

import pytest
from build import lines, talk, votes
from console import music

from musiccli.bench import winrate
from musiccli.bench.winrate import check_contest, metrics
from musiccli.core.errors import RecordError
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats


def contest(number, winner, size=2, picks=(0, 1), **fields):
    return Record(
        {
            "id": f"prompt-{number}",
            "best_of": size,
            "a": talk(f"prompt {number}", "x"),
            "b": talk(f"prompt {number}", "y"),
            "winner": winner,
            "votes": votes("llm", winner, winner),
            "models": {"a": "new", "b": "old"},
            "picks": dict(zip("ab", picks, strict=True)),
            **fields,
        }
    )


def test_every_ending_is_counted_as_what_it_is():
    stats = RunStats()
    contests = [
        contest(0, "a"),
        contest(1, "a"),
        contest(2, "b"),
        contest(3, "tie"),
        contest(4, "tie", votes=votes("llm", "a", "b")),
        contest(5, None),
        contest(6, "tie", picks=(1, 1)),
    ]
    [row] = metrics(contests, stats=stats)
    assert (row["model"], row["against"], row["subset"], row["metric"]) == (
        "new",
        "old",
        "best_of=2",
        "win_rate",
    )
    assert (row["value"], row["count"]) == ((2 + 0.5 + 0.5 + 0.5) / 6, 6)
    assert {
        name: row[name]
        for name in ("win", "loss", "tie", "inconsistent", "same_pick", "unreadable")
    } == {"win": 2, "loss": 1, "tie": 1, "inconsistent": 1, "same_pick": 1, "unreadable": 1}
    assert stats.phrases() == {"inconsistent": 1, "same pick": 1, "unreadable": 1}


@pytest.mark.parametrize(
    "cast, ending",
    [
        (votes("llm", "a", "b"), "inconsistent"),
        (votes("llm", "a", "tie"), "tie"),
        (votes("llm", "tie", "tie"), "tie"),
        (
            votes("one", "a", "a") + votes("two", "b", "b"),
            "tie",
        ),  # two judges of different minds, each consistent
        (votes("one", "tie", "tie") + votes("two", "b", "a"), "inconsistent"),
        ([], "tie"),
        (None, "tie"),
    ],
)
def test_a_tie_is_inconsistent_only_if_one_judge_turned_with_the_order(cast, ending):
    [row] = metrics([contest(0, "tie", votes=cast)])
    assert row[ending] == 1


def test_a_choice_between_the_picks_has_a_floor_and_a_ceiling():
    """Against b: a coin between both picks, and a choice of the one that the judge prefers."""
    ended = ["a"] * 5 + ["b"] * 3 + ["tie"] * 2 + [None]
    [row] = metrics([contest(number, winner) for number, winner in enumerate(ended)])
    assert (row["value"], row["random"], row["oracle"]) == (
        0.6,
        pytest.approx(0.55),
        pytest.approx((5 + 5 * 0.5) / 10),
    )


def test_nothing_readable_gives_no_rate():
    [row] = metrics([contest(0, None), contest(1, None)])
    assert (row["value"], row["low"], row["high"], row["count"], row["unreadable"]) == (
        None,
        None,
        None,
        0,
        2,
    )


def test_a_contest_of_one_pick_with_itself_needs_no_judge():
    unjudged = contest(0, "tie", picks=(1, 1))
    del unjudged["winner"]
    [row] = metrics([check_contest(unjudged)])
    assert row["same_pick"] == 1


def test_a_comparison_that_is_no_contest_is_a_against_b():
    [row] = metrics(
        [
            Record(
                {
                    "id": "x",
                    "a": talk("the prompt", "x"),
                    "b": talk("the prompt", "y"),
                    "winner": "b",
                }
            )
        ]
    )
    assert (row["model"], row["against"], row["subset"], row["value"]) == ("a", "b", "all", 0)


def test_a_judged_preference_is_chosen_against_rejected():
    [row] = metrics(
        [
            Record(
                {
                    "id": "x",
                    "chosen": talk("the prompt", "x"),
                    "rejected": talk("the prompt", "y"),
                    "winner": "chosen",
                }
            )
        ]
    )
    assert (row["model"], row["against"], row["value"]) == ("chosen", "rejected", 1)


def test_each_n_has_a_row_and_its_change_from_the_smallest():
    contests = [
        contest(number, "ab"[number % 10 >= share], size)
        for size, share in ((8, 7), (2, 5), (4, 6))
        for number in range(100)
    ]
    rows = list(metrics(contests))
    assert [(row["metric"], row["subset"], round(row["value"], 3)) for row in rows] == [
        ("win_rate", "best_of=2", 0.5),
        ("win_rate", "best_of=4", 0.6),
        ("win_rate", "best_of=8", 0.7),
        ("win_rate_change", "best_of=2->4", 0.1),
        ("win_rate_change", "best_of=2->8", 0.2),
    ]
    assert all(row["low"] < row["value"] < row["high"] for row in rows)


def test_a_change_is_measured_within_prompts():
    """Prompts differ a lot, but change alike: the change is known better than either rate."""
    contests = []
    for number in range(200):
        winner = "ab"[number % 2]
        contests += [
            contest(number, winner, 2),
            contest(number, "a" if number % 10 == 1 else winner, 4),
        ]
    small, _, change = metrics(contests)
    assert change["value"] == pytest.approx(0.1)
    assert change["high"] - change["low"] < 0.7 * (small["high"] - small["low"])


def test_prompts_that_lack_one_n_are_left_out_of_the_change():
    rows = list(
        metrics([contest(0, "a", 2), contest(1, "b", 2), contest(0, "a", 4), contest(1, None, 4)])
    )
    assert [row["count"] for row in rows] == [2, 1, 1]


@pytest.mark.parametrize("pools", [{}, {"best_of": 2}])
def test_games_of_one_prompt_are_drawn_together(pools):
    random.seed(0)
    won = [random.choice("ab") for _ in range(30)]
    games = [
        Record(
            {
                "id": f"{prompt}-{game}",
                "winner": winner,
                **pools,
                "a": [
                    {"role": "user", "content": f"prompt {prompt}"},
                    {"role": "assistant", "content": "x"},
                ],
                "b": [
                    {"role": "user", "content": f"prompt {prompt}"},
                    {"role": "assistant", "content": "y"},
                ],
            }
        )
        for prompt, winner in enumerate(won)
        for game in range(8)
    ]
    [together] = metrics(games)
    [alone] = metrics(games[::8])
    assert (together["low"], together["high"]) == pytest.approx(
        (alone["low"], alone["high"]), abs=0.012
    )


def test_a_change_takes_ids_of_one_prompt_as_dependent():
    winners = {2: "ab" * 15, 4: "aab" * 10}
    changes = []
    for copies in (1, 8):
        contests = [
            contest(prompt, winners[size][prompt], size, id=f"{prompt}-{copy}")
            for size in (2, 4)
            for prompt in range(30)
            for copy in range(copies)
        ]
        *_, change = metrics(contests)
        changes.append(change)
    alone, together = changes
    assert (together["count"], alone["count"]) == (240, 30)
    assert [together[name] for name in ("value", "low", "high")] == pytest.approx(
        [alone[name] for name in ("value", "low", "high")], abs=1e-9
    )


def test_winning_every_contest_is_not_certainty():
    [row] = metrics([contest(number, "a") for number in range(20)])
    assert row["value"] == 1
    assert row["low"] == pytest.approx(0.839, abs=0.001)  # Wilson's, 20 of 20


def test_a_change_that_no_prompt_shows_has_no_interval():
    *_, change = metrics(
        [contest(number, "ab"[number % 2], size) for number in range(20) for size in (2, 4)]
    )
    assert (change["value"], change["low"], change["high"]) == (0, None, None)


def test_contests_of_several_models_are_kept_apart():
    rows = list(metrics([contest(0, "a"), contest(1, "b", models={"a": "newer", "b": "old"})]))
    assert [(row["model"], row["value"]) for row in rows] == [("new", 1), ("newer", 0)]


def test_contests_of_several_matchups_can_stand_in_one_input():
    others = [contest(number, "b", models={"a": "new", "b": "older"}) for number in range(3)]
    done = music("bench", "winrate", given=lines(*(contest(n, "a") for n in range(3)), *others))
    assert [(row["against"], row["value"]) for row in done.records] == [("old", 1), ("older", 0)]
    again = music("bench", "winrate", given=lines(*others, others[0]))
    assert again.status == 2 and "names an earlier record" in again.err and not again.out


@pytest.mark.parametrize(
    "change, message",
    [
        ({"winner": "c"}, "winner: is 'c'; it should be one of a, b, tie, null"),
        ({"votes": "a"}, "votes: should be a list of votes"),
        ({"best_of": "two"}, "best_of: should be a whole number"),
    ],
)
def test_a_record_that_cannot_be_counted_says_why(change, message):
    with pytest.raises(RecordError) as caught:
        check_contest(Record(contest(0, "a") | change))
    assert str(caught.value) == message


@pytest.mark.parametrize("matchups, bands", [(3, 3), (4, 0)])
def test_of_many_matchups_the_figure_has_points_without_bands(matchups, bands):
    axes = pytest.importorskip("matplotlib.figure").Figure().subplots()
    rows = [
        {"model": f"rm{number}", "against": "base", "subset": subset, "metric": "win_rate"}
        | {"value": 0.5, "low": 0.4, "high": 0.6, "oracle": 0.7, "random": 0.5, "count": 9}
        for number in range(matchups)
        for subset in ("best_of=2", "best_of=4")
    ]
    winrate.plot(axes, rows)
    filled = [
        shape for shape in axes.collections if type(shape).__name__ == "FillBetweenPolyCollection"
    ]
    assert len(filled) == bands
    _, labels = axes.get_legend_handles_labels()
    assert len([label for label in labels if "against" in label]) == matchups
