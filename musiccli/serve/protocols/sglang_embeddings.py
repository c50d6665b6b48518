"""SGLang's POST /v1/embeddings as verl calls it for a reward: the embedding is one number.

The form is OpenAI's; the call is verl's experimental/reward_loop/reward_loop.py.
"""

from collections.abc import Sequence
from typing import Any

from musiccli.core.errors import RecordError
from musiccli.serve.protocol import (
    Body,
    Context,
    Protocol,
    Result,
    details,
    envelope,
    read_texts,
    refuse_fields,
)
from musiccli.serve.served_model import Item


def read(body: Body, _: Context) -> list[Item | RecordError]:
    """The texts or token ids of a request.

    Raises:
        RecordError: it has another form, or asks for another one of the reply.
    """
    refuse_fields(body, {"encoding_format": ("float",), "dimensions": ()})
    return read_texts(body, "input")


def write(_: Body, model: str, results: Sequence[Result]) -> dict[str, Any]:
    """The reply of OpenAI's embeddings, with `details` of each item."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": [result.turns[-1]],
            **details(result, per_turn=False),
        }
        for index, result in enumerate(results)
        if not isinstance(result, RecordError)
    ]
    return envelope("embd", model, data, results)


PROTOCOL = Protocol(
    paths=("/v1/embeddings",),
    fields=("input",),
    read=read,
    write=write,
)
