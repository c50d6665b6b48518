"""Text of other people, safe to look at: it can neither drive a terminal nor turn or hide what stands beside it."""

from unicodedata import category

JOINERS = "\u200c\u200d"  # invisible, and harmless: emoji and several scripts are written with them


def visible(text: str) -> str:
    """The text with every control and invisible character written out: `␛` for escape, `⟨U+202E⟩` for a turn-around."""
    return "".join(map(_written_out, text.replace("\r\n", "\n")))


def _written_out(char: str) -> str:
    if (
        char in "\n\t"
        or char in JOINERS
        or category(char) not in ("Cc", "Cf", "Zl", "Zp", "Cs", "Co")
    ):
        return char
    code = ord(char)
    return (
        chr(0x2400 + code)
        if code < 32
        else "\u2421"
        if code == 127
        else f"\u27e8U+{code:04X}\u27e9"
    )
