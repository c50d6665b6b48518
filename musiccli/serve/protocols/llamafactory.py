"""LLaMA-Factory's reward server: {"model", "messages": [text]} -> {"scores"}.

The definitions are its train/ppo/ppo_utils.py, which calls it, and api/protocol.py. The texts are
in the template of the model in training. The trainer always calls the model "model", and reads
`scores` alone, so one bad text is the error of the request.
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
    is_per_turn,
    read_actor_texts,
    refuse_fields,
)
from musiccli.serve.served_model import Item


def read(body: Body, context: Context) -> list[Item | RecordError]:
    """The conversations in `messages`.

    Raises:
        RecordError: it is no list of texts, or asks for another length.
    """
    refuse_fields(body, {"max_length": ()})
    return read_actor_texts(body, "messages", context)


def write(body: Body, model: str, results: Sequence[Result]) -> dict[str, Any]:
    """The reply of LLaMA-Factory's server."""
    rewards = [result for result in results if not isinstance(result, RecordError)]
    reply: dict[str, Any] = {
        "id": f"scoreval-{uuid4().hex}",
        "object": "score.evaluation",
        "model": model,
        "scores": [reward.turns[-1] for reward in rewards],
        "truncated": [reward.item.was_cut for reward in rewards],
    }
    return reply | (
        {"turn_scores": [reward.turns for reward in rewards]} if is_per_turn(body) else {}
    )


PROTOCOL = Protocol(
    paths=("/v1/score/evaluation",),
    fields=("messages",),
    read=read,
    write=write,
    any_model_name=True,
)
