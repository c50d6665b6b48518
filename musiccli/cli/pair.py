"""music simulate seeds.jsonl | music pair > preferences.jsonl"""

from typing import Annotated

import typer

from musiccli.cli.options import SEED
from musiccli.cli.run import Run, stage
from musiccli.core import records
from musiccli.core.errors import InputError


@stage()
def pair(
    run: Run,
    best_of: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            show_default=False,
            help="Make Best-of-N contests of these sizes from scored candidates instead.",
        ),
    ] = None,
    a: Annotated[
        str | None,
        typer.Option(
            "--a",
            metavar="NAME",
            show_default=False,
            help="Whose pick is side a: a key of scores, or baseline/random, baseline/first, "
            "baseline/longest or baseline/shortest.",
        ),
    ] = None,
    b: Annotated[
        str | None,
        typer.Option(
            "--b", metavar="NAME", show_default=False, help="Whose pick is side b, likewise."
        ),
    ] = None,
    drop_truncated: Annotated[
        bool,
        typer.Option(
            "--drop-truncated",
            help="Also drop pairs with a message that the token limit cut to whole sentences; left "
            "out: they are kept and counted.",
        ),
    ] = False,
    seed: SEED = 0,
) -> None:
    """Join the branches that simulate wrote into preferences, without the bad pairs.

    \b
    music simulate seeds.jsonl | music pair > preferences.jsonl
    music pair --best-of 2,4,8 --a music --b baseline scored.jsonl | music judge > judged.jsonl
    """
    if best_of is None:
        if a or b:
            raise InputError(
                "--a and --b belong to --best-of, whose contests they name the sides of"
            )
        _pair_branches(run, drop_truncated)
        return
    if drop_truncated:
        raise InputError("--drop-truncated is for pairs of branches, not for --best-of")
    sizes = _sizes(best_of)
    if not (a and b):
        raise InputError(
            "--best-of needs --a NAME and --b NAME, the two models whose picks compete"
        )
    _pair_candidates(run, sizes, a, b, seed)


def _sizes(best_of: str) -> list[int]:
    """The sizes in "2,4,8", ascending, each once."""
    sizes = best_of.split(",")
    if not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
        raise InputError(f"--best-of {best_of}: expected sizes like 2,4,8")
    return sorted({int(size) for size in sizes})


def _pair_branches(run: Run, drop_truncated: bool) -> None:
    from functools import partial

    from musiccli.pair.preferences import drop_reason, join_branches

    drop = partial(drop_reason, drop_truncated=drop_truncated)
    run.write(join_branches(run.read(records.parse_branch), run.stats, drop=drop))


def _pair_candidates(run: Run, sizes: list[int], a: str, b: str, seed: int) -> None:
    from functools import partial

    from musiccli.pair.best_of import best_of, check_scored_candidate

    candidates = run.read(partial(check_scored_candidate, names=(a, b)))
    run.write(best_of(candidates, sizes, a, b, run.stats, seed))
