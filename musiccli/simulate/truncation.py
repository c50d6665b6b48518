"""Shorten a reply that the token limit cut to whole sentences."""

import re
from dataclasses import replace

from musiccli.llm.call import Reply

SENTENCE_END = re.compile(r"[.!?…。！？][\"')\]*_”’]*(?=\s|$)|[。！？]|(?<=\S)\n+")
HEADING = re.compile(r"^#{1,6} .*", re.MULTILINE)  # holds no end
# No sentence or line ends after the number of a list's line, after an abbreviation, or after a line
# that announces what follows.
LIST_NUMBER = re.compile(r"^(?:[^\S\n]|[>*_#])*(?:\d+|[A-Za-z])\.", re.MULTILINE)
ABBREVIATION = re.compile(r"\b(?=((?:Dr|Mr|Mrs|Ms|Prof|St|vs|Fig|e\.g|i\.e|cf)\.))")
ANNOUNCEMENT = re.compile(r"[:：][*_\"')\]”’]*$", re.MULTILINE)


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
    text = HEADING.sub(lambda match: " " * len(match[0]), text)
    no_ends = {match.end(1) for match in ABBREVIATION.finditer(text)}
    for pattern in (LIST_NUMBER, ANNOUNCEMENT):
        no_ends.update(match.end() for match in pattern.finditer(text))
    last = 0
    for match in SENTENCE_END.finditer(text):
        if match.start() + len(match[0].rstrip("\n")) not in no_ends:  # a break belongs to its line
            last = match.end()
    return last
