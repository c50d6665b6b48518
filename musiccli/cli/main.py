"""`music` on the command line: every error becomes one line and an exit status here."""

import gc
import os
import signal
import sys
from typing import Any

import typer

from musiccli.cli import (  # noqa: F401  (importing a file adds its command)
    bench,
    cache,
    help,
    judge,
    merge,
    pair,
    sample,
    score,
    serve,
    show,
    simulate,
    train,
)
from musiccli.cli.app import app
from musiccli.cli.option_names import as_typed, use_options_of
from musiccli.core import jsonl
from musiccli.core.errors import ExitStatus, MusicError
from musiccli.core.progress import be_quiet, say
from musiccli.core.termination import terminate

gc.freeze()  # what was imported stays: no search for garbage reads it again, not even the last
UsageError: Any = typer.BadParameter.__base__  # typer does not export it
ANYWHERE = ("--debug", "--quiet")  # options that may stand before or after the command


def main() -> None:
    """Run the command line; a traceback is shown with --debug only."""
    root = typer.main.get_command(app)
    arguments = [word for word in sys.argv[1:] if word not in ANYWHERE] or ["--help"]
    if "_MUSIC_COMPLETE" in os.environ:  # a shell asks how the line may go on
        root.main(args=arguments, prog_name="music")
    command, running = find_command(root, arguments)
    use_options_of(running)
    if sys.stderr is None:  # it is closed, and print would write to standard output instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if "--quiet" in sys.argv:
        be_quiet()
    signal.signal(signal.SIGTERM, terminate)
    # Idle threads of torch then sleep: on a busy machine, spinning made runs 5 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with jsonl.reserved_stdin(), root.make_context("music", arguments) as context:
            gc.enable()  # what the start left is small, and stays
            context.command.invoke(context)
    except typer.Exit as ending:
        sys.exit(ending.exit_code)
    except BrokenPipeError:  # the reader of our output, such as head, has closed the pipe
        jsonl.silence_stdout()
        sys.exit(ExitStatus.DONE)
    except KeyboardInterrupt:
        say(f"{command}: interrupted", error=True)
        sys.exit(ExitStatus.INTERRUPTED)
    except Exception as error:
        if "--debug" in sys.argv or os.environ.get("MUSIC_DEBUG"):
            raise
        say(explain(error, command), error=True)
        sys.exit(ExitStatus.USAGE)


def find_command(group: Any, arguments: list[str]) -> tuple[str, Any]:
    """The command that the arguments begin with: its name as people type it, and itself."""
    words, command = ["music"], group
    for word in arguments:
        if word not in getattr(command, "commands", {}):
            break
        words.append(word)
        command = command.commands[word]
    return " ".join(words), command


def explain(error: Exception, command: str) -> str:
    """One line for a person: which command, what is wrong, what helps."""
    if isinstance(error, UsageError):
        return _explain_usage(error, command)
    if isinstance(error, MusicError):
        text = as_typed(str(error))
    else:
        text = f"{type(error).__name__}: {error} (a fault of ours; --debug shows where)"
    return f"{command}: error: {' '.join(text.split())}"


def _explain_usage(error: Any, command: str) -> str:
    text = str(error.format_message())
    if text.startswith("Usage:"):  # a group without its command shows its help
        return text
    path = error.ctx.command_path if error.ctx else command
    text = " ".join(text.replace("Value error, ", "").rstrip(".").split())
    return f"{path}: error: {text} ({path} --help shows what there is)"
