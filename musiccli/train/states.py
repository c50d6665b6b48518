"""The states that a run saves to resume from, and the refusal to continue another run."""

import contextlib
import shutil
import warnings
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import orjson
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import distributed
from torch.distributed import checkpoint as distributed_checkpoint
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.utils._pytree import tree_leaves

from musiccli.core.cache_folder import make_private_folder
from musiccli.core.errors import InputError
from musiccli.core.partial_files import complete_folder, empty_folder
from musiccli.core.quiet_libraries import quiet_libraries
from musiccli.reward_model.trimmed_embedding import TrimmedEmbedding, fingerprint
from musiccli.train.accelerator import is_sharded
from musiccli.train.config import RENAMED_SETTINGS, RESUMABLE_SETTINGS, TrainConfig
from musiccli.train.sharding import trained_weights
from musiccli.train.trainer import Trainer

STATES_FOLDER = "checkpoints"  # in a run's folder
TENSORS_FOLDER = "tensors"  # in each state: weights and moments, by torch's distributed checkpoint
STATE_FILE = "state.json"  # in each state: its step, and which run it belongs to
COPIED_SHARE = 0.7  # of the available memory that a state's copy may take
FAILURES = (Exception, CheckpointException)  # torch's own is no Exception; accelerate raises many


class RunIdentity(TypedDict):
    """What makes a run the same run: its settings, and a hash of its pairs."""

    settings: dict[str, Any]
    data: str


class TrainingStates:
    """Saves and loads everything that a run needs to continue after a step.

    Each process writes its part, and any number of processes reads it. Sharded weights are saved in
    the background, from a copy; so are those of one GPU. DeepSpeed saves in its own format.

    Args:
        out: the run's folder.
        trainer: holds the network, the optimizer and the schedule.
        identity: of the run that is asked for.
        embedding: the trimmed embedding; its rows must be the same on resuming.
    """

    def __init__(
        self, out: Path, trainer: Trainer, identity: RunIdentity, embedding: TrimmedEmbedding
    ):
        self.out, self.trainer, self.identity = out, trainer, identity
        self.accelerator = trainer.accelerator
        self.folder = out / STATES_FOLDER
        self.vocabulary = fingerprint(embedding.tokens)
        sharded = is_sharded(self.accelerator)
        # The steps use the other group meanwhile, which on GPUs is one of nccl.
        self._group = distributed.new_group(backend="gloo") if sharded else None
        self._saved: Future[None] | None = None

    def save(self, step: int) -> None:
        """Save the state after a step, then remove older ones.

        A state is written beside its target and renamed when it is complete. In the background that
        is later; an error is then raised by the next call, or by `wait`.

        Raises:
            InputError: it cannot be written.
        """
        self.wait()
        target = self.folder / f"step-{step:06}"
        partial = begin_folder(target, self.accelerator)
        state = {
            "step": step,
            "vocabulary": self.vocabulary,
            "processes": self.accelerator.num_processes,
            "schedule": self.trainer.schedule.state_dict(),
            **self.identity,
        }
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            self.accelerator.save_state(str(partial))
        else:
            tensors = self._tensors()
            if is_sharded(self.accelerator) or self._copy_fits(tensors):
                self._saved = self._save_in_background(tensors, partial, target, state)
                return
            save_tensors(tensors, partial / TENSORS_FOLDER, self.folder)
        self.accelerator.wait_for_everyone()  # each process writes its part
        self._complete(partial, target, state)
        self.accelerator.wait_for_everyone()

    def wait(self) -> None:
        """Wait until the last state is saved. Raises InputError where it cannot be written."""
        if self._saved:
            saved, self._saved = self._saved, None
            try:
                saved.result()
            except FAILURES as error:
                raise _cannot_be_written(self.folder, error) from error

    def _copy_fits(self, tensors: dict[str, Any]) -> bool:
        """Whether one process on a GPU leaves room for a copy of its state in the machine's memory.

        Of several processes each holds all weights, and each would copy them.
        """
        accelerator = self.accelerator
        if accelerator.num_processes > 1 or accelerator.device.type != "cuda":
            return False
        copied = sum(leaf.nbytes for leaf in tree_leaves(tensors) if isinstance(leaf, torch.Tensor))
        return copied < COPIED_SHARE * psutil.virtual_memory().available

    def _save_in_background(
        self, tensors: dict[str, Any], partial: Path, target: Path, state: dict[str, Any]
    ) -> Future[None]:
        """Copy the tensors to memory, and let a thread write them. The result is done last."""
        done: Future[None] = Future()

        def finish(written: Future[Any]) -> None:
            try:
                written.result()  # in the main process: of all processes
                self._complete(partial, target, state)
                done.set_result(None)
            except FAILURES as error:
                done.set_exception(error)

        # quiet_libraries() would end before the thread does.
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # there is one process
        writing = distributed_checkpoint.async_save(
            tensors, checkpoint_id=partial / TENSORS_FOLDER, process_group=self._group
        )
        writing.add_done_callback(finish)
        return done

    def _complete(self, partial: Path, target: Path, state: dict[str, Any]) -> None:
        """In the main process, mark a state whose tensors are written as complete."""
        if not self.accelerator.is_main_process:
            return
        (partial / STATE_FILE).write_bytes(orjson.dumps(state))
        complete_folder(partial, target)
        remove_states(self.out, keep=target)

    def resume(self) -> tuple[int, list[str]]:
        """Load the last saved state.

        Returns:
            The step after which the run continues, 0 where no state was saved; and, in words, the
            settings that are different from now on.

        Raises:
            InputError: the state is damaged, or belongs to another run.
        """
        folders = _states(self.folder)
        if not folders:
            return 0, []
        folder = folders[-1]
        try:
            state = orjson.loads((folder / STATE_FILE).read_bytes())
        except (OSError, orjson.JSONDecodeError) as error:
            raise InputError(f"{folder}: is damaged ({error}); remove it to start again") from error
        changed = refuse_other_run(state, self.identity, self.out)
        if state.get("vocabulary") != self.vocabulary:
            raise InputError(
                f"{self.out}: was begun with other held-out pairs, or by another version, and "
                "cannot go on with these; name the same `held_out`, or another `out`"
            )
        try:
            self._load(folder, state)
        except FAILURES as error:
            raise _cannot_be_loaded(folder, error) from error
        return state["step"], changed

    def _load(self, folder: Path, state: dict[str, Any]) -> None:
        """Load the tensors of a state, and its schedule.

        Accelerate has written those of DeepSpeed, and of all runs before this format.
        """
        if not (folder / TENSORS_FOLDER).is_dir():
            if is_sharded(self.accelerator):
                raise InputError("an older version saved it, in a format that FSDP does not read")
            self.accelerator.load_state(str(folder))
            return
        trainer, tensors = self.trainer, self._tensors()
        if state["processes"] != self.accelerator.num_processes:
            del tensors["random"]  # each process had its own generator
        with quiet_libraries():
            distributed_checkpoint.load(tensors, checkpoint_id=folder / TENSORS_FOLDER)
        set_optimizer_state_dict(trainer.network, self._optimizer, tensors["optimizer"])
        trainer.schedule.load_state_dict(state["schedule"])
        for generator in tensors.get("random", {}).values():
            torch.set_rng_state(generator["cpu"])
            if "cuda" in generator:
                torch.cuda.set_rng_state(generator["cuda"], self.accelerator.device)

    def _tensors(self) -> dict[str, Any]:
        """The trained weights, the optimizer's moments, and this process's random generators."""
        weights = trained_weights(self.trainer.network)
        optimizer = get_optimizer_state_dict(self.trainer.network, self._optimizer)
        generators = {"cpu": torch.get_rng_state()}
        if self.accelerator.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.accelerator.device)
        return {
            "network": weights,
            "optimizer": optimizer,
            "random": {str(self.accelerator.process_index): generators},
        }

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        """PyTorch's optimizer, without accelerate's wrapping."""
        return getattr(self.trainer.optimizer, "optimizer", self.trainer.optimizer)


def begin_folder(target: Path, accelerator: Accelerator) -> Path:
    """An empty folder beside its target, for all processes, each of which must call this."""
    partial = target.with_name(f".{target.name}")
    if accelerator.is_main_process:
        make_private_folder(target.parent)
        empty_folder(partial)
    accelerator.wait_for_everyone()
    return partial


def save_tensors(tensors: dict[str, Any], folder: Path, named: Path) -> None:
    """Write this process's part. Raises InputError, which names the folder `named`."""
    try:
        with quiet_libraries():  # torch says that there is one process
            distributed_checkpoint.save(tensors, checkpoint_id=folder)
    except (OSError, CheckpointException) as error:
        raise _cannot_be_written(named, error) from error


def load_tensors(tensors: dict[str, Any], folder: Path) -> None:
    """Read what `save_tensors` wrote into tensors. Raises InputError where it is damaged."""
    try:
        with quiet_libraries():
            distributed_checkpoint.load(tensors, checkpoint_id=folder)
    except FAILURES as error:
        raise _cannot_be_loaded(folder, error) from error


def _cannot_be_written(folder: Path, error: BaseException) -> InputError:
    return InputError(f"{folder}: cannot be written ({_reason(error)})")


def _cannot_be_loaded(folder: Path, error: BaseException) -> InputError:
    return InputError(f"{folder}: cannot be loaded ({_reason(error)}); remove it to start again")


def _reason(error: BaseException) -> str:
    """What went wrong, in a line; of an error of several processes, the first one's.

    An error of the disk comes first: torch's file writer raises another one after it.
    """
    failures = getattr(error, "failures", None) or {0: (error, None)}
    cause, _ = failures[min(failures)]
    earlier: BaseException | None = cause
    while earlier and not isinstance(earlier, OSError):
        earlier = earlier.__context__
    return " ".join(str(earlier or cause).split())[:200] or type(cause).__name__


def remove_states(out: Path, keep: Path | None = None) -> None:
    """Remove a run's states except `keep`, and their folder if nothing else is in it."""
    folder = out / STATES_FOLDER
    for state in {*_states(folder), *_states(folder, ".step-")} - {keep}:
        shutil.rmtree(state, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _states(folder: Path, prefix: str = "step-") -> list[Path]:
    """The states in a folder, oldest first. A copy that somebody named otherwise is none."""
    return sorted(
        path for path in folder.glob(f"{prefix}*") if path.name.removeprefix(prefix).isdecimal()
    )


def refuse_other_run(notes: dict[str, Any], identity: RunIdentity, out: Path) -> list[str]:
    """Raise InputError where the run in a folder is not the one that is asked for.

    Args:
        notes: of a state or of a finished checkpoint.
        identity: of the run that is asked for.
        out: the folder.

    Returns:
        What differs in RESUMABLE_SETTINGS only, in words.
    """
    # A setting that the notes do not name is newer than they are, and had its default.
    recorded = asdict(TrainConfig())
    for name, value in notes.get("settings", {}).items():
        recorded[RENAMED_SETTINGS.get(name, name)] = value
    changes = {
        name: f"{name} was {recorded[name]!r}, is {value!r}"
        for name, value in identity["settings"].items()
        if recorded[name] != value
    }
    differences = [text for name, text in changes.items() if name not in RESUMABLE_SETTINGS]
    if notes.get("data") != identity["data"]:
        differences.append("the pairs are others")
    if differences:
        raise InputError(
            f"{out}: holds another run ({'; '.join(differences)}); name another `out` or remove it"
        )
    return [text for name, text in changes.items() if name in RESUMABLE_SETTINGS]
