"""A reward model's scores for any record: one number per side and, on request, one per turn."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby, islice
from typing import Any

import orjson

from musiccli.core.errors import RecordError
from musiccli.core.messages import Message, count_characters, last_user_message
from musiccli.core.processes import ProcessGroup
from musiccli.core.records import Record, side_names
from musiccli.core.run_stats import RunStats
from musiccli.core.store import Store
from musiccli.reward_model.chat_template import EncodedConversation
from musiccli.reward_model.model import RewardModel
from musiccli.reward_model.packing import partitions
from musiccli.reward_model.scoring import NOT_FINITE, deduplicate, encode_sides, score_encoded
from musiccli.score.config import ScoreConfig

WINDOW = 256  # records that one process scores together: enough to sort conversations by length


@dataclass(frozen=True)
class SideRewards:
    """What scoring one record gives.

    Attributes:
        rewards: for each side its rewards, oldest turn first.
        was_cut: whether the record lost its oldest exchanges.
    """

    rewards: list[list[float]]
    was_cut: bool


Result = SideRewards | RecordError


def score(
    records: Iterable[Record],
    model: RewardModel,
    name: str,
    config: ScoreConfig | None = None,
    *,
    store: Store | None = None,
    process_group: ProcessGroup | None = None,
    stats: RunStats | None = None,
) -> Iterator[dict[str, Any]]:
    """Add `scores[name]` to records, and where `per_turn` is set also `turn_scores[name]`.

    A score is a number; of a record with sides, {side: number}. A turn score has a list in place
    of each number. Both sides of a pair lose the same oldest exchanges where one is too long;
    turn scores are then those of the turns that are left.

    Args:
        records: conversations, preferences or comparisons.
        model: a loaded reward model.
        name: the key of the scores.
        config: how to score.
        store: scores that were computed before; new ones are added.
        process_group: processes that share the work. Each must be given all records, and each
            yields all.
        stats: counts what was cut, replaced and found in the store. A record that cannot be
            scored goes to its rejects.

    Yields:
        The records, in their order.
    """
    config, stats = config or ScoreConfig(), stats or RunStats()
    scorer = _Scorer(model, config, store, process_group or ProcessGroup())
    records = iter(records)
    while window := list(islice(records, WINDOW * scorer.process_group.size)):
        results, stored = scorer.score_window(window)
        stats.count("sequences_from_the_cache", number=stored)
        for record, result in zip(window, results, strict=True):
            with stats.rejects.guard(record):
                if isinstance(result, RecordError):
                    raise result
                stats.count("cut_to_fit", number=result.was_cut)
                replaced = name in (record.get("scores") or {})
                stats.count("scores_of_this_name_replaced", number=replaced)
                yield _with_scores(record, name, result.rewards, config.per_turn)


class _Scorer:
    def __init__(
        self,
        model: RewardModel,
        config: ScoreConfig,
        store: Store | None,
        process_group: ProcessGroup,
    ) -> None:
        self.model, self.config, self.store = model, config, store
        self.process_group = process_group
        limit = model.context_length
        self.max_length = min(config.max_length or limit, limit)

    def score_window(self, window: Sequence[Record]) -> tuple[list[Result], int]:
        """Score a window of records in all processes.

        Returns:
            Each record's result, and how many conversations were in the store.
        """
        indices = self._share(window)
        results, stored = self._score([window[index] for index in indices])
        shares = self.process_group.gather([(list(zip(indices, results, strict=True)), stored)])
        result_by_index = {index: result for share, _ in shares for index, result in share}
        total = sum(stored for _, stored in shares)
        return [result_by_index[index] for index in range(len(window))], total

    def _share(self, window: Sequence[Record]) -> list[int]:
        """Indices of the records that this process scores.

        Neighbors of one id, which probably begin alike, go to the same process. Every process
        gets about as many characters.
        """
        groups_by_id = [
            list(indices)
            for _, indices in groupby(range(len(window)), lambda index: window[index]["id"])
        ]
        sizes = [sum(_size(window[index]) for index in indices) for indices in groups_by_id]
        share = partitions(sizes, self.process_group.size)[self.process_group.rank]
        return sorted(index for number in share for index in groups_by_id[number])

    def _score(self, records: Sequence[Record]) -> tuple[list[Result], int]:
        """Score records in this process; returns as `score_window` does."""
        encoded = [self._encode(record) for record in records]
        sides = [
            (record["id"], side)
            for record, item in zip(records, encoded, strict=True)
            if not isinstance(item, RecordError)
            for side in item[0]
        ]
        firsts, kinds = deduplicate([side for _, side in sides])
        unique_rewards, stored = self._rewards([sides[index] for index in firsts])
        rewards = iter([unique_rewards[kind] for kind in kinds])
        results = [
            item
            if isinstance(item, RecordError)
            else _checked(list(islice(rewards, len(item[0]))), item[1])
            for item in encoded
        ]
        return results, stored

    def _encode(self, record: Record) -> tuple[list[EncodedConversation], bool] | RecordError:
        """The record's sides and whether they were cut, or why they cannot be scored."""
        try:
            for field in ("scores", "turn_scores"):
                if not isinstance(record.get(field) or {}, dict):
                    raise RecordError("is not an object of scores by model", field=field)
            sides = {name: record[name] for name in side_names(record)}
            if self.config.last_only:
                sides = {name: _last_exchange(messages) for name, messages in sides.items()}
            return encode_sides(
                self.model.chat_template,
                sides,
                self.max_length,
                tools=record.get("tools") or (),
                every_turn=self.config.per_turn,
            )
        except RecordError as error:
            error.record = None  # not to send the record between processes; the caller has it
            return error

    def _rewards(
        self, sides: Sequence[tuple[str | int, EncodedConversation]]
    ) -> tuple[list[list[float]], int]:
        """The rewards of each (record id, side), and how many of these were in the store.

        New rewards are stored only when all are computed. So a run that is resumed makes the same
        batches as one that was never stopped, and its rounding is the same.
        """
        keys = [self._key(side) for _, side in sides] if self.store else []
        replies = [self.store.get(key) for key in keys] if self.store else [None] * len(sides)
        rewards: list[list[float]] = [reply["rewards"] if reply else [] for reply in replies]
        missing = [index for index, reply in enumerate(replies) if reply is None]
        computed = score_encoded(
            self.model.network,
            [sides[index][1] for index in missing],
            [sides[index][0] for index in missing],
            self.config.budget,
        )
        for index, values in zip(missing, computed, strict=True):
            rewards[index] = values
        if self.store and missing:
            self._store([(keys[index], rewards[index]) for index in missing])
        return rewards, len(sides) - len(missing)

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


def _size(record: Record) -> int:
    return sum(count_characters(record[side]) for side in side_names(record))


def _last_exchange(messages: list[Message]) -> list[Message]:
    """The last user message and what replies to it, after the system message if there is one."""
    start = last_user_message(messages)
    return messages[: messages[0]["role"] == "system"] + messages[start:]


def _checked(rewards: list[list[float]], was_cut: bool) -> Result:
    if all(math.isfinite(reward) for side in rewards for reward in side):
        return SideRewards(rewards, was_cut)
    return RecordError(NOT_FINITE)


def _with_scores(
    record: Record, name: str, sides: list[list[float]], per_turn: bool
) -> dict[str, Any]:
    """The record with new scores, and without turn scores of an earlier run under this name."""
    names = side_names(record)
    last: Any = sides[0][-1]
    turns: Any = sides[0]
    if len(names) == 2:
        last = {side: rewards[-1] for side, rewards in zip(names, sides, strict=True)}
        turns = dict(zip(names, sides, strict=True))
    added = {"scores": (record.get("scores") or {}) | {name: last}}
    turn_scores: Mapping[str, Any] = record.get("turn_scores") or {}
    if per_turn:
        added["turn_scores"] = {**turn_scores, name: turns}
    elif name in turn_scores:
        added["turn_scores"] = {
            model: scores for model, scores in turn_scores.items() if model != name
        }
    return {**record, **added}
