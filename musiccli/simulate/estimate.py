"""What a simulation would take: calls and tokens, without asking any model."""

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace
from random import Random
from typing import cast

from musiccli.core.records import Record
from musiccli.core.reservoir import draw_sample
from musiccli.core.run_stats import RunStats
from musiccli.llm.call import Call, Reply
from musiccli.llm.client import Client
from musiccli.simulate.config import SimulateConfig
from musiccli.simulate.simulator import Simulator

ESTIMATE_SAMPLE = 200  # the most conversations that are simulated for an estimate
Planned = dict[tuple[str, str], Counter[str]]  # counts by role and model


class DryRunClient:
    """Counts calls and answers them with made-up text.

    A token counts as 4 characters, and a reply as two thirds of its limit. With thoughts it counts
    as the whole of it, the most that it can be.

    Args:
        thinking: the models that may think before they reply.

    Attributes:
        planned: number of "calls", "prompt_tokens" and "completion_tokens" by role and model.
    """

    def __init__(self, config: SimulateConfig, thinking: Collection[str] = ()):
        self.planned: Planned = {}
        self._config, self._thinking = config, thinking

    async def complete(self, call: Call) -> Reply:
        text = self._reply(call)
        prompt_characters = sum(len(message["content"]) for message in call.messages) + len(
            call.text
        )
        written = call.max_tokens if call.model in self._thinking else len(text) // 4
        counts = Counter(calls=1, prompt_tokens=prompt_characters // 4, completion_tokens=written)
        self.planned.setdefault((call.role, call.model), Counter()).update(counts)
        return Reply(text, "stop", counts["prompt_tokens"], counts["completion_tokens"], 0.0)

    def _reply(self, call: Call) -> str:
        config = self._config
        if call.role == "contrast" and config.contrast_calls == 1:
            instruction, reply = _text(config.user_tokens), _text(config.assistant_tokens)
            return f"<instruction>{instruction}</instruction><reply>{reply}</reply>"
        return _text(call.max_tokens)


def estimate(
    seeds: Iterable[Record], config: SimulateConfig, thinking: Collection[str] = ()
) -> tuple[Planned, int, int]:
    """What these seeds would take without retries.

    Up to ESTIMATE_SAMPLE conversations are drawn at random and simulated with a DryRunClient. Their
    counts are scaled up to all conversations. The number of calls is exact where all were drawn.

    Args:
        thinking: the models that may think before they reply.

    Returns:
        The counts as in `DryRunClient.planned`, the size of the sample, and the number of all
        conversations.
    """
    client = DryRunClient(config, thinking)
    simulator = Simulator(replace(config, retries=0), cast(Client, client), RunStats())
    conversations = ((seed, sample) for seed in seeds for sample in range(config.samples))
    drawn, total = draw_sample(conversations, ESTIMATE_SAMPLE, Random(config.seed))

    async def dry_run() -> None:
        for seed, sample in drawn:
            await simulator.conversation(seed, sample)

    asyncio.run(dry_run())
    planned = {
        key: Counter({name: round(count * total / len(drawn)) for name, count in counts.items()})
        for key, counts in sorted(client.planned.items())
    }
    return planned, len(drawn), total


def _text(max_tokens: int) -> str:
    return "word" * (max_tokens * 2 // 3)
