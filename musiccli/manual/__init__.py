"""The manual: Markdown files beside this one, a page for each command and each topic."""

from difflib import get_close_matches
from pathlib import Path

from musiccli.core.errors import InputError

INDEX = "README"  # the list of pages; this name makes it the folder's front page on the web
_FOLDER = Path(__file__).parent


def pages() -> list[str]:
    """The names of all pages but the index, in alphabetical order."""
    return sorted(file.stem for file in _FOLDER.glob("*.md") if file.stem != INDEX)


def read(page: str) -> str:
    """The Markdown of a page. Raises InputError where there is no page of that name."""
    if page not in (INDEX, *pages()):
        similar = get_close_matches(page.lower(), pages())
        question = f"did you mean {' or '.join(similar)}?" if similar else ""
        raise InputError(f"{page}: no such page; {question or 'there are ' + ', '.join(pages())}")
    return (_FOLDER / f"{page}.md").read_text("utf-8")
