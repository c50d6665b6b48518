"""vLLM's POST /pooling: the same requests as /classify -> a list of numbers a text.

The definition is vLLM's entrypoints/pooling/pooling/protocol.py; of its tasks, `classify` fits.
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
    is_per_turn,
    refuse_fields,
)
from musiccli.serve.protocols import vllm_classify
from musiccli.serve.served_model import Item

HARMLESS: dict[str, tuple[Any, ...]] = {
    "task": ("classify",),
    "encoding_format": ("float",),
    "dimensions": (),
}


def read(body: Body, context: Context) -> list[Item | RecordError]:
    """The conversations, texts or token ids of a request.

    Raises:
        RecordError: it has another form, or asks for other numbers.
    """
    refuse_fields(body, HARMLESS)
    return vllm_classify.read(body, context)


def write(body: Body, model: str, results: Sequence[Result]) -> dict[str, Any]:
    """The reply of vLLM, with `details` of each item."""
    data = [
        {
            "index": index,
            "object": "pooling",
            "data": [] if isinstance(result, RecordError) else [result.turns[-1]],
            **details(result, per_turn=is_per_turn(body)),
        }
        for index, result in enumerate(results)
    ]
    return envelope("pool", model, data, results)


PROTOCOL = Protocol(
    paths=("/pooling", "/v1/pooling"),
    fields=("messages", "input"),
    read=read,
    write=write,
    names_errors=True,
)
