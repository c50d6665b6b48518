"""Make text from records safe to show to people.

Control characters can send commands to a terminal. Other invisible characters reverse the direction
of the text beside them, or hide it.
"""

import re
from unicodedata import category

BROKEN_BAR = "\u00a6"
JOINERS = "\u200c\u200d"  # zero-width: emoji and several scripts need them, and they hide nothing
# Unicode's names for control, format, line and paragraph separator, surrogate and private use.
UNSAFE_CATEGORIES = ("Cc", "Cf", "Zl", "Zp", "Cs", "Co")

_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
# What would start markup, a formula or an entity of GitHub's Markdown, or end a cell of a table.
_MARKUP = re.compile(r"[\\`*_<>|\[\]~&$#]")
# GitHub links addresses and names of users wherever they stand, and a backslash does not help.
_LINKED = re.compile(r"://|\bwww\.|@|\bGH-\d", re.IGNORECASE)
# Brackets at the end, as those of an interval, make no link.
_LAST_BRACKETS = re.compile(r"(?<=\S )\[[^][()<>`\\|*_~&$#]*\](?: of [\d,]+)?$")


def valid_text(text: str) -> str:
    """The text with a replacement character for each half of a surrogate pair that stands alone.

    Texts that were cut within an emoji hold such halves. No file can hold them, and no tokenizer
    takes them.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def visible(text: str) -> str:
    """The text with every control and invisible character replaced by a printable name for it.

    The escape character becomes `␛`, a right-to-left override becomes `⟨U+202E⟩`. Newlines and
    tabs stay; a carriage return before a newline is dropped.
    """
    return "".join(map(_visible_character, text.replace("\r\n", "\n")))


def _visible_character(character: str) -> str:
    if character in "\n\t" or character in JOINERS:
        return character
    if category(character) not in UNSAFE_CATEGORIES:
        return character
    code = ord(character)
    if code < 32:
        return chr(0x2400 + code)  # Unicode's pictures of the control characters
    return "\u2421" if code == 127 else f"\u27e8U+{code:04X}\u27e9"


def latex(text: str) -> str:
    """Text as LaTeX prints it as it is: on one line, without commands."""
    return "".join(
        _LATEX.get(character, character) for character in " ".join(visible(text).split())
    )


def markdown(text: str) -> str:
    """Text as Markdown shows it as it is: on one line, without markup, links, images or HTML.

    Text that GitHub would link all the same becomes code.
    """
    text = " ".join(visible(text).split("\n"))
    if _LINKED.search(text):
        return markdown_code(text)
    brackets = _LAST_BRACKETS.search(text)
    end = brackets.start() if brackets else len(text)
    return _MARKUP.sub(r"\\\g<0>", text[:end]) + text[end:]


def markdown_code(text: str) -> str:
    """Text as code within a line. A bar, which would end a cell, becomes a broken one."""
    fence = _fence(text, 1)
    space = " " * (text[:1] == "`" or text[-1:] == "`")
    return f"{fence}{space}{text.replace('|', BROKEN_BAR)}{space}{fence}"


def markdown_block(text: str) -> str:
    """Text as a block of code of its own, which no line of it can end."""
    fence = _fence(text, 3)
    return f"{fence}\n{visible(text)}\n{fence}\n"


def _fence(text: str, least: int) -> str:
    """More backticks than the text has in a row."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    return "`" * max(least, longest + 1)
