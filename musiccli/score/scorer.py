"""A reward model's scores on any record: one number a side, and one an assistant turn if asked."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import groupby, islice

import orjson
import torch

from musiccli.core.errors import RecordError
from musiccli.core.jsonl import Rejects
from musiccli.core.processes import ProcessGroup
from musiccli.core.records import Record, count_characters, first_divergence, side_names
from musiccli.core.store import Store
from musiccli.reward_model.chat_template import EncodedConversation, cut_to_fit
from musiccli.reward_model.checkpoint import RewardModel
from musiccli.reward_model.out_of_memory import explain_out_of_memory
from musiccli.reward_model.packing import micro_batches, packed_length, partitions

WINDOW = 256  # records that one process scores together: enough to sort by size and to find candidates of one prompt
BUDGET = 4096  # tokens in one forward pass


@dataclass(frozen=True)
class ScoreConfig:
    """How to score. `per_turn`: the reward after each assistant turn, too; `last_only`: without the history, only the
    last user message and its reply, after the system message if any; `budget` and `max_length` are in tokens."""

    per_turn: bool = False
    last_only: bool = False
    budget: int = BUDGET
    max_length: int | None = None


@dataclass(frozen=True)
class Outcome:
    """Rewards of one record's sides, oldest turn first; and whether it lost oldest exchanges to fit."""

    rewards: list[list[float]]
    cut: bool


def score(
    records: Iterable[Record],
    model: RewardModel,
    name: str,
    settings: ScoreConfig | None = None,
    *,
    cache: Store | None = None,
    process_group: ProcessGroup | None = None,
    rejects: Rejects | None = None,
    counts: Counter | None = None,
) -> Iterator[dict]:
    """The same records with `scores[name]`: a number, or {side: number} where the record has sides; with `per_turn`
    also `turn_scores[name]`, in place of each number a list.

    Conversations over `max_length` tokens lose whole oldest exchanges, by the same rule on both sides, and are
    counted; their turn scores are those of the turns that are left. One that cannot be cut goes to `rejects`.
    What stands in `cache` is not computed again. Every process of a `process_group` scores its share of each window and yields
    all records.
    """
    rejects, counts, process_group = (
        rejects or Rejects(),
        Counter() if counts is None else counts,
        process_group or ProcessGroup(),
    )
    scorer = _Scorer(model, settings or ScoreConfig(), cache)
    records = iter(records)
    while window := list(islice(records, WINDOW * process_group.size)):
        found, cached = scorer.by_all(window, process_group)
        counts["sequences from the cache"] += cached
        for record, outcome in zip(window, found, strict=True):
            with rejects.guard(record):
                if isinstance(outcome, RecordError):
                    raise outcome
                counts["cut to fit"] += outcome.cut
                counts["records had scores of this name, replaced; --as names another"] += name in (
                    record.get("scores") or {}
                )
                yield _add(record, name, outcome.rewards, scorer.settings.per_turn)


class _Scorer:
    def __init__(self, model: RewardModel, settings: ScoreConfig, cache: Store | None):
        self.model, self.settings, self.cache = model, settings, cache
        self.longest = min(settings.max_length or model.context_length, model.context_length)

    def by_all(
        self, window: Sequence[Record], process_group: ProcessGroup
    ) -> tuple[list[Outcome | RecordError], int]:
        """What became of each record, and how many sequences were in the cache: neighbours of one id, which probably
        share a beginning, go to one process, and every process gets about as many characters."""
        families = [
            list(family)
            for _, family in groupby(range(len(window)), lambda index: window[index]["id"])
        ]
        weights = [
            sum(
                count_characters(window[index][side])
                for index in family
                for side in side_names(window[index])
            )
            for family in families
        ]
        own = sorted(
            index
            for number in partitions(weights, process_group.size)[process_group.rank]
            for index in families[number]
        )
        outcomes, cached = self.window([window[index] for index in own])
        gathered = process_group.gather([(list(zip(own, outcomes, strict=True)), cached)])
        placed = sorted((one for share, _ in gathered for one in share), key=lambda one: one[0])
        return [outcome for _, outcome in placed], sum(cached for _, cached in gathered)

    def window(self, records: Sequence[Record]) -> tuple[list[Outcome | RecordError], int]:
        """What becomes of some records, scored together, and how many of their sequences were in the cache."""
        outcomes: list[Outcome | RecordError] = []
        numbers: dict[
            tuple, int
        ] = {}  # what reads the same is scored once: else rounding would tell it apart
        sequences, places = [], []
        for record in records:
            try:
                sides, cut = self._encode(record)
            except RecordError as error:
                error.record = (
                    None  # whoever raises it has it, and it would travel between processes
                )
                outcomes.append(error)
                continue
            for side in sides:
                places.append(
                    numbers.setdefault((*side.ids, None, *side.reward_positions), len(numbers))
                )
                sequences += [(record["id"], side)] if places[-1] == len(sequences) else []
            outcomes.append(Outcome([[] for _ in sides], cut))
        rewards, cached = self._rewards(sequences)
        left = iter(places)
        for place, outcome in enumerate(outcomes):
            if isinstance(outcome, Outcome):
                outcome.rewards[:] = [
                    rewards[number] for number in islice(left, len(outcome.rewards))
                ]
                if not all(math.isfinite(value) for side in outcome.rewards for value in side):
                    outcomes[place] = RecordError(
                        "the reward is not a number; the model overflows or is damaged"
                    )
        return outcomes, cached

    def _encode(self, record: Record) -> tuple[list[EncodedConversation], bool]:
        names = side_names(record)
        sides = [record[side] for side in names]
        for side, messages in zip(names, sides, strict=True):
            if messages[-1]["role"] != "assistant":
                raise RecordError("ends with the user; there is no reply to score", field=side)
        for field in ("scores", "turn_scores"):
            if not isinstance(record.get(field) or {}, dict):
                raise RecordError("is not an object of scores by model", field=field)
        if self.settings.last_only:
            sides = [side[: side[0]["role"] == "system"] + side[-2:] for side in sides]
        shared = first_divergence(*sides) if len(sides) == 2 else len(sides[0])
        encode = partial(self.model.chat_template.encode, every_turn=self.settings.per_turn)
        fitted = cut_to_fit(encode, sides, self.longest, shared)
        if fitted is None:
            raise RecordError(
                f"is longer than {self.longest} tokens and cannot be cut without losing what differs"
            )
        return fitted[0], fitted[1] > 0

    def _rewards(
        self, sequences: list[tuple[object, EncodedConversation]]
    ) -> tuple[list[list[float]], int]:
        """Of each (id, sequence) the rewards at its ends; and how many of these were in the cache. What is new is kept
        when all is computed: a run that was stopped and goes on then batches, and so rounds, as an unbroken one."""
        keys = [self._key(one) for _, one in sequences] if self.cache else []
        known = [self.cache.get(key) for key in keys] if self.cache else [None] * len(sequences)
        rewards = [found and found["rewards"] for found in known]
        missing = [index for index, found in enumerate(rewards) if found is None]
        for index, new in zip(
            missing, self._compute([sequences[index] for index in missing]), strict=True
        ):
            rewards[index] = new
        if self.cache and missing:
            with self.cache.transaction():
                for index in missing:
                    if all(map(math.isfinite, rewards[index])):
                        self.cache.put(
                            keys[index], {"rewards": rewards[index]}, self.model.identity
                        )
        return rewards, len(sequences) - len(missing)

    def _compute(self, sequences: list[tuple[object, EncodedConversation]]) -> list[list[float]]:
        network, budget = self.model.network, self.settings.budget
        groups = (
            _groups(sequences, budget)
            if network.packed
            else [[index] for index in range(len(sequences))]
        )
        encoded = [[sequences[index][1] for index in group] for group in groups]
        rewards: list[list[float]] = [[] for _ in sequences]
        sizes = [network.token_count(group) for group in encoded]
        for batch in micro_batches(sizes, budget, padded=not network.packed):
            with (
                torch.inference_mode(),
                explain_out_of_memory("a smaller --budget or --max-length takes less"),
            ):
                found = network([encoded[number] for number in batch])
            for index, values in zip(
                (index for number in batch for index in groups[number]), found, strict=True
            ):
                rewards[index] = values.tolist()
        return rewards

    def _key(self, one: EncodedConversation) -> bytes:
        return blake2b(
            orjson.dumps([self.model.identity, one.ids, one.reward_positions]), digest_size=16
        ).digest()


def _groups(sequences: list[tuple[object, EncodedConversation]], budget: int) -> list[list[int]]:
    """Indices of neighbours that share an id and so, probably, a beginning: the sides of a record, the candidates of
    a prompt. A group stays within `budget` tokens where it can."""
    groups: list[list[int]] = []
    for index, (name, _) in enumerate(sequences):
        group = [*groups[-1], index] if groups and sequences[index - 1][0] == name else [index]
        if len(group) > 1 and packed_length([sequences[other][1] for other in group]) <= budget:
            groups[-1] = group
        else:
            groups.append([index])
    return groups


def _add(record: Record, name: str, sides: list[list[float]], per_turn: bool) -> dict:
    names = side_names(record)
    last, turns = [side[-1] for side in sides], sides
    if len(names) == 2:
        last, turns = dict(zip(names, last, strict=True)), dict(zip(names, turns, strict=True))
    else:
        last, turns = last[0], turns[0]
    added = {"scores": (record.get("scores") or {}) | {name: last}}
    if per_turn:
        added["turn_scores"] = (record.get("turn_scores") or {}) | {name: turns}
    elif name in (record.get("turn_scores") or {}):  # those of an earlier run
        added["turn_scores"] = {
            other: found for other, found in record["turn_scores"].items() if other != name
        }
    return {**record, **added}
