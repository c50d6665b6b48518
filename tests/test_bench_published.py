"""Figures that others published about MT-Bench's votes, to the last digit.

Those of JudgeBench stand in test_bench_judgebench.py, people's alpha in test_bench_ceiling.py.
"""

import json
from pathlib import Path

import pytest
from build import lines, talk
from console import music

PUBLISHED_VOTES = Path(__file__).parents[1] / "../shared/published/mtbench_gpt4_votes.jsonl"


@pytest.fixture(scope="module")
def comparisons():
    """GPT-4's votes in both orders, with the majority of people; the conversations are made up."""
    if not PUBLISHED_VOTES.exists():
        pytest.skip("the published votes lie beside the project")
    rows = [json.loads(line) for line in PUBLISHED_VOTES.read_text().splitlines()]
    return [
        row
        | {
            side: talk(f"question {row['metadata']['prompt']}", f"{side} in comparison {number}")
            for side in "ab"
        }
        for number, row in enumerate(rows)
    ]


def judges(records):
    """Metric records of `bench judges` by (metric, whether against the labels)."""
    arguments = ("--human-field", "metadata.human", "--bootstrap", 100)
    done = music("bench", "judges", *arguments, given=lines(*records))
    assert done.status == 0, done.err
    return {(row["metric"], row.get("against") == "labels"): row for row in done.records}


def figure(row):
    return f"{row['value']:.3f}", row["count"]


@pytest.mark.slow
def test_gpt4_agrees_with_people_as_published(comparisons):
    found = judges(comparisons)
    assert figure(found["agreement", True]) == ("0.672", 1814)
    assert figure(found["agreement_decided", True]) == ("0.884", 1078)
    assert figure(found["kappa", True]) == ("0.505", 1814)
    assert figure(found["inconsistent", False]) == ("0.160", 1814)


@pytest.mark.slow
@pytest.mark.parametrize("turn, kappa", [(1, ("0.516", 910)), (2, ("0.492", 904))])
def test_kappa_by_turn_is_the_published_one(comparisons, turn, kappa):
    found = judges(row for row in comparisons if row["metadata"]["turn"] == turn)
    assert figure(found["kappa", True]) == kappa
