"""Shards of an input: each machine works on one, and their outputs are joined in order."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from musiccli.core.errors import InputError
from musiccli.core.jsonl.reader import Line, from_stdin, read_lines, standard_input_as_file


@dataclass(frozen=True)
class Shard:
    """One of `total` successive parts of an input, each as long as the others.

    Attributes:
        number: from 1.
    """

    number: int
    total: int

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def lines(self, paths: Sequence[str], block: int = 1) -> Iterator[Line]:
        """The shard's lines of several files, which count as one long file.

        The input is read twice, first to count its lines. So standard input is kept in a temporary
        file meanwhile.

        Args:
            paths: as in `read_lines`.
            block: lines that no two shards share.

        Raises:
            InputError: a file is missing, damaged or without any record.
        """
        copied = standard_input_as_file() if from_stdin(paths) else contextlib.nullcontext()
        with copied:
            blocks = -(-sum(1 for _ in read_lines(paths)) // block)
            first, last = (blocks * k // self.total * block for k in (self.number - 1, self.number))
            yield from islice(read_lines(paths), first, last)


def parse_shard(text: str) -> Shard:
    """The shard in a text such as "3/8". Raises InputError for another text."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(
            f"`shard` {text}: expected K/N with K from 1 to N, as 3/8 for the third of eight parts"
        )
    return Shard(int(match[1]), int(match[2]))
