"""music cache | jq -s 'map(.calls) | add'"""

from typing import Annotated

import typer

from musiccli.cli.app import plain_command
from musiccli.cli.llm_options import CACHE


@plain_command
def cache(
    cache: CACHE = None,
    prune: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="DAYS",
            show_default=False,
            help="Remove calls that are older; left out: only look.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            show_default=False,
            help="Prune this model's calls only; left out: all models'.",
        ),
    ] = None,
) -> None:
    """Show what finished calls are kept on disk, one record a model, and remove old ones.

    \b
    music cache | jq -s 'map(.calls) | add'
    music cache --prune 30 --model gemini/gemini-1.5-pro

    A call that was removed is made, and paid for, again when a run asks for it.
    """
    import time

    from musiccli.core import jsonl
    from musiccli.core.errors import InputError
    from musiccli.core.progress import say, table
    from musiccli.core.store import Store
    from musiccli.llm.client import cache_path

    if model and prune is None:
        raise InputError("--model says whose calls --prune removes; give both")
    path = cache_path(cache)
    if not path.exists():
        say(f"music cache: {path}: no calls are kept there yet")
        return
    kept = Store(path)
    if prune is not None:
        say(f"music cache: {kept.prune(time.time() - prune * 86400, model):,} calls removed")
    output, rows = jsonl.open_output(), []
    for name, calls, size, *moments in kept.models():
        first, last = (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at)) for at in moments)
        output.write(
            {"model": name or None, "calls": calls, "bytes": size, "first": first, "last": last}
        )
        rows.append([name or "(unknown)", f"{calls:,}", f"{size / 1e6:.1f}", first[:10], last[:10]])
    output.close()
    if rows:
        table(["", "calls", "MB", "first", "last"], rows)
    say(f"music cache: {path}, {path.stat().st_size / 1e6:.1f} MB")
    kept.close()
