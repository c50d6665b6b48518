"""music score candidates.jsonl --model rm > scored.jsonl"""

from typing import Annotated

import typer

from musiccli.cli.options import ACCELERATE_CONFIG, BUDGET, MAX_LENGTH, NUM_PROCESSES, SHARD
from musiccli.cli.paths import MODEL_READ, PathUse
from musiccli.cli.run import Run, stage
from musiccli.core.records import parse_any
from musiccli.score.config import ScoreConfig


@stage()
def score(
    run: Run,
    model: Annotated[
        str,
        typer.Option(
            metavar="DIR|ID",
            help="The reward model: a folder that music train wrote, or any sequence classifier "
            "with one label from the hub.",
        ),
        MODEL_READ,
    ],
    as_: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="NAME",
            show_default=False,
            help="The key of the scores. Left out: the last part of --model.",
        ),
    ] = None,
    per_turn: Annotated[
        bool, typer.Option("--per-turn", help="Add the reward after every assistant turn, too.")
    ] = ScoreConfig.per_turn,
    last_only: Annotated[
        bool,
        typer.Option(
            "--last-only",
            help="Show the model only the last user message and its reply. The key of the scores "
            "is then NAME/last-only.",
        ),
    ] = ScoreConfig.last_only,
    max_length: MAX_LENGTH = ScoreConfig.max_length,
    budget: BUDGET = ScoreConfig.budget,
    num_processes: NUM_PROCESSES = None,
    accelerate_config: ACCELERATE_CONFIG = None,
    shard: SHARD = None,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="The file of finished scores. Left out: scores.sqlite in the cache folder "
            "(MUSIC_CACHE).",
        ),
        PathUse(written=True, store="scores.sqlite"),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Neither read nor keep finished scores.")
    ] = False,
) -> None:
    """Add a reward model's scores to conversations, preferences or comparisons.

    \b
    music score candidates.jsonl --model rm | music pair --best-of 2,4,8 --a rm --b baseline
    music sample pairs.jsonl --emit pairs | music score --model rm | music bench agreement

    Finished scores are kept on disk. A run that was stopped goes on where it was when the same
    line is run again.
    """
    from contextlib import closing, nullcontext

    from musiccli.core import processes
    from musiccli.core.cache_folder import cache_folder
    from musiccli.core.store import Store

    name = (as_ or model.rstrip("/").rsplit("/", 1)[-1]) + "/last-only" * last_only
    config = ScoreConfig(per_turn, last_only, max_length, budget)
    with processes.rank_zero_output():
        if not shard:
            run.refuse_first_record(parse_any)
        run.in_processes(num_processes, accelerate_config)
        from musiccli.reward_model.checkpoint import load
        from musiccli.score.scorer import WINDOW, score_lines

        open_store = (
            nullcontext() if no_cache else closing(Store(cache or cache_folder() / "scores.sqlite"))
        )
        with open_store as store:
            process_group = processes.process_group()
            lines = score_lines(
                run.read_lines(shard=shard, block=WINDOW),
                load(model, run.say),
                name,
                config,
                store=store,
                process_group=process_group,
                stats=run.stats,
            )
            if process_group.rank:
                run.withhold()
            run.write(lines)
