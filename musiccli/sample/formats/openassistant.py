"""OpenAssistant (OASST): a tree of messages, in which people ranked the replies to each message."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from musiccli.core.messages import Message
from musiccli.core.records import Record
from musiccli.sample.columns import (
    ROLE_NAMES,
    Format,
    assistant_message,
    make_record,
    nested_value,
)

Node = dict[str, Any]  # a message of the tree, with its replies


def read_pairs(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Every two replies to the same message whose ranks differ. Rank 0 is the best."""
    for path, node in _walk(nested_value(row, "prompt", dict), []):
        ranked = [
            reply
            for reply in _replies(node)
            if reply["role"] == "assistant" and reply.get("rank") is not None
        ]
        for better, worse in combinations(sorted(ranked, key=lambda reply: reply["rank"]), 2):
            if better["rank"] < worse["rank"]:
                yield make_record(
                    row,
                    source,
                    {
                        "chosen": [*path, assistant_message(better["text"])],
                        "rejected": [*path, assistant_message(worse["text"])],
                    },
                    {"ranks": [better["rank"], worse["rank"]], "lang": better.get("lang")},
                    id=f"{better['message_id']}-{worse['message_id']}",
                )


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Every path from the prompt to a message without replies."""
    for path, node in _walk(nested_value(row, "prompt", dict), []):
        if not _replies(node):
            labels = {"lang": node.get("lang")}
            yield make_record(row, source, {"messages": path}, labels, id=node["message_id"])


def _walk(node: Node, history: list[Message]) -> Iterator[tuple[list[Message], Node]]:
    """Every node of a tree, with the path of messages that ends with it."""
    role: Any = ROLE_NAMES.get(node.get("role", ""))  # role and content are checked with the record
    content: Any = node.get("text")
    path: list[Message] = [*history, {"role": role, "content": content}]
    yield path, node
    for reply in _replies(node):
        yield from _walk(reply, path)


def _replies(node: Node) -> list[Node]:
    return [reply for reply in node.get("replies") or [] if not reply.get("deleted")]


FORMATS = [
    Format(
        "OpenAssistant tree",
        order=20,
        columns=frozenset({"message_tree_id", "prompt"}),
        read=read,
        read_pairs=read_pairs,
    )
]
