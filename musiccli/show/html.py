"""Records as HTML: a page of their own, or a part of another page."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from musiccli.core import pages
from musiccli.core.records import Record
from musiccli.show.view import record_view

if TYPE_CHECKING:
    from markupsafe import Markup


def html_page(records: Iterable[Record], title: str) -> Iterator[str]:
    """A page of all records, in pieces: each record is read as its part of the page is written."""
    views = map(record_view, records)
    return pages.render_pieces("show/templates/page.html", title=title, views=views)


def record_html(record: Record) -> "Markup":
    """One record as an `<article>`, to be put into another page."""
    return pages.render("show/templates/article.html", view=record_view(record))
