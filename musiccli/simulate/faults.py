"""What goes wrong in simulated text. Each `..._fault` names what is wrong with a message, or returns None.

The patterns are English. They are for text that a model wrote in somebody's role, but must let pass what people write:
see tests/test_faults.py for how often they speak up at real turns of Anthropic HH, OpenAssistant and MT-Bench-101.
"""

import re
from unicodedata import category

from musiccli.core.records import Message
from musiccli.core.text_checks import LEAK, alike, leaks, quotes, refuses, straight_quotes

_THINGS = (
    "list|steps|tips|ways|examples?|recipe|summary|overview|breakdown|outline|guide|poem|ideas|suggestions|"
    "reasons|options|answer|explanation|response|translation"
)
_FLIP_START = re.compile(
    r"i('d| would) be (happy|glad) to (help|assist)|how (can|may) i (help|assist) you|i'm here to help|"
    r"(sure|certainly|of course|absolutely)[,!.]+ (here|i can|i'd|let me)|(that's a )?(great|good) question[!.]|"
    r"i apologi[sz]e for (the|any|my) (confusion|error|mistake|misunderstanding)|"
    rf"here('s| is| are) (a|an|some|the) ([\w-]+ ){{0,3}}({_THINGS})\b(?! (i|we|that i) )",
    re.IGNORECASE,
)
_FLIP = re.compile(
    r"\blet me know if (you (have|need|want|would like)|there's anything)|\bfeel free to (ask|reach)|"
    r"\bi hope (this|that) helps[.!]|\bis there anything else (i can|you('d| would) like|you need)|"
    r"\byou're welcome[!.]|\bi('m| am) (glad|happy) (i could|to) (help|assist)|\bhappy to help\b",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"^[*#\[]{0,3}(user|human|assistant)[*\]]{0,3}\s*:", re.IGNORECASE | re.MULTILINE
)
_OTHERS_HEADER = re.compile(r"^[*#\[]{0,3}(user|human)[*\]]{0,3}\s*:", re.IGNORECASE | re.MULTILINE)

_PROMPT = re.compile(
    r"\{\{\s*\w+\s*\}\}$|\{\{\s*(transcript|instruction|conversation)\s*\}\}|\bthe user's (next|last) message\b|"
    r"\bnext message of the user\b|\bhere('s| is) (the|a) (next |possible )?user('s)? message",
    re.IGNORECASE,
)

_CLOSING = re.compile(
    r"\b(thanks|thank you|thx|good ?bye|bye|farewell|see you (later|soon|then|around|next)|talk to you (later|soon)|"
    r"take care(?= of yourself|\W*$|\W* and )|"
    r"have a (great|nice|good|wonderful|lovely) (day|one|evening|night|weekend|time)|"
    r"that('s| is|'ll be| will be| would be) all\b(?! (the|of|that|you)\b))",
    re.IGNORECASE,
)
_VERBS = (
    "add|analy[sz]e|answer|ask|calculate|change|check|choose|compare|compute|consider|continue|convert|correct|count|"
    "create|define|describe|discuss|do|draft|draw|edit|elaborate|expand|explain|find|fix|format|generate|give|go|help|"
    "imagine|improve|include|let's|list|look|make|move|name|outline|pick|plan|pretend|provide|put|read|recommend|remove|"
    "repeat|rephrase|replace|rewrite|say|shorten|show|solve|sort|start|suggest|summari[sz]e|suppose|tell|translate|try|"
    "turn|use|write"
)
_GOES_ON = re.compile(
    rf"\?|\bplease\b|\b(can|could|would|will) you\b|(^|[.!;:,\n]|\band|\bnow|\bthen|\bnext|\balso|\bso)\s*({_VERBS})\b|"
    r"\bi('d| would)( also)? like|"
    r"\bi( also| still| now| just)? (want(?! to thank)|need|wonder|have (a|an|another|one))\b|"
    r"\bi('m| am)( also| still| now)? (looking|wondering|curious|not sure|confused|trying)|"
    r"\b(what|how) about\b|\bshould i\b|\b(tell|help|show|give) me\b|\bnot what i\b",
    re.IGNORECASE,
)
_OBJECTS = re.compile(
    r"\b(but|however|though|except|instead|wrong|incorrect|doesn't|didn't|isn't)\b", re.IGNORECASE
)


def user_fault(text: str, history: list[Message], review: str = "") -> str | None:
    """Whether a simulated user says nothing, forgot its role, refuses to play, repeats, or ends the conversation; or
    gives out the `review` that it was to make a message of."""
    plain = straight_quotes(text).strip()
    if not says_something(plain):
        return "empty"
    if refuses(plain):
        return "refusal"
    if _FLIP_START.match(plain) or _FLIP.search(plain) or _HEADER.search(plain):
        return "role flip"
    if LEAK.search(plain) or _PROMPT.search(plain):
        return "prompt leak"
    if review and (quotes(text, review) or alike(text, review)):
        return "review leak"
    if _repeats(text, history):
        return "repeat"
    return "goodbye" if says_goodbye(plain) else None


def review_fault(text: str) -> str | None:
    """Whether a reviewer says nothing, or would not review."""
    if not says_something(text):
        return "empty"
    return "refusal" if refuses(text) else None


def reply_fault(text: str, history: list[Message]) -> str | None:
    """Whether an assistant's reply speaks for the user, too, or repeats an earlier message.

    A refusal is no fault: where the user asks for harm it is the right reply, and what a reward model should prefer.
    """
    if _OTHERS_HEADER.search(text):
        return "role flip"
    return "repeat" if _repeats(text, history) else None


def rewrite_fault(instruction: str, asked: str) -> str | None:
    """Whether a rewritten instruction is no instruction, or still the user's own."""
    if refuses(instruction):
        return "refusal"
    if alike(instruction, asked):
        return "not rewritten"
    return "role flip" if _HEADER.search(instruction) else None


def contrast_reply_fault(text: str, instruction: str, history: list[Message]) -> str | None:
    """What is wrong with a reply to an altered instruction.

    Here a refusal is a fault: it is either the contraster's own, who would not play, or as good an answer to the
    user's request as to the altered one, so that the pair's label would be noise.
    """
    if refuses(text):
        return "refusal"
    return ("leak" if leaks(text, instruction) else None) or reply_fault(text, history)


def says_goodbye(text: str) -> bool:
    """Whether a message only thanks or takes its leave. "Thanks, now do X" asks, and "thanks, but ..." objects."""
    text = straight_quotes(text)
    closing = _CLOSING.search(text)
    return bool(
        closing
        and not _GOES_ON.search(text)
        and not _OBJECTS.search(text, closing.end())
        and len(text.split()) < 80
    )


def says_something(text: str) -> bool:
    """Whether there is a letter, a number or an emoji."""
    return any(category(sign)[0] in "LN" or category(sign) == "So" for sign in text)


def _repeats(text: str, history: list[Message]) -> bool:
    return any(
        alike(text, message["content"]) for message in history if message["role"] != "system"
    )
