"""What every `music bench` does with its metric records: writes them, shows tables, and draws pictures and pages."""

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from musiccli import __version__
from musiccli.cli.run import Run
from musiccli.core import jsonl, progress
from musiccli.core.errors import InputError
from musiccli.core.records import Record


class Report:
    """The files asked for beside the records. Raises InputError for one that cannot be, before anything is read."""

    def __init__(
        self,
        run: Run,
        models: list[str] | None,
        plot: str | None,
        html: str | None,
        markdown: str | None,
    ):
        from musiccli.bench.report.worst_records import Worst

        self.run, self.plot, self.html, self.markdown = run, plot, html, markdown
        self.worst = Worst(models or ())
        self._check({"--plot": plot, "--html": html, "--markdown": markdown})

    def watch(
        self, found: Iterable[Record], remember: Callable[..., Iterator[Record]], *more: object
    ) -> Iterable[Record]:
        """The same records; for a page, `remember`, a method of `worst`, keeps the worst of them."""
        return remember(found, *more) if self.html else found

    def write(self, rows: list[dict], confidence: float) -> None:
        """Metric records to the output, tables and notes to stderr, pictures and pages to their files."""
        from musiccli.bench.report import markdown, tables

        self.run.write(rows)
        shown, notes = tables.tables(rows, confidence), tables.notes(rows)
        for table in shown:
            progress.table(table.columns, table.cells, table.title)
        for note in notes:
            self.run.say(note)
        if self.plot and rows:
            from musiccli.bench.report import plots
            from musiccli.core import figures

            save(self.plot, [plots.draw(rows, figures.figure_format(self.plot))])
        if self.markdown:
            save(self.markdown, (piece.encode() for piece in markdown.document(shown, notes)))
        if self.html:
            save(
                self.html,
                (piece.encode("utf-8", "replace") for piece in self._page(rows, shown, notes)),
            )

    def _page(self, rows: list[dict], shown: list, notes: list[str]) -> Iterator[str]:
        from musiccli.bench.report import html, tables
        from musiccli.show.html import record_html

        worst = (
            html.WorstRecord(model, str(record["id"]), how, record_html(record))
            for model, how, record in self.worst.found()
        )
        title = tables.TITLES[rows[0]["benchmark"]] if rows else self.run.name
        lead = f"{self.run.read_count:,} records, read by music {self.run.name}"
        return html.html_page(
            title, lead, self._picture(rows), shown, notes, worst, self._provenance()
        )

    def _picture(self, rows: list[dict]) -> bytes | None:
        from musiccli.bench.report import plots

        try:
            return (
                plots.draw(rows, "svg", **{"svg.fonttype": "none", "font.family": "sans-serif"})
                if rows
                else None
            )
        except ImportError:
            self.run.say(
                f'{self.html}: has no picture, matplotlib is missing; pip install "musiccli[plot]"'
            )
            return None

    def _provenance(self) -> object:
        import platform
        from importlib.metadata import version

        from musiccli.bench.report.html import Provenance

        digests = {name: jsonl.sha256(name) for name in self.run.files or ["-"]}
        inputs = [
            (name, f"sha256 {digest}" if digest else "a pipe, which left nothing to name")
            for name, digest in digests.items()
        ]
        versions = [
            ("music", __version__),
            ("Python", platform.python_version()),
            ("numpy", version("numpy")),
        ]
        return Provenance(shlex.join(["music", *sys.argv[1:]]), inputs, versions)

    def _check(self, targets: dict[str, str | None]) -> None:
        from musiccli.core import figures

        if self.plot:
            figures.check_figure_path(self.plot)
        taken = [self.run.output, *self.run.files]
        for option, path in targets.items():
            if not path:
                continue
            if path == "-" or any(jsonl.same_file(path, other) for other in taken):
                raise InputError(f"{option} {path}: something else goes there; name another file")
            if not Path(path).parent.is_dir():
                raise InputError(f"{option} {path}: there is no such folder")
            taken.append(path)


def save(path: str, pieces: Iterable[bytes]) -> None:
    """A file, whole or not at all."""
    target = jsonl.open_output(path)
    try:
        for piece in pieces:
            target.write_bytes(piece)
    except BaseException:
        target.discard()
        raise
    target.close()
