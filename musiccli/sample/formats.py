"""Dataset rows -> records. A row's format is told by its columns; FORMATS, at the end, is the list.

A reader takes a row and the name of its source, and gives conversations, preferences or comparisons that pass the
checks of records.py, or raises RecordError naming the column. Texts stay as they are. Two user messages in a row are
joined by a blank line in HH rows and MINT trajectories (one person, or one environment, that spoke twice); elsewhere,
and for two assistant messages anywhere, the row is refused: which of the two was judged cannot be told.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations, pairwise, product
from typing import NamedTuple

from musiccli.core import records
from musiccli.core.errors import RecordError
from musiccli.core.records import Message, Record, content_id

SPEAKERS = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
HH_HEADER = re.compile(
    r"\n\n(Human|Assistant):"
)  # only after a blank line: inside a reply the same words are text
LLMBAR_SUBSETS = {  # LLMBar's files and folders -> RewardBench's names
    "Natural": "llmbar-natural",
    "Neighbor": "llmbar-adver-neighbor",
    "GPTInst": "llmbar-adver-GPTInst",
    "GPTOut": "llmbar-adver-GPTOut",
    "Manual": "llmbar-adver-manual",
}
TASK = (
    "task_name",
    "task_id",
    "reference",
)  # together they name a MINT task; task_id alone restarts in every set
NOT_LABELS = {
    "id",
    "unique_id",
    "metadata",
    "prompt",
    "completion",
    "system",
    "chosen",
    "rejected",
    "winner",
    "input",
    "output_1",
    "output_2",
}
LABEL_LENGTH = 200  # characters; a longer string is text, not a label


def read(row: Record, source: str = "", *, pairs: bool = False) -> Iterator[Record]:
    """The records that one row holds, each checked.

    `pairs`: of a tree, give its ranked siblings as preferences, not its paths as conversations. Trajectories are
    conversations either way: see `solved_pairs`. Raises RecordError for a row that cannot be read.
    """
    known = recognize(row)
    reader = known.pairs if pairs and known.pairs else known.read
    try:
        for record in reader(row, source):
            yield records.parse_any(Record(record, row.where))
    except RecordError as error:
        error.record = row  # not what was made of it
        raise
    except (
        AttributeError,
        KeyError,
        TypeError,
    ) as error:  # parts that are missing or of another kind
        problem = (
            f"is not what a row of the format {known.name} holds ({type(error).__name__}: {error})"
        )
        raise RecordError(problem, record=row) from error


def recognize(row: Record) -> "Format":
    """The first format all of whose columns the row has, and that its values fit."""
    for known in FORMATS:
        if row.keys() >= known.columns and known.fits(row):
            return known
    formats = "; ".join(f"{known.name} ({', '.join(sorted(known.columns))})" for known in FORMATS)
    raise RecordError(
        f"no known format has the columns {', '.join(row) or '(none)'}. Known: {formats}",
        record=row,
    )


# Preferences


def preference(row: Record, source: str) -> Iterator[dict]:
    """{prompt, chosen, rejected} or {chosen, rejected}: strings, HH strings, or lists of messages."""
    sides = {name: _side(row, name) for name in ("chosen", "rejected")}
    yield _record(
        row, source, sides, own=isinstance(row["chosen"], list) and row.get("prompt") is None
    )


def _side(row: Record, name: str) -> list[Message]:
    """One side, whole: what the row has under `name`, after the prompt unless it holds the prompt already."""
    value, prompt = row[name], row.get("prompt")
    if not isinstance(value, str):
        return _with_system(row, _after_prompt(row, name, _messages(row, name)))
    if not prompt or value.startswith("\n\nHuman:"):
        return _hh(row, name)
    if isinstance(prompt, str) and prompt.startswith("\n\nHuman:"):
        before = _hh(row, "prompt")
        before = before[:-1] if before[-1] == _assistant("") else before
    else:
        before = [_user(prompt)] if isinstance(prompt, str) else _messages(row, "prompt")
    return _with_system(row, [*before, _assistant(value)])


def _after_prompt(row: Record, name: str, side: list[Message]) -> list[Message]:
    """UltraFeedback repeats the prompt in both sides; TRL's explicit form does not."""
    prompt = row.get("prompt")
    if not prompt:
        return side
    before = [_user(prompt)] if isinstance(prompt, str) else _messages(row, "prompt")
    if side[: len(before)] == before:
        return side
    if isinstance(prompt, str) and side and side[0]["role"] != "assistant":
        if any(message["role"] == "user" and _same(message["content"], prompt) for message in side):
            return side
        raise RecordError(
            "neither holds the prompt nor begins with the assistant", field=name, record=row
        )
    return before + side


def _hh(row: Record, name: str) -> list[Message]:
    """Anthropic HH: one string, each turn behind a blank line and "Human:" or "Assistant:"."""
    before, *parts = HH_HEADER.split("\n\n" + row[name].lstrip())
    if before.strip() or not parts:
        raise RecordError(
            'is a string with neither a prompt beside it nor "Human:" at its start',
            field=name,
            record=row,
        )
    speak = {"Human": _user, "Assistant": _assistant}
    said = _joined(
        speak[header](text.strip()) for header, text in zip(parts[::2], parts[1::2], strict=True)
    )
    for index, (message, following) in enumerate(pairwise(said), start=1):
        if message["role"] == following["role"]:
            raise RecordError(
                'two "Assistant:" headers in a row; where one turn ends cannot be told',
                field=f"{name}[{index}]",
                record=row,
            )
    return said


def sharegpt_preference(row: Record, source: str) -> Iterator[dict]:
    """ShareGPT with two replies: `conversations` is the history, `chosen` and `rejected` one message each."""
    history = _with_system(row, _messages(row, "conversations"))
    yield _record(
        row, source, {name: history + _messages(row, name) for name in ("chosen", "rejected")}
    )


def ultrainteract(row: Record, source: str) -> Iterator[dict]:
    """UltraInteract_pair: `trajectory` is the history, `chosen` and `rejected` the next action."""
    history = _messages(row, "trajectory")
    yield _record(
        row, source, {name: [*history, _assistant(row[name])] for name in ("chosen", "rejected")}
    )


def llmbar(row: Record, source: str) -> Iterator[dict]:
    """LLMBar: `label` 1 or 2 says which output is better. The subset's name comes from the file's or folder's."""
    if row["label"] not in (1, 2):
        raise RecordError(f"is {row['label']!r}; it should be 1 or 2", field="label", record=row)
    outputs = (
        [row["output_1"], row["output_2"]]
        if row["label"] == 1
        else [row["output_2"], row["output_1"]]
    )
    chosen, rejected = ([_user(row["input"]), _assistant(output)] for output in outputs)
    places = re.split(r"[\\/.\[:]", row.where or source)
    labels = [{"subset": LLMBAR_SUBSETS[place]} for place in places if place in LLMBAR_SUBSETS]
    yield _record(
        row, source, {"chosen": chosen, "rejected": rejected}, labels[-1] if labels else None
    )


def openjudge(row: Record, source: str) -> Iterator[dict]:
    """OpenJudge's rows: a shared `input`, and `outputs` of which one is labelled chosen and one rejected."""
    sample = _part(row, "evaluation_sample", dict)
    history = _joined(_messages(row, "evaluation_sample.input"))
    outputs = _part(row, "evaluation_sample.outputs", list)
    sides = {}
    for name in ("chosen", "rejected"):
        found = [
            output
            for output in outputs
            if isinstance(output, dict) and output.get("content_label") == name
        ]
        if len(found) != 1:
            raise RecordError(
                f"{len(found)} outputs are labelled {name}; there should be one",
                field="evaluation_sample.outputs",
                record=row,
            )
        sides[name] = [*history, _assistant(found[0].get("content"))]
    labels = _labels(sample.get("data_info")) | _labels(row.get("extra_metadata"))
    yield _record(row, source, sides, labels)


# Candidates for one prompt


def candidates(row: Record, source: str) -> Iterator[dict]:
    """RewardBench 2, RM-Bench: right and wrong replies to one prompt, each a conversation of its own.

    `correct` in the metadata says which it is; samples are numbered from 0, the right ones first, in the row's order.
    """
    said, id, labels = _candidates(row)
    for sample, (correct, reply) in enumerate(said):
        yield _record(row, source, {"messages": reply}, {**labels, "correct": correct}, id=id) | {
            "sample": sample
        }


def candidate_pairs(row: Record, source: str) -> Iterator[dict]:
    """Every right reply over every wrong one; `candidates` in the metadata are their numbers, each in its list."""
    said, id, labels = _candidates(row)
    right, wrong = (
        [reply for correct, reply in said if correct is wanted] for wanted in (True, False)
    )
    for (first, good), (second, bad) in product(enumerate(right), enumerate(wrong)):
        yield _record(
            row,
            source,
            {"chosen": good, "rejected": bad},
            {**labels, "candidates": [first, second]},
            id=f"{id}/{first}-{second}",
        )


def _candidates(row: Record) -> tuple[list[tuple[bool, list[Message]]], str, dict]:
    """(whether it is right, the whole conversation) for each reply; what they share: an id, and labels.

    RM-Bench's ids are counted within a domain. The ids of RewardBench 2's ties, "ref:7" and "tied:7", hold what their
    score is made of: which of two prompts on one question a row is (`sample_type`, `prompt_id`).
    """
    before = [_user(row["prompt"])] if isinstance(row["prompt"], str) else _messages(row, "prompt")
    said = [
        (name == "chosen", _with_system(row, [*before, _assistant(reply)]))
        for name in ("chosen", "rejected")
        for reply in row[name]
    ]
    known = _id(row)
    if isinstance(row.get("domain"), str) and known is not None:
        known = f"{row['domain']}/{known}"
    tie = re.fullmatch(r"(ref|tied):(\d+)", str(row.get("id")))
    labels = {"sample_type": tie[1], "prompt_id": int(tie[2])} if tie else {}
    return said, content_id(*(reply for _, reply in said)) if known is None else str(known), labels


def _lists_of_replies(row: Record) -> bool:
    """Whether both sides are lists of texts, and so not one conversation each."""
    return all(
        isinstance(row[name], list)
        and row[name]
        and all(isinstance(reply, str) for reply in row[name])
        for name in ("chosen", "rejected")
    )


# Trees and trajectories


def oasst_pairs(row: Record, source: str) -> Iterator[dict]:
    """OpenAssistant: every two replies to the same message whose ranks differ; rank 0 is best."""
    for path, node in _walk(_part(row, "prompt", dict), []):
        replies = [
            reply
            for reply in _replies(node)
            if reply["role"] == "assistant" and reply.get("rank") is not None
        ]
        for better, worse in combinations(sorted(replies, key=lambda reply: reply["rank"]), 2):
            if better["rank"] < worse["rank"]:
                sides = {
                    "chosen": [*path, _assistant(better["text"])],
                    "rejected": [*path, _assistant(worse["text"])],
                }
                labels = {"ranks": [better["rank"], worse["rank"]], "lang": better.get("lang")}
                yield _record(
                    row, source, sides, labels, id=f"{better['message_id']}-{worse['message_id']}"
                )


def oasst_paths(row: Record, source: str) -> Iterator[dict]:
    """OpenAssistant: every path from the prompt to a leaf."""
    for path, node in _walk(_part(row, "prompt", dict), []):
        if not _replies(node):
            yield _record(
                row, source, {"messages": path}, {"lang": node.get("lang")}, id=node["message_id"]
            )


def _walk(node: dict, before: list[Message]) -> Iterator[tuple[list[Message], dict]]:
    """Every node, with the messages up to and with it."""
    path = [*before, {"role": SPEAKERS.get(node.get("role")), "content": node.get("text")}]
    yield path, node
    for reply in _replies(node):
        yield from _walk(reply, path)


def _replies(node: dict) -> list[dict]:
    return [reply for reply in node.get("replies") or [] if not reply.get("deleted")]


def mint(row: Record, source: str) -> Iterator[dict]:
    """MINT: one trajectory, with what names its task and whether it was solved in the metadata."""
    task, state = _part(row, "task", dict), _part(row, "state", dict)
    if not isinstance(state.get("success"), bool):
        raise RecordError(
            "is missing; it should be true or false", field="state.success", record=row
        )
    said = _joined(_messages(row, "state.history"))
    yield _record(
        row, source, {"messages": said}, _labels(state) | {name: task.get(name) for name in TASK}
    )


def is_trajectory(record: Record) -> bool:
    """Whether a conversation is an attempt at a task that was solved or not."""
    return "messages" in record and {"success", *TASK} <= (record.get("metadata") or {}).keys()


def solved_pairs(trajectories: Iterable[dict]) -> Iterator[Record]:
    """Preferences from trajectories on the same task: each that solved it over each that did not.

    Both stand whole, each with its own history, and each must hold a reply; a last message that nobody answered (a
    run that broke off) is left out. Where the data words one task in two ways, `same_prompt` in the metadata is false.
    """
    tasks: dict[str, list[dict]] = {}
    for trajectory in trajectories:
        task = content_id(*(trajectory["metadata"][name] for name in TASK))
        tasks.setdefault(task, []).append(trajectory)
    for group in tasks.values():
        solved, unsolved = (
            [one for one in group if one["metadata"]["success"] is wanted]
            for wanted in (True, False)
        )
        for good in solved:
            for bad in unsolved:
                yield _solved_pair(good, bad)


def _solved_pair(solved: dict, unsolved: dict) -> Record:
    chosen, rejected = _answered(solved["messages"]), _answered(unsolved["messages"])
    about = solved["metadata"]
    metadata = {name: about[name] for name in TASK} | {
        "turns": records.count_turns(chosen),
        "same_prompt": chosen[0] == rejected[0],
        "chosen_source": about.get("source"),
        "rejected_source": unsolved["metadata"].get("source"),
    }
    return records.parse_preference(
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
    return messages if messages[-1]["role"] == "assistant" else messages[:-1]


# Comparisons and conversations


def votes(row: Record, source: str) -> Iterator[dict]:
    """MT-Bench human judgments, Chatbot Arena: two models' conversations and who was preferred at `turn`.

    MT-Bench gives both turns whichever was judged, so the conversations are cut after the judged one.
    """
    winners = {"model_a": "a", "model_b": "b"}
    winner = "tie" if str(row["winner"]).startswith("tie") else winners.get(row["winner"])
    if winner is None:
        raise RecordError(
            f"is {row['winner']!r}; it should be model_a, model_b or tie",
            field="winner",
            record=row,
        )
    cut = 2 * row["turn"] if isinstance(row.get("turn"), int) else None
    sides = {side: _messages(row, f"conversation_{side}")[:cut] for side in ("a", "b")}
    named = [row.get(name) for name in ("question_id", "model_a", "model_b", "judge", "turn")]
    known = "/".join(str(part) for part in named) if row.get("question_id") is not None else None
    yield _record(row, source, sides, id=known) | {"winner": winner}


def comparison(row: Record, source: str) -> Iterator[dict]:
    yield _record(row, source, {side: _messages(row, side) for side in ("a", "b")}, own=True)


def conversation(row: Record, source: str) -> Iterator[dict]:
    yield _record(
        row, source, {"messages": _with_system(row, _messages(row, "messages"))}, own=True
    )


def sharegpt(row: Record, source: str) -> Iterator[dict]:
    yield _record(row, source, {"messages": _with_system(row, _messages(row, "conversations"))})


def mtbench101(row: Record, source: str) -> Iterator[dict]:
    """MT-Bench-101: `history` is a list of {user, bot}."""
    said = []
    for index, turn in enumerate(_part(row, "history", list)):
        if not isinstance(turn, dict):
            raise RecordError(
                "is no object with user and bot", field=f"history[{index}]", record=row
            )
        said += [_user(turn.get("user")), _assistant(turn.get("bot"))]
    yield _record(row, source, {"messages": said})


def prompt_alone(row: Record, source: str) -> Iterator[dict]:
    """A prompt, and perhaps a completion: strings, or messages."""
    said = [_user(row["prompt"])] if isinstance(row["prompt"], str) else _messages(row, "prompt")
    if row.get("completion"):
        completion = row["completion"]
        said += (
            [_assistant(completion)]
            if isinstance(completion, str)
            else _messages(row, "completion")
        )
    yield _record(row, source, {"messages": _with_system(row, said)})


# What the readers share


def _record(
    row: Record,
    source: str,
    sides: dict[str, list[Message]],
    labels: dict | None = None,
    *,
    id: str | None = None,
    own: bool = False,
) -> dict:
    """A record of these sides, with the row's labels and `labels` in its metadata.

    `own`: a row that has an id beside its messages is a record already; it keeps its fields.
    """
    about = {
        **(row["metadata"] if isinstance(row.get("metadata"), dict) else {}),
        **_labels(row),
        **(labels or {}),
        "turns": records.count_turns(next(iter(sides.values()))),
    }
    if source:
        about.setdefault("source", source)
    known = _id(row) if id is None else id
    if own and known is not None:
        return {
            **row,
            **sides,
            "metadata": about if row.get("metadata") is None else row["metadata"],
        }
    return {
        "id": content_id(*sides.values()) if known is None else known,
        **sides,
        "metadata": about,
    }


def _id(row: Record) -> str | int | None:
    """The dataset's own id. RewardBench's is unique within a subset only."""
    given = row.get("unique_id", row.get("id"))
    if isinstance(given, bool) or not isinstance(given, str | int):
        return None
    return f"{row['subset']}/{given}" if isinstance(row.get("subset"), str) else given


def _labels(fields: object) -> dict:
    """The fields that label a row (subset, task, score, ...) rather than hold its text."""
    if not isinstance(fields, dict):
        return {}
    return {
        name: value
        for name, value in fields.items()
        if name not in NOT_LABELS
        and isinstance(value, str | int | float)
        and len(str(value)) <= LABEL_LENGTH
    }


def _messages(row: Record, field: str) -> list[Message]:
    """The messages in a column, in this project's words. A column may hold a single message."""
    value = _part(row, field, (list, dict))
    said = []
    for index, message in enumerate(value if isinstance(value, list) else [value]):
        found = message if isinstance(message, dict) else {}
        speaker = found.get("role") or found.get("from")
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise RecordError(
                f"is no message by the system, the user or the assistant (role {speaker!r})",
                field=f"{field}[{index}]",
                record=row,
            )
        said.append(
            {"role": SPEAKERS[speaker], "content": found.get("content", found.get("value"))}
        )
    return said


def _part(row: Record, field: str, kind: type | tuple[type, ...]) -> object:
    """The value at a dotted path of columns."""
    value = row
    for name in field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, kind):
        kinds = {dict: "an object", list: "a list", (list, dict): "a list of messages"}
        raise RecordError(
            f"{'is missing' if value is None else 'is not readable'}; it should be {kinds[kind]}",
            field=field,
            record=row,
        )
    return value


def _user(content: object) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: object) -> Message:
    return {"role": "assistant", "content": content}


def _joined(messages: Iterable[Message]) -> list[Message]:
    """Two user messages in a row become one."""
    said: list[Message] = []
    for message in messages:
        last = said[-1] if said else message
        if (
            last is not message
            and last["role"] == message["role"] == "user"
            and last["content"]
            and message["content"]
        ):
            message = _user(f"{said.pop()['content']}\n\n{message['content']}")
        said.append(message)
    return said


def _with_system(row: Record, messages: list[Message]) -> list[Message]:
    """Some files keep the system message in a column of its own."""
    system = row.get("system")
    if isinstance(system, str) and system.strip() and messages and messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    return messages


def _same(one: object, other: str) -> bool:
    return isinstance(one, str) and one.strip() == other.strip()


class Format(NamedTuple):
    name: str
    columns: frozenset[str]  # a row of this format has these, and may have more
    read: Callable[[Record, str], Iterator[dict]]
    pairs: Callable[[Record, str], Iterator[dict]] | None = (
        None  # where pairs are read from a row in another way
    )
    fits: Callable[[Record], bool] = lambda row: True  # where columns do not tell


FORMATS = [  # the more telling columns first
    Format("OpenJudge", frozenset({"evaluation_sample"}), openjudge),
    Format(
        "OpenAssistant tree", frozenset({"message_tree_id", "prompt"}), oasst_paths, oasst_pairs
    ),
    Format("MINT trajectory", frozenset({"state", "task"}), mint),
    Format("MT-Bench-101", frozenset({"history"}), mtbench101),
    Format("MT-Bench votes", frozenset({"conversation_a", "conversation_b", "winner"}), votes),
    Format("LLMBar", frozenset({"input", "output_1", "output_2", "label"}), llmbar),
    Format("UltraInteract pair", frozenset({"trajectory", "chosen", "rejected"}), ultrainteract),
    Format(
        "ShareGPT preference",
        frozenset({"conversations", "chosen", "rejected"}),
        sharegpt_preference,
    ),
    Format(
        "RewardBench 2 or RM-Bench",
        frozenset({"prompt", "chosen", "rejected"}),
        candidates,
        candidate_pairs,
        _lists_of_replies,
    ),
    Format("preference, HH or RewardBench", frozenset({"chosen", "rejected"}), preference),
    Format("comparison", frozenset({"a", "b"}), comparison),
    Format("conversation", frozenset({"messages"}), conversation),
    Format("ShareGPT", frozenset({"conversations"}), sharegpt),
    Format("prompt", frozenset({"prompt"}), prompt_alone),
]
