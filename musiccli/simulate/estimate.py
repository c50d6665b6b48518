"""What a simulation would take: calls and tokens, without asking any model."""

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import cast

from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.llm.call import Call
from musiccli.llm.client import Client
from musiccli.llm.dry_run import DryRunClient, Estimate, made_up_text
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
) -> Estimate:
    """What the conversations of these seeds would take without retries.

    Args:
        thinking: the models that may think before they reply.
    """
    client = SimulationDryRun(config, thinking)
    simulator = Simulator(replace(config, retries=0), cast(Client, client), RunStats())
    conversations = ((seed, sample) for seed in seeds for sample in range(config.samples))
    return client.estimate(conversations, lambda item: simulator.conversation(*item), config.seed)
