"""Continuous batching by openvino-genai, which reads a GGUF file as it is.

Its 4-bit weights are a sixth of those that PyTorch reads for each token. It schedules the rows, and
keeps what it has read, by itself. Its answers differ from PyTorch's.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from musiccli.core.errors import InputError
from musiccli.llm.local.batch import TOP_K, Request, Row

CACHE_GB = 2  # of keys and values, 43,000 tokens of SmolLM2-135M; allocated as they are needed
STEP_TOKENS = 512  # tokens of prompts and answers that are read in one step
# Everything but the weights in 32 bits. Its default, 8 bits for keys, values and activations, takes
# 0.6 of the work, and then an answer depends on which other answers are under way: of 24, two were
# others when they were asked for again.
PRECISION = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}


class OpenVinoBatch:
    """The rows under way in one model; what `Batch` is for a network of PyTorch.

    Args:
        gguf_file: the model.
        max_rows: most rows that are under way at once.

    Attributes:
        end_tokens: tokens that end an answer.

    Raises:
        InputError: OpenVINO cannot load the model.
    """

    def __init__(self, gguf_file: Path, max_rows: int):
        # Without this, importing openvino tells Google Analytics of it.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        try:
            import openvino
            import openvino_genai

            scheduler = openvino_genai.SchedulerConfig()
            scheduler.cache_size, scheduler.enable_prefix_caching = CACHE_GB, True
            scheduler.max_num_seqs, scheduler.max_num_batched_tokens = max_rows, STEP_TOKENS
            # A thread that is bound to a core waits there for whatever else runs on it.
            settings = PRECISION | {
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "ENABLE_CPU_PINNING": False,
            }
            self._pipeline = openvino_genai.ContinuousBatchingPipeline(
                str(gguf_file), scheduler, "CPU", settings
            )
        except (ImportError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"OpenVINO fails: {reason}; with MUSIC_PLAIN_TORCH=1 PyTorch does the work"
            ) from error
        self._genai, self._tensor = openvino_genai, openvino.Tensor
        self.end_tokens: set[int] = set(self._pipeline.get_config().stop_token_ids)
        self._handles: dict[Row, Any] = {}
        self._requests = 0

    @property
    def rows(self) -> list[Row]:
        """The rows under way."""
        return [*self._handles]

    def clear(self) -> None:
        """Drop all rows."""
        for handle in self._handles.values():
            handle.cancel()
        self._handles = {}

    def join(self, rows: list[Row]) -> list[Row]:
        """Take new rows; none is finished before the next step."""
        for row in rows:
            self._requests += 1
            prompt = self._tensor(np.array([row.ids], dtype=np.int64))
            self._handles[row] = self._pipeline.add_request(
                self._requests, prompt, self._generation_config(row.request)
            )
        return []

    def step(self) -> list[Row]:
        """Read prompts, and write a token in every row that has been read; returns the finished."""
        self._pipeline.step()
        running = self._genai.GenerationStatus.RUNNING
        finished = [row for row, handle in self._handles.items() if handle.get_status() != running]
        for row in finished:
            handle = self._handles.pop(row)
            if handle.get_status() != self._genai.GenerationStatus.FINISHED:
                raise RuntimeError(f"OpenVINO dropped a request of {len(row.ids)} tokens")
            [output] = handle.read_all()
            row.written = [*output.generated_ids]
        return finished

    def _generation_config(self, request: Request) -> Any:
        config = self._genai.GenerationConfig()
        config.apply_chat_template = False
        config.max_new_tokens = request.max_tokens
        config.stop_token_ids = self.end_tokens
        config.stop_strings = set(request.stop)
        config.include_stop_str_in_output = True  # the engine cuts it off, as it does for PyTorch
        config.do_sample = request.temperature > 0 and request.top_p > 0
        if config.do_sample:
            config.temperature, config.top_p = request.temperature, request.top_p
            config.top_k, config.rng_seed = TOP_K, request.seed
        return config
