"""Each dataset format becomes valid records, as many as the README of the data says."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from build import assistant, system, talk, user

from musiccli.core import messages, records
from musiccli.core.errors import RecordError
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.sample import formats, sources
from musiccli.sample.columns import Row
from musiccli.sample.config import SampleConfig
from musiccli.sample.formats.mint import is_trajectory, pair_trajectories
from musiccli.sample.sampler import read_records, sample

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the public data files are not beside the repository"
)


def read(row, source="", pairs=False, where="rows.jsonl:1"):
    return [dict(record) for record in formats.read(Record(row, where), source, pairs=pairs)]


def read_one(row, **settings):
    [record] = read(row, **settings)
    return record


def load(name, pairs=False):
    """(records, {row number from 0: error}) of a file or folder of the public data."""
    results, refused = [], {}
    for number, (source, row) in enumerate(sources.read_rows([str(DATA / name)])):
        try:
            results += formats.read(row, source, pairs=pairs)
        except RecordError as error:
            refused[number] = str(error)
    return results, refused


# Rows

SIDES = {"chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": [user("q")], "chosen": "good", "rejected": "bad"},
        {"prompt": "q", "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        {"prompt": [user("q")], "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        {"prompt": "q", "chosen": assistant("good"), "rejected": assistant("bad")},
        {"prompt": "q", **SIDES},
        {"prompt": " q\n", **SIDES},
        {"prompt": [user("q")], **SIDES},
        {"prompt": None, **SIDES},
        {"prompt": "q", **SIDES, "messages": SIDES["chosen"]},
        SIDES,
        {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
        {
            "prompt": "q",
            "chosen": "\n\nHuman: q\n\nAssistant: good",
            "rejected": "\n\nHuman: q\n\nAssistant: bad",
        },
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " good", "rejected": " bad"},
        {"prompt": "\n\nHuman: q", "chosen": " good", "rejected": " bad"},
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        {"trajectory": [{"from": "user", "value": "q"}], "chosen": "good", "rejected": "bad"},
        {"input": "q", "output_1": "good", "output_2": "bad", "label": 1},
        {"input": "q", "output_1": "bad", "output_2": "good", "label": 2},
        {"instruction": "q", "input": "", "output_1": "good", "output_2": "bad", "label": 1},
        {
            "evaluation_sample": {
                "input": [user("q")],
                "outputs": [
                    assistant("bad") | {"content_label": "rejected"},
                    assistant("good") | {"content_label": "chosen"},
                ],
            }
        },
    ],
    ids=lambda row: " ".join(f"{name}:{type(value).__name__}" for name, value in row.items()),
)
def test_every_way_to_write_a_preference_gives_the_same_sides(row):
    record = read_one(row)
    assert {
        name: [{**message, "content": message["content"].strip()} for message in record[name]]
        for name in SIDES
    } == SIDES
    assert record.keys() == {"id", "chosen", "rejected", "metadata"}


BIRD = [user("Hi"), assistant("Hello!"), user("Name a bird.")]
HH_BIRD = "Human: Hi\n\nAssistant: Hello!\n\nHuman: Name a bird.\n\nAssistant:"
REPLIES = {"chosen": "A robin.", "rejected": "A cat."}


@pytest.mark.parametrize(
    "row, start",
    [
        ({"system": "Be kind.", "prompt": "q", **REPLIES}, [system("Be kind."), user("q")]),
        ({"system_prompt": "Be kind.", "prompt": "q", **REPLIES}, [system("Be kind."), user("q")]),
        ({"prompt": "\n\n" + HH_BIRD, **REPLIES}, BIRD),
        ({"prompt": HH_BIRD, **REPLIES}, BIRD),
        ({"prompt": json.dumps(BIRD), **REPLIES}, BIRD),
        (
            {
                "prompt": "Name a bird.",
                "chosen": [*BIRD, assistant("A robin.")],
                "rejected": [*BIRD, assistant("A cat.")],
            },
            BIRD,
        ),
        ({"prompt": "Name a bird.", "history": [["Hi", "Hello!"]], **REPLIES}, BIRD),
        ({"prompt": "Name a bird.", "history": BIRD[:2], **REPLIES}, BIRD),
        ({"prompt": "Name a bird.", "context": BIRD[:2], **REPLIES}, BIRD),
        ({"prompt": "Name a bird.", "context": "Of birds.", **REPLIES}, BIRD[2:]),
        ({"prompt": BIRD, "history": BIRD[:2], **REPLIES}, BIRD),
        (
            {
                "prompt": "Name a bird.",
                "history": BIRD[:2],
                "chosen": [BIRD[2], assistant("A robin.")],
                "rejected": [assistant("A cat.")],
            },
            BIRD,
        ),
    ],
)
def test_what_stands_before_two_replies_is_read_alike_by_every_command(row, start):
    expected = [[*start, assistant(text)] for text in REPLIES.values()]
    parsed = records.parse_preference(Record({"id": "x", **row}))
    for record in (read_one(row), parsed):
        assert [record["chosen"], record["rejected"]] == expected


def test_the_first_steps_of_a_solution_begin_both_replies():
    row = {"prompt": "1+1?", "initial_reason_steps": "Step 1: add.\n", **REPLIES}
    parsed = records.parse_preference(Record({"id": "x", **row}))
    for record in (read_one(row), parsed):
        assert record["chosen"] == [user("1+1?"), assistant("Step 1: add.\nA robin.")]
        assert record["rejected"] == [user("1+1?"), assistant("Step 1: add.\nA cat.")]


def test_a_history_stands_before_a_prompt_and_its_completion():
    row = {"prompt": "Name a bird.", "history": [["Hi", "Hello!"]]}
    for reply in ({"response": "A robin."}, {"completion": "A robin.", "label": True}):
        assert read_one(row | reply)["messages"] == [*BIRD, assistant("A robin.")]


def test_a_reply_that_is_a_transcript_or_json_stays_a_reply():
    dialogue = "Human: Hello.\n\nAssistant: Hi."
    for reply in (dialogue, '[{"from": "London", "to": "Paris"}]', '{"role": "cook"}'):
        row = {"prompt": "Write it.", "chosen": reply, "rejected": "no"}
        assert read_one(row)["chosen"] == [user("Write it."), assistant(reply)]
    row = {"prompt": "q", "chosen": json.dumps(assistant("a")), "rejected": "b"}
    assert read_one(row)["chosen"] == [user("q"), assistant("a")]


VICUNA = "A chat between a curious user and an artificial intelligence assistant."
ALPACA = "Below is an instruction that describes a task. Write a response."
TWO_TURNS = [user("Hi"), assistant("Hello!"), user("Name a bird.")]


@pytest.mark.parametrize(
    "prompt, history",
    [
        (f"{VICUNA} USER: Name a bird. ASSISTANT:", [system(VICUNA), user("Name a bird.")]),
        (f"{VICUNA} USER: Name a bird.", [system(VICUNA), user("Name a bird.")]),
        ("USER: Hi ASSISTANT: Hello!</s>USER: Name a bird. ASSISTANT:", TWO_TURNS),
        ("BEGINNING OF CONVERSATION: USER: Name a bird. ASSISTANT:", [user("Name a bird.")]),
        ("### Human: Hi### Assistant: Hello!### Human: Name a bird.### Assistant:", TWO_TURNS),
        ("### User:\nHi\n\n### Assistant:\nHello!\n\n### User:\nName a bird.\n", None),
        (
            f"{ALPACA}\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n",
            [system(ALPACA), user("Add.\n\n### Input:\n1 2")],
        ),
        ("User: Hi\nBot: Hello!\nUser: Name a bird.\nBot:", TWO_TURNS),
        ("Human: Hi\nAssistant: Hello!\nHuman: Name a bird.\nAssistant: ", TWO_TURNS),
        ("\n\nHuman: Name a bird.\nAssistant:", [user("Name a bird.")]),
        ("User: Which is it?\nAI: or Bot:\nUser: Bot:\nAI:", None),
        ("You are kind.\n\nUser: Name a bird.\nAssistant:", None),
        ("Question: Name a bird.\nAnswer:", None),
        ("What do USER: and ASSISTANT: mean?", None),
        ("### Instruction:\nName a bird.", None),
        ("User: Hi\nBot: Hello!\nUser: Bye\n\nSummarize this chat.", None),
    ],
)
def test_prompts_with_headers_become_turns_where_they_wait_for_a_reply(prompt, history):
    if "AI: or Bot:" in prompt:  # the names that speak first are the headers
        history = [user("Which is it?"), assistant("or Bot:"), user("Bot:")]
    pair = {"chosen": [*(history or [user(prompt)]), assistant("A robin.")]}
    row = {"prompt": prompt, "chosen": "A robin.", "rejected": "A cat."}
    assert read_one(row)["chosen"] == pair["chosen"]
    assert records.parse_preference(Record(row))["chosen"] == pair["chosen"]
    assert read_one({"prompt": prompt, "completion": "A robin."})["messages"] == pair["chosen"]
    for column in ("question", "instruction"):
        assert read_one({column: prompt, **row, "prompt": None})["chosen"] == pair["chosen"]


@pytest.mark.parametrize(
    "prompt, header",
    [
        (f"{VICUNA} USER: Name a bird.", " ASSISTANT:"),
        ("### Human: Name a bird.\n", "### Assistant:"),
        ("User: Name a bird.", "\nAssistant:"),
        ("\n\nHuman: Name a bird.", "\n\nAssistant:"),
    ],
)
def test_replies_may_repeat_the_header_or_the_prompt(prompt, header):
    row = {"prompt": prompt, "chosen": f"{header} A robin.", "rejected": f"{header} A cat."}
    whole = {"chosen": prompt + row["chosen"], "rejected": prompt + row["rejected"]}
    for form in (row, row | {"prompt": prompt + header}, whole, whole | {"prompt": prompt}):
        pair = read_one(form)
        assert pair["chosen"][-2:] == [user("Name a bird."), assistant("A robin.")]
        assert pair["rejected"][-2:] == [user("Name a bird."), assistant("A cat.")]
    about = {"prompt": "Say 'Assistant: hi'", "chosen": "Assistant: hi", "rejected": "no"}
    assert read_one(about)["chosen"][-1] == assistant("Assistant: hi")


def test_a_completion_may_repeat_the_header_or_the_prompt():
    prompt = "\n\nHuman: Name a bird.\n\nAssistant:"
    talk = [user("Name a bird."), assistant("A robin.")]
    for completion in ("A robin.", "\n\nAssistant: A robin.", f"{prompt} A robin.", talk):
        assert read_one({"prompt": prompt, "completion": completion})["messages"] == talk


def test_the_replies_of_a_comparison_are_no_labels():
    record = read_one({"prompt": "q", "a": "good", "b": "bad", "winner": "A", "task": "t"})
    assert record["winner"] == "a" and record["metadata"] == {"task": "t", "turns": 1}


def test_whole_ids_that_a_table_holds_as_floats_are_kept():
    row = {"prompt": "q", **REPLIES}
    assert [read_one(row | {"id": id})["id"] for id in (7.0, 7, "7.0")] == [7, 7, "7.0"]


def test_the_name_of_a_role_that_is_not_known_is_said():
    with pytest.raises(RecordError, match=r"^messages\[0\]: .*\(role 0\)"):
        read({"messages": [{"role": 0, "content": "q"}]}, where=None)
    assert read_one({"messages": [{"role": None, "from": "human", "value": "q"}]})


def test_a_history_may_be_a_transcript():
    row = {"history": "\n\nHuman: Hi\n\nAssistant: Hello!", "prompt": "Name a bird.", **REPLIES}
    for pair in (read_one(row), records.parse_preference(Record(row))):
        assert pair["chosen"][:-1] == TWO_TURNS


def test_a_system_message_that_is_no_text_is_refused():
    row = {"system": [system("Be brief.")], "prompt": "q", **REPLIES}
    for reader in (read, lambda row: records.parse_preference(Record(row, "rows.jsonl:1"))):
        with pytest.raises(
            RecordError, match=r"^rows.jsonl:1: system: is a list; a system message"
        ):
            reader(dict(row))


def test_a_transcript_whose_turns_do_not_alternate_is_refused():
    with pytest.raises(RecordError, match=r"^prompt\[1\]: two headers of the user in a row"):
        read({"prompt": "USER: a USER: b ASSISTANT:", **REPLIES}, where=None)


def test_a_prompt_that_waits_for_a_reply_but_was_not_split_is_named():
    prompt = "You are kind.\n\nUser: Name a bird.\nAssistant:"
    row, lines = Row({"prompt": prompt, **REPLIES}, "rows.jsonl:1"), []
    stats = RunStats(say=lines.append)
    assert len(list(sample([("", row)], SampleConfig(), stats=stats))) == 1
    assert lines == [
        "1 row has a user message that ends with a header such as Assistant: and was not split "
        "(first: rows.jsonl:1); a prompt of messages keeps its turns apart"
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "<|im_start|>assistant\na<|im_end|>"},
        {"question": "[INST] q [/INST]", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "response_0": "a<|eot_id|>", "response_1": "b", "better_response_id": 0},
    ],
)
def test_every_text_that_is_read_is_looked_at_for_marks_of_a_template(row):
    with pytest.raises(RecordError, match="a mark of a chat template"):
        list(formats.read(Row(row)))


@pytest.mark.parametrize("column", ["prompt", "chosen"])
@pytest.mark.parametrize(
    "start",
    [
        "<|im_start|>user\n",
        "<s>[INST] ",
        "[INST] ",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
        "<bos><start_of_turn>user\n",
        "<|user|>\n",
        "<｜begin▁of▁sentence｜><｜User｜>",
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|>",
    ],
)
def test_texts_of_a_chat_template_are_refused(column, start):
    row = {"prompt": "q", **REPLIES, column: start + "Hi"}
    for reader in (read, lambda row: records.parse_preference(Record(row, "rows.jsonl:1"))):
        with pytest.raises(RecordError, match=f"^rows.jsonl:1: {column}: begins with .* template"):
            reader(dict(row))
    about = {"prompt": "What is [INST] or <|im_start|>?", **REPLIES}
    assert read_one(about)["chosen"][0] == user(about["prompt"])


@pytest.mark.parametrize("mark", ["<|im_end|>\n", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>"])
def test_replies_that_end_as_a_chat_template_ends_them_are_refused(mark):
    row = {"prompt": "q", "chosen": f"a{mark}", "rejected": "b"}
    for reader in (read, lambda row: records.parse_preference(Record(row, "rows.jsonl:1"))):
        with pytest.raises(RecordError, match=r"^rows.jsonl:1: chosen: ends with <.*, a mark of"):
            reader(dict(row))
    assert read_one(row | {"chosen": f"{mark} ends a turn."})["chosen"][0] == user("q")


@pytest.mark.parametrize("value", ["a.png", ["a.png"], {"bytes": None, "path": "a.png"}])
def test_a_column_of_pictures_is_refused_and_an_empty_one_is_none(value):
    row = {"id": "x", "prompt": "q", **REPLIES}
    for reader in (read, lambda row: records.parse_any(Record(row, "rows.jsonl:1"))):
        with pytest.raises(RecordError, match=r"^rows.jsonl:1: image: holds image; only text"):
            reader(row | {"image": value})
        for none in (None, [], "", "[]", [None], {"bytes": None, "path": None}):
            reader(row | {"image": none})


@pytest.mark.parametrize(
    "value",
    [
        {"bytes": 7},
        {"bytes": "iVBORw0K", "path": None},
        [{"bytes": None, "path": "http://a/b.png"}],
    ],
)
def test_bytes_are_refused_whatever_the_name_of_their_column(value):
    row = {"id": "x", "prompt": "q", **REPLIES}
    for reader in (read, lambda row: records.parse_any(Record(row, "rows.jsonl:1"))):
        with pytest.raises(RecordError, match=r"^rows.jsonl:1: screen: holds bytes, as pictures"):
            reader(row | {"screen": value})
        reader(row | {"screen": {"bytes": None, "path": None}, "size": {"bytes": 7, "lines": 1}})


def test_a_part_of_a_message_that_names_no_type_may_not_hold_a_picture():
    for name in ("image", "image_url"):
        part = {"text": "q", name: "http://a/b.png"}
        with pytest.raises(RecordError, match=rf"content\[0\].{name}: holds {name}; only text"):
            read({"messages": [{"role": "user", "content": [part]}, assistant("a")]})


@pytest.mark.parametrize(
    "conversations",
    [
        [{"from": "User", "value": "q"}, {"from": "Assistant", "value": "a"}],
        [{"from": "human", "value": "q"}, {"from": "bing", "value": "a"}],
        {"from": ["human", "gpt"], "value": ["q", "a"]},
    ],
)
def test_roles_may_have_other_names_and_columns_of_their_own(conversations):
    assert read_one({"conversations": conversations})["messages"] == [user("q"), assistant("a")]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("as_text", [True, False])
def test_sides_after_a_sharegpt_history_may_hold_it_and_may_be_texts(whole, as_text):
    if whole and as_text:
        pytest.skip("a text is a reply")
    history = [user("q"), assistant("a"), user("r")]
    sides = {
        name: name if as_text else [*(history if whole else []), assistant(name)]
        for name in ("chosen", "rejected")
    }
    record = read_one({"system": "s", "conversations": history, **sides})
    assert record["chosen"] == [system("s"), *history, assistant("chosen")]
    assert record["rejected"] == [system("s"), *history, assistant("rejected")]


def test_lists_of_turns_are_no_candidates():
    row = {"prompt": "x", "chosen": ["u", "a", "v", "b"], "rejected": ["u", "a", "v", "c"]}
    with pytest.raises(RecordError, match=r"^rows.jsonl:1: chosen: begins as `rejected` does"):
        read(row)


def test_texts_are_not_stripped_or_changed():
    record = read_one({"prompt": " q\n", "chosen": "  good\n", "rejected": "bad "})
    assert record["chosen"] == [user(" q\n"), assistant("  good\n")]
    assert record["rejected"] == [user(" q\n"), assistant("bad ")]


def test_the_explicit_form_may_share_whole_turns():
    row = {
        "prompt": [user("a"), assistant("b")],
        "chosen": [user("c"), assistant("d")],
        "rejected": [user("x"), assistant("y")],
    }
    assert read_one(row)["chosen"] == [user("a"), assistant("b"), user("c"), assistant("d")]


def test_an_instruction_and_its_input_are_one_question():
    row = {"instruction": "Translate.", "input": "A bird.", "output_1": "x", "output_2": "y"}
    record = read_one(row | {"label": 2})
    assert record["chosen"] == [user("Translate.\nA bird."), assistant("y")]
    assert "instruction" not in record["metadata"]


@pytest.mark.parametrize(
    "row",
    [
        {
            "conversations": [
                {"from": "system", "value": "be kind"},
                {"from": "human", "value": "q"},
            ],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        {"system": "be kind", "prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": "q", **{name: [system("be kind"), *side] for name, side in SIDES.items()}},
    ],
    ids=["in the turns", "in a column", "in the sides"],
)
def test_a_system_message_comes_first(row):
    assert read_one(row)["chosen"] == [system("be kind"), user("q"), assistant("good")]


def test_labels_go_into_the_metadata_and_texts_do_not():
    row = {
        "prompt": "q",
        "chosen": "good",
        "rejected": "bad",
        "subset": "hep-go",
        "id": 0,
        "chosen_model": "human",
        "score_chosen": 8.5,
        "note": "x" * 201,
        "parts": ["q"],
    }
    assert read_one(row, source="rewardbench") == {
        "id": "hep-go/0",
        **SIDES,
        "metadata": {
            "subset": "hep-go",
            "chosen_model": "human",
            "score_chosen": 8.5,
            "turns": 1,
            "source": "rewardbench",
        },
    }


def test_the_rows_own_source_stands_before_the_files():
    assert read_one({**SIDES, "source": "magpie"}, source="train")["metadata"]["source"] == "magpie"


@pytest.mark.parametrize(
    "row, identity",
    [
        ({**SIDES, "id": "mine"}, "mine"),
        ({"prompt": "q", "chosen": "good", "rejected": "bad", "id": 7}, 7),
        ({"prompt": "q", "chosen": "good", "rejected": "bad", "id": 0}, 0),
        (SIDES, records.content_id(*SIDES.values())),
        ({**SIDES, "id": None}, records.content_id(*SIDES.values())),
        (
            {"prompt": "q", "chosen": "good", "rejected": "bad", "id": True},
            records.content_id(*SIDES.values()),
        ),
    ],
)
def test_the_datasets_own_id_is_kept_and_else_the_content_makes_one(row, identity):
    assert read_one(row)["id"] == identity


@pytest.mark.parametrize(
    "record",
    [
        {
            "id": "c",
            "messages": [user("q")],
            "branch": "chosen",
            "metadata": {"k": 1},
            "faults": [],
        },
        {"id": "p", **SIDES, "metadata": {}, "first_divergence": 1, "contrast": [{"message": 1}]}
        | {"metadata": {"k": 1}},
        {
            "id": "v",
            "a": SIDES["chosen"],
            "b": SIDES["rejected"],
            "winner": "b",
            "metadata": {"k": 1},
            "votes": [],
        },
    ],
)
def test_our_own_records_pass_through_untouched(record):
    assert read_one(record, source="file") == record


def test_comparisons_by_people_are_cut_after_the_judged_turn_and_keep_the_winner():
    row = {
        "question_id": 81,
        "model_a": "alpaca",
        "model_b": "gpt-4",
        "winner": "model_b",
        "judge": "expert_1",
        "turn": 1,
        "conversation_a": [user("q"), assistant("a1"), user("r"), assistant("a2")],
        "conversation_b": [user("q"), assistant("b1"), user("r"), assistant("b2")],
    }
    assert read_one(row) == {
        "id": "81/alpaca/gpt-4/expert_1/1",
        "a": [user("q"), assistant("a1")],
        "b": [user("q"), assistant("b1")],
        "winner": "b",
        "metadata": {
            "question_id": 81,
            "model_a": "alpaca",
            "model_b": "gpt-4",
            "judge": "expert_1",
            "turn": 1,
            "turns": 1,
        },
    }
    second = read_one(row | {"turn": 2, "winner": "tie (bothbad)"})
    assert (len(second["a"]), len(second["b"]), second["winner"]) == (4, 4, "tie")
    told = row | {side: [system("s"), *row[side]] for side in ("conversation_a", "conversation_b")}
    for turn in (1, 1.0, "1"):
        vote = read_one(told | {"turn": turn})
        assert vote["a"] == [system("s"), user("q"), assistant("a1")]
        assert vote["id"] == "81/alpaca/gpt-4/expert_1/1"
    for turn in (0, 1.5, True, "first", [1]):
        with pytest.raises(RecordError, match=r"^rows.jsonl:1: turn: is .* whole number from 1$"):
            read_one(row | {"turn": turn})
    with pytest.raises(
        RecordError, match="winner: is 'model_c'; it should be model_a, model_b, tie or"
    ):
        read(row | {"winner": "model_c"})


@pytest.mark.parametrize(
    "text",
    [
        "\r\n\r\nHuman: q\r\nr\r\n\r\nAssistant: a",
        "\n\nHuman: q\nr\r\n\r\nAssistant: a",
    ],
    ids=["everywhere", "between turns"],
)
def test_hh_with_windows_line_ends_is_read_like_its_twin(text):
    pair = read_one({"chosen": text, "rejected": text + "!"})
    assert pair["chosen"] == [user("q\nr"), assistant("a")]


def test_an_hh_prompt_alone_is_its_turns():
    prompt = "\n\nHuman: What is 2+2?\n\nAssistant: "
    alone = read_one({"prompt": prompt})
    beside = read_one({"prompt": prompt, "chosen": "4", "rejected": "5"})
    assert alone["messages"] == beside["chosen"][:1] == [user("What is 2+2?")]
    history = read_one({"prompt": prompt + "4\n\nHuman: And 3+3?\n\nAssistant:"})
    assert history["messages"] == talk("What is 2+2?", "4", "And 3+3?")


@pytest.mark.parametrize(
    "row, messages",
    [
        ({"messages": [user("q"), assistant("r")]}, [user("q"), assistant("r")]),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]},
            [user("q"), assistant("r")],
        ),
        (
            {"history": [{"user": "q", "bot": "r"}, {"user": "s", "bot": "t"}]},
            [user("q"), assistant("r"), user("s"), assistant("t")],
        ),
        ({"prompt": "q"}, [user("q")]),
        ({"prompt": [system("s"), user("q")]}, [system("s"), user("q")]),
        ({"prompt": "q", "completion": "r"}, [user("q"), assistant("r")]),
        ({"prompt": [user("q")], "completion": [assistant("r")]}, [user("q"), assistant("r")]),
    ],
)
def test_conversations_are_read_from_every_format(row, messages):
    assert read_one(row)["messages"] == messages


HH = "\n\nHuman: q\n\nAssistant: good"


@pytest.mark.parametrize(
    "chosen, messages",
    [
        (
            "\n\nHuman: q\n\nAssistant:   two\n\nparagraphs ",
            [user("q"), assistant("two\n\nparagraphs")],
        ),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c", [user("a\n\nb"), assistant("c")]),
        ("\n\nHuman: q\n\nAssistant: Human: why?", [user("q"), assistant("Human: why?")]),
        ("\n\nHuman: q\n\nAssistant: No.  Human: why?", [user("q"), assistant("No.  Human: why?")]),
        (
            "\n\nHuman: q\n\nAssistant: No.\nAssistant: Yes.",
            [user("q"), assistant("No.\nAssistant: Yes.")],
        ),
        ("Human: q\n\nAssistant: r", [user("q"), assistant("r")]),
    ],
)
def test_hh_headers_count_only_after_a_blank_line(chosen, messages):
    assert read_one({"chosen": chosen, "rejected": HH})["chosen"] == messages


@pytest.mark.parametrize(
    "row, error",
    [
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: a\n\nAssistant: b", "rejected": HH},
            "chosen[2]: two headers of the assistant in a row; where one turn ends cannot be told",
        ),
        (
            {"chosen": HH, "rejected": "\n\nHuman: q\n\nAssistant: "},
            "rejected[1]: content of this assistant message is empty",
        ),
        (
            {"chosen": HH, "rejected": HH + "\n\nHuman: and?"},
            "rejected: ends with the user; it should end with the assistant",
        ),
        (
            {"chosen": "just text", "rejected": "other text"},
            'chosen: is a string with neither a prompt beside it nor "Human:" at its start',
        ),
        (
            {"prompt": "other", **SIDES},
            "chosen: neither holds the prompt nor begins with the assistant",
        ),
        (
            {"chosen": None, "rejected": "b", "prompt": "q"},
            "chosen: is null; rows of the format preference, HH or RewardBench have it",
        ),
        (
            {"messages": [user("q")], "chosen": [user("q"), assistant("a")]},
            "rejected: is missing beside chosen; a preference has both",
        ),
        (
            {"prompt": '["How?", "And when?"]'},
            "prompt: is the text of a JSON list; `columns` names the columns of such rows",
        ),
        (
            {"prompt": "q", "chosen": ["one", 2], "rejected": ["three"]},
            "chosen[0]: is no message by the system, the user or the assistant (role None)",
        ),
        (
            {"messages": [user("q"), {"role": "critic", "content": "3"}]},
            "messages[1]: is no message by the system, the user or the assistant (role 'critic')",
        ),
        (
            {"messages": [user("q"), user("r")]},
            "messages[1]: role is user where assistant should speak; roles alternate, user first",
        ),
        (
            {"messages": [user("q"), assistant(None)]},
            "messages[1]: content is null; it should be a string",
        ),
        (
            {"input": "q", "output_1": "a", "output_2": "b", "label": 0},
            "label: is 0; it should be 1 or 2",
        ),
        (
            {
                "evaluation_sample": {
                    "input": [user("q")],
                    "outputs": [assistant("a") | {"content_label": "chosen"}],
                }
            },
            "evaluation_sample.outputs: 0 outputs are labelled rejected; there should be one",
        ),
        (
            {"state": {"history": [user("q")]}, "task": {}},
            "state.success: is missing; it should be true or false",
        ),
        (
            {"state": "lost", "task": {}},
            "state: is not readable; it should be an object",
        ),
        ({"history": ["q"]}, "history[0]: is no object with user and bot"),
    ],
)
def test_a_row_that_cannot_be_read_is_refused_by_name(row, error):
    with pytest.raises(RecordError) as caught:
        read(row)
    assert str(caught.value) == f"rows.jsonl:1: {error}"
    assert caught.value.record == Record(row)


ONE_TURN = {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}


@pytest.mark.parametrize(
    "row",
    [
        {name: json.dumps(side) for name, side in ONE_TURN.items()},
        {"prompt": "q", **{name: json.dumps(side) for name, side in ONE_TURN.items()}},
        {"prompt": json.dumps([user("q")]), "chosen": "a", "rejected": "b"},
        {"prompt": "q", **{name: json.dumps(side[1:]) for name, side in ONE_TURN.items()}},
    ],
)
def test_messages_that_stand_as_json_in_a_text_are_messages(row):
    [record] = read(row)
    assert {name: record[name] for name in ONE_TURN} == ONE_TURN


@pytest.mark.parametrize("column", ["prompt", "chosen"])
@pytest.mark.parametrize(
    "text", [str(ONE_TURN["chosen"]), str(ONE_TURN["chosen"][0]), f"array({ONE_TURN['chosen']})"]
)
def test_messages_as_python_writes_them_are_refused(column, text):
    row = {"prompt": "q", "chosen": "a", "rejected": "b", column: text}
    with pytest.raises(RecordError, match=f"^rows.jsonl:1: {column}: holds messages as Python"):
        read(row)


def test_lists_that_begin_with_the_prompt_are_no_candidates():
    with pytest.raises(RecordError, match=r"^rows.jsonl:1: chosen\[0\]: is no message"):
        read({"prompt": "q", "chosen": ["q", "a"], "rejected": ["q", "b"]})


def test_a_part_of_an_unexpected_kind_is_the_rows_fault():
    row = {
        "message_tree_id": "t",
        "prompt": {"role": "prompter", "text": "q", "replies": ["not a node"]},
    }
    with pytest.raises(
        RecordError, match=r"rows.jsonl:1: is not what a row of the format OpenAssistant tree holds"
    ):
        read(row, pairs=True)


def test_unknown_columns_are_named_with_what_to_do():
    with pytest.raises(RecordError) as caught:
        read({"question": "q", "answer": "a"})
    assert str(caught.value) == (
        "rows.jsonl:1: no known format has the columns question, answer; say what they hold, as "
        "`columns` prompt=question,completion=answer; `describe` shows what they are"
    )


# The folder of formats


def test_a_format_with_more_telling_columns_is_tried_first():
    orders = [format.order for format in formats.FORMATS]
    assert orders == sorted(set(orders))
    for position, format in enumerate(formats.FORMATS):
        for earlier in formats.FORMATS[:position]:
            assert not earlier.columns < format.columns, (earlier.name, format.name)


@pytest.mark.parametrize(
    "columns, name",
    [
        ("messages chosen rejected prompt", "preference, HH or RewardBench"),
        ("conversations chosen rejected", "ShareGPT preference"),
        ("trajectory chosen rejected prompt", "UltraInteract pair"),
        ("message_tree_id prompt messages", "OpenAssistant tree"),
        ("history chosen rejected", "preference, HH or RewardBench"),
        ("a b messages", "comparison"),
        ("messages conversations prompt", "conversation"),
        ("conversations prompt", "ShareGPT"),
        ("prompt completion", "prompt"),
    ],
)
def test_of_several_formats_whose_columns_a_row_has_the_first_one_reads_it(columns, name):
    assert formats.recognize(Record(dict.fromkeys(columns.split(), "text"))).name == name


@pytest.mark.parametrize(
    "row, name",
    [
        ({"history": None, "prompt": "q", "chosen": "a", "rejected": "b"}, "preference"),
        ({"messages": None, "prompt": None, **SIDES}, "preference"),
        ({"messages": [user()], "chosen": None, "rejected": None}, "conversation"),
        ({"conversations": [user()], "chosen": None, "rejected": None}, "ShareGPT"),
        ({"message_tree_id": None, "prompt": "q", "chosen": "a", "rejected": "b"}, "preference"),
        ({"prompt": "q", "answers": None, "label": None}, "prompt"),
        ({"prompt": "q", "chosen": None, "rejected": "b"}, "preference"),
        ({"prompt": "q", "response_1": "a", "response_2": "b", "winner": None}, "PPE"),
        ({"input": "q", "output_1": "a", "output_2": "b", "label": None}, "LLMBar"),
    ],
)
def test_null_columns_are_absent_but_what_stands_beside_them_is_not_left_out(row, name):
    assert formats.recognize(Record(row)).name.startswith(name)


def test_a_new_file_in_the_folder_is_a_new_format(tmp_path, monkeypatch):
    (tmp_path / "haiku.py").write_text(
        "from musiccli.core.row_messages import user_message\n"
        "from musiccli.sample.columns import Format, make_record\n"
        "def read(row, source):\n"
        "    yield make_record(row, source, {'messages': [user_message(row['haiku'])]})\n"
        "FORMATS = [Format('haiku', order=15, columns=frozenset({'haiku'}), read=read)]\n"
    )
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    monkeypatch.setattr(formats, "FORMATS", formats._find_formats())
    del sys.modules["musiccli.sample.formats.haiku"]
    assert read_one({"haiku": "old pond", "prompt": "q"})["messages"] == [user("old pond")]
    assert [format.name for format in formats.FORMATS[:3]] == [
        "OpenJudge",
        "haiku",
        "OpenAssistant tree",
    ]


# Candidates for one prompt

BEST_OF = {
    "prompt": "q",
    "chosen": ["good"],
    "rejected": ["bad", "worse"],
    "subset": "Math",
    "id": "7",
    "num_correct": 1,
    "models": ["x", "y", "z"],
    "additional_metadata": {"category": None},
}
STYLES = {
    "prompt": "q",
    "chosen": ["c1", "c2", "c3"],
    "rejected": ["r1", "r2", "r3"],
    "domain": "safety-refuse",
    "id": 4,
}


def test_each_candidate_is_a_conversation_that_knows_whether_it_is_right():
    assert read(BEST_OF, source="rewardbench2") == [
        {
            "id": "Math/7",
            "messages": [user("q"), assistant(text)],
            "sample": sample,
            "metadata": {
                "subset": "Math",
                "num_correct": 1,
                "correct": sample == 0,
                "turns": 1,
                "source": "rewardbench2",
            },
        }
        for sample, text in enumerate(["good", "bad", "worse"])
    ]


def test_right_candidates_come_first_each_list_in_its_order():
    results = read(STYLES)
    assert [
        (
            candidate["messages"][-1]["content"],
            candidate["sample"],
            candidate["metadata"]["correct"],
        )
        for candidate in results
    ] == [
        ("c1", 0, True),
        ("c2", 1, True),
        ("c3", 2, True),
        ("r1", 3, False),
        ("r2", 4, False),
        ("r3", 5, False),
    ]
    assert {(record["id"], record["metadata"]["domain"]) for record in results} == {
        ("safety-refuse/4", "safety-refuse")
    }


@pytest.mark.parametrize(
    "row_id, identity, labels",
    [
        ("ref:12", "Ties/ref:12", {"sample_type": "ref", "prompt_id": 12}),
        ("tied:0", "Ties/tied:0", {"sample_type": "tied", "prompt_id": 0}),
        ("12", "Ties/12", {}),
    ],
)
def test_the_ties_of_rewardbench_2_say_which_prompt_of_which_question_they_are(
    row_id, identity, labels
):
    record = read({**BEST_OF, "subset": "Ties", "id": row_id})[0]
    assert record["id"] == identity
    assert {
        name: value
        for name, value in record["metadata"].items()
        if name in ("sample_type", "prompt_id")
    } == labels


def test_as_pairs_every_right_candidate_stands_over_every_wrong_one():
    results = read(STYLES, pairs=True)
    assert [
        (pair["id"], pair["chosen"][-1]["content"], pair["rejected"][-1]["content"])
        for pair in results[:4]
    ] == [
        ("safety-refuse/4/0-0", "c1", "r1"),
        ("safety-refuse/4/0-1", "c1", "r2"),
        ("safety-refuse/4/0-2", "c1", "r3"),
        ("safety-refuse/4/1-0", "c2", "r1"),
    ]
    assert len(results) == 9 and results[3]["metadata"]["candidates"] == [1, 0]


def test_without_an_id_the_texts_name_the_prompt():
    first, *others = read({"prompt": "q", "chosen": ["good"], "rejected": ["bad"]})
    assert (
        {record["id"] for record in others}
        == {first["id"]}
        == {records.content_id([user("q"), assistant("good")], [user("q"), assistant("bad")])}
    )


# Trees and trajectories


def reply(name, rank=None, replies=(), role="assistant", **fields):
    return {
        "message_id": name,
        "role": role,
        "text": f"text {name}",
        "rank": rank,
        "replies": list(replies),
        **fields,
    }


def tree(*replies):
    return {
        "message_tree_id": "t",
        "tree_state": "ready",
        "prompt": reply("p", role="prompter", replies=replies),
    }


def test_a_trees_siblings_make_a_pair_for_every_two_ranks():
    row = tree(
        reply("b", 1),
        reply("a", 0),
        reply("c", 2),
        reply("tied", 2),
        reply("unranked"),
        reply("gone", 3, deleted=True),
    )
    assert [record["id"] for record in read(row, pairs=True)] == [
        "a-b",
        "a-c",
        "a-tied",
        "b-c",
        "b-tied",
        "c-tied",
    ]
    first, *_, last = read(row, pairs=True, source="oasst")
    assert (last["a"], last["b"], last["winner"]) == (
        [user("text p"), assistant("text c")],
        [user("text p"), assistant("text tied")],
        "tie",
    )
    assert first["chosen"] == [user("text p"), assistant("text a")]
    assert first["rejected"] == [user("text p"), assistant("text b")]
    assert first["metadata"] == {
        "message_tree_id": "t",
        "tree_state": "ready",
        "ranks": [0, 1],
        "lang": None,
        "turns": 1,
        "source": "oasst",
    }


def test_a_trees_paths_are_conversations_and_ranked_user_messages_make_no_pair():
    row = tree(
        reply(
            "a",
            0,
            [reply("u", 0, role="prompter", replies=[reply("x")]), reply("v", 1, role="prompter")],
        )
    )
    assert [record["messages"] for record in read(row)] == [
        [user("text p"), assistant("text a"), user("text u"), assistant("text x")],
        [user("text p"), assistant("text a"), user("text v")],
    ]
    assert read(row, pairs=True) == []


def trajectory(task_id, success, *texts, source="model", prompt="q", reference="4"):
    history = [user(prompt)] + [
        {"role": ("assistant", "user")[number % 2], "content": text}
        for number, text in enumerate(texts)
    ]
    return read_one(
        {
            "state": {"history": history, "success": success},
            "task": {
                "task_name": "reasoning",
                "task_id": task_id,
                "prompt": prompt,
                "reference": reference,
            },
        },
        source=source,
    )


def test_solved_trajectories_stand_over_unsolved_ones_of_the_same_task():
    good = trajectory(1, True, "4", source="gpt")
    bad = trajectory(1, False, "5", "wrong", "6", source="llama")
    worse = trajectory(1, False, "7", "wrong", prompt="q, please", source="vicuna")
    others = [
        trajectory(2, True, "8"),
        trajectory(1, False, "9", reference="other task of that number"),
    ]
    first, second = pair_trajectories([good, bad, *others, worse], RunStats())
    assert first["chosen"] == [user("q"), assistant("4")]
    assert first["rejected"] == [user("q"), assistant("5"), user("wrong"), assistant("6")]
    assert first["metadata"] == {
        "task_name": "reasoning",
        "task_id": 1,
        "reference": "4",
        "turns": 1,
        "same_prompt": True,
        "chosen_source": "gpt",
        "rejected_source": "llama",
    }
    assert second["rejected"] == [
        user("q, please"),
        assistant("7"),
    ]  # what nobody answered is left out
    assert second["metadata"]["same_prompt"] is False


def test_a_trajectory_is_a_conversation_that_says_whether_it_was_solved():
    record = trajectory(1, True, "4", reference=[1, 2])
    assert record["metadata"] == {
        "success": True,
        "task_name": "reasoning",
        "task_id": 1,
        "reference": [1, 2],
        "turns": 1,
        "source": "model",
    }
    assert is_trajectory(record)
    assert not is_trajectory(read_one({"messages": [user("q")], "success": True}))


def test_an_environment_that_speaks_twice_is_joined():
    row = {
        "state": {"history": [user("q"), user("hint"), assistant("r")], "success": True},
        "task": {},
    }
    assert read_one(row)["messages"] == [user("q\n\nhint"), assistant("r")]


# Real files: each count is from the README of the data


def checked(results):
    """Every record passes the checks of its kind, and its id is its own."""
    for record in results:
        records.parse_any(Record(dict(record)))
    return len({record["id"] for record in results})


@needs_data
@pytest.mark.parametrize(
    "name, pairs, count, ids, multi_turn",
    [
        ("hh_helpful", False, 1137, 1137, 1137),
        ("hh_harmless", False, 2299, 2299, 1641),
        ("dpo_en_demo", False, 300, 295, 106),  # five rows stand in the file twice
        ("llmbar", False, 419, 419, 0),
        ("oasst", True, 754, 754, 316),
    ],
)
def test_real_preferences_are_all_read(name, pairs, count, ids, multi_turn):
    results, _ = load(name, pairs=pairs)
    assert (len(results), checked(results)) == (count, ids)
    assert sum(record["metadata"]["turns"] > 1 for record in results) == multi_turn
    assert all("chosen" in record and "source" in record["metadata"] for record in results)


@needs_data
@pytest.mark.parametrize("name, count", [("mtbench101", 1388), ("mint", 985), ("oasst", 626)])
def test_real_conversations_are_all_read(name, count):
    results, refused = load(name)
    assert (len(results), checked(results), refused) == (count, count, {})
    assert all("messages" in record for record in results)


def flattened(tree):
    """The messages of a tree in the order of the hub's files: each after its parent."""
    waiting = [(None, tree["prompt"])]
    while waiting:
        parent, node = waiting.pop()
        message = {name: value for name, value in node.items() if name != "replies"}
        shared = {name: tree[name] for name in ("message_tree_id", "tree_state")}
        yield shared | {"parent_id": parent} | message
        waiting += [(node["message_id"], reply) for reply in reversed(node.get("replies") or [])]


@needs_data
@pytest.mark.parametrize("pairs", [True, False])
def test_real_trees_read_message_by_message_give_the_same_records(pairs):
    trees = [row for _, row in sources.read_rows([str(DATA / "oasst")])]
    messages = [("oasst", Record(row)) for tree in trees for row in flattened(tree)]
    stats = RunStats()
    joined = list(read_records(iter(messages), stats, pairs=pairs))
    whole = list(read_records((("oasst", tree) for tree in trees), RunStats(), pairs=pairs))
    assert joined == whole and len(whole) == (754 if pairs else 626)
    assert stats.number("rows_read") == len(messages)


@needs_data
def test_hh_rows_with_odd_headers_or_empty_replies_are_refused_and_the_rest_differ_at_the_end():
    results, refused = load("hh_harmless")
    doubled = [number for number, error in refused.items() if "headers of the" in error]
    empty = [number for number, error in refused.items() if "is empty" in error]
    assert doubled == [667, 763, 1254, 1319, 1688, 1849, 1950, 1952, 2036]
    assert empty == [86, 516, 925, 1103]
    assert len(refused) == 13
    for record in results:
        length = len(record["chosen"])
        assert len(record["rejected"]) == length
        assert messages.first_divergence(record["chosen"], record["rejected"]) == length - 1


@pytest.mark.slow
@needs_data
def test_hh_text_is_kept_word_for_word():
    results, refused = load("hh_harmless")
    rows = [
        row
        for number, (_, row) in enumerate(sources.read_rows([str(DATA / "hh_harmless")]))
        if number not in refused
    ]
    headers = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}
    for row, record in zip(rows, results, strict=True):
        for name in ("chosen", "rejected"):
            whole = "".join(
                headers[message["role"]] + message["content"] for message in record[name]
            )
            assert "".join(whole.split()) == "".join(row[name].split())


@needs_data
def test_the_hh_row_in_which_the_user_writes_twice_is_joined():
    results, _ = load("hh_helpful")
    [record] = [record for record in results if record["id"] == "c5b43880607c878336095bf0929c595f"]
    assert record["chosen"][2] == user("Great! What are some ideas?\n\nDo you have more ideas?")


@needs_data
def test_mint_trajectories_make_712_pairs_of_which_nine_word_the_task_differently():
    trajectories, _ = load("mint")
    pairs = list(pair_trajectories(trajectories, RunStats()))
    assert (len(pairs), checked(pairs)) == (712, 712)
    assert Counter(pair["metadata"]["same_prompt"] for pair in pairs) == {True: 703, False: 9}
    for pair in pairs:
        assert messages.first_divergence(pair["chosen"], pair["rejected"]) == int(
            pair["metadata"]["same_prompt"]
        )


@needs_data
def test_llmbar_files_carry_rewardbenchs_subset_names():
    results, _ = load("llmbar")
    assert Counter(record["metadata"]["subset"] for record in results) == {
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    }


def test_llmbar_subsets_are_known_by_their_folder_too():
    row = {"input": "q", "output_1": "a", "output_2": "b", "label": 1}
    record = read_one(row, source="dataset", where="LLMBar/Adversarial/GPTInst/dataset.json[0]")
    assert record["metadata"]["subset"] == "llmbar-adver-GPTInst"
    assert "subset" not in read_one(row, source="dataset", where="dataset.json[0]")["metadata"]


@needs_data
def test_mtbench101_keeps_its_thirteen_tasks():
    results, _ = load("mtbench101")
    assert len(Counter(record["metadata"]["task"] for record in results)) == 13
    assert results[0]["metadata"] == {"task": "GR", "turns": 3, "source": "mtbench101"}
