"""Dataset rows become what the next stages read: seeds, prompts, pairs, comparisons, conversations, corruptions or
contrasts."""

import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from operator import itemgetter

from musiccli.core import records
from musiccli.core.errors import RecordError
from musiccli.core.jsonl import Rejects
from musiccli.core.records import IDENTITY_FIELDS, Message, Record, content_id, side_names
from musiccli.sample import corruptions as corrupt
from musiccli.sample import formats

ENDS = {
    "user": {"assistant"},
    "assistant": {"user"},
    "any": {"user", "assistant"},
}  # who spoke last, by who is next
CHARACTERS_A_TOKEN = 4  # no tokenizer is loaded here: a rough figure for English
GRAM = (
    13  # words: the longest overlap that GPT-3's authors looked for (arXiv 2005.14165, appendix C)
)
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer, which set no words apart,
    "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
)  # kana, Chinese characters
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")  # each character of theirs is a word


class Dropped(Exception):
    """A record that gives nothing of the kind asked for; the text is the reason, as the last line counts it."""


def sample(
    rows: Iterable[tuple[str, Record]],
    emit: str = "seeds",
    *,
    count: int | None = None,
    seed: int = 0,
    next_speaker: str = "user",
    max_tokens: int | None = None,
    kinds: Collection[str] = (),
    last_turn: bool = False,
    benchmark: "Benchmark | None" = None,
    rejects: Rejects | None = None,
    counts: Counter | None = None,
) -> Iterator[dict]:
    """Records of the kind `emit` from (source, row) pairs, in the order of the rows.

    Too long ones, repeated ones and ones that overlap `benchmark` are dropped, each under its reason in `counts`; then
    `count` of them are chosen at random, all with the same chance. Without `count` they stream. Rows that cannot be
    read go to `rejects`. Corruptions may be of some `kinds` only; a contrast is at any turn or at the last.
    """
    counts = Counter() if counts is None else counts
    found = read(rows, rejects or Rejects(), counts, pairs=emit in ("pairs", "comparisons"))
    found = outside(found, benchmark, counts) if benchmark else found
    make = {
        "seeds": partial(seeds, next_speaker=next_speaker, max_tokens=max_tokens),
        "prompts": prompts,
        "pairs": pairs,
        "comparisons": comparisons,
        "conversations": conversations,
        "corruptions": partial(corruptions, kinds=kinds or corrupt.KINDS),
        "contrasts": partial(contrasts, last=last_turn),
    }[emit]
    if emit in (
        "corruptions",
        "contrasts",
    ):  # every conversation is held, for the others to borrow from
        found = list(unique(((record, record) for record in once(found, counts)), counts))
        make = partial(make, pool=corrupt.Pool(found, counts))

    def made() -> Iterator[tuple[Record, dict]]:
        for record in found:
            try:
                for result in make(record, random.Random(f"{seed} {record['id']}")):
                    if max_tokens and max(map(tokens, sides(result))) > max_tokens:
                        raise Dropped(f"longer than {max_tokens} tokens")
                    yield record, result
            except Dropped as reason:
                counts[f"dropped ({reason})"] += 1

    results = unique(made(), counts)
    return results if count is None else choose(results, count, seed, counts)


def read(
    rows: Iterable[tuple[str, Record]],
    rejects: Rejects,
    counts: Counter | None = None,
    *,
    pairs: bool = False,
) -> Iterator[Record]:
    """The records of all rows. For pairs, solved and unsolved trajectories are held until the last row is read."""
    counts = Counter() if counts is None else counts
    trajectories = []
    for source, row in rows:
        counts["rows read"] += 1
        found: list[Record] = []
        with rejects.guard(row):
            found = _records(row, source, pairs, hint=not rejects.skip)
        for record in found:
            if not (pairs and formats.is_trajectory(record)):
                yield record
            elif records.count_turns(record["messages"]):
                trajectories.append(record)
            else:
                counts["dropped (no reply)"] += 1
    yield from formats.solved_pairs(trajectories)


def _records(row: Record, source: str, pairs: bool, hint: bool) -> list[Record]:
    try:
        return list(formats.read(row, source, pairs=pairs))
    except RecordError as error:
        if hint:
            error.problem += " (--on-error skip leaves such rows out)"
        raise


# What one record gives: each takes a record and a random generator of its own


def seeds(
    record: Record, rng: random.Random, *, next_speaker: str = "user", max_tokens: int | None = None
) -> list[dict]:
    """The beginning of a random side, cut at random where `next_speaker` may go on; never over `max_tokens`."""
    side = rng.choice(side_names(record))
    said = record[side]
    ends = [
        end for end, message in enumerate(said, start=1) if message["role"] in ENDS[next_speaker]
    ]
    if not ends:
        raise Dropped(
            f"nowhere for the {'next speaker' if next_speaker == 'any' else next_speaker} to go on"
        )
    fitting = [end for end in ends if not max_tokens or tokens(said[:end]) <= max_tokens]
    if not fitting:
        raise Dropped(f"longer than {max_tokens} tokens")
    cut = rng.choice(fitting)
    return [_conversation(record, said[:cut], seed={"side": side, "messages": len(said)})]


def prompts(record: Record, rng: random.Random) -> list[dict]:
    """The first user message, after the system message where there is one."""
    said = record[side_names(record)[0]]
    return [_conversation(record, said[: 1 + (said[0]["role"] == "system")])]


def pairs(record: Record, rng: random.Random) -> list[dict]:
    """A labelled preference: the record itself, or the comparison that somebody decided."""
    if "chosen" in record:
        return [record]
    winner = record.get("winner")
    loser = {"a": "b", "b": "a"}.get(winner)
    if loser is None:
        raise Dropped("tie" if winner == "tie" else "nobody ranked it")
    return [
        {
            "id": record["id"],
            "chosen": record[winner],
            "rejected": record[loser],
            "metadata": record.get("metadata") or {},
        }
    ]


def comparisons(record: Record, rng: random.Random) -> list[dict]:
    """Two sides and, where the data says so, the winner. A preference's sides are shuffled."""
    if "a" in record:
        return [record]
    if "chosen" not in record:
        raise Dropped("one conversation, nothing to compare it with")
    first, second = rng.sample(("chosen", "rejected"), 2)
    return [
        {
            "id": record["id"],
            "a": record[first],
            "b": record[second],
            "winner": "a" if first == "chosen" else "b",
            "metadata": record.get("metadata") or {},
        }
    ]


def conversations(record: Record, rng: random.Random) -> list[dict]:
    """Every side, alone: a preference's as its two branches, a comparison's as samples 0 and 1."""
    if "messages" in record:
        return [record]
    if "chosen" in record:
        return [
            _conversation(record, record[side]) | {"branch": side}
            for side in ("chosen", "rejected")
        ]
    return [
        _conversation(record, record[side]) | {"sample": number} for number, side in enumerate("ab")
    ]


def corruptions(
    record: Record, rng: random.Random, *, pool: corrupt.Pool, kinds: Collection[str]
) -> list[dict]:
    """The conversation, or the better side, over each corruption of it."""
    made = corrupt.corruptions(record, rng, pool=pool, kinds=kinds)
    if not made:
        short = records.count_turns(corrupt.intact(record)) < 2
        raise Dropped("fewer than two turns" if short else "no corruption of that kind")
    return made


def contrasts(record: Record, rng: random.Random, *, pool: corrupt.Pool, last: bool) -> list[dict]:
    """The conversation, or the better side, over itself with one reply out of another conversation."""
    made = corrupt.contrast(record, rng, pool=pool, last=last)
    if made is None:
        raise Dropped(
            "no match in another conversation"
            if records.count_turns(corrupt.intact(record))
            else "no reply"
        )
    return [made]


def _conversation(record: Record, messages: list[Message], **more) -> dict:
    metadata = {**(record.get("metadata") or {}), **more}
    if "turns" in metadata:
        metadata["turns"] = records.count_turns(messages)
    return {"id": record["id"], "messages": messages, "metadata": metadata}


# What is left out, and what is chosen


def outside(found: Iterable[Record], benchmark: "Benchmark", counts: Counter) -> Iterator[Record]:
    """Records that overlap nothing of `benchmark`."""
    for record in found:
        if benchmark.overlaps(record):
            counts["dropped (overlaps an excluded dataset)"] += 1
        else:
            yield record


def once(found: Iterable[Record], counts: Counter) -> Iterator[Record]:
    """Records whose intact conversation is in no record before: a chosen side may stand against several others."""
    seen: set[int] = set()
    for record in found:
        said = corrupt.intact(record)
        text = hash(_text(said))
        if text in seen and records.count_turns(said):  # what nobody answered is dropped for that
            counts["dropped (duplicate)"] += 1
        else:
            seen.add(text)
            yield record


def unique(made: Iterable[tuple[Record, dict]], counts: Counter) -> Iterator[dict]:
    """Drop repeated texts, and give records that share an id with another text an id of their own.

    Takes (record, what was made of it).
    """
    texts: set[int] = set()
    ids: set[int] = set()
    for record, result in made:
        text = hash(
            (
                _told_apart(record, result),
                result.get("branch"),
                *(_text(side) for side in sides(result)),
            )
        )
        if text in texts:
            counts["dropped (duplicate)"] += 1
            continue
        texts.add(text)
        identity = hash(tuple(result.get(name) for name in IDENTITY_FIELDS))
        if identity in ids:
            counts["ids made unique"] += 1
            result = {**result, "id": f"{result['id']}-{content_id(*sides(result))}"}
        ids.add(identity)
        yield result


def _told_apart(record: Record, result: dict) -> object:
    """The id, where equal texts are no duplicates: two people's votes, or rows that a benchmark counts one by one."""
    if "messages" in result:
        candidate = result is record and "correct" in (record.get("metadata") or {})
        return (result["id"], result.get("sample")) if candidate else None
    vote = "a" in record and "a" in result and "winner" in record
    return result["id"] if vote or records.lookup(result, "subset") else None


def _text(messages: list[Message]) -> tuple:
    return tuple((message["role"], message["content"]) for message in messages)


def choose(results: Iterable[dict], count: int, seed: int, counts: Counter) -> Iterator[dict]:
    """`count` results, each with the same chance (reservoir sampling, Vitter's algorithm R), in their order."""
    rng = random.Random(seed)
    kept: list[tuple[int, dict]] = []
    for index, result in enumerate(results):
        if index < count:
            kept.append((index, result))
        elif (slot := rng.randrange(index + 1)) < count:
            kept[slot] = (index, result)
    counts["fewer than asked for"] += count - len(kept)
    for _, result in sorted(kept, key=itemgetter(0)):
        yield result


def sides(record: dict) -> list[list[Message]]:
    return [record[name] for name in side_names(record)]


def tokens(messages: list[Message]) -> int:
    """About how many tokens a conversation has: a quarter of its characters."""
    return records.count_characters(messages) // CHARACTERS_A_TOKEN


class Benchmark:
    """The prompts of datasets that must stay out: their first messages, and every 13 words in a row."""

    def __init__(self, found: Iterable[Record]):
        self._first: set[str] = set()
        self._grams: set[int] = set()
        for record in found:
            for said in _asked(record):
                self._first.add(" ".join(said[0]))
                self._grams.update(gram for words in said for gram in _grams(words))

    def overlaps(self, record: Record) -> bool:
        """Whether a record begins with one of the prompts, or any user message shares 13 words in a row with one."""
        return any(
            " ".join(said[0]) in self._first
            or any(gram in self._grams for words in said for gram in _grams(words))
            for said in _asked(record)
        )


def _asked(record: Record) -> Iterator[list[list[str]]]:
    """For each side, its user messages as lower-case words; one without any, "???", is a word itself."""
    for side in sides(record):
        texts = [
            message["content"].strip().casefold() for message in side if message["role"] == "user"
        ]
        if texts:
            yield [WORD.findall(text) or [text] for text in texts]


def _grams(words: list[str]) -> Iterator[int]:
    return (hash(tuple(words[start : start + GRAM])) for start in range(len(words) - GRAM + 1))
