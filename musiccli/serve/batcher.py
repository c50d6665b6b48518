"""Gathers the conversations of many requests into the rows of one forward pass after another.

After each pass the waiting conversations are dealt anew, so that new ones join those that share
their beginning. The pass always holds the conversation that has waited longest.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from statistics import median_high
from typing import Any

from musiccli.core.errors import MusicError
from musiccli.reward_model.chat_template import EncodedConversation
from musiccli.reward_model.network import RewardNetwork
from musiccli.reward_model.packing import common_prefix
from musiccli.reward_model.scoring import group_neighbors
from musiccli.serve.scoring import Rewards
from musiccli.serve.worker_process import Row
from musiccli.serve.workers import Worker, WorkerPool

WINDOW = 256  # waiting conversations that are dealt together: enough to find those that begin alike
RECENT = 32  # forward passes by which the speed is known
MARGIN = 0.8  # of the time of a request, in which it should be done at that speed


class QueueFull(MusicError):
    """More tokens wait than may; the request should come again.

    Attributes:
        retry_after: seconds after which there is probably room.
    """

    def __init__(self, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__(f"too many tokens are waiting; try again in {retry_after} s")


@dataclass(eq=False)
class WorkItem:
    """A conversation that waits for its rewards.

    Attributes:
        conversation: its tokens, and where rewards are read.
        future: gets the rewards, oldest turn first, or why there are none.
    """

    conversation: EncodedConversation
    future: "asyncio.Future[Rewards]"


@dataclass
class BatchStats:
    """What a batcher has done so far."""

    conversations: int = 0
    tokens: int = 0
    passes: int = 0
    seconds: float = 0.0
    abandoned: int = 0
    speeds: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))  # tokens a second


@dataclass
class Batcher:
    """The queue before one model, and the loop that empties it.

    Attributes:
        model: the name of the model.
        network: its network, in evaluation mode.
        workers: what computes, for all models.
        budget: the most tokens of one forward pass.
        max_queue: the most tokens that wait.
        patience: seconds that an idle batcher waits for more conversations before it computes.
        reading: the requests of all models whose tokens are being made now.
        stats: what was done so far.
    """

    model: str
    network: RewardNetwork
    workers: WorkerPool
    budget: int
    max_queue: int
    patience: float
    reading: Collection["asyncio.Future[Any]"] = ()
    stats: BatchStats = field(default_factory=BatchStats)
    _waiting: list[WorkItem] = field(default_factory=list)
    _waiting_tokens: int = 0
    _arrival: asyncio.Event = field(default_factory=asyncio.Event)
    _passes: set["asyncio.Task[None]"] = field(default_factory=set)

    @property
    def waiting_tokens(self) -> int:
        """How many tokens wait or are being computed."""
        return self._waiting_tokens

    async def score(
        self, conversations: Sequence[EncodedConversation], deadline: float = math.inf
    ) -> list[Rewards]:
        """The rewards of each conversation of one request, at its reward positions.

        A reward that is not a number is an error in its place. Where the caller is cancelled,
        what is not yet computed never will be.

        Args:
            conversations: their tokens, and where rewards are read.
            deadline: when the caller will give up, by `time.monotonic`.

        Raises:
            QueueFull: there is no room for them, or they would not be done in time.
            InputError: memory does not suffice.
            WorkerEnded: the process that computed them has ended.
        """
        tokens = sum(len(conversation.ids) for conversation in conversations)
        self.check_room(tokens, deadline)
        loop = asyncio.get_running_loop()
        items = [WorkItem(item, loop.create_future()) for item in conversations]
        self._waiting += items
        self._waiting_tokens += tokens
        self._arrival.set()
        try:
            return await asyncio.gather(*(item.future for item in items))
        finally:
            for item in items:
                item.future.cancel()

    def check_room(self, tokens: int, deadline: float) -> None:
        """Raise QueueFull where so many tokens more would wait too long.

        A request that is larger than the queue is taken by an empty one.

        Args:
            tokens: of a request; 0 asks whether there is any room.
            deadline: when its client will give up, by `time.monotonic`.
        """
        seconds = (deadline - time.monotonic()) * MARGIN
        room = min(self.max_queue, seconds * self._speed())
        if self._waiting_tokens and self._waiting_tokens + tokens > room:
            raise QueueFull(self._seconds_until_room())

    async def run(self) -> None:
        """Compute what comes, until cancelled."""
        while True:
            await self._arrival.wait()
            await self._gather()
            while self._waiting:
                worker = await self.workers.acquire()
                if batch := self._next_batch_or_none():
                    computing = asyncio.create_task(self._compute(worker, batch))
                    self._passes.add(computing)
                    computing.add_done_callback(self._passes.discard)
                else:
                    self.workers.release(worker)
            self._arrival.clear()

    async def _gather(self) -> None:
        """Wait a little for requests that could join those that wait.

        After that, wait for those that are being read now: at most until a forward pass is full,
        and no longer than one takes.
        """
        if self._is_full():
            return
        await asyncio.sleep(self.patience)
        reading = set(self.reading)
        deadline = time.monotonic() + self.stats.seconds / max(1, self.stats.passes)
        while reading and not self._is_full() and (rest := deadline - time.monotonic()) > 0:
            _, reading = await asyncio.wait(
                reading, timeout=rest, return_when=asyncio.FIRST_COMPLETED
            )

    def _is_full(self) -> bool:
        """Whether what waits fills a forward pass."""
        return sum(len(item.conversation.ids) for item in self._waiting) >= self.budget

    def _next_batch_or_none(self) -> list[WorkItem]:
        """As `_next_batch`. All that wait report a fault of ours, and later ones are served."""
        try:
            return self._next_batch()
        except Exception as error:
            _fail(self._waiting, error)
            return []

    def _next_batch(self) -> list[WorkItem]:
        """Take the conversations of the next forward pass from the queue.

        Those that have waited longest come first, each with those that begin like it.
        """
        self._drop([item for item in self._waiting if item.future.done()])
        window = self._waiting[:WINDOW]
        if not window:
            return []
        batch: list[int] = []
        sizes: list[int] = []
        for group in self._groups(window):
            size = self.network.token_count([window[index].conversation for index in group])
            tokens = sum(sizes) + size
            if not self.network.packed:  # each takes the size of the largest
                tokens = max([*sizes, size]) * (len(sizes) + 1)
            if batch and tokens > self.budget:
                continue
            batch += group
            sizes.append(size)
        taken = set(batch)
        rest = [item for index, item in enumerate(window) if index not in taken]
        self._waiting = rest + self._waiting[WINDOW:]
        return [window[index] for index in batch]

    def _groups(self, window: list[WorkItem]) -> list[list[int]]:
        """The indices of conversations that share half of their tokens, the oldest group first.

        What shares less is put together where it is computed, but must not pass what is older.
        """
        order = sorted(range(len(window)), key=lambda index: window[index].conversation.ids)
        conversations = [window[index].conversation for index in order]
        groups = [[index] for index in range(len(window))]
        if self.network.packed:
            shares = [_share_half(left.ids, right.ids) for left, right in pairwise(conversations)]
            keys = list(accumulate((not share for share in shares), initial=0))
            groups = group_neighbors(conversations, keys, self.budget)
        return sorted([[order[number] for number in group] for group in groups], key=min)

    def _drop(self, items: list[WorkItem]) -> None:
        """Forget conversations whose request is gone."""
        gone = set(map(id, items))
        self._waiting = [item for item in self._waiting if id(item) not in gone]
        self._waiting_tokens -= sum(len(item.conversation.ids) for item in items)
        self.stats.abandoned += len(items)

    async def _compute(self, worker: Worker, items: list[WorkItem]) -> None:
        """One forward pass; each request learns of its own, and the worker is free again."""
        conversations = [item.conversation for item in items]
        size = sum(len(conversation.ids) for conversation in conversations)
        started = time.monotonic()
        try:
            rewards = await worker.score(Row(self.model, conversations, size))
        except Exception as error:  # each request reports it, and the next batch is computed
            _fail(items, error)
        else:
            for item, values in zip(items, rewards, strict=True):
                if not item.future.done():
                    item.future.set_result(values)
        finally:
            self.workers.release(worker)
            self._waiting_tokens -= size
            self.stats.conversations += len(items)
            self.stats.tokens += size
            self.stats.passes += 1
            seconds = time.monotonic() - started
            self.stats.seconds += seconds
            self.stats.speeds.append(size / seconds)

    def _speed(self) -> float:
        """Tokens in a second, by the median of the last passes; infinite before the first.

        One pass for which layers are compiled says nothing of the others.
        """
        speeds = self.stats.speeds
        return self.workers.running * median_high(speeds) if speeds else math.inf

    def _seconds_until_room(self) -> int:
        """How long half of the queue takes at the speed so far."""
        return max(1, min(60, math.ceil(self._waiting_tokens / 2 / self._speed())))


def _share_half(left: list[int], right: list[int]) -> bool:
    """Whether two conversations have half of the shorter one in common."""
    return 2 * common_prefix(left, right) >= min(len(left), len(right))


def _fail(items: Sequence[WorkItem], error: Exception) -> None:
    """Let requests report an error."""
    for item in items:
        if not item.future.done():
            item.future.set_exception(error)
