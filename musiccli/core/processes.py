"""Run this command in several processes, or join the processes of a launcher that started it.

On one machine this uses PyTorch's own launcher, that of torchrun. For several machines, FSDP or
DeepSpeed it uses `accelerate launch` with a config file.
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
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from musiccli.core import jsonl
from musiccli.core.errors import ExitStatus, InputError
from musiccli.core.resources import cores

Item = TypeVar("Item")
_gloo_groups: dict[str, Any] = {}  # by their purpose
ERROR_DELAY = 60  # seconds; within them rank 0 reports an error that several processes share
LONGEST_WAIT = timedelta(hours=12)  # more than one process alone takes to read or to write anything


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that run one command together: their number, and the rank of this one.

    They exchange Python objects by gloo, and may be hours behind each other.
    """

    size: int = 1
    rank: int = 0

    def wait(self) -> None:
        """Wait until all processes have come here. Every process must call this."""
        if self.size > 1:
            from torch import distributed

            distributed.barrier(gloo_group())

    def gather(self, items: list[Item]) -> list[Item]:
        """The items of all processes, in the order of their ranks.

        Every process must call this, and each gets all items.
        """
        if self.size == 1:
            return items
        from torch import distributed

        gathered: list[list[Item]] = [[]] * self.size
        distributed.all_gather_object(gathered, items, gloo_group())
        return [item for items in gathered for item in items]

    def gather_to_first(self, item: Item) -> list[Item]:
        """One item of each process, in the order of their ranks; nothing but in the first.

        Every process must call this.
        """
        if self.size == 1:
            return [item]
        from torch import distributed

        gathered: list[Any] | None = None if self.rank else [None] * self.size
        distributed.gather_object(item, gathered, group=gloo_group())
        return gathered or []


def process_group() -> ProcessGroup:
    """Connect this process with those launched together with it: by nccl on GPUs, else by gloo.

    `rank_zero_output` closes the connection. A process that no launcher started is a group of one.
    """
    if not launched():
        return ProcessGroup()
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    gloo_group()  # connects them now, while none is far behind
    return ProcessGroup(state.num_processes, state.process_index)


def gloo_group(purpose: str = "wait") -> Any:
    """All processes, connected once more, by gloo; None where torch has connected none.

    nccl takes a process that is ten minutes behind for one that hangs, which is right for a step.
    This group waits for LONGEST_WAIT, but no longer than all processes live: it breaks when one
    ends.

    Args:
        purpose: each has a group of its own, which one thread may use at a time. The first call
            connects; every process must make it at the same place, where none is far behind.

    Raises:
        InputError: they cannot connect.
    """
    from torch import distributed

    if not distributed.is_initialized():
        return None
    if purpose not in _gloo_groups:
        try:
            group = distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
        except RuntimeError as error:
            raise InputError(
                f"the processes cannot connect by gloo ({str(error).splitlines()[0][:200]}); let "
                "GLOO_SOCKET_IFNAME name the interface of the network between the machines"
            ) from error
        _gloo_groups[purpose] = group
    return _gloo_groups[purpose]


def leave_gloo_groups() -> None:
    """Leave all of them, which waits for their threads where nothing else refers to them.

    A process aborts if such a thread ends an exchange while the interpreter ends.
    """
    from torch import distributed

    while _gloo_groups:
        distributed.destroy_process_group(_gloo_groups.popitem()[1])


def launched() -> bool:
    """Whether a launcher started this process: `relaunch`, `accelerate launch` or torchrun."""
    return "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def refuse_shared_input(files: list[str]) -> None:
    """Raises InputError where several processes would each read a part of standard input.

    Those that `relaunch` starts each read all of it, from a copy.
    """
    several = launched() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and jsonl.from_stdin(files):
        raise InputError(
            "standard input: processes that another launcher started share it, and each would read "
            "a part; name files, or let `num_processes` start them"
        )


def refuse_more_than_gpus(processes: int) -> None:
    """Raise InputError where so many processes would share this machine's GPUs: nccl refuses it."""
    import torch

    gpus = torch.cuda.device_count()
    if 0 < gpus < processes:
        raise InputError(
            f"{processes} processes: each trains on a GPU of its own, and torch sees {gpus} on "
            "this machine; lower `num_processes`"
        )


def relaunch(files: list[str], *, processes: int | None = None, config: str | None = None) -> int:
    """Run this process's command line in several processes.

    Args:
        files: the command's inputs. If standard input is one, every process reads all of it.
        processes: how many; None takes the number from `config`, or 1 without a config.
        config: the path of an accelerate config file.

    Returns:
        The exit status of the process that failed first, or 0.
    """
    if config:
        jsonl.check_readable(config)
    arguments = ["-m", "musiccli", *sys.argv[1:]]
    os.environ["PYTHONSAFEPATH"] = "1"  # they import nothing from the current folder
    with jsonl.standard_input_as_file() if jsonl.from_stdin(files) else contextlib.nullcontext():
        if config:
            return _launch_with_accelerate(config, processes, arguments)
        return _launch_with_torch(processes or 1, arguments)


def divide_threads(processes: int) -> None:
    """Let each of so many processes compute with its share of the cores.

    It holds for processes that are started, and for this one before torch is imported.
    OMP_NUM_THREADS stays where it is set.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))


def end_with_parent(parent: int) -> None:
    """End this process when the one that started it has ended. Otherwise it might wait forever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def rank_zero_output() -> Iterator[None]:
    """Let only the first of a machine's processes write to stderr; wrap a process's work in this.

    The others exit here with status 0 when their work is done. After an error they wait
    ERROR_DELAY seconds before they raise it. Usually the same error ends rank 0 before that, and
    the launcher then ends them. The launcher also reports Ctrl-C and killed processes.
    """
    if "LOCAL_RANK" not in os.environ:
        yield
        return
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    if os.environ["LOCAL_RANK"] == "0":
        with _connection(), _silent_interrupt(), _delayed_connection_error():
            yield
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    with _connection():
        try:
            with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
                yield
        except Exception:  # rank 0 has it, too, or it follows from another process's error
            time.sleep(ERROR_DELAY)
            raise
    raise SystemExit(ExitStatus.DONE)


@contextlib.contextmanager
def _connection() -> Iterator[None]:
    """Leave the process group at the end.

    After an error only an nccl group is not left, because that could wait for other processes.
    """
    failed = True
    try:
        yield
        failed = False
    finally:
        group = sys.modules.get("torch.distributed")
        if group and group.is_initialized():
            leave_gloo_groups()
            if not (failed and "nccl" in group.get_backend()):
                group.destroy_process_group()


@contextlib.contextmanager
def _silent_interrupt() -> Iterator[None]:
    """Exit at Ctrl-C without a message: the launcher reports it."""
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(ExitStatus.INTERRUPTED) from None


@contextlib.contextmanager
def _delayed_connection_error() -> Iterator[None]:
    """Give the launcher time to report why another process, and the connection to it, ended."""
    try:
        yield
    except RuntimeError as error:
        if "peer" in str(error):
            time.sleep(ERROR_DELAY)
        raise


def _launch_with_torch(processes: int, arguments: list[str]) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    divide_threads(processes)
    logging.disable()  # the process that fails reports its own error
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
        return _exit_status(error)
    except SignalException:
        raise KeyboardInterrupt from None
    return ExitStatus.DONE


def _launch_with_accelerate(config: str, processes: int | None, arguments: list[str]) -> int:
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
        return _exit_status(error)
    except SignalException:
        raise KeyboardInterrupt from None
    except Exception as error:  # accelerate's and YAML's errors have no common base
        problem = " ".join(str(error).split())
        raise InputError(f"{config}: accelerate cannot start with it: {problem}") from error
    return ExitStatus.DONE


def _exit_status(error: Any) -> int:
    """The exit status of the process that failed first, from torch's ChildFailedError.

    Raises:
        InputError: a signal killed it.
        KeyboardInterrupt: it was interrupted.
    """
    rank, failure = error.get_first_failure()
    if failure.exitcode < 0:
        raise InputError(f"process {rank} was killed by {signal.Signals(-failure.exitcode).name}")
    if failure.exitcode == ExitStatus.INTERRUPTED:
        raise KeyboardInterrupt
    return int(failure.exitcode)
