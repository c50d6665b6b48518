"""`--columns` reads rows of any shape by the user's word, and what it cannot read it names."""

import json

import pytest
from build import assistant, system, talk, user, write
from console import music

from musiccli.core.errors import InputError, RecordError
from musiccli.core.jsonl import Rejects
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.sample.column_mapping import column_value, map_columns, map_row, parse_mapping

ROW = {
    "question": "q",
    "answers": [{"text": "good"}, {"text": "bad"}],
    "label": "A>B",
    "uid": 7,
    "lang": "en",
    "essay": "x" * 500,
}


def read(row, *columns):
    """The record of a row without its metadata's mapping, which `parse_mapping` tests."""
    record = dict(map_row(Record(row, "rows.jsonl:1"), "", parse_mapping(columns)))
    assert list(record["metadata"].pop("columns")) == list(parse_mapping(columns).paths)
    record["metadata"].pop("turns")
    return record


# What a mapping says


def test_a_mapping_has_paths_and_the_meanings_of_winners():
    mapping = parse_mapping(["a=left,b=right,winner=label:A>B=a,B>A=b,A=B=tie,lang=meta.lang"])
    assert mapping.paths == {"a": "left", "b": "right", "winner": "label", "lang": "meta.lang"}
    assert mapping.winners == {"A>B": "a", "B>A": "b", "A=B": "tie"}
    assert mapping.text["winner"] == "label:A>B=a,B>A=b,A=B=tie"


def test_a_mapping_may_be_split_over_several_options():
    mapping = parse_mapping(["winner=label:0=a, 1=b", "a=left , b=right"])
    assert mapping.paths == {"winner": "label", "a": "left", "b": "right"}
    assert mapping.winners == {"0": "a", "1": "b"}


@pytest.mark.parametrize(
    "text, error",
    [
        ("prompt", "`columns` prompt: should be NAME=COLUMN, as prompt=question"),
        ("prompt=", "`columns` prompt=: should be NAME=COLUMN, as prompt=question"),
        ("prompt=x,prompt=y", "`columns` prompt=y: prompt is named twice"),
        ("winner=label:1=c", "`columns` 1=c: a winner is a, b or tie"),
        (
            "chosen=x,a=y",
            "`columns`: names parts of a preference and of a comparison; choose one",
        ),
    ],
)
def test_a_mapping_that_cannot_be_read_is_one_line(text, error):
    with pytest.raises(InputError) as caught:
        parse_mapping([text])
    assert str(caught.value) == error


@pytest.mark.parametrize(
    "path, value",
    [
        ("a.b", 1),
        ("list.0", 2),
        ("list[1].x", 3),
        ("list.-1.x", 3),
        ("list.9", None),
        ("text.k[0]", 4),
        ("dotted.name", 5),
        ("a.nothing", None),
        ("nothing", None),
        ("plain.x", None),
    ],
)
def test_a_path_leads_into_objects_lists_and_json_texts(path, value):
    row = {
        "a": {"b": 1},
        "list": [2, {"x": 3}],
        "text": '{"k": [4]}',
        "dotted.name": 5,
        "plain": "text",
    }
    assert column_value(Record(row), path) == value


# What becomes of a row


def test_a_preference_keeps_labels_ids_and_what_is_named_beside_them():
    columns = "prompt=question,chosen=answers.0.text,rejected=answers.1.text,id=uid,verdict=label"
    assert read(ROW, columns) == {
        "id": 7,
        "chosen": talk("q", "good"),
        "rejected": talk("q", "bad"),
        "metadata": {"lang": "en", "verdict": "A>B"},
    }


@pytest.mark.parametrize(
    "label, meanings, winner",
    [
        ("A>B", "A>B=a,B>A=b", "a"),
        (0, "0=b,1=a", "b"),
        (1.0, "0=b,1=a", "a"),
        (True, "true=a,false=b", "a"),
        ("both bad", "left=a,both bad=tie", "tie"),
    ],
)
def test_a_comparison_has_the_winner_that_its_label_means(label, meanings, winner):
    columns = f"prompt=question,a=answers.0.text,b=answers.1.text,winner=label:{meanings}"
    record = read(ROW | {"label": label}, columns)
    assert (record["a"], record["winner"]) == (talk("q", "good"), winner)


def test_a_label_of_our_words_needs_no_meanings_and_none_is_no_winner():
    columns = "prompt=question,a=answers.0.text,b=answers.1.text,winner=label"
    assert read(ROW | {"label": "tie"}, columns)["winner"] == "tie"
    assert "winner" not in read(ROW | {"label": None}, columns)


@pytest.mark.parametrize("value", ["C", "", 2, 10**30, ["a"]])
def test_a_label_that_the_mapping_does_not_name_is_refused(value):
    columns = "prompt=question,a=answers.0.text,b=answers.1.text,winner=label:A=a,B=b"
    with pytest.raises(RecordError) as caught:
        read(ROW | {"label": value}, columns)
    assert str(caught.value) == f"rows.jsonl:1: label: is {value!r}; `columns` names A, B"


@pytest.mark.parametrize(
    "value",
    [
        talk("q", "a", "r"),
        [
            {"from": "human", "value": "q"},
            {"from": "gpt", "value": "a"},
            {"from": "human", "value": "r"},
        ],
        json.dumps(talk("q", "a", "r")),
        ["q", "a", "r"],
        json.dumps(["q", "a", "r"]),
    ],
    ids=["messages", "sharegpt", "json", "texts", "json texts"],
)
def test_a_conversation_is_read_in_every_form(value):
    assert read({"turns": value}, "messages=turns")["messages"] == talk("q", "a", "r")


@pytest.mark.parametrize(
    "history", [talk("q", "a"), ["q", "a"], [["q", "a"]], json.dumps([["q", "a"]])]
)
@pytest.mark.parametrize("name", ["history", "context"])
def test_a_history_stands_before_the_prompt_and_the_replies(history, name):
    row = {"past": history, "ask": "r", "good": "yes", "bad": [assistant("no")], "rules": "s"}
    columns = f"{name}=past,prompt=ask,chosen=good,rejected=bad,system=rules"
    record = read(row, columns)
    assert record["chosen"] == [system(), *talk("q", "a", "r", "yes")]
    assert record["rejected"] == [system(), *talk("q", "a", "r", "no")]


def test_a_history_may_end_with_the_prompt():
    row = {"past": talk("q"), "good": "yes", "bad": "no"}
    assert read(row, "history=past,chosen=good,rejected=bad")["rejected"] == talk("q", "no")


def test_columns_of_our_names_need_not_be_named():
    row = {"prompt": "q", "good": "yes", "bad": "no", "system": "s", "id": "x"}
    record = read(row, "chosen=good,rejected=bad")
    assert (record["id"], record["chosen"]) == ("x", [system(), *talk("q", "yes")])


def test_the_rows_own_columns_decide_where_the_mapping_names_a_part_alone():
    row = {"question": "q", "chosen": "yes", "rejected": "no"}
    assert read(row, "prompt=question")["rejected"] == talk("q", "no")
    assert read({"question": "q"}, "prompt=question")["messages"] == [user()]
    assert read({"question": "q", "answer": "a"}, "prompt=question,completion=answer")[
        "messages"
    ] == talk("q", "a")


def test_a_text_that_nests_deeper_than_can_be_written_is_no_list():
    deep = "[" * 900 + "]" * 900
    assert column_value(Record({"x": deep}), "x.0") is None
    with pytest.raises(RecordError, match=r"x: is '.*; it should be a list of messages"):
        read({"x": deep}, "messages=x")


def test_a_reply_that_is_json_stays_a_text():
    row = {"prompt": "q", "x": '[{"name": "role"}]', "y": '{"role": "user"}'}
    assert read(row, "chosen=x,rejected=y")["chosen"][1]["content"] == row["x"]


@pytest.mark.parametrize(
    "row, columns, error",
    [
        (
            ROW,
            "chosen=question,rejected=worse",
            "worse: is missing; the row has question, answers,",
        ),
        ({"x": None, "y": "a"}, "chosen=x,rejected=y", "x: is null"),
        ({"x": 3, "y": "a"}, "chosen=x,rejected=y", "x: is 3; it should be a text or messages"),
        ({"x": "hi"}, "messages=x", "x: is 'hi'; it should be a list of messages"),
        ({"x": "q", "s": ["s"]}, "prompt=x,system=s", "s: is ['s']; it should be a text"),
        ({"x": "q", "i": [1]}, "prompt=x,id=i", "i: is [1]; an id is a string or a whole number"),
        ({"x": talk("q", "")}, "messages=x", "messages[1]: content of this assistant message is e"),
    ],
)
def test_a_row_that_does_not_fit_names_its_column(row, columns, error):
    with pytest.raises(RecordError) as caught:
        read(row, columns)
    assert str(caught.value).startswith(f"rows.jsonl:1: {error}")
    assert caught.value.record == Record(row)


def test_a_column_that_no_row_has_is_one_line_with_the_columns_there_are():
    rows = [("", Record({"ask": "q", "y": 1})), ("", Record({"ask": "q", "z": 1}))]
    with pytest.raises(InputError) as caught:
        list(map_columns(rows, parse_mapping(["prompt=question"])))
    assert str(caught.value) == (
        "`columns` prompt=question: the first rows have no question; they have ask, y, z"
    )


def test_a_label_that_the_first_rows_lack_is_reported_and_read_from_later_rows():
    reports = []
    rows = [("", Record({"ask": "q"}))] * 25 + [("", Record({"ask": "q", "late": 1}))]
    mapping = parse_mapping(["prompt=ask,score=late"])
    *_, (_, last) = map_columns(rows, mapping, RunStats(say=reports.append))
    assert last["metadata"]["score"] == 1
    assert reports == ["`columns` score=late: the first rows have no late; they have ask"]


def test_a_column_that_is_null_in_the_first_rows_is_there():
    reports = []
    rows = [("", Record({"ask": "q", "rules": None}))] * 25
    mapping = parse_mapping(["prompt=ask,system=rules"])
    assert len(list(map_columns(rows, mapping, RunStats(say=reports.append)))) == 25
    assert reports == []


def test_rows_that_do_not_fit_are_counted_as_read_and_kept_as_they_were():
    stats = RunStats(Rejects(skip=True))
    rows = [("", Record({"ask": "q"})), ("", Record({"other": "q"}))]
    assert len(list(map_columns(rows, parse_mapping(["prompt=ask"]), stats))) == 1
    assert (stats.rejects.count, stats.number("rows_read")) == (1, 1)


# The command


def test_the_command_maps_a_file_and_keeps_the_mapping_in_every_record(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROW, ROW | {"label": "B>A", "uid": 8, "question": "r"})
    columns = "prompt=question,a=answers.0.text,b=answers.1.text,winner=label:A>B=a,B>A=b"
    done = music("sample", path, "--emit", "pairs", "--columns", columns, "--columns", "id=uid")
    assert done.status == 0 and len(done.lines) == 1  # the winner's column was read
    assert [(record["id"], record["chosen"][1]["content"]) for record in done.records] == [
        (7, "good"),
        (8, "bad"),
    ]
    assert done.records[0]["metadata"]["columns"] == {
        "prompt": "question",
        "a": "answers.0.text",
        "b": "answers.1.text",
        "winner": "label:A>B=a,B>A=b",
        "id": "uid",
    }
    wrong = music("sample", path, "--columns", "prompt=ask")
    assert wrong.status == 2 and wrong.err == (
        "music sample: error: --columns prompt=ask: the first rows have no ask; they have "
        "question, answers, label, uid, lang, essay\n"
    )


def test_the_command_maps_a_csv_file(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('q,a1,a2,pick\n"Hi, there",yes,no,2\n', "utf-8")
    columns = "prompt=q,a=a1,b=a2,winner=pick:1=a,2=b"
    (record,) = music("sample", path, "--emit", "pairs", "--columns", columns).records
    assert (record["chosen"], record["rejected"]) == (
        talk("Hi, there", "no"),
        talk("Hi, there", "yes"),
    )
