"""What judging would take: calls and tokens, without asking any model."""

import asyncio
from collections.abc import Collection, Iterable
from random import Random
from typing import cast

from musiccli import prompts
from musiccli.core.records import Record
from musiccli.core.reservoir import draw_sample
from musiccli.judge.config import JudgeConfig
from musiccli.judge.verdicts import votes_on
from musiccli.llm.client import Client
from musiccli.llm.dry_run import ESTIMATE_SAMPLE, DryRunClient, Planned


def estimate(
    pairs: Iterable[Record], config: JudgeConfig, thinking: Collection[str] = ()
) -> tuple[Planned, int, int]:
    """What these pairs would take without retries.

    Up to ESTIMATE_SAMPLE pairs are drawn at random and shown to a DryRunClient. Its counts are
    scaled up to all pairs. The number of calls is exact where all were drawn.

    Args:
        thinking: the models that may think before they reply.

    Returns:
        The counts as in `DryRunClient.planned`, the size of the sample, and the number of all
        pairs.

    Raises:
        InputError: the prompts cannot be used.
    """
    client = DryRunClient(thinking)
    prompt = prompts.require(config.prompts, "judge")
    drawn, total = draw_sample(pairs, ESTIMATE_SAMPLE, Random(config.seed))

    async def dry_run() -> None:
        for record in drawn:
            await votes_on(record, config, cast(Client, client), prompt)

    asyncio.run(dry_run())
    return client.scaled(len(drawn), total), len(drawn), total
