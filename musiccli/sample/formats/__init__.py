"""The dataset formats, a family in each file of this folder. A new format is a new file.

A file holds FORMATS: a list of Format, each with the columns that a row must have and the function
that reads it. All files of this folder are imported; no list names them. The file `columns.py`
beside this folder holds what the readers share.

Readers keep the texts as they are. A row with two successive messages of the same role is refused,
because it does not tell which of the two was judged. See `join_user_messages` for exceptions.
"""

import pkgutil
from collections.abc import Iterator
from importlib import import_module

from musiccli.core.errors import InputError, RecordError
from musiccli.core.messages import refuse_media
from musiccli.core.records import Record, parse_any
from musiccli.core.row_messages import refuse_template, text_or_messages
from musiccli.sample.columns import Format, Reader, Row


def _find_formats() -> list[Format]:
    """The formats of all files in this folder, in the order in which they are tried."""
    modules = [import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__)]
    return sorted(
        (format for module in modules for format in module.FORMATS),
        key=lambda format: format.order,
    )


FORMATS = _find_formats()
PROMPT_COLUMNS = {"prompt", "completion", "system", "tools"}  # many formats read them if they exist


def read(
    row: Record, source: str = "", *, pairs: bool = False, label: str | None = None
) -> Iterator[Record]:
    """Read the records that one row holds, and check each.

    Args:
        row: a row of a dataset. A text in it that holds messages as JSON becomes these messages.
        source: the name of the dataset.
        pairs: whether to give preferences where the row can become either preferences or
            conversations.
        label: the label that ranks a row's replies, where its format has several.

    Raises:
        RecordError: the row has no known format, or cannot be read. It names the column.
        InputError: the row's format has no such label.
    """
    refuse_media(row)
    for column, value in row.items():
        if isinstance(value, str):
            row[column] = text_or_messages(column, value, row)
    format = recognize(row)
    if isinstance(row, Row):
        row.columns_read = set(format.columns)  # without those that other formats looked at
    reader = _reader(format, pairs, label)
    try:
        for record in reader(row, source):
            _refuse_templates(row)
            yield parse_any(Record(record, row.where))
    except RecordError as error:
        error.record = row  # not the record that was made of it
        raise
    except KeyError as error:
        column = str(error.args[0])
        problem = "is null" if column in row.null_fields else "is missing"
        problem += f"; rows of the format {format.name} have it"
        raise RecordError(problem, field=column, record=row) from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # a part of the row is missing, or of another kind
        raise RecordError(
            f"is not what a row of the format {format.name} holds "
            f"({type(error).__name__}: {error})",
            record=row,
        ) from error


def _refuse_templates(row: Record) -> None:
    """Raises RecordError for a text that was read and that a chat template has written."""
    if isinstance(row, Row):
        for column in row.columns_read:
            refuse_template(row, column, dict.get(row, column))


def _reader(format: Format, pairs: bool, label: str | None) -> Reader:
    if label is not None:
        if label not in format.labels:
            labels = f"the labels {', '.join(format.labels)}" if format.labels else "one label only"
            raise InputError(f"`label` {label}: rows of the format {format.name} have {labels}")
        return format.labels[label]
    return format.read_pairs if pairs and format.read_pairs else format.read


def recognize(row: Record) -> Format:
    """The first format all of whose columns the row has, and which its values fit.

    A column that is null is absent. But a row of replies whose label is null is no prompt alone:
    it has a format of which some columns are null where no other format reads all the rest.
    """
    with_nulls = Record(row)
    with_nulls.update(dict.fromkeys(row.null_fields))
    incomplete: list[tuple[Format, frozenset[str]]] = []
    for format in FORMATS:
        if not (with_nulls.keys() >= format.columns and format.fits(with_nulls)):
            continue
        columns = format.columns - row.null_fields
        if columns == format.columns:
            needed = format.columns | PROMPT_COLUMNS
            return next((earlier for earlier, rest in incomplete if rest - needed), format)
        if columns:
            incomplete.append((format, columns))
    if incomplete:
        return incomplete[0][0]
    raise RecordError(
        f"no known format has the columns {', '.join(row) or '(none)'}; say what they hold, as "
        "`columns` prompt=question,completion=answer; `describe` shows what they are",
        record=row,
    )
