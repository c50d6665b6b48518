"""RMB: pairs and best of N, goals and categories, several turns, and the average of four."""

import random
from statistics import mean

import pytest
from build import talk

from musiccli.bench.rmb import check_rmb_record, metrics
from musiccli.core.errors import RecordError
from musiccli.core.jsonl import Rejects
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats


def prompt(number, turns):
    return [text for turn in range(turns - 1) for text in (f"{number}.{turn}", "ok")] + [
        f"prompt {number}"
    ]


def pair(number, chosen, rejected, path="Pairwise_set/Helpfulness/Chat", turns=1):
    return Record(
        {
            "id": f"{path}/{number}",
            "chosen": talk(*prompt(number, turns), "yes"),
            "rejected": talk(*prompt(number, turns), "no"),
            "metadata": {"category_path": path},
            "scores": {"rm": {"chosen": chosen, "rejected": rejected}},
        }
    )


def candidates(number, best, others, path="BoN_set/Helpfulness/Chat", turns=1):
    return [
        Record(
            {
                "id": f"{path}/{number}",
                "sample": sample,
                "messages": talk(*prompt(number, turns), f"answer {sample}"),
                "metadata": {"category_path": path, "correct": sample == 0},
                "scores": {"rm": score},
            }
        )
        for sample, score in enumerate([best, *others])
    ]


def values(records, model="rm"):
    rows = metrics([check_rmb_record(record) for record in records])
    return {row["subset"]: row["value"] for row in rows if row["model"] == model}


@pytest.mark.parametrize(
    "best, others, right",
    [(2, (1, 0), 1), (2, (2, 0), 0), (1, (0, 2), 0), (0, (0, 0), 0), (0.1, (0,), 1)],
)
def test_the_best_answer_must_score_above_every_other_one(best, others, right):
    assert values(candidates(0, best, others))["Helpfulness best of N"] == right


def test_a_baseline_that_cannot_tell_answers_apart_earns_what_chance_does():
    found = values(candidates(0, 1, (0, 0, 0)), "baseline/random")
    assert found["Helpfulness best of N"] == 0.25


@pytest.mark.parametrize("seed", range(4))
def test_every_figure_is_a_plain_computation_to_1e_12(seed):
    chance, records, points = random.Random(seed), [], {}
    for number in range(240):
        goal = chance.choice(["Helpfulness", "Harmlessness"])
        category = chance.choice(["Chat", "Code"] if goal == "Helpfulness" else ["S1", "multi"])
        turns, is_pair = chance.choice([1, 1, 2, 3]), chance.random() < 0.5
        best, *others = (
            chance.choice([0, 1, chance.gauss(0, 1)]) for _ in range(2 + 2 * (not is_pair))
        )
        kind = "pairwise" if is_pair else "best of N"
        path = f"{'Pairwise' if is_pair else 'BoN'}_set/{goal}/{category}/Part"
        if is_pair:
            records.append(pair(number, best, others[0], path, turns))
        else:
            records += candidates(number, best, others, path, turns)
        right = float(all(best > other for other in others))
        subsets = [f"{goal} {kind}", f"{goal} {category} {kind}"]
        subsets += [f"several turns {kind}"] * (turns > 1)
        for subset in subsets:
            points.setdefault(subset, []).append(right)
    chance.shuffle(records)
    found, expected = values(records), {name: mean(some) for name, some in points.items()}
    four = [f"{g} {k}" for g in ("Helpfulness", "Harmlessness") for k in ("pairwise", "best of N")]
    expected["all"] = mean(expected[name] for name in four)
    assert found.keys() == expected.keys()
    for subset, value in expected.items():
        assert found[subset] == pytest.approx(value, abs=1e-12), subset


def test_without_both_sets_of_both_goals_there_is_no_average():
    assert "all" not in values([pair(0, 1, 0), *candidates(1, 1, (0,))])


def test_a_prompt_without_one_best_answer_goes_to_the_rejects():
    bad = candidates(0, 1, (0, 0))
    bad[1]["metadata"]["correct"] = True
    stats = RunStats(Rejects(skip=True))
    assert len(list(metrics([*bad, *candidates(1, 1, (0,))], stats=stats)))
    assert stats.rejects.count == 1
    with pytest.raises(RecordError, match="has 2 right and 1 wrong candidates"):
        list(metrics(bad))


def test_a_record_without_a_goal_is_refused():
    with pytest.raises(RecordError, match=r"metadata\.category_path: should name Helpfulness or"):
        check_rmb_record(pair(0, 1, 0, path="Chat"))


def test_models_keep_the_order_in_which_they_were_met():
    names = [f"model {number * 7 % 10}" for number in range(10)]
    records = [pair(0, 1, 0), *candidates(1, 1, (0, 0))]
    for record in records:
        record["scores"] = dict.fromkeys(names, record["scores"]["rm"])
    rows = metrics(records)
    assert [*dict.fromkeys(row["model"] for row in rows)][:10] == names
