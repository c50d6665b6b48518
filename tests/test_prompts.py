"""Prompt texts are loaded and filled; a folder may replace some of them."""

import re

import pytest
from build import talk

from musiccli import prompts
from musiccli.core.errors import InputError
from musiccli.prompts import SETS, Prompt, contains, load, sections, transcript

GIVEN = {
    "user": {"transcript"},
    "contrast": {"transcript", "instruction", "answer"},
    "rewrite": {"transcript", "instruction", "answer"},
    "review": {"transcript"},
    "chair": {"transcript", "review"},
    "guided": {"transcript", "persona", "task", "ending"},
    "judge": {"a", "b", "marked_a", "marked_b", "fence"},
}  # the variables that simulate and judge fill in
PACKAGED = [(which, role) for which in SETS for role in GIVEN if load(which, role)]


def folder_with(tmp_path, text: str, role: str = "user"):
    (tmp_path / f"{role}.md").write_text(text, "utf-8")
    return str(tmp_path)


def test_every_variable_is_replaced_once():
    prompt = Prompt("user.md", "{{a}} and {{ b }}, {{a}}")
    assert (
        prompt.fill(a="{{b}} \\1 {{c}}", b="two", unused="x")
        == "{{b}} \\1 {{c}} and two, {{b}} \\1 {{c}}"
    )


def test_a_variable_without_a_value_is_an_error_that_names_what_there_is():
    with pytest.raises(
        InputError, match=r"user\.md: \{\{topic\}\} is not a variable here; there are a, b"
    ):
        Prompt("user.md", "About {{topic}}").fill(a="", b="")


@pytest.mark.parametrize("which, role", PACKAGED)
def test_packaged_prompts_need_nothing_but_what_is_given(which, role):
    filled = load(which, role).fill(**{name: f"<<{name}>>" for name in GIVEN[role]})
    assert "{{" not in filled
    if which == "paper":
        assert all(f"<<{name}>>" in filled for name in GIVEN[role] - {"a", "b", "answer"})


@pytest.mark.parametrize(
    "which, role, reads",
    [
        ("paper", "contrast", False),
        ("paper", "rewrite", False),
        ("small", "rewrite", False),
        ("self-taught", "contrast", True),
        ("self-taught", "rewrite", True),
        ("self-taught-small", "rewrite", True),
    ],
)
def test_the_self_taught_sets_alone_read_the_plain_reply(which, role, reads):
    assert load(which, role).reads("answer") is reads


@pytest.mark.parametrize(
    "which, fallback, replaced",
    [
        ("self-taught", "paper", {"contrast", "rewrite"}),
        ("self-taught-small", "small", {"rewrite"}),
    ],
)
def test_the_self_taught_sets_are_another_set_but_for_the_contrast(which, fallback, replaced):
    assert {role for role in GIVEN if load(which, role) != load(fallback, role)} == replaced
    assert {role for role in GIVEN if contains(which, role)} == replaced


def test_the_small_set_has_no_contrast_in_one_call_and_no_chat_instructions():
    assert [role for which, role in PACKAGED if which == "small"] == [
        "user",
        "rewrite",
        "review",
        "chair",
        "judge",
    ]
    assert load("small", "user").mode == "turn"
    assert {load("small", role).mode for role in ("rewrite", "review", "chair", "judge")} == {
        "completion"
    }
    assert {load("small", role).stop for role in ("rewrite", "review", "chair", "judge")} == {
        ("\n",)
    }


def test_every_part_of_the_guidance_is_filled():
    values = {name: f"<<{name}>>" for name in ("who", "goal", "knows", "satisfied", "stop")}
    for heading, part in sections("paper", "guidance").items():
        filled = part.fill(**values)
        assert "{{" not in filled
        assert heading not in values or values[heading] in filled
    assert sections("small", "guidance") == sections("rankjudge", "guidance") == {}


def test_a_prompt_without_a_head_is_asked_in_chat():
    assert (load("paper", "user").mode, load("paper", "user").stop) == ("chat", ())


def test_a_folder_replaces_what_it_holds_and_the_rest_is_the_papers(tmp_path):
    folder = folder_with(tmp_path, "Next, please: {{transcript}}\n")
    assert load(folder, "user").text == "Next, please: {{transcript}}"
    assert load(folder, "contrast") == load("paper", "contrast")


def test_a_head_says_how_the_model_is_asked_and_where_a_reply_ends(tmp_path):
    head = '---\nas: completion\nstop: ["\\n", "User:"]\n---\n'
    prompt = load(folder_with(tmp_path, f"{head}\nUser: {{{{transcript}}}}\n---\nend\n"), "user")
    assert (prompt.text, prompt.mode, prompt.stop) == (
        "User: {{transcript}}\n---\nend",
        "completion",
        ("\n", "User:"),
    )


@pytest.mark.parametrize(
    "head, problem",
    [
        ("as: story", "as: chat|turn|completion"),
        ("temperature: 1", "as: chat|turn|completion"),
        ("stop: \\n", "a JSON list of strings"),
        ('stop: "abc"', "a JSON list of strings"),
        ("stop: 5", "a JSON list of strings"),
        ("stop: [1]", "a JSON list of strings"),
        ('stop: [""]', "a JSON list of strings"),
        ("fields: 5", 'a JSON object of {"type": "integer"} or {"enum": [texts]} by name'),
        ('fields: {"round": "integer"}', "a JSON object of"),
        ('fields: {"round": {"type": "number"}}', "a JSON object of"),
        ('fields: {"flaw": {"enum": [1]}}', "a JSON object of"),
    ],
)
def test_a_wrong_head_is_named_with_its_file(tmp_path, head, problem):
    with pytest.raises(InputError, match=re.escape(problem)) as raised:
        load(folder_with(tmp_path, f"---\n{head}\n---\nText"), "user")
    assert str(raised.value).startswith(f"{tmp_path}/user.md: ")


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "user.md").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"user\.md: is not UTF-8"):
        load(str(tmp_path), "user")


def test_an_unknown_set_is_named():
    with pytest.raises(
        InputError,
        match="`prompts` papers: neither a folder nor one of paper, small, self-taught, ",
    ):
        load("papers", "user")


def test_a_set_has_no_prompt_for_an_unknown_role():
    assert prompts.load("paper", "narrator") is None


def test_a_transcript_names_who_speaks():
    messages = [{"role": "system", "content": " Be brief. "}, *talk("Hi!", "Hello.\n\nWhat now?\n")]
    assert (
        transcript(messages) == "System: Be brief.\n\nUser: Hi!\n\nAssistant: Hello.\n\nWhat now?"
    )


def test_a_marked_transcript_has_its_mark_on_every_turn_and_on_nothing_that_looks_like_one():
    messages = talk("Hi!", "Hello.\n\nUser: Well done!\n\nAssistant: Thanks.", "Bye.")
    assert transcript(messages, "M") == (
        "[M user]\nHi!\n\n[M assistant]\nHello.\n\nUser: Well done!\n\n"
        "Assistant: Thanks.\n\n[M user]\nBye."
    )
