"""Processes that tokenize for the main one.

They are forks, so that each has the tokenizer without loading it. They end with the main process,
however that ends.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

from musiccli.core.processes import end_with_parent
from musiccli.train.token_parts import write_part
from musiccli.train.tokenized_pairs import PairTokenizer, without_tokenizer_threads

_tokenizer: PairTokenizer | None = None  # of a process that tokenizes


class TokenizingProcesses:
    """Processes that tokenize batches of records, started with the first of them."""

    def __init__(self, executor: ProcessPoolExecutor):
        self._executor = executor

    def write_part(self, lines: bytes, path: Path) -> Future[None]:
        """Let a process tokenize records in JSONL and write their part."""
        return self._executor.submit(_write_part, lines, path)


@contextmanager
def tokenizing_processes(tokenizer: PairTokenizer, count: int) -> Iterator[TokenizingProcesses]:
    """So many processes within this context.

    After an exception they finish what each has begun, and no more.
    """
    executor = ProcessPoolExecutor(
        count,
        get_context("fork" if sys.platform == "linux" else "spawn"),
        initializer=_start,
        initargs=(tokenizer, os.getpid()),
    )
    try:
        with without_tokenizer_threads():
            yield TokenizingProcesses(executor)
    finally:
        executor.shutdown(cancel_futures=True)


def _start(tokenizer: PairTokenizer, parent: int) -> None:
    global _tokenizer
    _tokenizer = tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, args=(parent,), daemon=True).start()


def _write_part(lines: bytes, path: Path) -> None:
    assert _tokenizer
    write_part(_tokenizer, lines, path)
