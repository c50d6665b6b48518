"""The states that a run saves to resume from, and the refusal to continue another run."""

import contextlib
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import orjson
from accelerate import Accelerator

from musiccli.core.cache_folder import PRIVATE_FOLDER, make_private_folder
from musiccli.core.errors import InputError
from musiccli.core.partial_files import empty_folder
from musiccli.reward_model.trimmed_embedding import TrimmedEmbedding, fingerprint
from musiccli.train.config import RENAMED_SETTINGS, RESUMABLE_SETTINGS, TrainConfig

STATES_FOLDER = "checkpoints"  # in a run's folder
STATE_FILE = "state.json"  # in each state: its step, and which run it belongs to


class RunIdentity(TypedDict):
    """What makes a run the same run: its settings, and a hash of its pairs."""

    settings: dict[str, Any]
    data: str


class TrainingStates:
    """Saves and loads everything that a run needs to continue after a step.

    Args:
        out: the run's folder.
        accelerator: holds the prepared network, optimizer and schedule.
        identity: of the run that is asked for.
        embedding: the trimmed embedding; its rows must be the same on resuming.
    """

    def __init__(
        self,
        out: Path,
        accelerator: Accelerator,
        identity: RunIdentity,
        embedding: TrimmedEmbedding,
    ):
        self.out, self.accelerator, self.identity = out, accelerator, identity
        self.folder = out / STATES_FOLDER
        self.vocabulary = fingerprint(embedding.tokens)

    def save(self, step: int) -> None:
        """Save the state after a step, then remove older ones.

        A state is written beside its target and renamed when it is complete.
        """
        target = self.folder / f"step-{step:06}"
        partial = target.with_name(f".{target.name}")
        if self.accelerator.is_main_process:
            make_private_folder(self.folder)
            empty_folder(partial)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()  # each process writes its part
        if self.accelerator.is_main_process:
            state = {"step": step, "vocabulary": self.vocabulary, **self.identity}
            (partial / STATE_FILE).write_bytes(orjson.dumps(state))
            os.rename(partial, target)
            target.chmod(PRIVATE_FOLDER)  # it is complete, and no longer marked
            remove_states(self.out, keep=target)
        self.accelerator.wait_for_everyone()

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
            self.accelerator.load_state(str(folder))
        except Exception as error:  # torch and accelerate raise errors of many kinds
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{folder}: cannot be loaded ({reason}); remove it to start again"
            ) from error
        return state["step"], changed


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
