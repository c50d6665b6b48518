"""What judging would take: calls and tokens, without asking any model."""

from collections.abc import Collection, Iterable
from typing import cast

from musiccli import prompts
from musiccli.core.records import Record
from musiccli.judge.config import JudgeConfig
from musiccli.judge.verdicts import votes_on
from musiccli.llm.client import Client
from musiccli.llm.dry_run import DryRunClient, Estimate


def estimate(
    pairs: Iterable[Record], config: JudgeConfig, thinking: Collection[str] = ()
) -> Estimate:
    """What these pairs would take without retries.

    Args:
        thinking: the models that may think before they reply.

    Raises:
        InputError: the prompts cannot be used.
    """
    client = DryRunClient(thinking)
    prompt = prompts.require(config.prompts, "judge")
    return client.estimate(
        pairs, lambda pair: votes_on(pair, config, cast(Client, client), prompt), config.seed
    )
