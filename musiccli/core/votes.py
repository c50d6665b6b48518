"""From a judge's replies to a verdict.

A reply holds a letter. The letter and the order in which the conversations were shown make a vote.
A judge votes once for each order, and its votes make one outcome. The outcomes of a panel of judges
make one verdict.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from musiccli.core.errors import RecordError, shortened
from musiccli.core.records import Record, side_names
from musiccli.core.thoughts import without_thoughts

TIE, INCONSISTENT, UNREADABLE = "tie", "inconsistent", "unreadable"  # outcomes beside a side's name
GIVEN_WINNER = "given_winner"  # field: the winner a record held before it was judged
LETTERS = ("A", "B", "C")  # conversation A is better, conversation B is better, or neither
VERDICT_SCHEMA: dict[
    str, Any
] = {  # a judge writes its reasons first, so that the verdict can follow from them
    "type": "object",
    "additionalProperties": False,
    "required": ["explanation", "verdict"],
    "properties": {
        "explanation": {"type": "string"},
        "verdict": {"type": "string", "enum": list(LETTERS)},
    },
}
_MARK = re.compile(r"\[\[([ABCabc])\]\]")
_MARK_AT_END = re.compile(r"\[\[([ABCabc])\]\][\s.!*_]*$")  # no text may follow
_MARK_ALONE = re.compile(r"\W*\[\[([ABCabc])\]\]\W*")
_LETTER_ALONE = re.compile(r"\W*([ABC])\W*")
_NAMED = re.compile(r"[\s*_#]*(?:final |my )?verdict[\s*_:]+([ABC])[\s.!*_]*", re.IGNORECASE)
_NAMED_FIELD = re.compile(r"[\s*_#>-]*(\w+)[\s*_]*:[\s*_`\"]*([\w-]+)[\s.*_`\",]*")
_MAX_DIGITS = 10
_FENCE_START = re.compile(r"(?:```+|~~~+)(?:[ \t]*\w*[ \t]*\r?\n)?")
# Where a JSON object may begin: at the start of a line, behind a fence or behind a sentence.
_OBJECT_START = re.compile(
    r"(?:^[ \t]*|(?<=[`~:.!])[ \t]*(?:json\w*[ \t]*)?)(?=\{)", re.MULTILINE | re.IGNORECASE
)
_MAX_OBJECT_STARTS = 16  # that are tried: a hostile reply may hold millions
_JSON = json.JSONDecoder(strict=False)  # takes raw line breaks within strings


def read_verdict(text: str, truncated: bool = False) -> str | None:
    """The letter in a judge's reply: "A", "B", "C" (a tie), or None where there is none.

    Three forms are read: a JSON object with a `verdict`, which ends the reply; a reply that is one
    letter; a last line that is "Verdict: A" or ends with [[A]]. Marks in earlier lines may be
    quotations.

    Args:
        text: the reply.
        truncated: whether the token limit cut the reply off. Its last line may then go on, so it
            is not read.
    """
    if reply := _json_reply(text):
        return _letter(reply["verdict"])
    text = _without_fence(without_thoughts(text))
    if text.startswith("{"):
        return None
    if letter := _LETTER_ALONE.fullmatch(text):
        return letter[1]
    if truncated:
        return None
    return _read_line(text.removesuffix("```").rstrip().rpartition("\n")[2])


def read_explanation(text: str) -> str:
    """What a judge's reply says in words: of JSON its `explanation`, else the whole reply."""
    reply = _json_reply(text)
    explanation = reply.get("explanation") if reply else None
    return explanation.strip() if isinstance(explanation, str) else text


def verdict_schema(fields: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """VERDICT_SCHEMA with further fields between the explanation and the verdict."""
    if not fields:
        return VERDICT_SCHEMA
    explanation, verdict = VERDICT_SCHEMA["properties"].items()
    properties = dict([explanation, *fields.items(), verdict])
    return VERDICT_SCHEMA | {"required": [*properties], "properties": properties}


def read_fields(text: str, fields: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The further fields of a judge's reply: of its JSON object, else of lines as "Round: 3".

    A field is absent where the reply does not have it, or has a value that its schema does not
    allow.
    """
    reply = _json_reply(text)
    if reply is None:
        lines = without_thoughts(text).splitlines()
        matches = (_NAMED_FIELD.fullmatch(line) for line in lines)
        reply = {match[1].lower(): match[2] for match in matches if match}
    values = {name: _field_value(reply.get(name), schema) for name, schema in fields.items()}
    return {name: value for name, value in values.items() if value is not None}


def _field_value(value: Any, schema: Mapping[str, Any]) -> int | str | None:
    """A value as the schema of a field has it; None where it is another."""
    if "enum" in schema:
        choices = {choice.lower(): choice for choice in schema["enum"]}
        return choices.get(value.strip().lower()) if isinstance(value, str) else None
    if isinstance(value, str) and value.strip().isdecimal() and len(value.strip()) < _MAX_DIGITS:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _json_reply(text: str) -> dict[str, Any] | None:
    """The JSON object with a verdict that a reply ends with, or None.

    The whole reply is tried before thoughts are cut off: an explanation may speak of </think>.
    """
    for candidate in (text, without_thoughts(text)):
        reply = _last_object(candidate)
        if reply is not None and "verdict" in reply:
            return reply
    return None


def _last_object(text: str) -> dict[str, Any] | None:
    text = text.strip().rstrip("`~").rstrip()
    if not text.endswith("}"):
        return None
    for start in islice(_OBJECT_START.finditer(text), _MAX_OBJECT_STARTS):
        try:
            value, end = _JSON.raw_decode(text, start.end())
        except (ValueError, RecursionError):
            continue
        if end == len(text) and isinstance(value, dict):
            return value
    return None


def _without_fence(text: str) -> str:
    """The text of a reply that is one fenced block, else the reply."""
    fence = _FENCE_START.match(text)
    return text[fence.end() :].rstrip("`~").strip() if fence and text[-1] in "`~" else text


def _letter(verdict: Any) -> str | None:
    letter = verdict.strip(" []*").upper() if isinstance(verdict, str) else None
    return letter if letter in LETTERS else None


def _read_line(line: str) -> str | None:
    if line.lstrip().startswith(">"):  # a quotation in Markdown
        return None
    if named := _NAMED.fullmatch(line):
        return named[1].upper()
    mark = _MARK_AT_END.search(line) or _MARK_ALONE.fullmatch(line)
    if not mark or len({letter.upper() for letter in _MARK.findall(line)}) > 1:
        return None
    return mark[1].upper()


def parse_votes(record: Record) -> Record:
    """Check the `votes` of a judged record, if it has any. Raises RecordError."""
    votes = record.get("votes")
    if votes is None:
        return record
    if not isinstance(votes, list):
        raise RecordError("should be a list of votes", field="votes", record=record)
    sides = side_names(record)
    for index, vote in enumerate(votes):
        field = f"votes[{index}]"
        if (
            not isinstance(vote, dict)
            or not isinstance(vote.get("judge"), str)
            or "winner" not in vote
        ):
            problem = "should be a vote: judge, order, winner"
            raise RecordError(problem, field=field, record=record)
        if vote["winner"] not in (*sides, TIE, None):
            allowed = f"{', '.join(sides)}, tie, null"
            problem = f"is {shortened(vote['winner'])}; it should be one of {allowed}"
            raise RecordError(problem, field=f"{field}.winner", record=record)
    return record


def judge_outcome(votes: Sequence[Mapping[str, Any]]) -> str:
    """The outcome of one judge's votes: a side's name, "tie", "inconsistent" or "unreadable".

    A side must win in both orders. One that wins in one order and ties in the other has tied, as
    in MT-Bench (arXiv 2306.05685, section 3.4).
    """
    winners = [vote.get("winner") for vote in votes]
    if None in winners or not winners:
        return UNREADABLE
    if len(set(winners)) == 1:
        return str(winners[0])
    return TIE if TIE in winners else INCONSISTENT


def outcomes_by_judge(votes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The outcome of each judge by its name, in the order in which they voted."""
    votes_by_judge: dict[str, list[Mapping[str, Any]]] = {}
    for vote in votes:
        votes_by_judge.setdefault(vote.get("judge", ""), []).append(vote)
    return {judge: judge_outcome(votes) for judge, votes in votes_by_judge.items()}


def panel_verdict(outcomes: Iterable[str]) -> str:
    """The verdict of several judges: the most frequent of their outcomes.

    Unreadable judges do not count. Those with a tie or an inconsistent outcome count together, as
    undecided.

    Returns:
        "unreadable" where no judge counts. A side's name where more judges chose it than the other
        side, and more than are undecided. "inconsistent" where at least half of the undecided
        judges are inconsistent, and no side has more judges than are undecided. Else "tie".
    """
    counts = Counter(outcomes)
    del counts[UNREADABLE]
    if not counts:
        return UNREADABLE
    ties, inconsistent = counts.pop(TIE, 0), counts.pop(INCONSISTENT, 0)
    sides = counts.most_common(2)
    most = sides[0][1] if sides else 0
    if most > ties + inconsistent and (len(sides) == 1 or sides[1][1] < most):
        return sides[0][0]
    if inconsistent and inconsistent >= ties and ties + inconsistent >= most:
        return INCONSISTENT
    return TIE


def winner_of(verdict: str) -> str | None:
    """The `winner` that a verdict gives a record: a side's name, "tie", or None if unreadable."""
    return {INCONSISTENT: TIE, UNREADABLE: None}.get(verdict, verdict)
