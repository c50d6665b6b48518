"""Tokenized pairs as arrays, in memory or in files that all processes of a machine map.

A pair takes 4 bytes a token and 72 beside them. It becomes Python objects when it is asked for.
"""

import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import overload

import numpy as np
import orjson

from musiccli.core.cache_folder import open_private
from musiccli.reward_model.chat_template import EncodedConversation

DIVERGENCES = ("first", "middle", "last")
PAIR = np.dtype(
    [
        ("start", "<i8"),  # where its chosen side begins among the tokens
        ("position", "<i8"),  # where its first reward position is among all of them
        ("chosen", "<i4"),  # tokens of the chosen side, behind which the rejected side begins
        ("rejected", "<i4"),
        ("compared", "<i4"),  # reward positions of each side
        ("size", "<i4"),
        ("turns", "<i4"),
        ("divergence", "<i4"),  # index in DIVERGENCES
        ("margin", "<f8"),
        ("keys", "<u8", (3,)),
    ]
)
TOKEN = np.dtype("<i4")
HEADER = np.dtype("<i8")  # of a file: MARK, and how many pairs, positions, tokens and note bytes
HEADER_LENGTH, MARK = 5, int.from_bytes(b"mpairs02", "little")


class DamagedArraysError(ValueError):
    """A file is not one of ours, or not whole."""


@dataclass(frozen=True)
class TokenizedPair:
    """A preference as token ids, with what held-out accuracy is broken down by.

    Attributes:
        sides: the chosen and the rejected side. Both have equally many `reward_positions`. The loss
            compares the rewards at the first position of each side, at the second, and so on. The
            last position is the end of the conversation.
        size: tokens of the pair in a forward pass, packed or padded as the network computes it.
        tokens: tokens of both sides as two separate sequences.
        turns: turns of the side that has more, as `music bench agreement` counts them.
        divergence: the exchange in which the sides begin to differ, one of DIVERGENCES.
        margin: by how much the loss wants the chosen reward above the rejected one.
        keys: hashes by which `eval_split` tells what belongs together, 0 for none.
    """

    sides: tuple[EncodedConversation, EncodedConversation]
    size: int
    tokens: int
    turns: int
    divergence: str
    margin: float = 0.0
    keys: tuple[int, int, int] = (0, 0, 0)


class PairArrays:
    """Some pairs as arrays.

    Attributes:
        pairs: PAIR (pairs,).
        positions: reward positions within their sides, TOKEN (positions,).
        tokens: of all sides one after the other, the chosen side of a pair first, TOKEN (tokens,).
    """

    def __init__(
        self,
        pairs: np.ndarray,
        positions: np.ndarray,
        tokens: np.ndarray,
        mapped: mmap.mmap | None = None,
    ):
        self.pairs, self.positions, self.tokens = pairs, positions, tokens
        self._mapped = mapped

    @classmethod
    def of(cls, pairs: Sequence[TokenizedPair]) -> "PairArrays":
        """The arrays of pairs."""
        rows, start, position = np.zeros(len(pairs), PAIR), 0, 0
        for index, pair in enumerate(pairs):
            chosen, rejected = pair.sides
            compared = len(chosen.reward_positions)
            divergence = DIVERGENCES.index(pair.divergence)
            lengths = (len(chosen.ids), len(rejected.ids), compared)
            rest = (pair.size, pair.turns, divergence, pair.margin, pair.keys)
            rows[index] = start, position, *lengths, *rest
            start, position = start + pair.tokens, position + 2 * compared
        sides = [side for pair in pairs for side in pair.sides]
        positions = [np.array(side.reward_positions, TOKEN) for side in sides]
        tokens = [np.array(side.ids, TOKEN) for side in sides]
        none = [np.zeros(0, TOKEN)]
        return cls(rows, np.concatenate(none + positions), np.concatenate(none + tokens))

    def __len__(self) -> int:
        return len(self.pairs)

    def pair(self, index: int) -> TokenizedPair:
        """One pair as Python objects."""
        row = self.pairs[index].item()
        start, position, chosen, rejected, compared, size, turns, divergence, margin, keys = row
        ids = self.tokens[start : start + chosen + rejected].tolist()
        positions = self.positions[position : position + 2 * compared].tolist()
        self.release()
        sides = (
            EncodedConversation(ids[:chosen], positions[:compared]),
            EncodedConversation(ids[chosen:], positions[compared:]),
        )
        divergence = DIVERGENCES[divergence]
        return TokenizedPair(sides, size, len(ids), turns, divergence, margin, tuple(keys.tolist()))

    def select(self, mask: np.ndarray) -> "PairArrays":
        """Some of the pairs, which share their tokens with these; mask (pairs,) is boolean."""
        return PairArrays(self.pairs[mask], self.positions, self.tokens, self._mapped)

    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each side starts among the tokens, and where it stops, (sides,) each."""
        starts = np.stack(
            [self.pairs["start"], self.pairs["start"] + self.pairs["chosen"]], axis=1
        ).ravel()
        lengths = np.stack([self.pairs["chosen"], self.pairs["rejected"]], axis=1).ravel()
        return starts, starts + lengths

    def reward_tokens(self) -> np.ndarray:
        """The tokens at which rewards are read, in the order of pairs and sides, (positions,)."""
        starts, _ = self.sides()
        counts = np.repeat(self.pairs["compared"], 2)  # of each side
        first = self.pairs["position"]
        firsts = np.stack([first, first + self.pairs["compared"]], axis=1).ravel()
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        positions = self.positions[np.repeat(firsts, counts) + within]
        return self.tokens[np.repeat(starts, counts) + positions]

    def release(self) -> None:
        """Take the file's pages out of this process.

        They stay in the system's cache, from which every process maps them. But a process that has
        read all of a file would seem as large as the file.
        """
        if self._mapped:
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def write(self, path: Path, note: bytes = b"") -> None:
        """Write the arrays and a note to a private file, which appears when it is whole."""
        counts = (len(self.pairs), len(self.positions), len(self.tokens), len(note))
        header = np.array([MARK, *counts], HEADER)
        parts = (header, self.pairs, self.positions, self.tokens)
        write_private(path, *(part.tobytes() for part in parts), note)

    @classmethod
    def map(cls, path: Path) -> "tuple[PairArrays, bytes]":
        """Map a file that `write` has written.

        Returns:
            The arrays and the note.

        Raises:
            DamagedArraysError: it holds something else, or not all.
            OSError: it cannot be read.
        """
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < HEADER_LENGTH * HEADER.itemsize:
                raise DamagedArraysError(path)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        mark, *counts, note_length = np.frombuffer(mapped, HEADER, HEADER_LENGTH).tolist()
        offset, arrays = HEADER_LENGTH * HEADER.itemsize, []
        sizes = [count * dtype.itemsize for count, dtype in zip(counts, _PARTS, strict=True)]
        if mark != MARK or min(counts) < 0 or offset + sum(sizes) + note_length != len(mapped):
            raise DamagedArraysError(path)
        for dtype, count, size in zip(_PARTS, counts, sizes, strict=True):
            empty = np.empty(0, dtype)  # a buffer without any item is refused
            arrays.append(np.frombuffer(mapped, dtype, count, offset) if count else empty)
            offset += size
        note = mapped[offset:]
        pairs, positions, tokens = arrays
        result = cls(pairs, positions, tokens, mapped)
        result.release()  # reading one page maps those around it
        return result, note


_PARTS = (PAIR, TOKEN, TOKEN)  # of a file, in order: pairs, positions, tokens


class TokenizedPairs(Sequence[TokenizedPair]):
    """All pairs of a data set, in order. Each is made when it is asked for.

    Attributes:
        arrays: the pairs, a part after the other.
        margin_scale: the factor that multiplies each margin in the arrays.
        ready: pairs by index that were made ahead, and are not made anew.
    """

    def __init__(
        self,
        arrays: Sequence[PairArrays],
        margin_scale: float = 1.0,
        fingerprint: str | None = None,
        vocabulary: list[int] | None = None,
    ):
        """Name `fingerprint` and `vocabulary` where they are known: both take a pass over all."""
        self.arrays, self.margin_scale = list(arrays), margin_scale
        self.ready: dict[int, TokenizedPair] = {}
        self._stops = np.cumsum([len(part) for part in self.arrays], dtype=np.int64)
        if fingerprint is not None:
            self.fingerprint = fingerprint
        if vocabulary is not None:
            self.vocabulary = vocabulary

    def __len__(self) -> int:
        return int(self._stops[-1]) if self.arrays else 0

    @overload
    def __getitem__(self, index: int) -> TokenizedPair: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedPair]: ...
    def __getitem__(self, index: int | slice) -> TokenizedPair | list[TokenizedPair]:
        """One pair, or a list of them."""
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        ready = self.ready.get(position)  # asked once: another thread may replace the dictionary
        if ready:
            return ready
        number = int(np.searchsorted(self._stops, position, side="right"))
        part = self.arrays[number]
        pair = part.pair(position - int(self._stops[number]) + len(part))
        return pair if self.margin_scale == 1 else _with_margin(pair, self.margin_scale)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Tokens of each pair in a forward pass (pairs,)."""
        return self._column("size")

    @property
    def tokens(self) -> np.ndarray:
        """Tokens of both sides of each pair as separate sequences (pairs,)."""
        return self._column("chosen") + self._column("rejected")

    @property
    def compared(self) -> int:
        """At how many turns all pairs together are compared."""
        return int(self._column("compared").sum())

    @property
    def turns(self) -> list[int]:
        """The turns of each pair."""
        turns: list[int] = self._column("turns").tolist()
        return turns

    @property
    def divergences(self) -> list[str]:
        """In which exchange the sides of each pair begin to differ."""
        return [DIVERGENCES[number] for number in self._column("divergence").tolist()]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of tokens and margins, equal for the same pairs in the same order."""
        digest = Fingerprint(self.margin_scale)
        for part in self.parts():
            digest.update(part)
        return digest.text()

    @cached_property
    def vocabulary(self) -> list[int]:
        """Every token id that occurs, in ascending order."""
        return merge_vocabularies(occurring_tokens(part.tokens) for part in self.parts())

    def parts(self) -> Iterator[PairArrays]:
        """The arrays, one after the other; the memory of each is released after its turn."""
        for part in self.arrays:
            yield part
            part.release()

    @property
    def keys(self) -> np.ndarray:
        """Hashes by which `eval_split` tells what belongs together (pairs, 3)."""
        return self._column("keys")

    def select(self, mask: np.ndarray, note: str) -> "TokenizedPairs":
        """Some of the pairs. Their vocabulary is that of all.

        Args:
            mask: (pairs,), boolean.
            note: what the mask follows from; the fingerprint is that of all pairs and the note.
        """
        masks = np.split(mask, self._stops[:-1])
        arrays = [part.select(kept) for part, kept in zip(self.arrays, masks, strict=True)]
        fingerprint = sha256(f"{self.fingerprint} {note}".encode()).hexdigest()[:16]
        vocabulary = self.__dict__.get("vocabulary")  # else it is computed where it is asked for
        return TokenizedPairs(arrays, self.margin_scale, fingerprint, vocabulary)

    def joined(self, *more: "TokenizedPairs") -> "TokenizedPairs":
        """The tokens of these pairs and of more pairs; their margins are those of the arrays."""
        return TokenizedPairs([part for pairs in (self, *more) for part in pairs.arrays])

    def _column(self, name: str) -> np.ndarray:
        empty = np.zeros(0, PAIR)[name]
        return np.concatenate([empty, *(part.pairs[name].copy() for part in self.parts())])


class Fingerprint:
    """The hash of `TokenizedPairs.fingerprint`, part by part.

    It is that of the ids of every side as JSON, and of each margin that is not 0, as earlier
    versions wrote it to the notes of runs.
    """

    def __init__(self, margin_scale: float):
        self._digest, self._margin_scale = sha256(), margin_scale

    def update(self, part: PairArrays) -> None:
        """Add pairs."""
        starts, stops = (edges.tolist() for edges in part.sides())
        margins = (part.pairs["margin"] * self._margin_scale).tolist()
        for side, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            ids = part.tokens[start:stop]
            self._digest.update(orjson.dumps(ids, option=orjson.OPT_SERIALIZE_NUMPY))
            if side % 2 and margins[side // 2]:
                self._digest.update(orjson.dumps(margins[side // 2]))

    def text(self) -> str:
        """16 hex digits."""
        return self._digest.hexdigest()[:16]


def occurring_tokens(tokens: np.ndarray) -> np.ndarray:
    """Every id among the tokens, in ascending order."""
    return np.flatnonzero(np.bincount(tokens))


def merge_vocabularies(vocabularies: Iterable[np.ndarray]) -> list[int]:
    """Every id that occurs in any of them, in ascending order."""
    merged: np.ndarray = np.zeros(0, np.int64)
    for vocabulary in vocabularies:
        merged = np.union1d(merged, vocabulary)
    ids: list[int] = merged.tolist()
    return ids


def write_private(path: Path, *parts: bytes) -> None:
    """Write a file that only its owner may read, and that appears when it is whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb", opener=open_private) as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _with_margin(pair: TokenizedPair, scale: float) -> TokenizedPair:
    return replace(pair, margin=scale * pair.margin)
