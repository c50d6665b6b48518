"""Shorten a reply that the token limit cut to whole sentences."""

import re
from dataclasses import replace

from musiccli.llm.call import Reply

SENTENCE_END = re.compile(r"[.!?…。！？][\"')\]*_”’]*(?=\s|$)|[。！？]|(?<=\S)\n+")
# A dot after the number of a list's line or after an abbreviation ends no sentence.
LIST_NUMBER = re.compile(r"^(?:[^\S\n]|[>*_#])*(?:\d+|[A-Za-z])\.", re.MULTILINE)
ABBREVIATION = re.compile(r"\b(?=((?:Dr|Mr|Mrs|Ms|Prof|St|vs|Fig|e\.g|i\.e|cf)\.))")


def whole_sentences(reply: Reply) -> tuple[Reply, bool]:
    """A reply up to its last whole sentence or line, and whether it now ends with one.

    Only a reply that the token limit cut is changed. It stays as it is where shortening would lose
    more than half of it, or leave a code block open.
    """
    if reply.finish != "length":
        return reply, True
    end = _last_end(reply.text)
    text = reply.text[:end].rstrip()
    if end * 2 < len(reply.text) or text.count("```") % 2:
        return reply, False
    return replace(reply, text=text), True


def _last_end(text: str) -> int:
    """Where the last whole sentence or line ends; 0 where there is none."""
    dots = {match.end() for match in LIST_NUMBER.finditer(text)}
    dots.update(match.end(1) for match in ABBREVIATION.finditer(text))
    ends = (match.end() for match in SENTENCE_END.finditer(text))
    # One line break after such a dot belongs to it.
    return max(
        (
            end
            for end in ends
            if end not in dots and not (text[end - 1] == "\n" and end - 1 in dots)
        ),
        default=0,
    )
