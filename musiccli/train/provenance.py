"""Which files the pairs of a run came from, for its notes and its card."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from musiccli.core import jsonl
from musiccli.core.records import Record


def counted(records: Iterable[Record], files: Counter) -> Iterator[Record]:
    """The same records, counted by the file that each was read from."""
    for record in records:
        files[(getattr(record, "where", None) or "").rpartition(":")[0]] += 1
        yield record


def described(files: Counter) -> list[dict]:
    """Files by name, hash and how many pairs were read from each; a pipe has no hash."""
    return [
        {
            "name": Path(name).name or "given by a program",
            "sha256": jsonl.sha256(name),
            "pairs": count,
        }
        for name, count in files.items()
    ]
