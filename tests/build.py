"""Build what tests give to `music`, and read what it writes: messages, records and JSONL."""

import json
from pathlib import Path


def user(text: str = "q") -> dict:
    return {"role": "user", "content": text}


def assistant(text: str = "a") -> dict:
    return {"role": "assistant", "content": text}


def system(text: str = "s") -> dict:
    return {"role": "system", "content": text}


def call(name: str, /, text: str = "", **arguments) -> dict:
    """An assistant's message that calls a function, with or without text."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    return assistant(text) | {"tool_calls": [{"type": "function", "function": function}]}


def result(text: str, **fields) -> dict:
    """A tool's message."""
    return {"role": "tool", "content": text, **fields}


def weather(answer: str = "It is 3 C.", found: str = "3 C", **fields) -> dict:
    """A conversation in which the assistant calls a function, reads its result, and answers."""
    tool = {"type": "function", "function": {"name": "weather", "description": "It knows."}}
    return {
        "id": "w",
        "messages": [
            user("How warm is it in Oslo?"),
            call("weather", city="Oslo"),
            result(found),
            assistant(answer),
        ],
        "tools": [tool],
        **fields,
    }


def talk(*texts: str, system: str | None = None) -> list[dict]:
    """Messages of user, assistant, user, ..., after those of the system."""
    first = [{"role": "system", "content": system}] if system else []
    return first + [(user, assistant)[turn % 2](text) for turn, text in enumerate(texts)]


def scored_pair(number: int, chosen: float, rejected: float, **fields) -> dict:
    """A pair of its own prompt, and the rewards that the model "rm" gives its two sides."""
    return {
        "id": f"p{number}",
        "chosen": talk(f"prompt {number}", "yes"),
        "rejected": talk(f"prompt {number}", "no"),
        "scores": {"rm": {"chosen": chosen, "rejected": rejected}},
        **fields,
    }


def votes(judge: str, ab: str, ba: str) -> list[dict]:
    """A judge's votes in both orders."""
    return [
        {"judge": judge, "order": order, "winner": winner, "explanation": ""}
        for order, winner in (("ab", ab), ("ba", ba))
    ]


def lines(*records: dict | bytes) -> bytes:
    """JSONL of records; bytes are lines that stand as they are."""
    return b"".join(
        record if isinstance(record, bytes) else json.dumps(record).encode()
        for record in (part for record in records for part in (record, b"\n"))
    )


def write(path: str | Path, *records: dict | bytes) -> Path:
    """Write records to a file as JSONL."""
    path = Path(path)
    path.write_bytes(lines(*records))
    return path


def unloadable(folder: Path) -> Path:
    """Make a folder that looks like a model's until somebody loads it."""
    folder.mkdir()
    (folder / "config.json").touch()
    return folder


def read(source: str | Path) -> list[dict]:
    """The records of a file, or of a text that holds JSONL."""
    text = source.read_text("utf-8") if isinstance(source, Path) else source
    return [json.loads(line) for line in text.splitlines()]
