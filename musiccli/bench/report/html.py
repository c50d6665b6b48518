"""A benchmark's results as one page of HTML: figure, tables, worst records and provenance."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from musiccli.bench.report.tables import Table
from musiccli.core import pages
from musiccli.core.text_safety import visible

if TYPE_CHECKING:
    from markupsafe import Markup

# The end of a cell such as "61.5 [52.0, 70.2]"; " of 4" follows where a model scored only 4 pairs.
INTERVAL = re.compile(r"(?<=\S )\[[^][]*\](?: of [\d,]+)?$")


class WorstRecord(NamedTuple):
    """A record on which a model is wrong.

    Attributes:
        fault: how the model is wrong about it.
        article: the record as HTML.
    """

    model: str
    id: str
    fault: str
    article: "Markup"


class Provenance(NamedTuple):
    """Where results come from.

    Attributes:
        command: the line that was typed.
        inputs: each file's name and its sha256, or why there is none.
        versions: names and versions of programs.
    """

    command: str
    inputs: Sequence[tuple[str, str]]
    versions: Sequence[tuple[str, str]]


def html_page(
    title: str,
    summary: str,
    figure: bytes | None,
    tables: Sequence[Table],
    notes: Sequence[str],
    worst_records: Iterable[WorstRecord],
    provenance: Provenance,
    findings: Sequence[str] = (),
) -> Iterator[str]:
    """The whole page, in pieces. `figure` is an SVG file; `findings` stand at the top."""
    return pages.render_pieces(
        "bench/report/templates/page.html",
        title=title,
        summary=summary,
        findings=findings,
        figure=inline_svg(figure, title) if figure else None,
        tables=tables,
        notes=notes,
        worst_records=worst_records,
        provenance=provenance,
        split_interval=split_interval,
    )


def inline_svg(svg_file: bytes, title: str) -> "Markup":
    """The file's `<svg>` element, as wide as the page lets it be; `title` is for screen readers."""
    from markupsafe import Markup

    text = svg_file.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    opening, rest = text.split(">", 1)
    opening = re.sub(r'\s(?:width|height)="[^"]*"', "", opening)
    label = Markup(' role="img" aria-label="{}">').format(visible(title))
    return Markup(opening) + label + Markup(rest)


def split_interval(cell: str) -> tuple[str, str]:
    """A table's cell as what stands before its interval, and the interval or ""."""
    match = INTERVAL.search(cell)
    return (cell[: match.start()], match[0]) if match else (cell, "")
