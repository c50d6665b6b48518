"""What people see while a command runs: plain lines on stderr, and a progress bar when stderr is a terminal."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from musiccli.core.text_safety import visible

Item = TypeVar("Item")
_console = None  # rich's console while a bar is on the screen: lines must go above the bar


_quiet = False  # whether only errors are printed


def be_quiet() -> None:
    """From here on print nothing but errors."""
    global _quiet
    _quiet = True


def say(text: str, *, error: bool = False) -> None:
    """Print one line for people; after `be_quiet` only where it is an `error`."""
    if _quiet and not error:
        return
    text = visible(text)
    if _console:
        from rich.text import Text

        _console.print(Text(text), soft_wrap=True)
    else:
        print(text, file=sys.stderr, flush=True)


class Bar:
    """Counts what is done. This one draws nothing: it stands where there is no terminal."""

    def advance(self, count: int = 1, note: str = "") -> None: ...

    def track(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, counted as they are taken."""
        for item in items:
            yield item
            self.advance()


class _TerminalBar(Bar):
    def __init__(self, bars, task):
        self._bars, self._task = bars, task

    def advance(self, count: int = 1, note: str = "") -> None:
        self._bars.update(self._task, advance=count, note=note)


@contextlib.contextmanager
def bar(label: str, total: float | None = None, live: Callable[[], str] = str) -> Iterator[Bar]:
    """A progress bar on stderr; nothing at all when stderr is not a terminal or stdout shows records on one.

    `live` is asked several times a second for words that stand behind the bar.
    """
    global _console
    if _quiet or _console or not sys.stderr.isatty() or (sys.stdout and sys.stdout.isatty()):
        yield Bar()
        return
    from rich import progress as rich
    from rich.console import Console
    from rich.text import Text

    class Live(rich.ProgressColumn):
        def render(self, task: rich.Task) -> Text:
            return Text(live())

    console = Console(stderr=True)
    note = rich.TextColumn("{task.fields[note]}", markup=False)
    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(40 if total else 10),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
        note,
        Live(),
    )
    with rich.Progress(*columns, console=console, transient=True) as bars:
        _console = console
        try:
            yield _TerminalBar(bars, bars.add_task(label, total=total, note=""))
        finally:
            _console = None


def table(columns: list[str], rows: list[list[str]], title: str = "") -> None:
    """A table on stderr: the first column to the left, numbers to the right."""
    if _quiet:
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def shown(text: str, style: str = "") -> Text:
        return Text(visible(" ".join(text.splitlines())), style)

    drawn = Table(
        title=shown(title, "table.title") if title else None,
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for index, column in enumerate(columns):
        drawn.add_column(shown(column), justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*map(shown, row))
    width = None if sys.stderr.isatty() else 120
    Console(stderr=True, width=width).print(drawn)


def show_markdown(text: str) -> None:
    """Show Markdown on a terminal, formatted, a screen at a time."""
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console(width=min(100, Console().width))
    with console.pager(styles=True):
        console.print(Markdown(text))


class Clock:
    """Seconds since it was made, printed as people say it."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def __str__(self) -> str:
        seconds = self.seconds
        if seconds < 60:
            return f"{seconds:.1f} s"
        minutes, seconds = divmod(int(seconds), 60)
        return (
            f"{minutes // 60} h {minutes % 60} min"
            if minutes >= 60
            else f"{minutes} min {seconds} s"
        )
