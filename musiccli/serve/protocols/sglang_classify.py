"""SGLang's POST /classify: `text` or `input_ids` -> an embedding of one number a text.

The definition is SGLang's docs on reward models; verl's SGLang engine calls it, too. The reply to
one text is one object, to several a list. One bad text is the error of the request.
"""

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from musiccli.core.errors import RecordError
from musiccli.serve.protocol import (
    Body,
    Context,
    Protocol,
    Result,
    details,
    read_texts,
    refuse_fields,
    token_count,
)
from musiccli.serve.served_model import Item


def read(body: Body, _: Context) -> list[Item | RecordError]:
    """The texts or token ids of a request.

    Raises:
        RecordError: it has another form.
    """
    refuse_fields(body, {"image_data": (), "lora_path": ()})
    return read_texts(body, _field(body))


def write(body: Body, _: str, results: Sequence[Result]) -> Any:
    """The reply of SGLang, with `details` in `meta_info`."""
    objects: list[dict[str, Any]] = [
        {
            "embedding": [result.turns[-1]],
            "meta_info": details(result, per_turn=False)
            | {
                "id": uuid4().hex,
                "finish_reason": None,
                "prompt_tokens": token_count(result),
            },
        }
        for result in results
        if not isinstance(result, RecordError)
    ]
    value = body[_field(body)]
    is_single = isinstance(value, str) or type(value[0]) is int
    return objects[0] if is_single else objects


def _field(body: Body) -> str:
    return "input_ids" if body.get("text") is None else "text"


PROTOCOL = Protocol(
    paths=("/classify",),
    fields=("text", "input_ids"),
    read=read,
    write=write,
)
