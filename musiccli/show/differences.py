"""Which words of two similar texts differ."""

import re
from collections import Counter
from difflib import SequenceMatcher
from itertools import accumulate

MIN_COMMON_WORDS = 0.5  # texts that share a smaller part of their words are unrelated, not edited
STEPS_PER_WORD = 500  # a tenth of a second for 2,000 words; ordinary texts take far fewer
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
    blocks = _matching_blocks(left_words, right_words)
    return (
        _spans(left_pieces, [(start, size) for start, _, size in blocks]),
        _spans(right_pieces, [(start, size) for _, start, size in blocks]),
    )


def _pieces(text: str) -> list[str]:
    """The text cut into words and punctuation marks, each with the white space after it."""
    return re.findall(r"\w+\s*|[^\w\s]\s*|\s+", text)


def _matching_blocks(left: list[str], right: list[str]) -> list[tuple[int, int, int]]:
    """(start in left, start in right, size) of what both have, in order: the blocks of difflib.

    difflib takes quadratic time or more where words repeat. So its steps are counted here, and
    what is not compared within STEPS_PER_WORD counts as changed.
    """
    matcher = SequenceMatcher(None, left, right)
    places: dict[str, list[int]] = matcher.b2j  # type: ignore[attr-defined]  # not in typeshed
    steps = [0, *accumulate(1 + len(places.get(word, ())) for word in left)]
    budget = STEPS_PER_WORD * (len(left) + len(right))
    blocks, regions = [], [(0, len(left), 0, len(right))]
    while regions and budget > 0:
        start, end, right_start, right_end = regions.pop()
        budget -= steps[end] - steps[start]
        i, j, size = matcher.find_longest_match(start, end, right_start, right_end)
        if size:
            blocks.append((i, j, size))
            regions += [(start, i, right_start, j), (i + size, end, j + size, right_end)]
    return sorted(blocks)


def _spans(pieces: list[str], blocks: list[tuple[int, int]]) -> list[Span]:
    """The spans of the pieces in no block, without white space at their ends."""
    spans, position, index = [], 0, 0
    for start, size in [*blocks, (len(pieces), 0)]:
        text = "".join(pieces[index:start])
        if text.strip():
            spans.append((position, position + len(text.rstrip())))
        index = start + size
        position += len(text) + sum(map(len, pieces[start:index]))
    return spans
