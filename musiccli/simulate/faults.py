"""Faults of simulated text: each `..._fault` function names what is wrong with a message.

The patterns are English. They should match the faults of models that play a role, and not what
people write. tests/test_faults.py bounds how often they match real turns of Anthropic HH,
OpenAssistant and MT-Bench-101.
"""

import re
from collections.abc import Sequence
from unicodedata import category

from musiccli.core.messages import Message, has_tool_turns
from musiccli.core.text_checks import (
    LEAK,
    alike,
    is_altered,
    leaks,
    quotes,
    refuses,
    repeats_itself,
    straight_quotes,
)

# A user who answers instead of asking.
_THINGS = (
    "list|steps|tips|ways|examples?|recipe|summary|overview|breakdown|outline|guide|poem|ideas|"
    "suggestions|reasons|options|answer|explanation|response|translation"
)
_ASSISTANT_START = re.compile(
    r"i('d| would) be (happy|glad) to (help|assist)|how (can|may) i (help|assist) you|"
    r"i'm here to help|"
    r"(sure|certainly|of course|absolutely)[,!.]+ (here|i can|i'd|let me)|"
    r"(that's a )?(great|good) question[!.]|"
    r"i apologi[sz]e for (the|any|my) (confusion|error|mistake|misunderstanding)|"
    rf"here('s| is| are) (a|an|some|the) ([\w-]+ ){{0,3}}({_THINGS})\b(?! (i|we|that i) )",
    re.IGNORECASE,
)
_ASSISTANT_PHRASE = re.compile(
    r"\blet me know if (you (have|need|want|would like)|there's anything)|"
    r"\bfeel free to (ask|reach)|"
    r"\bi hope (this|that) helps[.!]|"
    r"\bis there anything else (i can|you('d| would) like|you need)|"
    r"\byou're welcome[!.]|\bi('m| am) (glad|happy) (i could|to) (help|assist)|"
    r"\bhappy to help\b",
    re.IGNORECASE,
)

# A speaker's name before a turn, in Markdown or without.
_SPEAKER = re.compile(
    r"^[*#\[]{0,3}(user|human|assistant)[*\]]{0,3}\s*:", re.IGNORECASE | re.MULTILINE
)
_USER_SPEAKER = re.compile(r"^[*#\[]{0,3}(user|human)[*\]]{0,3}\s*:", re.IGNORECASE | re.MULTILINE)

# A call or a result, as `core.messages.plain_messages` writes them.
_TOOL_TAG = re.compile(r"</?tool_(call|response)>", re.IGNORECASE)

# A user who repeats words of the prompt, or the system prompt of most chat models.
_PROMPT = re.compile(
    r"\{\{\s*\w+\s*\}\}$|\{\{\s*(transcript|instruction|conversation)\s*\}\}|"
    r"\bthe user's (next|last) message\b|"
    r"\byou are a helpful (\w+ )?assistant\b|"
    r"\bnext message of the user\b|\bhere('s| is) (the|a) (next |possible )?user('s)? message",
    re.IGNORECASE,
)

# Thanks and farewells; then what shows that the message goes on, or objects.
_CLOSING = re.compile(
    r"\b(thanks|thank you|thx|good ?bye|bye|farewell|see you (later|soon|then|around|next)|"
    r"talk to you (later|soon)|"
    r"take care(?= of yourself|\W*$|\W* and )|"
    r"have a (great|nice|good|wonderful|lovely) (day|one|evening|night|weekend|time)|"
    r"that('s| is|'ll be| will be| would be) all\b(?! (the|of|that|you)\b))",
    re.IGNORECASE,
)
_VERBS = (
    "add|analy[sz]e|answer|ask|calculate|change|check|choose|compare|compute|consider|continue|"
    "convert|correct|count|create|define|describe|discuss|do|draft|draw|edit|elaborate|expand|"
    "explain|find|fix|format|generate|give|go|help|imagine|improve|include|let's|list|look|make|"
    "move|name|outline|pick|plan|pretend|provide|put|read|recommend|remove|repeat|rephrase|replace|"
    "rewrite|say|shorten|show|solve|sort|start|suggest|summari[sz]e|suppose|tell|translate|try|"
    "turn|use|write"
)
_REQUEST = re.compile(
    r"\?|\bplease\b|\b(can|could|would|will) you\b|"
    rf"(^|[.!;:,]|\band|\bnow|\bthen|\bnext|\balso|\bso)\s*({_VERBS})\b|"
    rf"\n[^\S\n]*({_VERBS})\b|"  # of many empty lines only the last matters
    r"\bi('d| would)( also)? like|"
    r"\bi( also| still| now| just)? "
    r"(want(?! to thank)|need|wonder|have (a|an|another|one))\b|"
    r"\bi('m| am)( also| still| now)? (looking|wondering|curious|not sure|confused|trying)|"
    r"\b(what|how) about\b|\bshould i\b|\b(tell|help|show|give) me\b|\bnot what i\b",
    re.IGNORECASE,
)
_OBJECTION = re.compile(
    r"\b(but|however|though|except|instead|wrong|incorrect|doesn't|didn't|isn't)\b", re.IGNORECASE
)
MAX_GOODBYE_WORDS = 80  # a longer message says more than goodbye


def user_fault(text: str, history: Sequence[Message], review: str = "") -> str | None:
    """What is wrong with a simulated user's message, or None.

    Args:
        history: the conversation before it.
        review: the review that the message is made from, and must not quote.
    """
    plain = straight_quotes(text).strip()
    if not says_something(plain):
        return "empty"
    if refuses(plain):
        return "refusal"
    if _ASSISTANT_START.match(plain) or _ASSISTANT_PHRASE.search(plain) or _SPEAKER.search(plain):
        return "role flip"
    if LEAK.search(plain) or _PROMPT.search(plain):
        return "prompt leak"
    if review and (quotes(text, review) or alike(text, review)):
        return "review leak"
    if _repeats(text, history):
        return "repeat"
    if repeats_itself(text):
        return "repeats itself"
    return "goodbye" if says_goodbye(plain) else None


def review_fault(text: str) -> str | None:
    """What is wrong with a review of an assistant's reply, or None."""
    if not says_something(text):
        return "empty"
    return "refusal" if refuses(text) else None


def reply_fault(text: str, history: Sequence[Message]) -> str | None:
    """What is wrong with an assistant's reply, or None.

    Wrong are the user's words in it, a repeated message, a message that says one thing over and
    over, and after tool turns a call, which nobody would carry out, or a result, which nobody gave.

    A refusal is not a fault: if the user asks for something harmful, a refusal is the right reply.
    """
    if _USER_SPEAKER.search(text):
        return "role flip"
    if _TOOL_TAG.search(text) and has_tool_turns(history):
        return "tool call"
    if _repeats(text, history):
        return "repeat"
    return "repeats itself" if repeats_itself(text) else None


def rewrite_fault(instruction: str, original: str, answer: str = "") -> str | None:
    """What is wrong with a rewritten instruction, or None.

    Args:
        original: the user's instruction.
        answer: the plain reply to it, where the model has read it, and must not repeat it.
    """
    if refuses(instruction):
        return "refusal"
    repeats_answer = answer and (quotes(answer, instruction) or alike(instruction, answer))
    if repeats_answer or not is_altered(instruction, original):
        return "not rewritten"
    return "role flip" if _SPEAKER.search(instruction) else None


def contrast_reply_fault(
    text: str, instruction: str, history: Sequence[Message], answer: str = ""
) -> str | None:
    """What is wrong with a reply to an altered instruction, or None.

    A refusal is a fault here. The model may have refused to write a contrast, or the reply may
    answer the user's own request as well. Either way the pair's label would be noise.

    Args:
        answer: the plain reply to the user's message, where the model has read it.
    """
    if refuses(text):
        return "refusal"
    if leaks(text, instruction):
        return "leak"
    return "same answer" if answer and alike(text, answer) else reply_fault(text, history)


def says_goodbye(text: str) -> bool:
    """Whether a message only thanks or says goodbye.

    "Thanks, now do X" asks for something, and "thanks, but ..." objects.
    """
    text = straight_quotes(text)
    closing = _CLOSING.search(text)
    return bool(
        closing
        and not _REQUEST.search(text)
        and not _OBJECTION.search(text, closing.end())
        and len(text.split()) < MAX_GOODBYE_WORDS
    )


def says_something(text: str) -> bool:
    """Whether a text has a letter, a number or an emoji."""
    return any(category(character)[0] in "LN" or category(character) == "So" for character in text)


def _repeats(text: str, history: Sequence[Message]) -> bool:
    return any(
        alike(text, message["content"])
        for message in history
        if message["role"] in ("user", "assistant")
    )
