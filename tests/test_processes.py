"""Processes that run one command together: each waits for one that works long, not for one that ended."""

import subprocess
import time

import preloaded
import pytest
from build import read, write
from console import environment, music, torchrun
from sharded import SHARDED
from toys import backbone, pairs

from musiccli.train.states import TrainingStates

# They take one that is a second behind in a step for one that hangs.
GROUP = """
import os, sys, time
from datetime import timedelta
from torch import distributed
from musiccli.core.processes import process_group

rank = int(os.environ["RANK"])
distributed.init_process_group(
    "gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2, timeout=timedelta(seconds=1)
)
group = process_group()
"""
LATE = """
time.sleep(3 * (rank == 0))
print(group.gather([rank, "a"]))
time.sleep(3 * (rank == 1))
print(group.gather_to_first({"rank": rank}))
time.sleep(3 * (rank == 1))
group.wait()
"""
DEAD = """
if rank == 1:
    os._exit(0)
try:
    group.wait()
except RuntimeError:
    print("noticed", flush=True)
    os._exit(0)
"""


HANGING = """
import json
from accelerate import Accelerator
from musiccli.reward_model import checkpoint
from musiccli.train.config import TrainConfig
from musiccli.train.tokenized_pairs import tokenize_pairs
from musiccli.train.trainer import Trainer

config = TrainConfig(batch=2, steps=1, budget=64)
model = checkpoint.create(sys.argv[2])
pairs = tokenize_pairs([json.loads(line) for line in open(sys.argv[3])], model, 2048)
group.wait()
trainer = Trainer(model, pairs, config, Accelerator(cpu=True))
rewards, calls = trainer._rewards, []
def hanging(*arguments):
    calls.append(arguments)
    time.sleep(HANGS * (rank == 1 and len(calls) == CALL))
    return rewards(*arguments)
trainer._rewards = hanging
try:
    trainer.evaluate({"": pairs})
    print("measured", len(calls))
except RuntimeError:
    print("noticed", flush=True)
    os._exit(0)
"""
# Launched with one GPU in sight of both, then each with another.
CARDS = """
from types import SimpleNamespace
import torch
from musiccli.core.errors import InputError
from musiccli.train.accelerator import refuse_shared_gpus

def refused(gpu):
    run = SimpleNamespace(
        num_processes=2, process_index=rank, local_process_index=rank, device=torch.device(gpu)
    )
    try:
        refuse_shared_gpus(run)
    except InputError as error:
        print(error)

refused("cuda:0")
refused(f"cuda:{rank}")
refused("cpu")
os.environ["CUDA_VISIBLE_DEVICES"] = str(rank)
refused("cuda:0")
"""


def two(program, tmp_path, *arguments):
    """What each of two processes writes to standard output."""
    line = [preloaded.python(), "-c", GROUP + program, str(tmp_path / "store"), *arguments]
    started = []
    for rank in ("0", "1"):
        names = environment(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
        started.append(subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=names))
    return [process.communicate(timeout=400)[0].splitlines() for process in started]


@pytest.mark.slow
def test_a_process_that_works_long_is_waited_for(tmp_path):
    gathered = "[0, 'a', 1, 'a']"
    assert two(LATE, tmp_path) == [[gathered, "[{'rank': 0}, {'rank': 1}]"], [gathered, "[]"]]


@pytest.mark.slow
def test_a_process_that_ends_is_not_waited_for(tmp_path):
    started = time.monotonic()
    assert two(DEAD, tmp_path) == [["noticed"], []]
    assert time.monotonic() - started < 300  # the longest wait takes hours


@pytest.mark.slow
@pytest.mark.parametrize("call", [2, 4])
def test_a_process_that_hangs_in_a_measurement_is_not_waited_for(call, tmp_path):
    """The gather of the results, which waits for hours, is not what notices it."""
    base = str(backbone(tmp_path, num_hidden_layers=2))
    file = str(write(tmp_path / "pairs.jsonl", *pairs(8)))
    program = HANGING.replace("HANGS", "5").replace("CALL", str(call))
    assert two(program, tmp_path, base, file)[0] == ["noticed"]


@pytest.mark.slow
def test_processes_that_share_a_gpu_are_refused(tmp_path):
    refused = ["2 processes train on 1 GPUs; start one for each GPU"]
    assert two(CARDS, tmp_path) == [refused, refused]


@pytest.mark.slow
def test_processes_that_cannot_connect_are_one_line(tmp_path):
    program = """
import os
from torch import distributed
from musiccli.core.processes import process_group
distributed.init_process_group("gloo", init_method="file://" + %r, rank=0, world_size=1)
os.environ["GLOO_SOCKET_IFNAME"] = "nosuch"
process_group()
"""
    names = environment(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
    line = [preloaded.python(), "-c", program % str(tmp_path / "store")]
    done = subprocess.run(line, capture_output=True, text=True, env=names)
    assert done.returncode
    last = done.stderr.splitlines()[-1]
    assert "InputError: the processes cannot connect by gloo (" in last and "nosuch" in last
    assert last.endswith(
        "; let GLOO_SOCKET_IFNAME name the interface of the network between the machines"
    )


@pytest.mark.slow
def test_after_an_error_gloo_is_left_and_nccl_is_not(tmp_path):
    """A process may abort that exits while gloo's threads run; leaving nccl may wait for others."""
    program = """
import weakref
from torch import distributed
from musiccli.core import processes
distributed.init_process_group("cuda:gloo", init_method="file://" + %r, rank=0, world_size=1)
distributed.get_backend = lambda: "nccl"
try:
    with processes.rank_zero_output():
        group = weakref.ref(processes.gloo_group())
        raise OSError
except OSError:
    print(distributed.is_initialized(), group())
"""
    names = environment(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
    line = [preloaded.python(), "-c", program % str(tmp_path / "store")]
    done = subprocess.run(line, capture_output=True, text=True, env=names)
    assert done.stdout == "True None\n", done.stderr


# Training: whatever rank 0 does longer than a step may take, the other waits for.
SLOW = """
import os, sys, time
from datetime import timedelta
from torch import distributed
from torch.distributed.distributed_c10d import _set_pg_timeout
from musiccli.train import early_stopping, run, states
from musiccli.train.trainer import Trainer

def allow(seconds):
    if distributed.is_initialized():
        _set_pg_timeout(timedelta(seconds=seconds), distributed.group.WORLD)

def slow(owner, name):
    work = getattr(owner, name)
    def slowly(*arguments, **options):
        allow(1)
        if os.environ["RANK"] == "0" and name not in done:
            print("slow", name, file=sys.stderr)
            time.sleep(3)
            done.add(name)
        return work(*arguments, **options)
    setattr(owner, name, slowly)

done = set()
for name in ("load_data", "shard", "write_checkpoint", "_push"):
    slow(run, name)
for name in ("_load", "_complete"):
    slow(states.TrainingStates, name)
for name in ("load_tensors", "save_tensors", "complete_folder"):
    slow(early_stopping, name)
step = Trainer.step
def patient(self, *arguments):
    allow(1800)
    return step(self, *arguments)
Trainer.step = patient
from musiccli.cli.main import main
main()
"""


class Crash(Exception):
    """Stands for a kill after a state was saved."""


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_no_work_of_the_first_process_is_too_long_for_the_others(sharded, tmp_path):
    (tmp_path / "base").mkdir()
    base = backbone(tmp_path / "base", num_hidden_layers=2)
    file = write(tmp_path / "pairs.jsonl", *pairs(12))
    exchanged = [
        {**record, "chosen": record["rejected"], "rejected": record["chosen"]}
        for record in pairs(12)
    ]
    held_out = write(tmp_path / "held-out.jsonl", *exchanged)  # their loss grows from the start
    out, script = tmp_path / "rm", tmp_path / "slow.py"
    script.write_text(SHARDED * sharded + SLOW)
    line = ["train", file, "--model", base, "--out", out, "--batch", 4, "--steps", 8, "--lr", 1e-2]
    line += ["--eval", held_out, "--eval-every", 2, "--patience", 1, "--save-every", 1]
    save = TrainingStates.save

    def stop(self, step):
        save(self, step)
        raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStates, "save", stop)
        assert "Crash" in music(*line).err
    done = torchrun(2, script, *line)
    assert done.returncode == 0, done.stderr
    assert "going on after step 1 of 8" in done.stderr and (out / "music.json").exists()
    assert "weights are kept" in done.stderr and len(read(out / "log.jsonl")) < 8
    work = {line.split()[1] for line in done.stderr.splitlines() if line.startswith("slow ")}
    expected = {"load_data", "write_checkpoint", "_push", "_load", "_complete"}
    expected |= {"load_tensors", "save_tensors", "complete_folder"} | (
        {"shard"} if sharded else set()
    )
    assert work == expected
    assert not (out / "checkpoints").exists()
