"""`music merge`: an adapter and its backbone become one checkpoint with the adapter's scores."""

import json
import re
import shutil

import pytest
import torch
from build import read, write
from console import music
from safetensors.torch import save_file
from toys import backbone, pairs
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from musiccli.core.errors import InputError
from musiccli.reward_model import checkpoint
from musiccli.reward_model.adapter_config import lora_settings


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return backbone(tmp_path_factory.mktemp("base"), "gemma2", num_hidden_layers=2)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "pairs.jsonl", *pairs(8))


@pytest.fixture(scope="module")
def trained(base, given, tmp_path_factory):
    """A reward model trained with LoRA, whose adapter is kept beside."""
    out = tmp_path_factory.mktemp("trained") / "rm"
    done = music(
        "train",
        given,
        "--model",
        base,
        "--lora",
        4,
        "--batch",
        8,
        "--steps",
        4,
        "--lr",
        1e-2,
        "--out",
        out,
    )
    assert done.status == 0, done.err
    return out


def peft_adapter(base, target, task="SEQ_CLS", **settings):
    """An adapter with random weights that peft made and saved, as another tool would; the model."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    core = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    core.config.pad_token_id = 0
    model = get_peft_model(
        core, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type=task, **settings)
    )
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(target)
    return model.eval()


def scores(given, model):
    done = music("score", given, "--model", model, "--as", "x")
    assert done.status == 0, done.err
    return [one["scores"]["x"][side] for one in done.records for side in ("chosen", "rejected")]


@pytest.mark.slow
def test_the_adapter_of_a_run_merges_into_the_runs_own_model(trained, given, base, tmp_path):
    done = music("merge", trained / "adapter", "--out", tmp_path / "plain")
    assert (done.status, done.out, len(done.lines)) == (0, b"", 1), done.err
    assert done.lines[0].startswith(
        f"music merge: reward model in {tmp_path / 'plain'}; its rewards differ by "
    )
    found, expected = scores(given, tmp_path / "plain"), scores(given, trained)
    assert found == pytest.approx(expected, abs=1e-4)
    assert torch.tensor(expected).std() > 0.1
    assert not (tmp_path / "plain" / "adapter").exists()
    notes = json.loads((tmp_path / "plain" / "music.json").read_text())
    assert (notes["base"], notes["lora"], notes["merged"]) == (str(base), 4, "adapter")
    assert "# A reward model on " in (tmp_path / "plain" / "README.md").read_text()


@pytest.mark.slow
def test_an_adapter_made_elsewhere_scores_as_it_did_there(base, given, tmp_path):
    model = peft_adapter(base, tmp_path / "theirs")
    done = music("merge", tmp_path / "theirs", "--out", tmp_path / "plain")
    assert done.status == 0, done.err
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = [
        tokenizer.apply_chat_template(one[side], tokenize=False)
        for one in read(given)
        for side in ("chosen", "rejected")
    ]
    with torch.inference_mode():
        expected = [
            model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits.item()
            for text in ids
        ]
    assert scores(given, tmp_path / "plain") == pytest.approx(expected, abs=1e-3, rel=1e-4)


@pytest.mark.slow
def test_the_adapters_own_tokenizer_goes_with_it(base, tmp_path):
    peft_adapter(base, tmp_path / "theirs")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|im_end|>{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path / "theirs")
    assert music("merge", tmp_path / "theirs", "--out", tmp_path / "plain").status == 0
    assert (
        checkpoint.load(str(tmp_path / "plain")).tokenizer.chat_template == tokenizer.chat_template
    )


@pytest.mark.slow
def test_a_template_that_rewrites_earlier_turns_is_no_obstacle(base, tmp_path):
    """As those do that drop earlier thoughts."""
    peft_adapter(base, tmp_path / "theirs")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{% if loop.last %}last: {% endif %}{{ m.content }}"
        "<|im_end|>{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path / "theirs")
    done = music("merge", tmp_path / "theirs", "--out", tmp_path / "plain")
    assert done.status == 0, done.err


@pytest.mark.slow
def test_a_head_that_the_adapter_lacks_may_be_the_backbones(base, given, tmp_path):
    checkpoint.save(checkpoint.create(str(base), seed=4), tmp_path / "rm")
    peft_adapter(tmp_path / "rm", tmp_path / "theirs", task=None)
    done = music("merge", tmp_path / "theirs", "--out", tmp_path / "plain")
    assert done.status == 0, done.err
    assert scores(given, tmp_path / "plain") != pytest.approx(
        scores(given, tmp_path / "rm"), abs=1e-2
    )


def wrong(*line):
    done = music("merge", *line)
    assert (done.status, done.out, len(done.lines)) == (2, b"", 1), done.err
    return done.lines[0].removeprefix("music merge: error: ")


@pytest.mark.slow
def test_what_is_no_adapter_or_does_not_fit_is_one_line(base, trained, tmp_path):
    adapter, out = trained / "adapter", tmp_path / "out"
    assert (
        wrong(trained, "--out", out)
        == f"{trained}: is merged already; its adapter alone is in {adapter}"
    )
    assert wrong(base, "--out", out) == (
        f"{base}: holds no adapter_config.json; expected the folder of a LoRA adapter, as peft "
        "writes it"
    )
    assert (
        wrong(trained / "adapter", "--out", base) == f"{base}: is there already; name another --out"
    )
    assert wrong(adapter, "--out", out, "--model", "/nowhere").startswith(
        "/nowhere: no such folder"
    )
    other = backbone(tmp_path / "wide", "gemma2", num_hidden_layers=2, hidden_size=64)
    assert f"{adapter}: does not fit {other}: " in wrong(adapter, "--out", out, "--model", other)
    short = backbone(tmp_path / "short", "gemma2", num_hidden_layers=1)
    said = wrong(adapter, "--out", out, "--model", short)
    assert (
        said.startswith(f"{adapter}: does not fit {short}: ") and " weights have no place, " in said
    )
    headless = tmp_path / "headless"
    peft_adapter(base, headless, task=None)
    assert wrong(headless, "--out", out) == (
        f"{headless}: holds no reward head, and {base} has no trained one; LoRA keeps it with "
        "task_type SEQ_CLS"
    )
    torn = shutil.copytree(adapter, tmp_path / "torn")
    (torn / "adapter_model.safetensors").write_bytes(b"torn")
    assert wrong(torn, "--out", out).startswith(f"{torn}: cannot be read: ")
    assert not out.exists()


# Hostile configurations

SHAPES = {
    f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{part}.weight": shape
    for layer in (0, 1)
    for part, shape in (("A", [2, 8]), ("B", [8, 2]))
}
BOMB = r"(\w+\.?)+x"  # takes years to match


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"megatron_config": {"a": 1}, "megatron_core": "this"}, "asks for megatron_config"),
        ({"r": 10**9}, "asks for rank 1000000000, which no weight has"),
        ({"r": "2"}, "asks for rank 2, which no weight has"),
        ({"r": None}, "asks for rank None"),
        ({"rank_pattern": {"q_proj": 10**9}}, "asks for rank 1000000000"),
        ({"rank_pattern": {BOMB: 2}}, "asks for rank_pattern"),
        ({"alpha_pattern": {BOMB: 2}}, "asks for alpha_pattern"),
        ({"layers_to_transform": [0], "layers_pattern": BOMB}, "asks for layers_pattern"),
        ({"layer_replication": [[0, 2]] * 1000}, "asks for layer_replication"),
        ({"target_modules": ["q_proj"] * 100_000}, "asks for target_modules"),
        ({"target_modules": {"a": 1}}, "asks for target_modules"),
        ({"trainable_token_indices": [0] * 100_000}, "asks for more trainable tokens"),
        ({"trainable_token_indices": {"embed_tokens": 7}}, "asks for trainable_token_indices"),
        ({"init_lora_weights": "corda"}, "asks for init_lora_weights"),
        ({"init_lora_weights": [{}]}, "asks for init_lora_weights"),
        ({"use_rslora": "yes"}, "asks for use_rslora"),
        ({"lora_alpha": "16"}, "asks for lora_alpha"),
    ],
)
def test_what_a_configuration_may_not_ask_for(fields, expected):
    config = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]} | fields
    with pytest.raises(InputError, match=re.escape(expected)):
        lora_settings(config, SHAPES)


def test_what_a_configuration_says_of_its_origin_is_no_matter():
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 16,
        "target_modules": ["q_proj"],
        "lora_dropout": 0.1,
        "auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"},
        "auto_map": {"AutoModel": "evil.Evil"},
        "megatron_core": "this",
        "eva_config": {"rho": 2},
        "init_lora_weights": "eva",
        "new_setting_of_peft": True,
    }
    assert lora_settings(config, SHAPES) == {
        "r": 2,
        "lora_alpha": 16,
        "target_modules": ["q_proj"],
        "init_lora_weights": True,
    }


def test_modules_are_named_by_the_weights_where_a_configuration_has_a_pattern():
    config = {"peft_type": "LORA", "r": 2, "target_modules": BOMB, "exclude_modules": BOMB}
    modules = [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]
    assert lora_settings(config, SHAPES)["target_modules"] == modules


@pytest.mark.slow
def test_an_adapter_with_a_pattern_merges_as_one_with_a_list(base, given, tmp_path):
    peft_adapter(base, tmp_path / "list")
    shutil.copytree(tmp_path / "list", tmp_path / "pattern")
    file = tmp_path / "pattern" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"target_modules": r".*\.(q_proj|down_proj)"}))
    for name in ("list", "pattern"):
        assert music("merge", tmp_path / name, "--out", tmp_path / f"{name}-rm").status == 0
    assert scores(given, tmp_path / "list-rm") == scores(given, tmp_path / "pattern-rm")


def test_a_weight_without_values_is_refused(tmp_path):
    """Its shape may be of any size, and takes no byte of the file."""
    name = "base_model.model.model.embed_tokens.weight"
    save_file({name: torch.empty(10**9, 0)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    assert wrong(tmp_path, "--model", "local/smollm2", "--out", tmp_path / "out") == (
        f"{tmp_path}: {name}: has the shape [1000000000, 0]"
    )


@pytest.mark.slow
def test_an_adapter_is_not_mistaken_for_a_reward_model(trained, given):
    done = music("score", given, "--model", trained / "adapter")
    assert (done.status, done.lines) == (
        2,
        [
            f"music score: error: {trained / 'adapter'}: is a LoRA adapter; "
            "`music merge` makes a reward model of it"
        ],
    )


@pytest.mark.slow
def test_rewards_that_merging_would_change_are_refused(trained, tmp_path, monkeypatch):
    from peft import PeftModel

    real = PeftModel.merge_and_unload if "merge_and_unload" in vars(PeftModel) else None

    def spoilt(self):
        core = real(self) if real else self.base_model.merge_and_unload()
        core.score.weight.data += 0.1
        return core

    monkeypatch.setattr(PeftModel, "merge_and_unload", spoilt, raising=False)
    assert "it would change rewards by " in wrong(trained / "adapter", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
