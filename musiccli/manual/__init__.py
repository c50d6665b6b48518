"""The manual: Markdown files beside this one, a page for each command and each topic."""

from pathlib import Path

from musiccli.core.errors import InputError

INDEX = "README"  # the list of pages; this name makes it the folder's front page on the web
_FOLDER = Path(__file__).parent


def pages() -> list[str]:
    """The names of all pages but the index, in alphabetical order."""
    return sorted(file.stem for file in _FOLDER.glob("*.md") if file.stem != INDEX)


def read(page: str) -> str:
    """The Markdown of a page. Raises InputError where there is no page of that name."""
    file = _FOLDER / f"{page}.md"
    if page not in (INDEX, *pages()):
        raise InputError(f"{page}: no such page; there are {', '.join(pages())}")
    return file.read_text("utf-8")
