"""Chat models inside this process: requests of many conversations, answered together in batches.

A thread owns the model. Up to `BATCH` requests are under way at once; one that is done makes room for one that
waits, the one for the oldest item first. Each keeps its own temperature, seed, stops and token limit, so an answer does
not depend on its batch-mates beyond float noise.
"""

import asyncio
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer

from musiccli.core.bundled_models import path_or_hub_id
from musiccli.core.errors import CallError, InputError
from musiccli.core.progress import say
from musiccli.core.quiet import quiet_libraries
from musiccli.cpu.linear import use_onednn_linear
from musiccli.cpu.memory import retain_freed_memory
from musiccli.llm.concurrency import CURRENT_ITEM
from musiccli.llm.local.batch import Batch, Request, Row

BATCH = 24  # requests answered together; measured on 2 cores: more than 24 gains little


@dataclass(frozen=True)
class Completion:
    text: str
    finish: str  # "stop" or "length", as OpenAI's finish_reason
    prompt_tokens: int
    completion_tokens: int


class LocalEngine:
    """One transformers model, its tokenizer and the thread that generates."""

    def __init__(self, name: str):
        path = path_or_hub_id(name, say)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        retain_freed_memory()
        try:
            with quiet_libraries():
                self.tokenizer = AutoTokenizer.from_pretrained(path)
                self.model = (
                    AutoModelForCausalLM.from_pretrained(
                        path, dtype=torch.bfloat16 if device == "cuda" else torch.float32
                    )
                    .to(device)
                    .eval()
                )
        except (
            OSError,
            ValueError,
        ) as error:  # ValueError: a folder without a model, a model that cannot generate
            raise InputError(f"{name}: cannot be loaded: {str(error).splitlines()[0]}") from error
        use_onednn_linear(self.model)
        self.name = name
        self.context = getattr(self.model.config, "max_position_embeddings", None) or 1 << 20
        self._batch = Batch(self.model, self.tokenizer)
        self._queue: list[
            tuple[int, int, Row]
        ] = []  # a heap: the oldest item, then who asked first
        self._asked = count()
        self._futures: dict[Row, Future] = {}
        self._ready = threading.Condition()
        self._closed = threading.Event()
        for layer in getattr(self.model.base_model, "layers", ()):
            layer.register_forward_pre_hook(self._stay_open)
        self._thread = threading.Thread(target=self._serve, name=f"engine {name}", daemon=True)
        self._thread.start()

    def render(self, messages: list[dict], speaker: str = "assistant") -> str:
        """The conversation as the model's template writes it, up to where `speaker` ("assistant" or "user") begins."""
        render = self.tokenizer.apply_chat_template
        try:
            if speaker == "assistant":
                return render(messages, tokenize=False, add_generation_prompt=True)
            mark = "\u2063speaks here\u2063"
            return render(
                [*messages, {"role": speaker, "content": mark}], tokenize=False
            ).partition(mark)[0]
        except ValueError as error:
            raise InputError(
                f"{self.name}: has no chat template; use a chat model, or a completion prompt"
            ) from error
        except TemplateError as error:
            raise CallError(
                f"{self.name}: its chat template refuses the conversation: {error}"
            ) from error

    async def complete(self, request: Request) -> Completion:
        """Continue `request.prompt`. Raises CallError where it does not fit into the model's context."""
        ids = self.tokenizer(request.prompt, add_special_tokens=False).input_ids
        if len(ids) + request.max_tokens > self.context:
            raise CallError(
                f"{self.name}: {len(ids)} + {request.max_tokens} tokens do not fit into {self.context}"
            )
        row, future = Row(request, ids), Future()
        with self._ready:
            if self._closed.is_set():
                raise CallError(f"{self.name}: closed")
            self._futures[row] = future
            heappush(self._queue, (CURRENT_ITEM.get().number, next(self._asked), row))
            self._ready.notify()
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the thread, in the middle of a batch if need be: torch aborts a process that exits while it computes."""
        with self._ready:
            self._closed.set()
            self._ready.notify()
        self._thread.join(timeout=30)

    def _stay_open(self, *_: object) -> None:
        """Asked before each layer of the network: a whole batch may take seconds to pass it."""
        if self._closed.is_set():
            raise CallError("closed")

    def _serve(self) -> None:
        batch = self._batch
        while not self._closed.is_set():
            rows = self._next_rows()
            try:
                done = batch.join(rows) if rows else []
                done += batch.step() if batch.rows else []
            except Exception as error:
                self._fail([*{*rows, *batch.rows}], error)
                batch.clear()
            else:
                for row in done:
                    self._futures.pop(row).set_result(self._read(row))
        self._fail([*self._futures], "closed")

    def _fail(self, rows: list[Row], reason: object) -> None:
        for row in rows:
            future = self._futures.pop(row)
            if not future.cancelled():
                future.set_exception(CallError(f"{self.name}: {reason}"))

    def _next_rows(self) -> list[Row]:
        """Who waits and finds room in the batch; where the batch is empty, this waits for somebody."""
        with self._ready:
            if not self._batch.rows:
                self._ready.wait_for(lambda: self._queue or self._closed.is_set())
            room = min(BATCH - len(self._batch.rows), len(self._queue))
            rows = [heappop(self._queue)[-1] for _ in range(room)]
        wanted = [row for row in rows if self._futures[row].set_running_or_notify_cancel()]
        for row in {*rows} - {*wanted}:
            del self._futures[row]
        return wanted

    def _read(self, row: Row) -> Completion:
        ended = row.written[-1] in self._batch.ends
        ids = row.written[:-1] if ended else row.written
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        cut = min((text.find(stop) for stop in row.request.stop if stop in text), default=None)
        finish = "stop" if ended or cut is not None else "length"
        return Completion(text[:cut], finish, len(row.ids), len(ids))
