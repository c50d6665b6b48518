"""Which records are shown."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from musiccli.core.records import Record, lookup
from musiccli.core.run_stats import RunStats
from musiccli.show.view import field_text


def select_records(
    records: Iterable[Record],
    *,
    ids: Sequence[str] = (),
    where: Sequence[tuple[str, str]] = (),
    count: int | None = None,
    stats: RunStats | None = None,
) -> Iterator[Record]:
    """The first `count` records that match; all of them if it is None.

    Args:
        ids: a record matches with any of these; with any id if there are none.
        where: (field, value) pairs, which all have to hold. A field may be a dotted path.
    """
    stats = stats or RunStats()
    for record in islice(filter(lambda record: _matches(record, ids, where), records), count):
        stats.count("shown")
        yield record


def _matches(record: Record, ids: Sequence[str], where: Sequence[tuple[str, str]]) -> bool:
    if ids and str(record["id"]) not in ids:
        return False
    return all(field_text(lookup(record, field)) == value for field, value in where)
