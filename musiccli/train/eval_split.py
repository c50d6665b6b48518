"""A share of the pairs is held out of training, so that no prompt is on both sides."""

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from musiccli.core import json_text
from musiccli.core.errors import InputError
from musiccli.core.messages import Message
from musiccli.core.records import Record, lookup
from musiccli.train.pair_arrays import TokenizedPairs

GROUP_FIELD = "group"  # of a record or its metadata: records of one group stay together


@dataclass(frozen=True)
class EvalSplit:
    """All pairs in two parts.

    Attributes:
        training: the pairs to train on, in the order of the input.
        held_out: the others, in the same order.
        groups: how many groups of pairs are held out.
    """

    training: TokenizedPairs
    held_out: TokenizedPairs
    groups: int


def split_keys(record: Record) -> tuple[int, int, int]:
    """Hashes of what may not be on both sides of a split: both prompts, and the group.

    A prompt is a conversation's first user message, whatever its white space. 0 stands for none.
    """
    group = lookup(record, GROUP_FIELD)
    return (
        _prompt_key(record["chosen"]),
        _prompt_key(record["rejected"]),
        0 if group is None else _hash(b"group " + json_text.encode(group)),
    )


def split_pairs(pairs: TokenizedPairs, fraction: float, seed: int) -> EvalSplit:
    """Hold out a fraction of the pairs.

    Pairs that share a key, at once or through other pairs, are a group. Whole groups are held out,
    in an order that follows from the seed and their keys, as long as the fraction has room.

    Args:
        pairs: all pairs.
        fraction: of the pairs, between 0 and 1.
        seed: another one holds out other groups.

    Raises:
        InputError: no group is small enough.
    """
    labels, keys = _groups(pairs.keys)
    sizes = np.bincount(labels, minlength=len(keys))
    chosen = _choose_groups(sizes, keys, max(1, round(fraction * len(pairs))), seed)
    if not chosen:
        raise InputError(
            f"`eval_split` {fraction:g}: every group of pairs with the same prompt is larger; "
            "give held-out pairs as `held_out`"
        )
    mask = np.isin(labels, chosen)
    note = f"{fraction} {seed}"
    return EvalSplit(
        pairs.select(~mask, f"training {note}"),
        pairs.select(mask, f"held out {note}"),
        len(chosen),
    )


def _groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Connect rows that share a key.

    Args:
        keys: (pairs, 3), 0 for none.

    Returns:
        The group of each pair (pairs,); and of each group its smallest key (groups,).
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    rows, columns = np.nonzero(keys)
    names, numbers = np.unique(keys[rows, columns], return_inverse=True)
    count = len(keys)
    edges = (np.ones(len(rows), np.int8), (rows, count + numbers))
    graph = coo_matrix(edges, shape=(count + len(names), count + len(names)))
    groups, labels = connected_components(graph, directed=False)
    smallest = np.full(groups, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, labels[count:], names)
    return labels[:count], smallest


def _choose_groups(sizes: np.ndarray, keys: np.ndarray, room: int, seed: int) -> list[int]:
    """Groups that together hold at most `room` pairs, each that fits in the order of the seed."""
    chosen = []
    for group in np.argsort(_shuffled(keys, seed), kind="stable").tolist():
        if sizes[group] <= room:
            chosen.append(group)
            room -= int(sizes[group])
        if not room:
            break
    return chosen


def _shuffled(keys: np.ndarray, seed: int) -> np.ndarray:
    """Other numbers for the keys, by the finalizer of SplitMix64 (Steele et al. 2014)."""
    mixed = keys ^ np.uint64(_hash(f"seed {seed}".encode()))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def _prompt_key(messages: list[Message]) -> int:
    text = next((m["content"] for m in messages if m["role"] == "user"), "")
    return _hash(b"prompt " + " ".join(text.split()).encode("utf-8", "surrogatepass"))


def _hash(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
