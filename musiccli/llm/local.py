"""Chat models inside this process: requests of many conversations, answered together in batches.

A thread owns the model. Whoever waits when a batch is put together gets into it, up to `BATCH` requests of similar
length; each row keeps its own temperature, seed, stops and token limit, so an answer does not depend on its batch-mates
beyond float noise.
"""

import asyncio
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field

from musiccli.errors import CallError, InputError
from musiccli.llm.embedded import quiet, resolve
from musiccli.progress import say

BATCH = 24  # requests answered together; measured on 2 cores: more than 24 gains little and waits longer
TOP_K = 64  # candidates that top-p sampling considers


@dataclass(frozen=True)
class Request:
    """A prompt as text, special tokens and all, and how to continue it."""

    prompt: str
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    text: str
    finish: str  # "stop" or "length", as OpenAI's finish_reason
    prompt_tokens: int
    completion_tokens: int


@dataclass
class _Waiting:
    request: Request
    ids: list[int]
    future: Future = field(default_factory=Future)


class LocalEngine:
    """One transformers model, its tokenizer and the thread that generates."""

    def __init__(self, name: str):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = resolve(name, say)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            with quiet():
                self.tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
                self.model = AutoModelForCausalLM.from_pretrained(
                    path, dtype=torch.bfloat16 if device == "cuda" else torch.float32).to(device).eval()
        except (OSError, ValueError) as error:  # ValueError: a folder without a model, a model that cannot generate
            raise InputError(f"{name}: cannot be loaded: {str(error).splitlines()[0]}") from error
        self.name = name
        self.model.generation_config.update(temperature=None, top_p=None, top_k=None, do_sample=False)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.context = getattr(self.model.config, "max_position_embeddings", None) or 1 << 20
        self._queue: list[_Waiting] = []
        self._ready = threading.Condition()
        self._closed = threading.Event()
        for layer in getattr(self.model.base_model, "layers", ()):
            layer.register_forward_pre_hook(self._stay_open)
        self._thread = threading.Thread(target=self._serve, name=f"engine {name}", daemon=True)
        self._thread.start()

    def render(self, messages: list[dict], speaker: str = "assistant") -> str:
        """The conversation as the model's template writes it, up to where `speaker` ("assistant" or "user") begins."""
        from jinja2 import TemplateError

        render = self.tokenizer.apply_chat_template
        try:
            if speaker == "assistant":
                return render(messages, tokenize=False, add_generation_prompt=True)
            mark = "\u2063speaks here\u2063"
            return render([*messages, {"role": speaker, "content": mark}], tokenize=False).partition(mark)[0]
        except ValueError as error:
            raise InputError(f"{self.name}: has no chat template; use a chat model, or a completion prompt") from error
        except TemplateError as error:
            raise CallError(f"{self.name}: its chat template refuses the conversation: {error}") from error

    async def complete(self, request: Request) -> Completion:
        """Continue `request.prompt`. Raises CallError where it does not fit into the model's context."""
        ids = self.tokenizer(request.prompt, add_special_tokens=False).input_ids
        if len(ids) + request.max_tokens > self.context:
            raise CallError(f"{self.name}: {len(ids)} + {request.max_tokens} tokens do not fit into {self.context}")
        waiting = _Waiting(request, ids)
        with self._ready:
            self._queue.append(waiting)
            self._ready.notify()
        return await asyncio.wrap_future(waiting.future)

    def close(self) -> None:
        """End the thread, in the middle of a batch if need be: torch aborts a process that exits while it computes."""
        self._closed.set()
        with self._ready:
            self._ready.notify()
        self._thread.join(timeout=30)

    def _stay_open(self, *_: object) -> None:
        """Asked before each layer of the network: a whole batch may take seconds to pass it."""
        if self._closed.is_set():
            raise CallError("closed")

    def _serve(self) -> None:
        while not self._closed.is_set():
            with self._ready:
                self._ready.wait_for(lambda: self._queue or self._closed.is_set())
                self._ready.wait(0.02)  # let the conversations that the last batch woke ask their next question
                batch = self._next_batch()
            try:
                completions = self._generate(batch)
                for waiting, completion in zip(batch, completions, strict=True):
                    waiting.future.set_result(completion)
            except Exception as error:
                for waiting in batch:
                    if not waiting.future.done():
                        waiting.future.set_exception(CallError(f"{self.name}: {error}"))

    def _next_batch(self) -> list[_Waiting]:
        """The request that waited longest, and those most like it in token limit and prompt length."""
        if self._closed.is_set():
            return []
        oldest = self._queue[0]

        def unlike(waiting: _Waiting) -> tuple[int, int]:
            return (abs(waiting.request.max_tokens - oldest.request.max_tokens),
                    abs(len(waiting.ids) - len(oldest.ids)))

        batch = sorted(self._queue, key=unlike)[:BATCH]
        chosen = {id(waiting) for waiting in batch}
        self._queue = [waiting for waiting in self._queue if id(waiting) not in chosen]
        return [waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()]

    def _generate(self, batch: list[_Waiting]) -> list[Completion]:
        import torch
        from transformers import LogitsProcessorList, StoppingCriteriaList

        if not batch:
            return []
        requests = [waiting.request for waiting in batch]
        padded = self.tokenizer.pad({"input_ids": [waiting.ids for waiting in batch]}, return_tensors="pt")
        start = padded.input_ids.shape[1]
        stops = _Stops(self.tokenizer, requests, start)
        with torch.inference_mode():
            out = self.model.generate(
                **padded.to(self.model.device), max_new_tokens=max(request.max_tokens for request in requests),
                logits_processor=LogitsProcessorList([_Sampler(requests, start)]),
                stopping_criteria=StoppingCriteriaList([stops]), pad_token_id=self.tokenizer.pad_token_id)
        return [self._read(waiting, row[start:].tolist()) for waiting, row in zip(batch, out, strict=True)]

    def _read(self, waiting: _Waiting, ids: list[int]) -> Completion:
        request = waiting.request
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        ids = ids[:request.max_tokens]  # beyond it stands padding, which may look like an end
        length = next((index for index, token in enumerate(ids) if token in ends), None)
        finish = "length" if length is None else "stop"
        ids = ids[:length]
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        cut = min((text.find(stop) for stop in request.stop if stop in text), default=None)
        if cut is not None:
            text, finish = text[:cut], "stop"
        return Completion(text, finish, len(waiting.ids), len(ids))


class _Sampler:
    """Per-row temperature, top-p and seed by the Gumbel-max trick: afterwards the largest score is the sample."""

    def __init__(self, requests: list[Request], start: int):
        import torch

        self.requests, self.start = requests, start
        self.temperature = torch.tensor([[max(request.temperature, 1e-6)] for request in requests])
        self.top_p = torch.tensor([[request.top_p] for request in requests])
        self.generators = [torch.Generator().manual_seed(request.seed) for request in requests]

    def __call__(self, input_ids, scores):  # (rows, length), (rows, vocabulary) -> (rows, vocabulary)
        import torch

        top, index = scores.float().cpu().topk(min(TOP_K, scores.shape[-1]), dim=-1)  # (rows, k), best first
        scaled = top / self.temperature
        probability = scaled.softmax(-1)
        outside = probability.cumsum(-1) - probability >= self.top_p  # the best token always stays
        uniform = torch.stack([torch.rand(top.shape[-1], generator=generator) for generator in self.generators])
        noise = -(-uniform.clamp_min(1e-20).log()).log()
        greedy = torch.tensor([[request.temperature <= 0] for request in self.requests])
        noisy = torch.where(greedy, scaled, scaled + noise).masked_fill(outside, float("-inf"))
        chosen = index.gather(-1, noisy.argmax(-1, keepdim=True)).to(scores.device)
        return torch.full_like(scores, float("-inf")).scatter_(-1, chosen, 0.0)


class _Stops:
    """A row is done at its own token limit or when one of its stop strings appears."""

    def __init__(self, tokenizer, requests: list[Request], start: int):
        self.tokenizer, self.requests, self.start = tokenizer, requests, start

    def __call__(self, input_ids, scores, **_):  # (rows, length) -> (rows,) of bool
        import torch

        return torch.tensor([self._done(request, row[self.start:]) for request, row in
                             zip(self.requests, input_ids, strict=True)], device=input_ids.device)

    def _done(self, request: Request, ids) -> bool:
        if len(ids) >= request.max_tokens:
            return True
        return bool(request.stop) and any(stop in self.tokenizer.decode(ids) for stop in request.stop)
