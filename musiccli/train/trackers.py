"""Accelerate's trackers: TensorBoard, Weights & Biases and others, beside the log."""

from collections.abc import Sequence

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from musiccli.core.errors import InputError

PROJECT = "music"
PACKAGES = {"comet_ml": "comet-ml"}  # to install, where it is not the tracker's name


def check(names: Sequence[str]) -> list[str]:
    """Trackers that accelerate knows and whose packages are here. Raises InputError for any other."""
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise InputError(
                f"--tracker {name}: there is {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}"
            )
        if name not in [str(one) for one in get_available_trackers()]:
            raise InputError(
                f"--tracker {name}: its package is not installed; pip install {PACKAGES.get(name, name)}"
            )
    return list(dict.fromkeys(names))


def start(accelerator: Accelerator, settings: dict, name: str) -> None:
    """Begin a run called `name` in each tracker. Raises InputError where one cannot (no key, no network)."""
    if not accelerator.log_with:
        return
    given = {field: value for field, value in settings.items() if value is not None}
    try:
        accelerator.init_trackers(PROJECT, given, {"wandb": {"name": name}})
    except Exception as error:  # each tracker has errors of its own
        raise InputError(
            f"--tracker: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error


def log(accelerator: Accelerator, measured: dict) -> None:
    """One step's measures; what is broken down by kind comes as `eval_by_turns/2/accuracy`."""
    if accelerator.trackers:
        accelerator.log(dict(_flat(measured)), step=measured["step"])


def _flat(measured: dict, before: str = ""):
    for name, value in measured.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}/")
        elif value is not None and name != "step":
            yield before + name, value
