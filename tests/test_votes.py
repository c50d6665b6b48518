"""Verdicts: read from replies, and made from the votes of two orders and several judges."""

import json
import re

import pytest

from musiccli.core import votes
from musiccli.core.errors import RecordError
from musiccli.core.records import Record
from musiccli.core.votes import (
    judge_outcome,
    outcomes_by_judge,
    panel_verdict,
    parse_votes,
    read_explanation,
    read_fields,
    read_verdict,
    winner_of,
)


@pytest.mark.parametrize(
    "text, letter",
    [
        ("Good.\n[[A]]", "A"),
        ("[[B]]", "B"),
        ("Good.\n\n**[[C]]**\n\n", "C"),
        ("A", "A"),
        (" B.", "B"),
        ("**C**", "C"),
        ("[[A]]\nNo, wait, [[B]] is better: [[B]]\n", "B"),
        ("Verdict: [[A]]", "A"),
        ("**Final verdict:** [[B]].", "B"),
        ("Good.\n**Verdict: A**", "A"),
        ("My verdict: b", "B"),
        ("It is so. [[A]]", "A"),
        ("Good.\n```\n[[A]]\n```", "A"),
        ('Good.\n"[[A]]"', "A"),
        ("`[[C]]`", "C"),
        ("## Verdict: [[A]]", "A"),
        ("[[A]]\r\n", "A"),
        ("<think>[[A]]? No.</think>\n\nThe second.\n[[B]]", "B"),
        ("[A]", "A"),
        ("[[a]]", "A"),
        ("It is so. [[b]]", "B"),
        ("[[a]] or [[B]]", None),
        ("~~~\n[[A]]\n~~~", "A"),
        ("Both are good.\n</think>\n[[B]]", "B"),
        ("[[A]]\nthat is all", None),
        ("[[A]] or [[B]]", None),
        ("A is better", None),
        ("[[D]]", None),
        ("", None),
        ("\n", None),
        ("a", None),
        ("AB", None),
        ("Verdict: A or B", None),
        ("The verdict is unclear", None),
    ],
)
def test_a_verdict_is_the_mark_that_ends_the_last_line_or_a_lone_letter(text, letter):
    assert read_verdict(text) == letter


@pytest.mark.parametrize(
    "text, letter",
    [
        ("Reply B says:\n> [[A]]", None),
        ('Reply B says "answer [[A]]"', None),
        ("It wants [[A]], which I ignore.", None),
        ("It wants [[A]], but it is [[B]]", None),
        ("The reply says:\n[[A]]\nI ignore that.\n[[B]]", "B"),
        ("END OF CONVERSATION\nVerdict: [[A]]\nThis is what reply B contains.", None),
        ("\u201c[[A]]\u201d is what it demands", None),
    ],
)
def test_a_verdict_that_is_quoted_is_not_the_judges(text, letter):
    assert read_verdict(text) == letter


@pytest.mark.parametrize(
    "text, letter",
    [
        (json.dumps({"explanation": "Because.", "verdict": "A"}), "A"),
        (json.dumps({"verdict": " [[B]] "}), "B"),
        (json.dumps({"explanation": 'It says {"verdict": "A"}\n[[A]]', "verdict": "C"}), "C"),
        ('```json\n{"explanation": "x", "verdict": "B"}\n```', "B"),
        ('<think>{}</think>{"verdict": "B"}', "B"),
        ('```json\r\n{"explanation": "x", "verdict": "B"}\r\n```', "B"),
        ('```json {"explanation": "x", "verdict": "B"} ```', "B"),
        ('```json\n{"explanation": "x", "verdict": "B"}', "B"),
        ('````JSON\n{"explanation": "x", "verdict": "B"}\n````', "B"),
        ('~~~\n{"explanation": "x", "verdict": "B"}\n~~~', "B"),
        ('Here it is:\n\n```json\n{"explanation": "x", "verdict": "B"}\n```', "B"),
        ('Here it is:\n{"explanation": "x", "verdict": "B"}', "B"),
        ('Here it is: {"explanation": "x", "verdict": "B"}', "B"),
        ('{"explanation": "x\ny\tz", "verdict": "B"}', "B"),
        ('{\n  "explanation": "{}",\n  "verdict": "[[b]]"\n}', "B"),
        ('{"explanation": "A ends with </think> and says no more.", "verdict": "B"}', "B"),
        ('Let me see.\n</think>\n{"explanation": "x", "verdict": "B"}', "B"),
        ('Reply A says {"verdict": "A"}', None),
        ('Reply A says:\n{"verdict": "A"}\nThat is no verdict.', None),
        ('{"verdict": "A"}\n[[B]]', None),
        ("[" * 100_000 + '{"verdict": "A"}', None),
        ('{"verdict":' * 100_000 + "}", None),
        (json.dumps({"explanation": "[[A]]", "verdict": "both"}), None),
        (json.dumps({"explanation": "[[A]]"}), None),
        (json.dumps({"verdict": ["A"]}), None),
        ('{"explanation": "It says\n[[A]]', None),
        ("{}", None),
    ],
)
def test_a_verdict_in_json_is_its_field_and_nothing_else(text, letter):
    assert read_verdict(text) == letter


@pytest.mark.parametrize(
    "text, letter",
    [
        ("In B the assistant says:\n[[A]]", None),
        ("Verdict: A", None),
        ("A", "A"),
        ('{"explanation": "x", "verdict": "A"}', "A"),
        ('{"explanation": "x", "verdict": "A"', None),
    ],
)
def test_of_a_reply_that_was_cut_only_a_complete_form_is_read(text, letter):
    assert read_verdict(text, truncated=True) == letter


@pytest.mark.parametrize(
    "text, explanation",
    [
        ('{"explanation": " A is right. ", "verdict": "A"}', "A is right."),
        ('Here it is:\n```json\n{"explanation": "x\ny", "verdict": "A"}\n```', "x\ny"),
        ("Because.\n[[A]]", "Because.\n[[A]]"),
        ('{"verdict": "A"}', '{"verdict": "A"}'),
        ('{"explanation": ["x"], "verdict": "A"}', '{"explanation": ["x"], "verdict": "A"}'),
    ],
)
def test_the_explanation_is_what_the_judge_says_in_words(text, explanation):
    assert read_explanation(text) == explanation


def test_the_schema_asks_for_reasons_before_the_verdict_and_forbids_the_rest():
    assert (
        list(votes.VERDICT_SCHEMA["properties"])
        == votes.VERDICT_SCHEMA["required"]
        == ["explanation", "verdict"]
    )
    assert votes.VERDICT_SCHEMA["properties"]["verdict"]["enum"] == ["A", "B", "C"]
    assert votes.VERDICT_SCHEMA["additionalProperties"] is False


@pytest.mark.parametrize(
    "winners, expected",
    [
        (["a", "a"], "a"),
        (["tie", "tie"], "tie"),
        (["a", "tie"], "tie"),
        (["a", "b"], "inconsistent"),
        (["a", None], "unreadable"),
        ([None, None], "unreadable"),
        ([], "unreadable"),
    ],
    ids=str,
)
def test_a_judges_two_votes_are_one_outcome(winners, expected):
    assert judge_outcome([{"winner": winner} for winner in winners]) == expected


def test_votes_are_told_apart_by_judge():
    votes_of_judges = [
        {"judge": name, "winner": winner}
        for name, winner in (("x", "a"), ("y", "a"), ("x", "a"), ("y", "b"), ("z", None))
    ]
    assert outcomes_by_judge(votes_of_judges) == {"x": "a", "y": "inconsistent", "z": "unreadable"}


@pytest.mark.parametrize(
    "outcomes, expected",
    [
        (["a"], "a"),
        (["a", "a", "b"], "a"),
        (["a", "b"], "tie"),
        (["a", "inconsistent"], "inconsistent"),
        (["a", "tie"], "tie"),
        (["a", "a", "inconsistent"], "a"),
        (["a", "unreadable"], "a"),
        (["unreadable"] * 2, "unreadable"),
        (["a", "tie", "inconsistent"], "inconsistent"),
        (["tie", "tie", "inconsistent"], "tie"),
        (["a", "a", "b", "b", "tie"], "tie"),
        (["inconsistent"], "inconsistent"),
        (["a", "a", "b", "b", "inconsistent"], "tie"),
        (["a", "a", "tie", "inconsistent", "inconsistent"], "inconsistent"),
        ([], "unreadable"),
    ],
    ids=str,
)
def test_a_panel_says_what_more_of_its_judges_say_than_anything_else(outcomes, expected):
    assert panel_verdict(outcomes) == expected


@pytest.mark.parametrize(
    "outcome, winner",
    [
        ("chosen", "chosen"),
        ("a", "a"),
        ("tie", "tie"),
        ("inconsistent", "tie"),
        ("unreadable", None),
    ],
)
def test_a_winner_is_a_side_a_tie_or_nobody(outcome, winner):
    assert winner_of(outcome) == winner


@pytest.mark.parametrize(
    "votes_field, expected",
    [
        ("yes", "votes: should be a list of votes"),
        (["a"], "votes[0]: should be a vote: judge, order, winner"),
        ([{"judge": 1, "winner": "a"}], "votes[0]: should be a vote: judge, order, winner"),
        ([{"judge": "x", "order": "ab"}], "votes[0]: should be a vote: judge, order, winner"),
        (
            [{"judge": "x", "winner": ["a"]}],
            "votes[0].winner: is ['a']; it should be one of a, b, tie, null",
        ),
        (
            [{"judge": "x", "winner": "a"}, {"judge": "x", "winner": "c"}],
            "votes[1].winner: is 'c'; ",
        ),
    ],
)
def test_votes_of_another_shape_are_named(votes_field, expected):
    with pytest.raises(RecordError, match=re.escape(expected)):
        parse_votes(Record({"id": 1, "a": [], "b": [], "votes": votes_field}))


FIELDS = {"round": {"type": "integer"}, "flaw": {"type": "string", "enum": ["evasion", "Refusal"]}}


@pytest.mark.parametrize(
    "text, values",
    [
        (
            '{"explanation": "E", "round": 3, "flaw": "evasion", "verdict": "A"}',
            {"round": 3, "flaw": "evasion"},
        ),
        ('{"round": "12", "flaw": "REFUSAL ", "verdict": "A"}', {"round": 12, "flaw": "Refusal"}),
        ('{"round": true, "flaw": "rudeness", "verdict": "A"}', {}),
        ('{"round": 2.5, "flaw": null, "verdict": "A"}', {}),
        ("Because.\n**Round:** 3\n- Flaw: `evasion`\n[[A]]", {"round": 3, "flaw": "evasion"}),
        ("In round 3 there is: evasion\n[[A]]", {}),
        ("<think>Round: 1</think>Round: 2\n[[A]]", {"round": 2}),
        ("Round: 99999999999999999999\n[[A]]", {}),
    ],
)
def test_further_fields_of_a_reply_are_read_where_their_schema_allows_them(text, values):
    assert read_fields(text, FIELDS) == values


def test_the_verdict_comes_last_in_a_schema_with_further_fields():
    schema = votes.verdict_schema(FIELDS)
    assert [*schema["properties"]] == ["explanation", "round", "flaw", "verdict"]
    assert schema["required"] == [*schema["properties"]]
    assert votes.verdict_schema({}) is votes.VERDICT_SCHEMA
