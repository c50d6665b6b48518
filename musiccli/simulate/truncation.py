"""Shorten a reply that the token limit cut to whole sentences."""

import re
from dataclasses import replace

from musiccli.llm.call import Reply

SENTENCE_END = re.compile(r"[.!?…。！？][\"')\]*_”’]*(?=\s|$)|[。！？]|(?<=\S)\n+")
# A dot after the number of a list's line or after an abbreviation ends no sentence.
NOT_AN_END = re.compile(
    r"(?:(?:^|\n)[\s>*_#]*(?:\d+|[A-Za-z])|\b(?:Dr|Mr|Mrs|Ms|Prof|St|vs|Fig|e\.g|i\.e|cf))\.$"
)


def whole_sentences(reply: Reply) -> tuple[Reply, bool]:
    """A reply up to its last whole sentence or line, and whether it now ends with one.

    Only a reply that the token limit cut is changed. It stays as it is where shortening would lose
    more than half of it, or leave a code block open.
    """
    if reply.finish != "length":
        return reply, True
    ends = [
        match.end()
        for match in SENTENCE_END.finditer(reply.text)
        if not NOT_AN_END.search(reply.text, 0, match.end())
    ]
    end = max(ends, default=0)
    text = reply.text[:end].rstrip()
    if end * 2 < len(reply.text) or text.count("```") % 2:
        return reply, False
    return replace(reply, text=text), True
