"""music cache --prune 30 --model gemini/gemini-1.5-pro"""

from typing import Annotated

import typer

from musiccli.cli.common import app
from musiccli.cli.models import CACHE


@app.command()
def cache(
    cache: CACHE = None,
    prune: Annotated[float | None, typer.Option(min=0, metavar="DAYS", show_default=False, help="Remove calls that are "
                                                "older; left out: only look.")] = None,
    model: Annotated[str | None, typer.Option(metavar="MODEL", show_default=False, help="Prune this model's calls "
                                              "only; left out: all models'.")] = None,
) -> None:
    """Show what finished calls are kept on disk, by model, and remove old ones.

    \b
    music cache
    music cache --prune 30 --model gemini/gemini-1.5-pro

    A call that was removed is made, and paid for, again when a run asks for it.
    """
    import time

    from musiccli.errors import InputError
    from musiccli.llm.cache import Cache
    from musiccli.llm.client import cache_path
    from musiccli.progress import say, table

    if model and prune is None:
        raise InputError("--model says whose calls --prune removes; give both")
    path = cache_path(cache)
    if not path.exists():
        say(f"music cache: {path}: no calls are kept there yet")
        return
    kept = Cache(path)
    if prune is not None:
        say(f"music cache: {kept.prune(time.time() - prune * 86400, model):,} calls removed")
    rows = [[name or "(unknown)", f"{calls:,}", f"{size / 1e6:.1f}", *(time.strftime("%Y-%m-%d", time.localtime(at))
             for at in (first, last))] for name, calls, size, first, last in kept.models()]
    if rows:
        table(["", "calls", "MB", "first", "last"], rows)
    say(f"music cache: {path}, {path.stat().st_size / 1e6:.1f} MB")
    kept.close()
