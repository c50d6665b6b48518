"""Preferences, seeds and labelled conversations, by the name of the dataset."""

from math import nan

import pytest
from build import assistant, system, user
from dataset_rows import emitted, read, rows

from musiccli.core.errors import RecordError
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.sample import formats
from musiccli.sample.config import Emit, SampleConfig
from musiccli.sample.formats import chats
from musiccli.sample.sampler import sample

ROSE = user("How do I prune a rose?")
BUD = [ROSE, assistant("Cut above a bud.")]
MONTH = [ROSE, assistant("Cut above an outward bud."), user("And in which month?")]
WINTER = [*MONTH, assistant("In late winter.")]
SUM = user("2+2?")


@pytest.mark.parametrize(
    "name, chosen, rejected, labels",
    [
        (
            "ultrafeedback_binarized",
            BUD,
            [ROSE, assistant("No.")],
            {"prompt_id": "h", "score_chosen": 8.5, "score_rejected": 2.0},
        ),
        (
            "uf_argilla_cleaned",
            BUD,
            [ROSE, assistant("No.")],
            {
                "source": "evol",
                "chosen-rating": 5.0,
                "chosen-model": "a",
                "rejected-rating": 2.0,
                "rejected-model": "b",
            },
        ),
        (
            "capybara_dpo",
            [ROSE, assistant("Cut above."), user("When?"), assistant("Winter.")],
            [ROSE, assistant("Cut above."), user("When?"), assistant("Any.")],
            {
                "source": "x",
                "rating_chosen": 5,
                "rating_rejected": 3,
                "chosen_model": "a",
                "rejected_model": "b",
            },
        ),
        (
            "offsetbias",
            BUD,
            [ROSE, assistant("No.")],
            {"instruction_id": "i", "label": 1, "output_1_model": "a", "output_2_model": "b"},
        ),
        (
            "skywork_v2",
            WINTER,
            [*MONTH, assistant("Whenever you like.")],
            {"source": "magpie_pro"},
        ),
        (
            "tulu3_pref",
            BUD,
            [ROSE, assistant("No idea.")],
            {
                "source": "sft",
                "chosen_rating": 4.5,
                "rejected_rating": 2.0,
                "chosen_model": "m1",
                "rejected_model": "m2",
            },
        ),
        (
            "olmo_dolci_dpo",
            WINTER,
            [*MONTH, assistant("Any.")],
            {
                "chosen_model": "m1",
                "rejected_model": "m2",
                "prompt_id": "p1",
                "preference_type": "delta",
            },
        ),
        ("dolci_msgs", [SUM, assistant("4")], [SUM, assistant("5")], {}),
        (
            "trl_explicit_multi",
            [*MONTH, assistant("Late winter.")],
            [*MONTH, assistant("Any.")],
            {},
        ),
        ("hh", BUD, [ROSE, assistant("No.")], {}),
        (
            "ultrainteract",
            [SUM, assistant("5"), user("Wrong."), assistant("4")],
            [SUM, assistant("5"), user("Wrong."), assistant("6")],
            {"task": "Math", "dataset": "gsm8k", "parent_id": "i0"},
        ),
        (
            "wildfeedback",
            [
                ROSE,
                assistant("Cut."),
                user("Say more."),
                assistant("Cut above an outward bud."),
            ],
            [ROSE, assistant("Cut."), user("Say more."), assistant("Cut it.")],
            {},
        ),
        (
            "m_rewardbench",
            [user("Wie schneidet man Rosen?"), assistant("Über einer Knospe.")],
            [user("Wie schneidet man Rosen?"), assistant("Nein.")],
            {
                "language": "deu_Latn",
                "chosen_model": "a",
                "rejected_model": "b",
                "source": "alpacaeval-easy",
                "category": "Chat",
            },
        ),
        (
            "rewardbench",
            [SUM, assistant("4")],
            [SUM, assistant("5")],
            {"chosen_model": "a", "rejected_model": "b", "subset": "math-prm"},
        ),
        ("llf_instruction", [SUM, assistant("4")], [SUM, assistant("5")], {}),
        (
            "orca_question",
            [system("Be brief."), SUM, assistant("4")],
            [system("Be brief."), SUM, assistant("5")],
            {},
        ),
        (
            "swift_rejected_messages",
            WINTER,
            [ROSE, assistant("No idea."), user("And in which month?"), assistant("Any.")],
            {},
        ),
        ("swift_rejected_response", WINTER, [*MONTH, assistant("Any.")], {}),
    ],
)
def test_a_pair_of_every_dataset_keeps_its_texts_and_labels(name, chosen, rejected, labels):
    [row] = rows(name)
    [record] = read(row, source="file")
    turns = sum(message["role"] == "user" for message in chosen)
    assert (record["chosen"], record["rejected"]) == (chosen, rejected)
    assert record["metadata"] == {"source": "file", **labels, "turns": turns}
    [pair], counts = emitted(row)
    assert (pair["chosen"], pair["rejected"]) == (chosen, rejected)
    assert counts == {"rows read": 1}


@pytest.mark.parametrize("name, right, wrong", [("rewardbench2", 1, 3), ("rmbench", 3, 3)])
def test_candidates_of_a_benchmark_are_all_read(name, right, wrong):
    [row] = rows(name)
    records = read(row)
    assert [record["metadata"]["correct"] for record in records] == [True] * right + [False] * wrong
    assert len(read(row, pairs=True)) == right * wrong


def test_mtbench_human_is_a_comparison_with_a_winner():
    [row] = rows("mtbench_human")
    [record] = read(row)
    assert (record["a"], record["winner"]) == (WINTER, "a")
    assert record["metadata"] == {
        "question_id": 81,
        "model_a": "a",
        "model_b": "b",
        "judge": "author_1",
        "turn": 2,
        "turns": 2,
    }


# Seeds and labelled conversations


@pytest.mark.parametrize(
    "name, id, messages, labels",
    [
        ("ultrachat", None, [SUM, assistant("4")], {"prompt_id": "x"}),
        ("magpie_mt", None, [ROSE, assistant("Cut.")], {"uuid": "u"}),
        (
            "lmsys_chat_1m",
            "c1",
            WINTER,
            {
                "conversation_id": "c1",
                "model": "m",
                "turn": 2,
                "language": "English",
                "redacted": False,
                "openai_moderation": [],
            },
        ),
        (
            "wildchat",
            "h",
            WINTER,
            {
                "conversation_hash": "h",
                "model": "m",
                "timestamp": "2023",
                "turn": 2,
                "language": "English",
                "toxic": False,
                "redacted": False,
            },
        ),
        (
            "multichallenge",
            "q",
            MONTH,
            {
                "question_id": "q",
                "axis": "SELF_COHERENCE",
                "target_question": "Does it say late winter?",
                "pass_criteria": "YES",
                "num_turns": 2,
            },
        ),
        ("binary_kto", None, [SUM, assistant("4")], {"label": True}),
    ],
)
def test_conversations_keep_what_is_known_of_them(name, id, messages, labels):
    [row] = rows(name)
    [record] = read(row)
    assert record["messages"] == messages
    replies = sum(message["role"] == "assistant" for message in messages)
    assert record["metadata"] == {**labels, "turns": replies}
    assert id in (None, record["id"])
    seeds, counts = emitted(row, emit="seeds")
    assert len(seeds) == 1 and counts == {"rows read": 1}


def test_a_rubric_of_any_length_is_kept_and_columns_in_capitals_are_read():
    [row] = rows("multichallenge")
    row["target_question"] *= 20
    [record] = read(row)
    assert record["metadata"]["target_question"] == row["target_question"]
    capitals = {name.upper(): value for name, value in row.items()}
    assert read(capitals) == [record]


def test_a_conversation_may_be_an_object_of_lists_or_hold_turns():
    [row] = rows("multichallenge")
    columns = {
        name: [message[name] for message in row["conversation"]] for name in ("role", "content")
    }
    assert read({**row, "conversation": columns}) == read(row)
    turns = [{"input": "q", "output": "a"}, {"input": "r", "output": "b"}]
    messages = [user("q"), assistant("a"), user("r"), assistant("b")]
    assert read({"source": "x", "conversation": turns})[0]["messages"] == messages
    assert chats.FORMATS[0] is formats.recognize(Record({"conversation": turns}))


KTO = [
    {"prompt": [SUM], "completion": [assistant("4")], "label": False},
    {"prompt": "2+2?", "completion": "4", "label": False},
    {"messages": [SUM, assistant("4")], "label": False},
    {"instruction": "2+2?", "input": "", "output": "4", "kto_tag": False},
    {
        "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}],
        "kto_tag": False,
    },
]


@pytest.mark.parametrize("row", KTO, ids=lambda row: " ".join(row))
def test_kto_is_a_conversation_with_a_label_and_refuses_to_be_a_pair(row):
    [record] = read(row)
    assert record["messages"] == [SUM, assistant("4")]
    assert record["metadata"] == {"label": False, "turns": 1}
    for emit in ("pairs", "comparisons"):
        with pytest.raises(RecordError, match="labels one reply, and there is no other"):
            emitted(row, emit=emit)


@pytest.mark.parametrize("label", ["good", 1, "yes", []])
@pytest.mark.parametrize("row", [row for row in KTO if "messages" not in row])
def test_a_label_of_kto_that_is_not_true_or_false_is_refused(row, label):
    column = "kto_tag" if "kto_tag" in row else "label"
    with pytest.raises(RecordError, match=f"{column}: is .*; it should be true or false"):
        read({**row, column: label})


@pytest.mark.parametrize("row", [KTO[0], KTO[2]])
def test_a_conversation_of_kto_whose_label_is_null_has_none_and_makes_no_pair(row):
    unlabelled = {**row, "label": None}
    assert read(unlabelled)[0]["metadata"] == {"turns": 1}
    assert emitted(unlabelled) == ([], {"rows read": 1, "dropped (nobody ranked it)": 1})


@pytest.mark.parametrize(
    "row",
    [
        {**KTO[3], "kto_tag": None},
        {"info": {"post": "p"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": None},
        {"instruction": "q", "output_1": "a", "output_2": "b", "label": None},
        {"prompt": "q", "response_1": "a", "response_2": "b"},
        {"prompt": "q", "completion_a": "a", "completion_b": "b", "winner": "a"},
        {"prompt": "q", "answer1": "a", "answer2": "b", "better": 1},
        {"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]},
    ],
    ids=lambda row: " ".join(row),
)
@pytest.mark.parametrize("pairs", [True, False])
def test_replies_without_a_label_are_not_read_as_something_else(row, pairs):
    with pytest.raises(
        RecordError, match=r"no known format has the columns|: (is null|is missing|labels one)"
    ):
        read(row, pairs=pairs)


def test_a_response_beside_a_prompt_is_the_reply():
    [record] = read({"prompt": "2+2?", "response": "4"})
    assert record["messages"] == [SUM, assistant("4")]
    assert record["metadata"] == {"turns": 1}


def test_a_label_of_another_kind_beside_messages_is_metadata():
    [record] = read({"messages": [SUM, assistant("4")], "label": "math"})
    assert record["metadata"] == {"label": "math", "turns": 1}


def test_our_own_conversation_with_a_label_keeps_its_fields():
    row = {"id": "c", "messages": [SUM, assistant("4")], "label": True, "branch": "chosen"}
    assert read({**row, "metadata": {"k": 1}}) == [{**row, "metadata": {"k": 1}}]


@pytest.mark.parametrize(
    "row, field",
    [
        ("processbench", "steps"),
        ({"prompt": "q", "completions": ["a", "b"], "labels": [True, False]}, "completions"),
    ],
)
@pytest.mark.parametrize("pairs", [True, False])
def test_steps_of_one_solution_are_refused_with_the_reason(row, field, pairs):
    [row] = rows(row) if isinstance(row, str) else [row]
    with pytest.raises(RecordError, match=f"{field}: holds the steps of one solution"):
        read(row, pairs=pairs)


# Other shapes of trainers


def test_llama_factory_puts_history_system_and_input_around_the_instruction():
    row = {
        "instruction": "Add.",
        "input": "2+2",
        "system": "Be brief.",
        "history": [["Hi.", "Hello."]],
        "chosen": "4",
        "rejected": "5",
    }
    history = [system("Be brief."), user("Hi."), assistant("Hello."), user("Add.\n2+2")]
    [record] = read(row)
    assert record["chosen"] == [*history, assistant("4")]
    assert record["rejected"] == [*history, assistant("5")]
    with pytest.raises(RecordError, match=r"history\[0\]: is no turn of a user's text and a reply"):
        read({**row, "history": [["Hi."]]})


def test_an_instruction_beside_whole_conversations_is_not_asked_again():
    [record] = read({"instruction": "2+2?", "chosen": BUD, "rejected": WINTER})
    assert (record["chosen"], record["rejected"]) == (BUD, WINTER)


def test_ms_swift_queries_stand_after_their_history():
    [record] = read(
        {
            "query": "2+2?",
            "response": "4",
            "rejected_response": "5",
            "history": [["Hi.", "Hello."]],
        }
    )
    history = [user("Hi."), assistant("Hello."), SUM]
    assert record["chosen"] == [*history, assistant("4")]
    assert record["rejected"] == [*history, assistant("5")]
    assert record["metadata"] == {"turns": 2}


def test_orca_by_argilla_has_ties():
    row = {"system": "", "input": "2+2?", "chosen": "4", "rejected": "5", "status": "swapped"}
    tie = {**row, "input": "2+3?", "status": "tie"}
    pairs, counts = emitted(row, tie)
    assert [pair["chosen"] for pair in pairs] == [[SUM, assistant("4")]]
    assert counts == {"rows read": 2, "dropped (tie)": 1}
    with pytest.raises(RecordError, match="status: is 'odd'; it should be unchanged, swapped or"):
        read({**row, "status": "odd"})


def test_orca_by_argilla_keeps_both_ratings_and_its_judges_prompt_is_no_history():
    row = {"system": "", "input": "2+2?", "chosen": "4", "rejected": "5", "rating": [9.0, 8.0]}
    lines = []
    row |= {"labelling_prompt": [{"role": "user", "content": "Rate them."}], "status": "unchanged"}
    stats = RunStats(say=lines.append)
    [pair] = sample([("", Record(row))], SampleConfig(emit=Emit.pairs), stats=stats)
    assert pair["metadata"]["rating"] == [9.0, 8.0] and lines == []


def ranked(*completions):
    return {
        "context": [SUM],
        "completions": [
            {"rank": rank, "completion": [assistant(text)]} for rank, text in completions
        ],
    }


def test_nemo_completions_are_ranked_and_a_lower_rank_is_better():
    row = ranked((1, "5"), (0, "4"))
    pairs, _ = emitted(row)
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [
        ([SUM, assistant("4")], [SUM, assistant("5")])
    ]
    assert pairs[0]["metadata"]["ranks"] == [0, 1]
    conversations, _ = emitted(row, emit="conversations")
    assert [(record["sample"], record["metadata"]["rank"]) for record in conversations] == [
        (0, 1),
        (1, 0),
    ]


def test_nemo_completions_of_one_rank_or_one_text_are_a_tie():
    rows = [ranked((0, "4"), (0, "5")), ranked((0, "4"), (1, "4"))]
    assert emitted(*rows) == ([], {"rows read": 2, "dropped (tie)": 2})
    comparisons, _ = emitted(*rows, emit="comparisons")
    assert [record["winner"] for record in comparisons] == ["tie", "tie"]


@pytest.mark.parametrize("rank", [None, "first", True, []])
def test_nemo_completions_without_a_rank_are_refused(rank):
    with pytest.raises(RecordError, match=r"completions\[1\]: should be {\"rank\": NUMBER"):
        read(ranked((0, "4"), (rank, "5")), pairs=True)


def test_nemo_responses_follow_the_prompt_and_equal_ones_are_a_tie():
    row = {"prompt": [SUM], "chosen_response": "4", "rejected_response": "5"}
    pairs, counts = emitted(row, {**row, "rejected_response": "4"})
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [
        ([SUM, assistant("4")], [SUM, assistant("5")])
    ]
    assert counts == {"rows read": 2, "dropped (tie)": 1}


SUMMARIES = {
    "info": {"id": "t1", "post": "I broke it.", "title": "Help", "subreddit": "advice"},
    "summaries": [
        {"text": " It broke.", "policy": "sup2", "note": None},
        {"text": " No.", "policy": "ref"},
    ],
    "choice": 1,
    "worker": "w1",
    "batch": "batch3",
    "split": "train",
    "extra": {"confidence": 7},
}


def test_summaries_from_feedback_are_comparisons_with_the_worker_and_the_policies():
    [record] = read(SUMMARIES)
    question = user("SUBREDDIT: r/advice\n\nTITLE: Help\n\nPOST: I broke it.\n\nTL;DR:")
    assert record["a"] == [question, assistant(" It broke.")]
    assert record["b"] == [question, assistant(" No.")]
    assert record["winner"] == "b"
    assert record["metadata"] == {
        "worker": "w1",
        "batch": "batch3",
        "split": "train",
        "subreddit": "advice",
        "policy_a": "sup2",
        "policy_b": "ref",
        "confidence": 7,
        "turns": 1,
    }
    [article] = read({**SUMMARIES, "info": {"id": "a1", "post": None, "article": "News."}})
    assert article["a"][0] == user("Article:\nNews.\n\nTL;DR:")
    votes, _ = emitted(SUMMARIES, {**SUMMARIES, "worker": "w2", "choice": 0}, emit="comparisons")
    assert len({vote["id"] for vote in votes}) == 2


WEBGPT = {
    "question": {"dataset": "eli5", "id": "e1", "full_text": "Why is the sky blue?"},
    "quotes_0": {"title": [], "extract": []},
    "answer_0": "Scattering [1].",
    "tokens_0": {},
    "score_0": -0.5,
    "quotes_1": {"title": [], "extract": []},
    "answer_1": "Rayleigh scattering [1].",
    "tokens_1": {},
    "score_1": 0.5,
}


def test_webgpts_answer_with_the_positive_score_wins_and_zero_is_a_tie():
    [record] = read(WEBGPT)
    assert record["a"] == [user("Why is the sky blue?"), assistant("Scattering [1].")]
    assert record["winner"] == "b"
    assert record["metadata"] == {
        "score_0": -0.5,
        "score_1": 0.5,
        "question_dataset": "eli5",
        "question_id": "e1",
        "turns": 1,
    }
    tie = {**WEBGPT, "score_0": 0.0, "score_1": 0.0}
    assert read(tie)[0]["winner"] == "tie"
    assert emitted(tie) == ([], {"rows read": 1, "dropped (tie)": 1})


@pytest.mark.parametrize(
    "row, error",
    [
        ({**SUMMARIES, "choice": 2}, "choice: is 2; it should be 0 or 1"),
        ({**SUMMARIES, "choice": True}, "choice: is True; it should be 0 or 1"),
        ({**SUMMARIES, "summaries": [{"text": "a"}]}, "summaries: is no list of two summaries"),
        ({**SUMMARIES, "info": {"id": "x"}}, "info: has neither a post nor an article"),
        ({**WEBGPT, "score_1": "?"}, "score_1: is '?'; it should be a number from -1 to 1"),
        ({**WEBGPT, "score_0": nan}, "score_0: is nan; it should be a number from -1 to 1"),
        (
            {
                "context": [SUM],
                "completions": [
                    {"rank": 0, "completion": [assistant("4")]},
                    {"rank": nan, "completion": [assistant("5")]},
                ],
            },
            'completions[1]: should be {"rank": NUMBER, "completion": [messages]}',
        ),
        ({**WEBGPT, "score_1": -0.5}, "score_1: has the sign of `score_0`; the two scores are"),
        ({**WEBGPT, "answer_1": 3}, "answer_1: is 3; it should be a text"),
        (
            {"messages": [SUM, assistant("4")], "rejected_response": ["5"]},
            "rejected_response: is ['5']; it should be a text",
        ),
        (
            {"messages": [SUM], "rejected_response": "5"},
            "messages: does not end with the assistant",
        ),
        (
            {"messages": [], "rejected_response": "5"},
            "messages: does not end with the assistant",
        ),
        (
            {"context": [SUM], "completions": [{"rank": 0, "completion": "4"}]},
            "completions[0].completion: is not readable; it should be a list of messages",
        ),
        ({"instruction": "q", "chosen": "a", "rejected": 0}, "rejected: is 0; it should be a text"),
        (
            {"instruction": "q", "output_1": "a", "output_2": "b", "label": 3},
            "label: is 3; it should be 1 or 2",
        ),
    ],
)
def test_what_is_not_understood_is_refused_by_name(row, error):
    with pytest.raises(RecordError) as caught:
        read(row)
    assert f"rows.jsonl:1: {error}" in str(caught.value)
