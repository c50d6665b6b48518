"""OpenRLHF's POST /get_reward: texts in the actor's template -> rewards.

The definition is OpenRLHF's utils/agent.py, which calls it, and cli/serve_rm.py. `prompts` and
`labels` come along and are not needed. A reward that cannot be computed is null, and `errors` says
by index why.
"""

from collections.abc import Sequence
from typing import Any

from musiccli.core.errors import RecordError
from musiccli.serve.protocol import (
    Body,
    Context,
    Protocol,
    Result,
    is_per_turn,
    read_actor_texts,
    token_count,
)
from musiccli.serve.served_model import Item


def read(body: Body, context: Context) -> list[Item | RecordError]:
    """The conversations in `query`.

    Raises:
        RecordError: it is no list of texts.
    """
    return read_actor_texts(body, "query", context)


def write(body: Body, _: str, results: Sequence[Result]) -> dict[str, Any]:
    """The reply of OpenRLHF's server. Its trainer logs `extra_logs`, lists of numbers."""
    rewards = [None if isinstance(result, RecordError) else result.turns[-1] for result in results]
    cut = [float(not isinstance(result, RecordError) and result.item.was_cut) for result in results]
    reply: dict[str, Any] = {
        "rewards": rewards,
        "scores": rewards,
        "extra_logs": {"truncated": cut, "tokens": [token_count(result) for result in results]},
    }
    if is_per_turn(body):
        turns = [None if isinstance(result, RecordError) else result.turns for result in results]
        reply["turn_scores"] = turns
    errors = [
        {"index": index, "message": str(result)}
        for index, result in enumerate(results)
        if isinstance(result, RecordError)
    ]
    return reply | ({"errors": errors} if errors else {})


PROTOCOL = Protocol(
    paths=("/get_reward",),
    fields=("query",),
    read=read,
    write=write,
    names_errors=True,
)
