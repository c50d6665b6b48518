"""Tokenize preference pairs: what a run trains on, and what it is measured on.

A pair over the length limit is cut or dropped. A pair whose sides are the same tokens is dropped.
Each outcome is counted.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from musiccli.core.errors import RecordError, shortened
from musiccli.core.messages import Message, count_turns, first_divergence
from musiccli.core.records import Record, lookup
from musiccli.core.run_stats import RunStats
from musiccli.reward_model.chat_template import (
    ChatTemplate,
    EncodedConversation,
    Tools,
    cut_to_fit,
)
from musiccli.reward_model.checkpoint import RewardModel
from musiccli.reward_model.packing import count_tokens
from musiccli.train.eval_split import split_keys
from musiccli.train.pair_arrays import PairArrays, TokenizedPair, TokenizedPairs

ENCODED_AT_ONCE = 64  # pairs: tokenizers take less time for each text of a batch
SIDES = ("chosen", "rejected")

Encoded = EncodedConversation | RecordError  # a conversation, or why the template refuses it


@dataclass
class TokenizedRecords:
    """What became of some records.

    Attributes:
        pairs: in the order of the records.
        outcomes: counts `pairs_cut_to_fit` and `pairs_dropped`.
        errors: for each record that cannot be used its index, and why.
    """

    pairs: list[TokenizedPair] = field(default_factory=list)
    outcomes: RunStats = field(default_factory=RunStats)
    errors: list[tuple[int, RecordError]] = field(default_factory=list)


@dataclass(frozen=True)
class PairTokenizer:
    """Tokenizes preferences with a model's chat template.

    Attributes:
        chat_template: the model's.
        packed: whether the network packs pairs, which decides their size.
        max_length: the most tokens of one side. Longer pairs are cut by `cut_to_fit`, or dropped.
        margin_field: the field that holds a pair's margin; None means a margin of 0.
        per_turn: compare rewards after every turn in which the sides differ. Otherwise compare them
            after the last turn only.
    """

    chat_template: ChatTemplate
    packed: bool
    max_length: int
    margin_field: str | None = None
    per_turn: bool = False

    def tokenize(self, records: Sequence[Record]) -> TokenizedRecords:
        """Tokenize preferences. A record that cannot be used becomes an error, and raises none.

        A pair of equal tokens is dropped because its loss is always log 2 and its gradient zero.
        """
        result = TokenizedRecords()
        with without_tokenizer_threads():
            for start in range(0, len(records), ENCODED_AT_ONCE):
                batch = records[start : start + ENCODED_AT_ONCE]
                for index, (record, whole) in enumerate(self._encode(batch), start):
                    try:
                        pair = self._pair(record, whole, result.outcomes)
                    except RecordError as error:
                        error.record = record
                        result.errors.append((index, error))
                    else:
                        result.pairs += [pair] if pair else []
        return result

    def _encode(
        self, records: Sequence[Record]
    ) -> Iterator[tuple[Record, tuple[Encoded, Encoded] | None]]:
        """Each record with its whole sides, None where they are read at every turn."""
        if self.per_turn:
            yield from ((record, None) for record in records)
            return
        conversations = [(record[side], _tools(record)) for record in records for side in SIDES]
        encoded = self.chat_template.encode_batch(conversations)
        yield from zip(records, zip(encoded[::2], encoded[1::2], strict=True), strict=True)

    def _pair(
        self, record: Record, whole: tuple[Encoded, Encoded] | None, outcomes: RunStats
    ) -> TokenizedPair | None:
        """The pair of a record, None where it is dropped. Raises RecordError."""
        margin = _margin(record, self.margin_field) if self.margin_field else 0.0
        conversations = [record[side] for side in SIDES]
        sides = self._fit(conversations, _tools(record), whole, outcomes)
        if sides is None:
            return None
        return TokenizedPair(
            keep_compared_positions(*sides),
            count_tokens(sides, packed=self.packed),
            sum(len(side.ids) for side in sides),
            max(map(count_turns, conversations)),
            diverging_exchange(*conversations),
            margin,
            split_keys(record),
        )

    def _fit(
        self,
        conversations: list[list[Message]],
        tools: Tools,
        whole: tuple[Encoded, Encoded] | None,
        outcomes: RunStats,
    ) -> tuple[EncodedConversation, EncodedConversation] | None:
        """The chosen and the rejected side within the limit; None where the pair is dropped."""
        encode = partial(self.chat_template.encode, every_turn=self.per_turn, tools=tools)
        fitted = cut_to_fit(
            encode,
            conversations,
            self.max_length,
            first_divergence(*conversations),
            whole=map(_encoded, whole) if whole else None,
        )
        if fitted is None:
            outcomes.count("pairs_dropped", "too_long")
            return None
        (chosen, rejected), messages_cut = fitted
        if messages_cut:
            outcomes.count("pairs_cut_to_fit")
        if chosen.ids == rejected.ids:
            outcomes.count("pairs_dropped", "same_tokens")
            return None
        return chosen, rejected


def pair_tokenizer(
    model: RewardModel,
    max_length: int,
    *,
    margin_field: str | None = None,
    per_turn: bool = False,
) -> PairTokenizer:
    """A model's PairTokenizer; its attributes say what the arguments mean."""
    return PairTokenizer(
        model.chat_template, model.network.packed, max_length, margin_field, per_turn
    )


def tokenize_pairs(
    preferences: Iterable[Record],
    model: RewardModel,
    max_length: int,
    stats: RunStats | None = None,
    *,
    margin_field: str | None = None,
    margin_scale: float = 1.0,
    per_turn: bool = False,
) -> TokenizedPairs:
    """Tokenize preferences with the model's chat template, and keep them in memory.

    Args:
        preferences: records with `chosen` and `rejected`.
        model: gives the chat template, and the size of a pair in a forward pass.
        max_length: as in PairTokenizer, like `margin_field` and `per_turn`.
        stats: counts `pairs_cut_to_fit` and `pairs_dropped`. Its rejects take a pair that the chat
            template refuses, or that has no margin.
        margin_field: the field that holds a pair's margin.
        margin_scale: the factor that multiplies each margin.
        per_turn: whether rewards are compared after every turn.
    """
    tokenizer = pair_tokenizer(model, max_length, margin_field=margin_field, per_turn=per_turn)
    records, stats = list(preferences), stats or RunStats()
    result = tokenizer.tokenize(records)
    for index, error in result.errors:
        with stats.rejects.guard(records[index]):
            raise error
    stats.add(result.outcomes)
    return TokenizedPairs([PairArrays.of(result.pairs)], margin_scale)


@contextmanager
def without_tokenizer_threads() -> Iterator[None]:
    """Let tokenizers start no threads in this context: processes that are forked lack them."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _encoded(side: Encoded) -> EncodedConversation:
    if isinstance(side, RecordError):
        raise side
    return side


def _tools(record: Record) -> Tools:
    tools: Tools = record.get("tools") or ()
    return tools


def keep_compared_positions(
    chosen: EncodedConversation, rejected: EncodedConversation
) -> tuple[EncodedConversation, EncodedConversation]:
    """Both sides with only the reward positions that the loss compares.

    These are the last position of each side, and before it those of the turns that both sides have.
    Turns of the shared history are left out: equal tokens have equal rewards.
    """
    turns = zip(chosen.reward_positions[:-1], rejected.reward_positions[:-1], strict=False)
    compared = [
        (chosen_end, rejected_end)
        for chosen_end, rejected_end in turns
        if chosen.ids[: chosen_end + 1] != rejected.ids[: rejected_end + 1]
    ]
    compared.append((chosen.reward_positions[-1], rejected.reward_positions[-1]))
    chosen_positions, rejected_positions = map(list, zip(*compared, strict=True))
    return (
        EncodedConversation(chosen.ids, chosen_positions),
        EncodedConversation(rejected.ids, rejected_positions),
    )


def diverging_exchange(chosen: Sequence[Message], rejected: Sequence[Message]) -> str:
    """The exchange in which two sides begin to differ, one of DIVERGENCES.

    "last" means that only replies to the last user message differ, and "first" that the first
    exchange differs already. Everything between is "middle".
    """
    shared = first_divergence(chosen, rejected)
    starts, rejected_starts = _exchange_starts(chosen), _exchange_starts(rejected)
    if shared > max(starts[-1], rejected_starts[-1]):
        return "last"
    end_of_first = starts[1] if len(starts) > 1 else len(chosen)
    return "first" if shared < end_of_first else "middle"


def _exchange_starts(messages: Sequence[Message]) -> list[int]:
    return [index for index, message in enumerate(messages) if message["role"] == "user"]


def _margin(record: Record, field: str) -> float:
    """A record's margin: a number, or the length of a list. Raises RecordError otherwise."""
    value = lookup(record, field)
    if isinstance(value, list):
        return float(len(value))
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        shown = "missing" if value is None else shortened(value)
        raise RecordError(
            f"is {shown}; a margin is a number from 0 up, or a list's length",
            field=field,
            record=record,
        )
    return float(value)
