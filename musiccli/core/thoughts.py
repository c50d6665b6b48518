"""The thoughts that some models write before a reply, between <think> and </think>."""

import re

# A tag in quotes or backticks is spoken of. Magistral writes [THINK].
_TAG = re.compile(
    r"(?<![`\"'])(?:<(/?)(?:seed:)?think(?:ing)?>|\[(/?)THINK\])(?![`\"'])", re.IGNORECASE
)


def without_thoughts(text: str) -> str:
    """A reply without the thoughts before it.

    The opening tag may be missing: the chat templates of many models write it, so that the server
    sends the closing tag alone. Where the closing tag is missing, everything is thoughts. A tag
    that stands elsewhere is part of the reply.
    """
    tags = list(_TAG.finditer(text))
    if not tags:
        return text.strip()
    opening = next((number for number, tag in enumerate(tags) if not _closes(tag)), len(tags))
    if opening:  # closing tags come first: the last of them ends the thoughts
        return text[tags[opening - 1].end() :].strip()
    if text[: tags[0].start()].strip():
        return text.strip()
    end = next((tag.end() for tag in tags if _closes(tag)), len(text))
    return text[end:].strip()


def _closes(tag: re.Match[str]) -> bool:
    return "/" in (tag[1], tag[2])
