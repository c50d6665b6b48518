"""Apply a model's chat template within bounds: a template is a program that comes with the model.

transformers runs it in Jinja's sandbox, so it reaches no file and no network. Here its time, its
memory and the size of its text are bounded, too.
"""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from musiccli.core.errors import InputError

SECONDS = 5.0  # a conversation of 32 MB takes less than one
MEMORY = 2 << 30  # bytes beyond what the process has
NUMBER_BITS = 4096  # of both sides of a product or division
TEXT_PER_INPUT, SPARE_TEXT = 16, 1 << 20  # characters for each of the messages, and beside them


class TemplateLimitError(InputError):
    """A chat template takes more than any conversation needs. The message names no model."""


def apply_chat_template(tokenizer: Any, messages: Sequence[Any], **settings: Any) -> str:
    """The text that a tokenizer's chat template writes, which is not empty.

    Args:
        tokenizer: transformers' tokenizer.
        messages: what the template gets.
        settings: transformers' settings of the same name, as `tools`.

    Raises:
        TemplateLimitError: the template takes too much time or memory, or writes too much.
        ValueError: the template writes nothing.
        Exception: whatever a template raises.
    """
    _limit_numbers()
    try:
        with _limited_time(), _limited_memory():
            text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, **settings)
    except MemoryError as error:
        raise TemplateLimitError(
            f"the chat template takes more than {MEMORY >> 30} GB of memory"
        ) from error
    if len(text) > SPARE_TEXT:  # most texts are short, and their messages are not measured
        size = len(repr(messages)) + len(repr(settings))
        if len(text) > SPARE_TEXT + TEXT_PER_INPUT * size:
            raise TemplateLimitError(
                f"the chat template writes {len(text):,} characters for {size:,} of messages"
            )
    if not text.strip():
        raise ValueError("it writes nothing")
    return text


@cache
def _limit_numbers() -> None:
    """Let Jinja's sandbox refuse large whole numbers: no signal interrupts a division of two."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    compute = ImmutableSandboxedEnvironment.call_binop

    def call_binop(environment: Any, context: Any, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            size = left.bit_length() + right.bit_length()
            if operator == "**":
                size = left.bit_length() * max(1, right)
            if size > NUMBER_BITS:
                raise TemplateLimitError(
                    f"the chat template computes with numbers of more than {NUMBER_BITS:,} bits"
                )
        return compute(environment, context, operator, left, right)

    # A sum is hardly larger than its parts. What is intercepted is not computed while compiling.
    ImmutableSandboxedEnvironment.intercepted_binops = frozenset({"*", "/", "//", "%", "**"})
    ImmutableSandboxedEnvironment.call_binop = call_binop  # type: ignore[method-assign, assignment]


class _TimeIsUp(BaseException):
    """Jinja's compiler takes any Exception for a value that is not constant, and goes on."""


@contextmanager
def _limited_time() -> Iterator[None]:
    """Raise TemplateLimitError after SECONDS. Only the main thread can be interrupted so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    except _TimeIsUp:
        raise TemplateLimitError(f"the chat template takes more than {SECONDS:g} seconds") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _stop(*_: object) -> NoReturn:
    raise _TimeIsUp


@contextmanager
def _limited_memory() -> Iterator[None]:
    """Let allocations fail beyond MEMORY. Only Linux tells how much a process has."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_bytes().split()[0])
        before = resource.getrlimit(resource.RLIMIT_AS)
    except (ImportError, OSError):
        yield
        return
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    limits = [limit, *(old for old in before if old != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
