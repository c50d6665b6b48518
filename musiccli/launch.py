"""Start this same command again in several processes that accelerate joins; or notice that this has been done.

`accelerate launch` runs a single process where there is no GPU, whatever number it is given; so processes of one
machine are started here, and it is asked only where it has a config of its own to follow.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from musiccli import jsonl
from musiccli.errors import Exit, InputError, MusicError
from musiccli.progress import say

PATIENCE = 60  # seconds in which the first process should have met, and said, what another one has met


def launched() -> bool:
    """Whether a launcher (ours, `accelerate launch`, torchrun or Slurm through one of them) started this process."""
    return "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def relaunch(files: list[str], *, processes: int | None = None, config: str | None = None) -> int:
    """Run this process's command line in several processes, or as accelerate's `config` says; returns the exit status.

    Standard input, if it is among `files`, is kept in a file first: every process reads all records.
    """
    if config:
        jsonl.check_readable(config)
    with jsonl.standard_input_as_file() if "-" in (files or ["-"]) else contextlib.nullcontext("-") as stdin:
        arguments = ["-m", "musiccli", *(stdin if word == "-" else word for word in sys.argv[1:])]
        arguments += [] if files else [stdin]
        return _by_accelerate(config, processes, arguments) if config else _together(processes or 1, arguments)


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Around the work of a started process: what all processes of a machine meet alike, only the first of them says.

    The others end here when all is done. In an error or after Ctrl-C they wait to be ended by the launcher, which ends
    all when one has failed; what only they have met they say in the end.
    """
    if os.environ.get("MUSIC_STARTED"):
        threading.Thread(target=_end_with_starter, daemon=True).start()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        yield
        return
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.SIG_DFL)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
    except MusicError:
        time.sleep(PATIENCE)
        raise
    sys.exit(Exit.DONE)


def _end_with_starter() -> None:
    """Standard input is a pipe from the process that started this one: it ends when that one does, however it does."""
    while os.read(0, 1):
        pass
    os._exit(Exit.INTERRUPTED)


def _together(processes: int, arguments: list[str]) -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = max(1, (os.cpu_count() or 1) // processes)
    shared = {"OMP_NUM_THREADS": str(threads)} | os.environ | {
        "MUSIC_STARTED": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes)}
    started: list[subprocess.Popen] = []
    try:
        for rank in range(processes):
            environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(subprocess.Popen([sys.executable, *arguments], env=environment, stdin=subprocess.PIPE))
        return _first_failure(started)
    except KeyboardInterrupt:  # the first process says so
        return Exit.INTERRUPTED
    finally:
        _end(started)


def _first_failure(started: list[subprocess.Popen]) -> int:
    """Exit status of the first process that fails, or 0 when all are done."""
    while True:
        states = [process.poll() for process in started]
        for rank, state in enumerate(states):
            if state and state < 0:
                say(f"music train: error: process {rank} of {len(started)} was killed by {signal.Signals(-state).name}")
            if state:
                return state if state > 0 else Exit.USAGE
        if None not in states:
            return Exit.DONE
        time.sleep(0.1)


def _end(started: list[subprocess.Popen]) -> None:
    for process in started:
        process.terminate()
    for process in started:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def _by_accelerate(config: str, processes: int | None, arguments: list[str]) -> int:
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    number = ["--num_processes", str(processes)] if processes else []
    try:
        launch_command(launch_command_parser().parse_args(["--config_file", config, *number, *arguments]))
    except subprocess.CalledProcessError as error:
        return error.returncode
    except ChildFailedError as error:
        return error.get_first_failure()[1].exitcode
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(f"{config}: accelerate cannot start by it: {error}") from error
    return Exit.DONE
