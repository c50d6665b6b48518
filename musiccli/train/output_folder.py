"""The folder of a run: claimed before the work starts, and given the finished checkpoint."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from musiccli.core.errors import InputError
from musiccli.core.partial_files import empty_folder, locked_folder
from musiccli.reward_model import NOTES, checkpoint
from musiccli.reward_model.checkpoint import RewardModel
from musiccli.train.refusals import BEGUN_FILE, refuse_other_contents
from musiccli.train.states import remove_states


@contextlib.contextmanager
def claim_folder(out: Path) -> Iterator[None]:
    """Make the folder, and keep other runs from writing there within this context.

    Raises InputError where it holds something else, cannot be written or is another run's: better
    now than after hours of work. A folder that was made for a run which wrote nothing is removed.
    """
    existed = out.exists()
    _make_folder(out)
    try:
        with locked_folder(out):
            yield
    finally:
        if not existed:
            with contextlib.suppress(OSError):  # something is in it
                out.rmdir()


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        refuse_other_contents(out)
        with tempfile.TemporaryFile(dir=out):
            pass
    except FileExistsError:
        raise InputError(f"{out}: is a file; `out` names a folder") from None
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}") from error


def mark_begun(out: Path) -> None:
    """Mark the folder as that of a run, so that the run may continue in it."""
    (out / BEGUN_FILE).touch()


def write_checkpoint(model: RewardModel, out: Path, notes: dict[str, Any]) -> None:
    """Write the finished reward model to the top of the folder, and remove the saved states.

    The notes are moved there last: a folder that has them holds a complete checkpoint.
    """
    model.notes |= notes
    partial = empty_folder(out / ".partial")
    checkpoint.save(model, partial)
    for file in sorted(partial.iterdir(), key=lambda file: file.name == NOTES):
        target = out / file.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(file, target)
    partial.rmdir()
    (out / BEGUN_FILE).unlink(missing_ok=True)
    remove_states(out)
