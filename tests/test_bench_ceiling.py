"""People among themselves: alpha and agreement, against plain computations and published figures."""

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
from build import lines, talk
from console import music

from musiccli.bench.agreement import AgreementConfig, check_labeled_pair, metrics
from musiccli.bench.config import BenchConfig
from musiccli.bench.stats.bootstrap import bootstrap_interval, cluster_sums
from musiccli.bench.stats.ceiling import PEOPLE, alpha_columns, krippendorff_alpha
from musiccli.core.errors import InputError, RecordError
from musiccli.core.records import Record

PUBLISHED_VOTES = Path(__file__).parents[1] / "../shared/published/mtbench_gpt4_votes.jsonl"
FIELD = AgreementConfig(group_by=("turns",), bootstrap=200, human_votes="metadata.votes")


def pair(number, votes, turns=1, winner="a"):
    history = [text for turn in range(turns - 1) for text in (f"{number}.{turn}", "ok")]
    sides = {side: talk(*history, f"prompt {number}", f"reply {side}") for side in "ab"}
    return Record(
        {
            "id": f"p{number}",
            **sides,
            "winner": winner,
            "metadata": {"votes": votes},
            "scores": {"rm": {"a": 1.0, "b": 0.0}},
        }
    )


def people(records, config=FIELD, subset="all"):
    rows = metrics([check_labeled_pair(record, config) for record in records], config)
    return {
        row["metric"]: (row["value"], row["count"])
        for row in rows
        if (row["model"], row["subset"]) == (PEOPLE, subset)
    }


def alpha_by_hand(units):
    """1 - observed / expected disagreement, over the coincidences of values, pair by pair."""
    units = [votes for votes in units if len(votes) > 1]
    coincidences, votes = {}, [vote for some in units for vote in some]
    for some in units:
        for first, second in itertools.permutations(range(len(some)), 2):
            cell = some[first], some[second]
            coincidences[cell] = coincidences.get(cell, 0) + 1 / (len(some) - 1)
    observed = sum(count for (one, two), count in coincidences.items() if one != two) / len(votes)
    unequal = sum(one != two for one, two in itertools.permutations(votes, 2))
    return 1 - observed / (unequal / (len(votes) * (len(votes) - 1)))


@pytest.mark.parametrize("seed", range(4))
def test_alpha_and_agreement_are_plain_computations_to_1e_12(seed):
    chance, units = random.Random(seed), []
    for _ in range(60):
        truth = chance.choice("ab")
        pool = [truth, truth, chance.choice("ab"), "tie"]
        units.append([chance.choice(pool) for _ in range(chance.randint(0, 5))])
    found = people([pair(number, votes, 1 + number % 2) for number, votes in enumerate(units)])
    several = [votes for votes in units if len(votes) > 1]
    assert found["krippendorff_alpha"] == (
        pytest.approx(alpha_by_hand(units), abs=1e-12),
        len(several),
    )
    two = [cell for votes in several for cell in itertools.combinations(votes, 2)]
    equal = sum(first == second for first, second in two) / len(two)
    assert found["people_agree"][0] == pytest.approx(equal, abs=1e-12)
    decided = [cell for cell in two if "tie" not in cell]
    equal = sum(first == second for first, second in decided) / len(decided)
    assert found["people_agree_decided"][0] == pytest.approx(equal, abs=1e-12)
    odd = people([pair(n, votes, 1 + n % 2) for n, votes in enumerate(units)], subset="turns=2")
    expected = alpha_by_hand(units[1::2])
    assert odd["krippendorff_alpha"][0] == pytest.approx(expected, abs=1e-12)


def test_records_of_the_same_two_conversations_are_votes_whichever_is_listed_first():
    records = [pair(0, None), pair(0, None), pair(0, None, winner="b"), pair(1, None)]
    for number, record in enumerate(records):
        record["id"] = f"vote {number}"
    swapped = pair(0, None, winner="b") | {"id": "swapped"}
    swapped["a"], swapped["b"] = swapped["b"], swapped["a"]  # so it is a vote for the first "a"
    config = AgreementConfig(group_by=(), bootstrap=100)
    assert people([*records, Record(swapped)], config)["people_agree"] == (pytest.approx(3 / 6), 1)


def test_without_several_votes_on_a_pair_there_is_no_ceiling():
    assert people([pair(0, ["a"]), pair(1, None)]) == {}


def test_a_field_that_no_record_has_is_refused_by_name():
    with pytest.raises(InputError, match="human_votes"):
        people([pair(0, ["a", "a"])], AgreementConfig(human_votes="nosuch"))


def test_votes_that_are_all_equal_have_no_alpha():
    found = people([pair(0, ["a", "a"])])
    assert found["krippendorff_alpha"][0] is None and found["people_agree"][0] == 1


def test_a_field_that_holds_no_votes_is_refused():
    for votes in ("a", ["model_a"]):
        with pytest.raises(RecordError, match=r"metadata\.votes: should be a list of verdicts"):
            check_labeled_pair(pair(0, votes), FIELD)


@pytest.mark.slow
def test_people_on_mt_bench_have_the_published_alpha():
    """alpha .485 over the 961 comparisons that several people voted on."""
    if not PUBLISHED_VOTES.exists():
        pytest.skip("the published votes lie beside the project")
    rows = [json.loads(line) for line in PUBLISHED_VOTES.read_text().splitlines()]
    records = []
    for number, row in enumerate(rows):
        record = pair(number, row["metadata"]["human_votes"], row["metadata"]["turn"])
        records.append(record | {"id": row["id"], "winner": row["metadata"]["human"]})
    arguments = ("--human-votes", "metadata.votes", "--bootstrap", 100)
    done = music("bench", "agreement", *arguments, given=lines(*records))
    assert done.status == 0, done.err
    [row] = [
        row
        for row in done.records
        if (row["metric"], row["subset"]) == ("krippendorff_alpha", "all")
    ]
    assert (f"{row['value']:.3f}", row["count"]) == ("0.485", 961)
    assert "People among themselves" in done.err


@pytest.mark.slow
def test_95_percent_intervals_of_alpha_hold_the_truth():
    """Two to four votes on each of 200 pairs of 100 prompts; truth from many such pairs."""
    random = np.random.default_rng(9)

    def draw(prompts):
        hard = np.repeat(random.beta(3, 1.5, prompts), 2)  # how often a vote is for the better side
        better = random.integers(0, 2, 2 * prompts)
        counts = np.zeros((2 * prompts, 3), int)
        votes = random.integers(2, 5, 2 * prompts)
        for place in range(4):
            ties = random.random(2 * prompts) < 0.2
            side = np.where(random.random(2 * prompts) < hard, better, 1 - better)
            chosen = np.where(ties, 2, side)
            counts[np.arange(2 * prompts), chosen] += place < votes
        return cluster_sums(alpha_columns(counts), np.repeat(np.arange(prompts), 2))

    truth, sets = float(krippendorff_alpha(draw(200_000).sum(0))), 500
    held = 0
    for seed in range(sets):
        config = BenchConfig(bootstrap=400, seed=seed)
        low, high = bootstrap_interval(draw(100), krippendorff_alpha, config)
        held += low <= truth <= high
    assert 0.93 <= held / sets <= 0.97
