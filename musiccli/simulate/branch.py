"""One branch of a simulated conversation as it grows, and the record that it becomes."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from musiccli.core.messages import Message
from musiccli.core.records import Record
from musiccli.llm.call import Reply
from musiccli.simulate.config import SimulateConfig


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

    def fork(self, name: str) -> "Branch":
        """A second branch with the same history. Its usage begins at zero."""
        return Branch(
            self.seed,
            self.sample,
            name,
            list(self.messages),
            faults=list(self.faults),
            truncated=list(self.truncated),
        )

    def add(self, role: str, reply: Reply, fault: str | None) -> None:
        """Append a message."""
        if fault:
            self.faults.append({"message": len(self.messages), "fault": fault})
        if reply.finish == "length":
            self.truncated.append(len(self.messages))
        self.messages.append({"role": role, "content": reply.text})

    def add_contrasted(self, instruction: str, reply: Reply, fault: str | None) -> None:
        """Append an assistant's reply that answers an altered instruction."""
        self.contrast.append({"message": len(self.messages), "instruction": instruction})
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
        optional = {"faults": self.faults, "truncated": self.truncated}
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
