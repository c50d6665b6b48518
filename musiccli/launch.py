"""Start this same command again in several processes, or notice that a launcher has started this one.

One machine: PyTorch's own launcher (torchrun's). Several machines, FSDP, DeepSpeed: `accelerate launch` by its config.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from musiccli import jsonl
from musiccli.errors import Exit, InputError, MusicError

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
        return _by_accelerate(config, processes, arguments) if config else _by_torch(processes or 1, arguments)


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Around the work of a started process: what all processes of a machine meet alike, only the first of them says.

    The others end here when all is done. In an error or after Ctrl-C they wait to be ended by the launcher, which ends
    all when one has failed; what only they have met they say in the end.
    """
    if "LOCAL_RANK" in os.environ:
        threading.Thread(target=_end_with_launcher, args=(os.getppid(),), daemon=True).start()
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
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (the last line is the first process's to say)


def _end_with_launcher(launcher: int) -> None:
    """A launcher that was killed cannot end its processes, and they would wait for one another for ever."""
    while os.getppid() == launcher:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


def _by_torch(processes: int, arguments: list[str]) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    logging.disable()  # in this process, which only waits: the one that failed has said why
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id="music", max_restarts=0,
                          rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0")
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        return _status(error)
    except (SignalException, KeyboardInterrupt):  # the first process says that it was interrupted
        return Exit.INTERRUPTED
    return Exit.DONE


def _by_accelerate(config: str, processes: int | None, arguments: list[str]) -> int:
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    number = ["--num_processes", str(processes)] if processes else []
    try:
        launch_command(launch_command_parser().parse_args(["--config_file", config, *number, *arguments]))
    except subprocess.CalledProcessError as error:
        return error.returncode
    except ChildFailedError as error:
        return _status(error)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(f"{config}: accelerate cannot start by it: {error}") from error
    return Exit.DONE


def _status(error) -> int:
    """The exit status of the process that failed first; a signal that ended it is named."""
    rank, failure = error.get_first_failure()
    if failure.exitcode < 0:
        raise InputError(f"process {rank} was killed by {signal.Signals(-failure.exitcode).name}")
    return failure.exitcode
