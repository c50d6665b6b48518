"""A reward model's scores on any record: one number a side, and one an assistant turn if asked."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice

import torch

from musiccli.chat import Encoded, fit
from musiccli.errors import RecordError
from musiccli.jsonl import Rejects
from musiccli.records import Record, first_divergence, side_names
from musiccli.reward_model.checkpoint import RewardModel
from musiccli.reward_model.pack import cost, micro_batches

WINDOW = 256  # records scored together: enough to sort by size and to find candidates of one prompt side by side
BUDGET = 4096  # tokens in one forward pass


def score(records: Iterable[Record], model: RewardModel, name: str, *, per_turn: bool = False, last_only: bool = False,
          budget: int = BUDGET, max_length: int | None = None, rejects: Rejects | None = None,
          counts: Counter | None = None) -> Iterator[dict]:
    """The same records with `scores[name]`: a number, or {side: number} where the record has sides.

    `per_turn` adds `turn_scores[name]`: the reward after each assistant turn, oldest first, in place of each number a
    list. Conversations over `max_length` tokens lose whole oldest exchanges, by the same rule on both sides, and are
    counted; their turn scores are those of the turns that are left. One that cannot be cut goes to `rejects`.
    With `last_only` the model sees no history: the last user message and its reply, after the system message if any.
    """
    rejects, counts = rejects or Rejects(), Counter() if counts is None else counts
    most = min(max_length or model.context, model.context)
    window: list[tuple[Record, list[Encoded]]] = []
    for record in records:
        with rejects.guard(record):
            window.append((record, _encode(record, model, most, per_turn, last_only, counts)))
        if len(window) >= WINDOW:
            yield from _scored(window, model, name, per_turn, budget, rejects)
            window = []
    yield from _scored(window, model, name, per_turn, budget, rejects)


def _encode(record: Record, model: RewardModel, most: int, per_turn: bool, last_only: bool,
            counts: Counter) -> list[Encoded]:
    sides = [record[side] for side in side_names(record)]
    for side, messages in zip(side_names(record), sides, strict=True):
        if messages[-1]["role"] != "assistant":
            raise RecordError("ends with the user; there is no reply to score", field=side, record=record)
    for field in ("scores", "turn_scores"):
        if not isinstance(record.get(field) or {}, dict):
            raise RecordError("is not an object of scores by model", field=field, record=record)
    if last_only:
        sides = [side[:side[0]["role"] == "system"] + side[-2:] for side in sides]
    shared = first_divergence(*sides) if len(sides) == 2 else len(sides[0])
    fitted = fit(partial(model.template.encode, every_turn=per_turn), sides, most, shared)
    if fitted is None:
        raise RecordError(f"is longer than {most} tokens and cannot be cut without losing what differs", record=record)
    counts["cut to fit"] += fitted[1] > 0
    return fitted[0]


def _scored(window: list[tuple[Record, list[Encoded]]], model: RewardModel, name: str, per_turn: bool, budget: int,
            rejects: Rejects) -> Iterator[dict]:
    numbers: dict[tuple, int] = {}  # what reads the same is scored once: else rounding would tell it apart
    sequences, places = [], []
    for record, sides in window:
        for side in sides:
            places.append(numbers.setdefault((*side.ids, None, *side.ends), len(numbers)))
            sequences += [(record["id"], side)] if places[-1] == len(sequences) else []
    groups = _groups(sequences, budget)
    rewards: list[list[float]] = [[] for _ in sequences]  # one value per read
    for batch in micro_batches([cost([sequences[index][1] for index in group]) for group in groups], budget):
        with torch.inference_mode():
            found = model.network([[sequences[index][1] for index in groups[number]] for number in batch])
        for index, values in zip((index for number in batch for index in groups[number]), found, strict=True):
            rewards[index] = values.tolist()
    left = (rewards[place] for place in places)
    for record, sides in window:
        found = list(islice(left, len(sides)))
        with rejects.guard(record):
            if not all(math.isfinite(value) for side in found for value in side):
                raise RecordError("the reward is not a number; the model overflows or is damaged", record=record)
            yield _add(record, name, found, per_turn)


def _groups(sequences: list[tuple[object, Encoded]], budget: int) -> list[list[int]]:
    """Indices of neighbours that share an id and so, probably, a beginning: the sides of a record, the candidates of
    a prompt. A group stays within `budget` tokens where it can."""
    groups: list[list[int]] = []
    for index, (name, _) in enumerate(sequences):
        group = [*groups[-1], index] if groups and sequences[index - 1][0] == name else [index]
        if len(group) > 1 and cost([sequences[other][1] for other in group]) <= budget:
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
    return {**record, **added}
