"""The prompts of benchmarks, which training data must not overlap."""

import re
from collections.abc import Iterable, Iterator

from musiccli.core.records import Record, side_names
from musiccli.core.run_stats import RunStats

# The longest overlap, in words, that GPT-3's authors looked for (arXiv 2005.14165, appendix C).
OVERLAP_WORDS = 13
# Thai, Lao, Burmese and Khmer, then kana and Chinese characters: no spaces between words.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
    "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")  # there each character counts as a word


class ExcludedPrompts:
    """The first messages of benchmark conversations, and every 13 successive words of a prompt."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._first_prompts: set[str] = set()
        self._ngram_hashes: set[int] = set()
        for record in records:
            for prompts in _prompts_by_side(record):
                self._first_prompts.add(" ".join(prompts[0]))
                self._ngram_hashes.update(_ngram_hashes(prompts))

    def overlaps(self, record: Record) -> bool:
        """Whether a side of the record begins with an excluded first prompt, or any of its user
        messages shares 13 successive words with an excluded prompt.
        """
        return any(
            " ".join(prompts[0]) in self._first_prompts
            or any(ngram in self._ngram_hashes for ngram in _ngram_hashes(prompts))
            for prompts in _prompts_by_side(record)
        )

    def drop_overlaps(self, records: Iterable[Record], stats: RunStats) -> Iterator[Record]:
        """The records that overlap no excluded prompt."""
        for record in records:
            if self.overlaps(record):
                stats.count("dropped", "overlaps_an_excluded_dataset", record=record)
            else:
                yield record


def _prompts_by_side(record: Record) -> Iterator[list[list[str]]]:
    """For each side, the words of each of its user messages, in lower case.

    A message without any word, such as "???", counts as one word.
    """
    for side in side_names(record):
        texts = [
            message["content"].strip().casefold()
            for message in record[side]
            if message["role"] == "user"
        ]
        if texts:
            yield [_WORD.findall(text) or [text] for text in texts]


def _ngram_hashes(prompts: list[list[str]]) -> Iterator[int]:
    for words in prompts:
        for start in range(len(words) - OVERLAP_WORDS + 1):
            yield hash(tuple(words[start : start + OVERLAP_WORDS]))
