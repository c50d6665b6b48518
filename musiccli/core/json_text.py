"""JSON to values and back, by orjson, and by the standard library where orjson cannot."""

import json
import re
from typing import Any

import orjson

from musiccli.core.text_safety import valid_text

MAX_DEPTH = 250  # of lists and objects in each other; orjson writes 254 at most
# An escaped backslash, a pair of surrogates, or half of one (group 1), which orjson refuses.
_ESCAPE = re.compile(
    rb"\\\\"
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
_LONG_NUMBER = re.compile(rb"[0-9]{19}")  # orjson makes floats of integers beyond 64 bits


class TooDeep(ValueError):
    """The value has more than MAX_DEPTH lists and objects in each other."""


def decode(data: bytes) -> Any:
    """The value of a JSON text. Integers of any size are exact.

    Half of a surrogate pair that stands alone, of a text that was cut within an emoji, becomes a
    replacement character: no file can hold it.

    Raises:
        orjson.JSONDecodeError: it is no JSON.
        TooDeep: what is read could not be written again.
        ValueError: an integer has more digits than Python reads.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        repaired = _ESCAPE.sub(lambda half: rb"\ufffd" if half[1] else half[0], data)
        if repaired == data:
            raise
        value = orjson.loads(repaired)
        data = repaired
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        check_depth(value)
    return json.loads(data) if _LONG_NUMBER.search(data) else value


def check_depth(value: object) -> None:
    """Raises TooDeep."""
    level, depth = _containers([value]), 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise TooDeep(f"has more than {MAX_DEPTH} lists and objects in each other")
        level = [child for container in level for child in _containers(container)]


def encode(value: object) -> bytes:
    """A value as compact JSON in UTF-8. A lone surrogate becomes a replacement character."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:  # an integer beyond 64 bits, or a lone surrogate
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return valid_text(text).encode()


def _containers(container: dict[str, Any] | list[Any]) -> list[Any]:
    """The lists and objects that are directly in a list or an object."""
    children = container.values() if isinstance(container, dict) else container
    return [child for child in children if isinstance(child, dict | list)]
