"""Prompt texts: the files beside this one, or a folder of your own. No prompt stands in code.

A file is plain text with {{variables}}. It may begin with a few `name: value` lines between two `---` lines: `as:` is
how the model gets it (chat, turn or completion, see llm.call.Call) and `stop:` a JSON list of strings that end a
reply.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from musiccli.core.errors import InputError
from musiccli.core.records import ROLES

SETS = (
    "paper",
    "small",
)  # paper: for models that follow instructions; small: for models of few parameters
_VARIABLE = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Prompt:
    name: str
    text: str
    as_: str = "chat"
    stop: tuple[str, ...] = ()

    def fill(self, **values: str) -> str:
        """The text with every variable replaced, once: braces inside the values stay as they are.

        Raises InputError for a variable that has no value.
        """

        def value(found: re.Match) -> str:
            if found[1] not in values:
                raise InputError(
                    f"{self.name}: {{{{{found[1]}}}}} is not a variable here; there are "
                    f"{', '.join(sorted(values))}"
                )
            return values[found[1]]

        return _VARIABLE.sub(value, self.text)


def load(which: str, role: str) -> Prompt | None:
    """The prompt for a role ("user", "contrast", ...) from a set's name or a folder; a folder may hold only some.

    Returns None where the set has no prompt for this role. Raises InputError where there is no such set.
    """
    path = _path(which, role)
    if not path.is_file():
        return None if which in SETS else load("paper", role)
    try:
        head, body = _split(path.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 (byte {error.start + 1})") from None
    unknown = head.keys() - {"as", "stop"}
    as_ = head.get("as", "chat")
    if unknown or as_ not in ("chat", "turn", "completion"):
        raise InputError(f"{path}: the head knows as: chat|turn|completion, and stop: [...]")
    return Prompt(str(path), body, as_, _stops(path, head.get("stop", "[]")))


def holds(which: str, role: str) -> bool:
    """Whether a set or folder has this prompt itself: what a folder lacks comes from paper. Raises as load does."""
    return _path(which, role).is_file()


def transcript(messages: list[Mapping[str, str]], mark: str = "") -> str:
    """A conversation as plain text, for models that read it rather than take part: "User: ...", "Assistant: ...".

    With a `mark` each turn stands under a line of its own, "[MARK user]": what only looks like a turn lacks the mark.
    """
    heads = {role: f"[{mark} {role}]\n" if mark else f"{role.capitalize()}: " for role in ROLES}
    return "\n\n".join(heads[message["role"]] + message["content"].strip() for message in messages)


def _path(which: str, role: str) -> Path:
    folder = _HERE / which if which in SETS else Path(which)
    if not folder.is_dir():
        raise InputError(f"--prompts {which}: neither {' nor '.join(SETS)} nor a folder")
    return folder / f"{role}.md"


def _stops(path: Path, text: str) -> tuple[str, ...]:
    try:
        stops = orjson.loads(text)
    except orjson.JSONDecodeError:
        stops = None
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise InputError(f"{path}: stop: should be a JSON list of strings")
    return tuple(stops)


def _split(text: str) -> tuple[dict[str, str], str]:
    if not text.startswith("---\n"):
        return {}, text.strip()
    head, _, body = text[4:].partition("\n---\n")
    pairs = (line.partition(":") for line in head.splitlines() if line.strip())
    return {name.strip(): value.strip() for name, _, value in pairs}, body.strip()
