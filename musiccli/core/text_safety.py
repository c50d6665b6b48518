"""Make text from records safe to show to people.

Control characters can send commands to a terminal. Other invisible characters reverse the direction
of the text beside them, or hide it.
"""

from unicodedata import category

JOINERS = "\u200c\u200d"  # zero-width: emoji and several scripts need them, and they hide nothing
# Unicode's names for control, format, line and paragraph separator, surrogate and private use.
UNSAFE_CATEGORIES = ("Cc", "Cf", "Zl", "Zp", "Cs", "Co")


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
