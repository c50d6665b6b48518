"""What each run has used, kept in the call cache: calls, tokens and money of each role and model.

A run has an id of its own. So the ledgers of several machines can be joined, in any order and more
than once, and then added up.
"""

import secrets
import time
from dataclasses import asdict, dataclass
from typing import Any

from musiccli.core.store import Store
from musiccli.llm.usage import Usage, UsageByModel

SAVE_SECONDS = 10.0  # a run that is killed loses its last counts, but no finished call
# price_unknown is how many replies have no known cost; it once was whether there are any.
CREATE_TABLE = (
    "create table if not exists runs (run text, command text, role text, model text, "
    "started integer, ended integer, calls integer, cached integer, retries integer, "
    "prompt_tokens integer, completion_tokens integer, cost real, price_unknown integer, "
    "primary key (run, role, model))"
)


@dataclass(frozen=True)
class LedgerEntry:
    """What one role used of one model in one run.

    Attributes:
        run: the run's id.
        command: what ran, as "simulate" or "simulate 3/8".
        started: Unix time in seconds.
        ended: the same, of its end or of the last time at which it was seen alive.
        used: calls, tokens and money.
    """

    run: str
    command: str
    role: str
    model: str
    started: int
    ended: int
    used: Usage


class Ledger:
    """The runs in a call cache, and the present one.

    Args:
        store: the call cache.
        command: what runs now; only `save` needs it.
    """

    def __init__(self, store: Store, command: str = ""):
        self._store, self._command = store, command
        self._run, self._started = secrets.token_hex(8), int(time.time())
        self._next_save = time.monotonic() + SAVE_SECONDS
        store.execute(CREATE_TABLE)

    def save_if_due(self, usage: UsageByModel) -> None:
        """Save what the run has used so far, if that was last done SAVE_SECONDS ago."""
        if time.monotonic() >= self._next_save:
            self.save(usage)

    def save(self, usage: UsageByModel) -> None:
        """Save what the run has used so far."""
        self._next_save = time.monotonic() + SAVE_SECONDS
        for (role, model), used in usage.items():
            if used != Usage():
                fixed = (self._run, self._command, role, model, self._started, int(time.time()))
                self._store.execute(
                    f"insert or replace into runs values ({', '.join('?' * 13)})",
                    *fixed,
                    *asdict(used).values(),
                )

    def entries(self) -> list[LedgerEntry]:
        """All entries, the oldest run first."""
        rows = self._store.execute("select * from runs order by started, command, run, role, model")
        return [_entry(*row) for row in rows.fetchall()]

    def add_attached(self) -> int:
        """Copy the runs of the attached store; return how many entries are new or have grown."""
        is_kept = "select 1 from other.sqlite_master where name = 'runs'"
        if not self._store.execute(is_kept).fetchone():
            return 0
        return self._store.execute(
            "insert or replace into runs select * from other.runs as theirs where not exists "
            "(select 1 from main.runs as mine where mine.run = theirs.run and "
            "mine.role = theirs.role and mine.model = theirs.model and mine.ended >= theirs.ended)"
        ).rowcount


def _entry(
    run: str, command: str, role: str, model: str, started: int, ended: int, *numbers: Any
) -> LedgerEntry:
    return LedgerEntry(run, command, role, model, started, ended, Usage(*numbers))
