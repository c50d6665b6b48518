"""`sample --describe` says what a dataset is, what each column becomes and what comes out."""

import gzip
import json
import re
from pathlib import Path

import pytest
from build import assistant, talk, user, write
from console import music
from toys import TINY

from musiccli import manual
from musiccli.core.errors import InputError
from musiccli.core.records import Record
from musiccli.sample.column_mapping import parse_mapping
from musiccli.sample.config import Emit, SampleConfig
from musiccli.sample.describe import UnreadableLines, describe
from musiccli.sample.description_text import description_text
from musiccli.sample.sources import read_rows
from musiccli.sample.value_summary import summarize_values

VOTE = {
    "question_id": 81,
    "model_a": "x",
    "winner": "model_a",
    "conversation_a": talk("How do I prune a rose?", "Cut above an outward bud."),
    "conversation_b": talk("How do I prune a rose?", "With great care, of course."),
    "note": ["seen"],
    "quality_rank": [3],
}


def described(*rows, **settings):
    return describe(
        [("data", Record(row, f"data.jsonl:{number}")) for number, row in enumerate(rows, 1)],
        **settings,
    )


def becomes(*rows, **settings):
    return {column.name: column.becomes for column in described(*rows, **settings).columns}


def emits(description):
    return {facts.emit.value: (facts.records, facts.left_out) for facts in description.emits}


# What each column becomes


def test_each_column_of_a_vote_is_told():
    assert becomes(VOTE) == {
        "question_id": "id, metadata",
        "model_a": "id, metadata",
        "winner": "label",
        "conversation_a": "a",
        "conversation_b": "b",
        "note": "left aside",
        "quality_rank": "left aside: a label?",
    }


@pytest.mark.parametrize(
    "row, expected",
    [
        (
            {"prompt": "How are you?", "chosen": "I am well.", "rejected": "No.", "topic": "small"},
            {
                "prompt": "user message",
                "chosen": "chosen",
                "rejected": "rejected",
                "topic": "metadata",
            },
        ),
        (
            {
                "chosen": "\n\nHuman: How are you?\n\nAssistant: Well.",
                "rejected": "\n\nHuman: How are you?\n\nAssistant: No.",
            },
            {"chosen": "chosen", "rejected": "rejected"},
        ),
        (
            {"messages": talk("q", "a"), "system": "Be brief.", "id": "x", "tools": []},
            {"messages": "messages", "system": "system message", "id": "id", "tools": "tools"},
        ),
        (
            {
                "prompt": '["How?"]',
                "response_a": '["So."]',
                "response_b": '["No."]',
                "winner_tie": 1,
            },
            {"prompt": "user message", "response_a": "a", "response_b": "b", "winner_tie": "label"},
        ),
        (
            {"prompt": "q", "completion": "a"},
            {"prompt": "user message", "completion": "reply"},
        ),
        (
            {"id": "x", "chosen": talk("q", "a"), "rejected": talk("q", "b"), "metadata": {"k": 1}},
            {"id": "id", "chosen": "chosen", "rejected": "rejected", "metadata": "metadata"},
        ),
    ],
    ids=["explicit", "hh", "conversation", "lists", "completion", "record"],
)
def test_columns_are_told_by_what_becomes_of_their_values(row, expected):
    assert becomes(row) == expected


def test_a_column_that_differs_from_row_to_row_is_told_in_each_way():
    row = {"input": "q", "output_1": "good", "output_2": "bad"}
    assert becomes(row | {"label": 1}, row | {"label": 2})["output_1"] == "chosen, rejected"


def test_columns_of_a_mapping_become_what_it_says():
    row = {"ask": "q", "replies": ["yes", "no"], "pick": "B", "lang": "en", "rank": [1]}
    mapping = parse_mapping(["prompt=ask,a=replies.0,b=replies.1,winner=pick:A=a,B=b,tongue=lang"])
    assert becomes(row, mapping=mapping) == {
        "ask": "prompt",
        "replies": "a, b",
        "pick": "winner",
        "lang": "metadata.tongue",
        "rank": "left aside",
    }


def test_rows_that_are_parts_of_a_tree_are_told_together():
    tree = {"message_tree_id": "t", "tree_state": "ready"}
    rows = [
        tree | {"message_id": "1", "role": "prompter", "text": "How are you?"},
        tree
        | {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "Well.", "rank": 0},
        tree
        | {"message_id": "3", "parent_id": "1", "role": "assistant", "text": "Bad!", "rank": 1},
    ]
    description = described(*rows)
    told = {column.name: column.becomes for column in description.columns}
    assert told["text"] == "user message, chosen, rejected" and told["rank"] == "label"
    assert emits(description)["pairs"] == (1, {})


def test_a_column_that_is_null_in_every_row_is_listed():
    description = described({"prompt": "q", "system": None})
    assert [(column.name, column.rows, column.holds) for column in description.columns] == [
        ("prompt", 1, "text: q"),
        ("system", 0, "null"),
    ]


def test_columns_of_no_known_format_are_left_aside_and_labels_stand_out():
    description = described({"question": "q", "answers": ["a"], "better": 0})
    assert (description.formats, description.unknown, description.example) == ({}, 1, None)
    assert [(column.name, column.becomes) for column in description.columns] == [
        ("question", "left aside"),
        ("answers", "left aside"),
        ("better", "left aside: a label?"),
    ]


# What comes out


def test_every_choice_of_emit_is_counted_with_what_is_left_out():
    description = described(VOTE, VOTE | {"question_id": 82, "winner": "tie"})
    assert description.formats == {"MT-Bench votes: has conversation_a, conversation_b, winner": 2}
    counts = emits(description)
    assert counts.keys() == {emit.value for emit in Emit}
    assert counts["pairs"] == (1, {"tie": 1})
    assert counts["comparisons"] == (2, {})
    assert counts["corruptions"][0] == 0


@pytest.mark.parametrize(
    "row, emit, expected",
    [
        (VOTE, Emit.seeds, Emit.pairs),
        (VOTE | {"winner": "tie"}, Emit.seeds, Emit.comparisons),
        ({"messages": talk("q", "a")}, Emit.seeds, Emit.conversations),
        (VOTE, Emit.prompts, Emit.prompts),
    ],
)
def test_the_example_is_what_one_would_want_or_what_was_asked_for(row, emit, expected):
    assert described(row, config=SampleConfig(emit=emit)).example[0] is expected


def test_no_more_than_the_first_rows_are_read():
    rows = ((str(number), Record({"prompt": f"p{number}"})) for number in range(1000))
    assert describe(rows).rows == 20
    assert next(rows)[0] == "20"


def test_rows_that_cannot_be_read_are_named_and_the_rest_is_described():
    description = described({"messages": talk("q", "a")}, {"messages": [user("q"), user("r")]})
    assert [problem.split(": ")[0] for problem in description.problems] == ["data.jsonl:2"]
    assert emits(description)["conversations"] == (1, {"cannot be read": 1})


def test_lines_that_are_hardly_a_dataset_end_the_reading():
    lines = UnreadableLines()
    with pytest.raises(InputError, match="x:1: is not JSON; nor are the next lines rows"):
        for number in range(1, 100):
            lines.append(f"x:{number}: is not JSON")
    assert len(lines) == 10


# What values are


@pytest.mark.parametrize(
    "values, summary",
    [
        (["A", "B", "A"], "text: A, B"),
        (["short", "x" * 320], "text, 5 to 320 characters"),
        ([1, 2.5], "number, 1 to 2.5"),
        ([True, False], "true or false"),
        ([talk("q"), talk("q", "a")], "1 to 2 messages"),
        ([[{"from": "human", "value": "q"}]], "1 message"),
        ([["a", "b"]], "2 texts"),
        ([[{"answer": "x", "rank": 1}]], "1 object: answer, rank"),
        ([[1, 2, 3]], "list of 3 items"),
        ([{"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}], "object: a, b, c, d, …"),
        (["x", [assistant()]], "text: x or 1 message"),
    ],
)
def test_values_are_summarized_in_a_few_words(values, summary):
    assert summarize_values(values) == summary


# The command


def test_the_report_is_text_of_80_columns_on_standard_output(tmp_path):
    path = write(tmp_path / "votes.jsonl", VOTE, VOTE | {"winner": "tie", "question_id": 82})
    done = music("sample", path, "--describe")
    assert (done.status, done.err) == (0, "")
    text = done.out.decode()
    assert max(map(len, text.replace(str(path), "").splitlines())) <= 80
    for line in (
        "2 rows, which is all",
        "  2  MT-Bench votes: has conversation_a, conversation_b, winner",
        "  winner             2  text: model_a, tie  label",
        "  --emit         records  left out",
        "  pairs                1  1 tie",
        "The first record of --emit pairs",
        "assistant                               │ assistant",
    ):
        assert line in text.splitlines(), text
    assert "Cut above an outward bud." in text


def test_a_report_of_an_unknown_dataset_says_what_to_do(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"question": "q", "better": 1})
    done = music("sample", path, "--describe")
    assert done.status == 0
    assert "--columns" in done.out.decode() and "no known format" in done.out.decode()


def test_a_report_shows_bad_lines_and_hides_nothing_dangerous(tmp_path):
    path = write(tmp_path / "rows.jsonl", b"{torn", {"prompt": "q\x1b[2J", "\x1b[31mred": 1})
    text = music("sample", path, "--describe").out.decode()
    assert f"{path}:1".replace(" ", "")[-12:] in text.replace("\n", "").replace(" ", "")
    assert "\x1b" not in text


def test_the_report_can_be_written_to_a_file_and_long_messages_are_cut(tmp_path):
    data = gzip.compress(json.dumps({"messages": talk("x" * 5000, "a")}).encode() + b"\n")
    (tmp_path / "rows.jsonl.gz").write_bytes(data)
    target = tmp_path / "report.txt"
    done = music("sample", tmp_path / "rows.jsonl.gz", "--describe", "-o", target)
    assert (done.status, done.out) == (0, b"")
    assert "(4,600 characters more)" in " ".join(target.read_text("utf-8").split())


def test_what_cannot_be_opened_is_one_line(tmp_path):
    done = music("sample", tmp_path / "nothing.jsonl", "--describe")
    assert done.status == 2 and len(done.lines) == 1 and "no such file" in done.err


def test_the_manual_shows_the_report_as_it_is(monkeypatch):
    monkeypatch.chdir(TINY)
    report = music("sample", "pairs.jsonl", "--describe").out.decode()
    page = (Path(manual.__file__).parent / "sample.md").read_text("utf-8")
    shown = re.search(r"```text\n(.*?)```", page, re.DOTALL)[1]
    assert report.startswith(shown)


SHARED_FORMATS = Path(__file__).parent.parent.parent / "shared" / "formats"


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_FORMATS.is_dir(), reason="the shared rows are not here")
def test_every_shared_dataset_is_described_without_a_fault():
    for path in sorted((*SHARED_FORMATS.glob("*.jsonl"), *SHARED_FORMATS.glob("*.csv"))):
        description = describe(read_rows([str(path)]))
        text = description_text(description, [path.name])
        assert "\nColumns\n" in text and max(map(len, text.splitlines())) <= 80, path
        assert description.columns and "fault" not in text, path
