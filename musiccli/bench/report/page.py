"""A benchmark's figures as one page of HTML: the picture, the tables, the worst records, and how to get them again."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from musiccli.bench.report.tables import Table
from musiccli.core.pages import begin, safe

INTERVAL = re.compile(
    r"(\S+) (\[[^]]*\](?: of [\d,]+)?)$"
)  # "61.5 [52.0, 70.2]"; with " of 4" where 4 were scored
STYLE = """\
h1 { font-size: 1.5rem; margin: 0; }
.lead { margin: .25rem 0 1.5rem; color: var(--soft); }
main { max-width: 64rem; margin: 0 auto; }
h2 { font-size: 1.1rem; margin: 2.25rem 0 .75rem; }
article h2 { font-size: 1rem; margin: 0; }
figure { margin: 0 0 1.25rem; padding: 1rem; background: #fff; border: 1px solid var(--line); border-radius: .6rem;
  overflow-x: auto; }
figure svg { display: block; width: 100%; min-width: 26rem; max-width: 52rem; height: auto; margin: 0 auto; }
.table { overflow-x: auto; margin-bottom: 1.25rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; padding: .5rem .25rem; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-variant-numeric: tabular-nums;
  font-size: .92rem; }
caption { text-align: left; padding: .4rem .9rem .6rem; font-weight: 600; }
th, td { padding: .3rem .9rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
thead th { border-bottom: 1px solid var(--line); color: var(--soft); font-weight: 600; }
tbody th { font-weight: 600; }
tbody tr.under th { font-weight: normal; padding-left: 1.9rem; }
tbody tr.last th, tbody tr.last td { border-top: 1px solid var(--line); font-weight: 600; }
td span { color: var(--soft); font-size: .85em; }
.notes { margin: 0 0 1rem; padding-left: 1.2rem; font-size: .92rem; }
.notes li { margin: .25rem 0; overflow-wrap: anywhere; }
.worst { margin: 0 0 .6rem; font-size: 1rem; }
.worst > summary { cursor: pointer; padding: .45rem .8rem; background: var(--card); color: var(--ink);
  border: 1px solid var(--line); border-radius: .6rem; overflow-wrap: anywhere; }
.worst > summary b { color: var(--rejected); font-weight: 600; }
.worst > article { margin: .5rem 0 1rem; }
pre { margin: 0 0 1rem; padding: .8rem 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .88rem; }
code { overflow-wrap: anywhere; white-space: normal; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.2rem; margin: 0; font-size: .92rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 46rem) { th, td { padding: .3rem .5rem; } dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; } figure { padding: .5rem; } }
"""


class Bad(NamedTuple):
    """A record to read: which model is wrong about it, how, and the record as HTML that show has made safe."""

    model: str
    record: str  # its id
    how: str
    article: str


class Origin(NamedTuple):
    """Where the figures come from: what was typed, (name, sha256 or what else is known) of each input, and versions."""

    command: str
    inputs: Sequence[tuple[str, str]]
    versions: Sequence[tuple[str, str]]


def page(
    title: str,
    lead: str,
    picture: bytes | None,
    tables: Sequence[Table],
    notes: Sequence[str],
    worst: Iterable[Bad],
    origin: Origin,
) -> Iterator[str]:
    """The whole page. `picture` is an SVG file as matplotlib writes it."""
    yield begin(title, STYLE).replace("<body>", "<body>\n<main>", 1)
    yield f'<p class="lead">{safe(lead)}</p>\n'
    if picture:
        yield f"<figure>\n{inline(picture, title)}</figure>\n"
    yield from map(table, tables)
    if notes:
        yield f'<ul class="notes">{"".join(f"<li>{safe(note)}</li>" for note in notes)}</ul>\n'
    yield from readings(worst)
    yield from reproduction(origin)
    yield "</main>\n</body>\n</html>\n"


def inline(picture: bytes, title: str) -> str:
    """The SVG element of a file, without what belongs to a file; as wide as its place, and named for who cannot see."""
    text = picture.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    opening, rest = text.split(">", 1)
    opening = re.sub(r'\s(?:width|height)="[^"]*"', "", opening)
    return f'{opening} role="img" aria-label="{safe(title)}">{rest}'


def table(shown: Table) -> str:
    head = "".join(f'<th scope="col">{safe(name)}</th>' for name in shown.columns)
    rows = "\n".join(map(row, shown.cells))
    return (
        f'<div class="table"><table>\n<caption>{safe(shown.title)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>\n"
    )


def row(cells: list[str]) -> str:
    """A name that is indented stands under the one before; the average is set apart."""
    kind = (
        ' class="under"'
        if cells[0].startswith("  ")
        else ' class="last"' * cells[0].startswith("Average")
    )
    values = [INTERVAL.sub(r"\1 <span>\2</span>", safe(cell)) for cell in cells[1:]]
    return f'<tr{kind}><th scope="row">{safe(cells[0].strip())}</th><td>{"</td><td>".join(values)}</td></tr>'


def readings(worst: Iterable[Bad]) -> Iterator[str]:
    """The worst records, each folded under a line that says who is wrong and how; the first one is open."""
    state = " open"
    for number, bad in enumerate(worst):
        if not number:
            yield "<h2>Most wrong</h2>\n"
        yield (
            f'<details class="worst"{state}><summary>{safe(bad.model)}: <b>{safe(bad.how)}</b> · '
            f"{safe(bad.record)}</summary>\n{bad.article}</details>\n"
        )
        state = ""


def reproduction(origin: Origin) -> Iterator[str]:
    yield f"<h2>To reproduce</h2>\n<pre>{safe(origin.command)}</pre>\n<dl>\n"
    for name, known in origin.inputs:
        yield f"<dt>{safe(name)}</dt><dd><code>{safe(known)}</code></dd>\n"
    for name, version in origin.versions:
        yield f"<dt>{safe(name)}</dt><dd>{safe(version)}</dd>\n"
    yield "</dl>\n"
