"""`music`: one program, one file per command beside this one. Errors become one line and an exit status here."""

import os
import signal
import sys

import typer

from musiccli.cli import bench, cache, judge, merge, pair, sample, score, show, simulate, train  # noqa: F401  (adds commands)
from musiccli.cli.run import app
from musiccli.cli.wording import as_typed, use_options_of
from musiccli.core import jsonl
from musiccli.core.errors import ExitStatus, MusicError
from musiccli.core.progress import say

UsageError = typer.BadParameter.__base__  # typer does not export it


def main() -> None:
    """Run the command line; never a traceback without --debug."""
    debug = "--debug" in sys.argv or bool(os.environ.get("MUSIC_DEBUG"))
    arguments = [word for word in sys.argv[1:] if word != "--debug"] or ["--help"]
    root = typer.main.get_command(app)
    command, running = find_command(root, arguments)
    use_options_of(running)
    if sys.stderr is None:  # closed: print would speak on standard output instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    signal.signal(signal.SIGTERM, terminate)
    # Torch's threads then sleep while they wait for each other: on a busy machine spinning made runs 5 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with root.make_context("music", arguments) as context:
            context.command.invoke(context)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except BrokenPipeError:  # whoever read our output has seen enough
        jsonl.silence_stdout()
        sys.exit(ExitStatus.DONE)
    except KeyboardInterrupt:
        say(f"{command}: interrupted")
        sys.exit(ExitStatus.INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        say(explain(error, command))
        sys.exit(ExitStatus.USAGE)


def find_command(
    group: typer.core.TyperGroup, arguments: list[str]
) -> tuple[str, typer.core.TyperCommand]:
    """The command that the arguments begin with: its name as people type it, and itself."""
    words, command = ["music"], group
    for word in arguments:
        if word not in getattr(command, "commands", {}):
            break
        words.append(word)
        command = command.commands[word]
    return " ".join(words), command


def explain(error: Exception, command: str) -> str:
    """One line for a person: whose fault it is, what is wrong, what helps."""
    if isinstance(error, UsageError):
        text = error.format_message()
        if text.startswith("Usage:"):  # a group without its command shows its help
            return text
        path = error.ctx.command_path if error.ctx else command
        text = text.replace("Value error, ", "").rstrip(".")
        return f"{path}: error: {' '.join(text.split())} ({path} --help shows what there is)"
    known = isinstance(error, MusicError)
    text = (
        str(error)
        if known
        else f"{type(error).__name__}: {error} (a fault of ours; --debug shows where)"
    )
    return f"{command}: error: {' '.join(as_typed(text).split())}"


def terminate(*_: object) -> None:
    """SIGTERM ends a run as Ctrl-C does, also where a script's background job is deaf to that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)
