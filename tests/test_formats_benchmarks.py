"""The rows of benchmarks for reward models and judges, by the name of the dataset."""

import pytest
from build import assistant, user
from dataset_rows import emitted, read, rows

from musiccli.core.errors import RecordError


def rose(text):
    """Two sides of these rows begin with the same question."""
    return [user("How do I prune a rose?"), assistant(text)]


def test_rankjudge_is_a_comparison_that_names_the_round_of_the_flaw():
    [row] = rows("rankjudge")
    good = [
        user("What is a rose?"),
        assistant("A plant."),
        user("When to prune?"),
        assistant("Late winter."),
    ]
    bad = [*good[:3], assistant("I said it is a stone.")]
    [record] = read(row, source="rankjudge")
    assert record == {
        "id": "p1",
        "a": good,
        "b": bad,
        "winner": "a",
        "metadata": {
            "user_behavior_type": "x",
            "assistant_behavior_type": "self_contradiction",
            "n_rounds": 2,
            "bad_round_index": 2,
            "context": "...",
            "domain": "ml",
            "better_is_a": True,
            "turns": 2,
            "source": "rankjudge",
        },
    }
    assert read({**row, "better_is_a": "True"})[0]["winner"] == "a"  # as CSV has it
    [pair], counts = emitted({**row, "better_is_a": False})
    assert (pair["chosen"], pair["rejected"]) == (bad, good)
    assert counts == {"rows read": 1}


def test_judgebench_is_a_comparison_whose_label_names_the_winner():
    [row] = rows("judgebench")
    [record] = read(row, source="judgebench")
    assert record == {
        "id": "p",
        "a": [user("2+2?"), assistant("4")],
        "b": [user("2+2?"), assistant("5")],
        "winner": "a",
        "metadata": {
            "pair_id": "p",
            "original_id": "1",
            "source": "mmlu-pro",
            "response_model": "m",
            "turns": 1,
        },
    }
    assert read({**row, "label": "B>A"})[0]["winner"] == "b"


def test_rmb_pairs_keep_the_models_and_the_category():
    [row] = rows("rmb_pairwise")
    [record] = read(row)
    assert record == {
        "id": "Pairwise_set/Helpfulness/Chat/1",
        "chosen": rose("Cut above a bud."),
        "rejected": rose("No."),
        "metadata": {
            "pair_uid": "1",
            "category_path": "Pairwise_set/Helpfulness/Chat",
            "chosen_model": "a",
            "rejected_model": "b",
            "turns": 1,
        },
    }
    graded = {**row, "chosen": {**row["chosen"], "score": 4.5}}
    assert read(graded)[0]["metadata"]["chosen_score"] == 4.5


def test_rmb_best_of_n_is_candidates_of_which_the_best_is_correct():
    [row] = rows("rmb_bon")
    row["loser_list"].append({"llm_name": "c", "answer": " Ask. "})
    records = read(row)
    assert [
        (record["messages"], record["sample"], record["metadata"]["correct"], record["id"])
        for record in records
    ] == [
        (rose("Cut above a bud."), 0, True, "BoN_set/Helpfulness/Chat/1"),
        (rose("No."), 1, False, "BoN_set/Helpfulness/Chat/1"),
        (rose(" Ask. "), 2, False, "BoN_set/Helpfulness/Chat/1"),
    ]
    assert [record["metadata"]["model"] for record in records] == ["a", "b", "c"]
    pairs = read(row, pairs=True)
    assert [(pair["chosen"][-1]["content"], pair["rejected"][-1]["content"]) for pair in pairs] == [
        ("Cut above a bud.", "No."),
        ("Cut above a bud.", " Ask. "),
    ]
    assert pairs[1]["metadata"] == {
        "bon_uid": "1",
        "category_path": "BoN_set/Helpfulness/Chat",
        "candidates": [0, 1],
        "chosen_model": "a",
        "rejected_model": "c",
        "turns": 1,
    }


def test_ppe_votes_are_comparisons_and_their_ties_make_no_pair():
    [row] = rows("ppe_human")
    [record] = read(row)
    assert record == {
        "id": "q1",
        "a": rose("Cut above a bud."),
        "b": rose("No idea."),
        "winner": "a",
        "metadata": {
            "question_id": "q1",
            "model_a": "a",
            "model_b": "b",
            "language": "English",
            "is_code": False,
            "hard_prompt": True,
            "turns": 1,
        },
    }
    tie = {**row, "question_id": "q2", "winner": "tie (bothbad)"}
    other = {**row, "question_id": "q3", "winner": "model_b"}
    pairs, counts = emitted(row, tie, other)
    assert [pair["chosen"][-1]["content"] for pair in pairs] == ["Cut above a bud.", "No idea."]
    assert counts == {"rows read": 3, "dropped (tie)": 1}
    comparisons, _ = emitted(tie, emit="comparisons")
    assert comparisons[0]["winner"] == "tie"
    assert comparisons[0]["metadata"]["both_bad"] is True
    assert read({**row, "winner": "tie"})[0]["metadata"]["both_bad"] is False
    unranked = {**row, "winner": None}
    assert "winner" not in read(unranked)[0]
    assert emitted(unranked) == ([], {"rows read": 1, "dropped (nobody ranked it)": 1})


def test_ppe_samples_are_candidates_in_the_order_of_the_columns():
    [row] = rows("ppe_correctness")
    row |= {"response_10": "four", "score_10": True}
    records = read(row)
    assert [
        (record["messages"], record["sample"], record["metadata"]["correct"]) for record in records
    ] == [
        ([user("2+2?"), assistant("4")], 0, True),
        ([user("2+2?"), assistant("5")], 1, False),
        ([user("2+2?"), assistant("four")], 2, True),
    ]
    assert records[0]["metadata"] == {
        "question_id": "q1",
        "ground_truth": "4",
        "model_name": "m",
        "correct": True,
        "turns": 1,
    }
    assert {record["id"] for record in records} == {"q1/m"}
    pairs = read(row, pairs=True)
    assert [pair["chosen"][-1]["content"] for pair in pairs] == ["4", "four"]
    assert [pair["rejected"][-1]["content"] for pair in pairs] == ["5", "5"]


def test_ppe_samples_may_be_graded_in_one_list():
    [row] = rows("ppe_correctness")
    listed = {name: value for name, value in row.items() if not name.startswith("score_")}
    assert read({**listed, "scores": [True, False]}) == read(row)


def test_ppe_samples_that_are_all_right_make_no_pair_and_are_counted():
    [row] = rows("ppe_correctness")
    assert emitted({**row, "score_2": True}) == (
        [],
        {"rows read": 1, "dropped (no pair)": 1},
    )


@pytest.mark.parametrize(
    "name, change, error",
    [
        ("rankjudge", {"better_is_a": 1}, "better_is_a: is 1; it should be true or false"),
        ("judgebench", {"label": "A"}, "label: is 'A'; it should be A>B, B>A or A=B"),
        ("rmb_pairwise", {"chosen": {}}, "chosen: is no object with an answer"),
        ("rmb_bon", {"loser_list": "b"}, "loser_list: is not readable; it should be a list"),
        ("rmb_bon", {"loser_list": ["b"]}, "loser_list[0]: is no object with an answer"),
        (
            "ppe_human",
            {"winner": "model_c"},
            "winner: is 'model_c'; it should be model_a, model_b, tie or tie (bothbad)",
        ),
        ("ppe_human", {"winner": ""}, "winner: is ''; it should be model_a, model_b, tie or"),
        ("ppe_human", {"winner": ["model_a"]}, "winner: is ['model_a']; it should be model_a,"),
        ("ppe_correctness", {"score_2": None}, "score_2: is null; it should be true or false"),
        ("ppe_correctness", {"scores": [True]}, "scores: is not true or false for each of 2"),
        ("ppe_correctness", {"scores": [1, 0]}, "scores: is not true or false for each of 2"),
    ],
)
def test_a_label_that_is_not_understood_is_refused_by_name(name, change, error):
    [row] = rows(name)
    for pairs in (True, False):
        with pytest.raises(RecordError) as caught:
            read({**row, **change}, pairs=pairs)
        assert f"rows.jsonl:1: {error}" in str(caught.value)


@pytest.mark.parametrize(
    "name, label",
    [
        ("rankjudge", "better_is_a"),
        ("judgebench", "label"),
        ("rmb_pairwise", "chosen"),
        ("rmb_bon", "loser_list"),
        ("ppe_correctness", "score_1"),
    ],
)
@pytest.mark.parametrize("pairs", [True, False])
def test_a_row_without_its_label_is_not_read_as_something_else(name, label, pairs):
    [row] = rows(name)
    with pytest.raises(
        RecordError, match=r"no known format has the columns|: (is null|is missing|labels one)"
    ):
        read({**row, label: None}, pairs=pairs)
