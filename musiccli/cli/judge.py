"""music pair --best-of 2,4,8 --a music --b baseline scored.jsonl | music judge --judge gemini/gemini-1.5-pro"""

from typing import Annotated

import typer

from musiccli import records
from musiccli.cli.common import SEED, Run, stage
from musiccli.cli.models import (
    API_BASE,
    CACHE,
    CONCURRENCY,
    MAX_COST,
    NO_CACHE,
    PROMPTS,
    TIMEOUT,
    client_for,
    default_prompts,
)


@stage("judge")
def judge(
    run: Run,
    judge: Annotated[list[str], typer.Option(metavar="MODEL", help="A judge, in litellm's naming or local/NAME; give "
                     "it several times for a panel, decided by majority.")] = ["local/smollm2"],  # noqa: B006
    prompts: PROMPTS = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest explanation and verdict.")] = 512,
    max_cost: MAX_COST = None,
    concurrency: CONCURRENCY = 64,
    timeout: TIMEOUT = 120,
    api_base: API_BASE = None,
    cache: CACHE = None,
    no_cache: NO_CACHE = False,
    seed: SEED = 0,
) -> None:
    """Let LLMs decide which of two conversations is better, each pair in both orders.

    \b
    music pair --best-of 2,4,8 --a music --b baseline scored.jsonl | music judge --judge gemini/gemini-1.5-pro
    music judge --judge openai/gpt-4o --judge gemini/gemini-1.5-pro pairs.jsonl > judged.jsonl
    """
    from contextlib import closing

    from musiccli.judge import Settings
    from musiccli.judge import judge as judged

    settings = Settings(judges=tuple(dict.fromkeys(judge)), prompts=default_prompts(prompts, judge[0]),
                        max_tokens=max_tokens, seed=seed)
    pairs = run.read(records.comparison)
    with (client_for(run, cache, no_cache, concurrency, timeout, max_cost, api_base,
                     settings.judges) as client,
          closing(judged(pairs, settings, client, rejects=run.rejects, counts=run.counts, limits=run.limits)) as found):
        run.write(found)
