"""The app, and the manners every command shares: its inputs and outputs, its last line, its exit status."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial

import typer

from musiccli import __version__
from musiccli.cli.options import FILES, ON_ERROR, OUTPUT, REJECTS, OnError
from musiccli.cli.wording import as_typed
from musiccli.core import jsonl
from musiccli.core.errors import ExitStatus, InputError, MusicError
from musiccli.core.progress import Clock, bar, say
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats

app = typer.Typer(
    name="music",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="""Multi-turn reward models from multi-step instruction contrast.

\b
music sample pairs.jsonl -n 100 | music simulate --turns 3 | music pair > music.jsonl
music train pairs.jsonl music.jsonl --out rm
music score candidates.jsonl --model rm

Every command reads and writes JSONL; what is meant for people goes to stderr.""",
)


def version(wanted: bool) -> None:
    if wanted:
        print(f"music {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=version, is_eager=True, help="Print the version."
    ),
    debug: bool = typer.Option(
        False, "--debug", help="Show the whole trace of an error; may stand anywhere."
    ),
):
    pass


class Run:
    """One run of one command: the records it reads, the records it writes, and what it says at its end."""

    def __init__(
        self,
        name: str,
        files: list[str],
        output: str | None,
        on_error: OnError,
        rejects: str | None,
    ):
        self.name, self.files, self.clock = name, files, Clock()
        self.counts: Counter[str] = (
            Counter()
        )  # named outcomes for the last line: stages count into it
        self.limits: list[str] = []  # what stopped the run early, if anything
        self.read_count = 0
        self.live: Callable[[], str] = (
            str  # what stands behind the progress bar, asked again and again
        )
        self._shows = False
        if rejects and any(
            jsonl.same_file(rejects, other) for other in (output, *(set(files) - {"-"}))
        ):
            raise InputError(
                f"--rejects {rejects}: this run's own input or output; name another file"
            )
        self._output = jsonl.open_output(output)
        try:
            self.rejects = jsonl.Rejects(
                skip=on_error is OnError.skip, path=rejects, report=self.say
            )
        except InputError:
            self._output.discard()
            raise
        self.stats = RunStats(self.rejects, self.say)
        self.stats.limits = self.limits

    @property
    def on_terminal(self) -> bool:
        """Whether a person sees the output as it is written."""
        return self._output.on_terminal

    @property
    def output(self) -> str:
        """Where the records go: a path, or "-"."""
        return self._output.name

    def say(self, text: str) -> None:
        say(f"music {self.name}: {' '.join(as_typed(text).splitlines())}")

    def read(self, parse: Callable[[Record], Record], *, unique: bool = True) -> Iterator[Record]:
        """The input's records, checked and counted."""

        def counted(found: Iterator[Record]) -> Iterator[Record]:
            for record in found:
                self.read_count += 1
                yield record

        if jsonl.from_keyboard(self.files):
            self.say(
                "waiting for records from the keyboard, one a line; Ctrl-D ends them, Ctrl-C leaves"
            )
        return counted(jsonl.read(self.files, parse, self.rejects, unique=unique))

    def in_processes(self, processes: int | None, config: str | None) -> None:
        """Where several processes are asked for and not there yet: start this same command in them, and end with it."""
        from musiccli.core import processes as launch

        if not launch.launched() and (config or (processes or 1) > 1):
            self.rejects.close()  # the processes write it
            raise typer.Exit(launch.relaunch(self.files, processes=processes, config=config))

    def write(self, results: Iterable[dict], total: int | None = None) -> None:
        """Write what a stage yields, as it comes."""
        with bar(self.name, total, self.live) as progress:
            for record in results:
                self._output.write(record)
                progress.advance()

    def show(self, pieces: Iterable[str], path: str | None = None) -> None:
        """Write text for people, to `path` or where records would go; the last line then speaks only of failures."""
        self._shows = True
        if path:
            self._output.discard()
            self._output = jsonl.open_output(path)
        for piece in pieces:
            self._output.write_bytes(piece.encode("utf-8", "replace"))

    def withhold(self) -> None:
        """This run only informs: an output that exists stays as it is."""
        self._shows = True
        self._output.discard()

    def finish(self) -> None:
        """Complete the output and say in one line what happened."""
        self._output.close()
        self.rejects.close()
        if self._shows and not (self.rejects.count or self.limits):
            return
        did = (
            f"{self.read_count:,} records read"
            if self._shows
            else f"{self._output.count:,} records written"
        )
        said = [f"{did} in {self.clock}"]
        counts = {**self.counts, **self.stats.phrases()}
        said += [f"{count:,} {what}" for what, count in sorted(counts.items()) if count]
        said += [f"{self.rejects.count:,} failed"] if self.rejects.count else []
        said += self.limits
        self.say("; ".join(said))
        if self.rejects.count or self.limits:
            raise typer.Exit(ExitStatus.PARTIAL)

    def discard(self) -> None:
        """End without a result: the output does not appear; what was rejected so far is kept."""
        self._output.discard()
        with suppress(MusicError):  # something else went wrong before, and is said
            self.rejects.close()


def stage(
    name: str | None = None, *, to: typer.Typer | None = None, **settings
) -> Callable[[Callable], Callable]:
    """A command that reads records and writes records: adds the common options and hands `body` a Run.

    `body(run, ...)` declares only the options that are its own. A body that does not read records from files
    takes its own argument and declares `reads=False`; one that writes no records declares `writes=False` and gets no
    --output. A command of a group is added `to` that group's app, under the
    last word of its name.
    """
    reads, writes = settings.pop("reads", True), settings.pop("writes", True)

    def decorate(body: Callable) -> Callable:
        own = [
            p for p in inspect.signature(body, eval_str=True).parameters.values() if p.name != "run"
        ]
        option = partial(inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY)
        common = [
            option("on_error", annotation=ON_ERROR, default=OnError.stop),
            option("rejects", annotation=REJECTS, default=None),
        ]
        if writes:
            common.insert(0, option("output", annotation=OUTPUT, default=None))
        if reads:
            common.insert(0, option("files", annotation=FILES, default=None))
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]

        def command(*, on_error, rejects, output=None, files=None, **options):
            run = Run(name or body.__name__, files or [], output, on_error, rejects)
            if not writes:
                run.withhold()
            try:
                body(run, **options)
                run.finish()
            except BaseException:
                run.discard()
                raise

        command.__doc__ = body.__doc__
        command.__signature__ = inspect.Signature([*own, *common])
        command.__annotations__ = {p.name: p.annotation for p in [*own, *common]}
        (to or app).command((name or body.__name__).split()[-1], **settings)(command)
        return body

    return decorate
