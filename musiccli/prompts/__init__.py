"""Prompt texts, from the folders beside this file or from a user's folder.

A file is plain text with {{variables}}. It may begin with a head: `name: value` lines between two
`---` lines. `as:` is the mode of the call (chat, turn or completion, see llm.call.Call). `stop:` is
a JSON list of strings that end a reply. `fields:` is a JSON object of what a judge's reply holds
beside its explanation and verdict: names, each with the JSON schema of an integer or of an `enum`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from musiccli.core.errors import InputError
from musiccli.core.messages import ROLES, Message, message_text, tools_text

# "paper" is for models that follow instructions, "small" for models of few parameters. The two
# "self-taught" ones show the plain reply to the model that alters an instruction, after
# arXiv 2408.02666. "rankjudge" asks a judge for the round and the kind of a flaw, too.
SETS = ("paper", "small", "self-taught", "self-taught-small", "rankjudge")
# Where a file comes from that a set lacks; for a folder that is "paper".
FALLBACKS = {"self-taught": "paper", "self-taught-small": "small"}
HEAD_NAMES = {"as", "stop", "fields"}
MODES = ("chat", "turn", "completion")
_VARIABLE = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Prompt:
    """One prompt file.

    Attributes:
        name: its path, for error messages.
        text: the text below the head, with its variables.
        mode: one of MODES.
        stop: strings that end a reply.
        fields: the JSON schema of each further field of a judge's reply.
    """

    name: str
    text: str
    mode: str = "chat"
    stop: tuple[str, ...] = ()
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def reads(self, variable: str) -> bool:
        """Whether the text has a variable."""
        return any(match[1] == variable for match in _VARIABLE.finditer(self.text))

    def fill(self, **values: str) -> str:
        """The text with every variable replaced. Braces inside the values stay as they are.

        Raises:
            InputError: a variable has no value.
        """

        def value(variable: re.Match[str]) -> str:
            name = variable[1]
            if name not in values:
                raise InputError(
                    f"{self.name}: {{{{{name}}}}} is not a variable here; there are "
                    f"{', '.join(sorted(values))}"
                )
            return values[name]

        return _VARIABLE.sub(value, self.text)


def load(prompt_set: str, role: str) -> Prompt | None:
    """The prompt of a role ("user", "contrast", ...), or None where the set has none.

    A file that a folder lacks is taken from the set "paper", and one that a set of FALLBACKS lacks
    from the set named there.

    Args:
        prompt_set: one of SETS, or a folder.

    Raises:
        InputError: there is no such set, or the file cannot be read.
    """
    path = _path(prompt_set, role)
    if not path.is_file():
        fallback = FALLBACKS.get(prompt_set) if prompt_set in SETS else "paper"
        return load(fallback, role) if fallback else None
    try:
        head, text = _split(path.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 (byte {error.start + 1})") from None
    mode = head.get("as", "chat")
    if head.keys() - HEAD_NAMES or mode not in MODES:
        expected = f"as: {'|'.join(MODES)}, stop: [...] and fields: {{...}}"
        raise InputError(f"{path}: the head may hold {expected}")
    stops, fields = _stops(path, head.get("stop", "[]")), _fields(path, head.get("fields", "{}"))
    return Prompt(str(path), text, mode, stops, fields)


def require(prompt_set: str, role: str) -> Prompt:
    """The prompt of a role, which must have one.

    Raises:
        InputError: the set has none, or `load` raises it.
    """
    prompt = load(prompt_set, role)
    if prompt is None:
        raise InputError(f"`prompts` {prompt_set} has no {role}.md")
    return prompt


def sections(prompt_set: str, role: str) -> dict[str, Prompt]:
    """The parts of a file below its `## ` headings, by heading; empty where the set has no file.

    Raises:
        InputError: as `load` raises it.
    """
    prompt = load(prompt_set, role)
    _, *parts = re.split(r"^##\s+", prompt.text if prompt else "", flags=re.MULTILINE)
    texts = {
        head.strip(): text.strip() for head, _, text in (part.partition("\n") for part in parts)
    }
    name = prompt.name if prompt else ""
    return {head: Prompt(f"{name}, {head}", text) for head, text in texts.items() if text}


def contains(prompt_set: str, role: str) -> bool:
    """Whether a set or folder itself has a file for a role.

    Raises:
        InputError: there is no such set.
    """
    return _path(prompt_set, role).is_file()


def transcript(
    messages: Sequence[Message], mark: str = "", tools: Sequence[Mapping[str, Any]] = ()
) -> str:
    """A conversation as plain text: "User: ...", "Assistant: ...", "Tool: ...".

    Thoughts and calls are written as `core.messages.message_text` has them. The functions on
    offer, where there are any, stand first.

    With a `mark`, each turn stands below a line "[MARK user]" instead. So text inside a message
    cannot be taken for the start of a turn, unless it contains the mark.
    """
    heads = {role: f"[{mark} {role}]\n" if mark else f"{role.capitalize()}: " for role in ROLES}
    texts = (heads[message["role"]] + message_text(message).strip() for message in messages)
    offered = [f"[{mark} tools]\n{tools_text(tools)}" if mark else tools_text(tools)]
    return "\n\n".join([*(offered if tools else []), *texts])


def _path(prompt_set: str, role: str) -> Path:
    folder = _FOLDER / prompt_set if prompt_set in SETS else Path(prompt_set)
    if not folder.is_dir():
        raise InputError(f"`prompts` {prompt_set}: neither a folder nor one of {', '.join(SETS)}")
    return folder / f"{role}.md"


def _stops(path: Path, text: str) -> tuple[str, ...]:
    try:
        stops = orjson.loads(text)
    except orjson.JSONDecodeError:
        stops = None
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise InputError(f"{path}: stop: should be a JSON list of strings")
    return tuple(stops)


def _fields(path: Path, text: str) -> dict[str, dict[str, Any]]:
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError:
        fields = None
    if not isinstance(fields, dict) or not all(map(_is_field_schema, fields.values())):
        problem = 'should be a JSON object of {"type": "integer"} or {"enum": [texts]} by name'
        raise InputError(f"{path}: fields: {problem}")
    return fields


def _is_field_schema(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return False
    choices = schema.get("enum")
    if choices is None:
        return bool(schema.get("type") == "integer")
    return isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)


def _split(text: str) -> tuple[dict[str, str], str]:
    """The lines of the head by their names, and the text below it."""
    if not text.startswith("---\n"):
        return {}, text.strip()
    head, _, body = text[4:].partition("\n---\n")
    pairs = (line.partition(":") for line in head.splitlines() if line.strip())
    return {name.strip(): value.strip() for name, _, value in pairs}, body.strip()
