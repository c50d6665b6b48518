"""Shorten a reply that the token limit cut to whole sentences."""

import re
from dataclasses import replace

from musiccli.llm.call import Reply

SENTENCE_END = re.compile(r"[.!?…。！？][\"')\]*_”’]*(?=\s|$)|[。！？]|(?<=\S)\n+")
# Where no sentence or line ends.
NO_END = re.compile(
    r"^(?:[^\S\n]|[>*_#])*(?:\d+|[A-Za-z])\."  # the number of a list's line
    r"|\b(?:Dr|Mr|Mrs|Ms|Prof|St|vs|Fig|e\.g|i\.e|cf)\."
    r"|^#{1,6} .*"  # a heading
    r"|[:：][*_\"')\]”’]*$",  # a line that announces what follows
    re.MULTILINE,
)


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
    masked = NO_END.sub(lambda match: " " * len(match[0]), text)
    return max((match.end() for match in SENTENCE_END.finditer(masked)), default=0)
