"""A reward model's scores on any record: one number a side, and one an assistant turn if asked."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby

import torch

from musiccli.chat import Encoded, fit
from musiccli.errors import RecordError
from musiccli.jsonl import Rejects
from musiccli.records import Record, first_divergence, side_names
from musiccli.reward_model.checkpoint import RewardModel
from musiccli.reward_model.pack import cost, micro_batches

WINDOW = 256  # records scored together: enough to sort by size and to find candidates of one prompt side by side
BUDGET = 4096  # tokens in one forward pass


def score(records: Iterable[Record], model: RewardModel, name: str, *, per_turn: bool = False, budget: int = BUDGET,
          max_length: int | None = None, rejects: Rejects | None = None, counts: Counter | None = None) -> Iterator[dict]:
    """The same records with `scores[name]`: a number, or {side: number} where the record has sides.

    `per_turn` adds `turn_scores[name]`: the reward after each assistant turn, oldest first, in place of each number a
    list. Conversations over `max_length` tokens lose whole oldest exchanges, by the same rule on both sides, and are
    counted; one that cannot be cut goes to `rejects`.
    """
    rejects, counts = rejects or Rejects(), Counter() if counts is None else counts
    most = min(max_length or model.context, model.context)
    window: list[tuple[Record, list[Encoded]]] = []
    for record in records:
        with rejects.guard(record):
            window.append((record, _encode(record, model, most, counts)))
        if len(window) >= WINDOW:
            yield from _scored(window, model, name, per_turn, budget)
            window = []
    yield from _scored(window, model, name, per_turn, budget)


def _encode(record: Record, model: RewardModel, most: int, counts: Counter) -> list[Encoded]:
    sides = [record[side] for side in side_names(record)]
    for side, messages in zip(side_names(record), sides, strict=True):
        if messages[-1]["role"] != "assistant":
            raise RecordError("ends with the user; there is no reply to score", field=side, record=record)
    shared = first_divergence(*sides) if len(sides) == 2 else len(sides[0])
    fitted = fit(model.template.encode, sides, most, shared)
    if fitted is None:
        raise RecordError(f"is longer than {most} tokens and cannot be cut without losing what differs", record=record)
    counts["cut to fit"] += fitted[1] > 0
    return fitted[0]


def _scored(window: list[tuple[Record, list[Encoded]]], model: RewardModel, name: str, per_turn: bool,
            budget: int) -> Iterator[dict]:
    # Candidates of one prompt stand together and share it, so they make one group; so do the sides of a record.
    groups = [list(found) for _, found in groupby(range(len(window)), key=lambda index: window[index][0]["id"])]
    sequences = [[one if per_turn else Encoded(one.ids, one.ends[-1:]) for index in group for one in window[index][1]]
                 for group in groups]
    rewards: list[list[list[float]]] = [[] for _ in window]  # per record, per side, per read
    for batch in micro_batches([cost(group) for group in sequences], budget):
        with torch.inference_mode():
            found = iter(model.network([sequences[index] for index in batch]))
        for index in (index for number in batch for index in groups[number]):
            rewards[index] = [next(found).tolist() for _ in window[index][1]]
    for (record, _), sides in zip(window, rewards, strict=True):
        yield _add(record, name, sides, per_turn)


def _add(record: Record, name: str, sides: list[list[float]], per_turn: bool) -> dict:
    names = side_names(record)
    last, turns = [side[-1] for side in sides], sides
    if len(names) == 2:
        last, turns = dict(zip(names, last, strict=True)), dict(zip(names, turns, strict=True))
    else:
        last, turns = last[0], turns[0]
    added = {"scores": record.get("scores", {}) | {name: last}}
    if per_turn:
        added["turn_scores"] = record.get("turn_scores", {}) | {name: turns}
    return {**record, **added}
