"""Rows in the shape of public datasets, and what the readers of formats make of a row."""

from pathlib import Path

import orjson
import pytest

from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.sample import formats
from musiccli.sample.config import Emit, SampleConfig
from musiccli.sample.sampler import sample

FORMATS = Path(__file__).parent.parent.parent / "shared" / "formats"
needs_formats = pytest.mark.skipif(
    not FORMATS.is_dir(), reason="rows of the datasets are not beside the repository"
)


def rows(name):
    """The rows of a JSONL file of `shared/formats`. Skips the test where there is no such folder."""
    if not FORMATS.is_dir():
        pytest.skip("rows of the datasets are not beside the repository")
    lines = (FORMATS / f"{name}.jsonl").read_bytes().splitlines()
    return [orjson.loads(line) for line in lines if line.strip()]


def read(row, source="", pairs=False, where="rows.jsonl:1"):
    """The records of one row, as plain dicts."""
    return [dict(record) for record in formats.read(Record(row, where), source, pairs=pairs)]


def emitted(*rows, emit="pairs", rejects=None, **settings):
    """What `sample` makes of rows, and its counts in words."""
    stats = RunStats(rejects)
    numbered = ((("", Record(row, f"rows.jsonl:{number}"))) for number, row in enumerate(rows, 1))
    results = list(sample(numbered, SampleConfig(emit=Emit(emit), **settings), stats=stats))
    return [dict(result) for result in results], stats.phrases()
