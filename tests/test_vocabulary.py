"""Tokens that a tokenizer has and the embedding lacks: found before training, never written."""

import shutil
from pathlib import Path

import pytest
import torch
from build import read, talk, write
from console import music
from toys import TURN_TOKEN, VOCABULARY, backbone, pairs, with_chat_template, with_tokens
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from musiccli.core.errors import InputError, RecordError
from musiccli.reward_model import checkpoint
from musiccli.reward_model.vocabulary import embedding_rows, resize_embedding
from musiccli.train import checks
from musiccli.train.pair_arrays import TokenizedPairs


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return backbone(tmp_path_factory.mktemp("base"), num_hidden_layers=1)


def copy(base: Path, target: Path, *tokens: str, padding: str | None = None) -> Path:
    """The backbone, with tokens added to its tokenizer alone."""
    shutil.copytree(base, target)
    return with_tokens(target, *tokens, padding=padding)


@pytest.mark.slow
def test_a_padding_token_without_an_embedding_is_replaced_and_said(base, tmp_path):
    heard = []
    model = checkpoint.create(str(copy(base, tmp_path / "m", padding="[PAD]")), say=heard.append)
    core = model.network.core
    assert embedding_rows(core) == VOCABULARY
    assert model.tokenizer.pad_token == "<|endoftext|>"
    assert core.config.pad_token_id == model.tokenizer.pad_token_id < VOCABULARY
    assert heard == [
        f"{tmp_path / 'm'} has no embedding of its padding token [PAD]; <|endoftext|> pads in its "
        "place"
    ]
    assert checks.check_padding(model, TokenizedPairs([])).endswith(
        "in place of [PAD], which the model has no embedding of"
    )
    with pytest.raises(RecordError, match=r"holds \[PAD\], a token that the model has no"):
        model.chat_template.encode(talk("q", "It is [PAD]."))
    (tmp_path / "saved").mkdir()
    checkpoint.save(model, tmp_path / "saved")
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")


@pytest.mark.slow
def test_a_config_that_pads_outside_the_embedding_can_be_loaded(base, tmp_path):
    folder = copy(base, tmp_path / "m", padding="[PAD]")
    text = (folder / "config.json").read_text()
    changed = text.replace('"pad_token_id": null', f'"pad_token_id": {VOCABULARY}')
    assert changed != text
    (folder / "config.json").write_text(changed)
    assert checkpoint.create(str(folder)).network.core.config.pad_token_id < VOCABULARY


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, 4])
def test_a_token_that_the_template_writes_gets_an_embedding_in_training(base, tmp_path, lora):
    folder = with_chat_template(copy(base, tmp_path / "m", "<turn>"), TURN_TOKEN)
    given = write(tmp_path / "pairs.jsonl", *pairs(8))
    rank = ("--lora", lora) if lora else ()
    options = ("--batch", 8, "--steps", 2, "--lr", 1e-2, *rank)
    done = music("train", given, "--model", folder, "--out", tmp_path / "rm", *options)
    assert done.status == 0, done.err
    assert "the chat template writes <turn>, a token that" in done.err
    assert "UserWarning" not in done.err
    model = checkpoint.load(str(tmp_path / "rm"))
    assert embedding_rows(model.network.core) == VOCABULARY + 1
    rewards = model.score([talk("q", "a"), talk("q", "b")])
    assert rewards[0] != rewards[1]
    if lora:
        merged = music("merge", tmp_path / "rm" / "adapter", "--out", tmp_path / "merged")
        assert merged.status == 0, merged.err
        again = checkpoint.load(str(tmp_path / "merged")).score([talk("q", "a")])
        assert again == pytest.approx(rewards[:1], abs=1e-4)


@pytest.mark.slow
def test_a_trained_model_whose_template_writes_a_token_without_an_embedding_is_refused(
    base, tmp_path
):
    (tmp_path / "rm").mkdir()
    checkpoint.save(checkpoint.create(str(base)), tmp_path / "rm")
    folder = with_chat_template(with_tokens(tmp_path / "rm", "<turn>"), TURN_TOKEN)
    with pytest.raises(InputError, match="writes <turn>, a token that the model has no embedding"):
        checkpoint.load(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [VOCABULARY + 1, VOCABULARY + 64, VOCABULARY - 8])
def test_an_adapter_whose_embedding_was_resized_merges_into_one_resized_alike(base, tmp_path, rows):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    core = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    core.resize_token_embeddings(rows)
    core.config.pad_token_id = 0
    model = get_peft_model(core, LoraConfig(r=4, target_modules=["q_proj"], task_type="SEQ_CLS"))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    if rows > VOCABULARY:
        with_tokens_of = AutoTokenizer.from_pretrained(base)
        with_tokens_of.add_special_tokens({"pad_token": "[PAD]"})
        with_tokens_of.save_pretrained(tmp_path / "adapter")
    done = music("merge", tmp_path / "adapter", "--out", tmp_path / "merged")
    assert done.status == 0, done.err
    merged = checkpoint.load(str(tmp_path / "merged"))
    weight = model.get_input_embeddings().weight
    assert torch.equal(merged.network.core.get_input_embeddings().weight, weight)
    given = write(tmp_path / "in.jsonl", {"id": "x", "messages": talk("q", "a")})
    scored = music("score", given, "--model", tmp_path / "merged", "--as", "m", "--no-cache")
    ids = torch.tensor([merged.chat_template.encode(talk("q", "a")).ids])
    expected = model.eval()(input_ids=ids).logits.item()
    assert read(scored.out)[0]["scores"]["m"] == pytest.approx(expected, abs=1e-4)


def test_new_rows_are_the_mean_of_the_others():
    from transformers import LlamaConfig, LlamaForSequenceClassification

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 10}
    core = LlamaForSequenceClassification(
        LlamaConfig(num_attention_heads=2, num_labels=1, pad_token_id=0, **sizes)
    )
    before = core.get_input_embeddings().weight.detach().clone()
    resize_embedding(core, 12)
    after = core.get_input_embeddings().weight
    assert core.config.vocab_size == embedding_rows(core) == 12
    assert torch.equal(after[:10], before)
    assert torch.allclose(after[10:], before.mean(0).expand(2, 8), atol=1e-6)
