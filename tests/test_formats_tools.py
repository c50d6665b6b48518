"""Rows with tool calls: in the forms of Plan-RewardBench, ms-swift, LLaMA-Factory and OpenAI."""

import json
from pathlib import Path

import pytest
from build import assistant, user
from dataset_rows import emitted, read, rows

from musiccli.core.errors import RecordError
from musiccli.sample.sources import read_rows

PLANS = Path(__file__).parent.parent.parent / "shared" / "data" / "planrewardbench"


def call(number, name, arguments="{}"):
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{number}", "type": "function", "function": function}


def tool(number, content, **fields):
    return {"role": "tool", "content": content, "tool_call_id": f"call_{number}", **fields}


def test_plan_rewardbench_is_a_preference_between_trajectories_with_tools():
    [row] = rows("plan_rewardbench")
    [record] = read(row, source="planning_multi_easy")
    assert record["chosen"] == [
        user("Book a table"),
        assistant("") | {"tool_calls": [call(0, "book")]},
        tool(0, "ok"),
        assistant("Done."),
    ]
    assert record["rejected"] == [user("Book a table"), assistant("Can't.")]
    assert record["tools"] == row["tools"]
    assert record["metadata"] == {
        "uuid": "u",
        "_lcp_bucket": "x",
        "subset": "planning_multi_easy",
        "turns": 1,
        "source": "planning_multi_easy",
    }


def test_openais_calls_and_results_are_kept():
    [row] = rows("tools_openai")
    [record] = read(row)
    calls = [{"id": "1", "type": "function", "function": {"name": "w", "arguments": "{}"}}]
    assert record["messages"] == [
        user("weather?"),
        assistant("") | {"tool_calls": calls},
        {"role": "tool", "content": "sun", "tool_call_id": "1"},
        assistant("Sunny."),
    ]


def test_when2call_is_a_preference_between_two_replies_to_the_messages():
    function = {"name": "w", "parameters": {}}
    row = {
        "tools": [json.dumps(function)],
        "messages": [user("weather?")],
        "chosen_response": assistant("Where?"),
        "rejected_response": assistant("<TOOLCALL>[w]</TOOLCALL>"),
    }
    [record] = read(row, pairs=True)
    assert record["chosen"] == [user("weather?"), assistant("Where?")]
    assert record["rejected"] == [user("weather?"), row["rejected_response"]]
    assert record["tools"] == [{"type": "function", "function": function}]


def test_thoughts_are_kept_beside_the_reply():
    [row] = rows("thinking_reasoning")
    [record] = read(row)
    assert record["chosen"] == [user("2+2?"), assistant("4") | {"reasoning_content": "think"}]
    assert record["rejected"] == [user("2+2?"), assistant("5")]


TRAJECTORY = [
    user("Weather in Bonn and Kiel?"),
    assistant("I look."),
    {"role": "tool_call", "content": '{"name": "w", "arguments": {"city": "Bonn"}}'},
    {"role": "tool_call", "content": "{'name': 'w', 'arguments': '{\"city\": \"Kiel\"}'}"},
    {"role": "tool_response", "content": "sun", "name": "w"},
    {"role": "tool_response", "content": ""},
    {"role": "tool_call", "content": "{'name': 'time', 'arguments': None}"},
    {"role": "tool_response", "content": "noon"},
    assistant("Sun and rain."),
]
JOINED = [
    user("Weather in Bonn and Kiel?"),
    assistant("I look.")
    | {"tool_calls": [call(0, "w", '{"city":"Bonn"}'), call(1, "w", '{"city": "Kiel"}')]},
    tool(0, "sun", name="w"),
    tool(1, ""),
    assistant("") | {"tool_calls": [call(2, "time")]},
    tool(2, "noon"),
    assistant("Sun and rain."),
]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TRAJECTORY},
        {
            "conversations": [
                {"from": names.get(message["role"], message["role"]), "value": message["content"]}
                | ({"name": message["name"]} if "name" in message else {})
                for message in TRAJECTORY
                for names in [{"tool_call": "function_call", "tool_response": "observation"}]
            ]
        },
    ],
    ids=["ms-swift", "LLaMA-Factory"],
)
def test_calls_that_are_messages_join_the_assistants_message_and_results_get_their_ids(row):
    tools = [{"type": "function", "function": {"name": "w", "parameters": {}}}]
    [record] = read({**row, "tools": json.dumps(tools)})
    assert record["messages"] == JOINED
    assert record["tools"] == tools


@pytest.mark.parametrize(
    "content",
    ["look it up", "", None, "[1]", "{'arguments': '{}'}", "(" * 300, '{"name": 3}'],
)
def test_a_call_that_cannot_be_read_is_refused_by_name(content):
    row = {"messages": [user("q"), {"role": "tool_call", "content": content}, assistant("a")]}
    with pytest.raises(RecordError) as caught:
        read(row)
    assert str(caught.value) == (
        'rows.jsonl:1: messages[1]: is no tool call; it should be {"name": ..., "arguments": ...}'
    )


def test_a_result_without_a_call_is_refused_by_name():
    row = {"messages": [user("q"), {"role": "tool_response", "content": "sun"}, assistant("a")]}
    with pytest.raises(RecordError, match=r"messages\[1\]: is a tool's result without a call"):
        read(row)


@pytest.mark.skipif(not PLANS.is_dir(), reason="the public data is not beside the repository")
def test_every_real_trajectory_of_plan_rewardbench_keeps_all_its_calls_and_results():
    count = 0
    for source, row in read_rows([str(PLANS)]):
        [record] = read(row, source=source)
        for side, column in {"chosen": "chosen", "rejected": "reject"}.items():
            before, after = row[column]["messages"], record[side]
            calls = [call for message in after for call in message.get("tool_calls", [])]
            roles = [message["role"] for message in before]
            assert len(calls) == roles.count("tool_call")
            ids = {call["id"] for call in calls}
            results = [message for message in after if message["role"] == "tool"]
            assert {message["tool_call_id"] for message in results} == ids
            assert [message["content"] for message in results] == [
                message["content"] for message in before if message["role"] == "tool_response"
            ]
            assert [m["content"] for m in after if m["role"] == "assistant" and m["content"]] == [
                message["content"] for message in before if message["role"] == "assistant"
            ]
        assert record["tools"] == row["tools"]
        assert record["metadata"]["subset"] == source
        count += 1
    assert count == 109 + 51 + 275


@pytest.mark.skipif(not PLANS.is_dir(), reason="the public data is not beside the repository")
def test_pairs_of_plan_rewardbench_that_share_a_query_have_ids_of_their_own():
    rows = [row for _, row in read_rows([str(PLANS)])]
    pairs, counts = emitted(*rows)
    assert len({pair["id"] for pair in pairs}) == len(pairs) == 435
    assert counts == {"rows read": 435}
