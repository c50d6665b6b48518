"""music sample pairs.jsonl -n 100 | music simulate --turns 3 | music pair > preferences.jsonl"""

from enum import StrEnum
from typing import Annotated

import typer

from musiccli.cli.llm_options import (
    PROMPTS,
    OpenClient,
    default_prompts,
    show_costs,
    with_llm_options,
)
from musiccli.cli.options import SEED
from musiccli.cli.run import Run, stage
from musiccli.core import records


class UserTurns(StrEnum):
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
            help="Plays the assistant, in litellm's naming "
            "(gemini/gemini-1.5-pro, hosted_vllm/NAME) or local/NAME.",
        ),
    ] = "local/smollm2",
    user: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Plays the user; left out: the assistant's model."),
    ] = None,
    contraster: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Writes the contrasted replies; left out: the assistant's model."
        ),
    ] = None,
    user_turns: Annotated[
        UserTurns,
        typer.Option(
            help="How a message of the user is made. plain: in one call; review: in two, a reviewer says what the "
            "assistant's last reply lacks, and a chairman makes the message of it (ReviewInstruct, arXiv 2505.11010)."
        ),
    ] = UserTurns.plain,
    turns: Annotated[int, typer.Option(min=1, help="Assistant replies added to each context.")] = 5,
    contrast: Annotated[
        str,
        typer.Option(
            metavar="POLICY",
            help="Which simulated turns of the rejected branch answer "
            "an altered instruction: all, none (one branch only), first, last, random:K, prob:P.",
        ),
    ] = "all",
    samples: Annotated[
        int, typer.Option(min=1, help="Conversations simulated from each context.")
    ] = 1,
    contrast_calls: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2,
            show_default=False,
            help="1: rewrite and answer "
            "in one call, as the paper does; 2: a call each; left out: 1, or 2 where the prompts "
            "have rewrite.md and no contrast.md.",
        ),
    ] = None,
    prompts: PROMPTS = None,
    assistant_tokens: Annotated[
        int, typer.Option(min=1, help="Longest reply of the assistant.")
    ] = 512,
    user_tokens: Annotated[int, typer.Option(min=1, help="Longest message of the user.")] = 256,
    temperature: Annotated[float, typer.Option(min=0)] = 0.7,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 0.95,
    retries: Annotated[
        int,
        typer.Option(
            min=0,
            help="How often a faulty message (role flip, refusal, repeat, goodbye, "
            "leak, cut off) is asked for again before pair drops its conversation.",
        ),
    ] = 3,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only estimate calls, tokens and dollars, from a sample of the input."
        ),
    ] = False,
    seed: SEED = 0,
) -> None:
    """Let LLMs continue conversations as user and assistant, plainly (chosen) and with altered instructions (rejected).

    \b
    music sample pairs.jsonl -n 100 | music simulate --turns 3 | music pair > preferences.jsonl
    music sample pairs.jsonl --emit prompts -n 50 | music simulate --contrast none --samples 8 > candidates.jsonl

    Finished calls are kept on disk: the same line again goes on where it was stopped and pays for nothing twice.
    """
    from contextlib import closing

    from musiccli import prompts as prompt_files
    from musiccli.simulate.simulator import SimulateConfig, estimate, simulate

    chosen = default_prompts(prompts, assistant)
    settings = SimulateConfig(
        assistant=assistant,
        user=user or assistant,
        contraster=contraster,
        turns=turns,
        contrast=contrast,
        one_call=contrast_calls == 1
        if contrast_calls
        else prompt_files.holds(chosen, "contrast") or not prompt_files.holds(chosen, "rewrite"),
        review=user_turns is UserTurns.review,
        samples=samples,
        prompts=chosen,
        assistant_tokens=assistant_tokens,
        user_tokens=user_tokens,
        temperature=temperature,
        top_p=top_p,
        retries=retries,
        seed=seed,
    )
    seeds = run.read(records.parse_conversation)
    if dry_run:
        run.withhold()
        planned, rehearsed, total = estimate(seeds, settings)
        show_costs(planned)
        run.say(
            f"an estimate from {rehearsed:,} of {total:,} conversations, drawn at random; replies reckoned at two "
            "thirds of their limit"
        )
        return
    with (
        open_client((settings.assistant, settings.user, contraster or assistant)) as client,
        closing(
            simulate(
                seeds, settings, client, rejects=run.rejects, counts=run.counts, limits=run.limits
            )
        ) as found,
    ):
        run.write(found)
