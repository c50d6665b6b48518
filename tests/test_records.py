"""What a record may look like, and how each fault is named."""

import pytest
from build import assistant, system, talk, user

from musiccli.core import messages, records
from musiccli.core.errors import RecordError
from musiccli.core.records import Record


def fault(parse, fields):
    with pytest.raises(RecordError) as caught:
        parse(Record(fields, "in.jsonl:7"))
    return str(caught.value)


@pytest.mark.parametrize(
    "messages",
    [[user()], [user(), assistant()], [system(), user()], [system(), user(), assistant(), user()]],
)
def test_conversations_start_with_the_user_after_at_most_one_system_message(messages):
    fields = {"id": "x", "messages": messages, "metadata": {}, "zebra": [1, None]}
    assert records.parse_conversation(Record(fields)) == fields


@pytest.mark.parametrize(
    "messages, expected",
    [
        (None, "messages: is missing; it should be a list of messages"),
        ("hello", "messages: is a string; it should be a list of messages"),
        ({}, "messages: is an object; it should be a list of messages"),
        ([], "messages: is an empty list; a conversation needs at least one message"),
        (["hello"], 'messages[0]: is a string; a message is {"role": ..., "content": ...}'),
        ([user(), None], 'messages[1]: is null; a message is {"role": ..., "content": ...}'),
        (
            [{"content": "q"}],
            "messages[0]: role is null; it should be one of system, user, assistant, tool",
        ),
        (
            [{"role": "human", "content": "q"}],
            "messages[0]: role is 'human'; it should be one of system, user, assistant, tool",
        ),
        (
            [{"role": ["user"], "content": "q"}],
            "messages[0]: role is ['user']; it should be one of system, user, assistant, tool",
        ),
        ([{"role": "user"}], "messages[0]: content is null; it should be a string"),
        (
            [{"role": "user", "content": 3}],
            "messages[0]: content is a number; it should be a string",
        ),
        ([user(), assistant(" \n")], "messages[1]: content of this assistant message is empty"),
        (
            [assistant()],
            "messages[0]: role is assistant where user should speak; roles alternate, user first",
        ),
        (
            [user(), user()],
            "messages[1]: role is user where assistant should speak; roles alternate, user first",
        ),
        (
            [user(), assistant(), assistant()],
            "messages[2]: role is assistant where user should speak; roles alternate, user first",
        ),
        (
            [user(), system()],
            "messages[1]: role is system where assistant should speak; roles alternate, user first",
        ),
        (
            [system(), system()],
            "messages[1]: role is system where user should speak; roles alternate, user first",
        ),
        ([system()], "messages: holds only a system message; a conversation needs a user message"),
    ],
)
def test_a_conversation_that_is_none_is_refused_by_line_and_field(messages, expected):
    assert (
        fault(records.parse_conversation, {"id": "x", "messages": messages})
        == f"in.jsonl:7: {expected}"
    )


def test_a_long_value_is_shortened_and_stays_on_one_line():
    expected = fault(
        records.parse_conversation, {"messages": [{"role": "us\ner" * 1000, "content": "q"}]}
    )
    assert len(expected) < 200 and "\n" not in expected and "us\\ner" in expected


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("id", "", "id: is an empty string; it should be a string"),
        ("id", ["x"], "id: is a list; it should be a string"),
        ("id", True, "id: is true or false; it should be a string"),
        ("id", 1.5, "id: is a number; it should be a string"),
        ("metadata", "m", "metadata: is a string; it should be an object"),
        ("metadata", ["m"], "metadata: is a list; it should be an object"),
    ],
)
def test_identity_of_another_type_is_refused(name, value, expected):
    assert (
        fault(records.parse_conversation, {"id": "x", "messages": [user()], name: value})
        == f"in.jsonl:7: {expected}"
    )


def test_a_record_without_id_gets_one_that_follows_from_its_content():
    first, same, different = (
        records.parse_conversation(Record({"messages": [user(text)]}))["id"]
        for text in ("q", "q", "r")
    )
    assert first == same != different and len(first) == 16


@pytest.mark.parametrize("identity", [7, "7"])
def test_ids_are_kept_as_they_are(identity):
    assert (
        records.parse_conversation(Record({"id": identity, "messages": [user()]}))["id"] == identity
    )


def test_a_branch_is_chosen_and_the_first_sample_unless_it_says_otherwise():
    parsed = records.parse_branch(Record({"id": "x", "messages": [user(), assistant()]}))
    assert (parsed["branch"], parsed["sample"]) == ("chosen", 0)
    tabular = Record({**parsed, "faults": None, "truncated": None, "contrast": None})
    assert records.parse_branch(tabular) == parsed


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("branch", "better", "branch: is 'better'; it should be chosen or rejected"),
        ("branch", ["chosen"], "branch: is ['chosen']; it should be chosen or rejected"),
        ("sample", "0", "sample: is a string; it should be a whole number"),
        ("sample", True, "sample: is true or false; it should be a whole number"),
        ("sample", 0.5, "sample: is a number; it should be a whole number"),
        ("seed_messages", "1", "seed_messages: is a string; it should be a whole number"),
        ("seed_messages", 3, "seed_messages: counts more messages than there are"),
        ("seed_messages", -1, "seed_messages: counts more messages than there are"),
        ("contrast", {}, "contrast: is an object; it should be a list"),
        ("truncated", 1, "truncated: is a number; it should be a list"),
        ("faults", [{"message": 1}], 'faults[0]: should be {"message": ..., "fault": NAME}'),
    ],
)
def test_a_branch_with_wrong_bookkeeping_is_refused(name, value, expected):
    assert (
        fault(records.parse_branch, {"id": "x", "messages": [user(), assistant()], name: value})
        == f"in.jsonl:7: {expected}"
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"chosen": [user(), assistant("a")], "rejected": [user(), assistant("b")]},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [user()], "chosen": "a", "rejected": [assistant("b")]},
        {"prompt": [user()], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        {"prompt": "q", "chosen": [user(), assistant("a")], "rejected": [user(), assistant("b")]},
    ],
)
def test_preferences_of_every_form_become_two_whole_conversations(fields):
    parsed = records.parse_preference(Record({"id": "x", **fields}))
    assert parsed == {
        "id": "x",
        "chosen": [user(), assistant("a")],
        "rejected": [user(), assistant("b")],
    }


@pytest.mark.parametrize(
    "fields, expected",
    [
        (
            {"chosen": [user(), assistant()]},
            "rejected: is missing; it should be a list of messages",
        ),
        (
            {"rejected": [user(), assistant()]},
            "chosen: is missing; it should be a list of messages",
        ),
        (
            {"chosen": [user(), assistant()], "rejected": [user()]},
            "rejected: ends with the user; it should end with the assistant",
        ),
        (
            {"chosen": "a", "rejected": "b"},
            "chosen: is a string without a prompt; music sample reads such files",
        ),
        (
            {"prompt": "", "chosen": "a", "rejected": "b"},
            "chosen: is a string without a prompt; music sample reads such files",
        ),
        (
            {"prompt": "q", "chosen": [user("r"), assistant()], "rejected": "b"},
            "chosen: neither holds the prompt nor begins with the assistant",
        ),
        ({}, "chosen: is missing; it should be a list of messages"),
    ],
)
def test_a_preference_that_is_none_is_refused(fields, expected):
    assert fault(records.parse_preference, {"id": "x", **fields}) == f"in.jsonl:7: {expected}"
    assert fault(records.parse_comparison, {"id": "x", **fields}) == f"in.jsonl:7: {expected}"


@pytest.mark.parametrize("column", ["messages", "conversation"])
def test_messages_beside_a_prompt_that_no_side_has_are_refused(column):
    """They may be the turns before the prompt."""
    row = {"prompt": "q", "chosen": "r", "rejected": "s"}
    with pytest.raises(RecordError, match=f"^f:1: {column}: stands beside the prompt and holds"):
        records.parse_preference(Record(row | {column: talk("earlier", "yes", "q", "r")}, "f:1"))
    kept = records.parse_preference(Record(row | {column: talk("q", "another reply")}))
    assert kept["chosen"] == talk("q", "r")


def test_two_unranked_conversations_are_a_comparison_and_no_preference():
    fields = {"id": "x", "a": [user(), assistant("a")], "b": [user(), assistant("b")]}
    assert records.parse_comparison(Record(fields)) == fields
    assert (
        fault(records.parse_preference, fields)
        == "in.jsonl:7: chosen: is missing; the record is a comparison (a and b)"
    )
    assert (
        fault(records.parse_comparison, {"a": fields["a"]})
        == "in.jsonl:7: b: is missing; it should be a list of messages"
    )


@pytest.mark.parametrize("sides", [("chosen", "rejected"), ("a", "b")])
def test_the_winner_is_a_side_of_the_record_a_tie_or_null(sides):
    fields = {"id": "x", **{side: [user(), assistant(side)] for side in sides}}
    for winner in (*sides, "tie", None):
        assert records.parse_judged(Record({**fields, "winner": winner}))["winner"] == winner
    names = f"{sides[0]}, {sides[1]}, tie, null"
    assert (
        fault(records.parse_judged, fields) == "in.jsonl:7: winner: is missing; music judge adds it"
    )
    for wrong in ("c", "", ["a"]):
        expected = f"in.jsonl:7: winner: is {wrong!r}; it should be one of {names}"
        assert fault(records.parse_judged, {**fields, "winner": wrong}) == expected


TALK = [user(), assistant()]


@pytest.mark.parametrize(
    "fields, kind",
    [
        ({"messages": TALK}, "conversation"),
        ({"messages": TALK, "chosen": None, "rejected": None}, "conversation"),
        ({"messages": TALK, "chosen": True, "a": 1}, "conversation"),
        ({"messages": TALK, "chosen": TALK, "rejected": TALK}, "preference"),
        ({"messages": None, "chosen": TALK, "rejected": TALK}, "preference"),
        ({"chosen": None, "rejected": None, "a": TALK, "b": TALK}, "comparison"),
        ({"chosen": TALK, "a": TALK, "b": TALK}, "comparison"),
        ({"rejected": TALK, "b": TALK}, "preference"),
        ({"text": "q"}, None),
    ],
)
def test_a_record_is_one_kind_of_thing(fields, kind):
    assert records.record_kind(fields) == records.record_kind(Record(fields)) == kind
    assert records.side_names(Record(fields)) == records.KINDS[kind or "conversation"]


def test_a_record_that_is_another_kind_is_refused_by_what_it_is():
    both = {"messages": TALK, "chosen": TALK, "rejected": "b"}
    assert fault(records.parse_conversation, both) == (
        "in.jsonl:7: messages: stands beside chosen and rejected, which make the record a "
        "preference; music sample makes conversations of such records"
    )
    assert fault(records.parse_branch, {"chosen": TALK, "rejected": TALK}) == (
        "in.jsonl:7: messages: is missing; the record is a preference (chosen and rejected); "
        "expected branches, as music simulate writes them"
    )
    assert fault(records.parse_any, both) == (
        "in.jsonl:7: rejected: is a string without a prompt; music sample reads such files"
    )


@pytest.mark.parametrize(
    "column, value", [("rejected_messages", [user()]), ("rejected_response", "b")]
)
def test_a_row_of_a_preference_is_no_conversation(column, value):
    row = {"messages": [user(), assistant()], column: value}
    assert fault(records.parse_any, row) == (
        f"in.jsonl:7: {column}: stands beside messages and holds a side; music sample reads such "
        "files"
    )


def test_a_null_field_is_absent_but_an_unread_winner_is_told():
    nulls = {"id": None, "metadata": None, "scores": None, "zebra": None, "winner": None}
    parsed = records.parse_any(Record({"messages": TALK, **nulls}))
    assert parsed == {"id": records.content_id(TALK), "messages": TALK, "winner": None}


@pytest.mark.parametrize("field", ["id", "sample", "best_of"])
def test_a_number_beyond_64_bits_is_refused_where_it_counts(field):
    fields = {"id": "x", "messages": TALK, field: 1 << 80}
    assert (
        fault(records.parse_any, fields) == f"in.jsonl:7: {field}: is a number of more than 64 bits"
    )


def test_a_whole_number_that_a_table_wrote_as_a_float_is_one():
    parsed = records.parse_branch(
        Record({"id": "x", "messages": TALK, "sample": 1.0, "seed_messages": 2.0})
    )
    assert (repr(parsed["sample"]), repr(parsed["seed_messages"])) == ("1", "2")


def test_a_record_of_no_known_kind_is_refused():
    assert (
        fault(records.parse_any, {"id": "x", "text": "hello"})
        == "in.jsonl:7: has neither messages, nor chosen and rejected, nor a and b; music sample "
        "reads the rows of datasets"
    )


@pytest.mark.parametrize(
    "first, second, index",
    [
        ([user(), assistant("a")], [user(), assistant("a")], 2),
        ([user(), assistant("a")], [user(), assistant("b")], 1),
        ([user("q")], [user("r")], 0),
        ([user(), assistant()], [user()], 1),
        ([user()], [assistant("q")], 0),
        ([], [], 0),
    ],
)
def test_first_divergence_is_the_first_message_that_differs(first, second, index):
    assert messages.first_divergence(first, second) == index
    assert messages.same_text(first, second) is (index == len(first) == len(second))


@pytest.mark.parametrize(
    "path, value",
    [
        ("a", 1),
        ("b.c", 2),
        ("subset", "s"),
        ("metadata.subset", "s"),
        ("none", None),
        ("a.deep", None),
        ("b.x.y", None),
    ],
)
def test_a_field_is_looked_up_in_the_record_and_then_in_its_metadata(path, value):
    assert (
        records.lookup({"a": 1, "b": {"c": 2}, "metadata": {"subset": "s", "a": 3}}, path) == value
    )
