"""Which words of two similar texts differ."""

import re
from collections import Counter
from difflib import SequenceMatcher

MIN_COMMON_WORDS = 0.5  # texts that share a smaller part of their words are unrelated, not edited
Span = tuple[int, int]  # start and end in characters, the end excluded


def changed_spans(left: str, right: str) -> tuple[list[Span], list[Span]]:
    """Spans of each text that the other text lacks, word by word.

    Both lists are empty if the texts have less than MIN_COMMON_WORDS in common.
    """
    left_pieces, right_pieces = _pieces(left), _pieces(right)
    left_words = [piece.strip() for piece in left_pieces]
    right_words = [piece.strip() for piece in right_pieces]
    common = sum((Counter(left_words) & Counter(right_words)).values())
    if 2 * common < MIN_COMMON_WORDS * (len(left_words) + len(right_words)):
        return [], []
    edits = SequenceMatcher(None, left_words, right_words).get_opcodes()
    return (
        _spans(left_pieces, [(tag, start, end) for tag, start, end, _, _ in edits]),
        _spans(right_pieces, [(tag, start, end) for tag, _, _, start, end in edits]),
    )


def _pieces(text: str) -> list[str]:
    """The text cut into words and punctuation marks, each with the white space after it."""
    return re.findall(r"\w+\s*|[^\w\s]\s*|\s+", text)


def _spans(pieces: list[str], edits: list[tuple[str, int, int]]) -> list[Span]:
    """The spans of the pieces that are not equal, without white space at their ends."""
    spans, position = [], 0
    for tag, start, end in edits:
        text = "".join(pieces[start:end])
        if tag != "equal" and text.strip():
            spans.append((position, position + len(text.rstrip())))
        position += len(text)
    return spans
