"""One run of one command: its input and output, its last line, its exit status."""

import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import typer

from musiccli.cli.app import Command, app, first_line
from musiccli.cli.numbers import prepare_numbers
from musiccli.cli.option_names import as_typed
from musiccli.cli.options import FILES, ON_ERROR, OUTPUT, REJECTS, OnError
from musiccli.cli.paths import path_uses, refuse_same_paths, refuse_unusable_paths
from musiccli.core import jsonl
from musiccli.core.errors import ExitStatus, InputError, MusicError
from musiccli.core.progress import Clock, bar, say
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats

Item = TypeVar("Item")


class Run:
    """One run of one command.

    Attributes:
        name: the name of the command, without `music`.
        files: the inputs named on the command line; none means standard input.
        clock: the time since the run began.
        stats: what stages count, and where they speak to people.
        read_count: how many records were read so far.
        live: returns the text after the progress bar; called several times a second.
    """

    def __init__(
        self,
        name: str,
        files: list[str],
        output: str | None,
        on_error: OnError,
        rejects: str | None,
    ):
        self.name, self.files, self.clock = name, files, Clock()
        self.read_count = 0
        self._shard: jsonl.Shard | None = None
        self.live: Callable[[], str] = str
        self._only_informs = False
        if _follows():  # the first process of the group writes the files
            output = rejects = None
        self._output = jsonl.open_output(output)
        try:
            rejects_file = jsonl.Rejects(
                skip=on_error is OnError.skip, path=rejects, report=self.say_error
            )
        except InputError:
            self._output.discard()
            raise
        self.stats = RunStats(rejects_file, self.say)

    @property
    def on_terminal(self) -> bool:
        """Whether a person sees the output as it is written."""
        return self._output.on_terminal

    @property
    def title(self) -> str:
        """The command, and the shard that it works on, as "simulate 3/8"."""
        return f"{self.name} {self._shard}" if self._shard else self.name

    @property
    def output(self) -> str:
        """Where the records go: a path, or "-"."""
        return self._output.name

    def say(self, text: str) -> None:
        """Print one line for people; --quiet suppresses it."""
        say(self._line(text))

    def say_error(self, text: str) -> None:
        """Print one line for people about something that failed."""
        say(self._line(text), error=True)

    def _line(self, text: str) -> str:
        return f"music {self.name}: {' '.join(as_typed(text).splitlines())}"

    def read(
        self,
        parse: Callable[[Record], Record],
        *,
        unique: bool = True,
        shard: str | None = None,
    ) -> Iterator[Record]:
        """The input's records, or those of a shard, checked by `parse` and counted.

        With `unique`, a second record of one id, branch and sample is an error.
        """
        lines = self._lines(shard)
        return self._counted(jsonl.parse_lines(lines, parse, self.stats.rejects, unique=unique))

    def record_files(
        self, parse: Callable[[Record], Record], *, unique: bool = True
    ) -> jsonl.RecordFiles:
        """The input, for a stage that keeps what it makes of files that have not changed.

        The command sets `read_count` at its end.
        """
        self._say_if_waiting()
        return jsonl.RecordFiles(self.files, parse, unique)

    def read_lines(self, *, shard: str | None = None, block: int = 1) -> Iterator[jsonl.Line]:
        """The lines of the input or of a shard, counted, for a stage that parses them itself.

        No two shards share a `block` of lines.
        """
        return self._counted(self._lines(shard, block))

    def _lines(self, shard: str | None, block: int = 1) -> Iterator[jsonl.Line]:
        self._say_if_waiting()
        if not shard:
            return jsonl.read_lines(self.files)
        self._shard = jsonl.parse_shard(shard)
        return self._shard.lines(self.files, block)

    def refuse_first_record(self, parse: Callable[[Record], Record]) -> None:
        """Raise RecordError where the first record is bad, and ends the run: before a model loads.

        Input that can be read only once is not looked at.
        """
        if not self.stats.rejects.skip:
            jsonl.RecordFiles(self.files, parse).first(1)

    def _say_if_waiting(self) -> None:
        if jsonl.from_keyboard(self.files):
            self.say(
                "waiting for records from the keyboard, one a line; Ctrl-D ends them, Ctrl-C leaves"
            )

    def _counted(self, items: Iterator[Item]) -> Iterator[Item]:
        for item in items:
            self.read_count += 1
            yield item

    def in_processes(self, processes: int | None, config: str | None) -> None:
        """Start this same command in several processes, and end with them.

        Does nothing where one process is enough, or where this is one of them already.

        Raises InputError where those of another launcher would share standard input.
        """
        from musiccli.core.processes import launched, refuse_shared_input, relaunch

        refuse_shared_input(self.files)
        if not launched() and (config or (processes or 1) > 1):
            self._output.discard()  # the processes write both
            self.stats.rejects.discard()
            raise typer.Exit(relaunch(self.files, processes=processes, config=config))

    def write(self, results: Iterable[dict[str, Any] | bytes], total: int | None = None) -> None:
        """Write the records that a stage yields, or their JSON, as they come."""
        with bar(self.name, total, self.live) as progress:
            for record in results:
                self._output.write(record)
                progress.advance()

    def show(self, pieces: Iterable[str], path: str | None = None) -> None:
        """Write text for people, to `path` or where records would go.

        The last line of the run then speaks only of what failed.
        """
        self._only_informs = True
        if path:
            self._output.discard()
            self._output = jsonl.open_output(path)
        for piece in pieces:
            self._output.write_bytes(piece.encode("utf-8", "replace"))

    def withhold(self) -> None:
        """Write no records: this run only informs, and an output that exists stays as it is."""
        self._only_informs = True
        self._output.discard()

    def finish(self) -> None:
        """Complete the output and say in one line what happened.

        Raises typer.Exit with status 1 where records failed, a limit stopped the run, or nothing
        came of what was read.
        """
        self._output.close()
        self.stats.rejects.close()
        incomplete = bool(self.stats.rejects.count or self.stats.limits)
        summary = "; ".join(self._summary())
        if self._wrote_nothing():
            self.say_error(f"{summary}; nothing came out{self._example()}")
        elif not self._only_informs or incomplete:
            self.say(summary)
        if incomplete or self._wrote_nothing():
            raise typer.Exit(ExitStatus.PARTIAL)

    def _wrote_nothing(self) -> bool:
        """Whether nothing came of what was read. Ties alone are no fault: they make no pair."""
        number_read = self.read_count or self.stats.number("rows_read")
        ties = self.stats.number("dropped", "tie")
        return number_read > ties and not self._output.count and not self._only_informs

    def _example(self) -> str:
        """A record that nothing came of, and why; of several outcomes the most frequent one."""
        examples = self.stats.examples
        outcome = max(examples, key=lambda outcome: self.stats.counts[outcome], default=None)
        return f", for example of {examples[outcome]}: {outcome}" if outcome else ""

    def _summary(self) -> list[str]:
        number, verb = self._output.count, "written"
        if self._only_informs:
            number, verb = self.read_count, "read"
        return [
            f"{number:,} records {verb} in {self.clock}",
            *(f"{count:,} {outcome}" for outcome, count in self.stats.phrases().items()),
            *([f"{self.stats.rejects.count:,} failed"] if self.stats.rejects.count else []),
            *self.stats.limits,
        ]

    def discard(self) -> None:
        """End without a result. The output does not appear, but the rejects so far are kept."""
        self._output.discard()
        with suppress(MusicError):  # another error ended the run, and that one is reported
            self.stats.rejects.close()


def _follows() -> bool:
    """Whether this is not the first of several processes that run the command together."""
    if os.environ.get("RANK", "0") == "0":
        return False
    from musiccli.core.processes import launched

    return launched()


def stage(
    name: str | None = None,
    *,
    to: typer.Typer | None = None,
    reads: bool = True,
    writes: bool = True,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of `body(run, ...)`, which declares only the options of its own.

    Args:
        name: the command's name with its group's, as "bench winrate"; left out, the function's.
        to: the app of the group that the command belongs to; left out, the program itself.
        reads: whether it reads records from FILEs; else it declares its own argument.
        writes: whether it writes records; else it has no --output.
    """

    def decorate(body: Callable[..., None]) -> Callable[..., None]:
        full_name = name or body.__name__

        def command(
            *,
            on_error: OnError,
            rejects: str | None,
            files: list[str] | None = None,
            output: str | None = None,
            **options: Any,
        ) -> None:
            typed = {"files": files, "output": output, "rejects": rejects, **options}
            refuse_same_paths(uses, typed)
            run = Run(full_name, files or [], output, on_error, rejects)
            if not writes:
                run.withhold()
            try:
                if not _follows():  # the first process says it
                    refuse_unusable_paths(uses, typed)
                body(run, **options)
                run.finish()
            except BaseException:
                run.discard()
                raise

        options, common = _own_parameters(body), _common_parameters(reads, writes)
        uses = path_uses({option.name: option.annotation for option in (*common, *options)})
        parameters = [*options, *common]
        prepare_numbers(parameters)
        command.__doc__ = body.__doc__
        command.path_uses = uses  # type: ignore[attr-defined]  # for tests
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        summary = first_line(body.__doc__)
        register = (to or app).command(full_name.split()[-1], cls=Command, short_help=summary)
        register(command)
        return body

    return decorate


def _own_parameters(body: Callable[..., None]) -> list[inspect.Parameter]:
    """The parameters of a command but its Run, keyword-only so that their order is free."""
    parameters = inspect.signature(body, eval_str=True).parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    return [parameter.replace(kind=keyword) for parameter in parameters if parameter.name != "run"]


def _common_parameters(reads: bool, writes: bool) -> list[inspect.Parameter]:
    option = partial(inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY)
    return [
        *([option("files", annotation=FILES, default=None)] if reads else []),
        *([option("output", annotation=OUTPUT, default=None)] if writes else []),
        option("on_error", annotation=ON_ERROR, default=OnError.stop),
        option("rejects", annotation=REJECTS, default=None),
    ]
