"""Datasets of preferences that people or models gave, by the name of the dataset."""

import csv
import json

import pytest
from build import assistant, talk, user
from dataset_rows import FORMATS, emitted, needs_formats, read, rows

from musiccli.core.errors import InputError, RecordError
from musiccli.core.jsonl import Rejects
from musiccli.sample import row_groups
from musiccli.sample.config import Ranked

pytestmark = needs_formats

QUESTION = "How do I prune a rose?"
ROSE = talk(QUESTION, "Cut above an outward bud.", "And in which month?")
ARENA = {
    "a": [*ROSE, assistant("In late winter.")],
    "b": [*talk(QUESTION, "No idea.", "And in which month?"), assistant("Any.")],
}


def changed(row, **columns):
    """A row with other values in some columns."""
    return {**row, **columns}


def sides(pair):
    """The last reply of the chosen side and that of the rejected one."""
    return pair["chosen"][-1]["content"], pair["rejected"][-1]["content"]


# Votes between two replies


def test_helpsteer3_below_zero_is_for_the_first_reply_and_zero_is_a_tie():
    preferred, tied = rows("helpsteer3_pref")
    [record] = read(preferred, source="helpsteer3")
    assert record["a"] == [*ROSE, assistant("In late winter.")]
    assert record["b"] == [*ROSE, assistant("Whenever.")]
    assert record["winner"] == "a"
    assert record["metadata"] == {
        "domain": "general",
        "language": "english",
        "overall_preference": -2,
        "strength": 2,
        "annotators": 2,
        "annotator_strengths": [-2, -1],
        "turns": 2,
        "source": "helpsteer3",
    }
    [comparison] = read(tied)
    assert (comparison["winner"], comparison["metadata"]["strength"]) == ("tie", 0)
    [pair], counts = emitted(preferred, tied)
    assert sides(pair) == ("In late winter.", "Whenever.")
    assert pair["metadata"]["chosen_side"] == "a"
    assert counts == {"rows read": 2, "dropped (tie)": 1}
    [other_way], _ = emitted(changed(preferred, overall_preference=1))
    assert sides(other_way) == ("Whenever.", "In late winter.")
    assert other_way["metadata"]["chosen_side"] == "b"


def test_helpsteer2_preferences_have_a_strength():
    [row] = rows("helpsteer2_pref")
    [pair], counts = emitted(row)
    assert pair["chosen"] == talk(QUESTION, "Cut above a bud.")
    assert pair["rejected"] == talk(QUESTION, "No idea.")
    assert pair["metadata"] == {
        "split": "train",
        "preference_strength": -2,
        "preference_statement": "1 is better",
        "preference_elaboration": "",
        "strength": 2,
        "annotators": 1,
        "annotator_strengths": [-2],
        "similar_strengths": [-2],
        "turns": 1,
        "chosen_side": "a",
    }
    assert counts == {"rows read": 1}


def test_helpsteer2_turns_are_parted_at_their_marks_and_kept_byte_for_byte():
    [row] = rows("helpsteer2_pref")
    prompt = " q \n\n<extra_id_1>Assistant\n r\n <extra_id_1>User\nsay <extra_id_1>"
    [record] = read(
        changed(row, prompt=prompt + "\n<extra_id_1>Assistant\n\tt \n<extra_id_1>User\nu\n")
    )
    assert record["a"] == talk(
        " q \n", " r\n ", "say <extra_id_1>", "\tt ", "u\n", "Cut above a bud."
    )
    with pytest.raises(RecordError, match="prompt: ends with the assistant"):
        read(changed(row, prompt="q\n<extra_id_1>Assistant\nr"))


def test_helpsteer2_ratings_are_a_conversation_and_no_pair():
    [row] = rows("helpsteer2_ratings")
    assert read(row, source="helpsteer2") == [
        {
            "id": read(row)[0]["id"],
            "messages": talk(QUESTION, "Cut above a bud."),
            "metadata": {
                "helpfulness": 4,
                "correctness": 4,
                "coherence": 4,
                "complexity": 2,
                "verbosity": 2,
                "turns": 1,
                "source": "helpsteer2",
            },
        }
    ]
    assert emitted(row) == ([], {"rows read": 1, "dropped (nobody ranked it)": 1})


def test_helpsteer2_ratings_of_one_prompt_make_pairs():
    [good] = rows("helpsteer2_ratings")
    bad = changed(good, response="Cut all.", helpfulness=1, verbosity=3)
    other = changed(good, prompt="Why?", response="So.")
    [record], counts = emitted(good, bad, other)
    assert (record["chosen"], record["rejected"]) == (
        talk(QUESTION, "Cut above a bud."),
        talk(QUESTION, "Cut all."),
    )
    ratings = {"helpfulness": 4, "correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 2}
    assert record["metadata"] == {
        "label": "helpfulness",
        "ratings": [ratings, ratings | {"helpfulness": 1, "verbosity": 3}],
        "turns": 1,
    }
    assert counts == {"rows read": 3, "dropped (nobody ranked it)": 1}
    [wordy], _ = emitted(good, bad, label="verbosity")
    assert wordy["chosen"] == talk(QUESTION, "Cut all.")
    assert emitted(good, changed(bad, helpfulness=4)) == ([], {"rows read": 2, "dropped (tie)": 1})


def test_helpsteer2_rows_stay_conversations_and_a_prompt_may_come_again():
    [good] = rows("helpsteer2_ratings")
    bad = changed(good, response="Cut all.")
    other = changed(good, prompt="Why?", response="So.")
    apart = [*read(good), *read(bad), *read(other), *read(changed(good, response="No."))]
    together, _ = emitted(good, bad, other, changed(good, response="No."), emit="conversations")
    keys = ("id", "messages")
    assert [[record[key] for key in keys] for record in together] == [
        [record[key] for key in keys] for record in apart
    ]
    rejects = Rejects(skip=True)
    kept, _ = emitted(good, changed(bad, verbosity=9), rejects=rejects, emit="conversations")
    assert (len(kept), rejects.count) == (1, 1)


def test_arena_33k_tells_a_tie_of_bad_replies_from_a_tie():
    won, bad = rows("arena_33k_cac")
    [record] = read(won)
    assert record == {
        "id": "q1/a/b/arena_user_1/2",
        **ARENA,
        "winner": "a",
        "metadata": {
            "question_id": "q1",
            "model_a": "a",
            "model_b": "b",
            "judge": "arena_user_1",
            "turn": 2,
            "anony": True,
            "language": "English",
            "tstamp": 1.0,
            "turns": 2,
        },
    }
    for row, both_bad in ((bad, True), (changed(bad, winner="tie"), False)):
        [tied] = read(row)
        assert (tied["winner"], tied["metadata"]["both_bad"]) == ("tie", both_bad)
    assert emitted(bad) == ([], {"rows read": 1, "dropped (tie)": 1})


def test_arena_55k_has_json_lists_of_turns_and_one_winner_of_three():
    [row] = rows("arena_55k")
    [record] = read(row, source="arena-55k")
    assert record == {
        "id": 30192,
        "a": talk(QUESTION, "Cut above a bud.", "In which month?", "Late winter."),
        "b": talk(QUESTION, "No idea.", "In which month?", "Any."),
        "winner": "a",
        "metadata": {"model_a": "a", "model_b": "b", "turns": 2, "source": "arena-55k"},
    }
    with open(FORMATS / "arena_55k.csv", newline="", encoding="utf-8") as file:
        [row_of_texts] = csv.DictReader(file)
    [record] = read(row_of_texts)
    assert (record["a"], record["b"]) == (talk("hi", "yo"), talk("hi", "no"))
    assert (record["id"], record["winner"]) == ("1", "a")
    marks = {"winner_model_a": "0", "winner_model_b": 0.0, "winner_tie": True}
    assert read(row | marks)[0]["winner"] == "tie"


@pytest.mark.parametrize(
    "columns, error",
    [
        ({"response_a": '["one"]'}, "response_a: holds 1 turns; the prompt holds 2"),
        ({"response_b": '["one", null]'}, r"b\[3\]: content is null; it should be a string"),
        ({"response_b": "[one]"}, r"response_b: is no JSON list \("),
        ({"response_b": '"one"'}, "response_b: should be a list of texts"),
        (
            {"winner_tie": 1},
            "winner_model_a: 2 of winner_model_a, winner_model_b, winner_tie are 1",
        ),
        ({"winner_model_a": 0}, "winner_model_a: 0 of "),
        ({"winner_model_a": 2}, "winner_model_a: is 2; it should be true or false"),
    ],
)
def test_arena_55k_rows_that_do_not_add_up_are_refused(columns, error):
    [row] = rows("arena_55k")
    with pytest.raises(RecordError, match=f"rows.jsonl:1: {error}"):
        read(row | columns)


def test_arena_55k_without_winners_is_a_comparison_that_nobody_ranked():
    [row] = rows("arena_55k")
    row = {name: value for name, value in row.items() if not name.startswith("winner_")}
    [comparison] = read(row)
    assert "winner" not in comparison and comparison["a"][0] == user(QUESTION)


def test_arena_100k_keeps_language_and_categories():
    [row] = rows("arena_100k")
    tags = {"criteria_v0.1": {"complexity": True}}
    [record] = read(changed(row, category_tag=tags))
    assert record["id"] == "q1/a/b/2"
    assert (record["a"], record["b"], record["winner"]) == (ARENA["a"], ARENA["b"], "b")
    assert record["metadata"] == {
        "question_id": "q1",
        "model_a": "a",
        "model_b": "b",
        "turn": 2,
        "anony": True,
        "language": "English",
        "tstamp": 1.0,
        "is_code": False,
        "is_refusal": False,
        "judge_hash": "abc",
        "category_tag": tags,
        "turns": 2,
    }


def test_arena_140k_has_content_in_parts_and_both_bad_is_a_tie():
    [row] = rows("arena_140k")
    [record] = read(row)
    assert record == {
        "id": "u1",
        **ARENA,
        "winner": "a",
        "metadata": {
            "model_a": "a",
            "model_b": "b",
            "evaluation_session_id": "e",
            "evaluation_order": 1,
            "language": "en",
            "is_code": False,
            "timestamp": "2025-05-01",
            "category_tag": {},
            "turns": 2,
        },
    }
    [row] = rows("arena_140k_bothbad")
    [record] = read(row)
    assert (record["a"], record["b"]) == (ARENA["a"], ARENA["b"])
    assert (record["winner"], record["metadata"]["both_bad"]) == ("tie", True)


def test_comparia_names_the_chosen_model():
    [row] = rows("comparia")
    [record] = read(row, source="comparia")
    assert record == {
        "id": 1,
        "a": talk("Bonjour ?", "Oui."),
        "b": talk("Bonjour ?", "Non."),
        "winner": "a",
        "metadata": {
            "timestamp": "2025-01-01",
            "model_a_name": "a",
            "model_b_name": "b",
            "conv_turns": 1,
            "chosen_model_name": "a",
            "both_equal": False,
            "conv_useful_a": True,
            "turns": 1,
            "source": "comparia",
        },
    }
    tags = {"categories": ["Arts"], "languages": ["fr"]}
    tied = changed(row, chosen_model_name=None, both_equal=True, **tags)
    [record] = read(tied)
    assert record["winner"] == "tie"
    assert record["metadata"].items() >= tags.items()
    assert read(changed(row, chosen_model_name="b"))[0]["winner"] == "b"


def test_pku_saferlhf_has_two_labels_of_which_the_user_chooses():
    [row] = rows("pku_saferlhf")
    row = changed(
        row,
        safer_response_id=1,
        response_0_harm_category={"Violence": True, "Privacy Violation": False},
        response_1_harm_category={"Violence": False, "Privacy Violation": False},
    )
    [helpful], counts = emitted(row)
    assert sides(helpful) == ("Cut above a bud.", "No idea.")
    assert helpful["metadata"] == {
        "is_response_0_safe": True,
        "is_response_1_safe": True,
        "better_response_id": 0,
        "safer_response_id": 1,
        "label": "helpfulness",
        "harms": [["Violence"], []],
        "turns": 1,
        "chosen_side": "a",
    }
    assert counts == {"rows read": 1}
    [safe], _ = emitted(row, label="safety")
    assert sides(safe) == ("No idea.", "Cut above a bud.")
    assert (safe["metadata"]["label"], safe["metadata"]["chosen_side"]) == ("safety", "b")


def test_a_label_that_a_format_does_not_have_is_no_fault_of_the_row():
    [row] = rows("pku_saferlhf")
    with pytest.raises(InputError, match="have the labels helpfulness, safety"):
        emitted(row, label="kindness", rejects=Rejects(skip=True))
    [row] = rows("shp")
    with pytest.raises(InputError, match="`label` safety: rows of the format SHP have one label"):
        emitted(row, label="safety")


def test_shp_label_1_is_comment_a():
    [row] = rows("shp")
    [record] = read(row, source="shp")
    assert record == {
        "id": "p/a-b",
        "a": talk(QUESTION, "Cut above a bud."),
        "b": talk(QUESTION, "No."),
        "winner": "a",
        "metadata": {
            "post_id": "p",
            "domain": "askculinary_train",
            "upvote_ratio": 0.98,
            "c_root_id_A": "a",
            "c_root_id_B": "b",
            "created_at_utc_A": 1,
            "created_at_utc_B": 2,
            "score_A": 10,
            "score_B": 2,
            "labels": 1,
            "seconds_difference": 1.0,
            "score_ratio": 5.0,
            "turns": 1,
            "source": "shp",
        },
    }
    assert read(changed(row, labels=0))[0]["winner"] == "b"


@pytest.mark.parametrize("name", ["arena_33k_cac", "arena_140k", "ppe_human"])
@pytest.mark.parametrize(
    "vote, winner, labels",
    [
        ("Model A", "a", {}),
        ("MODEL_B", "b", {}),
        ("Tie", "tie", {"both_bad": False}),
        ("Tie (both bad)", "tie", {"both_bad": True}),
        ("bothbad", "tie", {"both_bad": True}),
        ("tie(bothbad)", "tie", {"both_bad": True}),
    ],
)
def test_votes_are_read_in_any_spelling(name, vote, winner, labels):
    [record] = read(changed(rows(name)[0], winner=vote))
    assert record["winner"] == winner
    kept = {label: record["metadata"][label] for label in labels}
    assert kept == labels and ("both_bad" in record["metadata"]) == bool(labels)


VOTES = [  # a dataset's file, the column of its label, and values that are none
    ("helpsteer3_pref", "overall_preference", (4, -3.5, 0.5, "better", True, [], float("nan"))),
    ("helpsteer2_pref", "preference_strength", (-100, "1 is better", False, {})),
    ("arena_33k_cac", "winner", ("model_c", "ties", "", 1, ["model_a"])),
    ("arena_140k", "winner", ("both", "A", {})),
    ("comparia", "chosen_model_name", ("c", 1, ["a"])),
    ("pku_saferlhf", "better_response_id", (2, -1, True, "first", 0.5)),
    ("shp", "labels", (2, -1, "A", True, [1])),
]


@pytest.mark.parametrize(
    "name, column, value",
    [(name, column, value) for name, column, values in VOTES for value in values],
)
def test_a_vote_outside_its_scale_is_refused_by_its_column(name, column, value):
    row = changed(rows(name)[0], **{column: value})
    with pytest.raises(RecordError) as caught:
        read(row)
    assert str(caught.value).startswith(f"rows.jsonl:1: {column}: is ")


@pytest.mark.parametrize("name, column", [(name, column) for name, column, _ in VOTES])
def test_a_vote_that_is_null_ranks_nothing(name, column):
    row = changed(rows(name)[0], **{column: None})
    assert emitted(row) == ([], {"rows read": 1, "dropped (nobody ranked it)": 1})
    [comparison], _ = emitted(row, emit="comparisons")
    assert comparison.get("winner") is None


@pytest.mark.parametrize(
    "name, column, words",
    [
        ("helpsteer3_pref", "overall_preference", ("-2", "-2.0", -2.0)),
        ("shp", "labels", ("1", 1.0)),
        ("pku_saferlhf", "better_response_id", ("0", 0.0)),
    ],
)
def test_numbers_of_tables_are_read_in_any_spelling(name, column, words):
    for word in words:
        assert read(changed(rows(name)[0], **{column: word}))[0]["winner"] == "a"


@pytest.mark.parametrize(
    "name, column, pairs",
    [
        ("helpsteer3_pref", "individual_preference", False),
        ("nectar", "answers", True),
        ("ultrafeedback_raw", "completions", True),
        ("prism_conversations", "conversation_history", True),
    ],
)
def test_lists_of_objects_may_be_json_texts_and_nothing_else(name, column, pairs):
    row = rows(name)[0]
    as_text = changed(row, **{column: json.dumps(row[column])})
    assert read(as_text, pairs=pairs) == read(row, pairs=pairs)
    for value in ("[1]", "all of them", 1, {"score": 1}, [None]):
        with pytest.raises(RecordError, match=f"rows.jsonl:1: {column}: is .*list of objects"):
            read(changed(row, **{column: value}), pairs=pairs)


def test_comparia_votes_that_contradict_themselves_are_refused():
    [row] = rows("comparia")
    for columns in ({"both_equal": True}, {"model_b_name": "a"}, {"both_equal": "perhaps"}):
        with pytest.raises(RecordError):
            read(changed(row, **columns))


# Rankings of several replies


def test_community_alignment_prefers_one_of_four_replies_at_each_turn():
    [row] = rows("community_alignment")
    row = changed(row, second_turn_preferred_response="response_b", second_turn_feedback="short")
    pairs, counts = emitted(row)
    history = talk(QUESTION, "Cut above a bud.", "In which month?")
    assert [(pair["id"], pair["chosen"], pair["rejected"]) for pair in pairs] == [
        ("c1/1/0", talk(QUESTION, "Cut above a bud."), talk(QUESTION, "No.")),
        ("c1/1/1", talk(QUESTION, "Cut above a bud."), talk(QUESTION, "Maybe.")),
        ("c1/1/2", talk(QUESTION, "Cut above a bud."), talk(QUESTION, "Ask.")),
        ("c1/2/0", [*history, assistant("Any.")], [*history, assistant("Late winter.")]),
        ("c1/2/1", [*history, assistant("Any.")], [*history, assistant("x")]),
        ("c1/2/2", [*history, assistant("Any.")], [*history, assistant("y")]),
    ]
    assert pairs[-1]["metadata"] == {
        "conversation_id": "c1",
        "assigned_lang": "en",
        "annotator_id": "a1",
        "first_turn_preferred_response": "response_a",
        "second_turn_preferred_response": "response_b",
        "turn": 2,
        "feedback": "short",
        "responses": ["b", "d"],
        "turns": 2,
    }
    assert counts == {"rows read": 1}
    [conversation] = read(row)
    assert (conversation["id"], conversation["messages"]) == (
        "c1",
        [*history, assistant("Any.")],
    )


@pytest.mark.parametrize(
    "columns, error",
    [
        ({"first_turn_preferred_response": None}, "first_turn_preferred_response: is null; "),
        ({"first_turn_prompt": None}, "first_turn_prompt: is missing; "),
        ({"second_turn_preferred_response": "response_e"}, "second_turn_preferred_response: is "),
        ({"first_turn_preferred_response": "a"}, "first_turn_preferred_response: is 'a'; "),
        ({"first_turn_prompt": ""}, "first_turn_prompt: is missing; "),
        ({"fourth_turn_prompt": "And?"}, "third_turn_prompt: is missing; "),
        ({"first_turn_response_a": None}, r"chosen\[1\]: content is null"),
    ],
)
def test_community_alignment_rows_that_do_not_say_what_was_preferred_are_refused(columns, error):
    [row] = rows("community_alignment")
    with pytest.raises(RecordError, match=f"rows.jsonl:1: {error}"):
        read(row | columns, pairs=True)


def prism_turn(turn, prompt, *replies):
    """Messages of one turn; each reply is (text, score, chosen)."""
    return [
        {"turn": turn, "role": "user", "content": prompt},
        *(
            {"turn": turn, "role": "model", "content": text, "model_name": f"m{number}"}
            | {"score": score, "if_chosen": chosen, "within_turn_id": number}
            for number, (text, score, chosen) in enumerate(replies)
        ),
    ]


def test_prism_goes_on_with_the_chosen_reply():
    [row] = rows("prism_conversations")
    [pair], _ = emitted(row)
    assert (pair["chosen"], pair["rejected"]) == (
        talk(QUESTION, "Cut above a bud."),
        talk(QUESTION, "No."),
    )
    assert pair["metadata"] == {
        "conversation_id": "c1",
        "user_id": "u1",
        "conversation_type": "unguided",
        "conversation_turns": 1,
        "open_feedback": "ok",
        "turn": 1,
        "scores": [90, 10],
        "models": ["a", "b"],
        "turns": 1,
    }
    history = prism_turn(0, "q", ("no", 1, False), ("yes", 80, True), ("well", 80, False))
    history += prism_turn(1, "and?", ("so", 70, True), ("thus", 20, False))
    row = changed(row, conversation_history=history)
    pairs, counts = emitted(row)
    assert [(pair["id"], pair["chosen"], pair["rejected"]) for pair in pairs] == [
        ("c1/1/0", talk("q", "yes"), talk("q", "no")),
        ("c1/2/0", talk("q", "yes", "and?", "so"), talk("q", "yes", "and?", "thus")),
    ]
    assert counts == {"rows read": 1, "dropped (tie)": 1}
    [conversation] = read(row)
    assert conversation["messages"] == talk("q", "yes", "and?", "so")


@pytest.mark.parametrize(
    "replies, error",
    [
        ([("a", 1, False), ("b", 2, False)], "0 replies of turn 1 are chosen; one should be"),
        ([("a", 1, True), ("b", 2, True)], "2 replies of turn 1 are chosen; one should be"),
        ([("a", 1, True), ("b", 2, None)], r"conversation_history\[2\].if_chosen: is null; it"),
        ([("a", 1, "yes")], r"conversation_history\[1\].if_chosen: is 'yes'; it should be true"),
        ([("a", 101, True)], r"conversation_history\[1\].score: is 101; it should be a number"),
        ([], "0 replies of turn 1 are chosen; one should be"),
    ],
)
def test_prism_turns_that_do_not_say_what_was_chosen_are_refused(replies, error):
    [row] = rows("prism_conversations")
    row = changed(row, conversation_history=prism_turn(0, "q", *replies))
    for pairs in (True, False):
        with pytest.raises(RecordError, match=error):
            read(row, pairs=pairs)


def test_prism_utterances_are_joined_to_conversations():
    [row] = rows("prism_utterances")
    assert read(row)[0]["messages"] == talk(QUESTION, "Cut above a bud.")
    worse = changed(row, within_turn_id=1, model_response="No.", score=3, if_chosen=False)
    follow_up = changed(row, turn=1, user_prompt="And?", model_response="Wait.")
    other = changed(row, conversation_id="c1", user_prompt="q", model_response="r")
    pairs, counts = emitted(worse, row, follow_up, other)
    [pair] = pairs
    assert (pair["chosen"], pair["rejected"]) == (
        talk(QUESTION, "Cut above a bud."),
        talk(QUESTION, "No."),
    )
    assert pair["metadata"] == {
        "conversation_id": "c0",
        "user_id": "user0",
        "conversation_type": "unguided",
        "turn": 1,
        "scores": [99, 3],
        "models": ["a", "a"],
        "turns": 1,
    }
    assert counts == {"rows read": 4, "dropped (no pair)": 1}
    conversations, _ = emitted(worse, row, follow_up, other, emit="conversations")
    assert [conversation["messages"] for conversation in conversations] == [
        talk(QUESTION, "Cut above a bud.", "And?", "Wait."),
        talk("q", "r"),
    ]


def test_oasst_messages_are_joined_to_trees():
    messages = rows("oasst1_flat")
    [pair], counts = emitted(*messages)
    assert pair == {
        "id": "m2-m3",
        "chosen": talk(QUESTION, "Cut above a bud."),
        "rejected": talk(QUESTION, "No."),
        "metadata": {
            "message_tree_id": "m1",
            "tree_state": "ready_for_export",
            "ranks": [0, 1],
            "lang": "en",
            "turns": 1,
        },
    }
    assert counts == {"rows read": 3}
    follow_up = changed(messages[0], message_id="m4", parent_id="m3", text="And?")
    second = changed(messages[0], message_id="n1", message_tree_id="n1")
    reply = changed(messages[1], message_id="n2", parent_id="n1", message_tree_id="n1")
    tied = [changed(reply, message_id=f"n{number}", text=f"reply {number}") for number in (3, 4)]
    results, counts = emitted(*messages, follow_up, second, *tied)
    assert [result["id"] for result in results] == ["m2-m3"]
    assert counts == {"rows read": 7, "dropped (tie)": 1}
    conversations, _ = emitted(*messages, follow_up, emit="conversations")
    assert [conversation["messages"] for conversation in conversations] == [
        talk(QUESTION, "Cut above a bud."),
        talk(QUESTION, "No.", "And?"),
    ]


def test_oasst_messages_that_fit_into_no_tree_are_refused_one_by_one(monkeypatch):
    root, better, worse = rows("oasst1_flat")
    orphan = changed(worse, message_id="m9", parent_id="gone")
    other = changed(root, message_id="n1", message_tree_id="n1")
    for messages, error in (
        ([root, orphan, better], "rows.jsonl:2: parent_id: is 'gone'; no message before it"),
        ([better, root], "rows.jsonl:1: parent_id: is 'm1'; no message before it"),
        ([root, better, better], "rows.jsonl:3: message_id: two messages have this id"),
        ([root, other, better], "rows.jsonl:3: message_tree_id: 'm1': the rows of one"),
        ([root, changed(better, text=None)], "rows.jsonl:2: text: is null; it should be a text"),
        ([root, changed(better, role="prompter")], "rows.jsonl:2: role: is 'prompter'; it should"),
        ([changed(root, role="user")], "rows.jsonl:1: role: is 'user'; it should be prompter"),
    ):
        with pytest.raises(RecordError, match=error):
            emitted(*messages)
        rejects = Rejects(skip=True)
        emitted(*messages, rejects=rejects, emit="conversations")
        assert rejects.count == 1
    monkeypatch.setattr(row_groups, "MAX_ROWS", 2)
    with pytest.raises(RecordError, match=r"rows.jsonl:3: .* more than 2 rows belong together"):
        emitted(root, better, worse)


def test_a_tree_as_deep_as_a_file_is_long_is_cut_at_a_hundred_messages():
    root, better, _ = rows("oasst1_flat")
    chain = [root] + [
        changed(better, message_id=f"n{number}", parent_id=f"n{number - 1}" if number else "m1")
        | {"role": ("assistant", "prompter")[number % 2]}
        for number in range(200)
    ]
    rejects = Rejects(skip=True)
    [conversation], counts = emitted(*chain, emit="conversations", rejects=rejects)
    assert (len(conversation["messages"]), rejects.count) == (100, 101)
    assert counts == {"rows read": 201}


def test_oasst_messages_of_a_table_may_say_false_as_a_word():
    root, better, worse = rows("oasst1_flat")
    words = {"deleted": "False", "rank": "1"}
    assert len(emitted(root, better, changed(worse, **words))[0]) == 1
    assert emitted(root, better, changed(worse, deleted="True"))[0] == []


@pytest.mark.parametrize("rank", [-1, "best", True, [], 1e9])
def test_oasst_ranks_outside_the_scale_are_refused(rank):
    root, better, worse = rows("oasst1_flat")
    with pytest.raises(RecordError, match="rank of the message m3: is "):
        emitted(root, better, changed(worse, rank=rank))


def nectar(*ranks):
    """A row with an answer for each rank."""
    [row] = rows("nectar")
    answers = [
        {"answer": f"answer {number}", "model": f"m{number}", "rank": rank}
        for number, rank in enumerate(ranks)
    ]
    return changed(row, answers=answers)


def test_nectar_gives_every_pair_of_ranks():
    [row] = rows("nectar")
    [pair], counts = emitted(row)
    assert pair["chosen"] == talk(QUESTION, "Cut above a bud.")
    assert pair["rejected"] == talk(QUESTION, "No.")
    assert pair["metadata"] == {
        "turns": 1,
        "num_responses": 2,
        "good_natured": True,
        "sources": ["x"],
        "ranks": [1, 2],
        "models": ["a", "b"],
    }
    pairs, counts = emitted(nectar(2.0, 7.0, 1.0, 2.0, None))
    assert [(*sides(pair), pair["metadata"]["ranks"]) for pair in pairs] == [
        ("answer 0", "answer 1", [2, 7]),
        ("answer 2", "answer 0", [1, 2]),
        ("answer 2", "answer 1", [1, 7]),
        ("answer 3", "answer 1", [2, 7]),
        ("answer 2", "answer 3", [1, 2]),
    ]
    assert counts == {"rows read": 1, "dropped (tie)": 1, "dropped (nobody ranked it)": 4}


def test_nectar_gives_the_best_over_the_worst_if_asked():
    pairs, counts = emitted(nectar(2.0, 7.0, 1.0, 2.0), ranked=Ranked.best_worst)
    assert [(*sides(pair), pair["metadata"]["ranks"]) for pair in pairs] == [
        ("answer 2", "answer 1", [1, 7])
    ]
    assert counts == {"rows read": 1, "dropped (between best and worst)": 5}


def test_best_over_worst_is_chosen_for_each_message_and_leaves_what_is_not_ranked():
    [row] = rows("prism_conversations")
    history = prism_turn(0, "q", ("a", 9, True), ("b", 5, False), ("c", 1, False))
    history += prism_turn(1, "r", ("d", 9, True), ("e", 1, False), ("f", 5, False))
    pairs, _ = emitted(changed(row, conversation_history=history), ranked=Ranked.best_worst)
    assert [sides(pair) for pair in pairs] == [("a", "c"), ("d", "e")]
    [row] = rows("community_alignment")
    assert len(emitted(row, ranked=Ranked.best_worst)[0]) == 6


def test_the_worst_is_no_reply_with_a_higher_score_than_the_chosen_one():
    [row] = rows("prism_conversations")
    history = prism_turn(0, "q", ("a", 40, True), ("b", 90, False), ("c", 10, False))
    history += prism_turn(1, "r", ("d", 40, True), ("e", 90, False), ("f", 70, False))
    pairs, _ = emitted(changed(row, conversation_history=history), ranked=Ranked.best_worst)
    assert [sides(pair) for pair in pairs] == [("a", "c"), ("d", "f")]


@pytest.mark.parametrize("label, best, worst", [(None, "r3", "r0"), ("verbosity", "r0", "r3")])
def test_successive_rated_replies_give_the_best_over_the_worst(label, best, worst):
    [row] = rows("helpsteer2_ratings")
    replies = [changed(row, response=f"r{n}", helpfulness=n, verbosity=4 - n) for n in range(4)]
    [pair], counts = emitted(*replies, ranked=Ranked.best_worst, label=label)
    assert sides(pair) == (best, worst)
    assert counts["dropped (between best and worst)"] == 5


def test_nectar_answers_are_conversations_with_their_ranks():
    [row] = rows("nectar")
    first, second = read(row)
    assert first["messages"] == talk(QUESTION, "Cut above a bud.")
    assert (first["sample"], second["sample"]) == (0, 1) and first["id"] == second["id"]
    assert (first["metadata"]["rank"], first["metadata"]["model"]) == (1, "a")


@pytest.mark.parametrize("rank", [0, 8, "first", True, []])
def test_nectar_ranks_outside_the_scale_are_refused(rank):
    with pytest.raises(RecordError, match=r"answers\[1\]\.rank: is "):
        read(nectar(1.0, rank), pairs=True)


def ultrafeedback(*scores, column="overall_score"):
    """A row with a completion for each score."""
    [row] = rows("ultrafeedback_raw")
    completions = [
        {"model": f"m{number}", "response": f"reply {number}", column: score}
        | {"annotations": {"honesty": {"Rating": str(score)}}}
        for number, score in enumerate(scores)
    ]
    return changed(row, completions=completions)


def test_ultrafeedback_pairs_completions_whose_scores_differ():
    [row] = rows("ultrafeedback_raw")
    [pair], counts = emitted(row)
    assert pair["chosen"] == talk(QUESTION, "Cut above a bud.")
    assert pair["rejected"] == talk(QUESTION, "No.")
    assert pair["metadata"] == {
        "source": "evol",
        "label": "overall_score",
        "scores": [8.5, 2],
        "models": ["a", "b"],
        "turns": 1,
    }
    [pair], _ = emitted(changed(row, correct_answers=["Above a bud."]))
    assert pair["metadata"]["correct_answers"] == ["Above a bud."]
    pairs, counts = emitted(ultrafeedback(7, 8.5, 7, None))
    assert [sides(pair) for pair in pairs] == [("reply 1", "reply 0"), ("reply 1", "reply 2")]
    assert counts == {"rows read": 1, "dropped (tie)": 1, "dropped (nobody ranked it)": 3}


def test_ultrafeedback_scores_are_chosen_among():
    [row] = rows("ultrafeedback_raw")
    [pair], _ = emitted(row, label="fine-grained_score")
    assert pair["metadata"]["scores"] == [4.2, 1]
    row = ultrafeedback(3, "N/A", 5)
    [pair], counts = emitted(row, label="honesty")
    assert (*sides(pair), pair["metadata"]["scores"]) == ("reply 2", "reply 0", [5, 3])
    assert pair["metadata"]["label"] == "honesty"
    assert counts["dropped (nobody ranked it)"] == 2


@pytest.mark.parametrize("score", [11, -1, "good", True, {}])
def test_ultrafeedback_scores_outside_the_scale_are_refused(score):
    with pytest.raises(RecordError, match=r"completions\[1\]\.overall_score: is "):
        read(ultrafeedback(3, score), pairs=True)
