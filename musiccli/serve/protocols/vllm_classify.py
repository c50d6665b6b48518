"""vLLM's POST /classify, which verl calls, too: messages, text or token ids -> one class a text.

The definition is vLLM's entrypoints/pooling/classify/protocol.py. `probs` holds the reward itself,
without a sigmoid or softmax. Beyond it: several conversations in `messages`, their `tools`,
`per_turn`, and an error by index.
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
    read_messages,
    read_texts,
    refuse_fields,
)
from musiccli.serve.served_model import Item

# Values that ask for what is done anyway; others would be other tokens or other numbers.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "use_activation": (False,),
    "activation": (False,),
    "softmax": (False,),
    "add_generation_prompt": (False,),
    "continue_final_message": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "truncate_prompt_tokens": (),
    "mm_processor_kwargs": ({},),
    "add_special_tokens": (True, False),
}


def read(body: Body, _: Context) -> list[Item | RecordError]:
    """The conversations, texts or token ids of a request.

    Raises:
        RecordError: it has another form, or asks for other scores.
    """
    refuse_fields(body, HARMLESS)
    if body.get("messages") is None:
        return read_texts(body, "input")
    refuse_fields(body, {"add_special_tokens": (False,)})
    return read_messages(body)


def write(body: Body, model: str, results: Sequence[Result]) -> dict[str, Any]:
    """The reply of vLLM, with `details` of each item."""
    data = [
        {
            "index": index,
            "label": None if isinstance(result, RecordError) else "reward",
            "probs": [] if isinstance(result, RecordError) else [result.turns[-1]],
            "num_classes": 0 if isinstance(result, RecordError) else 1,
            **details(result, per_turn=is_per_turn(body)),
        }
        for index, result in enumerate(results)
    ]
    return envelope("classify", model, data, results)


PROTOCOL = Protocol(
    paths=("/classify", "/v1/classify"),
    fields=("messages", "input"),
    read=read,
    write=write,
    names_errors=True,
)
