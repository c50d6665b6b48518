"""What a simulation would take: calls and tokens, without asking any model."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from random import Random
from typing import cast

from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.llm.call import Call, Reply
from musiccli.llm.client import Client
from musiccli.simulate.config import SimulateConfig
from musiccli.simulate.simulator import Simulator

ESTIMATE_SAMPLE = 200  # most conversations that an estimate rests on
Planned = dict[tuple[str, str], Counter[str]]


class DryRunClient:
    """A client that asks nobody and counts what would be asked.

    A token is reckoned as 4 characters, and a reply as two thirds of its limit.

    Attributes:
        planned: {(role, model): Counter(calls, prompt_tokens, completion_tokens)}.
    """

    def __init__(self, config: SimulateConfig):
        self.planned: Planned = {}
        self._config = config

    async def complete(self, call: Call) -> Reply:
        role = call.call_key[-2]
        text = self._reply(role, call.max_tokens)
        asked = sum(len(message["content"]) for message in call.messages) + len(call.text)
        counts = Counter(calls=1, prompt_tokens=asked // 4, completion_tokens=len(text) // 4)
        self.planned.setdefault((role, call.model), Counter()).update(counts)
        return Reply(text, "stop", counts["prompt_tokens"], counts["completion_tokens"], 0.0)

    def _reply(self, role: str, max_tokens: int) -> str:
        if role == "contrast" and self._config.contrast_calls == 1:
            instruction, reply = (
                _text(self._config.user_tokens),
                _text(self._config.assistant_tokens),
            )
            return f"<instruction>{instruction}</instruction><reply>{reply}</reply>"
        return _text(max_tokens)


def estimate(seeds: Iterable[Record], config: SimulateConfig) -> tuple[Planned, int, int]:
    """What these seeds would take without retries.

    Up to ESTIMATE_SAMPLE conversations are drawn at random from all (Algorithm R: Vitter 1985, ACM TOMS
    11:37), simulated on a DryRunClient, and their counts scaled up. Where there are no more
    conversations than that, the number of calls is exact.

    Returns:
        The planned calls as in `DryRunClient.planned`, how many conversations they rest on, and how
        many conversations there are.
    """
    client = DryRunClient(config)
    simulator = Simulator(replace(config, retries=0), cast(Client, client), RunStats())
    rng, total = Random(config.seed), 0
    drawn: list[tuple[Record, int]] = []
    for seed in seeds:
        for sample in range(config.samples):
            total += 1
            if len(drawn) < ESTIMATE_SAMPLE:
                drawn.append((seed, sample))
            elif (place := rng.randrange(total)) < ESTIMATE_SAMPLE:
                drawn[place] = (seed, sample)

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
