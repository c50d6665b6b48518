"""The settings that benchmarks share, and their defaults."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BenchConfig:
    """How a benchmark computes its figures.

    Attributes:
        models: names of the models to measure; none: every model that scored the records.
        confidence: how often an interval should hold the true value.
        bootstrap: how many bootstrap samples an interval is made from.
        seed: the bootstrap samples follow from it.
    """

    models: tuple[str, ...] = ()
    confidence: float = 0.95
    bootstrap: int = 10_000
    seed: int = 0
