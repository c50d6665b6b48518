"""The states that a run saves to resume from, and the refusal to continue another run."""

import contextlib
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import orjson
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed import checkpoint as distributed_checkpoint
from torch.distributed.checkpoint import (
    CheckpointException,
    FileSystemReader,
    FileSystemWriter,
)
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.utils._pytree import tree_leaves, tree_map_only

from musiccli.core.cache_folder import make_private_folder
from musiccli.core.errors import InputError
from musiccli.core.partial_files import complete_folder, empty_folder
from musiccli.core.processes import gloo_group
from musiccli.core.quiet_libraries import quiet_libraries
from musiccli.reward_model.out_of_memory import is_out_of_memory
from musiccli.reward_model.trimmed_embedding import TrimmedEmbedding, fingerprint
from musiccli.train.accelerator import is_sharded, process_group
from musiccli.train.config import RENAMED_SETTINGS, RESUMABLE_SETTINGS, TrainConfig
from musiccli.train.memory import available_memory
from musiccli.train.sharding import local_part, trained_weights
from musiccli.train.trainer import Trainer

STATES_FOLDER = "checkpoints"  # in a run's folder
TENSORS_FOLDER = "tensors"  # in each state: weights and moments, by torch's distributed checkpoint
STATE_FILE = "state.json"  # in each state: its step, and which run it belongs to
BACKGROUND = "states"  # the processes' connection for writing them while steps are taken
COPIED_SHARE = 0.7  # of the available memory that a state's copy may take


class RunIdentity(TypedDict):
    """What makes a run the same run: its settings, and a hash of its pairs."""

    settings: dict[str, Any]
    data: str


class TrainingStates:
    """Saves and loads everything that a run needs to continue after a step.

    Each process writes its part, and any number of processes reads it. Sharded weights are saved in
    the background, from a copy, where memory has room for one; so are those of one GPU. DeepSpeed
    saves in its own format.

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
        self._deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self._processes = process_group(self.accelerator)
        self._writer = ThreadPoolExecutor(1)
        gloo_group(BACKGROUND)  # connects the processes' threads
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
        state = {
            "step": step,
            "vocabulary": self.vocabulary,
            "processes": self.accelerator.num_processes,
            "deepspeed": self._deepspeed,
            "schedule": self.trainer.schedule.state_dict(),
            **self.identity,
        }
        with explain_write_errors(self.folder):
            partial = begin_folder(target, self.accelerator)
            if self._deepspeed:
                self.accelerator.save_state(str(partial))
            else:
                tensors = self._tensors()
                if self._copy_fits(tensors):
                    copy = tree_map_only(
                        torch.Tensor, lambda tensor: tensor.to("cpu", copy=True), tensors
                    )
                    self._saved = self._writer.submit(
                        self._write, copy, partial, target, state, gloo_group(BACKGROUND)
                    )
                    return
                save_tensors(tensors, partial / TENSORS_FOLDER)
            self._processes.wait()  # each writes its part
            self._complete(partial, target, state)
            self._processes.wait()

    def wait(self) -> None:
        """Wait until the last state is saved. Raises InputError where it cannot be written."""
        if self._saved:
            saved, self._saved = self._saved, None
            with explain_write_errors(self.folder):
                saved.result()

    def _copy_fits(self, tensors: dict[str, Any]) -> bool:
        """Whether the machine's memory has room for a copy of what its processes hold of a state.

        Of several processes on GPUs that are not sharded each holds all weights, and each would
        copy them. All ranks must call this, and decide alike.
        """
        accelerator = self.accelerator
        one_gpu = accelerator.num_processes == 1 and accelerator.device.type == "cuda"
        if not is_sharded(accelerator) and not one_gpu:
            return False
        leaves = [leaf for leaf in tree_leaves(tensors) if isinstance(leaf, torch.Tensor)]
        copied = sum(local_part(leaf).nbytes for leaf in leaves)
        fits = copied < COPIED_SHARE * available_memory(torch.device("cpu"))
        return all(self._processes.gather([fits]))

    def _write(
        self,
        tensors: dict[str, Any],
        partial: Path,
        target: Path,
        state: dict[str, Any],
        group: Any,
    ) -> None:
        """In a thread: write a copy of the tensors, and complete the state."""
        # quiet_libraries() is for one thread alone.
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # there is one process
        # To copy ahead, torch would use the GPU of this thread: the first one, in every process.
        writer = FileSystemWriter(partial / TENSORS_FOLDER, per_thread_copy_ahead=0)
        distributed_checkpoint.save(tensors, storage_writer=writer, process_group=group)
        self._complete(partial, target, state)

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
            InputError: the state is damaged, belongs to another run, or cannot go on in this way.
        """
        folders = _states(self.folder)
        if not folders:
            return 0, []
        folder = folders[-1]
        goal = "go on from the state before it" if len(folders) > 1 else "start again"
        remedy = f"remove it to {goal}"
        with explain_read_errors(folder, remedy):
            state = _read_state(folder / STATE_FILE)
        changed = refuse_other_run(state, self.identity, self.out)
        if state.get("vocabulary") != self.vocabulary:
            raise InputError(
                f"{self.out}: was begun with other held-out pairs, or by another version, and "
                "cannot go on with these; name the same `held_out`, or another `out`"
            )
        self._refuse_other_launch(folder, state, remedy)
        with explain_read_errors(folder, remedy):
            if self._deepspeed:
                self.accelerator.load_state(str(folder))
            else:
                self._load(folder / TENSORS_FOLDER, state)
        return state["step"], changed

    def _refuse_other_launch(self, folder: Path, state: dict[str, Any], remedy: str) -> None:
        """Raise InputError where DeepSpeed would have to read another state than its own."""
        processes = state["processes"]
        if state.get("deepspeed", False) != self._deepspeed:
            how = "without" if self._deepspeed else "under"
            raise InputError(
                f"{folder}: was saved {how} DeepSpeed; start the run {how} it, too, or {remedy}"
            )
        if self._deepspeed and processes != self.accelerator.num_processes:
            raise InputError(
                f"{folder}: was saved by {processes} processes, and DeepSpeed needs as many again; "
                f"start {processes}, or {remedy}"
            )

    def _load(self, folder: Path, state: dict[str, Any]) -> None:
        """Load the tensors of a state, and its schedule."""
        trainer, tensors = self.trainer, self._tensors()
        if state["processes"] != self.accelerator.num_processes:
            del tensors["random"]  # each process had its own generators
        else:
            saved = FileSystemReader(folder).read_metadata().state_dict_metadata
            for rank, generators in tensors["random"].items():
                for name in list(generators):
                    if f"random.{rank}.{name}" not in saved:  # a GPU's, in a state of a CPU
                        del generators[name]
        load_tensors(tensors, folder)
        set_optimizer_state_dict(trainer.network, self._optimizer, tensors["optimizer"])
        trainer.schedule.load_state_dict(state["schedule"])
        for generators in tensors.get("random", {}).values():
            torch.set_rng_state(generators["cpu"])
            if "cuda" in generators:
                torch.cuda.set_rng_state(generators["cuda"], self.accelerator.device)

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


def _read_state(path: Path) -> dict[str, Any]:
    """What was noted with a state. Raises OSError or ValueError where it is missing or damaged."""
    state = orjson.loads(path.read_bytes())
    if not isinstance(state, dict) or not {"step", "processes", "schedule"} <= state.keys():
        raise ValueError(f"{path.name} is not that of a state")
    return state


def begin_folder(target: Path, accelerator: Accelerator) -> Path:
    """An empty folder beside its target, for all processes, each of which must call this."""
    partial = target.with_name(f".{target.name}")
    if accelerator.is_main_process:
        make_private_folder(target.parent)
        empty_folder(partial)
    process_group(accelerator).wait()
    return partial


def save_tensors(tensors: dict[str, Any], folder: Path) -> None:
    """Write this process's part."""
    with quiet_libraries():  # torch says that there is one process
        distributed_checkpoint.save(tensors, checkpoint_id=folder, process_group=gloo_group())


def load_tensors(tensors: dict[str, Any], folder: Path) -> None:
    """Read what `save_tensors` wrote into tensors."""
    with quiet_libraries():
        distributed_checkpoint.load(tensors, checkpoint_id=folder, process_group=gloo_group())


@contextlib.contextmanager
def explain_write_errors(folder: Path) -> Iterator[None]:
    """Raise InputError where something in a folder cannot be written."""
    try:
        yield
    except (OSError, CheckpointException) as error:
        cause = _cause(error)
        if is_out_of_memory(cause):
            raise cause from error
        raise InputError(f"{folder}: cannot be written ({_in_a_line(cause)})") from error


@contextlib.contextmanager
def explain_read_errors(folder: Path, remedy: str) -> Iterator[None]:
    """Raise InputError where a folder cannot be read; `remedy` says what to do if it is damaged.

    Lack of memory and lost connections are no damage. They are raised as they are.
    """
    try:
        yield
    except (Exception, CheckpointException) as error:  # torch's own is no Exception
        cause = _cause(error)
        if isinstance(error, RuntimeError):
            raise
        if is_out_of_memory(cause):
            raise cause from error
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
            raise InputError(f"{folder}: cannot be read ({_in_a_line(cause)})") from error
        raise InputError(f"{folder}: cannot be loaded ({_in_a_line(cause)}); {remedy}") from error


def _cause(error: BaseException) -> BaseException:
    """What went wrong; of an error of several processes, the first one's.

    An error of the disk comes first: torch's file writer raises another one after it.
    """
    failures = getattr(error, "failures", None) or {0: (error, None)}
    cause: BaseException = failures[min(failures)][0]
    earlier: BaseException | None = cause
    while earlier and not isinstance(earlier, OSError):
        earlier = earlier.__context__
    return earlier or cause


def _in_a_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


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
