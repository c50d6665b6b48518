"""music cache | jq -s 'map(.calls) | add'"""

from typing import TYPE_CHECKING, Annotated

import typer

from musiccli.cli.app import plain_command
from musiccli.cli.llm_options import CACHE

if TYPE_CHECKING:
    from musiccli.core.store import Store

SECONDS_PER_DAY = 86400


@plain_command
def cache(
    cache: CACHE = None,
    prune: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="DAYS",
            show_default=False,
            help="Remove calls that are older, and tokenized pairs unused for as long; left out: "
            "only look.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            show_default=False,
            help="Prune this model's calls only, and no tokenized pairs; left out: all models'.",
        ),
    ] = None,
) -> None:
    """Show what finished calls are kept on disk, one record a model, and remove old ones.

    \b
    music cache | jq -s 'map(.calls) | add'
    music cache --prune 30 --model gemini/gemini-1.5-pro

    A call that was removed is made, and paid for, again when a run asks for it. Tokenized pairs
    are looked at unless --cache names another file; `train` makes them again.
    """
    import time
    from contextlib import closing

    from musiccli.core.errors import InputError
    from musiccli.core.progress import say
    from musiccli.core.store import Store
    from musiccli.llm.client import cache_path

    if model and prune is None:
        raise InputError("`model` says whose calls `prune` removes; give both")
    if not cache:
        _show_tokenized_pairs(None if model else prune)
    path = cache_path(cache)
    if not path.exists():
        say(f"music cache: {path}: no calls are kept there yet")
        return
    with closing(Store(path)) as store:
        if prune is not None:
            removed = store.prune(time.time() - prune * SECONDS_PER_DAY, model)
            say(f"music cache: {removed:,} calls removed")
        _show(store)
    say(f"music cache: {path}, {path.stat().st_size / 1e6:.1f} MB")


def _show_tokenized_pairs(prune: float | None) -> None:
    """Remove what no run has used for `prune` days, and say how much there is."""
    import time

    from musiccli.core.cache_folder import TOKENS, cache_folder, folder_size, remove_unused
    from musiccli.core.progress import say

    folder = cache_folder() / TOKENS
    if not folder.is_dir():
        return
    if prune is not None:
        removed = remove_unused(folder, time.time() - prune * SECONDS_PER_DAY)
        say(f"music cache: {removed / 1e6:,.1f} MB of tokenized pairs removed")
    say(f"music cache: {folder}, {folder_size(folder) / 1e6:,.1f} MB of tokenized pairs")


def _show(store: "Store") -> None:
    """Write one record a model, and the same as a table for people."""
    import time

    from musiccli.core import jsonl
    from musiccli.core.progress import table

    output, rows = jsonl.open_output(), []
    for used in store.models():
        first, last = (
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
            for seconds in (used.first, used.last)
        )
        output.write(
            {
                "model": used.model or None,
                "calls": used.entries,
                "bytes": used.size,
                "first": first,
                "last": last,
            }
        )
        rows.append(
            [
                used.model or "(unknown)",
                f"{used.entries:,}",
                f"{used.size / 1e6:.1f}",
                first[:10],
                last[:10],
            ]
        )
    output.close()
    if rows:
        table(["", "calls", "MB", "first", "last"], rows)
