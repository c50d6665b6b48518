"""recipes/tiny-data holds what its README says."""

from collections import Counter
from pathlib import Path

import pytest

from musiccli.core import jsonl, messages, records
from musiccli.simulate.personas import Personas

FOLDER = Path(__file__).parent.parent / "recipes" / "tiny-data"
KINDS = {
    "seeds": records.parse_conversation,
    "prompts": records.parse_conversation,
    "pairs": records.parse_preference,
    "more-pairs": records.parse_preference,
    "heldout": records.parse_preference,
    "talks": records.parse_conversation,
}


def load(name: str) -> list[records.Record]:
    return list(jsonl.read([str(FOLDER / f"{name}.jsonl")], KINDS[name]))


def texts(record: dict) -> list[str]:
    """Every text of a record once, the shared history of two sides counted as one."""
    first, *rest = [record[side] for side in records.side_names(record)]
    return [message["content"] for message in first + [side[-1] for side in rest]]


@pytest.mark.parametrize(
    "name, lengths",
    [
        ("seeds", {1: 24, 2: 12, 4: 12}),
        ("prompts", {1: 12}),
        ("pairs", {2: 15, 4: 15}),
        ("more-pairs", {2: 15, 4: 15}),
        ("heldout", {2: 8, 4: 8}),
        ("talks", {6: 48}),
    ],
)
def test_each_file_has_the_shapes_the_readme_names(name, lengths):
    assert Counter(len(record[records.side_names(record)[0]]) for record in load(name)) == lengths


def test_no_id_and_no_text_stands_twice_in_all_the_files():
    everything = [record for name in KINDS for record in load(name)]
    for values in (
        [record["id"] for record in everything],
        [text for record in everything for text in texts(record)],
    ):
        assert [value for value, count in Counter(values).items() if count > 1] == []


def test_personas_are_for_seeds_that_there_are_or_for_any():
    path = str(FOLDER / "personas.jsonl")
    lines = list(jsonl.read([path], lambda record: record, unique=False))
    personas = Personas(path, 0)
    ids = [line["id"] for line in lines if "id" in line]
    assert (len(lines), len(ids)) == (10, 6)
    seeds = {record["id"]: record for record in load("seeds")}
    assert all(personas.of(seeds[identity], 0).goal for identity in ids)
    assert all(personas.of(seed, 0).has_end for seed in seeds.values())


@pytest.mark.parametrize("name", ["pairs", "more-pairs", "heldout"])
def test_sides_differ_in_the_last_reply_only(name):
    for pair in load(name):
        assert len(pair["chosen"]) == len(pair["rejected"])
        assert (
            messages.first_divergence(pair["chosen"], pair["rejected"]) == len(pair["chosen"]) - 1
        ), pair["id"]


@pytest.mark.parametrize("name", ["pairs", "more-pairs", "heldout"])
@pytest.mark.parametrize("size", [len, lambda text: len(text.split())], ids=["characters", "words"])
def test_the_longer_reply_is_chosen_in_exactly_half_of_the_pairs(name, size):
    pairs = load(name)
    longer = sum(
        size(pair["chosen"][-1]["content"]) > size(pair["rejected"][-1]["content"])
        for pair in pairs
    )
    shorter = sum(
        size(pair["chosen"][-1]["content"]) < size(pair["rejected"][-1]["content"])
        for pair in pairs
    )
    assert longer == shorter == len(pairs) / 2


@pytest.mark.parametrize("name", KINDS)
def test_every_record_says_its_topic_and_source(name):
    for record in load(name):
        assert record["metadata"]["source"] == "tiny-data" and record["metadata"]["topic"]
        assert bool(record["metadata"].get("flaw")) is ("rejected" in record)


def test_simulated_pairs_differ_from_the_first_reply_on_and_continue_no_tested_conversation():
    first = {load("talks")[number]["messages"][0]["content"] for number in range(48)}
    pairs = list(jsonl.read([str(FOLDER / "music.jsonl")], records.parse_preference))
    assert len(pairs) >= 40
    for pair in pairs:
        assert len(pair["chosen"]) == len(pair["rejected"]) == 6
        assert messages.first_divergence(pair["chosen"], pair["rejected"]) == 1, pair["id"]
        assert pair["chosen"][0]["content"] not in first
