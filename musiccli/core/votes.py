"""What judges said, read: a reply as a verdict, a judge's two votes as one outcome, a panel's outcomes as one."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import orjson

from musiccli.core.errors import RecordError
from musiccli.core.records import Record, shortened, side_names

TIE, INCONSISTENT, UNREADABLE = "tie", "inconsistent", "unreadable"
GIVEN_WINNER = "given_winner"  # the field with the winner that a record came with, before judge gave it another
LETTERS = ("A", "B", "C")  # the conversation shown as A is better, that shown as B, neither
VERDICT_SCHEMA = {  # what a judge that can be held to a form answers; the reasons come first, as the verdict follows from them
    "type": "object",
    "additionalProperties": False,
    "required": ["explanation", "verdict"],
    "properties": {
        "explanation": {"type": "string"},
        "verdict": {"type": "string", "enum": list(LETTERS)},
    },
}
_MARK = re.compile(r"\[\[([ABC])\]\]")
_ENDS = re.compile(
    r"\[\[([ABC])\]\][\s.!*_]*$"
)  # in quotes, or followed by words, it is somebody else's verdict
_NAMED = re.compile(r"[\s*_#]*(?:final |my )?verdict[\s*_:]+([ABC])[\s.!*_]*", re.IGNORECASE)
_FENCED = re.compile(r"```\w*\n(.*)\n```", re.DOTALL)


def read_verdict(text: str, truncated: bool = False) -> str | None:
    """ "A", "B" or "C" (tie) as a judge wrote it, or None.

    Read are: a JSON object with a `verdict`; else a last line that ends in one [[A]], or that is "Verdict: A"; else a
    reply that is one letter. Marks before the last line may be quotations and count for nothing. Of a reply that was
    `truncated` by the token limit the last line is not known, so only what is complete by its form is read.
    """
    text = text.rpartition("</think>")[2].strip()
    fenced = _FENCED.fullmatch(text)
    text = fenced[1].strip() if fenced else text
    if text.startswith("{"):
        return _read_json(text)
    alone = re.fullmatch(r"\W*([ABC])\W*", text)
    if alone:
        return alone[1]
    return None if truncated else _read_line(text.removesuffix("```").rstrip().rpartition("\n")[2])


def parse_votes(record: Record) -> Record:
    """A judged record whose `votes`, if any, are what judge writes: judge, order and winner. Raises RecordError."""
    found = record.get("votes")
    if found is None:
        return record
    if not isinstance(found, list):
        raise RecordError("should be a list of votes", field="votes", record=record)
    for index, vote in enumerate(found):
        about = vote if isinstance(vote, dict) else {}
        if not isinstance(about.get("judge"), str) or "winner" not in about:
            raise RecordError(
                "should be a vote: judge, order, winner", field=f"votes[{index}]", record=record
            )
        if about["winner"] not in (*side_names(record), TIE, None):
            raise RecordError(
                f"is {shortened(about['winner'])}; it should be one of {', '.join(side_names(record))}, tie, "
                "null",
                field=f"votes[{index}].winner",
                record=record,
            )
    return record


def judge_outcome(votes: Sequence[Mapping]) -> str:
    """One judge's votes as one: a side that won in both orders, "tie", "inconsistent" or "unreadable".

    A side preferred in one order and tied in the other has not won in both: that is a tie, as in MT-Bench
    (arXiv 2306.05685).
    """
    winners = [vote.get("winner") for vote in votes]
    if None in winners or not winners:
        return UNREADABLE
    if len(set(winners)) == 1:
        return winners[0]
    return TIE if TIE in winners else INCONSISTENT


def outcomes_by_judge(votes: Sequence[Mapping]) -> dict[str, str]:
    """The outcome of each judge, in the order they voted."""
    names = dict.fromkeys(vote.get("judge") for vote in votes)
    return {
        name: judge_outcome([vote for vote in votes if vote.get("judge") == name]) for name in names
    }


def panel_verdict(outcomes: Sequence[str]) -> str:
    """The panel's: what more of its judges say than anything else; a side, "tie", "inconsistent" or "unreadable".

    Judges that could not be read are left out. An inconsistent judge is one more that sees no difference; where those
    prevail, the verdict is "inconsistent" unless more of them called a tie. Two sides that are equal in votes, and
    ahead, are a tie.
    """
    counted = Counter(outcomes)
    del counted[UNREADABLE]
    if not counted:
        return UNREADABLE
    level = counted.pop(TIE, 0), counted.pop(INCONSISTENT, 0)
    sides = counted.most_common(2)
    most = sides[0][1] if sides else 0
    if most > sum(level) and (len(sides) == 1 or sides[1][1] < most):
        return sides[0][0]
    return INCONSISTENT if 0 < level[1] >= level[0] and sum(level) >= most else TIE


def winner_of(verdict: str) -> str | None:
    """A verdict as a record's `winner`: a side's name, "tie" (an inconsistent one, too), or None if unreadable."""
    return {INCONSISTENT: TIE, UNREADABLE: None}.get(verdict, verdict)


def _read_json(text: str) -> str | None:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    letter = found.get("verdict")
    letter = letter.strip(" []*") if isinstance(letter, str) else None
    return letter if letter in LETTERS else None


def _read_line(line: str) -> str | None:
    if line.lstrip().startswith(">"):  # Markdown for a quotation
        return None
    named, ends = (
        _NAMED.fullmatch(line),
        _ENDS.search(line) or re.fullmatch(r"\W*\[\[([ABC])\]\]\W*", line),
    )
    if named or not ends:
        return named[1].upper() if named else None
    return ends[1] if len(set(_MARK.findall(line))) == 1 else None
