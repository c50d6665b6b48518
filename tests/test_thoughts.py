"""Thoughts before a reply are cut off; tags that a reply speaks of are not."""

import pytest

from musiccli.core.thoughts import without_thoughts


@pytest.mark.parametrize(
    "text, reply",
    [
        ("<think>Hm.</think>\n\nLimestone.", "Limestone."),
        ("They ask about rock.\n</think>\n\nLimestone.", "Limestone."),
        ("One.\n</think>\nTwo.\n</think>\nLimestone.", "Limestone."),
        ("\n<THINK>Hm.</THINK>Limestone.", "Limestone."),
        ("<thinking>Hm.</thinking>Limestone.", "Limestone."),
        ("[THINK]Hm.[/THINK]Limestone.", "Limestone."),
        ("<think>never ends", ""),
        ("</think>", ""),
        ("</think>Use <think> and </think>.", "Use <think> and </think>."),
        ("<think>Hm.</think>A </think> ends thoughts.", "A </think> ends thoughts."),
        ("Models write <think> and </think>.", "Models write <think> and </think>."),
        ("The tag `</think>` ends thoughts.", "The tag `</think>` ends thoughts."),
        (" Limestone. ", "Limestone."),
        ("", ""),
    ],
)
def test_what_is_thought_is_not_the_reply(text, reply):
    assert without_thoughts(text) == reply
