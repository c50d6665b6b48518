"""What calls would take: a client that counts them and asks no model."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable
from random import Random
from typing import NamedTuple, TypeVar

from musiccli.core.reservoir import draw_sample
from musiccli.llm.call import Call, Reply

Item = TypeVar("Item")
ESTIMATE_SAMPLE = 200  # the most items whose calls are counted for an estimate
Planned = dict[tuple[str, str], Counter[str]]  # counts by role and model


class Estimate(NamedTuple):
    """What some items would take.

    Attributes:
        planned: as in DryRunClient, of all items.
        drawn: how many items it was counted on.
        total: the number of all items.
    """

    planned: Planned
    drawn: int
    total: int


class DryRunClient:
    """Counts calls and answers them with made-up text.

    A token counts as 4 characters, and a reply as two thirds of its limit. With thoughts it counts
    as the whole of it, the most that it can be.

    Args:
        thinking: the models that may think before they reply.

    Attributes:
        planned: number of "calls", "prompt_tokens" and "completion_tokens" by role and model.
    """

    def __init__(self, thinking: Collection[str] = ()):
        self.planned: Planned = {}
        self._thinking = thinking

    async def complete(self, call: Call) -> Reply:
        """A reply of made-up text, at once."""
        text = self.reply_text(call)
        prompt_characters = sum(len(message["content"]) for message in call.messages) + len(
            call.text
        )
        written = call.max_tokens if call.model in self._thinking else len(text) // 4
        counts = Counter(calls=1, prompt_tokens=prompt_characters // 4, completion_tokens=written)
        self.planned.setdefault((call.role, call.model), Counter()).update(counts)
        return Reply(text, "stop", counts["prompt_tokens"], counts["completion_tokens"], 0.0)

    def reply_text(self, call: Call) -> str:
        """What the model replies."""
        return made_up_text(call.max_tokens)

    def estimate(
        self, items: Iterable[Item], work: Callable[[Item], Awaitable[object]], seed: int
    ) -> Estimate:
        """What `work` on all items takes, counted on up to ESTIMATE_SAMPLE drawn at random.

        The number of calls is exact where all were drawn.

        Args:
            items: are read once.
            work: calls this client.
            seed: of the draw.
        """
        drawn, total = draw_sample(items, ESTIMATE_SAMPLE, Random(seed))

        async def dry_run() -> None:
            for item in drawn:
                await work(item)

        asyncio.run(dry_run())
        planned = {
            key: Counter(
                {name: round(count * total / len(drawn)) for name, count in counts.items()}
            )
            for key, counts in sorted(self.planned.items())
        }
        return Estimate(planned, len(drawn), total)


def made_up_text(max_tokens: int) -> str:
    """A text of two thirds of so many tokens, at 4 characters a token."""
    return "word" * (max_tokens * 2 // 3)
