"""OpenAssistant (OASST): a tree of messages, in which people ranked the replies to each message.

A row is a whole tree, or one message of it. The hub's files hold messages: those of a tree follow
each other, each after the message that it replies to.
"""

from collections.abc import Iterator
from itertools import combinations
from operator import itemgetter
from typing import Any

from musiccli.core.errors import RecordError, shortened
from musiccli.core.jsonl import Rejects
from musiccli.core.messages import Message
from musiccli.core.records import Record
from musiccli.core.row_messages import ROLE_NAMES, assistant_message, nested_value
from musiccli.sample.columns import Format, RowGroup, make_record, read_text
from musiccli.sample.replies import TIE, check_flag, check_number

Node = dict[str, Any]  # a message of the tree, with its replies
TREE_COLUMNS = ("message_tree_id", "tree_state")
MAX_DEPTH = 100  # messages from the prompt down; OASST's longest conversations have a dozen


def read_pairs(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Every two ranked replies to the same message. Rank 0 is the best; equal ranks are a tie."""
    for path, node in _walk(nested_value(row, "prompt", dict)):
        replies = [reply for reply in _replies(node) if reply["role"] == "assistant"]
        ranked = [(rank, reply) for reply in replies if (rank := _rank(row, reply)) is not None]
        for (rank, better), (lower_rank, worse) in combinations(
            sorted(ranked, key=itemgetter(0)), 2
        ):
            tied = rank == lower_rank
            first, second = ("a", "b") if tied else ("chosen", "rejected")
            sides = {
                first: [*path, assistant_message(better["text"])],
                second: [*path, assistant_message(worse["text"])],
            }
            labels = {"ranks": [rank, lower_rank], "lang": better.get("lang")}
            id = f"{better['message_id']}-{worse['message_id']}"
            record = make_record(row, source, sides, labels, id=id)
            yield record | {"winner": TIE} if tied else record


def _rank(row: Record, reply: Node) -> float | None:
    return check_number(row, f"rank of the message {reply['message_id']}", reply.get("rank"), 0, 99)


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Every path from the prompt to a message without replies."""
    for path, node in _walk(nested_value(row, "prompt", dict)):
        if not _replies(node):
            labels = {"lang": node.get("lang")}
            yield make_record(row, source, {"messages": path}, labels, id=node["message_id"])


def read_message(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Read a row that no other row was joined to."""
    tree = join_messages([row], Rejects())
    return read(tree, source) if tree else iter(())


def join_messages(rows: list[Record], rejects: Rejects) -> Record | None:
    """The tree whose messages the rows are. Messages without their parent go to the rejects."""
    tree: Record | None = None
    nodes: dict[str, Node] = {}
    for row in rows:
        with rejects.guard(row):
            parent = _parent(row, nodes)
            deleted = check_flag(row, "deleted", row.get("deleted"))
            node = {
                **row,
                "deleted": deleted,
                "replies": [],
                "depth": parent["depth"] + 1 if parent else 1,
            }
            if parent:
                parent["replies"].append(node)
            else:
                shared = {name: row[name] for name in TREE_COLUMNS if name in row}
                tree = Record({**shared, "prompt": node}, row.where)
            nodes[str(row["message_id"])] = node
    return tree


def _parent(row: Record, nodes: dict[str, Node]) -> Node | None:
    """The message that a row's message replies to, or None for the first message of its tree."""
    read_text(row, "text")
    if str(row["message_id"]) in nodes:
        raise RecordError("two messages have this id", field="message_id", record=row)
    id = row.get("parent_id")
    parent = None if id is None else nodes.get(str(id))
    if parent is None and (nodes or id is not None):
        problem = f"is {shortened(id)}; no message before it in its tree has that id"
        raise RecordError(problem, field="parent_id", record=row)
    if parent and parent["depth"] == MAX_DEPTH:
        problem = f"is {shortened(id)}; {MAX_DEPTH} messages lead to it, which are too many"
        raise RecordError(problem, field="parent_id", record=row)
    speaker = "assistant" if parent and parent["role"] == "prompter" else "prompter"
    if row["role"] != speaker:
        problem = f"is {shortened(row['role'])}; it should be {speaker} after the message before it"
        raise RecordError(problem, field="role", record=row)
    return parent


def _walk(root: Node) -> Iterator[tuple[list[Message], Node]]:
    """Every node of a tree, with the path of messages that ends with it. Parents come first."""
    waiting: list[tuple[list[Message], Node]] = [([], root)]
    while waiting:
        history, node = waiting.pop()
        role: Any = ROLE_NAMES.get(node.get("role", ""))  # checked with the record, as content is
        content: Any = node.get("text")
        path: list[Message] = [*history, {"role": role, "content": content}]
        yield path, node
        waiting += [(path, reply) for reply in reversed(_replies(node))]


def _replies(node: Node) -> list[Node]:
    return [reply for reply in node.get("replies") or [] if not reply.get("deleted")]


FORMATS = [
    Format(
        "OpenAssistant tree",
        order=20,
        columns=frozenset({"message_tree_id", "prompt"}),
        read=read,
        read_pairs=read_pairs,
    ),
    Format(
        "OpenAssistant message",
        order=29,
        columns=frozenset({"message_tree_id", "message_id", "role"}),
        read=read_message,
        group=RowGroup("message_tree_id", join_messages),
    ),
]
