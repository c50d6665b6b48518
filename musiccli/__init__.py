"""Multi-turn reward models from multi-step instruction contrast (MUSIC, arXiv 2512.24693).

The names in `__all__` are the whole public Python API. Everything else may change.

    from musiccli import RewardModel, read_records, write_records

    model = RewardModel.load("rm")
    records = list(read_records("candidates.jsonl"))
    for record, score in zip(records, model.score(records)):
        record["scores"] = {"rm": score}
    write_records("scored.jsonl", records)
"""

from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from musiccli.core.errors import InputError, MusicError, RecordError

if TYPE_CHECKING:
    from musiccli.reward_model.checkpoint import RewardModel
    from musiccli.serve.reward_function import RewardFunction

__version__ = "0.1.0"
__all__ = [
    "InputError",
    "MusicError",
    "RecordError",
    "RewardFunction",
    "RewardModel",
    "__version__",
    "read_records",
    "write_records",
]


def read_records(path: str | PathLike[str]) -> Iterator[dict[str, Any]]:
    """The records of a JSONL file, one after the other, in constant memory.

    Args:
        path: a file, also .gz and .zst; "-" is standard input.

    Raises:
        InputError: the file is missing, empty or damaged. A missing file raises at once.
        RecordError: a line is no JSON object; it says which line.

    Example:
        >>> for record in read_records("pairs.jsonl.gz"):
        ...     print(record["id"])
    """
    from musiccli.core import jsonl

    return jsonl.read([str(path)], lambda record: record, unique=False)


def write_records(path: str | PathLike[str], records: Iterable[Mapping[str, Any]]) -> int:
    """Write records as JSONL, and return how many.

    The file appears when it is complete. Where an error ends `records`, it does not appear, and
    a file that was there stays as it was.

    Args:
        path: a file, compressed where it ends in .gz or .zst; "-" is standard output.
        records: anything that JSON can hold.

    Raises:
        InputError: the file cannot be written.

    Example:
        >>> records = read_records("in.jsonl")
        >>> write_records("long.jsonl", (r for r in records if len(r["messages"]) > 4))
        118
    """
    from musiccli.core import jsonl

    output = jsonl.open_output(str(path))
    try:
        for record in records:
            output.write(record)
        output.close()
    except BaseException:
        output.discard()
        raise
    return output.count


def __getattr__(name: str) -> Any:
    """Import on first use what needs torch, which takes seconds."""
    if name == "RewardModel":
        from musiccli.reward_model.checkpoint import RewardModel

        return RewardModel
    if name == "RewardFunction":
        from musiccli.serve.reward_function import RewardFunction

        return RewardFunction
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "RewardFunction", "RewardModel"]
