"""What people see while a command runs: lines on stderr, and a progress bar on a terminal."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from musiccli.core.text_safety import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

Item = TypeVar("Item")
_console: "Console | None" = None  # set while a bar is shown: lines must go above it
_quiet = False  # whether only errors are written


def be_quiet() -> None:
    """From here on write nothing but errors."""
    global _quiet
    _quiet = True


def say(text: str, *, error: bool = False) -> None:
    """Write one line to stderr; after `be_quiet` only if it is an `error`."""
    if _quiet and not error:
        return
    text = visible(text)
    if _console:
        from rich.text import Text

        _console.print(Text(text), soft_wrap=True)
    else:
        print(text, file=sys.stderr, flush=True)


class Bar:
    """A progress bar that shows nothing, for use without a terminal."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count items that are done; `note` is shown behind the bar."""

    def track(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; each is counted when the next one is asked for."""
        for item in items:
            yield item
            self.advance()


class _TerminalBar(Bar):
    def __init__(self, progress: "Progress", task: "TaskID") -> None:
        self._progress, self._task = progress, task

    def advance(self, count: int = 1, note: str = "") -> None:
        self._progress.update(self._task, advance=count, note=note)


@contextlib.contextmanager
def bar(
    label: str, total: float | None = None, status: Callable[[], str] = lambda: ""
) -> Iterator[Bar]:
    """A progress bar on stderr.

    It is shown only if stderr is a terminal and stdout is not. It is not shown within another bar
    or after `be_quiet`.

    Args:
        label: stands before the bar.
        total: how many items there will be, if that is known.
        status: is called several times a second; its text stands behind the bar.
    """
    global _console
    if _quiet or _console or not sys.stderr.isatty() or (sys.stdout and sys.stdout.isatty()):
        yield Bar()
        return
    from rich import progress as rich
    from rich.console import Console
    from rich.text import Text

    class StatusColumn(rich.ProgressColumn):
        def render(self, task: rich.Task) -> Text:
            return Text(status())

    console = Console(stderr=True)
    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(40 if total else 10),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.fields[note]}", markup=False),
        StatusColumn(),
    )
    with rich.Progress(*columns, console=console, transient=True) as progress:
        _console = console
        try:
            yield _TerminalBar(progress, progress.add_task(label, total=total, note=""))
        finally:
            _console = None


def table(columns: list[str], rows: list[list[str]], title: str = "") -> None:
    """Write a table to stderr: the first column aligned left, the others right."""
    if _quiet:
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def one_line(text: str, style: str = "") -> Text:
        return Text(visible(" ".join(text.splitlines())), style)

    rich_table = Table(
        title=one_line(title, "table.title") if title else None,
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for index, column in enumerate(columns):
        rich_table.add_column(
            one_line(column), justify="left" if index == 0 else "right", overflow="fold"
        )
    for row in rows:
        rich_table.add_row(*map(one_line, row))
    width = None if sys.stderr.isatty() else 120
    Console(stderr=True, width=width).print(rich_table)


def show_markdown(text: str) -> None:
    """Show Markdown on a terminal, formatted, a screen at a time."""
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.theme import Theme

    os.environ.setdefault("LESS", "-FRX")  # colors; no paging of what fits on the screen
    plain = Theme({"markdown.code": "cyan"})  # the default puts code on black, in any terminal
    console = Console(width=min(100, Console().width), theme=plain)
    with console.pager(styles=True):
        console.print(Markdown(text, code_theme="ansi_dark"))


class Clock:
    """Measures the time since it was created."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._start

    def __str__(self) -> str:
        """The time so far, as "3.2 s", "5 min 7 s" or "2 h 10 min"."""
        seconds = self.seconds
        if seconds < 60:
            return f"{seconds:.1f} s"
        minutes = int(seconds) // 60
        if minutes < 60:
            return f"{minutes} min {int(seconds) % 60} s"
        return f"{minutes // 60} h {minutes % 60} min"
