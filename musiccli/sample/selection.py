"""Which results are kept: duplicates are dropped, and some of the rest are chosen at random."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from random import Random
from typing import Any

from musiccli.core.messages import Message, count_turns, message_key
from musiccli.core.records import Record, content_id, identity_key, lookup, record_kind, side_names
from musiccli.core.reservoir import draw_sample
from musiccli.core.run_stats import RunStats
from musiccli.sample.corruptions import intact_messages


class RowIds:
    """Gives all records of a row one new id where an earlier row has taken the id of any.

    A row with the same texts keeps the id: its results are duplicates.
    """

    def __init__(self, stats: RunStats) -> None:
        """Count in `stats` the ids that are changed."""
        self._texts_by_identity: dict[int, int] = {}  # hashes of both
        self._stats = stats

    def make_unique(self, records: Sequence[Record]) -> None:
        """Change the ids of one row's records, or of none."""
        texts = hash(tuple(map(_texts, records)))
        identities = {identity_key(record) for record in records}
        if all(self._texts_by_identity.get(key, texts) == texts for key in identities):
            self._texts_by_identity.update(dict.fromkeys(identities, texts))
            return
        content = content_id(*(record[side] for record in records for side in side_names(record)))
        for record in records:
            record["id"] = f"{record['id']}-{content}"
            self._texts_by_identity[identity_key(record)] = texts
        self._stats.count("ids_made_unique", number=len(records))


def drop_duplicates(
    results_by_record: Iterable[tuple[Record, list[dict[str, Any]]]], stats: RunStats
) -> Iterator[dict[str, Any]]:
    """The results whose text no earlier result has. Repeated ids are made unique.

    All results of one record get the same new id where any of them needs one.

    Args:
        results_by_record: pairs of a record and the results made of it.
        stats: counts the duplicates, and the ids that had to be changed.
    """
    seen_texts: set[int] = set()
    seen_ids: set[int] = set()
    for record, results in results_by_record:
        unique = []
        for result in results:
            text = hash((repr(_separate_by(record, result)), _texts(result)))
            if text in seen_texts:
                stats.count("dropped", "duplicate", record=record)
            else:
                seen_texts.add(text)
                unique.append(result)
        if any(identity_key(result) in seen_ids for result in unique):
            stats.count("ids_made_unique", number=len(unique))
            content = content_id(*(record[side] for side in side_names(record)))
            unique = [{**result, "id": f"{result['id']}-{content}"} for result in unique]
        seen_ids.update(map(identity_key, unique))
        yield from unique


def _separate_by(record: Record, result: dict[str, Any]) -> object:
    """A value that makes results different although their texts are equal, or None.

    Two people's votes on the same texts are both kept, and so are equal rows of a benchmark. A
    conversation that is one side of a record belongs to the other side.
    """
    if record_kind(result) != "conversation":
        vote = record_kind(record) == record_kind(result) == "comparison" and "winner" in record
        return result["id"] if vote or lookup(result, "subset") else None
    if result is record:
        candidate = "correct" in (record.get("metadata") or {})
        return (result["id"], result.get("sample")) if candidate else result.get("branch")
    is_side = "branch" in result or "sample" in result
    return (_texts(record), result.get("branch"), result.get("sample")) if is_side else None


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


def _texts(record: Mapping[str, Any]) -> tuple[object, ...]:
    """The texts of all sides of a record, to be compared."""
    return tuple(_hashable(record[side]) for side in side_names(record))


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
