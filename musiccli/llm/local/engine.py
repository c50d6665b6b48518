"""A chat model in this process: the requests of many conversations, answered in batches.

A thread owns the model. Up to BATCH_ROWS requests are under way at once. A finished one makes room
for the waiting request of the oldest item. Each request has its own temperature, seed, stops and
token limit, so its answer does not depend on the rest of the batch, but for rounding.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Any

import torch

from musiccli.core.bundled_models import bundled_gguf_file, path_or_hub_id
from musiccli.core.errors import CallError, InputError
from musiccli.core.messages import Message
from musiccli.core.pretrained import (
    load_config,
    load_language_model,
    load_tokenizer,
    report_custom_code,
)
from musiccli.core.template_limits import apply_chat_template
from musiccli.cpu.linear import use_onednn_linear
from musiccli.cpu.memory import retain_freed_memory
from musiccli.cpu.threads import limit_threads
from musiccli.gpu.precision import computed_precision
from musiccli.llm.concurrency import CURRENT_ITEM
from musiccli.llm.local.batch import Batch, Request, Row
from musiccli.llm.local.choice import runs_on_openvino
from musiccli.llm.local.openvino_batch import OpenVinoBatch

BATCH_ROWS = 24  # requests under way; measured on 2 cores: more gains little
THINKING = "enable_thinking"  # the variable of Qwen's, Gemma's and other templates
UNLIMITED_CONTEXT = 1 << 20  # tokens, where a model names no limit


@dataclass(frozen=True)
class Completion:
    """The answer to a request. `finish` is OpenAI's finish_reason: "stop" or "length"."""

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int


class LocalEngine:
    """One model, its tokenizer, and the thread that generates.

    Args:
        name: the model's name, as "local/smollm2".
        say: tells people something.

    Raises:
        InputError: the model cannot be loaded.
    """

    def __init__(self, name: str, say: Callable[[str], None] = lambda text: None):
        self.name = name
        path = path_or_hub_id(name, say)
        try:
            self.tokenizer = load_tokenizer(path)
            config, self._batch = self._load(path, say)
        except InputError as error:
            raise InputError(f"{name}: cannot be loaded: {error}") from error
        report_custom_code(name, path, say)
        self.context = getattr(config, "max_position_embeddings", None) or UNLIMITED_CONTEXT
        # A heap: the oldest item goes first, then whoever asked first.
        self._queue: list[tuple[int, int, Row]] = []
        self._ticket = count()
        self._futures: dict[Row, Future[Completion]] = {}
        self._ready = threading.Condition()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"engine {name}", daemon=True)
        self._thread.start()

    def _load(self, path: str, say: Callable[[str], None]) -> tuple[Any, Batch | OpenVinoBatch]:
        """The model's config, and what computes its answers."""
        limit_threads()
        if runs_on_openvino(self.name):
            batch = OpenVinoBatch(bundled_gguf_file(self.name), BATCH_ROWS)
            say(f"{self.name}: OpenVINO computes its answers")
            return load_config(path), batch
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        retain_freed_memory()
        model = load_language_model(path, dtype=computed_precision(device)).to(device).eval()
        use_onednn_linear(model)
        for layer in getattr(model.base_model, "layers", ()):
            layer.register_forward_pre_hook(self._check_open)
        return model.config, Batch(model, self.tokenizer)

    def render(
        self, messages: list[Message], speaker: str = "assistant", reasoning: str | None = None
    ) -> str:
        """Write a conversation with the model's template, up to where the speaker begins.

        Args:
            messages: the conversation.
            speaker: "assistant" or "user".
            reasoning: "none" for a reply without thoughts; None for what the template does.

        Raises:
            InputError: the model has no template, or one that cannot turn thoughts off.
            CallError: its template refuses the conversation.
        """
        if not self.tokenizer.chat_template:
            raise InputError(
                f"{self.name}: has no chat template; use a chat model, or a completion prompt"
            )
        if reasoning and THINKING not in self.tokenizer.get_chat_template():
            raise InputError(
                f"{self.name}: takes no `reasoning`, as its chat template has no {THINKING}; leave "
                "it out"
            )
        variables = {THINKING: False} if reasoning else {}
        mark = "\u2063speaks here\u2063"
        try:
            if speaker == "assistant":
                return apply_chat_template(
                    self.tokenizer, messages, add_generation_prompt=True, variables=variables
                )
            shown = [*messages, {"role": speaker, "content": mark}]
            return apply_chat_template(self.tokenizer, shown).partition(mark)[0]
        except Exception as error:  # templates raise whatever jinja raises
            raise CallError(
                f"{self.name}: its chat template refuses the conversation: {error}"
            ) from error

    async def complete(self, request: Request) -> Completion:
        """Continue a prompt. Raises CallError where it does not fit into the model's context."""
        ids = self.tokenizer(request.prompt, add_special_tokens=False).input_ids
        if len(ids) + request.max_tokens > self.context:
            raise CallError(
                f"{self.name}: {len(ids)} + {request.max_tokens} tokens do not fit into "
                f"{self.context}"
            )
        row = Row(request, ids)
        future: Future[Completion] = Future()
        with self._ready:
            if self._closed.is_set():
                raise CallError(f"{self.name}: closed")
            self._futures[row] = future
            heappush(self._queue, (CURRENT_ITEM.get().number, next(self._ticket), row))
            self._ready.notify()
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the thread, in the middle of a batch if need be.

        torch aborts a process that exits while it computes.
        """
        with self._ready:
            self._closed.set()
            self._ready.notify()
        self._thread.join(timeout=30)

    def _check_open(self, *_: object) -> None:
        """Runs before each layer of the network: a whole batch may take seconds to pass it."""
        if self._closed.is_set():
            raise CallError("closed")

    def _run(self) -> None:
        """What the thread does."""
        batch = self._batch
        while not self._closed.is_set():
            rows = self._next_rows()
            try:
                finished = batch.join(rows) if rows else []
                finished += batch.step() if batch.rows else []
            except Exception as error:
                self._fail([*{*rows, *batch.rows}], error)
                batch.clear()
            else:
                for row in finished:
                    self._futures.pop(row).set_result(self._completion(row))
        self._fail([*self._futures], "closed")

    def _fail(self, rows: list[Row], reason: object) -> None:
        for row in rows:
            future = self._futures.pop(row)
            if not future.cancelled():
                future.set_exception(CallError(f"{self.name}: {reason}"))

    def _next_rows(self) -> list[Row]:
        """The waiting rows for which the batch has room. An empty batch waits for one."""
        with self._ready:
            if not self._batch.rows:
                self._ready.wait_for(lambda: self._queue or self._closed.is_set())
            room = min(BATCH_ROWS - len(self._batch.rows), len(self._queue))
            rows = [heappop(self._queue)[-1] for _ in range(room)]
        wanted = [row for row in rows if self._futures[row].set_running_or_notify_cancel()]
        for row in {*rows} - {*wanted}:
            del self._futures[row]
        return wanted

    def _completion(self, row: Row) -> Completion:
        """The answer of a finished row, without the stop string and what follows it."""
        ended = row.written[-1] in self._batch.end_tokens
        ids = row.written[:-1] if ended else row.written
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        cut = min((text.find(stop) for stop in row.request.stop if stop in text), default=None)
        finish = "stop" if ended or cut is not None else "length"
        return Completion(text[:cut], finish, len(row.ids), len(ids))
