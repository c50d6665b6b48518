"""Parts of tokenized pairs on disk: each is what became of one batch of records."""

from pathlib import Path
from typing import Any

import orjson

from musiccli.core import json_text
from musiccli.core.errors import RecordError
from musiccli.core.records import Record
from musiccli.core.run_stats import Outcome, RunStats
from musiccli.train.pair_arrays import PairArrays
from musiccli.train.record_batches import Errors
from musiccli.train.tokenized_pairs import PairTokenizer


def write_part(tokenizer: PairTokenizer, lines: bytes, path: Path) -> None:
    """Tokenize a batch of records and write its part.

    Args:
        tokenizer: what makes pairs of records.
        lines: the records as JSONL, without a line end behind the last.
        path: of the part.
    """
    records = [Record(json_text.decode(line)) for line in lines.split(b"\n")] if lines else []
    result = tokenizer.tokenize(records)
    note = {
        "outcomes": outcome_rows(result.outcomes),
        "errors": [(index, error_fields(error)) for index, error in result.errors],
    }
    PairArrays.of(result.pairs).write(path, json_text.encode(note))


def read_part(path: Path) -> tuple[PairArrays, RunStats, Errors]:
    """The pairs of a part, what became of its records, and those that cannot be used.

    Raises:
        DamagedArraysError: it is not whole.
        OSError: it cannot be read.
    """
    arrays, note = PairArrays.map(path)
    fields = orjson.loads(note)
    errors = [(index, record_error(error)) for index, error in fields["errors"]]
    return arrays, outcome_counts(fields["outcomes"]), errors


def outcome_rows(outcomes: RunStats) -> list[list[Any]]:
    """Counts of outcomes for JSON."""
    return [[*outcome, count] for outcome, count in outcomes.counts.items()]


def outcome_counts(rows: list[list[Any]]) -> RunStats:
    """The counts that `outcome_rows` wrote."""
    outcomes = RunStats()
    outcomes.counts.update({Outcome(name, reason): count for name, reason, count in rows})
    return outcomes


def error_fields(error: RecordError) -> dict[str, Any]:
    """An error for JSON."""
    return {name: getattr(error, name) for name in ("problem", "field", "where", "record")}


def record_error(fields: dict[str, Any]) -> RecordError:
    """The error that `error_fields` wrote."""
    problem = fields.pop("problem")
    return RecordError(problem, **fields)
