"""What a simulation would take: calls and tokens, without asking any model."""

import asyncio
from collections.abc import Collection, Iterable
from dataclasses import replace
from random import Random
from typing import cast

from musiccli.core.records import Record
from musiccli.core.reservoir import draw_sample
from musiccli.core.run_stats import RunStats
from musiccli.llm.call import Call
from musiccli.llm.client import Client
from musiccli.llm.dry_run import ESTIMATE_SAMPLE, DryRunClient, Planned, made_up_text
from musiccli.simulate.config import SimulateConfig
from musiccli.simulate.simulator import Simulator


class SimulationDryRun(DryRunClient):
    """A DryRunClient whose contrasts in one call hold an instruction and a reply."""

    def __init__(self, config: SimulateConfig, thinking: Collection[str] = ()):
        super().__init__(thinking)
        self._config = config

    def reply_text(self, call: Call) -> str:
        """What the model replies."""
        config = self._config
        if call.role == "contrast" and config.contrast_calls == 1:
            instruction = made_up_text(config.user_tokens)
            reply = made_up_text(config.assistant_tokens)
            return f"<instruction>{instruction}</instruction><reply>{reply}</reply>"
        return super().reply_text(call)


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
    client = SimulationDryRun(config, thinking)
    simulator = Simulator(replace(config, retries=0), cast(Client, client), RunStats())
    conversations = ((seed, sample) for seed in seeds for sample in range(config.samples))
    drawn, total = draw_sample(conversations, ESTIMATE_SAMPLE, Random(config.seed))

    async def dry_run() -> None:
        for seed, sample in drawn:
            await simulator.conversation(seed, sample)

    asyncio.run(dry_run())
    return client.scaled(len(drawn), total), len(drawn), total
