"""Parquet files, Arrow files and the tables of `datasets`, read as plain values.

The features that `datasets` declares in a file, such as Image and Audio, are never decoded:
decoding opens the paths and addresses that the rows name.
"""

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import orjson

from musiccli.core import json_text
from musiccli.core.records import Record

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 100  # rows that become Python objects at once


def read_parquet(path: str) -> Iterator[Record]:
    """The rows of a Parquet file."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    with pa.OSFile(path) as source, ParquetFile(source) as file:
        yield from table_rows(file.iter_batches(batch_size=BATCH_ROWS), path)


def read_arrow(path: str) -> Iterator[Record]:
    """The rows of an Arrow IPC file (also Feather) or of an Arrow stream, which may be a pipe."""
    import io

    import pyarrow as pa

    with open(path, "rb") as raw, pa.PythonFile(raw, mode="r") as source:
        is_file = isinstance(raw, io.BufferedReader) and raw.peek(6).startswith(b"ARROW1")
        if is_file:
            file = pa.ipc.open_file(source)
            batches: Iterable[pa.RecordBatch] = map(file.get_batch, range(file.num_record_batches))
        else:
            batches = pa.ipc.open_stream(source)
        yield from table_rows(batches, path)


def table_rows(batches: "Iterable[pa.RecordBatch | pa.Table]", name: str) -> Iterator[Record]:
    """The rows of tables as JSON.

    Dates become texts, decimals numbers, and bytes an object with their number, {"bytes": 7}.
    """
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            for row in _rows(batch.slice(start, BATCH_ROWS)):
                encoded = orjson.dumps(row, default=_json_value, option=orjson.OPT_NON_STR_KEYS)
                yield Record(orjson.loads(encoded), f"{name}[{number}]")
                number += 1


def _json_value(value: Any) -> float | dict[str, int] | None:
    """What stands for a value that has no JSON form; nothing for one of an unknown kind."""
    if isinstance(value, bytes):
        return {"bytes": len(value)}
    return float(value) if isinstance(value, Decimal) else None


def _rows(batch: "pa.RecordBatch | pa.Table") -> list[dict[str, Any]]:
    """Plain Python values of a small batch."""
    rows: list[dict[str, Any]] = _in_microseconds(batch).to_pylist()
    for field in batch.schema:
        if _holds_json(field.type):
            for row in rows:
                row[field.name] = _decode_json(row[field.name], field.type)
    return rows


def _in_microseconds(batch: "pa.RecordBatch | pa.Table") -> "pa.RecordBatch | pa.Table":
    """The batch with times in microseconds, Python's finest unit. pandas writes nanoseconds."""
    import pyarrow as pa

    for place, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            coarser = pa.timestamp("us", field.type.tz)
            column = batch.column(place).cast(coarser, safe=False)
            batch = batch.set_column(place, field.name, column)
    return batch


def _holds_json(type: "pa.DataType") -> bool:
    """Whether a column holds JSON texts that stand for values: the feature Json of `datasets`."""
    import pyarrow as pa

    if isinstance(type, pa.JsonType):
        return True
    return any(_holds_json(type.field(place).type) for place in range(type.num_fields))


def _decode_json(value: Any, type: "pa.DataType") -> Any:
    """A value of a column with every JSON text in it parsed."""
    import pyarrow as pa

    if value is None:
        return None
    if isinstance(type, pa.JsonType):
        return json_text.decode(value.encode())
    if isinstance(value, dict):
        return {name: _decode_json(item, type.field(name).type) for name, item in value.items()}
    if isinstance(value, list) and not pa.types.is_map(type):
        return [_decode_json(item, type.field(0).type) for item in value]
    return value
