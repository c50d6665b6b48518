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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from musiccli.core import jsonl
from musiccli.core.errors import ExitStatus, InputError

PATIENCE = (
    60  # seconds in which the first process should have met, and said, what another one has met
)


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that do one command's work together: how many there are, and which of them this is."""

    size: int = 1
    rank: int = 0

    def gather(self, own: list) -> list:
        """The items of all processes, in the order of their ranks; every process must ask, and each gets all."""
        if self.size == 1:
            return own
        from accelerate.utils import gather_object

        return gather_object(own)


def process_group() -> ProcessGroup:
    """The processes that were launched with this one, now connected (gloo on CPUs, nccl on GPUs); alone if none were.
    `rank_zero_output` ends the connection."""
    if not launched():
        return ProcessGroup()
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return ProcessGroup(state.num_processes, state.process_index)


def drain(results: Iterable) -> Iterator:
    """Does the work behind results that another process writes: nothing comes out."""
    for _ in results:
        pass
    yield from ()


def launched() -> bool:
    """Whether a launcher (ours, `accelerate launch`, torchrun or Slurm through one of them) started this process."""
    return "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def refuse_shared_input(files: list[str]) -> None:
    """Raises InputError where standard input is among `files` and several processes of another launcher would share it;
    those of `relaunch` each read all of it."""
    several = launched() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and jsonl.from_stdin(files):
        raise InputError(
            "standard input: processes that another launcher started share it, and each would read a "
            "part; name files, or let --num-processes start them"
        )


def relaunch(files: list[str], *, processes: int | None = None, config: str | None = None) -> int:
    """Run this process's command line in several processes, or as accelerate's `config` says; returns the exit status.

    Standard input, if it is among `files`, is kept in a file first: every process reads all records.
    """
    if config:
        jsonl.check_readable(config)
    arguments = ["-m", "musiccli", *sys.argv[1:]]
    with jsonl.standard_input_as_file() if jsonl.from_stdin(files) else contextlib.nullcontext():
        return (
            _by_accelerate(config, processes, arguments)
            if config
            else _by_torch(processes or 1, arguments)
        )


@contextlib.contextmanager
def rank_zero_output() -> Iterator[None]:
    """Around the work of a started process: what all processes of a machine meet alike, only the first of them says.

    The others end here when all is done, whatever the first has still to write and say. In an error they wait to be
    ended by the launcher, which ends all when one has failed; what only they have met they say in the end. Of Ctrl-C,
    and of a process that was killed, the launcher speaks.
    """
    if "LOCAL_RANK" not in os.environ:
        yield
        return
    threading.Thread(target=_end_with_launcher, args=(os.getppid(),), daemon=True).start()
    if os.environ["LOCAL_RANK"] == "0":
        with _connected(), _silent_interrupts(), _patience_with_others():
            yield
        return
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.SIG_DFL)
    with _connected():
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
                yield
        except Exception:  # met by all, or it follows from what another process has met
            time.sleep(PATIENCE)
            raise
    raise SystemExit(ExitStatus.DONE)


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Around work with others: this process leaves its group at the end. It does so in an error, too, since one that
    exits among gloo's threads may abort; but not from nccl's, which might then wait for the others."""
    failed = True
    try:
        yield
        failed = False
    finally:
        group = sys.modules.get("torch.distributed")
        if group and group.is_initialized() and not (failed and "nccl" in group.get_backend()):
            group.destroy_process_group()


@contextlib.contextmanager
def _silent_interrupts() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(ExitStatus.INTERRUPTED) from None


@contextlib.contextmanager
def _patience_with_others() -> Iterator[None]:
    """Where another process has ended, and its connections with it, the launcher ends this one and says why."""
    try:
        yield
    except RuntimeError as error:
        if "peer" in str(error):
            time.sleep(PATIENCE)
        raise


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
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="music",
        max_restarts=0,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
    )
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        return _status(error)
    except SignalException:
        raise KeyboardInterrupt from None
    return ExitStatus.DONE


def _by_accelerate(config: str, processes: int | None, arguments: list[str]) -> int:
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    number = ["--num_processes", str(processes)] if processes else []
    try:
        launch_command(
            launch_command_parser().parse_args(["--config_file", config, *number, *arguments])
        )
    except subprocess.CalledProcessError as error:
        return error.returncode
    except ChildFailedError as error:
        return _status(error)
    except SignalException:
        raise KeyboardInterrupt from None
    except (ValueError, TypeError, KeyError, OSError, ImportError) as error:
        raise InputError(f"{config}: accelerate cannot start by it: {error}") from error
    return ExitStatus.DONE


def _status(error) -> int:
    """The exit status of the process that failed first; a signal that ended it is named."""
    rank, failure = error.get_first_failure()
    if failure.exitcode < 0:
        raise InputError(f"process {rank} was killed by {signal.Signals(-failure.exitcode).name}")
    if failure.exitcode == ExitStatus.INTERRUPTED:
        raise KeyboardInterrupt
    return failure.exitcode
