"""Records for people: sides beside each other, what they share once, in a terminal or as one page of HTML.

Text of a conversation is data. Control characters, and the invisible ones that turn or hide text, are made visible
once (visible.py), for both kinds of output; nothing in a record is taken for markup, an escape sequence or HTML.
"""

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from html import escape
from itertools import zip_longest
from typing import NamedTuple

import orjson

from musiccli.core import records
from musiccli.core.pages import begin
from musiccli.core.records import Message, Record, first_divergence, lookup, side_names
from musiccli.core.text_safety import visible

NARROW = 60  # columns; below, two sides stand under each other
SIMILAR = 0.5  # texts that share less than this part of their words are different texts, not an edited one
Span = tuple[int, int]


class Turn(NamedTuple):
    """One message, ready to be shown. `label` is its role and its scores; `changed` are spans of `text`."""

    role: str
    label: str
    text: str
    instead: str | None = None  # the rewritten instruction that a contrasted reply answers
    changed: Sequence[Span] = ()


class View(NamedTuple):
    """One record, ready to be shown: `sides`, `captions` and `columns` hold one entry a side."""

    id: str
    kind: str
    facts: list[str]
    shared: list[Turn]
    divider: str  # what begins after the shared part
    sides: Sequence[str]
    captions: list[str]
    columns: list[list[Turn]]
    better: int | None  # which side won
    votes: list[tuple[str, str]]  # who voted what, and why


def select(
    found: Iterable[Record],
    *,
    ids: Sequence[str] = (),
    where: Sequence[tuple[str, str]] = (),
    count: int | None = None,
    counts: Counter | None = None,
) -> Iterator[Record]:
    """The first `count` records that have one of `ids` and in every field of `where` its value."""
    counts = Counter() if counts is None else counts
    for record in found:
        if ids and str(record["id"]) not in ids:
            continue
        if all(plain(lookup(record, field)) == value for field, value in where):
            counts["shown"] += 1
            yield record
            if counts["shown"] == count:
                return


def view(record: Record) -> View:
    """What there is to show of a record of any kind."""
    names = side_names(record)
    contrast = {
        entry["message"]: entry.get("instruction")
        for entry in objects(record, "contrast")
        if isinstance(entry.get("message"), int)
    }
    if names == ("messages",):
        begins = record.get("seed_messages") if isinstance(record.get("seed_messages"), int) else 0
        seed, simulated = (
            turns(record, "messages", contrast, *span) for span in ((0, begins), (begins, None))
        )
        shared, columns = (seed, [simulated]) if simulated else ([], [seed])
        divider = "simulated from here"
    else:
        left, right = names
        split = first_divergence(record[left], record[right])
        shared = turns(record, left, {}, 0, split)
        columns = [
            turns(record, left, {}, split),
            turns(record, right, contrast if right == "rejected" else {}, split),
        ]
        columns = compare(*columns)
        divider = "different from here" if any(columns) else "both sides are the same"
    won = record.get("winner")
    return View(
        visible(str(record["id"])),
        visible(kind(record)),
        facts(record),
        shared,
        divider,
        names,
        [caption(record, name) for name in names],
        columns,
        names.index(won) if won in names else None,
        votes(record),
    )


def kind(record: Record) -> str:
    if "messages" in record:
        return "conversation"
    if "best_of" in record:
        return f"contest, best of {record['best_of']}"
    return "preference" if "chosen" in record else "comparison"


def facts(record: Record) -> list[str]:
    """What is known of the record beside its conversations, a few words each."""
    found = [f"{name} {plain(record[name])}" for name in ("branch", "sample") if name in record]
    if "winner" in record:
        winner = record["winner"]
        found.append(
            "verdict unreadable"
            if winner is None
            else "tie"
            if winner == "tie"
            else f"{winner} won"
        )
    if isinstance(wrong := record.get("corruption"), dict):
        found.append(f"corruption {plain(wrong.get('kind'))} at turn {plain(wrong.get('turn'))}")
    found += [f"{name}: {plain(value)}" for name, value in (record.get("metadata") or {}).items()]
    return [visible(shorten(fact)) for fact in found]


def caption(record: Record, side: str) -> str:
    """A side's name, whose pick it is, and its scores."""
    models, picks = (
        record.get(field) if isinstance(record.get(field), dict) else {}
        for field in ("models", "picks")
    )
    parts = [side if side != "messages" else ""]
    if side in models:
        parts.append(
            f"{models[side]}'s pick" + (f", sample {picks[side]}" if side in picks else "")
        )
    for model, score in entries(record, "scores", side):
        parts += [f"{model} {score:.3f}"] if isinstance(score, int | float) else []
    return visible(" · ".join(filter(None, parts)))


def entries(record: Record, field: str, side: str) -> Iterator[tuple[str, object]]:
    """What each model has in `field` for one side; a conversation has no sides."""
    by_model = record.get(field)
    for model, value in (by_model if isinstance(by_model, dict) else {}).items():
        yield model, value.get(side) if isinstance(value, dict) else value


def turns(
    record: Record, side: str, contrast: dict, start: int, end: int | None = None
) -> list[Turn]:
    """Messages `start` to `end` of one side, with the scores of each assistant turn.

    The last score is the last turn's: a conversation that was cut to fit has none for its oldest turns.
    """
    by_turn = [
        (model, scores)
        for model, scores in entries(record, "turn_scores", side)
        if isinstance(scores, list)
    ]
    found, left = [], records.count_turns(record[side])
    for index, message in enumerate(record[side]):
        label = [message["role"]]
        if message["role"] == "assistant":
            label += [
                f"{model} {scores[-left]:.3f}"
                for model, scores in by_turn
                if left <= len(scores) and isinstance(scores[-left], int | float)
            ]
            left -= 1
        instead = contrast.get(index)
        found.append(turn(message, label + ["contrasted"] * (index in contrast), instead))
    return found[start:end]


def turn(message: Message, label: list[str], instead: object) -> Turn:
    text = visible(message["content"]).strip("\n")
    return Turn(
        message["role"],
        visible(" · ".join(label)),
        text,
        visible(str(instead)) if instead else None,
    )


def votes(record: Record) -> list[tuple[str, str]]:
    """Each vote as a heading and the judge's words."""
    found = []
    for vote in objects(record, "votes"):
        said = "unreadable" if vote.get("winner") is None else vote["winner"]
        heading = f"{vote.get('judge')} · order {vote.get('order')} · {said}"
        found.append((visible(heading), visible(str(vote.get("explanation") or "")).strip()))
    return found


def objects(record: Record, field: str) -> list[dict]:
    """The objects in a list, whatever else may stand there."""
    value = record.get(field)
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def compare(left: list[Turn], right: list[Turn]) -> list[list[Turn]]:
    """The same turns, with what differs marked where two that stand beside each other are similar."""
    marked = [list(left), list(right)]
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one.role == other.role:
            for column, text, spans in zip(
                marked, (one, other), differences(one.text, other.text), strict=True
            ):
                column[index] = text._replace(changed=spans)
    return marked


def differences(left: str, right: str) -> tuple[list[Span], list[Span]]:
    """Spans of either text that the other does not have, word by word; none where the texts have little in common."""
    one, other = (re.findall(r"\w+\s*|[^\w\s]\s*|\s+", text) for text in (left, right))
    words, others = ([word.strip() for word in text] for text in (one, other))
    common = sum((Counter(words) & Counter(others)).values())
    if 2 * common < SIMILAR * (len(words) + len(others)):
        return [], []
    spans: tuple[list[Span], list[Span]] = ([], [])
    at = [0, 0]
    for tag, *bounds in SequenceMatcher(None, words, others).get_opcodes():
        for side, (text, start, end) in enumerate(((one, *bounds[:2]), (other, *bounds[2:]))):
            piece = "".join(text[start:end])
            if tag != "equal" and piece.strip():
                spans[side].append((at[side], at[side] + len(piece.rstrip())))
            at[side] += len(piece)
    return spans


def plain(value: object) -> str:
    """A field's value as people type it: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def shorten(text: str, length: int = 160) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


# ── In a terminal ────────────────────────────────────────────────────────────────────────────────────────────────

ROLES = {"system": "bold magenta", "user": "bold cyan", "assistant": "bold blue"}
SIDES = {"chosen": "green", "rejected": "red", "a": "blue", "b": "magenta", "messages": ""}


def terminal(found: Iterable[Record], *, width: int = 80, colour: bool = False) -> Iterator[str]:
    """Each record as lines of at most `width` columns, with escape sequences for colour or without any."""
    from rich.console import Console

    for record in found:
        console = Console(
            file=io.StringIO(),
            width=width,
            force_terminal=colour,
            no_color=not colour,
            markup=False,
            color_system="standard" if colour else None,
            highlight=False,
            emoji=False,
            legacy_windows=False,
        )
        for part in drawn(view(record), width):
            console.print(part)
        lines = console.file.getvalue().split("\n")
        yield "\n".join(line.rstrip() for line in lines) + "\n"


def drawn(shown: View, width: int) -> Iterator[object]:
    """The parts of one record, as rich draws them."""
    from rich.rule import Rule
    from rich.text import Text

    heading = Text.assemble((shown.id, "bold"), (f" · {shown.kind}", "dim"))
    yield Rule(heading, align="left", style="dim")
    if shown.facts:
        yield Text(" · ".join(shown.facts), "dim")
    single = len(shown.sides) == 1
    if single and shown.captions[0]:
        yield Text(shown.captions[0], "bold")
    yield Text()
    for turn in shown.shared:
        yield from message(turn)
    if shown.shared:
        yield Rule(Text(shown.divider, "dim"), characters="╌", style="dim")
    if single:
        for turn in shown.columns[0]:
            yield from message(turn)
    elif width < NARROW or not any(shown.columns):
        yield from stacked(shown)
    else:
        yield beside(shown)
    for heading, words in shown.votes:
        yield Text.assemble((heading, "bold"), f"\n{words}" if words else "", overflow="fold")


def message(turn: Turn, side: str = "messages") -> Iterator[object]:
    """The role and scores on a line, then the text, two columns in."""
    from rich.padding import Padding
    from rich.text import Text

    yield Text(turn.label, ROLES[turn.role], overflow="fold")
    if turn.instead:
        yield Padding(
            Text(f"answers instead: {turn.instead}", "italic yellow", overflow="fold"), (0, 0, 0, 2)
        )
    text = Text(turn.text, overflow="fold", tab_size=4)
    for start, end in turn.changed:
        text.stylize(f"bold underline {SIDES[side]}", start, end)
    yield Padding(text, (0, 0, 1, 2))


def beside(shown: View) -> object:
    """Both sides in two columns, a message beside the one that stands in its place."""
    from rich.box import MINIMAL
    from rich.console import Group
    from rich.table import Table

    table = Table(box=MINIMAL, show_edge=False, pad_edge=False, expand=True, border_style="dim")
    for side in (0, 1):
        table.add_column(head(shown, side), ratio=1, overflow="fold", vertical="top")
    for pair in zip_longest(*shown.columns):
        cells = zip(pair, shown.sides, strict=True)
        table.add_row(*(Group(*message(turn, side)) if turn else "" for turn, side in cells))
    return table


def stacked(shown: View) -> Iterator[object]:
    """One side under the other, for a narrow terminal; the captions alone where both sides are the same."""
    for number, side in enumerate(shown.sides):
        yield head(shown, number)
        for turn in shown.columns[number]:
            yield from message(turn, side)


def head(shown: View, side: int) -> object:
    from rich.text import Text

    star = "★ " * (shown.better == side)
    return Text(star + shown.captions[side], f"bold {SIDES[shown.sides[side]]}", overflow="fold")


# ── As a page ────────────────────────────────────────────────────────────────────────────────────────────────────


def page(found: Iterable[Record], title: str) -> Iterator[str]:
    """One whole page of HTML, a record at a time; it needs no other file and asks the network for nothing."""
    yield begin(title)
    for record in found:
        yield article(view(record))
    yield "</body>\n</html>\n"


def article(shown: View) -> str:
    """One record."""
    parts = [f"<h2>{escape(shown.id)} <span>{escape(shown.kind)}</span></h2>"]
    single = len(shown.sides) == 1
    if shown.facts:
        parts.append(
            f'<p class="facts">{"".join(f"<span>{escape(fact)}</span>" for fact in shown.facts)}</p>'
        )
    if single and shown.captions[0]:
        parts.append(f'<p class="caption">{escape(shown.captions[0])}</p>')
    parts += [block(turn) for turn in shown.shared]
    if shown.shared:
        parts.append(f'<p class="rule">{shown.divider}</p>')
    parts += [block(turn) for turn in shown.columns[0]] if single else [pairs(shown)]
    parts += [
        f"<details><summary>{escape(heading)}</summary><p>{escape(words)}</p></details>"
        for heading, words in shown.votes
    ]
    return "<article>\n" + "\n".join(parts) + "\n</article>\n"


def pairs(shown: View) -> str:
    """Both sides, a message beside the one that stands in its place."""
    cells = [
        f'<p class="caption {name}">{"★ " * (shown.better == side)}{escape(shown.captions[side])}</p>'
        for side, name in enumerate(shown.sides)
    ]
    for pair in zip_longest(*shown.columns):
        cells += [
            block(turn, name) if turn else '<div class="empty"></div>'
            for turn, name in zip(pair, shown.sides, strict=True)
        ]
    return '<div class="pair">\n' + "\n".join(cells) + "\n</div>"


def block(turn: Turn, side: str = "") -> str:
    """One message; `side` is named where the two columns have become one."""
    named = f'<span class="side">{escape(side)} · </span>' if side else ""
    instead = (
        f'<p class="instead">answers instead: {escape(turn.instead)}</p>' if turn.instead else ""
    )
    text, at = "", 0
    for start, end in turn.changed:
        text += f"{escape(turn.text[at:start])}<mark>{escape(turn.text[start:end])}</mark>"
        at = end
    text += escape(turn.text[at:])
    return (
        f'<div class="message {turn.role} {side}"><span class="role">{named}{escape(turn.label)}</span>{instead}'
        f'<p class="text" dir="auto">{text}</p></div>'
    )
