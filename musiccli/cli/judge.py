"""music judge contests.jsonl --judge gemini/gemini-2.5-flash > judged.jsonl"""

from typing import Annotated

import typer

from musiccli.cli.llm_options import (
    DRY_RUN,
    PROMPTS,
    OpenClient,
    default_prompts,
    show_judge_estimate,
    with_llm_options,
)
from musiccli.cli.options import SEED, SHARD
from musiccli.cli.paths import CHAT_MODEL_READ
from musiccli.cli.run import Run, stage
from musiccli.core import records
from musiccli.judge.config import JudgeConfig


@stage("judge")
@with_llm_options
def judge(
    run: Run,
    open_client: OpenClient,
    judges: Annotated[
        list[str],
        typer.Option(
            "--judge",
            metavar="MODEL",
            help="A judge, in litellm's naming or local/NAME; give it several times to decide by "
            "majority.",
        ),
        CHAT_MODEL_READ,
    ] = list(JudgeConfig.judges),  # noqa: B006
    prompts: PROMPTS = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Longest explanation and verdict, in tokens.")
    ] = JudgeConfig.max_tokens,
    dry_run: DRY_RUN = False,
    seed: SEED = JudgeConfig.seed,
    shard: SHARD = None,
) -> None:
    """Let LLMs decide which of two conversations is better, each pair in both orders.

    \b
    music pair --best-of 2,4,8 --a music --b baseline scored.jsonl | music judge > judged.jsonl
    music judge --judge openai/gpt-4o --judge gemini/gemini-2.5-flash pairs.jsonl > judged.jsonl
    """
    from contextlib import closing

    from musiccli.judge import verdicts

    config = JudgeConfig(
        judges=tuple(dict.fromkeys(judges)),
        prompts=default_prompts(prompts, judges[0]),
        max_tokens=max_tokens,
        seed=seed,
    )
    pairs = run.read(records.parse_comparison, shard=shard)
    if dry_run:
        show_judge_estimate(run, pairs, config, open_client.thinking_models(config.judges))
        return
    with (
        open_client(config.judges) as client,
        closing(verdicts.judge(pairs, config, client, run.stats)) as judged,
    ):
        run.write(judged)
