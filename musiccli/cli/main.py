"""`music`: one program, one file per command beside this one. Errors become one line and an exit status here."""

import contextlib
import os
import signal
import sys

from musiccli.cli import bench, judge, pair, sample, simulate  # noqa: F401  (importing a command's file adds it to the app)
from musiccli.cli.common import app
from musiccli.errors import Exit, MusicError
from musiccli.progress import say

def main() -> None:
    """Run the command line; never a traceback without --debug."""
    debug = "--debug" in sys.argv or bool(os.environ.get("MUSIC_DEBUG"))
    command = " ".join(["music", *(word for word in sys.argv[1:2] if not word.startswith("-"))])
    sys.argv[:] = [word for word in sys.argv if word != "--debug"]
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        app()
    except BrokenPipeError:  # whoever read our output has seen enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.DONE)
    except KeyboardInterrupt:
        say(f"{command}: interrupted")
        sys.exit(Exit.INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        known = isinstance(error, MusicError)
        text = str(error) if known else f"{type(error).__name__}: {error} (a fault of ours; --debug shows where)"
        say(f"{command}: error: {' '.join(text.split())}")
        sys.exit(Exit.USAGE)

