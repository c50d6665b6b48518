"""vLLM's POST /v1/score: a prompt and replies to it -> the score of each.

The definition is vLLM's entrypoints/pooling/scoring/protocol.py, for pairs of texts. vLLM would
join two texts; a reward model reads them as a user's message and the assistant's reply. The first
field holds one text for all of the second, or as many.
"""

from collections.abc import Sequence
from typing import Any

from musiccli.core.errors import RecordError
from musiccli.core.records import Record
from musiccli.serve.protocol import (
    Body,
    Context,
    Protocol,
    Result,
    details,
    envelope,
    is_per_turn,
    read_strings,
    refuse_fields,
)
from musiccli.serve.served_model import Item

# vLLM has had several names for the two texts.
NAMES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
HARMLESS: dict[str, tuple[Any, ...]] = {
    "use_activation": (False,),
    "activation": (False,),
    "truncate_prompt_tokens": (),
}


def read(body: Body, _: Context) -> list[Item | RecordError]:
    """A conversation of one turn for each pair of texts.

    Raises:
        RecordError: the body has another form, or asks for other scores.
    """
    refuse_fields(body, HARMLESS)
    pairs = [pair for pair in NAMES if all(body.get(name) is not None for name in pair)]
    if not pairs:
        raise RecordError("needs text_1, the prompt, and text_2, the reply or replies")
    prompts, replies = (read_strings(body, name) for name in pairs[0])
    if len(prompts) == 1:
        prompts = prompts * len(replies)
    if len(prompts) != len(replies):
        problem = f"holds {len(prompts)} texts for {len(replies)} replies"
        raise RecordError(problem, field=pairs[0][0])
    return [
        Record(
            {
                "messages": [
                    {"role": "user", "content": prompt},
                    {"role": "assistant", "content": reply},
                ]
            }
        )
        for prompt, reply in zip(prompts, replies, strict=True)
    ]


def write(body: Body, model: str, results: Sequence[Result]) -> dict[str, Any]:
    """The reply of vLLM, with `details` of each item."""
    data = [
        {
            "index": index,
            "object": "score",
            "score": None if isinstance(result, RecordError) else result.turns[-1],
            **details(result, per_turn=is_per_turn(body)),
        }
        for index, result in enumerate(results)
    ]
    return envelope("score", model, data, results)


PROTOCOL = Protocol(
    paths=("/score", "/v1/score"),
    fields=tuple(name for pair in NAMES for name in pair),
    read=read,
    write=write,
    names_errors=True,
)
