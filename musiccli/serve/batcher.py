"""Gathers the conversations of many requests into the rows of one forward pass after another.

After each pass the waiting conversations are dealt anew, so that new ones join those that share
their beginning. The pass always holds the conversation that has waited longest.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import pairwise

from musiccli.core.errors import MusicError, RecordError
from musiccli.reward_model.chat_template import EncodedConversation
from musiccli.reward_model.network import RewardNetwork
from musiccli.reward_model.packing import MIN_SHARED_TOKENS, micro_batches
from musiccli.reward_model.scoring import (
    NOT_FINITE,
    deduplicate,
    group_neighbors,
    score_encoded,
)

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
    future: "asyncio.Future[list[float] | RecordError]"


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
        network: the network, in evaluation mode.
        executor: the thread that computes.
        budget: the most tokens of one forward pass.
        max_queue: the most tokens that wait.
        patience: seconds that an idle batcher waits for more conversations before it computes.
        stats: what was done so far.
    """

    network: RewardNetwork
    executor: Executor
    budget: int
    max_queue: int
    patience: float
    stats: BatchStats = field(default_factory=BatchStats)
    _waiting: list[WorkItem] = field(default_factory=list)
    _waiting_tokens: int = 0
    _arrival: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.network.budget = self.budget

    @property
    def waiting_tokens(self) -> int:
        """How many tokens wait or are being computed."""
        return self._waiting_tokens

    async def score(
        self, conversations: Sequence[EncodedConversation]
    ) -> list[list[float] | RecordError]:
        """The rewards of each conversation of one request, at its reward positions.

        A reward that is not a number is an error in its place. Where the caller is cancelled,
        what is not yet computed never will be.

        Raises:
            QueueFull: there is no room for them.
            InputError: memory does not suffice.
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
            if sum(len(item.conversation.ids) for item in self._waiting) < self.budget:
                await asyncio.sleep(self.patience)
            while batch := self._next_batch():
                await self._compute(batch)
            self._arrival.clear()

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

    async def _compute(self, items: list[WorkItem]) -> None:
        """One forward pass in the thread that computes; each request learns of its own."""
        conversations = [item.conversation for item in items]
        size = sum(len(conversation.ids) for conversation in conversations)
        started = time.monotonic()
        run = asyncio.get_running_loop().run_in_executor
        try:
            rewards = await run(self.executor, score_all, self.network, conversations, size)
        except Exception as error:  # each request reports it, and the next batch is computed
            for item in items:
                if not item.future.done():
                    item.future.set_exception(error)
        else:
            for item, values in zip(items, rewards, strict=True):
                if not item.future.done():
                    item.future.set_result(values)
        finally:
            self._waiting_tokens -= size
            self.stats.conversations += len(items)
            self.stats.tokens += size
            self.stats.passes += 1
            self.stats.seconds += time.monotonic() - started

    def _seconds_until_room(self) -> int:
        """How long half of the queue takes at the speed so far."""
        speed = self.stats.tokens / self.stats.seconds if self.stats.seconds else self.max_queue
        return min(60, math.ceil(self._waiting_tokens / 2 / speed))


def score_all(
    network: RewardNetwork, conversations: Sequence[EncodedConversation], budget: int
) -> list[list[float] | RecordError]:
    """The rewards of any number of conversations, in one call. Equal ones get equal rewards.

    Args:
        network: the network, in evaluation mode.
        conversations: in any order; those that begin alike are computed together.
        budget: the most tokens in one forward pass.

    Returns:
        The rewards of each, or the error that one is not a number.

    Raises:
        InputError: memory does not suffice.
    """
    firsts, kinds = deduplicate(conversations)
    order = sorted(range(len(firsts)), key=lambda number: conversations[firsts[number]].ids)
    ordered = [conversations[firsts[number]] for number in order]
    rewards = score_encoded(network, ordered, prompt_keys(ordered), budget)
    by_kind = dict(zip(order, rewards, strict=True))
    return [
        by_kind[kind] if all(map(math.isfinite, by_kind[kind])) else RecordError(NOT_FINITE)
        for kind in kinds
    ]


def prompt_keys(conversations: Sequence[EncodedConversation]) -> list[int]:
    """A number per conversation, equal for neighbors that should share their beginning.

    Args:
        conversations: in the order of their tokens.

    Neighbors share what they have in common, unless one of them has more than twice as much in
    common with its other neighbor: a system message that all have must not keep the candidates
    of one long history from sharing that.
    """
    shared = [_common_prefix(left.ids, right.ids) for left, right in pairwise(conversations)]
    keys, key = [], 0
    for index in range(len(conversations)):
        if index:
            most = max(shared[max(index - 2, 0) : index + 1])
            key += shared[index - 1] < max(MIN_SHARED_TOKENS, most / 2)
        keys.append(key)
    return keys


def _common_prefix(left: list[int], right: list[int]) -> int:
    """How many leading tokens two conversations have in common."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
