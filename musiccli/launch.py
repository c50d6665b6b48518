"""Start this same command again in several processes, through accelerate's launcher; or notice that it has been done."""

import contextlib
import os
import subprocess
import sys

from musiccli import jsonl


def launched() -> bool:
    """Whether a launcher (ours, `accelerate launch`, torchrun or Slurm through one of them) started this process."""
    return "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def relaunch(files: list[str], *, processes: int | None = None, config: str | None = None) -> int:
    """Run this process's command line under `accelerate launch`; returns the exit status.

    Standard input, if it is among `files`, is kept in a file first: every process reads all records.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    if config:
        command += ["--config_file", config]
    else:
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", *_hardware(processes or 1)]
    if processes:
        command += ["--num_processes", str(processes)]
    with jsonl.standard_input_as_file() if "-" in (files or ["-"]) else contextlib.nullcontext("-") as stdin:
        arguments = [stdin if word == "-" else word for word in sys.argv[1:]]
        arguments += [] if files else [stdin]
        environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // (processes or 1)))}
        return subprocess.run([*command, "-m", "musiccli", *arguments], env=environment).returncode


def _hardware(processes: int) -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return ["--cpu"]
    return ["--multi_gpu"] if processes > 1 else []
