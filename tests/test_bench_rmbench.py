"""RM-Bench: cells, easy and hard comparisons, and a plain computation of all figures."""

import random
from statistics import mean

import pytest

from musiccli.bench.rmbench import DOMAINS, PROMPTS, check_rmbench_candidate, metrics
from musiccli.core.errors import RecordError
from musiccli.core.jsonl import Rejects
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats

TEXTS = ("short", "a longer reply", "**a longer reply in markdown**")


def candidates(number, right, wrong, domain="chat", model="rm", more=None):
    """The six conversations of one prompt, from the scores of its replies."""
    return [
        Record(
            {
                "id": f"{domain}/{number}",
                "sample": sample,
                "messages": [
                    {"role": "user", "content": f"prompt {number}"},
                    {"role": "assistant", "content": TEXTS[sample % 3]},
                ],
                "metadata": {"domain": domain, "correct": sample < 3},
                "scores": {model: score}
                | {name: scores[sample] for name, scores in (more or {}).items()},
            }
        )
        for sample, score in enumerate([*right, *wrong])
    ]


def everything(make, domains=("chat", "code", "math", "safety-refuse", "safety-response")):
    return [
        one
        for number, domain in enumerate(domain for domain in domains for _ in range(7))
        for one in candidates(number, *make(domain), domain)
    ]


def values(rows, model="rm"):
    return {row["subset"]: row["value"] for row in rows if row["model"] == model}


@pytest.mark.parametrize(
    "right, wrong, expected",
    [
        ((1, 1, 1), (0, 0, 0), (1, 1, 1)),
        ((0, 0, 0), (1, 1, 1), (0, 0, 0)),
        ((0, 0, 0), (0, 0, 0), (0, 0, 0)),  # equal is wrong
        ((0, 1, 2), (0, 1, 2), (1, 0, 0)),  # style alone: the fancier wins
        ((0.5, 1.5, 2.5), (0, 1, 2), (1, 1, 0)),
        ((2, 1, 0), (2, 1, 0), (0, 0, 1)),
        ((1, 0, 0), (0, 0, 0), (0, 1 / 3, 2 / 3)),  # the concise right reply beats all three
    ],
)
def test_easy_normal_and_hard_compare_styles(right, wrong, expected):
    found = values(metrics(candidates(0, right, wrong)))
    assert tuple(found[level] for level in ("easy", "normal", "hard")) == pytest.approx(expected)
    assert found["chat"] == pytest.approx(mean(expected))


def test_cells_are_the_styles_of_the_right_and_the_wrong_reply():
    rows = list(metrics(candidates(0, (1, 0, 0), (0.5, 2, 2))))
    assert {
        row["subset"]: row["value"]
        for row in rows
        if row["metric"] == "cell" and row["model"] == "rm"
    } == {
        f"{one} over {other}": float((one, other) == ("concise", "concise"))
        for one in ("concise", "detailed", "markdown")
        for other in ("concise", "detailed", "markdown")
    }


def published(groups):
    """The figures as the authors' code defines them: {domain or level: score}."""
    domains = {}
    for name in DOMAINS:
        here = [(right, wrong) for domain, right, wrong in groups if domain.startswith(name)]
        cell = [
            [mean(float(right[i] > wrong[j]) for right, wrong in here) for j in range(3)]
            for i in range(3)
        ]
        domains[name] = {
            "hard": (cell[0][1] + cell[0][2] + cell[1][2]) / 3,
            "normal": (cell[0][0] + cell[1][1] + cell[2][2]) / 3,
            "easy": (cell[1][0] + cell[2][0] + cell[2][1]) / 3,
        }
    found = {name: mean(levels.values()) for name, levels in domains.items()}
    found |= {
        level: mean(domains[name][level] for name in DOMAINS)
        for level in ("easy", "normal", "hard")
    }
    found |= {
        f"{name}/{level}": value
        for name, levels in domains.items()
        for level, value in levels.items()
    }
    return found | {"all": mean(found[name] for name in DOMAINS)}


@pytest.mark.parametrize("seed", range(5))
def test_every_figure_is_the_published_one_to_1e_12(seed):
    chance = random.Random(seed)
    groups, given = [], []
    for number in range(80):
        domain = chance.choice(["chat", "code", "math", "math", "safety-refuse", "safety-response"])
        right, wrong = (
            [chance.choice([0, 1, 2, chance.gauss(0, 1)]) for _ in range(3)] for _ in range(2)
        )
        groups.append((domain, right, wrong))
        given += candidates(number, right, wrong, domain)
    chance.shuffle(given)  # candidates of one prompt need not stand together
    found = values(metrics(given))
    for name, value in published(groups).items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


def test_both_kinds_of_safety_are_one_domain_and_pooled():
    given = [
        one
        for number in range(3)
        for one in candidates(number, (1, 1, 1), (0, 0, 0), "safety-refuse")
    ]
    given += candidates(9, (0, 0, 0), (1, 1, 1), "safety-response")
    assert values(metrics(given))["safety"] == 0.75


def test_without_all_prompts_or_domains_it_says_what_is_missing():
    rows = list(metrics(everything(lambda _: ((1, 1, 1), (0, 0, 0)), ("chat", "math"))))
    assert "all" not in values(rows)
    [easy] = [row for row in rows if (row["model"], row["subset"]) == ("rm", "easy")]
    assert (easy["partial"], easy["missing"]) == (
        True,
        ["prompts (14 of 1,327)", "code (none)", "safety (none)"],
    )


@pytest.mark.slow
def test_a_whole_benchmark_is_not_partial():
    given = [
        one
        for number in range(PROMPTS)
        for one in candidates(number, (1, 1, 1), (0, 0, 0), DOMAINS[number % 4])
    ]
    rows = list(metrics(given))
    [average] = [row for row in rows if row["metric"] == "average" and row["model"] == "rm"]
    assert (average["value"], average["count"], average["high"]) == (1, 9 * PROMPTS, 1)
    assert "partial" not in average and 0.98 < average["low"] < 1


def test_the_longest_is_right_where_style_is_and_hopeless_where_it_is_not():
    found = values(metrics(everything(lambda _: ((1, 1, 1), (0, 0, 0)))), "baseline/longest")
    assert (found["easy"], found["normal"], found["hard"]) == (1, 0.5, 0)


def test_intervals_take_the_comparisons_of_a_prompt_as_one():
    rows = list(
        metrics(
            [
                one
                for number in range(40)
                for one in candidates(number, [number % 2] * 3, [1 - number % 2] * 3)
            ]
        )
    )
    [chat] = [row for row in rows if (row["model"], row["subset"]) == ("rm", "chat")]
    assert (
        chat["count"] == 360 and chat["high"] - chat["low"] > 0.28
    )  # as of 40 prompts, not of 360 comparisons


def test_models_are_kept_apart_and_one_that_scored_few_prompts_says_so():
    given = candidates(0, (1, 1, 1), (0, 0, 0), more={"other": [0, 0, 0, 1, 1, 1]}) + candidates(
        1, (1,) * 3, (0,) * 3
    )
    rows = list(metrics(given))
    assert (values(rows)["chat"], values(rows, "other")["chat"]) == (1, 0)
    assert {row["missing"][0] for row in rows if row["model"] == "other" and "missing" in row} == {
        "prompts (1 of 1,327)"
    }


def test_a_prompt_without_three_of_each_is_refused():
    given = candidates(0, (1, 1, 1), (0, 0, 0))
    with pytest.raises(
        RecordError, match="'chat/0' has 3 right and 2 wrong candidates; RM-Bench has three of each"
    ):
        list(metrics(given[:-1]))
    stats = RunStats(Rejects(skip=True))
    rows = list(metrics(given[:-1] + candidates(1, (1,) * 3, (0,) * 3), stats=stats))
    assert stats.rejects.count == 1 and values(rows)["chat"] == 1


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"metadata": {"correct": True}},
            "metadata.domain: should be one of chat, code, math, safety",
        ),
        ({"metadata": {"domain": "chat"}}, "metadata.correct: should be true or false"),
        ({"scores": None}, "has no scores; run music score first"),
        ({"scores": {"rm": "x"}}, "scores.rm: should be a number"),
        ({"scores": {"rm": 1e39}}, "scores.rm: is 1e+39, more than a reward of 32 bits can be"),
        ({"messages": None}, "messages: is missing; it should be a list of messages"),
    ],
)
def test_a_record_that_cannot_be_counted_says_why(change, message):
    with pytest.raises(RecordError) as caught:
        check_rmbench_candidate(Record(candidates(0, (1, 1, 1), (0, 0, 0))[0] | change))
    assert str(caught.value).startswith(message)
