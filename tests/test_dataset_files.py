"""Files of rows: CSV, TSV, Arrow, Parquet and JSON lists, read as they are and in bounded memory."""

import csv
import gzip
import io
import json
import os
import re
import threading
import tracemalloc
from datetime import UTC, datetime

import pytest
from backports import zstd
from build import talk

from musiccli.core import jsonl
from musiccli.core.errors import InputError, RecordError
from musiccli.core.jsonl import Rejects
from musiccli.core.run_stats import RunStats
from musiccli.sample import formats, sources
from musiccli.sample.json_lists import ItemSplitter

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def read(path, rejects=None):
    return [
        (row.where.removeprefix(str(path)), dict(row))
        for _, row in sources.read_rows([str(path)], stats=RunStats(rejects))
    ]


def write(path, data):
    pack = {".gz": gzip.compress, ".zst": zstd.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(data.encode() if isinstance(data, str) else data))
    return path


# CSV and TSV

TABLE = 'prompt,chosen,note\n"two\nlines",a,\nq,"b, ""c""",x\n'
TABLE_ROWS = [
    (":2", {"prompt": "two\nlines", "chosen": "a"}),
    (":4", {"prompt": "q", "chosen": 'b, "c"', "note": "x"}),
]


@pytest.mark.parametrize(
    "name, data",
    [
        ("t.csv", TABLE),
        ("t.csv.gz", TABLE),
        ("t.csv.zst", TABLE),
        ("t.csv", "\ufeff" + TABLE),
        ("t.csv", ("\ufeff" + TABLE).encode("utf-16-le")),
        ("t.csv", ("\ufeff" + TABLE).encode("utf-16-be")),
        ("t.tsv", 'prompt\tchosen\tnote\n"two\nlines"\ta\t\nq\t"b, ""c"""\tx\n'),
        ("t.csv", 'prompt;chosen;note\n"two\nlines";a;\nq;"b, ""c""";x\n'),
    ],
    ids=["plain", "gz", "zst", "bom", "utf-16-le", "utf-16-be", "tsv", "semicolons"],
)
def test_a_table_of_texts_is_read_and_rows_are_named_by_their_first_line(tmp_path, name, data):
    assert read(write(tmp_path / name, data)) == TABLE_ROWS


def test_a_cell_is_the_text_that_was_written(tmp_path):
    texts = [
        "ünï\u2028code 😀",
        " spaces ",
        "a\r\nb\rc",
        "[1, 2]",
        '["a"]',
        '{"a": 1}',
        "null",
        "=1",
    ]
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["text"], *([text] for text in texts)])
    rows = read(write(tmp_path / "t.csv", buffer.getvalue().encode()))
    assert [row["text"] for _, row in rows] == texts


def test_a_cell_of_messages_is_a_list(tmp_path):
    messages = talk("q", "a")
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["messages"], [json.dumps(messages)]])
    assert read(write(tmp_path / "t.csv", buffer.getvalue())) == [(":2", {"messages": messages})]


def test_an_empty_cell_is_null(tmp_path):
    ((_, row),) = sources.read_rows([str(write(tmp_path / "t.csv", "a,b\n,x\n"))])
    assert (dict(row), row.null_fields) == ({"b": "x"}, {"a"})


def test_columns_without_a_name_are_named_by_their_place(tmp_path):
    assert read(write(tmp_path / "t.csv", ",prompt\n0,q\n")) == [
        (":2", {"column_1": "0", "prompt": "q"})
    ]


BAD_ROWS = {
    "few": ("b", ":3: has 1 cells, but the header names 2 columns"),
    "many": ("b,c,d", ":3: has 3 cells, but the header names 2 columns"),
    "latin": (b"caf\xe9,c", ":3: prompt: is not UTF-8; convert the file first"),
    "quote": ('b,"c"d', ":3: is no row of the table: ',' expected after '\"'"),
    "python": (
        "b,\"[{'role': 'user', 'content': 'q'}]\"",
        ":3: chosen: holds messages as Python writes them; write them as JSON (json.dumps)",
    ),
}


@pytest.mark.parametrize("line, error", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_line_and_can_be_skipped(tmp_path, line, error):
    line = line.encode() if isinstance(line, str) else line
    path = write(tmp_path / "t.csv", b"prompt,chosen\nq,a\n" + line + b"\nr,s\n")
    with pytest.raises(RecordError) as caught:
        read(path)
    assert str(caught.value) == f"{path}{error}"
    kept = tmp_path / "rejects.jsonl"
    rejects = Rejects(skip=True, path=str(kept))
    assert [where for where, _ in read(path, rejects)] == [":2", ":4"]
    rejects.close()
    assert json.loads(kept.read_bytes())["error"] == f"{path}{error}"


@pytest.mark.parametrize(
    "data, error",
    [
        ("a,b,a\n1,2,3\n", "two columns have the name a"),
        ("\nq,a\n", "its first line is empty; it should name the columns"),
        (b"\xff\xfe\x00", "is not utf-16-le: truncated data"),
    ],
)
def test_a_header_that_cannot_be_used_is_one_line(tmp_path, data, error):
    path = write(tmp_path / "t.csv", data)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value) == f"{path}: {error}"


@pytest.mark.parametrize(
    "row",
    ["x" * 3000, '"' + "x\n" * 1500, ",".join("x" * 3000)],
    ids=["line", "quoted", "cells"],
)
def test_a_row_that_is_too_long_is_not_read_whole(tmp_path, monkeypatch, row):
    monkeypatch.setattr(jsonl, "MAX_LINE", 1000)
    path = write(tmp_path / "t.csv", f"prompt\nq\n{row}\n")
    with pytest.raises(RecordError) as caught:
        read(path)
    assert str(caught.value).startswith(
        f"{path}:3: is no row of the table: the row is longer than "
    )


# Arrow


def arrow(path, rows, opener):
    table = pa.Table.from_pylist(rows)
    with opener(str(path), table.schema) as writer:
        for batch in table.to_batches(max_chunksize=2):
            writer.write_batch(batch)
    return path


ROWS = [{"messages": talk("q", "a"), "score": number / 2} for number in range(5)]


@pytest.mark.parametrize("name", ["t.arrow", "t.ipc", "t.feather"])
@pytest.mark.parametrize("opener", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_files_and_streams_are_read(tmp_path, name, opener):
    path = arrow(tmp_path / name, ROWS, opener)
    assert read(path) == [(f"[{number}]", row) for number, row in enumerate(ROWS)]


def test_an_arrow_stream_may_come_through_a_pipe(tmp_path):
    data = arrow(tmp_path / "file.arrow", ROWS, pa.ipc.new_stream).read_bytes()
    pipe = tmp_path / "pipe.arrow"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    assert [row for _, row in read(pipe)] == ROWS
    writer.join()


def test_a_damaged_arrow_file_is_one_line(tmp_path):
    path = write(tmp_path / "t.arrow", b"ARROW1 torn")
    with pytest.raises(InputError, match=re.escape(f"{path}: cannot be read as Arrow: ")):
        read(path)


# Parquet, and the features that `datasets` declares in it

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def pictures(tmp_path):
    """A table whose features are an image and a sound, each with a path and an address."""
    table = pa.table(
        {
            "prompt": ["q", "r"],
            "image": pa.array(
                [
                    {"bytes": None, "path": "http://127.0.0.1:9/x.png"},
                    {"bytes": None, "path": str(tmp_path / "secret.png")},
                ],
                IMAGE,
            ),
            "sound": pa.array([{"bytes": None, "path": "hf://nobody/x.wav"}] * 2, IMAGE),
        }
    )
    features = {
        "prompt": {"dtype": "string", "_type": "Value"},
        "image": {"_type": "Image"},
        "sound": {"_type": "Audio"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return table.replace_schema_metadata(metadata)


def refuse_connections(monkeypatch):
    """Fail the test at any attempt to reach another machine."""
    import socket

    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_parquet_file_opens_no_path_and_no_address(tmp_path, pictures, monkeypatch):
    refuse_connections(monkeypatch)
    path = tmp_path / "t.parquet"
    parquet.write_table(pictures, path)
    assert [row["image"]["path"] for _, row in read(path)] == [
        "http://127.0.0.1:9/x.png",
        str(tmp_path / "secret.png"),
    ]


@pytest.mark.slow
def test_a_saved_dataset_opens_no_path_and_no_address(tmp_path, pictures, monkeypatch):
    datasets = pytest.importorskip("datasets")
    saved = tmp_path / "saved"
    datasets.Dataset(pictures.replace_schema_metadata({})).save_to_disk(str(saved))
    # save_to_disk would load the pictures, so the features are declared afterwards
    (data,) = saved.glob("*.arrow")
    with pa.ipc.new_stream(str(data), pictures.schema) as writer:
        writer.write_table(pictures)
    features = json.loads(pictures.schema.metadata[b"huggingface"])["info"]["features"]
    (saved / "dataset_info.json").write_text(json.dumps({"features": features}))
    assert datasets.load_from_disk(str(saved)).features["image"] == datasets.Image()
    refuse_connections(monkeypatch)
    rows = read(tmp_path / "saved")
    assert [row["sound"] for _, row in rows] == [{"bytes": None, "path": "hf://nobody/x.wav"}] * 2


def test_values_of_a_parquet_file_are_json(tmp_path):
    time = datetime(2024, 1, 31, 12, tzinfo=UTC)
    nanoseconds = pa.array([1706702400000000001], pa.timestamp("ns", "UTC"))
    texts = pa.array(['{"city": "Rome"}', None]).cast(pa.json_())
    arguments = pa.ListArray.from_arrays([0, 2], texts)  # the feature List(Json()) of datasets
    table = pa.table({"us": [time], "ns": nanoseconds, "list": arguments, "bytes": [b"\xff"]})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet") == [
        (
            "[0]",
            {
                "us": "2024-01-31T12:00:00+00:00",
                "ns": "2024-01-31T12:00:00+00:00",
                "list": [{"city": "Rome"}, None],
                "bytes": {"bytes": 1},
            },
        )
    ]


@pytest.mark.parametrize(
    "type, value",
    [
        (pa.binary(), b"\x89PNG"),
        (pa.large_binary(), b"\x89PNG"),
        (pa.binary(4), b"\x89PNG"),
        (IMAGE, {"bytes": b"\x89PNG", "path": None}),
        (IMAGE, {"bytes": None, "path": "cat.png"}),
        (pa.list_(IMAGE), [{"bytes": b"\x89PNG", "path": None}]),
    ],
    ids=str,
)
def test_a_column_of_bytes_is_refused_by_name_and_one_without_any_is_read(type, value, tmp_path):
    pairs = {"prompt": ["q", "r"], "chosen": ["a", "b"], "rejected": ["c", "d"]}
    table = pa.table(pairs | {"screen": pa.array([None, value], type)})
    path = tmp_path / "t.parquet"
    parquet.write_table(table, path)
    (source, first), (_, second) = sources.read_rows([str(path)])
    assert [record["id"] for record in formats.read(first, source, pairs=True)]
    with pytest.raises(RecordError, match=r"t.parquet\[1\]: screen: holds bytes, as pictures"):
        list(formats.read(second, source, pairs=True))


# JSON lists


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 16])
def test_items_are_split_wherever_the_chunks_end(size):
    items = [{"a": 'x"]},[\\'}, {"b": [1, [2, {"c": "\\\\"}]]}, 3, "[", None, {}]
    data = json.dumps(items, indent=1).encode() + b" \n"
    splitter, split = ItemSplitter(), []
    for start in range(0, len(data), size):
        split += splitter.feed(data[start : start + size])
    assert [json.loads(item) for item in split] == items
    assert splitter.ended and splitter.count == len(items)


@pytest.mark.parametrize(
    "data, error",
    [
        ('[{"a": 1}, {"b"', ": is not JSON: the file ends within item 1"),
        ('[{"a": 1}', ": is not JSON: the file ends within item 0"),
        ('[{"a": 1}] x', ": is not JSON: something follows the end of its list"),
        ('[{"a": 1}]\n[{"b": 1}]', ": is not JSON: something follows the end of its list"),
    ],
)
def test_a_list_that_is_not_whole_is_one_line(tmp_path, data, error):
    path = write(tmp_path / "t.json", data)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value) == f"{path}{error}"


@pytest.mark.parametrize(
    "item, error",
    [
        ('{"a": tru}', "[1]: is not JSON: "),
        ("", "[1]: is not JSON: "),
        ('"text"', "[1]: is JSON, but not an object; a record is {...}"),
        ('{"a": "' + "x" * 2000 + '"}', "[1]: the line is longer than "),
    ],
)
def test_a_bad_item_is_named_and_can_be_skipped(tmp_path, monkeypatch, item, error):
    monkeypatch.setattr(jsonl, "MAX_LINE", 1000)
    monkeypatch.setattr("musiccli.sample.json_lists.CHUNK", 100)
    path = write(tmp_path / "t.json.gz", f'[{{"a": 1}}, {item}, {{"b": 2}}]')
    if "longer" not in error:
        with pytest.raises(RecordError, match=re.escape(f"{path}{error}")):
            read(path)
    reports = []
    rejects = Rejects(skip=True, report=reports.append)
    assert read(path, rejects) == [("[0]", {"a": 1}), ("[2]", {"b": 2})]
    assert len(reports) == 1 and reports[0].startswith(f"{path}{error}")


def test_a_list_that_unpacks_to_much_is_read_in_little_memory(tmp_path):
    item = b'{"prompt": "' + b"x" * 100_000 + b'"}'
    path = write(tmp_path / "t.json.gz", b"[" + b",".join([item] * 100) + b"]")  # 10 MB
    tracemalloc.start()
    count = sum(1 for _ in sources.read_rows([str(path)]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 100 and peak < 2 << 20


def test_an_item_without_an_end_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE", 1 << 20)
    path = write(tmp_path / "t.json.zst", b'[{"prompt": "' + b"x" * (16 << 20))
    tracemalloc.start()
    with pytest.raises(InputError, match="ends within item 0"):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 << 20
