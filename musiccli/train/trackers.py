"""Accelerate's experiment trackers, such as TensorBoard and Weights & Biases, beside the log."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from musiccli.core.errors import InputError
from musiccli.train.metrics import Metrics

PROJECT = "music"
PACKAGES = {"comet_ml": "comet-ml"}  # to install, where it is not the tracker's name


def check_trackers(trackers: Sequence[str]) -> list[str]:
    """The names without repetition. Raises InputError for one that is unknown or not installed."""
    for name in trackers:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise InputError(
                f"`trackers` {name}: there is {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}"
            )
        if name not in map(str, get_available_trackers()):
            package = PACKAGES.get(name, name)
            raise InputError(
                f"`trackers` {name}: its package is not installed; pip install {package}"
            )
    return list(dict.fromkeys(trackers))


def start_trackers(accelerator: Accelerator, settings: Mapping[str, Any], run: str) -> None:
    """Begin a run in each tracker. Raises InputError where one cannot (no key, no network).

    Args:
        accelerator: knows the trackers.
        settings: of the run; those that are None are left out.
        run: the run's name.
    """
    if not accelerator.log_with:
        return
    settings = {name: value for name, value in settings.items() if value is not None}
    try:
        accelerator.init_trackers(PROJECT, settings, {"wandb": {"name": run}})
    except Exception as error:  # the trackers' errors have no common base
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"`trackers`: {type(error).__name__}: {reason}") from error


def track_metrics(accelerator: Accelerator, metrics: Metrics) -> None:
    """Log one step's metrics; a grouped one is named like `eval_by_turns/2/accuracy`."""
    if accelerator.trackers:
        accelerator.log(dict(_flat(metrics)), step=metrics["step"])


def _flat(metrics: Metrics, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Names and values, groups flattened; without the step and what is None."""
    for name, value in metrics.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        elif value is not None and name != "step":
            yield prefix + name, value
