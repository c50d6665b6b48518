"""In messages, replace the names of the library's parameters by the options that set them.

A message such as "`max_length` is below 2" reads "--max-length is below 2" on the command line.
"""

import re

import typer

_options: dict[str, str] = {}  # of the command that runs, by the name of its parameter


def use_options_of(command: typer.core.TyperCommand) -> None:
    """From here on `as_typed` speaks of this command's options."""
    _options.clear()
    for parameter in command.params:
        spelled = [name for name in parameter.opts if name.startswith("--")]
        if spelled and parameter.name:
            _options[parameter.name] = spelled[0]


def as_typed(text: str) -> str:
    """The text with each `parameter` of the running command written as the option that sets it."""
    return re.sub(r"`(\w+)`", lambda match: _options.get(match[1], match[0]), text)
