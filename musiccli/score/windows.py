"""Scores windows of records, each window in three steps that overlap those of its neighbors.

While one window is computed, a thread tokenizes the next. While a GPU computes, the window after
that is read and rendered, and the one before is written. What a window's batches hold, and so how
its rewards are rounded, does not depend on what overlaps.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import TypeVar

import orjson

from musiccli.core.errors import RecordError
from musiccli.core.messages import Message, last_user_message
from musiccli.core.records import Record, side_names
from musiccli.core.store import Store
from musiccli.reward_model.chat_template import EncodedConversation, RenderedConversation
from musiccli.reward_model.checkpoint import RewardModel
from musiccli.reward_model.scoring import (
    NOT_FINITE,
    PendingRewards,
    deduplicate,
    encode_sides,
    render_sides,
    start_scoring,
)
from musiccli.score.config import ScoreConfig

PAUSES = 2  # after so many a window that was begun is finished
Item = TypeVar("Item")
Rewards = list[list[float]]  # for each conversation its rewards, oldest turn first
Tokens = list[EncodedConversation | RecordError]


@dataclass(frozen=True)
class ScoredRecord:
    """What scoring one record gives.

    Attributes:
        record: as it was read.
        rewards: for each side its rewards, oldest turn first.
        was_cut: whether the record lost its oldest exchanges.
    """

    record: Record
    rewards: Rewards
    was_cut: bool


Result = ScoredRecord | RecordError


@dataclass(frozen=True)
class ScoredWindow:
    """The result of each record, and how many conversations were in the store."""

    results: list[Result]
    stored: int


@dataclass(frozen=True)
class _ReadRecord:
    """A record, its sides by name, and their texts; none where they cannot be read in whole."""

    record: Record
    sides: dict[str, list[Message]]
    texts: list[RenderedConversation]


@dataclass(frozen=True)
class _Encoded:
    """A record, its sides as tokens, and whether these lost the oldest exchanges."""

    record: Record
    sides: list[EncodedConversation]
    was_cut: bool


@dataclass(frozen=True)
class _Computing:
    """A window whose rewards a device may still be computing.

    Attributes:
        records: its records, or why they cannot be scored.
        kinds: for each side of these, which of the different conversations it is.
        keys: of these conversations in the store; empty without a store.
        rewards: of these conversations, where they were in the store.
        missing: the indices of those that are computed.
        pending: their rewards.
    """

    records: list[_Encoded | RecordError]
    kinds: list[int]
    keys: list[bytes]
    rewards: list[list[float] | None]
    missing: list[int]
    pending: PendingRewards


class WindowScorer:
    """Scores windows of records by one model."""

    def __init__(self, model: RewardModel, config: ScoreConfig, store: Store | None) -> None:
        self.model, self.config, self.store = model, config, store
        limit = model.context_length
        self.max_length = min(config.max_length or limit, limit)
        self._in_flight: set[bytes] = set()  # keys that the window before stores when it ends

    def score(
        self, windows: Iterable[Sequence[Item] | None], parse: Callable[[Item], Record]
    ) -> Iterator[ScoredWindow]:
        """The results of each window, in order.

        Args:
            windows: what records are made of. None is a pause, in which older windows go on;
                PAUSES of them end the last one.
            parse: makes a record of an item. Raises RecordError, with its `where`.
        """
        tokenizing: tuple[list[_ReadRecord | RecordError], Future[Tokens]] | None = None
        computing: _Computing | None = None
        with ThreadPoolExecutor(1, "tokenizer") as executor:
            for window in windows:
                begun = None
                if window is not None:
                    records = self._read(window, parse)
                    begun = records, executor.submit(self._tokenize, records)
                started = self._compute(*tokenizing) if tokenizing else None
                if computing:
                    yield self._finish(computing)
                tokenizing, computing = begun, started

    def _read(
        self, window: Sequence[Item], parse: Callable[[Item], Record]
    ) -> list[_ReadRecord | RecordError]:
        """Parse and render."""
        return [self._read_item(item, parse) for item in window]

    def _read_item(self, item: Item, parse: Callable[[Item], Record]) -> _ReadRecord | RecordError:
        try:
            record = parse(item)
        except RecordError as error:
            return error
        for field in ("scores", "turn_scores"):
            if not isinstance(record.get(field) or {}, dict):
                return RecordError(
                    "is not an object of scores by model", field=field, record=record
                )
        sides = {name: record[name] for name in side_names(record)}
        if self.config.last_only:
            sides = {name: _last_exchange(messages) for name, messages in sides.items()}
        try:
            texts = render_sides(
                self.model.chat_template,
                sides,
                tools=record.get("tools") or (),
                every_turn=self.config.per_turn,
            )
        except RecordError:  # `encode_sides` says why, or cuts what is refused
            texts = []
        return _ReadRecord(record, sides, texts)

    def _tokenize(self, records: Sequence[_ReadRecord | RecordError]) -> Tokens:
        """The tokens of all texts of the records."""
        texts = [text for read in records if isinstance(read, _ReadRecord) for text in read.texts]
        return self.model.chat_template.tokenize(texts)

    def _compute(
        self, records: Sequence[_ReadRecord | RecordError], tokens: Future[Tokens]
    ) -> _Computing:
        """Begin to compute the rewards that are not in the store."""
        remaining = iter(tokens.result())
        encoded = [
            read if isinstance(read, RecordError) else self._encode(read, remaining)
            for read in records
        ]
        sides = [
            (item.record["id"], side)
            for item in encoded
            if isinstance(item, _Encoded)
            for side in item.sides
        ]
        firsts, kinds = deduplicate([side for _, side in sides])
        different = [sides[index] for index in firsts]
        keys = [self._key(side) for _, side in different] if self.store else []
        replies = [self.store.get(key) for key in keys] if self.store else [None] * len(different)
        missing = [
            index
            for index, reply in enumerate(replies)
            if reply is None and not (keys and keys[index] in self._in_flight)
        ]
        self._in_flight = {keys[index] for index in missing} if keys else set()
        pending = start_scoring(
            self.model.network,
            [different[index][1] for index in missing],
            [different[index][0] for index in missing],
            self.config.budget,
        )
        rewards = [reply["rewards"] if reply else None for reply in replies]
        return _Computing(encoded, kinds, keys, rewards, missing, pending)

    def _encode(
        self, read: _ReadRecord, tokens: Iterator[EncodedConversation | RecordError]
    ) -> _Encoded | RecordError:
        """The record's sides as tokens, cut where they are too long."""
        sides = list(islice(tokens, len(read.texts)))
        whole = [side for side in sides if isinstance(side, EncodedConversation)]
        if len(whole) == len(read.sides) and all(
            len(side.ids) <= self.max_length for side in whole
        ):
            return _Encoded(read.record, whole, was_cut=False)
        try:
            cut = encode_sides(
                self.model.chat_template,
                read.sides,
                self.max_length,
                tools=read.record.get("tools") or (),
                every_turn=self.config.per_turn,
            )
        except RecordError as error:
            return _of_record(error, read.record)
        return _Encoded(read.record, *cut)

    def _finish(self, window: _Computing) -> ScoredWindow:
        """Wait for a window's rewards and store them.

        New rewards are stored only when all are computed. So a run that is resumed makes the same
        batches as one that was never stopped, and its rounding is the same.
        """
        computed = dict(zip(window.missing, window.pending.wait(), strict=True))
        if self.store and computed:
            self._store([(window.keys[index], values) for index, values in computed.items()])
        rewards = [
            computed.get(index) or values or self._stored(window.keys[index])
            for index, values in enumerate(window.rewards)
        ]
        sides = iter([rewards[kind] for kind in window.kinds])
        results = [
            item
            if isinstance(item, RecordError)
            else _checked(item, list(islice(sides, len(item.sides))))
            for item in window.records
        ]
        return ScoredWindow(results, len(rewards) - len(computed))

    def _stored(self, key: bytes) -> list[float]:
        """Rewards that the window before computed. It stored none that are no numbers."""
        reply = self.store.get(key) if self.store else None
        return reply["rewards"] if reply else [math.nan]

    def _store(self, computed: Iterable[tuple[bytes, list[float]]]) -> None:
        assert self.store
        with self.store.transaction():
            for key, values in computed:
                if all(map(math.isfinite, values)):
                    self.store.put(key, {"rewards": values}, self.model.identity)

    def _key(self, conversation: EncodedConversation) -> bytes:
        """The key of a conversation's rewards in the store; its form must not change."""
        parts = [self.model.identity, conversation.ids, conversation.reward_positions]
        return blake2b(orjson.dumps(parts), digest_size=16).digest()


def _last_exchange(messages: list[Message]) -> list[Message]:
    """The last user message and what replies to it, after the system message if there is one."""
    start = last_user_message(messages)
    return messages[: messages[0]["role"] == "system"] + messages[start:]


def _checked(item: _Encoded, rewards: Rewards) -> Result:
    if all(math.isfinite(reward) for side in rewards for reward in side):
        return ScoredRecord(item.record, rewards, item.was_cut)
    return _of_record(RecordError(NOT_FINITE), item.record)


def _of_record(error: RecordError, record: Record) -> RecordError:
    """The error, which now names the record and holds it."""
    error.where, error.record = error.where or record.where, record
    return error
