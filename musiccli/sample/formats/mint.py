"""MINT: trajectories, each an attempt to solve a task in several turns."""

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

from musiccli.core.errors import RecordError
from musiccli.core.messages import Message, count_turns
from musiccli.core.records import Record, content_id, parse_preference, record_kind
from musiccli.core.row_messages import join_user_messages, nested_value, read_messages
from musiccli.core.run_stats import RunStats
from musiccli.sample.columns import Format, make_record, row_labels

# These name a task together. `task_id` alone begins again in every set of tasks.
TASK_FIELDS = ("task_name", "task_id", "reference")


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """The trajectory, with its task and whether it was solved in the metadata."""
    task, state = nested_value(row, "task", dict), nested_value(row, "state", dict)
    if not isinstance(state.get("success"), bool):
        raise RecordError(
            "is missing; it should be true or false", field="state.success", record=row
        )
    messages = join_user_messages(read_messages(row, "state.history"))
    labels = row_labels(state) | {name: task.get(name) for name in TASK_FIELDS}
    yield make_record(row, source, {"messages": messages}, labels)


def is_trajectory(record: Record) -> bool:
    """Whether a record is a conversation that `read` made of a trajectory."""
    metadata = record.get("metadata") or {}
    return record_kind(record) == "conversation" and {"success", *TASK_FIELDS} <= metadata.keys()


def pair_trajectories(trajectories: Iterable[Record], stats: RunStats) -> Iterator[Record]:
    """Preferences between trajectories on the same task: each solved one over each unsolved one.

    Both sides are whole conversations, each with its own history. A last user message that got no
    reply is left out. `same_prompt` in the metadata says whether both begin with the same message.
    `stats` counts the trajectories on tasks that all of them solved, or none.
    """
    by_task: dict[str, list[Record]] = {}
    for trajectory in trajectories:
        task = content_id(*(trajectory["metadata"][name] for name in TASK_FIELDS))
        by_task.setdefault(task, []).append(trajectory)
    for group in by_task.values():
        solved, unsolved = (
            [trajectory for trajectory in group if trajectory["metadata"]["success"] is success]
            for success in (True, False)
        )
        if not (solved and unsolved):
            stats.count("dropped", "no_pair", len(group), record=group[0])
        for better, worse in product(solved, unsolved):
            yield _preference(better, worse)


def _preference(solved: Record, unsolved: Record) -> Record:
    chosen, rejected = _answered(solved["messages"]), _answered(unsolved["messages"])
    metadata = {name: solved["metadata"][name] for name in TASK_FIELDS} | {
        "turns": count_turns(chosen),
        "same_prompt": chosen[0] == rejected[0],
        "chosen_source": solved["metadata"].get("source"),
        "rejected_source": unsolved["metadata"].get("source"),
    }
    return parse_preference(
        Record(
            {
                "id": content_id(chosen, rejected),
                "chosen": chosen,
                "rejected": rejected,
                "metadata": metadata,
            }
        )
    )


def _answered(messages: list[Message]) -> list[Message]:
    """The messages up to the last reply."""
    return messages if messages[-1]["role"] == "assistant" else messages[:-1]


FORMATS = [Format("MINT trajectory", order=30, columns=frozenset({"state", "task"}), read=read)]
