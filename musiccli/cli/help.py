"""music help train"""

from typing import Annotated

import typer

from musiccli.cli.app import plain_command


@plain_command
def help(
    page: Annotated[
        str | None,
        typer.Argument(
            metavar="PAGE",
            show_default=False,
            help="A command or a topic; left out: the list of pages.",
        ),
    ] = None,
) -> None:
    """Read the manual: a page for each command and topic.

    \b
    music help
    music help train
    music help records | less

    On a terminal the page is formatted and paged; elsewhere it is plain Markdown.
    """
    import sys

    from musiccli import manual
    from musiccli.core import jsonl
    from musiccli.core.progress import show_markdown

    text = manual.read(page or manual.INDEX)
    if sys.stdout and sys.stdout.isatty():
        show_markdown(text)
    else:
        output = jsonl.open_output()
        output.write_bytes(text.encode())
        output.close()
