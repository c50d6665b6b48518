"""What a protocol is: where it is spoken, what its requests hold, and how its replies look.

Each file of protocols/ sets PROTOCOL; a new file is a new protocol.
"""

import pkgutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any
from uuid import uuid4

from musiccli.core.errors import RecordError, kind_of
from musiccli.core.records import Record
from musiccli.serve.actor_template import ActorTemplate
from musiccli.serve.served_model import Item, Reply, Reward

Body = Mapping[str, Any]  # of a request
TAKEN = ("messages", "tools")  # the fields of a conversation that are read
Result = Reward | RecordError


@dataclass(frozen=True)
class Context:
    """What reading a body may need beside it.

    Attributes:
        actor_template: the template of the model in training, where its text may come.
    """

    actor_template: ActorTemplate | None = None


@dataclass(frozen=True)
class Protocol:
    """A form of requests and replies.

    Attributes:
        paths: where it is spoken.
        fields: a body that holds one of these is in this form.
        read: the items of a body, or errors in their place; RecordError where it has another
            form.
        write: the reply, from the body, the model's name and the results.
        names_errors: whether replies hold errors beside rewards. Where they cannot, one bad item
            is the error of the whole request.
        any_model_name: whether the client sends a name that means nothing.
    """

    paths: tuple[str, ...]
    fields: tuple[str, ...]
    read: Callable[[Body, Context], list[Item | RecordError]]
    write: Callable[[Body, str, Sequence[Result]], Any]
    names_errors: bool = False
    any_model_name: bool = False


@cache
def protocols_by_path() -> dict[str, list[Protocol]]:
    """The protocols that are spoken at each path."""
    from musiccli.serve import protocols

    by_path: dict[str, list[Protocol]] = {}
    for module in pkgutil.iter_modules(protocols.__path__, f"{protocols.__name__}."):
        protocol: Protocol = import_module(module.name).PROTOCOL
        for path in protocol.paths:
            by_path.setdefault(path, []).append(protocol)
    return by_path


def choose_protocol(path: str, body: Body) -> Protocol:
    """The protocol of a body, by its fields.

    Raises:
        RecordError: it has none of the fields that say what is to be scored.
    """
    protocols = protocols_by_path()[path]
    for protocol in protocols:
        if any(body.get(field) is not None for field in protocol.fields):
            return protocol
    names = " or ".join(field for protocol in protocols for field in protocol.fields)
    raise RecordError(f"the body has no {names}")


def refuse_fields(body: Body, harmless: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise RecordError for a field whose value would ask for other scores than ours.

    Args:
        body: of the request.
        harmless: the values of each field that ask for what we do anyway. A field that is absent
            or null is harmless.
    """
    for field, values in harmless.items():
        value = body.get(field)
        if value is not None and value not in values:
            raise RecordError("is not supported; leave it out", field=field)


def read_messages(body: Body) -> list[Item | RecordError]:
    """The conversations in `messages`: one as a list of messages, or a list of such lists.

    A conversation in a list may also be an object with `messages` and `tools`. `tools` beside
    `messages` are those of every conversation without its own. With `allow_empty_reply` the last
    reply may be empty, as a model in training may write it.
    """
    value, tools = body.get("messages"), body.get("tools")
    if not isinstance(value, list) or not value:
        problem = "should be a list of messages, or of conversations"
        raise RecordError(problem, field="messages")
    if all(isinstance(message, dict) and "messages" not in message for message in value):
        value = [value]
    items = [_conversation(item, tools) for item in value]
    if not body.get("allow_empty_reply"):
        return items
    return [
        Reply(item["messages"], item.get("tools"))
        if isinstance(item, Record) and isinstance(item.get("messages"), list)
        else item
        for item in items
    ]


def read_texts(body: Body, field: str) -> list[Item | RecordError]:
    """Texts or token ids in a field: one, or a list of them."""
    value = body.get(field)
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise RecordError(f"is {kind_of(value)}; it should be text or token ids", field=field)
    if all(type(token) is int for token in value):
        return [value]
    return [
        item
        if isinstance(item, str | list)
        else RecordError(f"is {kind_of(item)}; it should be text or token ids")
        for item in value
    ]


def read_strings(body: Body, field: str) -> list[str]:
    """A list of texts, or one text as such a list.

    Raises:
        RecordError: the field holds something else, or nothing.
    """
    value = body.get(field)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise RecordError(f"is {kind_of(value)}; it should be a list of texts", field=field)
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise RecordError(f"holds {kind_of(wrong[0])}; it should hold texts", field=field)
    return texts


def read_actor_texts(body: Body, field: str, context: Context) -> list[Item | RecordError]:
    """Conversations of texts that the template of the model in training wrote.

    Without such a template, texts are taken to be by the reward model's own.
    """
    texts, template = read_strings(body, field), context.actor_template
    if template is None:
        return list(texts)
    return [template.read_or_error(text) for text in texts]


def details(result: Result, *, per_turn: bool) -> dict[str, Any]:
    """What replies tell of an item beyond their protocol: an error, or what was read."""
    if isinstance(result, RecordError):
        return {"error": {"message": str(result), "code": 400}}
    fields: dict[str, Any] = {
        "truncated": result.item.was_cut,
        "reward_tokens": result.item.reward_tokens,
    }
    return fields | ({"turn_scores": result.turns} if per_turn else {})


def usage(results: Sequence[Result]) -> dict[str, int]:
    """How many tokens were read, as OpenAI's protocols say it."""
    tokens = sum(token_count(result) for result in results)
    return {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}


def token_count(result: Result) -> int:
    """How many tokens were read of an item."""
    return 0 if isinstance(result, RecordError) else len(result.item.conversation.ids)


def envelope(prefix: str, model: str, data: list[Any], results: Sequence[Result]) -> dict[str, Any]:
    """A list of results as OpenAI's and vLLM's replies hold it."""
    return {
        "id": f"{prefix}-{uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": data,
        "usage": usage(results),
    }


def is_per_turn(body: Body) -> bool:
    """Whether a request asks for the reward after every turn, too.

    Raises:
        RecordError: `per_turn` is neither true nor false.
    """
    value = body.get("per_turn")
    if value is not None and not isinstance(value, bool):
        raise RecordError(f"is {kind_of(value)}; it should be true or false", field="per_turn")
    return bool(value)


def _conversation(item: object, tools: object) -> Item | RecordError:
    if isinstance(item, dict) and "messages" in item:
        return Record({"tools": tools} | {name: item[name] for name in TAKEN if name in item})
    if isinstance(item, list):
        return Record({"messages": item, "tools": tools})
    return RecordError(f"is {kind_of(item)}; a conversation is a list of messages")
