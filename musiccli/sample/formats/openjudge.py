"""OpenJudge: an `evaluation_sample` with an input and labelled outputs."""

from collections.abc import Iterator
from typing import Any

from musiccli.core.errors import RecordError
from musiccli.core.records import Record
from musiccli.core.row_messages import (
    assistant_message,
    join_user_messages,
    nested_value,
    read_messages,
)
from musiccli.sample.columns import Format, make_record, row_labels


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """The output labelled chosen over the one labelled rejected."""
    sample = nested_value(row, "evaluation_sample", dict)
    history = join_user_messages(read_messages(row, "evaluation_sample.input"))
    sides = {
        label: [*history, assistant_message(_output_text(row, label))]
        for label in ("chosen", "rejected")
    }
    labels = row_labels(sample.get("data_info")) | row_labels(row.get("extra_metadata"))
    yield make_record(row, source, sides, labels)


def _output_text(row: Record, label: str) -> Any:
    """The text of the only output with this label."""
    outputs = [
        output
        for output in nested_value(row, "evaluation_sample.outputs", list)
        if isinstance(output, dict) and output.get("content_label") == label
    ]
    if len(outputs) != 1:
        raise RecordError(
            f"{len(outputs)} outputs are labelled {label}; there should be one",
            field="evaluation_sample.outputs",
            record=row,
        )
    return outputs[0].get("content")


FORMATS = [Format("OpenJudge", order=10, columns=frozenset({"evaluation_sample"}), read=read)]
