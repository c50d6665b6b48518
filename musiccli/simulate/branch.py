"""One branch of a simulated conversation as it grows, and the record that it becomes."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from musiccli.core import json_text
from musiccli.core.errors import CallError
from musiccli.core.jsonl import MAX_LINE
from musiccli.core.messages import Message
from musiccli.core.records import Record
from musiccli.llm.call import Reply
from musiccli.prompts import FALLBACKS
from musiccli.simulate.config import SimulateConfig
from musiccli.simulate.personas import FIELD, Persona

OTHER_FIELDS = 1 << 20  # bytes that are kept for what simulate adds beside messages


@dataclass
class Branch:
    """A conversation that grows from a seed, with its faults and what its calls cost.

    Attributes:
        seed: the record of the conversation that it continues.
        sample: its number among the conversations from this seed.
        name: "chosen" or "rejected".
        messages: the seed's, and those added since.
        contrast: index and altered instruction of each contrasted reply.
        faults: index and fault of each message that was still faulty after the last retry.
        truncated: indices of the messages that the token limit cut.
        usage: prompt and completion tokens of its calls.
        cost: US dollars; None where a price is unknown.
        persona: whom the user plays; None for nobody in particular.
        follow_ups: index and kind of each message of the user that was to need the history.
        satisfied: whether the user ended the conversation, having got what they came for.
        size: bytes of the record as JSON, without what simulate adds at its end.
    """

    seed: Record
    sample: int
    name: str
    messages: list[Message]
    contrast: list[dict[str, Any]] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    usage: Counter[str] = field(default_factory=Counter)
    cost: float | None = 0.0
    persona: Persona | None = None
    follow_ups: list[dict[str, Any]] = field(default_factory=list)
    satisfied: bool = False
    size: int = 0

    def __post_init__(self) -> None:
        self.size = self.size or len(json_text.encode(self.seed))

    @property
    def replies(self) -> list[int]:
        """The indices of the simulated messages of the assistant: one a turn."""
        start = len(self.seed["messages"])
        return [
            index
            for index, message in enumerate(self.messages)
            if index >= start and message["role"] == "assistant"
        ]

    def reply_text(self, turn: int) -> str:
        """The assistant's reply in a turn; empty where there is none yet."""
        replies = self.replies
        return self.messages[replies[turn]]["content"] if turn < len(replies) else ""

    def fork(self, name: str, turn: int) -> "Branch":
        """A second branch with the same history up to the reply of a turn, which it lacks.

        Its usage begins at zero.
        """
        start = len(self.seed["messages"])
        replies = self.replies
        messages = self.messages[: replies[turn]] if turn < len(replies) else list(self.messages)
        added = sum(len(json_text.encode(message)) for message in messages[start:])
        return Branch(
            self.seed,
            self.sample,
            name,
            messages,
            faults=[fault for fault in self.faults if fault["message"] < len(messages)],
            truncated=[index for index in self.truncated if index < len(messages)],
            persona=self.persona,
            follow_ups=[entry for entry in self.follow_ups if entry["message"] < len(messages)],
            size=len(json_text.encode(self.seed)) + added,
        )

    def check_room(self, reply: Reply) -> None:
        """Raises CallError for a reply that would make the record larger than any that is read."""
        if self.size + len(json_text.encode(reply.text)) > MAX_LINE - OTHER_FIELDS:
            raise CallError(
                f"a reply of {len(reply.text):,} characters would make the record larger than the "
                f"{MAX_LINE >> 20} MB that can be read again"
            )

    def add(self, role: str, reply: Reply, fault: str | None) -> None:
        """Append a message."""
        if fault:
            self.faults.append({"message": len(self.messages), "fault": fault})
        if reply.finish == "length":
            self.truncated.append(len(self.messages))
        self.messages.append({"role": role, "content": reply.text})
        self.size += len(json_text.encode(self.messages[-1]))

    def add_contrasted(self, instruction: str, reply: Reply, fault: str | None) -> None:
        """Append an assistant's reply that answers an altered instruction."""
        self.contrast.append({"message": len(self.messages), "instruction": instruction})
        self.size += len(json_text.encode(self.contrast[-1]))
        self.add("assistant", reply, fault)

    def add_usage(self, reply: Reply) -> None:
        """Count the tokens and the cost of one call."""
        self.usage.update(
            prompt_tokens=reply.prompt_tokens, completion_tokens=reply.completion_tokens
        )
        self.cost = None if self.cost is None or reply.cost is None else self.cost + reply.cost

    def record(self, config: SimulateConfig) -> dict[str, Any]:
        """The branch as simulate writes it: the seed's fields and its own."""
        simulator = {
            "assistant": config.assistant,
            "user": config.user_model,
            "contrast": config.contrast,
        }
        if config.user_turns != "plain":
            simulator["user_turns"] = config.user_turns
        if config.prompts in FALLBACKS:  # records of the older sets do not name theirs
            simulator["prompts"] = config.prompts
        if config.follow_ups:
            simulator["follow_ups"] = config.follow_ups
        optional = {
            FIELD: self.seed.get(FIELD) or (self.persona and self.persona.record),
            "follow_ups": self.follow_ups,
            "satisfied": self.satisfied,
            "faults": self.faults,
            "truncated": self.truncated,
        }
        return {
            **self.seed,
            "messages": self.messages,
            "branch": self.name,
            "sample": self.sample,
            "seed_messages": len(self.seed["messages"]),
            "contrast": self.contrast,
            "simulator": simulator,
            "usage": dict(self.usage),
            "cost": self.cost,
        } | {name: value for name, value in optional.items() if value}
