"""music sample pairs.jsonl -n 100 | music simulate --turns 3 | music pair > preferences.jsonl"""

from collections.abc import Collection, Iterator
from enum import StrEnum
from typing import Annotated

import typer

from musiccli.cli.llm_options import (
    DRY_RUN,
    PROMPTS,
    OpenClient,
    default_prompts,
    show_estimate,
    with_llm_options,
)
from musiccli.cli.options import SEED, SHARD
from musiccli.cli.paths import CHAT_MODEL_READ, RECORDS_READ
from musiccli.cli.run import Run, stage
from musiccli.core import records
from musiccli.simulate.config import SimulateConfig


class UserTurns(StrEnum):
    """How many calls a message of the user takes."""

    plain = "plain"
    review = "review"


@stage()
@with_llm_options
def simulate(
    run: Run,
    open_client: OpenClient,
    assistant: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Plays the assistant, in litellm's naming (gemini/gemini-2.5-flash, "
            "hosted_vllm/NAME) or local/NAME.",
        ),
        CHAT_MODEL_READ,
    ] = SimulateConfig.assistant,
    user: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Plays the user; left out: the assistant's model."),
        CHAT_MODEL_READ,
    ] = SimulateConfig.user,
    contraster: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Writes the contrasted replies; left out: the assistant's model."
        ),
        CHAT_MODEL_READ,
    ] = SimulateConfig.contraster,
    user_turns: Annotated[
        UserTurns,
        typer.Option(
            help="How a message of the user is written: plain, in one call, or review, by a "
            "reviewer of the assistant's last reply and a chairman (arXiv 2505.11010)."
        ),
    ] = UserTurns(SimulateConfig.user_turns),
    persona: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="JSONL of personas that the users play: objects with some of who, goal, knows and "
            "satisfied. One with an id is for the seed of that id; the others are drawn. Left "
            "out: the seed's own field user_persona, where it has one.",
        ),
        RECORDS_READ,
    ] = SimulateConfig.persona,
    follow_ups: Annotated[
        str,
        typer.Option(
            metavar="KIND=P,...",
            show_default=False,
            help="Shares of the user's messages that need the history: refer (back to an earlier "
            "turn), change (a condition), correct (a mistake), as refer=0.4,change=0.3. Left out: "
            "none.",
        ),
    ] = SimulateConfig.follow_ups,
    turns: Annotated[
        int, typer.Option(min=1, help="Assistant replies added to each seed.")
    ] = SimulateConfig.turns,
    contrast: Annotated[
        str,
        typer.Option(
            metavar="POLICY",
            help="Which turns of the rejected branch answer an altered instruction: all, none (one "
            "branch only), first, middle, last, random:K or prob:P.",
        ),
    ] = SimulateConfig.contrast,
    samples: Annotated[
        int, typer.Option(min=1, help="Conversations simulated from each seed.")
    ] = SimulateConfig.samples,
    contrast_calls: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2,
            show_default=False,
            help="Calls for a contrasted reply: 1, as in the paper, or 2 to rewrite and to answer; "
            "left out: 1, or 2 where the prompts have rewrite.md and no contrast.md.",
        ),
    ] = None,
    prompts: PROMPTS = None,
    assistant_tokens: Annotated[
        int, typer.Option(min=1, help="Longest reply of the assistant, in tokens.")
    ] = SimulateConfig.assistant_tokens,
    user_tokens: Annotated[
        int, typer.Option(min=1, help="Longest message of the user, in tokens.")
    ] = SimulateConfig.user_tokens,
    temperature: Annotated[
        float, typer.Option(min=0, help="Sampling temperature; a retry's is higher.")
    ] = SimulateConfig.temperature,
    top_p: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Sample from the most likely tokens of this total probability."
        ),
    ] = SimulateConfig.top_p,
    retries: Annotated[
        int,
        typer.Option(
            min=0,
            help="How often a faulty message (role flip, refusal, repeat, goodbye, leak, cut off) "
            "is asked for again before pair drops its conversation.",
        ),
    ] = SimulateConfig.retries,
    dry_run: DRY_RUN = False,
    seed: SEED = SimulateConfig.seed,
    shard: SHARD = None,
) -> None:
    """Let LLMs continue conversations, plainly (chosen) and with altered instructions (rejected).

    \b
    music sample pairs.jsonl -n 100 | music simulate --turns 3 | music pair > preferences.jsonl
    music simulate prompts.jsonl --contrast none --samples 8 > candidates.jsonl

    Finished calls are kept on disk: the same command goes on where it was stopped, and pays for no
    call twice.
    """
    from contextlib import closing

    from musiccli.simulate import simulator
    from musiccli.simulate.personas import parse_seed

    prompt_set = default_prompts(prompts, assistant)
    config = SimulateConfig(
        assistant=assistant,
        user=user,
        contraster=contraster,
        user_turns=user_turns.value,
        persona=persona,
        follow_ups=follow_ups,
        turns=turns,
        contrast=contrast,
        samples=samples,
        contrast_calls=contrast_calls or _contrast_calls(prompt_set),
        prompts=prompt_set,
        assistant_tokens=assistant_tokens,
        user_tokens=user_tokens,
        temperature=temperature,
        top_p=top_p,
        retries=retries,
        seed=seed,
    )
    seeds = run.read(parse_seed, shard=shard)
    models = (config.assistant, config.user_model, config.contrast_model)
    if dry_run:
        _show_estimate(run, seeds, config, open_client.thinking_models(models))
        return
    with (
        open_client(models) as client,
        closing(simulator.simulate(seeds, config, client, run.stats)) as branches,
    ):
        run.write(branches)


def _contrast_calls(prompt_set: str) -> int:
    """One call for a contrast, or two where the prompts are made for two only."""
    from musiccli import prompts

    two = prompts.contains(prompt_set, "rewrite") and not prompts.contains(prompt_set, "contrast")
    return 2 if two else SimulateConfig.contrast_calls


def _show_estimate(
    run: Run, seeds: Iterator[records.Record], config: SimulateConfig, thinking: Collection[str]
) -> None:
    """Print what the run would take; nothing is written."""
    from musiccli.simulate.estimate import estimate

    more = ", and no user stops before the last turn" if config.persona else ""
    show_estimate(run, estimate(seeds, config, thinking), "conversations", thinking, more)
