"""Pages of HTML: single files that run no script and ask the network for nothing.

Jinja2 templates make them. Each room keeps its own in ROOM/templates; the base page and the style
that all pages share stand in core/templates. Every value that a template prints is made visible
(text_safety.py) and then escaped, so text of a record is only ever text.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from musiccli.core.text_safety import visible

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def render(template: str, **variables: object) -> "Markup":
    """Render a template to HTML, which other templates print without escaping it again.

    Args:
        template: the file's path inside the package, as "show/templates/page.html".
        variables: what the template prints. A variable that the template uses must be given.
    """
    from markupsafe import Markup

    return Markup(_environment().get_template(template).render(variables))


def render_pieces(template: str, **variables: object) -> Iterator[str]:
    """Render a template in pieces. An iterator among the variables is read on the way."""
    return _environment().get_template(template).generate(variables)


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible_text,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )


def _visible_text(value: object) -> object:
    """Text with its control characters made visible; finished HTML and numbers as they are."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
