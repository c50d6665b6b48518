"""DeepSpeed's ZeRO on two processes trains and saves what one process does.

It needs `pip install deepspeed`, which compiles on first use; without it these tests are skipped.
"""

import json
import os
import subprocess
from importlib import util

import preloaded
import pytest
import torch
from build import write
from console import music
from safetensors.torch import load_file
from toys import backbone, pairs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not util.find_spec("deepspeed"), reason="deepspeed is not installed"),
]

# accelerate uses DeepSpeed on GPUs only; what it calls can do without.
PROGRAM = """
import sys
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from musiccli.train import accelerator

PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_CPU)
Accelerator, precision = accelerator.Accelerator, sys.argv.pop(1)
accelerator.Accelerator = lambda **settings: Accelerator(
    **settings | {"cpu": False, "mixed_precision": precision}
)
from musiccli.cli.main import main
main()
"""
CONFIG = """
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config:
  zero_stage: %d
  gradient_accumulation_steps: %d
  zero3_init_flag: false
num_machines: 1
num_processes: 2
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return backbone(tmp_path_factory.mktemp("base"), num_hidden_layers=2)


@pytest.fixture
def arguments(base, tmp_path):
    file = write(tmp_path / "pairs.jsonl", *pairs(24))
    return ("train", file, "--model", base, "--batch", 8, "--steps", 4, "--lr", 1e-3, "--no-check")


def deepspeed(folder, arguments, stage, precision="no", accumulation=1):
    program, config = folder / "program.py", folder / "config.yaml"
    program.write_text(PROGRAM)
    config.write_text(CONFIG % (stage, accumulation))
    launch = (preloaded.python(), "-m", "accelerate.commands.launch", "--config_file", config)
    return subprocess.run(
        [*map(str, (*launch, program, precision, *arguments))],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def assert_same(folder, reference, tolerance):
    trained = load_file(folder / "model.safetensors")
    expected = load_file(reference / "model.safetensors")
    assert trained.keys() == expected.keys()
    for name, weight in expected.items():
        assert trained[name].dtype == torch.float32
        # Adam divides by the gradient's size. Where that is rounding, the step goes either way.
        assert (trained[name] - weight).abs().gt(tolerance).double().mean() < 2e-3, name
    losses = [
        [json.loads(line)["loss"] for line in (path / "log.jsonl").read_text().splitlines()]
        for path in (folder, reference)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4 if tolerance < 1e-3 else 0.1)


@pytest.mark.parametrize("lora", [(), ("--lora", 4)])
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_processes_give_the_weights_of_one(stage, lora, arguments, tmp_path):
    assert music(*arguments, *lora, "--out", tmp_path / "one").status == 0
    done = deepspeed(tmp_path, (*arguments, *lora, "--out", tmp_path / "two"), stage)
    assert "reward model in" in done.stderr, done.stderr
    assert_same(tmp_path / "two", tmp_path / "one", 1e-5)


def test_what_was_trained_in_bf16_is_saved_in_fp32(arguments, tmp_path):
    """The network's own weights are rounded; what a small step changes would be lost."""
    assert music(*arguments, "--out", tmp_path / "one").status == 0
    done = deepspeed(tmp_path, (*arguments, "--out", tmp_path / "two"), 3, "bf16")
    assert "reward model in" in done.stderr, done.stderr
    assert_same(tmp_path / "two", tmp_path / "one", 1e-2)
    weights = load_file(tmp_path / "two" / "model.safetensors")
    assert any(not torch.equal(weight, weight.bfloat16()) for weight in weights.values())


def test_a_run_goes_on_from_its_state(arguments, tmp_path):
    whole = tmp_path / "whole"
    assert music(*arguments, "--out", whole).status == 0
    out = ("--out", tmp_path / "two", "--save-every", 2)
    program = PROGRAM.replace(
        "from musiccli.cli.main",
        "from musiccli.train import run\nimport os\n"
        "run.collect_model = lambda *_: os._exit(3)\nfrom musiccli.cli.main",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("test_deepspeed.PROGRAM", program)
        deepspeed(tmp_path, (*arguments, *out), 2)
    assert not (tmp_path / "two" / "model.safetensors").exists()
    state = tmp_path / "two" / "checkpoints" / "step-000002"
    noted = json.loads((state / "state.json").read_text())
    for change, says in (
        ({"processes": 4}, "by 4 processes, and DeepSpeed needs as many again; start 4"),
        ({"deepspeed": False}, "without DeepSpeed; start the run without it, too"),
    ):
        (state / "state.json").write_text(json.dumps(noted | change))
        refused = deepspeed(tmp_path, (*arguments, *out), 2)
        assert f"{state}: was saved {says}, or remove it to start again" in refused.stderr
    (state / "state.json").write_text(json.dumps(noted))
    done = deepspeed(tmp_path, (*arguments, *out), 2)
    assert "going on after step 2 of 4" in done.stderr, done.stderr
    assert_same(tmp_path / "two", whole, 1e-5)


def test_its_steps_of_accumulation_are_refused(arguments, tmp_path):
    done = deepspeed(tmp_path, (*arguments, "--out", tmp_path / "two"), 2, accumulation=4)
    assert (
        "music train: error: gradient_accumulation_steps 4 of the accelerate config: is not "
    ) in done.stderr
