"""JudgeBench: both orders, the sum of the votes, kinds of questions, and the published figures."""

import json
import random
from pathlib import Path
from statistics import mean

import pytest
from build import lines, talk, votes
from console import music

from musiccli.bench.judgebench import check_judgebench_pair, metrics
from musiccli.core.errors import RecordError
from musiccli.core.records import Record

PUBLISHED_SCORES = (
    Path(__file__).parents[1] / "../shared/published/judgebench_gpt4o_rm_scores.jsonl"
)
PUBLISHED_ACCURACIES = {  # of the 350 pairs of GPT-4o, in percent: JudgeBench's leaderboard
    "Skywork-Reward-Gemma-2-27B": "64.29",
    "Skywork-Reward-Llama-3.1-8B": "62.29",
    "internlm2-20b-reward": "63.43",
    "internlm2-7b-reward": "59.43",
    "GRM-Gemma-2B-rewardmodel-ft": "59.43",
}


def pair(number, source="mmlu-pro-law", winner="a", **fields):
    sides = {side: talk(f"question {number}", f"answer {side}") for side in "ab"}
    record = {"id": f"p{number}", **sides, "metadata": {"source": source}}
    return Record(record | ({"winner": winner} if winner else {}) | fields)


def judged(number, ab, ba, label="a", source="mmlu-pro-law", judge="j"):
    fields = {"votes": votes(judge, ab, ba), "given_winner": label}
    return check_judgebench_pair(pair(number, source, winner=None, **fields))


def find(rows, model="j", subset="all", metric="accuracy"):
    [row] = [
        row
        for row in rows
        if (row["model"], row["subset"], row["metric"]) == (model, subset, metric)
    ]
    return row


@pytest.mark.parametrize(
    "ab, ba, right",
    [
        ("a", "a", 1),
        ("a", "tie", 1),
        ("tie", "a", 1),
        ("a", None, 1),
        ("a", "b", 0),
        ("tie", "tie", 0),
        (None, None, 0),
        ("b", "tie", 0),
        ("b", "b", 0),
    ],
)
def test_a_judge_is_right_where_its_votes_sum_to_more_than_nothing(ab, ba, right):
    assert find(list(metrics([judged(0, ab, ba)])))["value"] == right


def published(given):
    """The accuracy as compute_final_metrics of the authors' code defines it."""
    right = 0
    for label, *winners in given:
        other = "b" if label == "a" else "a"
        counter = sum((winner == label) - (winner == other) for winner in winners)
        right += counter > 0
    return right / len(given)


@pytest.mark.parametrize("seed", range(5))
def test_every_figure_is_the_published_formula_to_1e_12(seed):
    chance = random.Random(seed)
    sources = {
        "mmlu-pro-law": "Knowledge",
        "livebench-reasoning": "Reasoning",
        "livebench-math": "Math",
        "livecodebench": "Coding",
    }
    winners = ["a", "b", "tie", None]
    given = [
        (chance.choice(list(sources)), [chance.choice("ab"), *chance.choices(winners, k=2)])
        for _ in range(200)
    ]
    records = [
        judged(number, ab, ba, label, source)
        for number, (source, (label, ab, ba)) in enumerate(given)
    ]
    rows = list(metrics(records))
    expected = published([some for _, some in given])
    assert find(rows)["value"] == pytest.approx(expected, abs=1e-12)
    for source, kind in sources.items():
        expected = published([some for name, some in given if name == source])
        assert find(rows, subset=kind)["value"] == pytest.approx(expected, abs=1e-12)
    inconsistent = mean(float(ab != ba) for _, (_, ab, ba) in given)
    row = find(rows, metric="inconsistent")
    assert row["value"] == pytest.approx(inconsistent, abs=1e-12)


def test_reward_models_and_judges_stand_beside_each_other():
    record = pair(
        0,
        winner=None,
        given_winner="b",
        votes=votes("j", "b", "b"),
        scores={"rm": {"a": 1, "b": 1}},
    )
    rows = list(metrics([check_judgebench_pair(record)]))
    assert (find(rows)["value"], find(rows, "rm")["value"], find(rows, "rm")["ties"]) == (1, 0, 1)


def test_a_judge_with_the_name_of_a_reward_model_is_refused():
    record = pair(0, votes=votes("rm", "b", "b"), given_winner="b", scores={"rm": {"a": 1, "b": 1}})
    with pytest.raises(RecordError, match=r"scores.rm: 'rm' is a judge, too"):
        check_judgebench_pair(record)


def test_pairs_without_a_correct_answer_or_a_source_are_refused():
    scores = {"rm": {"a": 1, "b": 0}}
    with pytest.raises(RecordError, match="winner: names no side"):
        check_judgebench_pair(pair(0, winner="tie", scores=scores))
    with pytest.raises(RecordError, match=r"metadata.source: is missing"):
        check_judgebench_pair(pair(0, source=None, scores=scores))


@pytest.mark.slow
def test_five_reward_models_get_their_published_accuracies():
    if not PUBLISHED_SCORES.exists():
        pytest.skip("the published scores lie beside the project")
    rows = [json.loads(line) for line in PUBLISHED_SCORES.read_text().splitlines()]
    pairs = [
        {
            "id": row["id"],
            "chosen": talk(f"question {number}", "right"),
            "rejected": talk(f"question {number}", "wrong"),
            "scores": row["scores"],
            "metadata": {"source": row["source"]},
        }
        for number, row in enumerate(rows)
    ]
    done = music("bench", "judgebench", "--bootstrap", 100, given=lines(*pairs))
    assert done.status == 0, done.err
    found = {
        row["model"]: f"{100 * row['value']:.2f}"
        for row in done.records
        if (row["subset"], row["metric"]) == ("all", "accuracy")
    }
    assert PUBLISHED_ACCURACIES.items() <= found.items()
    assert all(row["count"] == 350 for row in done.records if row["subset"] == "all")
