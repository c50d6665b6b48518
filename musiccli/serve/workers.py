"""The workers that compute rows: a thread of the server, and processes beside it."""

import asyncio
import os
import pickle
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

from musiccli.core.errors import InputError, MusicError
from musiccli.serve.scoring import Rewards, keep_histories
from musiccli.serve.served_model import ServedModel
from musiccli.serve.worker_process import (
    NUMBER_BYTES,
    Row,
    WorkerFault,
    WorkerSettings,
    framed,
    score_row,
)

# Not `-m`: the program's classes would then have another name than those that are sent to it.
PROGRAM = "from musiccli.serve.worker_process import main; main()"
LONGEST_WAIT = 60.0  # seconds between two attempts to start a process


class WorkerEnded(MusicError):
    """The process that was to compute a row has ended; the request should come again."""


class Worker(Protocol):
    """What computes one row at a time.

    Attributes:
        is_running: whether it takes rows.
    """

    is_running: bool

    async def score(self, row: Row) -> list[Rewards]:
        """The rewards of each conversation of a row.

        Raises:
            InputError: memory does not suffice.
            WorkerEnded: its process has ended.
            WorkerFault: its process met a fault of ours.
        """


class WorkerThread:
    """A worker in the server's process."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self.is_running = True
        self._networks = {served.name: served.model.network for served in models}
        for network in self._networks.values():
            keep_histories(network)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compute")

    async def score(self, row: Row) -> list[Rewards]:
        """As in Worker."""
        run = asyncio.get_running_loop().run_in_executor
        return await run(self._thread, score_row, self._networks, row)

    def close(self) -> None:
        """End the thread when it has computed its row."""
        self._thread.shutdown(cancel_futures=True)


class WorkerProcess:
    """A worker in a process of its own, which ends with the server's."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.is_running = False
        self._settings = settings
        self._process: Process | None = None

    async def start(self) -> None:
        """Start the process, and wait until it has loaded the models.

        Raises:
            InputError: it cannot load them.
            WorkerEnded: it has ended.
        """
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM),
            stdin=PIPE,
            stdout=PIPE,
            env=os.environ | {"PYTHONSAFEPATH": "1"},  # it imports nothing from the current folder
        )
        await self._exchange(self._settings)
        self.is_running = True

    async def score(self, row: Row) -> list[Rewards]:
        """As in Worker."""
        rewards: list[Rewards] = await self._exchange(row)
        return rewards

    async def wait(self) -> str:
        """Wait until the process has ended; returns how, for people."""
        status = await self._process.wait() if self._process else 0
        self.is_running = False
        return f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"

    async def close(self) -> str:
        """End the process at once; returns how it ended, for people."""
        self.is_running = False
        if self._process and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)  # Process.kill() may take the status
        return await self.wait()

    async def _exchange(self, request: WorkerSettings | Row) -> Any:
        """Send a request, and wait for its reply."""
        assert self._process and self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(framed(request))
            await self._process.stdin.drain()
            size = await self._process.stdout.readexactly(NUMBER_BYTES)
            data = await self._process.stdout.readexactly(int.from_bytes(size, "big"))
        except (asyncio.IncompleteReadError, ConnectionError):
            await self.close()  # it may have closed its end alone
            raise WorkerEnded("the process that computed this has ended; try again") from None
        # The other end is this package: what comes from there is no stranger's pickle.
        reply = pickle.loads(data)
        if isinstance(reply, Exception):
            raise reply
        return reply


class WorkerPool:
    """The workers of a server. Each is free, or computes one row.

    A process that ends is replaced. The requests whose row it computed get an error.

    Attributes:
        size: how many workers there are when all run.
    """

    def __init__(
        self, models: Sequence[ServedModel], size: int, budget: int, say: Callable[[str], None]
    ) -> None:
        self.size = size
        self._models, self._budget, self._say = list(models), budget, say
        self._thread = WorkerThread(models)
        self._processes: dict[int, WorkerProcess] = {}  # by number
        self._free: asyncio.Queue[Worker] = asyncio.Queue()
        self._free.put_nowait(self._thread)
        self._keepers: list[asyncio.Task[None]] = []

    @property
    def running(self) -> int:
        """How many workers take rows."""
        return 1 + sum(worker.is_running for worker in self._processes.values())

    async def start(self) -> None:
        """Let every worker compute a first row of each model.

        Raises:
            InputError: a process cannot be started, or memory does not suffice.
        """
        await self._warm_up(self._thread)
        numbers = range(1, self.size)
        starting = [asyncio.create_task(self._start_process(number)) for number in numbers]
        try:
            await asyncio.gather(*starting)
        finally:
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
        self._keepers = [asyncio.create_task(self._keep(number)) for number in numbers]

    async def acquire(self) -> Worker:
        """Wait for a worker that is free. The caller hands it back by `release`."""
        worker = await self._free.get()
        while not worker.is_running:  # its process ended; the one in its place is another worker
            worker = await self._free.get()
        return worker

    def release(self, worker: Worker) -> None:
        """Take back a worker that has done its row."""
        if worker.is_running:
            self._free.put_nowait(worker)

    async def close(self) -> None:
        """End all workers."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(worker.close() for worker in self._processes.values()))
        self._thread.close()

    async def _keep(self, number: int) -> None:
        """Start the process with this number anew whenever it ends, again where that fails."""
        while True:
            ended = await self._processes[number].wait()
            self._say(f"process {number} ended {ended}; its requests get 503, another one starts")
            failures = 0
            while not self._processes[number].is_running:
                try:
                    await self._start_process(number)
                except Exception as error:
                    wait = min(2.0**failures, LONGEST_WAIT)
                    failures += 1
                    problem = error if isinstance(error, MusicError) else type(error).__name__
                    self._say(f"{problem}; process {number} is started again in {wait:g} s")
                    await asyncio.sleep(wait)

    async def _start_process(self, number: int) -> None:
        """Start the process with this number; once it has computed, it is free.

        Raises:
            InputError: it cannot be started, and has been closed.
        """
        models = {served.name: (served.path, served.model.identity) for served in self._models}
        worker = WorkerProcess(WorkerSettings(models, number))
        self._processes[number] = worker
        try:
            await worker.start()
            await self._warm_up(worker)
        except BaseException as error:
            ended = await worker.close()
            if isinstance(error, WorkerEnded):
                problem = f"process {number} ended {ended} before it could compute"
                problem = f"{problem}; is there memory for {self.size} processes?"
            elif isinstance(error, OSError | WorkerFault):
                problem = f"process {number} cannot be started: {getattr(error, 'strerror', error)}"
            else:
                raise
            raise InputError(problem) from None
        self._free.put_nowait(worker)

    async def _warm_up(self, worker: Worker) -> None:
        """Whatever is compiled or built at the first row is then."""
        for served in self._models:
            await worker.score(Row(served.name, [served.first_conversation], self._budget))
