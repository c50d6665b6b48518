"""`music merge`: an adapter and its backbone become one checkpoint with the adapter's scores."""

import json
import shutil

import pytest
import torch
from build import read, write
from console import music
from toys import backbone, pairs
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from musiccli.reward_model import checkpoint


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
    assert wrong(adapter, "--out", trained) == f"{trained}: is there already; name another --out"
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
