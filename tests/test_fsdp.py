"""FSDP2 over gloo: sharded runs equal those of one process, and go on with any number of ranks."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from build import read, write
from console import music, torchrun
from safetensors.torch import load_file, save_file
from sharded import SHARDED
from toys import backbone, pairs
from transformers import GPT2Config, GPT2ForSequenceClassification

from musiccli.core.errors import InputError
from musiccli.reward_model import checkpoint
from musiccli.reward_model.network import RewardNetwork
from musiccli.reward_model.trimmed_embedding import TrimmedEmbedding
from musiccli.train.accelerator import refuse_unsupported
from musiccli.train.memory import choose_gathering
from musiccli.train.states import TrainingStates

# Compiled layers, as on a GPU, by a backend that runs on a CPU, too.
COMPILED = """
import torch.nn.attention.flex_attention as flex
from musiccli.gpu.compilation import compile_layers
from musiccli.reward_model import batch_layout
from musiccli.train.trainer import Trainer

flex._validate_device = lambda *_: None
batch_layout.can_compile = lambda device: True
batch_layout.compile_layers = lambda layers: compile_layers(layers, "aot_eager")
Trainer.fit_activations = lambda self: None
"""
COMMAND = """
from torch.distributed.checkpoint import FileSystemWriter
from musiccli.train import trainer
from musiccli.train.log import TrainingLog
from musiccli.train.memory import Gathering

if "GATHERING" in os.environ:
    trainer.choose_gathering = lambda *_: Gathering(*json.loads(os.environ["GATHERING"]))

written = FileSystemWriter.write_data
def write_after_a_step(self, plan, planner):
    deadline = time.monotonic() + 300
    while "step-000002" in str(self.path) and '"step":3,' not in open(os.environ["LOG"]).read():
        assert time.monotonic() < deadline, "no step was taken while a state was saved"
        time.sleep(0.01)
    return written(self, plan, planner)

def die(self, metadata, results):
    if "step-000004" in str(self.path):
        os._exit(3)
    finish(self, metadata, results)
finish = FileSystemWriter.finish

if "DIE" in os.environ:
    FileSystemWriter.write_data, FileSystemWriter.finish = write_after_a_step, die
from musiccli.cli.main import main
main()
"""


def arguments(file, base, out, *more):
    line = ("train", file, "--model", base, "--out", out, "--batch", 4, "--steps", 6, "--lr", 1e-2)
    return (*line, "--budget", 64, "--save-every", 2, "--eval", held_out(file), *more)


def held_out(file):
    return file.with_name("held-out.jsonl")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(backbone(tmp_path_factory.mktemp("base"), num_hidden_layers=2))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Pairs; some that are held out lie beside them."""
    path = write(tmp_path_factory.mktemp("data") / "pairs.jsonl", *pairs(12))
    write(held_out(path), *pairs(3))
    return path


@pytest.fixture(scope="module")
def finished(base, file, tmp_path_factory):
    """A run of one process."""
    out = tmp_path_factory.mktemp("finished") / "rm"
    done = music(*arguments(file, base, out))
    assert done.status == 0, done.err
    return out


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "sharded.py"
    path.write_text(SHARDED + COMMAND)
    return path


@pytest.fixture(scope="module")
def killed(script, file, base, tmp_path_factory):
    """A run of two ranks that was killed in the middle of saving its second state."""
    out = tmp_path_factory.mktemp("killed") / "rm"
    # The second line is what accelerate sets by default; transformers then loads on rank 0 alone.
    changes = {"DIE": "1", "LOG": str(out / "log.jsonl")}
    changes |= {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    done = torchrun(2, script, *arguments(file, base, out), FSDP_VERSION="2", **changes)
    assert done.returncode and not (out / "music.json").exists(), done.stderr
    assert "weights are gathered once a step" in done.stderr
    return out


def assert_same_run(out, other, tolerance=1e-5):
    """Two finished runs have the same losses and weights, but for rounding."""
    assert "eval_loss" in read(out / "log.jsonl")[-1]
    for step, expected in zip(read(out / "log.jsonl"), read(other / "log.jsonl"), strict=True):
        assert step["loss"] == pytest.approx(expected["loss"], abs=tolerance)
        assert step.get("eval_loss") == pytest.approx(expected.get("eval_loss"), abs=tolerance)
        assert step["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
    weights = load_file(out / "model.safetensors")
    expected = load_file(other / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        close = {"atol": 10 * tolerance, "rtol": 10 * tolerance}
        torch.testing.assert_close(weight, expected[name], **close, msg=name)


@pytest.mark.slow
def test_a_kill_while_a_state_is_saved_in_the_background_leaves_the_one_before(killed):
    names = sorted(os.listdir(killed / "checkpoints"))
    assert names == [".step-000004", "step-000002"]
    state = json.loads((killed / "checkpoints" / "step-000002" / "state.json").read_bytes())
    assert (state["step"], state["processes"]) == (2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("ranks, gathering", [(1, None), (2, [True, False]), (4, [False, False])])
def test_a_sharded_run_goes_on_with_any_number_of_ranks_as_one_process_would(
    script, file, base, finished, killed, tmp_path, ranks, gathering
):
    out = shutil.copytree(killed, tmp_path / "rm")
    line = arguments(file, base, out)
    if gathering is None:  # without FSDP
        said = music(*line).err
    else:
        said = torchrun(ranks, script, *line, GATHERING=json.dumps(gathering)).stderr
    assert "going on after step 2 of 6" in said
    assert_same_run(out, finished)
    assert sorted(os.listdir(out)) == sorted(os.listdir(finished))


@pytest.mark.slow
def test_a_sharded_run_stops_early_with_the_best_weights_as_one_process_does(
    script, base, tmp_path
):
    """Held-out pairs that are the others with their sides exchanged grow worse from the start."""
    file = write(tmp_path / "pairs.jsonl", *pairs(12))
    sides = [(record["rejected"], record["chosen"]) for record in pairs(12)]
    exchanged = [
        record | {"chosen": chosen, "rejected": rejected}
        for record, (chosen, rejected) in zip(pairs(12), sides, strict=True)
    ]
    write(held_out(file), *exchanged)
    outs = [tmp_path / name for name in ("one", "two")]
    lines = [arguments(file, base, out, "--patience", 1, "--eval-every", 1) for out in outs]
    assert music(*lines[0]).status == 0
    done = torchrun(2, script, *lines[1])
    assert done.returncode == 0, done.stderr
    told = [json.loads((out / "music.json").read_bytes())["early_stopping"] for out in outs]
    assert told[0] == told[1] and told[0]["best_step"] < told[0]["last_step"]
    assert_same_run(outs[1], outs[0])
    assert sorted(os.listdir(outs[1])) == sorted(os.listdir(outs[0]))


class Crash(Exception):
    """Stands for a kill after a state was saved."""


@pytest.mark.slow
def test_a_lora_run_of_one_process_goes_on_sharded(script, file, base, tmp_path):
    line = arguments(file, base, tmp_path / "rm", "--lora", 4)
    save = TrainingStates.save

    def stop(self, step):
        save(self, step)
        raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStates, "save", stop)
        assert "Crash" in music(*line).err
    begun = shutil.copytree(tmp_path / "rm", tmp_path / "sharded")
    assert music(*line).status == 0
    said = torchrun(2, script, *arguments(file, base, begun, "--lora", 4)).stderr
    assert "going on after step 2 of 6" in said
    assert_same_run(begun, tmp_path / "rm")
    adapter = "adapter/adapter_model.safetensors"
    assert load_file(begun / adapter).keys() == load_file(tmp_path / "rm" / adapter).keys()


@pytest.mark.slow
def test_the_checks_are_made_of_sharded_weights(script, file, base, tmp_path):
    done = torchrun(2, script, *arguments(file, base, tmp_path / "rm", "--check"))
    assert not done.returncode, done.stderr
    assert "check: the reward head is trained, and comes back from disk" in done.stderr
    assert "check: about " in done.stderr
    assert not (tmp_path / "rm").exists()


@pytest.mark.slow
def test_compiled_layers_give_the_same(file, base, finished, tmp_path):
    script = tmp_path / "compiled.py"
    script.write_text(SHARDED + COMPILED + COMMAND)
    more = ("--activation-checkpointing",)
    done = torchrun(2, script, *arguments(file, base, tmp_path / "rm", *more))
    assert not done.returncode, done.stderr
    assert "compiled layers and flex attention" in done.stderr
    assert_same_run(tmp_path / "rm", finished, tolerance=1e-4)


# Loading


LOADING = """
from types import SimpleNamespace

from accelerate import PartialState
from musiccli.reward_model import checkpoint
from musiccli.reward_model.trimmed_embedding import TrimmedEmbedding
from musiccli.train import sharding

def private():
    [line] = [line for line in open("/proc/self/status") if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024

base, lora, out = sys.argv[1], int(sys.argv[2]) or None, sys.argv[3]
ranks = PartialState(cpu=True)
torch.zeros(512, 512).bfloat16() @ torch.zeros(512, 512).bfloat16()  # its library is loaded now
start = private()
model = checkpoint.create(base, lora=lora, sharded=True)
TrimmedEmbedding(model.network, list(range(100)))
sizes = [private()]
shard_one = sharding.fully_shard

def measured(module, **options):
    shard_one(module, **options)
    sizes.append(private())

sharding.fully_shard = measured
plugin = SimpleNamespace(reshard_after_forward=True)
sharding.shard(model.network, SimpleNamespace(
    state=SimpleNamespace(fsdp_plugin=plugin), device=torch.device("cpu"),
    num_processes=ranks.num_processes, mixed_precision="no"))
sizes.append(private())
weights = {name: sharding.gathered_weight(weight) for name, weight in model.network.named_parameters()}
if ranks.process_index == 1:
    torch.save([[size - start for size in sizes], weights], out)
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def bf16_base(tmp_path_factory):
    """A backbone whose weights take about 90 MB in bf16."""
    size = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 8, "head_dim": 64, "tie_word_embeddings": True}
    folder = backbone(tmp_path_factory.mktemp("bf16"), **size, **heads)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: weight.bfloat16() for name, weight in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    return str(folder)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_rank_loads_its_parts_alone_with_the_values_of_one_process(bf16_base, tmp_path):
    (tmp_path / "loading.py").write_text("import sys\nimport torch\n" + LOADING)
    done = torchrun(2, tmp_path / "loading.py", bf16_base, 0, tmp_path / "out")
    assert not done.returncode, done.stderr
    sizes, weights = torch.load(tmp_path / "out")
    model = checkpoint.create(bf16_base)
    whole = sum(weight.nbytes for weight in model.network.parameters())  # 180 MB in fp32
    assert sizes[0] < 0.5 * whole  # after loading; a quarter is the tokenizer
    assert max(sizes) < 0.8 * whole
    TrimmedEmbedding(model.network, list(range(100)))
    expected = dict(model.network.named_parameters())
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert weight.dtype == torch.float32 and torch.equal(weight, expected[name]), name


@pytest.mark.slow
def test_adapters_begin_sharded_as_in_one_process(base, tmp_path):
    (tmp_path / "loading.py").write_text("import sys\nimport torch\n" + LOADING)
    done = torchrun(2, tmp_path / "loading.py", base, 4, tmp_path / "out")
    assert not done.returncode, done.stderr
    _, weights = torch.load(tmp_path / "out")
    expected = dict(checkpoint.create(base, lora=4).network.named_parameters())
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())


# What is sharded, and what is decided


def test_the_layers_of_a_decoder_are_what_is_sharded_whatever_it_calls_them():
    config = GPT2Config(n_layer=3, n_embd=8, n_head=2, vocab_size=20, num_labels=1)
    core = GPT2ForSequenceClassification(config)
    assert list(RewardNetwork(core, packed=False).layers) == list(core.transformer.h)


def test_weights_stay_whole_first_then_gradients():
    network = torch.nn.Linear(10, 10)  # 110 weights
    network.bias.requires_grad_(False)
    choices = [choose_gathering(network, spare, itemsize=2) for spare in (219, 220, 619, 620)]
    assert [(one.keep_weights, one.keep_gradients) for one in choices] == [
        (False, False),
        (True, False),
        (True, False),
        (True, True),
    ]


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"fsdp_version": 1}, "fsdp_version 1 of the accelerate config: only version 2"),
        ({"fsdp_version": 2, "cpu_offload": True}, "fsdp_offload_params of the accelerate config"),
        (
            {"fsdp_version": 2, "activation_checkpointing": True},
            "fsdp_activation_checkpointing of the accelerate config: is not followed",
        ),
    ],
)
def test_settings_of_fsdp_that_are_not_followed_are_refused(settings, says):
    with pytest.raises(InputError, match=says):
        refuse_unsupported(FullyShardedDataParallelPlugin(**settings))
