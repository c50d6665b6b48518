"""What the values of a column are, in a few words."""

from collections.abc import Sequence
from typing import Any

MAX_DISTINCT = 5  # values that are listed one by one
MAX_LISTED = 14  # characters of such a value
MAX_KEYS = 4  # of an object's keys that are listed


def summarize_values(values: Sequence[Any]) -> str:
    """The kinds of the values, as "2 to 6 messages", and how large they are."""
    by_type: dict[type, list[Any]] = {}
    for value in values:
        kind = float if type(value) is int else type(value)
        by_type.setdefault(kind, []).append(value)
    return " or ".join(_summarize(kind, members) for kind, members in by_type.items()) or "null"


def _summarize(kind: type, values: Sequence[Any]) -> str:
    if kind is float:
        return f"number, {_range(values)}"
    if kind is str:
        return _summarize_texts(values)
    if kind is list:
        return _summarize_lists(values)
    if kind is dict:
        return f"object: {_keys(values)}"
    return "true or false"


def _summarize_texts(values: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(values))
    if len(distinct) <= MAX_DISTINCT and all(len(text) <= MAX_LISTED for text in distinct):
        return "text: " + ", ".join(" ".join(text.split()) for text in distinct)
    return f"text, {_range([len(text) for text in values], 'character')}"


def _summarize_lists(values: Sequence[list[Any]]) -> str:
    items = [item for value in values for item in value]
    sizes = [len(value) for value in values]
    if items and all(isinstance(item, dict) and item.keys() & {"role", "from"} for item in items):
        return _range(sizes, "message")
    if items and all(isinstance(item, str) for item in items):
        return _range(sizes, "text")
    if items and all(isinstance(item, dict) for item in items):
        return f"{_range(sizes, 'object')}: {_keys(items)}"
    return f"list of {_range(sizes, 'item')}"


def _keys(values: Sequence[dict[str, Any]]) -> str:
    keys = list(dict.fromkeys(key for value in values for key in value))
    return ", ".join(keys[:MAX_KEYS]) + ", …" * (len(keys) > MAX_KEYS)


def _range(numbers: Sequence[int | float], noun: str = "") -> str:
    """The numbers from the least to the greatest, and what they count."""
    low, high = min(numbers), max(numbers)
    text = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{text} {noun}{'s' * (high != 1)}" if noun else text
