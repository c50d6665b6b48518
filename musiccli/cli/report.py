"""What every `music bench` does with its metric records: writes, tables, a figure and a page."""

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musiccli import __version__
from musiccli.cli.files import save
from musiccli.cli.run import Run
from musiccli.core import jsonl, progress
from musiccli.core.errors import InputError
from musiccli.core.records import Record

if TYPE_CHECKING:
    from musiccli.bench.benchmark import Benchmark
    from musiccli.bench.config import BenchConfig
    from musiccli.bench.report.html import Provenance, WorstRecord
    from musiccli.bench.report.tables import Table
    from musiccli.bench.report.worst_records import WorstRecords
    from musiccli.bench.stats.outcomes import MetricRecord

# Text in an SVG stays text, in the fonts of the page around it.
SVG_TEXT = {"svg.fonttype": "none", "font.family": "sans-serif"}


class Report:
    """The files beside the metric records; each is None where it is not wanted.

    Raises:
        InputError: a file cannot be written there. Nothing has been read yet.
    """

    def __init__(
        self,
        run: Run,
        benchmark: "Benchmark[Any]",
        config: "BenchConfig",
        plot: str | None,
        html: str | None,
        markdown: str | None,
        latex: str | None,
    ):
        from musiccli.bench.report.worst_records import WorstRecords

        self.run, self.benchmark, self.config = run, benchmark, config
        self.plot, self.html, self.markdown, self.latex = plot, html, markdown, latex
        self.worst = WorstRecords(config.models)
        if plot:
            from musiccli.core.figures import check_figure_path

            check_figure_path(plot)
        check_folders({"--html": html, "--markdown": markdown, "--latex": latex})

    def write(self, rows: "list[MetricRecord]") -> None:
        """Write the metric records and the files, and show tables and notes on stderr."""
        from musiccli.bench.report.tables import narrow_tables

        self.run.write(rows)
        tables = self.benchmark.all_tables(rows, self.config)
        notes = self.benchmark.all_notes(rows)
        narrow = [part for table in tables if not table.page_only for part in narrow_tables(table)]
        for table in narrow:
            progress.table(table.columns, table.cells, table.title)
        for note in notes:
            self.run.say(note)
        if self.plot and rows:
            from musiccli.bench.report.plots import draw_figure
            from musiccli.core.figures import figure_format

            save(self.plot, [draw_figure(self.benchmark, rows, figure_format(self.plot))])
        if self.markdown:
            from musiccli.bench.report import markdown

            save(self.markdown, (piece.encode() for piece in markdown.document(narrow, notes)))
        if self.latex:
            from musiccli.bench.report import latex

            save(self.latex, (piece.encode() for piece in latex.document(narrow, notes)))
        if self.html:
            pieces = self._page(rows, tables, notes)
            save(self.html, (piece.encode("utf-8", "replace") for piece in pieces))

    def _page(
        self, rows: "list[MetricRecord]", tables: "Sequence[Table]", notes: Sequence[str]
    ) -> Iterator[str]:
        from musiccli.bench.report.html import html_page

        title = self.benchmark.title if rows else self.run.name
        summary = f"{self.run.read_count:,} records, read by music {self.run.name}"
        figure = page_figure(self.run, self.html or "", self.benchmark, rows)
        provenance = provenance_of(self.run)
        worst_records = worst_articles(self.worst)
        return html_page(title, summary, figure, tables, notes, worst_records, provenance)


def check_folders(paths: Mapping[str, str | None]) -> None:
    """Raise InputError where the folder of a file is missing.

    Args:
        paths: of the files that were asked for, by the option.
    """
    for option, path in paths.items():
        if path and not Path(path).parent.is_dir():
            raise InputError(f"{option} {path}: there is no such folder")


def page_figure(
    run: Run, path: str, benchmark: "Benchmark[Any]", rows: "list[MetricRecord]"
) -> bytes | None:
    """A page's figure as an SVG file; None without metric records or without matplotlib."""
    from musiccli.bench.report.plots import draw_figure

    try:
        return draw_figure(benchmark, rows, "svg", **SVG_TEXT) if rows else None
    except ImportError:
        run.say(f'{path}: has no picture, matplotlib is missing; pip install "musiccli[plot]"')
        return None


def worst_articles(worst: "WorstRecords") -> "Iterator[WorstRecord]":
    """The worst records as parts of a page."""
    from musiccli.bench.report.html import WorstRecord
    from musiccli.show.html import record_html

    for model, problem, record in worst:
        yield WorstRecord(model, str(record["id"]), problem, record_html(Record(record)))


def provenance_of(run: Run) -> "Provenance":
    """What someone needs to get the same figures again."""
    import platform
    from importlib.metadata import version

    from musiccli.bench.report.html import Provenance

    digests = {name: jsonl.sha256(name) for name in run.files or ["-"]}
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


def save_model_page(
    run: Run,
    path: str,
    model: str,
    findings: Sequence[str],
    rows: "Sequence[tuple[Benchmark[Any], list[MetricRecord]]]",
    config: "BenchConfig",
    worst: "WorstRecords",
) -> None:
    """Write the page of one model, and say what was found.

    Args:
        run: says the findings, and names the inputs.
        path: the page.
        model: the name of the scores.
        findings: sentences at the top of the page.
        rows: benchmarks with their metric records. The figure is of the last one that has any.
        config: how the benchmarks computed them.
        worst: the records on which the model is most wrong.
    """
    from musiccli.bench.report.html import html_page

    tables, notes = [], []
    measured = [(benchmark, its_rows) for benchmark, its_rows in rows if its_rows]
    for benchmark, its_rows in measured:
        tables += benchmark.all_tables(its_rows, config)
        notes += benchmark.all_notes(its_rows)
    figure = page_figure(run, path, *measured[-1]) if measured else None
    for finding in findings:
        run.say(finding)
    summary = f"{run.read_count:,} pairs, scored and measured by music {run.name}"
    provenance = provenance_of(run)
    pieces = html_page(
        model, summary, figure, tables, notes, worst_articles(worst), provenance, findings
    )
    save(path, (piece.encode("utf-8", "replace") for piece in pieces))
