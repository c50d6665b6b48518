"""sample: what rows become, what is dropped and counted, what is chosen, and the command."""

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import preloaded
import pytest
from build import talk

from musiccli.core import records
from musiccli.core.errors import RecordError
from musiccli.core.jsonl import Rejects
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.pair.preferences import join_branches
from musiccli.sample.config import Ranked, SampleConfig
from musiccli.sample.emitters import count_tokens
from musiccli.sample.exclusion import ExcludedPrompts
from musiccli.sample.sampler import read_records, sample

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the public data files are not beside the repository"
)


def rows(*inputs, source="file"):
    return [(source, Record(row, f"file:{number}")) for number, row in enumerate(inputs, start=1)]


def preference(number, length=4):
    history = [f"{number} {turn}" for turn in range(length - 1)]
    return {
        "id": f"p{number}",
        "chosen": talk(*history, "good"),
        "rejected": talk(*history, "bad"),
        "metadata": {},
    }


def run(inputs, emit="seeds", *, excluded=None, rejects=None, **settings):
    """The results, and what is counted, as people read it."""
    stats = RunStats(rejects)
    config = SampleConfig(emit=emit, **settings)
    return list(sample(rows(*inputs), config, excluded=excluded, stats=stats)), stats.phrases()


def excluded_prompts(*inputs):
    return ExcludedPrompts(read_records(rows(*inputs), RunStats()))


# Kinds


@pytest.mark.parametrize(
    "speaker, lengths", [("user", {2, 4, 6}), ("assistant", {1, 3, 5}), ("any", {1, 2, 3, 4, 5, 6})]
)
def test_seeds_are_beginnings_that_end_before_the_next_speaker(speaker, lengths):
    inputs = [preference(number, length=6) for number in range(200)]
    seeds, counts = run(inputs, next_speaker=speaker)
    assert counts == {"rows read": 200}
    assert {len(seed["messages"]) for seed in seeds} == lengths
    assert {seed["metadata"]["seed"]["side"] for seed in seeds} == {"chosen", "rejected"}
    for row, seed in zip(inputs, seeds, strict=True):
        assert seed["id"] == row["id"]
        assert seed["messages"] == row[seed["metadata"]["seed"]["side"]][: len(seed["messages"])]
        assert seed["metadata"]["seed"]["messages"] == 6
        records.parse_conversation(Record(dict(seed)))


def test_a_conversation_nobody_answered_gives_no_seed_for_the_user():
    inputs = [{"id": "c", "messages": talk("q")}]
    assert run(inputs) == ([], {"rows read": 1, "dropped (no reply)": 1})
    assert run(inputs, next_speaker="assistant")[0][0]["messages"] == talk("q")


def test_prompts_are_first_user_messages_each_once():
    system = {"role": "system", "content": "s"}
    inputs = [
        {"id": "a", "messages": talk("q", "r", "q2")},
        {"id": "b", "messages": [system, *talk("q", "r")]},
        {"id": "c", "chosen": talk("q", "x"), "rejected": talk("q", "y")},
    ]
    prompts, counts = run(inputs, "prompts")
    assert [(prompt["id"], prompt["messages"]) for prompt in prompts] == [
        ("a", talk("q")),
        ("b", [system, *talk("q")]),
    ]
    assert counts == {"rows read": 3, "dropped (duplicate)": 1}


def test_the_number_of_turns_is_that_of_what_is_written():
    [prompt], _ = run([{"messages": talk("q", "r", "s", "t")}], "prompts")
    assert prompt["metadata"]["turns"] == 0


def test_candidates_that_a_benchmark_counts_one_by_one_are_no_duplicates():
    row = {
        "prompt": "q",
        "chosen": ["good"],
        "rejected": ["bad", "bad"],
        "subset": "Math",
        "id": "1",
    }
    results, counts = run([row, {**row, "id": "2"}], "conversations")
    assert [(result["id"], result["sample"]) for result in results] == [
        (f"Math/{number}", sample) for number in (1, 2) for sample in range(3)
    ]
    assert counts == {"rows read": 2}
    prompts, counts = run([row, {**row, "id": "2"}], "prompts")
    assert [prompt["id"] for prompt in prompts] == ["Math/1"] and counts["dropped (duplicate)"] == 5


VOTE = {
    "question_id": 1,
    "model_a": "x",
    "model_b": "y",
    "judge": "one",
    "turn": 1,
    "conversation_a": talk("q", "from x"),
    "conversation_b": talk("q", "from y"),
}


@pytest.mark.parametrize(
    "winner, chosen, rejected", [("model_a", "from x", "from y"), ("model_b", "from y", "from x")]
)
def test_a_vote_makes_a_pair(winner, chosen, rejected):
    [pair], _ = run([VOTE | {"winner": winner}], "pairs")
    assert (pair["chosen"], pair["rejected"]) == (talk("q", chosen), talk("q", rejected))
    records.parse_preference(Record(dict(pair)))


@pytest.mark.parametrize("winner, side", [("A", "a"), ("model_b", "b"), ("Tie", "tie")])
def test_a_winner_may_be_spelled_as_votes_are(winner, side):
    row = {"id": "x", "a": talk("q", "r"), "b": talk("q", "s"), "winner": winner}
    [record], _ = run([row], "comparisons")
    assert record["winner"] == side


@pytest.mark.parametrize("winner", ["left", "", 1, True, ["a"]])
def test_a_winner_that_names_no_side_is_refused(winner):
    row = {"id": "x", "a": talk("q", "r"), "b": talk("q", "s"), "winner": winner}
    with pytest.raises(RecordError, match=r"^file:1: winner: is .*; it should be a, b, tie, "):
        run([row], "pairs")


def test_what_nobody_ranked_makes_no_pair():
    unranked = {"id": "u", "a": talk("q", "r"), "b": talk("q", "s")}
    inputs = [VOTE | {"winner": "tie"}, unranked, {"messages": talk("q", "r")}]
    assert run(inputs, "pairs") == (
        [],
        {"rows read": 3, "dropped (tie)": 1, "dropped (nobody ranked it)": 2},
    )


@pytest.mark.parametrize("emit", ["pairs", "comparisons"])
def test_a_pair_of_equal_sides_is_dropped_and_counted_before_the_choice(emit):
    equal = preference(2) | {"chosen": talk("2 0", "good"), "rejected": talk("2 0", "good")}
    results, counts = run([preference(1), equal, preference(3)], emit, count=2)
    assert [record["id"] for record in results] == ["p1", "p3"]
    assert counts == {"rows read": 3, "dropped (same text)": 1}
    assert len(run([equal], "conversations")[0]) == 2  # its texts are as good as any


def test_a_vote_between_equal_texts_makes_no_pair_and_stays_a_comparison():
    vote = VOTE | {"winner": "model_a", "conversation_b": VOTE["conversation_a"]}
    assert run([vote], "pairs") == ([], {"rows read": 1, "dropped (same text)": 1})
    assert len(run([vote], "comparisons")[0]) == 1


def test_a_benchmarks_pair_of_equal_sides_is_kept():
    """Its figures are shares of all rows: no model wins such a pair."""
    row = {"prompt": "q", "chosen": "same", "rejected": "same", "subset": "s", "id": 1}
    assert len(run([row], "pairs")[0]) == 1


def test_equal_replies_are_not_the_best_over_the_worst():
    ranked = [("same", 1), ("middle", 2), ("same", 3)]
    row = {"prompt": "q", "answers": [{"answer": text, "rank": rank} for text, rank in ranked]}
    [pair], counts = run([row], "pairs", ranked=Ranked.best_worst)
    assert (pair["chosen"][-1]["content"], pair["rejected"][-1]["content"]) == ("same", "middle")
    assert counts["dropped (same text)"] == 1


def test_comparisons_shuffle_a_preferences_sides_and_keep_its_label():
    inputs = [preference(number) for number in range(200)]
    results, _ = run(inputs, "comparisons")
    winners = Counter(comparison["winner"] for comparison in results)
    assert winners.keys() == {"a", "b"} and 70 < winners["a"] < 130
    for row, comparison in zip(inputs, results, strict=True):
        assert comparison[comparison["winner"]] == row["chosen"]
        records.parse_judged(Record(dict(comparison)))


def test_two_peoples_votes_on_the_same_texts_are_both_kept():
    inputs = [
        VOTE | {"winner": "model_a"},
        VOTE | {"judge": "two", "winner": "model_b"},
        VOTE | {"winner": "model_a"},
    ]
    results, counts = run(inputs, "comparisons")
    assert [(vote["id"], vote["winner"]) for vote in results] == [
        ("1/x/y/one/1", "a"),
        ("1/x/y/two/1", "b"),
    ]
    assert counts == {"rows read": 3, "dropped (duplicate)": 1}


def test_a_preferences_conversations_are_branches_that_pair_joins_again():
    row = preference(1)
    branches, _ = run([row], "conversations")
    assert [branch["branch"] for branch in branches] == ["chosen", "rejected"]
    [pair] = join_branches(records.parse_branch(Record(branch)) for branch in branches)
    assert (pair["id"], pair["chosen"], pair["rejected"]) == (
        row["id"],
        row["chosen"],
        row["rejected"],
    )


def test_a_comparisons_conversations_are_samples_of_one_id():
    results, _ = run([VOTE | {"winner": "tie"}], "conversations")
    assert [(result["id"], result["sample"], result["messages"]) for result in results] == [
        ("1/x/y/one/1", 0, talk("q", "from x")),
        ("1/x/y/one/1", 1, talk("q", "from y")),
    ]


def test_our_own_records_keep_unknown_fields():
    row = preference(1) | {"contrast": [{"message": 3}], "anything": 1}
    assert run([row], "pairs")[0] == [row]


@pytest.mark.parametrize("identity", [{"id": "c"}, {}])
@pytest.mark.parametrize("emit", ["seeds", "prompts", "conversations"])
def test_what_is_made_of_a_conversation_keeps_whom_its_user_plays(identity, emit):
    row = {**identity, "messages": talk("q", "a"), "user_persona": {"goal": "x"}, "persona": "y"}
    [made], _ = run([row], emit)
    assert made["user_persona"] == {"goal": "x"}


# Columns that look like labels


def said_of_labels(*inputs, emit="seeds"):
    lines = []
    list(sample(rows(*inputs), SampleConfig(emit=emit), stats=RunStats(say=lines.append)))
    return lines


@pytest.mark.parametrize(
    "fields, column",
    [
        ({"overall_preference": -2}, "overall_preference"),
        ({"better_response_id": 0}, "better_response_id"),
        ({"safer": "r1"}, "safer"),
        ({"responseRank": 1}, "responseRank"),
        ({"winner_model_a": 0}, "winner_model_a"),
        ({"chosen": 0}, "chosen"),
        ({"candidates": [{"answer": "r", "rank": 1.0}]}, "candidates[].rank"),
        ({"annotation": {"rating": 4}}, "annotation.rating"),
        ({"scores": {"m": 4.0}}, "scores"),
    ],
)
@pytest.mark.parametrize("text", [{"prompt": "q"}, {"messages": talk("q", "r")}])
def test_a_column_that_looks_like_a_label_and_was_not_read_is_said_once(fields, column, text):
    [line] = said_of_labels(text | fields, text, text | fields, emit="prompts")
    assert line == (
        f"2 rows have a column {column} that was not read as a label (first: file:1); `columns` "
        "says what a column is"
    )


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "r", "rejected": "s", "score_chosen": 8.5, "chosen_model": "m"},
        {"prompt": "q", "preference": None, "frankly": 1, "metadata": {"score": 1}},
        {"id": "x", "messages": talk("q", "r"), "scores": {"rm": 1}, "branch": "chosen"},
        {"input": "q", "output_1": "a", "output_2": "b", "label": 1},
    ],
)
def test_labels_that_were_read_or_kept_beside_one_that_was_are_not_said(row):
    assert said_of_labels(row) == []


# Texts that were not read, and scores against the choice

PAIR = {"prompt": "Which?", "chosen": "good", "rejected": "bad"}
EARLIER = [{"role": "user", "content": "earlier"}, {"role": "assistant", "content": "yes"}]
HISTORY_HELP = "`columns` history={} puts messages before the prompt"


@pytest.mark.parametrize(
    "column, value, help",
    [
        ("messages", EARLIER, HISTORY_HELP),
        ("conversation", [{"from": "human", "value": "earlier"}], HISTORY_HELP),
        ("dialog", [{"input": "earlier", "output": "yes"}], HISTORY_HELP),
        ("log", "\n\nHuman: earlier\n\nAssistant: yes", "a prompt holds all that was asked"),
        ("context", "a passage", "a prompt holds all that was asked"),
        ("input", "a text to translate", "a prompt holds all that was asked"),
        ("system_message", "Be brief.", "a prompt holds all that was asked"),
    ],
)
def test_messages_and_texts_that_are_in_no_message_are_said_once(column, value, help):
    [line] = said_of_labels(PAIR | {column: value}, PAIR, PAIR | {column: value}, emit="prompts")
    assert line == (
        f"2 rows have a column {column} whose text is in no message (first: file:1); "
        + help.format(column)
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": talk("Which?", "good")},  # as UltraFeedback has them
        {"conversation": [{"input": "Which?", "output": "another reply"}]},  # as Capybara has it
        {"messages": []},
        {"question": " Which? "},
        {"context": talk("earlier", "yes")},
        {"tags": [["maths", "easy"]], "metadata": {"messages": EARLIER}},
    ],
)
def test_messages_that_a_side_has_are_not_said(fields):
    assert said_of_labels(PAIR | fields, emit="pairs") == []


@pytest.mark.parametrize("asking", ["prompt", "question", "instruction"])
def test_a_passage_beside_a_question_or_an_instruction_is_said(asking):
    row = {asking: "Which?", "context": "a passage", "chosen": "good", "rejected": "bad"}
    [line] = said_of_labels(row, emit="pairs")
    assert line.startswith("1 row has a column context whose text is in no message")


@pytest.mark.parametrize("value", [True, "True", 1])
def test_a_tie_beside_a_chosen_side_is_said(value):
    [line] = said_of_labels(PAIR | {"is_tie": value}, emit="pairs")
    assert line == "1 row has a true is_tie (first: file:1); the chosen side stays chosen"
    assert said_of_labels(PAIR | {"is_tie": False}, emit="pairs") == []


def test_a_system_message_beside_another_is_said():
    messages = [{"role": "system", "content": "Be brief."}, *talk("q", "r")]
    [line] = said_of_labels({"messages": messages, "system": "Be long."}, emit="conversations")
    assert line.startswith("1 row has a column system whose text is in no message")
    assert said_of_labels({"messages": messages, "system": "Be brief."}, emit="prompts") == []


def test_a_text_beside_whole_conversations_describes_them():
    row = {"query": "what the talk is about", "chosen": talk("q", "r"), "rejected": talk("q", "s")}
    assert said_of_labels(row, emit="pairs") == []


@pytest.mark.parametrize(
    "chosen, rejected",
    [("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating")],
)
def test_scores_that_do_not_favor_the_chosen_side_are_counted_and_the_pair_is_kept(
    chosen, rejected
):
    scores = [(8, 2), (5.0, 6.5), ("5", "6"), (7, 7), (None, 3), (True, 3)]
    inputs = [
        PAIR | {"id": number, chosen: high, rejected: low}
        for number, (high, low) in enumerate(scores)
    ]
    assert said_of_labels(*inputs, emit="pairs") == [
        f"2 rows have a {chosen} below {rejected} (first: file:2); the chosen side stays chosen",
        f"1 row has a {chosen} equal to {rejected} (first: file:4); the chosen side stays chosen",
    ]
    other = {"chosen_length": 3, "rejected_length": 9, "chosen_rank": 1, "rejected_rank": 2}
    assert said_of_labels(PAIR | other, emit="pairs") == []


# What is left out


def test_repeated_texts_are_dropped_whatever_their_ids():
    inputs = [preference(1), preference(2), preference(1) | {"id": "other"}]
    pairs, counts = run(inputs, "pairs")
    assert [pair["id"] for pair in pairs] == ["p1", "p2"]
    assert counts == {"rows read": 3, "dropped (duplicate)": 1}


def test_a_benchmarks_rows_are_never_merged():
    row = {"prompt": "q", "chosen": "r", "rejected": "s", "subset": "donotanswer"}
    pairs, _ = run([row | {"id": 0}, row | {"id": 1}], "pairs")
    assert [pair["id"] for pair in pairs] == ["donotanswer/0", "donotanswer/1"]


def test_other_texts_under_one_id_get_an_id_of_their_own_the_same_every_time():
    inputs = [preference(1), preference(2) | {"id": "p1"}]
    pairs, counts = run(inputs, "pairs")
    content = records.content_id(inputs[1]["chosen"], inputs[1]["rejected"])
    assert [pair["id"] for pair in pairs] == ["p1", f"p1-{content}"]
    assert counts["ids made unique"] == 1


REWARDBENCH2 = {"id": "30", "subset": "Factuality", "rejected": ["b", "c"]}


def test_all_that_a_row_gives_keeps_one_id_where_another_row_has_it():
    first = REWARDBENCH2 | {"prompt": "Capital of Peru?", "chosen": ["a"]}
    second = REWARDBENCH2 | {"prompt": "Capital of Chile?", "chosen": ["a", "d", "e"]}
    results, counts = run([first, second, first, second], "conversations")
    pools = {}
    for result in results:
        pools.setdefault(result["id"], []).append(result["messages"][0]["content"])
    assert list(pools.values()) == [["Capital of Peru?"] * 3, ["Capital of Chile?"] * 5]
    assert [identity[:14] for identity in pools] == ["Factuality/30", "Factuality/30-"]
    assert counts["dropped (duplicate)"] == 8
    pairs, _ = run([first, second], "pairs")
    assert len({pair["id"] for pair in pairs}) == 2 + 6


def test_the_sides_of_a_record_stay_together():
    contests = [
        {"id": "p", "best_of": 2, "a": talk("q", "r"), "b": talk("q", "s")},
        {"id": "p", "best_of": 4, "a": talk("q", "r"), "b": talk("q", "t")},
    ]
    results, _ = run(contests, "conversations")
    assert [result["sample"] for result in results] == [0, 1, 0, 1]
    assert [len({result["id"] for result in results[at : at + 2]}) for at in (0, 2)] == [1, 1]
    shared = [preference(1), {**preference(1), "id": "p2", "rejected": talk("1 0", "worse")}]
    branches, _ = run(shared, "conversations")
    assert (
        len(list(join_branches(records.parse_branch(Record(branch)) for branch in branches))) == 2
    )


def test_candidates_of_one_id_in_several_rows_keep_it():
    pool = [
        {"id": "p", "sample": number, "messages": talk("q", f"{number}"), "metadata": {}}
        for number in (0, 1)
    ]
    assert run(pool, "conversations") == (pool, {"rows read": 2})


def test_one_long_result_does_not_take_the_others_with_it():
    row = {"id": "x", "chosen": talk("q", "r" * 400), "rejected": talk("q", "s")}
    branches, counts = run([row], "conversations", max_tokens=50)
    assert [branch["branch"] for branch in branches] == ["rejected"]
    assert counts["dropped (longer than max tokens)"] == 1


def test_long_pairs_are_dropped_and_long_seeds_cut_earlier():
    long = {
        "id": "long",
        "chosen": talk("q", "r", "x" * 400, "good"),
        "rejected": talk("q", "r", "y", "b"),
    }
    inputs = [preference(1), long]
    pairs, counts = run(inputs, "pairs", max_tokens=50)
    assert [pair["id"] for pair in pairs] == ["p1"]
    assert counts == {"rows read": 2, "dropped (longer than max tokens)": 1}
    for seed in range(20):
        assert all(
            count_tokens(result["messages"]) <= 50
            for result in run(inputs, seed=seed, max_tokens=50)[0]
        )
    assert (
        run([{"messages": talk("x" * 400, "r")}], max_tokens=50)[1][
            "dropped (longer than max tokens)"
        ]
        == 1
    )


WORDS = [f"word{number}" for number in range(30)]


@pytest.mark.parametrize(
    "text, out",
    [
        ("What is 2+2?", True),
        ("  what IS 2 + 2 ", True),
        ("What is 2+2? Explain.", False),
        ("Please: " + " ".join(WORDS[5:18]) + ", thanks", True),
        ("Please: " + " ".join(WORDS[5:17]) + ", thanks", False),
    ],
)
def test_a_benchmarks_prompts_stay_out(text, out):
    excluded = excluded_prompts(
        {"prompt": "What is 2+2?", "chosen": "4", "rejected": "5"},
        {"messages": talk("Hello", "Hi", " ".join(WORDS))},
    )
    kept, counts = run(
        [{"messages": talk(text, "r")}, {"messages": talk("fresh", "r")}], excluded=excluded
    )
    assert [seed["messages"][0]["content"] for seed in kept] == (
        ["fresh"] if out else [text, "fresh"]
    )
    assert counts.get("dropped (overlaps an excluded dataset)", 0) == out


@pytest.mark.parametrize(
    "prompt, text, out",
    [
        ("请写一首关于秋天的诗，要有四句。", "请写一首关于秋天的诗，要有四句。字数不限", True),
        ("请写一首关于秋天的诗，要有四句。", "请写一首关于春天的诗，要有四句。字数不限", False),
        (
            "秋について四行の詩を書いてください。",
            "お願いします。秋について四行の詩を書いてください",
            True,
        ),
        ("ช่วยเขียนบทกวีเกี่ยวกับฤดูใบไม้ร่วง", "ช่วยเขียนบทกวีเกี่ยวกับฤดูใบไม้ร่วงหน่อย", True),
        ("가을에 대한 시를 써 주세요", "가을에 대한 시를 써 주세요!", True),
        ("???", " ??? ", True),
        ("???", "!!!", False),
        ("???", "👍", False),
    ],
)
def test_prompts_without_spaces_and_without_words_are_compared_too(prompt, text, out):
    excluded = excluded_prompts({"prompt": prompt})
    assert (
        run([{"messages": talk(text, "r")}], excluded=excluded)[1].get(
            "dropped (overlaps an excluded dataset)", 0
        )
        == out
    )


def test_later_user_messages_are_held_against_the_benchmark_too():
    excluded = excluded_prompts({"prompt": " ".join(WORDS)})
    row = {"messages": talk("Hello", "Hi", " ".join(WORDS), "r")}
    assert run([row], excluded=excluded)[0] == []


def test_a_bad_row_stops_the_run_and_says_how_to_leave_it_out():
    with pytest.raises(RecordError) as caught:
        run([preference(1), {"id": "x", "chosen": talk("q"), "rejected": talk("q", "r")}])
    assert str(caught.value) == (
        "file:2: chosen: ends with the user; it should end with the assistant "
        "(`on_error` skip leaves such rows out)"
    )


def test_bad_rows_are_skipped_counted_and_said():
    reports = []
    rejects = Rejects(skip=True, report=reports.append)
    pairs, counts = run(
        [{"foo": 1}, preference(1), {"id": "x", "chosen": talk("q"), "rejected": talk("q", "r")}],
        "pairs",
        rejects=rejects,
    )
    assert [pair["id"] for pair in pairs] == ["p1"]
    assert (rejects.count, counts) == (2, {"rows read": 3})
    assert reports[1] == "file:3: chosen: ends with the user; it should end with the assistant"


def test_a_trajectory_without_a_reply_makes_no_pair():
    row = {"task": {"task_id": 1}, "state": {"history": talk("q"), "success": False}}
    assert run([row], "pairs") == ([], {"rows read": 1, "dropped (no reply)": 1})


# What is chosen


def test_a_choice_keeps_the_order_and_follows_from_the_seed():
    inputs = [preference(number) for number in range(100)]
    first, _ = run(inputs, "pairs", count=10, seed=1)
    assert (
        first
        == run(inputs, "pairs", count=10, seed=1)[0]
        != run(inputs, "pairs", count=10, seed=2)[0]
    )
    numbers = [int(pair["id"][1:]) for pair in first]
    assert numbers == sorted(set(numbers)) and len(numbers) == 10


@pytest.mark.slow
def test_every_row_has_the_same_chance():
    inputs = [preference(number, length=2) for number in range(10)]
    chosen = Counter(
        pair["id"] for seed in range(1000) for pair in run(inputs, "pairs", count=3, seed=seed)[0]
    )
    assert len(chosen) == 10 and all(230 < count < 370 for count in chosen.values())


def test_a_seed_is_cut_the_same_whichever_rows_stand_beside_it():
    inputs = [preference(number, length=8) for number in range(50)]
    everything = {result["id"]: result for result in run(inputs)[0]}
    assert all(everything[result["id"]] == result for result in run(inputs[10:], count=20)[0])


def test_asking_for_more_than_there_are_gives_all_and_says_so():
    pairs, counts = run([preference(1), preference(2)], "pairs", count=5)
    assert len(pairs) == 2
    assert counts == {"rows read": 2, "fewer than asked for": 3}


def test_without_a_count_records_stream():
    def endless():
        number = 0
        while True:
            number += 1
            yield "file", Record(preference(number))

    stream = sample(endless(), SampleConfig(emit="pairs"))
    assert [next(stream)["id"] for _ in range(3)] == ["p1", "p2", "p3"]


# The command


def music(*words, stdin=None):
    command = [*preloaded.command(), "sample", *map(str, words)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True)


def last_line(done):
    return done.stderr.strip().splitlines()[-1]


def test_the_command_reads_a_pipe_and_writes_records():
    done = music(
        "-", "--emit", "prompts", stdin='{"prompt": "q", "chosen": "r", "rejected": "s"}\n'
    )
    assert done.returncode == 0
    assert json.loads(done.stdout) == {
        "id": records.content_id(talk("q", "r"), talk("q", "s")),
        "messages": talk("q"),
        "metadata": {"turns": 0},
    }
    assert "1 records written" in last_line(done) and "1 rows read" in last_line(done)


def test_the_command_excludes_a_benchmark_and_keeps_what_it_rejects(tmp_path):
    (tmp_path / "train.jsonl").write_text(
        "".join(
            json.dumps(row) + "\n"
            for row in [
                {"messages": talk("bench", "r")},
                {"messages": talk("fresh", "r")},
                {"messages": talk("", "r")},
            ]
        )
    )
    (tmp_path / "bench.json").write_text(json.dumps([{"prompt": "Bench!"}]))
    done = music(
        tmp_path / "train.jsonl",
        "--exclude",
        tmp_path / "bench.json",
        "--on-error",
        "skip",
        "--rejects",
        tmp_path / "rejects.jsonl",
        "-o",
        tmp_path / "seeds.jsonl",
    )
    assert done.returncode == 1  # done, but some records failed
    [seed] = map(json.loads, (tmp_path / "seeds.jsonl").read_text().splitlines())
    assert seed["messages"] == talk("fresh", "r")
    assert json.loads((tmp_path / "rejects.jsonl").read_text()) == {
        "messages": talk("", "r"),
        "error": f"{tmp_path}/train.jsonl:3: messages[0]: content of this user message is empty",
    }
    assert "1 dropped (overlaps an excluded dataset)" in last_line(
        done
    ) and "1 failed" in last_line(done)


@pytest.mark.slow
def test_the_command_narrows_corruptions_and_places_contrasts():
    stdin = "".join(
        json.dumps(
            {"id": str(number), "messages": talk(*(f"{number} {turn}" for turn in range(6)))}
        )
        + "\n"
        for number in range(5)
    )
    done = music("-", "--emit", "corruptions", "--kind", "reply", "--kind", "swap", stdin=stdin)
    assert {
        result["corruption"]["kind"] for result in map(json.loads, done.stdout.splitlines())
    } == {
        "reply",
        "swap",
    }
    done = music("-", "--emit", "contrasts", "--turn", "last", stdin=stdin)
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [
        f"{n}/reply-3" for n in range(5)
    ]
    assert (done.returncode, last_line(done)[:34]) == (0, "music sample: 5 records written in")


@pytest.mark.parametrize(
    "words, error",
    [
        (["--emit", "contrasts", "--kind", "reply"], "--kind is for --emit corruptions"),
        (["--emit", "corruptions", "--turn", "last"], "--turn is for --emit contrasts"),
        (["--kind", "swap"], "--kind is for --emit corruptions"),
    ],
)
def test_an_option_of_another_kind_of_record_is_refused(words, error):
    done = music("-", *words, stdin="")
    assert (done.returncode, done.stdout) == (2, "")
    assert last_line(done) == f"music sample: error: {error}"


@pytest.mark.parametrize(
    "words, error",
    [
        (["missing.jsonl"], "missing.jsonl: no such file or folder, no short name (music help "),
        (["{folder}"], "holds no .jsonl, .json, .csv, .tsv, .parquet or .arrow file"),
        (["{folder}", "-n", "0"], "Invalid value for '--count' / '-n'"),
        (
            ["-"],
            "<stdin>:1: no known format has the columns foo; say what they hold, as --columns ",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line_and_status_2(tmp_path, words, error):
    done = music(*(word.replace("{folder}", str(tmp_path)) for word in words), stdin='{"foo": 1}\n')
    assert (done.returncode, done.stdout) == (2, "")
    assert error in done.stderr and "Traceback" not in done.stderr
    assert error in last_line(done)


def test_the_manual_names_every_short_name():
    from musiccli import manual
    from musiccli.sample.hub_datasets import SHORT_NAMES

    page = (Path(manual.__file__).parent / "datasets.md").read_text("utf-8")
    assert [name for name in SHORT_NAMES if f"`{name}`" not in page] == []


@pytest.mark.slow
def test_a_closed_pipe_ends_quietly(tmp_path):
    with gzip.open(tmp_path / "many.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(preference(number, length=40)) + "\n" for number in range(5000))
    command = [
        sys.executable,
        "-c",
        "from musiccli.cli.main import main; main()",
        "sample",
        "--emit",
        "pairs",
        str(tmp_path / "many.jsonl.gz"),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert json.loads(process.stdout.readline())["id"] == "p0"
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 0


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize(
    "name, emit, count",
    [
        ("hh_helpful", "pairs", 1124),  # 13 rows have equal sides
        ("hh_harmless", "pairs", 2299),
        ("dpo_en_demo", "pairs", 295),
        ("mint", "pairs", 712),
        ("oasst", "pairs", 754),
        ("llmbar", "pairs", 419),
        ("mtbench101", "seeds", 1387),
        ("mint", "prompts", 199),
        ("oasst", "prompts", 100),
    ],
)
def test_the_command_reads_each_of_the_public_files(name, emit, count, tmp_path):
    done = music(DATA / name, "--emit", emit, "--on-error", "skip", "-o", tmp_path / "out.jsonl")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == count
    assert done.returncode == (name == "hh_harmless")  # 13 of its rows are refused


@pytest.mark.parametrize("number, count", [(100, 10_000), (101, None)])
def test_the_pairs_of_one_row_are_bounded(number, count):
    """They grow with the square of its replies."""
    row = {
        "prompt": "q",
        "chosen": [f"good {index}" for index in range(number)],
        "rejected": [f"bad {index}" for index in range(number)],
    }
    if count:
        assert len(run([row], "pairs")[0]) == count
    else:
        with pytest.raises(RecordError, match="file:1: gives more than 10,000 pairs"):
            run([row], "pairs")
