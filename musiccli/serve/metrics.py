"""What a server counts, as Prometheus reads it.

The text format is Prometheus's exposition format 0.0.4.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from musiccli.serve.batcher import Batcher

PREFIX = "music_serve_"
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass
class Metrics:
    """Counts of requests, and how long their replies took."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)  # by path and status
    failed_items: int = 0  # conversations that could not be scored
    seconds: float = 0.0
    by_duration: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    started: float = field(default_factory=time.time)

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count a request that was replied to."""
        self.requests[path, status] += 1
        self.seconds += seconds
        self.by_duration[bisect_left(BOUNDS, seconds)] += 1

    def text(self, batchers: Mapping[str, Batcher], in_flight: int, processes: int) -> str:
        """All counts, and those of each model's batcher.

        Args:
            batchers: by model.
            in_flight: requests that wait for their reply.
            processes: how many compute now.
        """
        return "\n".join([*self._lines(batchers, in_flight, processes), ""])

    def _lines(
        self, batchers: Mapping[str, Batcher], in_flight: int, processes: int
    ) -> Iterator[str]:
        yield from _head("requests_total", "counter", "Requests by path and HTTP status.")
        for (path, status), count in sorted(self.requests.items()):
            labels = f'path="{path}",status="{status}"'
            yield f"{PREFIX}requests_total{{{labels}}} {count}"
        yield from _head("requests_in_flight", "gauge", "Requests that wait for their reply.")
        yield f"{PREFIX}requests_in_flight {in_flight}"
        yield from _head("processes", "gauge", "Processes that compute.")
        yield f"{PREFIX}processes {processes}"
        yield from _head("failed_items_total", "counter", "Conversations that were not scored.")
        yield f"{PREFIX}failed_items_total {self.failed_items}"
        yield from _head("start_time_seconds", "gauge", "When the server started, Unix time.")
        yield f"{PREFIX}start_time_seconds {self.started:.3f}"
        yield from self._histogram()
        for name, kind, help_text, value in BATCHER_METRICS:
            yield from _head(name, kind, help_text)
            for model, batcher in batchers.items():
                yield f'{PREFIX}{name}{{model="{_escaped(model)}"}} {value(batcher)}'

    def _histogram(self) -> Iterator[str]:
        name = "request_duration_seconds"
        yield from _head(name, "histogram", "Seconds from a request's first byte to its reply.")
        total = 0
        for bound, count in zip((*BOUNDS, "+Inf"), self.by_duration, strict=True):
            total += count
            yield f'{PREFIX}{name}_bucket{{le="{bound}"}} {total}'
        yield f"{PREFIX}{name}_sum {self.seconds:.6f}"
        yield f"{PREFIX}{name}_count {total}"


BATCHER_METRICS = (
    (
        "conversations_total",
        "counter",
        "Conversations that were computed.",
        lambda batcher: batcher.stats.conversations,
    ),
    ("tokens_total", "counter", "Tokens of these.", lambda batcher: batcher.stats.tokens),
    ("passes_total", "counter", "Forward passes.", lambda batcher: batcher.stats.passes),
    (
        "compute_seconds_total",
        "counter",
        "Seconds in forward passes.",
        lambda batcher: f"{batcher.stats.seconds:.6f}",
    ),
    (
        "abandoned_total",
        "counter",
        "Conversations that were not computed, since their client left or gave up.",
        lambda batcher: batcher.stats.abandoned,
    ),
    (
        "waiting_tokens",
        "gauge",
        "Tokens that wait or are being computed.",
        lambda batcher: batcher.waiting_tokens,
    ),
)


def _head(name: str, kind: str, help_text: str) -> Iterator[str]:
    yield f"# HELP {PREFIX}{name} {help_text}"
    yield f"# TYPE {PREFIX}{name} {kind}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
