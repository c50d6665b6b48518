"""A reward model as the function that RL trainers call: in this process, or behind a server."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from musiccli.core.errors import InputError, RecordError
from musiccli.core.messages import Message
from musiccli.reward_model import DEFAULT_BUDGET
from musiccli.reward_model.checkpoint import RewardModel
from musiccli.serve.actor_template import ActorTemplate
from musiccli.serve.client import RewardClient
from musiccli.serve.scoring import score_all
from musiccli.serve.served_model import Item, Reply, ServedModel


class RewardFunction:
    """A reward model as RL trainers call one: whole conversations in, a number for each out.

    It is TRL's and ms-swift's reward function itself; `openrlhf` and `verl` have the signatures
    of those trainers. A reply may be empty, as a model in training may write it.

    Example:
        >>> from musiccli import RewardFunction
        >>> reward = RewardFunction("rm")  # or the address of `music serve`
        >>> prompts = [[{"role": "user", "content": "What is 2 + 2?"}]]
        >>> reward(prompts, [[{"role": "assistant", "content": "4."}]])
        [1.93]

    Args:
        model: a loaded model, a folder or name as `RewardModel.load` takes it, or the address of
            a server, as "http://127.0.0.1:8000". Its key is read from MUSIC_API_KEY.
        actor_template: the tokenizer of the model in training, for `openrlhf`.
        max_length: the most tokens of a conversation; a longer one loses its oldest exchanges.
            None is the length of the model's context. A server has its own limit.

    Raises:
        InputError: there is no such model, or it is no address.
    """

    __name__ = "reward_model"  # under which trainers log it

    def __init__(
        self,
        model: str | os.PathLike[str] | RewardModel,
        *,
        actor_template: str | None = None,
        max_length: int | None = None,
    ) -> None:
        self._model: RewardClient | ServedModel
        if isinstance(model, str) and model.startswith(("http://", "https://")):
            self._model = RewardClient(model)
        else:
            loaded = model if isinstance(model, RewardModel) else RewardModel.load(str(model))
            limit = min(max_length or loaded.context_length, loaded.context_length)
            self._model = ServedModel("", "", loaded, limit)
        self._template = ActorTemplate.load(actor_template) if actor_template else None

    def __call__(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Any] | None = None,
        *,
        messages: Sequence[Sequence[Message]] | None = None,
        tools: Sequence[Any] | None = None,
        **_: Any,
    ) -> list[float]:
        """The reward of each conversation, as TRL and ms-swift ask for it.

        Args:
            prompts: a list of messages each, or the user's text.
            completions: the messages that follow, or the assistant's text.
            messages: whole conversations, in place of `prompts`; ms-swift gives them.
            tools: the functions on offer in each conversation.

        Raises:
            RecordError: a conversation is malformed, or too long to be cut. It says which.
            CallError: the server does not answer, or not as `music serve` does.
        """
        return [turns[-1] for turns in self._rewards(prompts, completions, messages, tools, False)]

    def turns(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Any] | None = None,
        *,
        messages: Sequence[Sequence[Message]] | None = None,
        tools: Sequence[Any] | None = None,
        **_: Any,
    ) -> list[list[float]]:
        """The reward after every turn of each conversation. Arguments are those of a call."""
        return self._rewards(prompts, completions, messages, tools, True)

    def openrlhf(
        self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any]
    ) -> dict[str, Any]:
        """OpenRLHF's `reward_func`: texts in the template of the model in training.

        Args:
            queries: prompts with their replies.
            prompts: unused; the queries hold them.
            labels: unused.

        Returns:
            `rewards` and `scores`, tensors (queries,), and `extra_logs`.

        Raises:
            InputError: the function was made without `actor_template`.
            RecordError: a text is not what the template writes.
        """
        import torch

        if self._template is None:
            raise InputError("`actor_template` is missing: the texts are in another template")
        replies = [self._template.read(query) for query in queries]
        rewards = torch.tensor(self(messages=[reply.messages for reply in replies]))
        return {"rewards": rewards, "scores": rewards, "extra_logs": {}}

    def verl(
        self,
        data_source: str,
        solution_str: str,
        ground_truth: Any,
        extra_info: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> float:
        """verl's `compute_score`, which is not given the prompt.

        Args:
            data_source: unused.
            solution_str: the reply.
            ground_truth: unused.
            extra_info: the row's; its `prompt` holds the messages before the reply, and `tools`
                the functions on offer, where there are any.

        Raises:
            RecordError: `extra_info` has no `prompt`.
        """
        info = extra_info or {}
        if info.get("prompt") is None:
            raise RecordError("is missing; copy the row's prompt there", field="extra_info.prompt")
        tools = [info["tools"]] if info.get("tools") is not None else None
        return self([list(info["prompt"])], [solution_str], tools=tools)[0]

    def _rewards(
        self,
        prompts: Sequence[Any] | None,
        completions: Sequence[Any] | None,
        messages: Sequence[Sequence[Message]] | None,
        tools: Sequence[Any] | None,
        per_turn: bool,
    ) -> list[list[float]]:
        conversations = _conversations(prompts, completions, messages)
        offers = list(tools) if tools is not None else [None] * len(conversations)
        items = [
            Reply([dict(message) for message in conversation], offer)  # type: ignore[misc]
            for conversation, offer in zip(conversations, offers, strict=True)
        ]
        if not items:
            return []
        if isinstance(self._model, RewardClient):
            return self._model.score(items, per_turn)
        return score_items(self._model, items, per_turn)


def score_items(served: ServedModel, items: Sequence[Item], per_turn: bool) -> list[list[float]]:
    """The rewards of items in this process.

    Raises:
        RecordError: one cannot be scored. It says which.
    """
    encoded = []
    for number, item in enumerate(items):
        try:
            encoded.append(served.encode(item, per_turn=per_turn).conversation)
        except RecordError as error:
            error.where = f"conversation {number}"
            raise
    rewards = score_all(served.model.network, encoded, DEFAULT_BUDGET)
    for number, values in enumerate(rewards):
        if isinstance(values, RecordError):
            values.where = f"conversation {number}"
            raise values
    return [values for values in rewards if not isinstance(values, RecordError)]


def _conversations(
    prompts: Sequence[Any] | None,
    completions: Sequence[Any] | None,
    messages: Sequence[Sequence[Message]] | None,
) -> list[list[Any]]:
    """Whole conversations, of the one or the other form."""
    if messages is not None:
        return [list(conversation) for conversation in messages]
    if prompts is None or completions is None:
        raise InputError("needs `prompts` and `completions`, or `messages`")
    return [
        [*_as_messages("user", prompt), *_as_messages("assistant", completion)]
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _as_messages(role: str, value: Any) -> list[Any]:
    return [{"role": role, "content": value}] if isinstance(value, str) else list(value)
