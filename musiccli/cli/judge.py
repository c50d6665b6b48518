"""music pair --best-of 2,4,8 --a music --b baseline scored.jsonl | music judge --judge gemini/gemini-1.5-pro"""

from typing import Annotated

import typer

from musiccli.cli.llm_options import PROMPTS, OpenClient, default_prompts, with_llm_options
from musiccli.cli.options import SEED
from musiccli.cli.run import Run, stage
from musiccli.core import records


@stage("judge")
@with_llm_options
def judge(
    run: Run,
    open_client: OpenClient,
    judge: Annotated[
        list[str],
        typer.Option(
            metavar="MODEL",
            help="A judge, in litellm's naming or local/NAME; give "
            "it several times for a panel, decided by majority.",
        ),
    ] = ["local/smollm2"],  # noqa: B006
    prompts: PROMPTS = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest explanation and verdict.")] = 512,
    seed: SEED = 0,
) -> None:
    """Let LLMs decide which of two conversations is better, each pair in both orders.

    \b
    music pair --best-of 2,4,8 --a music --b baseline scored.jsonl | music judge --judge gemini/gemini-1.5-pro
    music judge --judge openai/gpt-4o --judge gemini/gemini-1.5-pro pairs.jsonl > judged.jsonl
    """
    from contextlib import closing

    from musiccli.judge.verdicts import JudgeConfig
    from musiccli.judge.verdicts import judge as judged

    settings = JudgeConfig(
        judges=tuple(dict.fromkeys(judge)),
        prompts=default_prompts(prompts, judge[0]),
        max_tokens=max_tokens,
        seed=seed,
    )
    pairs = run.read(records.parse_comparison)
    with (
        open_client(settings.judges) as client,
        closing(
            judged(
                pairs, settings, client, rejects=run.rejects, counts=run.counts, limits=run.limits
            )
        ) as found,
    ):
        run.write(found)
