"""What a text says, by pattern: whether it refuses, gives away an altered instruction, or says what another says.

The patterns are English.
"""

import re
from collections import Counter
from difflib import SequenceMatcher
from functools import lru_cache

_CANNOT = (
    r"i ?(can't|cannot|can not|am not able to|'m not able to|am unable to|'m unable to|won't|will not|"
    r"must decline to|have to decline)"
)
_HELP = (
    r"(\w+ly |be able to )?(help|assist|fulfil+|comply|provide|do (that|this)|continue|create|write|generate|"
    r"engage|participate|answer|discuss|rewrite|respond|support|offer|give you|tell you)"
)
_REFUSAL = re.compile(
    r"(((i'm|i am) (really |very |so |truly )?sorry|sorry|i apologi[sz]e|unfortunately)[,.;!]* (but )?)?"
    rf"({_CANNOT} {_HELP}|as an ai\b|as a (large )?language model|(i'm|i am) (just |only )?(an ai|a language model)\b|"
    r"i must (respectfully )?(decline|refuse)|"
    r"(i don't feel|i'm not|i am not) comfortable (\w+ing|with (this|that))\b)",
    re.IGNORECASE,
)

_TASK = r"(instruction|request|prompt|question|query|message)s?"
LEAK = re.compile(
    rf"\b(rewritten|modified|altered|contrastive|reworded|rephrased) (\w+ )?{_TASK}\b|"
    r"\b(different|original|changed|new) (user )?(instruction|request|prompt)s?\b|"
    r"\banswer\w* (to )?(a|the|your) (different|original|other) question|"
    r"<(instruction|reply)>|instead of (what you asked|your (question|request)|the original)",
    re.IGNORECASE,
)


def refuses(text: str) -> bool:
    """Whether a message opens by refusing, or by declaring itself an AI."""
    return bool(_REFUSAL.match(straight_quotes(text).strip().lstrip("\"'*")))


def leaks(text: str, instruction: str) -> bool:
    """Whether a contrasted reply gives away that it answers another instruction: by naming or quoting it."""
    return names_an_instruction(text) or quotes(text, instruction)


def names_an_instruction(text: str) -> bool:
    """Whether a reply speaks of another or an altered instruction."""
    return bool(LEAK.search(straight_quotes(text)))


def quotes(text: str, instruction: str) -> bool:
    """Whether a reply holds the instruction's own words: four or more, all of them, in a row."""
    words = plain_words(instruction)
    return words.count(" ") >= 3 and f" {words} " in f" {plain_words(text)} "


def alike(one: str, other: str) -> bool:
    """Whether two messages say the same in nearly the same words. Other numbers are another question, and so is
    another word in a short message.

    Every reply is held against every message before it, so what differs should be known at once: by its length, then by
    its numbers, then by the words that it has in common, which bounds the ratio from above.
    """
    if (
        min(len(one), len(other)) < 0.8 * max(len(one), len(other)) - 20
    ):  # what punctuation may make
        return False
    one, other = plain_words(one), plain_words(other)
    if one == other:
        return True
    if re.findall(r"\d+", one) != re.findall(r"\d+", other):
        return False
    if min(len(one), len(other)) < 100:
        return SequenceMatcher(None, one, other, autojunk=False).ratio() > 0.95
    words, others = one.split()[:400], other.split()[:400]
    least = 0.9 * (len(words) + len(others)) / 2
    return (Counter(words) & Counter(others)).total() > least and SequenceMatcher(
        None, words, others, autojunk=False
    ).ratio() > 0.9


@lru_cache(
    maxsize=1024
)  # the messages of the conversations in flight, each of which is compared in every turn
def plain_words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def straight_quotes(text: str) -> str:
    return text.replace("’", "'")
