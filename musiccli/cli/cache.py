"""music cache | jq -s 'map(.calls) | add'"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from musiccli.cli.app import plain_command
from musiccli.cli.llm_options import CACHE
from musiccli.cli.paths import READ

if TYPE_CHECKING:
    from musiccli.core.store import Store
    from musiccli.llm.ledger import Ledger
    from musiccli.llm.usage import Usage

SECONDS_PER_DAY = 86400


@plain_command
def cache(
    cache: CACHE = None,
    runs: Annotated[
        bool,
        typer.Option(
            "--runs",
            help="Show what each run has used, one record for each role and model, in place of "
            "what is kept.",
        ),
    ] = False,
    add: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Copy the calls and runs of another machine's cache into this one; may be given "
            "several times.",
        ),
        READ,
    ] = None,
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
    music cache --runs | jq -s 'map(.cost) | add'
    music cache --prune 30 --model gemini/gemini-2.5-flash

    A call that was removed is made, and paid for, again when a run asks for it. Tokenized pairs
    are looked at unless --cache names another file; `train` makes them again.
    """
    import time
    from contextlib import closing

    from musiccli.core.errors import InputError
    from musiccli.core.progress import say
    from musiccli.core.store import Store
    from musiccli.llm.client import cache_path
    from musiccli.llm.ledger import Ledger

    if model and prune is None:
        raise InputError("`model` says whose calls `prune` removes; give both")
    if not cache:
        _show_tokenized_pairs(None if model else prune)
    path = cache_path(cache)
    _check_added(add or ())
    if not path.exists() and not add:
        say(f"music cache: {path}: no calls are kept there yet")
        return
    with closing(Store(path)) as store:
        ledger = Ledger(store)
        for file in add or ():
            _add(store, ledger, file)
        if prune is not None:
            removed = store.prune(time.time() - prune * SECONDS_PER_DAY, model)
            say(f"music cache: {removed:,} calls removed")
        if runs:
            _show_runs(ledger)
        else:
            _show_models(store)
    say(f"music cache: {path}, {path.stat().st_size / 1e6:,.1f} MB")


def _check_added(files: Iterable[str]) -> None:
    """Raises InputError for a file that is not there: a store would make a new one."""
    from pathlib import Path

    from musiccli.core.errors import InputError

    for file in files:
        if not Path(file).exists():
            raise InputError(f"`add` {file}: no such file")


def _add(store: "Store", ledger: "Ledger", file: str) -> None:
    """Copy what another cache holds into this one."""
    from musiccli.core.progress import say

    with store.attached(file):
        calls, entries = store.add_attached(), ledger.add_attached()
    say(f"music cache: {file}: {calls:,} calls and {entries:,} lines of runs added")


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


def _show_models(store: "Store") -> None:
    """Write one record a model, and the same as a table for people."""
    records, rows = [], []
    for used in store.models():
        first, last = _time(used.first), _time(used.last)
        records.append(
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
    _show(records, ["", "calls", "MB", "first", "last"], rows)


def _show_runs(ledger: "Ledger") -> None:
    """Write one record for each run, role and model, and their sums as a table for people."""
    from collections import defaultdict

    from musiccli.llm.usage import Usage, money

    records = []
    sums: dict[tuple[str, str], Usage] = defaultdict(Usage)
    for entry in ledger.entries():
        used = entry.used
        records.append(
            {
                "run": entry.run,
                "command": entry.command,
                "role": entry.role,
                "model": entry.model,
                "started": _time(entry.started),
                "ended": _time(entry.ended),
                "calls": used.calls,
                "cached": used.cached,
                "retries": used.retries,
                "prompt_tokens": used.prompt_tokens,
                "completion_tokens": used.completion_tokens,
                "cost": None if used.unpriced and not used.cost else used.cost,
                "price_unknown": used.unpriced > 0,
            }
        )
        sums[entry.role, entry.model] += used
    total = sum(sums.values(), Usage())
    lines = [(f"{role} {model}", {(role, model): used}) for (role, model), used in sums.items()]
    rows = [
        [label, *_counts(sum(part.values(), Usage())), money(part)]
        for label, part in [*sorted(lines), ("all", sums)]
    ]
    columns = ["", "calls", "from cache", "retried", "tokens in", "tokens out", "cost"]
    _show(records, columns, rows if total != Usage() else [])


def _counts(used: "Usage") -> list[str]:
    numbers = (used.calls, used.cached, used.retries, used.prompt_tokens, used.completion_tokens)
    return [f"{number:,}" for number in numbers]


def _show(records: Iterable[dict[str, Any]], columns: list[str], rows: list[list[str]]) -> None:
    """Write records, and a table on stderr where it has any row."""
    from musiccli.core import jsonl
    from musiccli.core.progress import table

    output = jsonl.open_output()
    for record in records:
        output.write(record)
    output.close()
    if rows:
        table(columns, rows)


def _time(seconds: int) -> str:
    """A Unix time as people and programs read it."""
    import time

    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
