"""Apply a model's chat template within bounds: a template is a program that comes with the model.

transformers runs it in Jinja's sandbox, so it reaches no file and no network. Here that happens in
a process of its own, whose time and memory the operating system bounds. This process only waits, in
whichever thread.
"""

import atexit
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from musiccli.core import template_process
from musiccli.core.errors import InputError
from musiccli.core.template_process import LIMITED, NUMBER_BYTES, REFUSED

SECONDS = 5.0  # of CPU time; a conversation of 32 MB takes less than one
MEMORY = 2 << 30  # bytes beyond what the process has
TEXT_PER_INPUT, SPARE_TEXT = 16, 1 << 20  # characters for each of the messages, and beside them


class TemplateLimitError(InputError):
    """A chat template takes more than any conversation needs. The message names no model."""


def apply_chat_template(
    tokenizer: Any,
    messages: Sequence[Any],
    *,
    tools: Sequence[Any] | None = None,
    add_generation_prompt: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The text that a tokenizer's chat template writes, which is not empty.

    It is what the tokenizer's own method of this name returns.

    Args:
        tokenizer: transformers' tokenizer.
        messages: what the template gets.
        tools: the functions on offer, likewise.
        add_generation_prompt: whether the text ends where the assistant begins.
        variables: values of further variables of the template.

    Raises:
        TemplateLimitError: the template takes too much time or memory, or writes too much.
        ValueError: the template refuses the messages, or writes nothing.
    """
    settings = {
        **tokenizer.special_tokens_map,
        **(variables or {}),
        "conversations": [[_without_nulls(message) for message in messages]],
        "tools": list(tools) if tools else None,
        "chat_template": tokenizer.get_chat_template(tools=tools),
        "add_generation_prompt": add_generation_prompt,
    }
    text = _renderer(os.getpid()).render(settings)
    if not text.strip():
        raise ValueError("it writes nothing")
    return text


def _without_nulls(message: Any) -> dict[str, Any]:
    """Templates write null as "None", where they take a field that is missing for missing."""
    return {name: value for name, value in message.items() if value is not None}


class _Renderer:
    """The process that applies templates, started at the first and after one that ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(self, settings: dict[str, Any]) -> str:
        """What transformers' function renders. Raises as `apply_chat_template` does."""
        request = pickle.dumps(
            {
                "settings": settings,
                "seconds": SECONDS,
                "memory": MEMORY,
                "spare_text": SPARE_TEXT,
                "text_per_input": TEXT_PER_INPUT,
            }
        )
        with self._lock:
            try:
                kind, text = self._exchange(len(request).to_bytes(NUMBER_BYTES, "big") + request)
            except BaseException:  # Ctrl-C, too: the reply would be taken for that of the next
                self.close()
                raise
        if kind == LIMITED:
            raise TemplateLimitError(f"the chat template {text}")
        if kind == REFUSED:
            raise ValueError(text)
        return text

    def close(self) -> None:
        """End the process."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _exchange(self, request: bytes) -> tuple[bytes, str]:
        """Send a request, and wait for the kind and text of its reply."""
        if self._process is None:
            self._process = subprocess.Popen(
                # -P: nothing is imported from the current folder.
                [sys.executable, "-P", template_process.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        process = self._process
        assert process.stdin and process.stdout
        try:
            process.stdin.write(request)
            process.stdin.flush()
        except BrokenPipeError:
            raise _ended(process) from None
        kind, size = process.stdout.read(1), process.stdout.read(NUMBER_BYTES)
        data = process.stdout.read(int.from_bytes(size, "big"))
        if not kind or len(data) != int.from_bytes(size, "big"):
            raise _ended(process)
        return kind, data.decode("utf-8", "surrogatepass")


@cache
def _renderer(process_id: int) -> _Renderer:
    """That of this process: a fork of it must not read its replies."""
    renderer = _Renderer()
    atexit.register(renderer.close)
    return renderer


def _ended(process: subprocess.Popen[bytes]) -> TemplateLimitError:
    status = process.wait()
    if status == -signal.SIGPROF:
        return TemplateLimitError(f"the chat template takes more than {SECONDS:g} seconds")
    return TemplateLimitError(f"the chat template ended the process that applies it ({status})")
