"""Turns that a dataset writes as pairs: what the user wrote, and the reply."""

from musiccli.core.errors import RecordError
from musiccli.core.messages import Message
from musiccli.core.records import Record
from musiccli.sample.columns import assistant_message, nested_value, user_message

KEYS = (("human", "assistant"), ("input", "output"), ("user", "bot"))


def read_turn_pairs(row: Record, field: str) -> list[Message]:
    """The messages of a column that holds turns, or is null or missing.

    A turn is [user's text, reply], or an object whose keys are one pair of KEYS.

    Raises:
        RecordError: the column is no list of such turns.
    """
    if row.get(field) is None:
        return []
    messages: list[Message] = []
    for index, turn in enumerate(nested_value(row, field, list)):
        texts = turn if isinstance(turn, list) else None
        if isinstance(turn, dict):
            texts = next(
                ([turn[key] for key in keys] for keys in KEYS if turn.keys() >= {*keys}), None
            )
        if texts is None or len(texts) != 2:
            problem = "is no turn of a user's text and a reply"
            raise RecordError(problem, field=f"{field}[{index}]", record=row)
        messages += [user_message(texts[0]), assistant_message(texts[1])]
    return messages
