"""An early stop by the loss of held-out pairs, and the weights at which that loss was lowest.

The log holds all that the decision follows from, so a run that goes on reads it from there. The
best weights lie beside the saved states, written by torch's distributed checkpoint: each process
writes its part.
"""

import math
import shutil
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from musiccli.core.errors import InputError
from musiccli.core.partial_files import complete_folder
from musiccli.train.accelerator import process_group
from musiccli.train.metrics import Metrics
from musiccli.train.sharding import trained_weights
from musiccli.train.states import (
    STATES_FOLDER,
    begin_folder,
    explain_read_errors,
    explain_write_errors,
    load_tensors,
    remove_states,
    save_tensors,
)

BEST = "best-"  # a folder of best weights is named by their step


class EarlyStopping:
    """Watches a loss, and keeps the weights at which it was lowest.

    Args:
        patience: how many measurements without a lower loss stop the run.
        metric: the name of the loss in a step's metrics.
        out: the run's folder.
        accelerator: of the run.
        network: as accelerate has prepared it.

    Attributes:
        out: the run's folder.
        best: the metrics of the step with the lowest loss so far; empty before the first.
    """

    def __init__(
        self, patience: int, metric: str, out: Path, accelerator: Accelerator, network: nn.Module
    ):
        self.metric, self.best = metric, Metrics()
        self.out, self._patience, self._folder = out, patience, out / STATES_FOLDER
        self._accelerator, self._network = accelerator, network
        self._since_best = 0
        # The best steps when the last two states were saved; the second may still be written.
        self._resumable: deque[int] = deque(maxlen=2)

    @property
    def stopped(self) -> bool:
        """Whether the run should take no further step."""
        return self._since_best >= self._patience

    @property
    def best_step(self) -> int:
        """The step with the lowest loss so far, 0 before the first."""
        return int(self.best.get("step", 0))

    def resume(self, steps: Iterable[Metrics]) -> None:
        """Continue from the log of the steps so far.

        Raises:
            InputError: the best weights are not there any more.
        """
        for metrics in steps:
            self._add(metrics)
        if self.best and not self._path(self.best_step).is_dir():
            raise InputError(
                f"{self._path(self.best_step)}: the best weights so far are gone; {self._remedy}"
            )
        self.state_saved()

    def add(self, metrics: Metrics) -> None:
        """Take the metrics of a step, and keep its weights where they are the best so far."""
        if self._add(metrics):
            self._save()
            self._remove_others()

    def state_saved(self) -> None:
        """After a state was saved: weights that no run can need any more are removed."""
        self._resumable.append(self.best_step)
        self._remove_others()

    def restore(self) -> None:
        """Put the best weights into the network. Raises InputError where they cannot be read."""
        folder = self._path(self.best_step)
        with explain_read_errors(folder, self._remedy):
            load_tensors(trained_weights(self._network), folder)

    def remove(self) -> None:
        """Remove all weights that were kept, once the checkpoint is written."""
        self.best = Metrics()
        self._resumable.clear()
        self._remove_others()
        remove_states(self.out)

    def describe(self, last_step: int, steps: int) -> dict[str, Any]:
        """For the notes of the checkpoint: where the run stopped, and whose weights are kept."""
        return {
            "metric": self.metric,
            "best_step": self.best_step,
            "last_step": last_step,
            "stopped": last_step < steps,
        }

    def _add(self, metrics: Metrics) -> bool:
        """Whether a step is the best so far."""
        if self.metric not in metrics:
            return False
        is_best = not self.best or self._loss(metrics) < self._loss(self.best)
        self.best = metrics if is_best else self.best
        self._since_best = 0 if is_best else self._since_best + 1
        return is_best

    def _loss(self, metrics: Metrics) -> float:
        """The loss in a step's metrics; one that is no number is the worst."""
        loss: float | None = metrics[self.metric]  # None: read from a log, which has no NaN
        return math.inf if loss is None or math.isnan(loss) else loss

    def _save(self) -> None:
        """Write the weights. Raises InputError where they cannot be written."""
        target = self._path(self.best_step)
        processes = process_group(self._accelerator)
        with explain_write_errors(self._folder):
            partial = begin_folder(target, self._accelerator)
            save_tensors(trained_weights(self._network), partial)
            processes.wait()
            if self._accelerator.is_main_process:
                shutil.rmtree(target, ignore_errors=True)  # of a run that was stopped behind it
                complete_folder(partial, target)
            processes.wait()

    def _remove_others(self) -> None:
        if not self._accelerator.is_main_process:
            return
        kept = {self._path(step) for step in (self.best_step, *self._resumable)}
        for folder in (*self._folder.glob(f"{BEST}*"), *self._folder.glob(f".{BEST}*")):
            if folder not in kept and folder.name.lstrip(".").removeprefix(BEST).isdecimal():
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def _remedy(self) -> str:
        return f"remove {self.out} to start again"

    def _path(self, step: int) -> Path:
        return self._folder / f"{BEST}{step:06}"


def refuse_deepspeed(accelerator: Accelerator) -> None:
    """Raise InputError under DeepSpeed, whose weights are not read in parts."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise InputError("`patience`: the best weights cannot be kept under DeepSpeed; use FSDP")
