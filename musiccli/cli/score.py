"""music score candidates.jsonl --model rm > scored.jsonl"""

from typing import Annotated

import typer

from musiccli.cli.options import ACCELERATE_CONFIG, NUM_PROCESSES
from musiccli.cli.run import Run, stage
from musiccli.core import records


@stage()
def score(
    run: Run,
    model: Annotated[
        str,
        typer.Option(
            metavar="DIR|ID",
            help="A reward model: a folder that train wrote, or any "
            "sequence classifier with one label from the hub.",
        ),
    ],
    as_: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="NAME",
            show_default=False,
            help="The key of its scores; left out: the last part of --model.",
        ),
    ] = None,
    per_turn: Annotated[
        bool, typer.Option("--per-turn", help="Also the reward after every assistant turn.")
    ] = False,
    last_only: Annotated[
        bool,
        typer.Option(
            "--last-only",
            help="Show the model no history: the last user message and "
            "its reply; the key of the scores is NAME/last-only.",
        ),
    ] = False,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="TOKENS",
            show_default=False,
            help="Cut oldest exchanges of longer conversations; left out: what the model takes.",
        ),
    ] = None,
    budget: Annotated[
        int,
        typer.Option(
            min=1, metavar="TOKENS", help="Tokens in one forward pass; less takes less memory."
        ),
    ] = 4096,
    num_processes: NUM_PROCESSES = None,
    accelerate_config: ACCELERATE_CONFIG = None,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Finished scores; left out: scores.sqlite in the cache folder (MUSIC_CACHE).",
        ),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Neither read nor keep finished scores.")
    ] = False,
) -> None:
    """Add a reward model's scores to conversations, preferences or comparisons.

    \b
    music score candidates.jsonl --model rm | music pair --best-of 2,4,8 --a rm --b baseline
    music sample pairs.jsonl --emit pairs | music score --model rm | music bench agreement

    Finished scores are kept on disk: the same line again goes on where it was stopped.
    """
    run.in_processes(num_processes, accelerate_config)
    from contextlib import closing, nullcontext

    from musiccli.core import processes as launch
    from musiccli.core.cache_folder import cache_folder
    from musiccli.core.store import Store
    from musiccli.reward_model.checkpoint import load
    from musiccli.score.scorer import ScoreConfig, score

    name = (as_ or model.rstrip("/").rsplit("/", 1)[-1]) + "/last-only" * last_only
    settings = ScoreConfig(
        per_turn=per_turn, last_only=last_only, budget=budget, max_length=max_length
    )
    kept = nullcontext() if no_cache else closing(Store(cache or cache_folder() / "scores.sqlite"))
    with launch.rank_zero_output(), kept as known:
        launch.refuse_shared_input(run.files)
        process_group = launch.process_group()
        found = score(
            run.read(records.parse_any),
            load(model, run.say),
            name,
            settings,
            cache=known,
            process_group=process_group,
            rejects=run.rejects,
            counts=run.counts,
        )
        if process_group.rank:
            run.withhold()
            found = launch.drain(found)
        run.write(found)
