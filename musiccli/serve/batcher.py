"""Gathers the conversations of many requests into the rows of one forward pass after another.

After each pass the waiting conversations are dealt anew, so that new ones join those that share
their beginning. The pass always holds the conversation that has waited longest.
"""

import asyncio
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from musiccli.core.errors import MusicError
from musiccli.reward_model.chat_template import EncodedConversation
from musiccli.reward_model.network import RewardNetwork
from musiccli.reward_model.packing import micro_batches
from musiccli.reward_model.scoring import group_neighbors
from musiccli.serve.scoring import Rewards, prompt_keys
from musiccli.serve.worker_process import Row
from musiccli.serve.workers import Worker, WorkerPool

WINDOW = 256  # waiting conversations that are dealt together: enough to find those that begin alike


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

    async def score(self, conversations: Sequence[EncodedConversation]) -> list[Rewards]:
        """The rewards of each conversation of one request, at its reward positions.

        A reward that is not a number is an error in its place. Where the caller is cancelled,
        what is not yet computed never will be.

        Raises:
            QueueFull: there is no room for them.
            InputError: memory does not suffice.
            WorkerEnded: the process that computed them has ended.
        """
        tokens = sum(len(conversation.ids) for conversation in conversations)
        # A request that is larger than the queue is taken by an empty one.
        if self._waiting_tokens and self._waiting_tokens + tokens > self.max_queue:
            raise QueueFull(self._seconds_until_room())
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

    async def run(self) -> None:
        """Compute what comes, until cancelled."""
        while True:
            await self._arrival.wait()
            await self._gather()
            while self._waiting:
                worker = await self.workers.acquire()
                if batch := self._next_batch():
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

    def _next_batch(self) -> list[WorkItem]:
        """Take the conversations of the next forward pass from the queue, in groups."""
        self._drop([item for item in self._waiting if item.future.done()])
        window = sorted(self._waiting[:WINDOW], key=lambda item: item.conversation.ids)
        if not window:
            return []
        conversations = [item.conversation for item in window]
        groups = [[index] for index in range(len(window))]
        if self.network.packed:
            groups = group_neighbors(conversations, prompt_keys(conversations), self.budget)
        sizes = [self.network.token_count([conversations[i] for i in group]) for group in groups]
        oldest = self._waiting[0]
        for batch in micro_batches(sizes, self.budget, padded=not self.network.packed):
            items = [window[index] for number in batch for index in groups[number]]
            if oldest in items:
                taken = set(map(id, items))
                self._waiting = [item for item in self._waiting if id(item) not in taken]
                return items
        raise AssertionError("every conversation is in a batch")

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
            for item in items:
                if not item.future.done():
                    item.future.set_exception(error)
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
            self.stats.seconds += time.monotonic() - started

    def _seconds_until_room(self) -> int:
        """How long half of the queue takes at the speed so far."""
        if not self.stats.seconds:
            return 1
        speed = self.workers.running * self.stats.tokens / self.stats.seconds
        return min(60, math.ceil(self._waiting_tokens / 2 / speed))
