"""The checks before training: each passes a sound model, and says what is wrong with a "
"broken one."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import preloaded
import pytest
import torch
from build import write
from console import music
from peak_memory import RESIDENT
from toys import backbone, pairs, sequence
from transformers import AutoModelForCausalLM

from musiccli.core.records import Record
from musiccli.reward_model import checkpoint
from musiccli.train import checks
from musiccli.train.checks import CheckWarning, run_checks
from musiccli.train.config import TrainConfig
from musiccli.train.memory import estimate_memory
from musiccli.train.tokenized_pairs import tokenize_pairs


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return backbone(tmp_path_factory.mktemp("base"), num_hidden_layers=2)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    return backbone(
        tmp_path_factory.mktemp("gemma"), "gemma2", tokens="gemma3-270m", num_hidden_layers=2
    )


@pytest.fixture
def model(base):
    return checkpoint.create(str(base))


def prepared(model, records=None):
    return tokenize_pairs([Record(record) for record in records or pairs(8)], model, 2048)


def with_template(base, target, text):
    """The backbone with another chat template."""
    shutil.copytree(base, target)
    (target / "chat_template.jinja").write_text(text)
    return checkpoint.create(str(target))


def fault(look, model, given=None, kind=checks.InputError):
    with pytest.raises(kind) as caught:
        look(model, given or prepared(model))
    assert "\n" not in str(caught.value)
    return str(caught.value)


TURN = "{% for m in messages %}{{ m.role }}:{{ m.content }}"


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, 4])
def test_a_sound_model_passes_every_check(base, lora):
    model = checkpoint.create(str(base), lora=lora)
    report = run_checks(model, prepared(model))
    assert (report.warnings, report.errors) == ([], [])
    assert report.passed == [
        "one BOS token, <|im_start|>, begins every conversation",
        "padding is <|endoftext|>, in place of <|im_end|>, which also ends turns",
        "the reward is read at '\\n', token 198, the last that the template writes",
        "earlier turns reach the tokens",
        "calls and results of tools reach the tokens, as text in <tool_call> and <tool_response>: "
        "the chat template would lose some",
        "packed attention gives the rewards of transformers' own forward on 8 conversations",
        "rewards do not depend on the batch",
        "the reward head is trained, and comes back from disk",
    ]


@pytest.mark.slow
def test_gemmas_template_passes_and_loses_its_bos_in_another(gemma):
    sound = checkpoint.create(str(gemma))
    assert (
        checks.check_bos(sound, prepared(sound))
        == "one BOS token, <bos>, begins every conversation"
    )
    assert checks.check_padding(sound, prepared(sound)) == "padding is <pad>"
    own = (gemma / "chat_template.jinja").read_text()
    sound.tokenizer.chat_template = own.replace("{{ bos_token }}", "")
    assert fault(checks.check_bos, sound) == (
        "conversations begin without the BOS token <bos>, which the backbone knows before "
        "every text; add "
        "{{ bos_token }} to the chat template"
    )
    sound.tokenizer.chat_template = "{{ bos_token }}" + own
    assert fault(checks.check_bos, sound) == (
        "the template writes two BOS tokens; remove one from the chat template"
    )


@pytest.mark.slow
def test_a_text_that_holds_the_bos_token_is_a_doubt(gemma):
    model = checkpoint.create(str(gemma))
    given = [
        *pairs(3),
        pairs(5)[4]
        | {
            "chosen": [
                *pairs(5)[4]["chosen"][:-1],
                {"role": "assistant", "content": "see <bos> here"},
            ]
        },
    ]
    assert fault(checks.check_bos, model, prepared(model, given), CheckWarning) == (
        "1 conversations hold <bos> in their text, where it reads as another BOS"
    )
    report = run_checks(model, prepared(model, given))
    assert len(report.warnings) == 1 and not report.errors


def test_padding_that_is_eos_is_wrong(model):
    model.tokenizer.pad_token = model.tokenizer.eos_token
    assert fault(checks.check_padding, model).startswith(
        "the padding token is 0 in the model's config, 2 in its tokenizer"
    )
    model.network.core.config.pad_token_id = model.tokenizer.eos_token_id
    assert fault(checks.check_padding, model) == (
        "the padding token (<|im_end|>) is eos, too; a reward would be read one token early"
    )


def test_conversations_that_end_with_padding_are_wrong(base, tmp_path):
    model = with_template(
        base,
        tmp_path / "m",
        TURN + "{{ '<|endoftext|>' if 'up' in m.content else '\n' }}{% endfor %}",
    )
    assert fault(checks.check_padding, model) == (
        "conversations end with the padding token (<|endoftext|>), which no reward can be read at"
    )


def test_rewards_read_at_many_tokens_are_a_doubt(base, tmp_path):
    model = with_template(base, tmp_path / "m", TURN + "{% endfor %}")
    said = fault(checks.check_reward_token, model, kind=CheckWarning)
    assert said.startswith("rewards are read at ") and said.endswith(
        ", ...); let the chat template end every turn with a token of its own"
    )


@pytest.mark.slow
def test_a_reward_model_whose_template_was_changed_is_refused(base, tmp_path):
    checkpoint.save(checkpoint.create(str(base)), tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TURN + "<|im_end|>{% endfor %}")
    for call in (checkpoint.load, checkpoint.create):
        with pytest.raises(checks.InputError) as caught:
            call(str(tmp_path))
        assert str(caught.value) == (
            f"{tmp_path}: was trained to be read at '\\n', but its chat template ends with "
            "'<|im_end|>' now; put its "
            "own chat_template.jinja back"
        )


@pytest.mark.slow
def test_sdpa_on_a_soft_capped_model_is_wrong(gemma):
    model = checkpoint.create(str(gemma))
    assert checks.check_attention(model, prepared(model)).startswith(
        "packed attention gives the rewards of "
    )
    model.network.packed = False
    for config in (model.network.core.config, model.network.backbone.config):
        config._attn_implementation = "sdpa"
    assert fault(checks.check_attention, model) == (
        "attention is sdpa, which leaves out this model's soft-capping; use eager or flash "
        "attention"
    )


@pytest.mark.slow
def test_rewards_that_are_read_a_token_early_are_wrong(model, monkeypatch):
    real = model.network._packed
    monkeypatch.setattr(
        model.network,
        "_packed",
        lambda groups, budget: real(
            [
                [sequence(one.ids, *(end - 1 for end in one.reward_positions)) for one in group]
                for group in groups
            ],
            budget,
        ),
    )
    said = fault(checks.check_attention, model)
    assert said.startswith("rewards differ from those of transformers' own forward by ")


def test_the_check_of_attention_leaves_it_as_it_was(model):
    before = model.network([[sequence([5, 6, 7])]])[0]
    kept = model.network.backbone.config._attn_implementation
    checks.check_attention(model, prepared(model))
    assert model.network.backbone.config._attn_implementation == kept
    assert torch.equal(model.network([[sequence([5, 6, 7])]])[0], before)


@pytest.mark.parametrize(
    "company",
    [
        lambda found: found + found.mean() / 10,
        lambda found: found * len(found),
        lambda found: found + torch.linspace(0, 1, len(found))[:, None],
    ],
)
def test_rewards_that_depend_on_the_batch_are_wrong(model, monkeypatch, company):
    real = model.network._packed

    def changed(*arguments):
        hidden, counts, router_losses = real(*arguments)
        return company(hidden), counts, router_losses

    monkeypatch.setattr(model.network, "_packed", changed)
    assert fault(checks.check_batch_invariance, model).startswith(
        "rewards depend on the batch: they differ by "
    )


def test_a_head_that_lora_adapts_and_loses_is_wrong(base, model):
    from peft import LoraConfig, get_peft_model

    model.network.model = get_peft_model(
        model.network.model, LoraConfig(r=4, target_modules="all-linear")
    )
    assert fault(checks.check_head, model) == (
        "the reward head does not come back from disk as it is in training; its LoRA "
        "must save it whole (modules_to_save)"
    )


@pytest.mark.slow
def test_a_frozen_head_is_wrong(model):
    model.network.core.score.requires_grad_(False)
    assert (
        fault(checks.check_head, model)
        == "the reward head is frozen; nothing would be learnt in it"
    )


@pytest.mark.slow
def test_everything_that_is_wrong_is_said_each_in_a_line(base, tmp_path):
    shutil.copytree(base, tmp_path / "m")
    config = tmp_path / "m" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"bos_token": "<repo_name>"}))
    (tmp_path / "m" / "chat_template.jinja").write_text(
        "<repo_name><repo_name>"
        + TURN
        + "{{ '<|endoftext|>' if 'up' in m.content else '\n' }}{% endfor %}"
    )
    done = music(
        "train",
        write(tmp_path / "in.jsonl", *pairs(8)),
        "--model",
        tmp_path / "m",
        "--batch",
        4,
        "--out",
        tmp_path / "rm",
        "--check",
    )
    assert (done.status, done.out) == (2, b"")
    *wrong, differs, last = [
        line.removeprefix("music train: ") for line in done.lines if "wrong" in line
    ]
    assert wrong == [
        "check: wrong: the template writes two BOS tokens; remove one from the chat template",
        "check: wrong: conversations end with the padding token (<|endoftext|>), which no "
        "reward can be read at",
    ]
    assert differs.startswith(
        "check: wrong: rewards differ from those of transformers' own forward by "
    )
    assert last == "error: 3 things are wrong; --no-check would train all the same"
    assert any("rewards are read at 2 different tokens (" in line for line in done.lines)


# Memory


@pytest.mark.slow
def test_memory_follows_from_what_is_trained_and_how(base):
    model, adapted = checkpoint.create(str(base)), checkpoint.create(str(base), lora=4)
    given, config = prepared(model), TrainConfig(batch=8)
    size = sum(weight.numel() for weight in model.network.parameters())
    own = sum(weight.numel() for weight in adapted.network.parameters() if weight.requires_grad)
    full = estimate_memory(model, given, config)
    assert (full.parameters, full.gradients, full.optimizer) == (4 * size, 4 * size, 8 * size)
    assert full.tokens == sum(pair.size for pair in given)
    lora = estimate_memory(adapted, given, config)
    assert (lora.gradients, lora.optimizer, lora.parameters > 4 * size) == (4 * own, 8 * own, True)
    assert estimate_memory(model, given, config, ranks=2).gradients == 8 * size
    sharded = estimate_memory(model, given, config, ranks=4, sharded=True)
    assert (sharded.parameters, sharded.optimizer) == (size, 2 * size)
    small = estimate_memory(model, given, TrainConfig(batch=8, budget=64))
    assert small.tokens == max(64, *(pair.size for pair in given))
    assert small.activations / small.tokens == pytest.approx(full.activations / full.tokens)
    less = estimate_memory(model, given, TrainConfig(batch=8, activation_checkpointing=True))
    assert less.activations < full.activations * 0.7


@pytest.mark.slow
def test_a_micro_batch_that_keeps_everything_counts_beside_a_larger_one_that_does_not(
    base, monkeypatch
):
    model = checkpoint.create(str(base))
    given, config = prepared(model), TrainConfig(batch=8)
    whole = estimate_memory(model, given, config)
    monkeypatch.setattr("musiccli.train.memory.RECOMPUTE_ABOVE", whole.tokens - 1)
    assert estimate_memory(model, given, config).activations == pytest.approx(
        whole.activations * (1 - 1 / whole.tokens)
    )
    monkeypatch.setattr("musiccli.train.memory.RECOMPUTE_ABOVE", whole.tokens // 8)
    assert (
        whole.activations / 8
        < estimate_memory(model, given, config).activations
        < whole.activations
    )
    on_gpu = estimate_memory(model, given, config, device=torch.device("cuda"))
    assert on_gpu.activations == pytest.approx(whole.activations)  # where nothing is computed again


@pytest.mark.slow
def test_autocast_halves_activations_and_copies_the_weights(base, monkeypatch):
    # As on a GPU: oneDNN's products would stay in fp32.
    monkeypatch.setattr("musiccli.reward_model.checkpoint.use_onednn_linear", lambda _: None)
    model = checkpoint.create(str(base))
    given, config = prepared(model), TrainConfig(batch=8)
    plain = estimate_memory(model, given, config)
    with torch.autocast("cpu", torch.bfloat16):
        half = estimate_memory(model, given, config)
    assert 0.4 < half.activations / plain.activations < 0.9
    layers = sum(
        weight.numel() for weight in model.network.backbone.layers.parameters() if weight.dim() == 2
    )
    assert half.workspace - plain.workspace == pytest.approx(2 * layers, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("dtype, warns", [(torch.float32, True), (torch.bfloat16, False)])
def test_weights_that_take_memory_already_need_no_other(base, tmp_path, monkeypatch, dtype, warns):
    """Those of a file in fp32 are mapped, and copied by the first step; those in bf16 were copied."""
    model = Path(shutil.copytree(base, tmp_path / "base"))
    AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(model)
    file, out = write(tmp_path / "in.jsonl", *pairs(64)), tmp_path / "rm"
    line = ["train", file, "--model", model, "--out", out, "--steps", 1, "--check"]
    told = music(*line).err
    sizes = {name: float(size) for name, size in re.findall(r"(\w+) ([\d.]+) MB", told)}
    free = 1e6 * (sum(sizes.values()) - sizes["parameters"] / 2 - sizes["about"])
    monkeypatch.setattr("musiccli.train.memory.available_bytes", lambda: free)
    again = music(*line).err
    assert ("GB are missing" in again) == warns, again


PEAK = (
    RESIDENT
    + """
import sys, json
from accelerate import Accelerator
from musiccli.core.records import Record
from musiccli.reward_model import checkpoint
from musiccli.reward_model.activations import checkpoint_activations
from musiccli.reward_model.trimmed_embedding import TrimmedEmbedding, used_tokens
from musiccli.train.memory import estimate_memory
from musiccli.train.tokenized_pairs import tokenize_pairs
from musiccli.train.batching import partition_pairs
from musiccli.train.config import TrainConfig
from musiccli.train.trainer import Trainer

config = TrainConfig(batch=2, lr=1e-5)
model = checkpoint.create(sys.argv[1])
checkpoint_activations(model.network, everything=False)
pairs = tokenize_pairs([Record(json.loads(line)) for line in open(sys.argv[2])], model, 2048)
tokens = used_tokens(side.ids for pair in pairs for side in pair.sides)
embedding = TrimmedEmbedding(model.network, tokens)
memory = estimate_memory(model, pairs, config)
forget_peak()
before = resident("VmRSS")
trainer = Trainer(model, pairs, config, Accelerator(cpu=True))
for _ in range(2):
    trainer.step(partition_pairs(range(2), pairs.sizes, config.full_row, 1))
print((resident("VmHWM") - before) / (memory.total - memory.parameters))
"""
)


@pytest.mark.slow
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak is read from /proc"
)
def test_the_estimate_is_close_to_the_measured_peak(tmp_path):
    # Large: the code that the first step loads, and glibc's steps of 64 MB, are small beside it.
    base = backbone(
        tmp_path / "base", hidden_size=384, intermediate_size=1536, num_hidden_layers=4, head_dim=96
    )
    given = write(
        tmp_path / "in.jsonl",
        *[
            one
            | {
                side: [
                    *one[side][:-1],
                    {"role": "assistant", "content": f"{side} {one['id']} " * 30},
                ]
                for side in ("chosen", "rejected")
            }
            for one in pairs(2)
        ],
    )
    done = subprocess.run(
        [preloaded.python(), "-c", PEAK, str(base), str(given)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 1 / 1.5 < float(done.stdout) < 1.5
