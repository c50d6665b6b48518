"""Conversations that stand in one text, each turn behind a header that names who speaks.

Anthropic HH has "Human:" and "Assistant:" behind blank lines. Vicuna, Alpaca, Guanaco and base
models have headers of their own. A text that only holds such words is no transcript: it must begin
with a header of the user, or with a sentence by which a known prompt begins. "Question:" and
"Answer:" are no headers, because tasks are put in these words.
"""

import re

# A transcript of HH begins with a blank line, or its first header is the start of the text.
_HH_BLANK_START = re.compile(r"(\r?\n){2}Human:")
_HH_START = re.compile(r"\s*Human:.*?(\r?\n){2}Assistant:", re.DOTALL)
_HH_HEADER = re.compile(r"(?:\r?\n){2}(?:(?P<user>Human)|(?P<assistant>Assistant)):")
_HEADERS = (  # each style has a user's and an assistant's names
    re.compile(r"#{2,3} ?(?:(?P<user>Human|User|Instruction)|(?P<assistant>Assistant|Response)):"),
    re.compile(r"(?:(?<!\S)|(?<=</s>))(?:(?P<user>USER)|(?P<assistant>ASSISTANT)):"),
    re.compile(
        r"^[ \t]*(?:(?P<user>Human|User|Prompter)|(?P<assistant>Assistant|Bot|Chatbot|AI)):",
        re.IGNORECASE | re.MULTILINE,
    ),
)
# The first words of the prompts that Vicuna and Alpaca were trained with.
_PREAMBLE = re.compile(
    r"\s*(A chat between a|Below is an instruction that|BEGINNING OF CONVERSATION:)"
)
_REPLY_HEADER = r"(?:#{2,3} ?)?(?:Assistant|ASSISTANT|Response|Bot|Chatbot|AI):"
_REPLY_START = re.compile(rf"\s*{_REPLY_HEADER}\s*")
_REPLY_END = re.compile(rf"(?:(?<!\S)|(?=###)){_REPLY_HEADER}\s*$")
_START = re.compile(
    rf"\s*(?:(?:#{{2,3}} ?)?(?:Human|User|Prompter|Instruction):|{_PREAMBLE.pattern})",
    re.IGNORECASE,
)  # what begins otherwise is not searched
_START_MARK = "BEGINNING OF CONVERSATION:"
_END_MARK = "</s>"  # Vicuna's, behind each reply
_HEADER_LENGTH = 50  # characters; no header and the spaces behind it are longer

Turns = list[tuple[str, str]]  # roles and texts


def is_hh(text: str) -> bool:
    """Whether a text is a transcript of Anthropic HH, with or without its first blank line."""
    return bool(_HH_BLANK_START.match(text) or _HH_START.match(text))


def split_hh(text: str) -> Turns:
    """The turns of an HH string, as it is or as Windows stores it; none where it is no such string.

    Headers count behind a blank line only. The rest is text.
    """
    if "\r\n" in text and text.count("\r\n") == text.count("\n"):  # the file was converted
        text = text.replace("\r\n", "\n")
    text = "\n\n" + text.lstrip()
    headers = [*_HH_HEADER.finditer(text)]
    return _split(text, headers) if headers and not headers[0].start() else []


def split_transcript(text: str) -> Turns:
    """The turns of a transcript in another style than HH, after a system message if it has one.

    None where the text does not begin like one. The last turn may be an empty one of the
    assistant, which a prompt has. The headers are those of the names that speak first.
    """
    for style in _HEADERS if _START.match(text) else ():
        headers = [*style.finditer(text)]
        if not headers or headers[0].lastgroup != "user":
            continue
        preamble = text[: headers[0].start()].strip()
        if preamble and not _PREAMBLE.match(preamble):
            continue
        reply = next((header for header in headers if header.lastgroup == "assistant"), None)
        names = {header["user"] or header["assistant"] for header in (headers[0], reply) if header}
        headers = [h for h in headers if (h["user"] or h["assistant"]) in names]
        system = preamble.removeprefix(_START_MARK).strip()
        return [("system", system)] * bool(system) + _split(text, headers)
    return []


def is_prompt(text: str) -> bool:
    """Whether a text is a transcript that waits for a reply: it ends with the reply's header.

    One that begins with the words of a known prompt need not.
    """
    turns = split_transcript(text)
    return bool(turns) and (turns[-1] == ("assistant", "") or bool(_PREAMBLE.match(text)))


def is_whole(text: str) -> bool:
    """Whether a text is a transcript with a reply."""
    return any(role == "assistant" for role, _ in split_transcript(text))


def ends_with_reply_header(text: str) -> bool:
    """Whether a text waits for a reply, by its last line, whatever it begins with."""
    return bool(_REPLY_END.search(text[-_HEADER_LENGTH:]))


def split_reply(prompt: str, reply: str) -> Turns:
    """The turns of a prompt and a reply which begin with a header each; none for other texts."""
    header = _REPLY_START.match(reply)
    if not header:
        return []
    turns = split_hh(prompt) if is_hh(prompt) else split_transcript(prompt)
    if turns and turns[-1] == ("assistant", ""):
        turns.pop()
    return [*turns, ("assistant", reply[header.end() :].strip())] if turns else []


def _split(text: str, headers: list[re.Match[str]]) -> Turns:
    ends = [*(header.start() for header in headers[1:]), len(text)]
    return [
        (str(header.lastgroup), text[header.end() : end].strip().removesuffix(_END_MARK).rstrip())
        for header, end in zip(headers, ends, strict=True)
    ]
