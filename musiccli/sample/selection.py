"""Which results are kept: duplicates are dropped, and some of the rest are chosen at random."""

from collections.abc import Iterable, Iterator
from operator import itemgetter
from random import Random
from typing import Any

from musiccli.core.messages import Message, count_turns, message_key
from musiccli.core.records import IDENTITY_FIELDS, Record, content_id, lookup, side_names
from musiccli.core.reservoir import draw_sample
from musiccli.core.run_stats import RunStats
from musiccli.sample.corruptions import intact_messages


def drop_duplicates(
    results: Iterable[tuple[Record, dict[str, Any]]], stats: RunStats
) -> Iterator[dict[str, Any]]:
    """The results whose text no earlier result has. Repeated ids are made unique.

    Args:
        results: pairs of a record and a result made of it.
        stats: counts the duplicates, and the ids that had to be changed.
    """
    seen_texts: set[int] = set()
    seen_ids: set[int] = set()
    for record, result in results:
        texts = [_hashable(result[side]) for side in side_names(result)]
        text = hash((_separate_by(record, result), result.get("branch"), *texts))
        if text in seen_texts:
            stats.count("dropped", "duplicate", record=record)
            continue
        seen_texts.add(text)
        identity = hash(tuple(result.get(name) for name in IDENTITY_FIELDS))
        if identity in seen_ids:
            stats.count("ids_made_unique")
            content = content_id(*(result[side] for side in side_names(result)))
            result = {**result, "id": f"{result['id']}-{content}"}
        seen_ids.add(identity)
        yield result


def _separate_by(record: Record, result: dict[str, Any]) -> object:
    """A value that makes results different although their texts are equal, or None.

    Two people's votes on the same texts are both kept, and so are equal rows of a benchmark.
    """
    if "messages" in result:
        candidate = result is record and "correct" in (record.get("metadata") or {})
        return (result["id"], result.get("sample")) if candidate else None
    vote = "a" in record and "a" in result and "winner" in record
    return result["id"] if vote or lookup(result, "subset") else None


def drop_repeated_conversations(records: Iterable[Record], stats: RunStats) -> Iterator[Record]:
    """The records whose intact conversation no earlier record has.

    A dataset may hold the same chosen side beside several rejected ones.
    """
    seen: set[int] = set()
    for record in records:
        messages = intact_messages(record)
        text = hash(_hashable(messages))
        # records without a reply are dropped later, under a reason of their own
        if text in seen and count_turns(messages):
            stats.count("dropped", "duplicate", record=record)
        else:
            seen.add(text)
            yield record


def _hashable(messages: list[Message]) -> tuple[tuple[str, ...], ...]:
    return tuple(map(message_key, messages))


def choose(
    results: Iterable[dict[str, Any]], count: int, seed: int, stats: RunStats
) -> Iterator[dict[str, Any]]:
    """Choose `count` results at random, all with the same probability, and keep their order.

    All results are read before the first is yielded. `stats` counts how many are missing.
    """
    drawn, _ = draw_sample(enumerate(results), count, Random(seed))
    stats.count("fewer_than_asked_for", number=count - len(drawn))
    for _, result in sorted(drawn, key=itemgetter(0)):
        yield result
