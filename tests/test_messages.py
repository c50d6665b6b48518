"""Messages with calls, results, thoughts and parts: what is read, in which order, and as what."""

import json

import pytest
from build import assistant, call, result, system, user

from musiccli.core import messages
from musiccli.core.errors import RecordError
from musiccli.core.records import Record, parse_conversation


def parse(*conversation: dict, **fields) -> list[dict]:
    record = parse_conversation(
        Record({"id": "x", "messages": list(conversation), **fields}, "f:1")
    )
    return record["messages"]


def refusal(*conversation: dict, **fields) -> str:
    with pytest.raises(RecordError) as caught:
        parse(*conversation, **fields)
    return str(caught.value)


CALL = {"type": "function", "function": {"name": "w", "arguments": '{"city": "Oslo"}'}}


@pytest.mark.parametrize(
    "conversation",
    [
        [user(), call("w"), result("3"), assistant()],
        [user(), call("w", "Let me look."), result("3"), call("w"), result("4"), assistant()],
        [system(), user(), call("w"), result("3"), result("4"), assistant(), user(), assistant()],
        [user(), call("w")],
        [user(), call("w"), user(), assistant()],
        [user(), call("w"), result("3")],
        [user(), call("w"), result("")],
        [user(), assistant("<tool_call>w</tool_call>"), result("3"), assistant()],
    ],
)
def test_results_of_tools_stand_between_messages_of_the_assistant(conversation):
    assert parse(*conversation) == conversation


@pytest.mark.parametrize(
    "conversation, expected",
    [
        (
            [user(), result("3")],
            "f:1: messages[1]: role is tool where assistant should speak; roles alternate, user "
            "first",
        ),
        (
            [user(), call("w"), result("3"), user()],
            "f:1: messages[3]: role is user where assistant should speak; roles alternate, user "
            "first",
        ),
        (
            [user(), call("w"), assistant()],
            "f:1: messages[2]: role is assistant where user should speak; roles alternate, user "
            "first",
        ),
        (
            [user() | {"tool_calls": [CALL]}],
            "f:1: messages[0].tool_calls: stands at a user message",
        ),
        (
            [user(), assistant(None) | {"tool_calls": []}],
            "f:1: messages[1]: content is null; it should be a string",
        ),
        (
            [user(), assistant() | {"tool_calls": {}}],
            "f:1: messages[1].tool_calls: is an object; it should be a list",
        ),
        (
            [user(), assistant() | {"tool_calls": [{"function": {"arguments": "{}"}}]}],
            'f:1: messages[1].tool_calls[0]: should be {"type": "function", "function": {"name": '
            '..., "arguments": ...}}',
        ),
        (
            [user(), assistant() | {"reasoning_content": ["so"]}],
            "f:1: messages[1].reasoning_content: is a list; it should be a string",
        ),
        (
            [user([{"type": "text", "text": "q"}, {"type": "image_url", "image_url": {}}])],
            "f:1: messages[0].content[1]: is a part of type 'image_url'; only text is read",
        ),
        (
            [user([{"type": "input_audio", "input_audio": {}}])],
            "f:1: messages[0].content[0]: is a part of type 'input_audio'; only text is read",
        ),
        ([user([{"type": "text"}])], "f:1: messages[0].content[0]: is no part of text"),
        ([user([])], "f:1: messages[0]: content of this user message is empty"),
        (
            [user() | {"images": ["cat.png"]}],
            "f:1: messages[0].images: holds images; only text is read",
        ),
    ],
)
def test_what_is_no_such_conversation_is_refused_by_field(conversation, expected):
    assert refusal(*conversation) == expected


@pytest.mark.parametrize(
    "read, written",
    [
        ({"role": "developer", "content": "Be brief."}, system("Be brief.")),
        (user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), user("a\nb")),
        (user(["a", {"text": "b"}]), user("a\nb")),
        (user() | {"name": None, "tool_calls": None}, user()),
        (user() | {"weight": 0.5}, user() | {"weight": 0.5}),
    ],
)
def test_messages_before_a_reply_are_put_into_our_form(read, written):
    start = [] if written["role"] == "user" else [user()]
    conversation = [read, *start, assistant()]
    assert parse(*conversation) == [written, *start, assistant()]
    assert conversation[0] is read  # what was given stays as it was


@pytest.mark.parametrize(
    "read, written",
    [
        (assistant(None) | {"tool_calls": [CALL]}, call("w", city="Oslo")),
        (
            assistant("") | {"tool_calls": [{"name": "w", "arguments": {"city": "Oslo"}}]},
            call("w", city="Oslo"),
        ),
        (
            assistant(None) | {"function_call": {"name": "w", "arguments": '{"city": "Oslo"}'}},
            call("w", city="Oslo"),
        ),
        (
            assistant() | {"tool_calls": [{**CALL, "id": "c1", "index": None}]},
            assistant() | {"tool_calls": [{"id": "c1", **CALL}]},
        ),
        (assistant() | {"tool_calls": [], "reasoning_content": ""}, assistant()),
        (assistant() | {"reasoning": "so"}, assistant() | {"reasoning_content": "so"}),
        (assistant() | {"thinking": "so"}, assistant() | {"reasoning_content": "so"}),
        (
            assistant(None) | {"tool_calls": [{"name": "w", "arguments": "{broken"}]},
            assistant("")
            | {
                "tool_calls": [
                    {"type": "function", "function": {"name": "w", "arguments": "{broken"}}
                ]
            },
        ),
    ],
)
def test_calls_and_thoughts_are_put_into_our_form(read, written):
    assert parse(user(), read)[1] == written


def test_a_result_by_its_older_role_is_a_tools():
    old = {"role": "function", "name": "w", "content": None}
    assert parse(user(), call("w"), old)[2] == result("", name="w")


def test_functions_on_offer_are_a_list_or_one_as_text():
    function = {"name": "w", "parameters": {"type": "object"}}
    ours = [{"type": "function", "function": function}]
    for given in (ours, [function], json.dumps(ours), json.dumps([function])):
        record = parse_conversation(Record({"id": "x", "messages": [user()], "tools": given}))
        assert record["tools"] == ours
    for none in ("", " ", "[]", "null", []):
        record = parse_conversation(Record({"id": "x", "messages": [user()], "tools": none}))
        assert record["tools"] == []
    for wrong, problem in (
        ("w", "tools: is a string; it should be a list of functions"),
        (
            [{"type": "web_search"}],
            'tools[0]: should be {"type": "function", "function": {"name": ..., "parameters": '
            "...}}",
        ),
    ):
        assert refusal(user(), tools=wrong) == f"f:1: {problem}"


def test_two_sides_differ_by_calls_results_and_thoughts_but_not_by_ids_and_spelling():
    plain = [user(), call("w", city="Oslo"), result("3"), assistant()]
    spelled = [user(), assistant("") | {"tool_calls": [{**CALL, "id": "c1"}]}, *plain[2:]]
    spelled[1]["tool_calls"][0]["function"] = {"name": "w", "arguments": '{"city":"Oslo"}'}
    assert messages.same_text(plain, spelled)
    for index, changed in (
        (1, call("v", city="Oslo")),
        (1, call("w", city="Rome")),
        (2, result("4")),
        (3, assistant() | {"reasoning_content": "so"}),
    ):
        changed_side = [*plain[:index], changed, *plain[index + 1 :]]
        assert messages.first_divergence(plain, changed_side) == index
        assert not messages.same_text(plain, changed_side)
    assert messages.same_text([user() | {"weight": 1}], [user()])


def test_a_turn_is_what_follows_a_message_of_the_user():
    conversation = [
        *(system(), user(), call("w"), result("3"), call("w"), result("4"), assistant()),
        *(user(), assistant(), user()),
    ]
    assert messages.turn_ends(conversation) == [6, 8]
    assert messages.count_turns(conversation) == 2
    assert messages.count_turns([assistant()]) == 1


def test_a_message_as_text_holds_thoughts_and_calls():
    thought = call("w", "Let me look.", city="Århus") | {"reasoning_content": "Which city?\n"}
    text = messages.message_text(thought)
    assert text == (
        "<think>\nWhich city?\n</think>\n\nLet me look.\n\n"
        '<tool_call>\n{"name": "w", "arguments": {"city": "Århus"}}\n</tool_call>'
    )
    assert messages.count_characters([user("abc"), thought]) == 3 + len(text)
    assert (
        messages.message_text(call("w"))
        == '<tool_call>\n{"name": "w", "arguments": {}}\n</tool_call>'
    )
    assert messages.message_text(result("")) == ""
