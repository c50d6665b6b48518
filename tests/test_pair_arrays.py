"""Pairs as arrays: what goes in comes out, from memory and from a file that is mapped."""

import hashlib
import json
import os
import stat

import numpy as np
import pytest
from toys import sequence

from musiccli.train.pair_arrays import DamagedArraysError, PairArrays, TokenizedPair, TokenizedPairs

PAIRS = [
    TokenizedPair(
        (sequence([7, 8, 9]), sequence([7, 8, 2**31 - 1, 4])),
        5,
        7,
        1,
        "last",
        0.25,
        (1, 2**64 - 1, 0),
    ),
    TokenizedPair((sequence([5], 0), sequence([6, 5], 1)), 3, 3, 12, "first"),
    TokenizedPair((sequence([3, 2, 1], 1, 2), sequence([3, 2, 4, 5], 1, 3)), 7, 7, 2, "middle", 2),
]


@pytest.fixture(params=["memory", "file"])
def arrays(request, tmp_path):
    """The pairs in two arrays, of two pairs and of one."""
    parts = [PairArrays.of(PAIRS[:2]), PairArrays.of(PAIRS[2:])]
    if request.param == "memory":
        return parts
    for number, part in enumerate(parts):
        part.write(tmp_path / str(number), b"a note")
    mapped = [PairArrays.map(tmp_path / str(number)) for number in range(2)]
    assert [note for _, note in mapped] == [b"a note"] * 2
    return [part for part, _ in mapped]


def test_each_pair_is_as_it_was(arrays):
    pairs = TokenizedPairs(arrays)
    assert (len(pairs), list(pairs), pairs[-1], pairs[1:]) == (3, PAIRS, PAIRS[2], PAIRS[1:])
    with pytest.raises(IndexError):
        pairs[3]
    assert all(type(token) is int for pair in pairs for side in pair.sides for token in side.ids)


def test_columns_are_those_of_the_pairs(arrays):
    pairs = TokenizedPairs(arrays)
    assert pairs.sizes.tolist() == [5, 3, 7]
    assert pairs.tokens.tolist() == [7, 3, 7]
    assert (pairs.compared, pairs.turns) == (4, [1, 12, 2])
    assert pairs.divergences == ["last", "first", "middle"]


@pytest.mark.parametrize("mask", [[True, False, True], [False, True, True], [False, False, True]])
def test_a_selection_is_of_pairs_as_they_were(arrays, mask):
    pairs = TokenizedPairs(arrays)
    selected = pairs.select(np.array(mask), "note")
    kept = [pair for pair, keep in zip(PAIRS, mask, strict=True) if keep]
    assert list(selected) == kept
    assert selected.sizes.tolist() == [pair.size for pair in kept]
    assert selected.keys.tolist() == [list(pair.keys) for pair in kept]
    tokens = [token for part in selected.parts() for token in part.reward_tokens().tolist()]
    assert tokens == [
        side.ids[position]
        for pair in kept
        for side in pair.sides
        for position in side.reward_positions
    ]
    assert (
        selected.fingerprint != pairs.fingerprint != pairs.select(~np.array(mask), "").fingerprint
    )


def test_reward_tokens_and_the_edges_of_sides_are_those_of_the_pairs(arrays):
    for part, pairs in zip(arrays, (PAIRS[:2], PAIRS[2:]), strict=True):
        sides = [side for pair in pairs for side in pair.sides]
        starts, stops = part.sides()
        assert [
            part.tokens[start:stop].tolist() for start, stop in zip(starts, stops, strict=True)
        ] == [side.ids for side in sides]
        assert part.reward_tokens().tolist() == [
            side.ids[position] for side in sides for position in side.reward_positions
        ]


def test_margins_are_multiplied_in_pairs_and_in_the_fingerprint(arrays):
    pairs = TokenizedPairs(arrays, 2.0)
    assert [pair.margin for pair in pairs] == [0.5, 0.0, 4.0]
    assert pairs.fingerprint == TokenizedPairs([PairArrays.of(list(pairs))]).fingerprint
    assert pairs.fingerprint != TokenizedPairs(arrays).fingerprint


def test_the_fingerprint_is_the_one_that_earlier_versions_wrote(arrays):
    text = "[7,8,9][7,8,2147483647,4]0.25[5][6,5][3,2,1][3,2,4,5]2.0"
    assert TokenizedPairs(arrays).fingerprint == hashlib.sha256(text.encode()).hexdigest()[:16]
    whole = TokenizedPairs([PairArrays.of(PAIRS)])
    assert TokenizedPairs(arrays).fingerprint == whole.fingerprint
    assert TokenizedPairs([]).fingerprint == hashlib.sha256().hexdigest()[:16]


def test_the_vocabulary_is_every_token_once():
    pairs = [
        TokenizedPair((sequence([9, 3]), sequence([9, 1])), 4, 4, 1, "last"),
        TokenizedPair((sequence([1]), sequence([0, 1])), 3, 3, 1, "last"),
    ]
    parts = [PairArrays.of([pair]) for pair in pairs]
    assert TokenizedPairs(parts).vocabulary == [0, 1, 3, 9]


def test_joined_pairs_come_one_after_the_other(arrays):
    joined = TokenizedPairs(arrays[:1]).joined(TokenizedPairs(arrays[1:]))
    assert list(joined) == PAIRS


def test_no_pairs_are_no_pairs(tmp_path):
    PairArrays.of([]).write(tmp_path / "none")
    for part in (PairArrays.of([]), PairArrays.map(tmp_path / "none")[0]):
        pairs = TokenizedPairs([part])
        assert (len(pairs), list(pairs), pairs.sizes.tolist()) == (0, [], [])
        assert (pairs.vocabulary, part.reward_tokens().tolist()) == ([], [])
    assert not TokenizedPairs([]) and TokenizedPairs([]).sizes.tolist() == []


def test_a_pair_takes_4_bytes_a_token_and_48_beside_them(tmp_path):
    pair = TokenizedPair((sequence([1] * 1000), sequence([2] * 1400)), 2400, 2400, 1, "last")
    PairArrays.of([pair] * 50).write(tmp_path / "file")
    assert os.path.getsize(tmp_path / "file") == 40 + 50 * (72 + 2 * 4 + 2400 * 4)


def test_only_its_owner_may_read_a_file_and_nothing_else_is_left(tmp_path):
    PairArrays.of(PAIRS).write(tmp_path / "file")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:39],
        lambda data: b"",
        lambda data: bytes(len(data)),
        lambda data: data[:8] + (-1).to_bytes(8, "little", signed=True) + data[16:],
        lambda data: json.dumps({"a": 1}).encode() * 10,
    ],
)
def test_a_file_that_is_not_whole_is_known(tmp_path, damage):
    path = tmp_path / "file"
    PairArrays.of(PAIRS).write(path, b"note")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedArraysError):
        PairArrays.map(path)


def test_reading_all_of_a_mapped_file_leaves_none_of_it_in_this_process(tmp_path):
    side = sequence([1] * 250_000)
    PairArrays.of([TokenizedPair((side, side), 1, 500_000, 1, "last")] * 5).write(tmp_path / "file")
    pairs = TokenizedPairs([PairArrays.map(tmp_path / "file")[0]])  # 10 MB
    before = resident_file_bytes()
    assert pairs.vocabulary == [1] and pairs.fingerprint and pairs.sizes.sum() == 5
    assert pairs[0].tokens == pairs[4].tokens == 500_000
    assert resident_file_bytes() - before < 2_000_000
    assert int(np.asarray(pairs.arrays[0].tokens).sum()) == 2_500_000  # what is not released shows
    assert resident_file_bytes() - before > 8_000_000


def resident_file_bytes() -> int:
    """Bytes of files that this process has mapped and touched."""
    with open("/proc/self/status") as status:
        [line] = [line for line in status if line.startswith("RssFile")]
    return int(line.split()[1]) * 1024
