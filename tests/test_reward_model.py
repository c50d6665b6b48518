"""Rewards do not depend on packing, and transformers and peft open the checkpoints."""

import copy
import json
import shutil
import subprocess
from collections import Counter
from importlib.util import find_spec

import preloaded
import pytest
import torch
import transformers
from build import talk
from safetensors.torch import load_file, save_file
from toys import FAMILIES, VOCABULARY, WINDOW, backbone, draw, multimodal_backbone, sequence
from transformers import AutoModelForSequenceClassification

from musiccli.core.errors import InputError
from musiccli.reward_model import activations, checkpoint
from musiccli.reward_model.activations import checkpoint_activations
from musiccli.reward_model.loss import bradley_terry
from musiccli.reward_model.network import RewardNetwork
from musiccli.reward_model.packing import Segment, micro_batches, pack, packed_length, shared_prefix

PREFIX = 40  # tokens that a pair shares: more than the window
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Backbones by family, each made once."""
    made = {}

    def base(family):
        if family not in made:
            made[family] = backbone(tmp_path_factory.mktemp(family), family)
        return str(made[family])

    return base


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, bases):
    """A packed reward model of each family."""
    made = checkpoint.create(bases(request.param))
    assert made.network.packed
    return made


@pytest.fixture(scope="module")
def llama(bases):
    return checkpoint.create(bases("llama"))


def padded(network):
    """The same weights under transformers' own attention."""
    core = copy.deepcopy(network.core)
    core.set_attn_implementation("eager")
    return RewardNetwork(core, packed=False)


def pairs():
    """Pairs of (chosen, rejected) that share a long prefix, a short one or none.

    One side is several times as long as the window, one is the beginning of its other side, and
    in one pair both sides are the same.
    """
    common = draw(PREFIX, 1)
    return [
        (sequence(common + draw(30, 2)), sequence(common + draw(21, 3))),
        (sequence(draw(5, 4) + draw(8, 5)), sequence(draw(5, 4) + draw(3, 6))),
        (sequence(draw(70, 7)), sequence(draw(9, 8))),
        (sequence(common), sequence(common + draw(33, 9))),
        (sequence(common + draw(4, 10)), sequence(common + draw(4, 10))),
        (sequence(draw(1, 11)), sequence(draw(2, 12))),
    ]


def rewards(network, groups):
    with torch.inference_mode():
        return torch.cat(network.eval()(groups))


FAMILY_CLASSES = {network.__name__ for network, *_ in FAMILIES.values()}


# Packed and padded


@pytest.mark.slow
def test_packed_rewards_are_the_padded_ones(model):
    found, expected = rewards(model.network, pairs()), rewards(padded(model.network), pairs())
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, **CLOSE)


def test_packed_gradients_are_the_padded_ones(model):
    losses, gradients = [], []
    for network in (model.network, padded(model.network)):
        network.zero_grad()
        found = network(pairs())
        loss = bradley_terry(torch.cat(found[::2]), torch.cat(found[1::2])).mean()
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: weight.grad for name, weight in network.core.named_parameters()})
    torch.testing.assert_close(losses[0], losses[1], **CLOSE)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        # A bias before a head without one adds the same to both sides: no gradient.
        assert gradient is not None and (
            gradient.abs().max() > 0 or name == "transformer.ln_f.bias"
        ), name
        # What both sides share is computed once, or twice with opposite signs.
        rounding = CLOSE["atol"] * max(1, gradient.abs().max().item())
        torch.testing.assert_close(
            gradient,
            gradients[1][name],
            **CLOSE | {"atol": rounding},
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_rewards_are_those_of_transformers_own_forward_one_by_one(model, tmp_path):
    checkpoint.save(model, tmp_path)
    own = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert own.config._attn_implementation in ("eager", "sdpa")
    [name] = own.config.architectures  # vLLM looks for a language model of this name
    bare = name.removesuffix("ForSequenceClassification")
    assert FAMILY_CLASSES & {f"{bare}ForCausalLM", f"{bare}LMHeadModel"}
    groups = pairs()
    with torch.inference_mode():
        expected = [
            own(input_ids=torch.tensor([one.ids])).logits[0, 0] for group in groups for one in group
        ]
    torch.testing.assert_close(rewards(model.network, groups), torch.stack(expected), **CLOSE)


def test_rewards_after_every_turn_are_those_of_each_prefix_alone(model):
    common = draw(PREFIX, 1)
    whole = [
        sequence(common + draw(30, 2), 7, PREFIX - 1, PREFIX, 55, 69),
        sequence(common + draw(9, 3), 20, 48),
    ]
    alone = [[sequence(one.ids[: end + 1])] for one in whole for end in one.reward_positions]
    torch.testing.assert_close(
        rewards(model.network, [whole]), rewards(model.network, alone), **CLOSE
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "family, setting",
    [
        ("gemma2", {"sliding_window": 512}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma3", {"sliding_window": 512}),
        ("mistral", {"sliding_window": 512}),
        ("qwen2", {"use_sliding_window": False}),
    ],
)
def test_window_and_soft_cap_matter_here(bases, tmp_path, family, setting):
    """Else the tests above could not fail for want of them."""
    kept, other = (
        checkpoint.create(bases(family)),
        checkpoint.create(str(backbone(tmp_path, family, **setting))),
    )
    long = [(sequence(draw(70, 7)), sequence(draw(4 * WINDOW, 8)))]
    assert (rewards(kept.network, long) - rewards(other.network, long)).abs().min() > 0.01


@pytest.mark.slow
def test_rewards_are_fp32_where_the_rest_is_bf16(llama):
    """In bf16 many pairs would tie: it has 8 bits."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = rewards(llama.network, pairs())
    assert found.dtype == torch.float32
    assert not any(torch.equal(one, one.bfloat16().float()) for one in found)
    torch.testing.assert_close(found, rewards(llama.network, pairs()), atol=0.2, rtol=0.2)


# Fewer layers


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt2"])
def test_the_first_layers_alone_are_kept_and_saved(bases, tmp_path, family):
    short, whole = (checkpoint.create(bases(family), layers=3), checkpoint.create(bases(family)))
    assert not torch.equal(rewards(short.network, pairs()), rewards(whole.network, pairs()))
    decoder = whole.network.backbone.get_decoder()
    name = "h" if family == "gpt2" else "layers"
    setattr(decoder, name, getattr(decoder, name)[:3])
    whole.network.core.config.num_hidden_layers = 3
    torch.testing.assert_close(rewards(short.network, pairs()), rewards(whole.network, pairs()))
    checkpoint.save(short, tmp_path / "short")
    again = checkpoint.load(str(tmp_path / "short"))
    torch.testing.assert_close(rewards(again.network, pairs()), rewards(short.network, pairs()))
    assert checkpoint.read_notes(tmp_path / "short")["layers"] == 3
    assert "the first 3 layers of" in (tmp_path / "short" / "README.md").read_text()


def test_a_backbone_has_not_more_layers_than_it_has(bases):
    with pytest.raises(InputError, match="`layers` 9: it has 4"):
        checkpoint.create(bases("llama"), layers=9)


# Who else is there


def test_rewards_do_not_depend_on_batch_order_or_company(model):
    groups = pairs()
    together = rewards(model.network, groups).split(2)
    alone = [rewards(model.network, [group]) for group in groups]
    turned = rewards(model.network, groups[::-1]).split(2)[::-1]
    apart = [torch.cat([rewards(model.network, [[one]]) for one in group]) for group in groups]
    for others in (alone, turned, apart):
        torch.testing.assert_close(torch.cat(list(others)), torch.cat(together), **CLOSE)


@pytest.mark.parametrize("shared", [0, 15, 16, PREFIX])
def test_many_candidates_of_a_prompt_score_as_alone(model, shared):
    prompt = draw(shared, 1)
    candidates = [sequence(prompt + draw(size, size)) for size in (12, 3, 25, 1, 7)] + [
        sequence(prompt + draw(3, 3))
    ]
    apart = rewards(model.network, [[one] for one in candidates])
    torch.testing.assert_close(rewards(model.network, [candidates]), apart, **CLOSE)


# The row


def test_a_pair_is_laid_out_as_its_shared_prefix_and_two_rests():
    common = list(range(20))
    row = pack(
        [(sequence([*common, 50, 51], 3, 21), sequence([*common, 60], 3, 20)), (sequence([7, 8]),)]
    )
    assert row.ids == [*common, 50, 51, 60, 7, 8]
    assert row.positions == [*range(22), 20, 0, 1]
    assert row.segments == [
        Segment(0, 22, (0, 0)),
        Segment(22, 23, (0, 20)),
        Segment(23, 25, (23, 23)),
    ]
    assert row.reward_positions == [[3, 21], [3, 22], [24]]
    assert len(row) == 25


def test_three_sequences_share_what_all_of_them_share():
    common = list(range(20))
    ids = [[*common, 1, 1], [*common, 1, 2, 3], [*common, 9]]
    row = pack([[sequence(one) for one in ids]])
    assert row.ids == [*common, 1, 1, 1, 2, 3, 9]
    assert [segment.prefix for segment in row.segments] == [(0, 0), (0, 20), (0, 20)]
    assert row.reward_positions == [[21], [24], [25]]


@pytest.mark.parametrize(
    "sequences, shared",
    [
        ([[*range(16), 1], [*range(16), 2]], 16),
        ([[*range(15), 1], [*range(15), 2]], 0),  # too short to be worth it
        ([list(range(30)), list(range(30))], 29),  # never the whole of one
        ([list(range(20)), list(range(30))], 19),
        ([list(range(30))], 0),
        ([[1] * 20, [2] * 20], 0),
        ([[1] * 20 + [5], [1] * 20 + [6], [1] * 18 + [7, 8]], 18),
    ],
)
def test_the_shared_prefix_is_common_to_all_and_the_whole_of_none(sequences, shared):
    assert shared_prefix(sequences) == shared
    group = [sequence(ids) for ids in sequences]
    assert (
        packed_length(group)
        == len(pack([group]))
        == sum(map(len, sequences)) - shared * (len(sequences) - 1)
    )


def test_micro_batches_hold_each_group_once_within_the_budget_largest_first():
    sizes = [5, 30, 7, 12, 3, 100, 12, 1]
    batches = micro_batches(sizes, 30)
    assert batches == [[5], [1], [3, 6], [2, 0, 4, 7]]
    assert Counter(index for batch in batches for index in batch) == Counter(range(8))


@pytest.mark.parametrize("budget", [1, 10, 64, 10_000])
def test_a_micro_batch_goes_over_the_budget_only_alone(budget):
    sizes = draw(200, budget)
    batches = micro_batches(sizes, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(200))
    assert all(
        len(batch) == 1 or sum(sizes[index] for index in batch) <= budget for batch in batches
    )


@pytest.mark.parametrize("budget", [1, 10, 64, 10_000])
def test_a_padded_micro_batch_counts_each_by_the_largest_beside_it(budget):
    sizes = draw(200, budget)
    batches = micro_batches(sizes, budget, padded=True)
    assert sorted(index for batch in batches for index in batch) == list(range(200))
    assert all(
        len(batch) == 1 or len(batch) * max(sizes[index] for index in batch) <= budget
        for batch in batches
    )
    assert len(batches) < 200 or budget < 100


def test_bradley_terry_is_minus_log_sigmoid_of_the_margin():
    chosen, rejected = torch.tensor([0.0, 2.0, -1.0, 300.0]), torch.tensor([0.0, 1.0, 1.0, -300.0])
    expected = torch.tensor([2.0, 1 + torch.e**-1, 1 + torch.e**2, 1.0]).log()
    torch.testing.assert_close(bradley_terry(chosen, rejected), expected)
    torch.testing.assert_close(bradley_terry(chosen, rejected, 1.0)[1:2], torch.tensor([2.0]).log())


# Attention that transformers would do wrong, or that cannot be packed


@pytest.mark.slow
def test_a_soft_capped_model_never_runs_sdpa(bases, tmp_path, monkeypatch):
    asked = []
    real = AutoModelForSequenceClassification.from_pretrained

    def watch(*args, **settings):
        loaded = real(*args, **settings)
        asked.append(loaded[0].config._attn_implementation)
        return loaded

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", watch)
    for family in ("gemma2", "llama"):
        checkpoint.save(checkpoint.create(bases(family)), tmp_path / family)
        checkpoint.load(str(tmp_path / family))
    assert asked == ["eager", "eager", "sdpa", "sdpa"]
    notes = [checkpoint.read_notes(tmp_path / family) for family in ("gemma2", "llama")]
    assert [one["attention"] for one in notes] == ["eager", "sdpa"]


def _ignores_runs(
    self, hidden_states, position_embeddings, attention_mask=None, past_key_values=None, **settings
):
    settings.pop("segments", None)
    kept, self.config._attn_implementation = self.config._attn_implementation, "sdpa"
    try:
        return self.real_forward(
            hidden_states, position_embeddings, attention_mask, past_key_values, **settings
        )
    finally:
        self.config._attn_implementation = kept


def _refuses_runs(self, *args, **settings):
    if "segments" in settings:
        raise TypeError("forward() got an unexpected keyword argument 'runs'")
    return self.real_forward(*args, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("forward", [_ignores_runs, _refuses_runs])
def test_a_model_whose_attention_cannot_be_packed_is_padded_and_says_so(
    bases, llama, monkeypatch, forward
):
    attention = transformers.models.llama.modeling_llama.LlamaAttention
    monkeypatch.setattr(attention, "real_forward", attention.forward, raising=False)
    monkeypatch.setattr(attention, "forward", forward)
    said = []
    model = checkpoint.create(bases("llama"), say=said.append)
    assert said == [
        "LlamaForSequenceClassification: its attention cannot be packed; padding instead "
        "(slower, same scores)"
    ]
    assert not model.network.packed and model.network.core.config._attn_implementation == "sdpa"
    assert [model.network.token_count(group) for group in pairs()[:2]] == [2 * 70, 2 * 13]
    found = rewards(model.network, pairs())
    monkeypatch.undo()
    torch.testing.assert_close(found, rewards(llama.network, pairs()), **CLOSE)


# Padding


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["smollm2", "gemma3-270m"])
def test_padding_is_none_of_the_tokens_that_end_or_begin_conversations(tmp_path, tokens):
    model = checkpoint.create(str(backbone(tmp_path, tokens=tokens, num_hidden_layers=1)))
    pad = model.network.core.config.pad_token_id
    last = model.chat_template.encode(talk("q", "a")).ids[-1]
    assert pad == model.tokenizer.pad_token_id is not None
    assert pad not in (last, model.tokenizer.eos_token_id, model.tokenizer.bos_token_id)
    shipped = json.loads((tmp_path / "tokenizer_config.json").read_text())["pad_token"]
    assert (shipped, model.tokenizer.pad_token) == {
        "smollm2": ("<|im_end|>", "<|endoftext|>"),
        "gemma3-270m": ("<pad>", "<pad>"),
    }[tokens]


@pytest.mark.slow
def test_a_template_that_ends_with_the_padding_token_gets_another(bases, tmp_path):
    shutil.copytree(bases("llama"), tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}<|endoftext|>"
    )
    model = checkpoint.create(str(tmp_path / "model"))
    assert model.chat_template.encode(talk("q", "a"), every_turn=False).ids[-1] == 0
    assert model.network.core.config.pad_token_id not in (0, 1, 2)


# Models that are none


def changed(folder, file, **fields):
    found = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(found | fields))


@pytest.fixture
def trained(bases, tmp_path):
    """A folder with a reward model of one layer: cheap to spoil."""
    model = checkpoint.create(str(backbone(tmp_path / "base", num_hidden_layers=1)))
    checkpoint.save(model, tmp_path / "rm")
    return tmp_path / "rm"


def fault(call, *args):
    with pytest.raises(InputError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
def test_a_classifier_with_more_labels_is_refused(trained):
    config = transformers.AutoConfig.from_pretrained(trained, num_labels=3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(trained)
    for call in (checkpoint.load, checkpoint.create):
        assert fault(call, str(trained)) == (
            f"{trained}: has 3 labels; a reward model has one (was it trained as a classifier?)"
        )


@pytest.mark.slow
def test_a_language_model_has_no_trained_head(trained):
    base = str(trained.parent / "base")
    assert fault(checkpoint.load, base) == (
        f"{base}: has no trained reward head; `music train` makes a reward model of it"
    )


@pytest.mark.slow
def test_a_model_without_template_is_refused(trained):
    (trained / "chat_template.jinja").unlink()
    assert "the tokenizer has no chat template" in fault(checkpoint.load, str(trained))


@pytest.mark.slow
def test_an_encoder_is_refused(trained):
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=32,
        num_labels=1,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(trained)
    assert fault(checkpoint.load, str(trained)) == (
        f"{trained}: BertForSequenceClassification has no linear head named score; only decoders "
        "with one are read"
    )


@pytest.mark.parametrize(
    "name, says",
    [
        ("/nowhere", "/nowhere: no such folder"),
        ("./nowhere", "./nowhere: no such folder"),
        ("nowhere/", "nowhere/: no such folder"),
        ("runs/old/rm", "runs/old/rm: no such folder"),
        ("local/nowhere/", "local/nowhere/: no such folder"),
        (__file__, "no such folder"),
        (".", ".: is a folder without a config.json"),
    ],
)
def test_what_is_no_model_folder_is_named(name, says):
    assert says in fault(checkpoint.load, name)


@pytest.mark.slow
def test_damaged_files_are_named_in_one_line(trained):
    good = {
        name: (trained / name).read_bytes()
        for name in ("model.safetensors", "config.json", "music.json")
    }
    for name, content in good.items():
        (trained / name).write_bytes(content[: len(content) // 2])
        assert str(trained) in fault(checkpoint.load, str(trained)), name
        (trained / name).write_bytes(content)
    changed(trained, "config.json", hidden_size=64)
    assert "cannot be loaded as a reward model" in fault(checkpoint.load, str(trained))


def stored_as(folder, rename):
    """A copy of a model whose files name their weights otherwise; None leaves one out."""
    copied = folder.parent / f"{folder.name}-renamed"
    shutil.copytree(folder, copied)
    kept = {
        rename(name): weight for name, weight in load_file(folder / "model.safetensors").items()
    }
    kept.pop(None, None)
    save_file(kept, copied / "model.safetensors", {"format": "pt"})
    return str(copied)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_are_not_in_the_files_are_never_drawn_at_random(bases, family, tmp_path):
    whole = shutil.copytree(bases(family), tmp_path / "base")
    layer = "transformer.h.1." if family == "gpt2" else "model.layers.1."
    for rename in (
        lambda name: f"_orig_mod.{name}",
        lambda name: None if name.startswith(layer) else name,
    ):
        spoilt = stored_as(whole, rename)
        said = fault(checkpoint.create, spoilt)
        assert said.startswith(f"{spoilt}: cannot be loaded as a reward model: ")
        assert (
            " weights are not in its files (are they whole, and names without a prefix such as "
            "module.?); " in said
        )
        assert layer.split(".")[0] in said and fault(checkpoint.load, spoilt) == said
        shutil.rmtree(spoilt)


@pytest.mark.slow
def test_a_weight_of_another_shape_is_named(trained):
    changed(trained, "config.json", intermediate_size=48)
    assert fault(checkpoint.load, str(trained)) == (
        f"{trained}: cannot be loaded as a reward model: 3 weights are of another shape in its "
        "files than by its config; model.layers.0.mlp.down_proj.weight is one"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "package, how",
    [
        ("bitsandbytes", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("optimum", {"quant_method": "gptq", "bits": 4}),
    ],
)
def test_a_quantised_checkpoint_names_the_package_that_it_needs(trained, package, how):
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    changed(trained, "config.json", quantization_config=how)
    said = fault(checkpoint.load, str(trained))
    assert said.startswith(f"{trained}: cannot be loaded as a reward model: ") and package in said


# Save and load


TALKS = [talk("q", "a"), talk("q", "a", "why", "because"), talk("hello there", "general " * 9)]


def spread(model):
    return rewards(
        model.network, [[model.chat_template.encode(one, every_turn=False)] for one in TALKS]
    )


@pytest.mark.slow
def test_a_saved_model_loads_with_equal_scores_and_no_trace_of_packing(model, tmp_path):
    before = spread(model)
    checkpoint.save(model, tmp_path)
    texts = [file.read_text() for file in tmp_path.glob("*.json")]
    assert len(texts) >= 4 and not any("music_packed" in text for text in texts)
    assert {file.stat().st_mode for file in tmp_path.glob("*.*")} == {
        (tmp_path / "music.json").stat().st_mode
    }
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"][0].endswith("ForSequenceClassification")
    assert (config["problem_type"], config["id2label"]) == ("regression", {"0": "reward"})
    torch.manual_seed(99)
    again = checkpoint.load(str(tmp_path))
    torch.testing.assert_close(spread(again), before, **CLOSE)
    assert again.notes["reward_token"] == {"id": 198, "text": "\n"}


@pytest.mark.slow
def test_a_new_head_follows_from_the_seed_alone(bases):
    torch.manual_seed(5)
    heads = []
    for seed in (1, 1, 2):
        heads.append(checkpoint.create(bases("llama"), seed=seed).network.core.score.weight)
        torch.rand(3)
    assert torch.equal(heads[0], heads[1])
    assert not torch.allclose(heads[0], heads[2], atol=0.1)
    # Below adapters a GPU holds the base in bf16.
    adapted = checkpoint.create(bases("llama"), seed=1, lora=4, dtype=torch.bfloat16).network
    assert torch.equal(adapted.core.score.weight, heads[0])


def step(model, rate=0.1):
    """Training in a nutshell."""
    weights = [weight for weight in model.network.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=rate)
    found = model.network.train()(pairs()[:3])
    bradley_terry(torch.cat(found[::2]), torch.cat(found[1::2])).mean().backward()
    optimizer.step()
    model.network.eval()


@pytest.fixture(scope="module")
def stepped(bases, tmp_path_factory):
    """The checkpoints of a model after two steps, one plain and one with LoRA, and their scores."""
    found = {}
    for name, rank in (("plain", None), ("lora", 4)):
        model, folder = checkpoint.create(bases("gemma2"), lora=rank), tmp_path_factory.mktemp(name)
        untrained = spread(model)
        step(model)
        step(model)  # LoRA's first step moves B alone
        found[name] = (folder, spread(model))
        assert not torch.allclose(found[name][1], untrained, atol=1e-2)
        checkpoint.save(model, folder)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "lora"])
def test_pipelines_give_the_raw_score(stepped, kind):
    folder, scores = stepped[kind]
    reward_positions = transformers.pipeline("text-classification", model=str(folder))
    texts = [reward_positions.tokenizer.apply_chat_template(one, tokenize=False) for one in TALKS]
    for settings in ({}, {"batch_size": 3}):
        found = reward_positions(texts, add_special_tokens=False, **settings)
        assert {one["label"] for one in found} == {"reward"}
        torch.testing.assert_close(torch.tensor([one["score"] for one in found]), scores, **CLOSE)


@pytest.mark.slow
def test_a_fresh_process_under_another_seed_scores_the_same(stepped):
    code = (
        "import json, sys, torch\nfrom musiccli.reward_model import checkpoint\n"
        "torch.manual_seed(1234)\n"
        "for folder in sys.argv[2:]:\n"
        "    m = checkpoint.load(folder)\n"
        "    encode = m.chat_template.encode\n"
        "    talks = json.loads(sys.argv[1])\n"
        "    print([m.network([[encode(talk)]])[0][-1].item() for talk in talks])"
    )
    folders = [str(folder) for folder, _ in stepped.values()]
    done = subprocess.run(
        [preloaded.python(), "-c", code, json.dumps(TALKS), *folders],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for line, (_, scores) in zip(done.stdout.splitlines(), stepped.values(), strict=True):
        torch.testing.assert_close(torch.tensor(json.loads(line)), scores, **CLOSE)


@pytest.mark.slow
def test_lora_trains_adapters_and_head_and_nothing_else(bases):
    model = checkpoint.create(bases("llama"), lora=4)
    trained = {name for name, weight in model.network.named_parameters() if weight.requires_grad}
    kinds = Counter(
        "lora" if "lora_" in name else "score" if "score" in name else "other" for name in trained
    )
    assert kinds == {"lora": 4 * 7 * 2, "score": 1}  # layers x linear maps x (A, B)
    assert not any(
        "lora_" in name and "score" in name for name, _ in model.network.named_parameters()
    )
    before = {name: weight.clone() for name, weight in model.network.named_parameters()}
    step(model)
    step(model)
    moved = {
        name
        for name, weight in model.network.named_parameters()
        if not torch.equal(weight, before[name])
    }
    assert moved == trained


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, 4])
def test_of_a_multimodal_model_is_trained_what_text_passes_through(tmp_path, lora):
    model = checkpoint.create(str(multimodal_backbone(tmp_path / "base")), lora=lora)
    assert model.network.packed
    sum(one.sum() for one in model.network(pairs()[0:1])).backward()
    trained = {
        name: weight.grad is not None
        for name, weight in model.network.named_parameters()
        if weight.requires_grad
    }
    assert all(trained.values()) and any("language_model" in name for name in trained)
    assert not any("vision_tower" in name or "projector" in name for name in trained)
    step(model)
    checkpoint.save(model, tmp_path / "rm")
    torch.testing.assert_close(
        spread(checkpoint.load(str(tmp_path / "rm"))), spread(model), **CLOSE
    )


@pytest.mark.slow
def test_the_adapter_alone_loads_with_peft(bases, tmp_path):
    from peft import PeftModel

    model = checkpoint.create(bases("llama"), lora=4, seed=3)
    step(model)
    step(model)
    scores = spread(model)
    checkpoint.save(model, tmp_path)
    torch.manual_seed(77)
    base = AutoModelForSequenceClassification.from_pretrained(bases("llama"), num_labels=1)
    base.config.pad_token_id = checkpoint.load(str(tmp_path)).network.core.config.pad_token_id
    again = PeftModel.from_pretrained(base, tmp_path / checkpoint.ADAPTER).eval()
    with torch.inference_mode():
        found = [
            again(input_ids=torch.tensor([model.chat_template.encode(one).ids])).logits[0, 0]
            for one in TALKS
        ]
    torch.testing.assert_close(torch.stack(found), scores, **CLOSE)


@pytest.mark.slow
def test_training_can_go_on_from_a_reward_model(bases, tmp_path):
    first = checkpoint.create(bases("llama"), seed=1)
    checkpoint.save(first, tmp_path)
    torch.testing.assert_close(
        spread(checkpoint.create(str(tmp_path), seed=2)), spread(first), **CLOSE
    )


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, 4])
@pytest.mark.parametrize("family", ["gemma3", "gemma2", "llama"])
def test_what_is_computed_again_gives_the_same_gradients(bases, family, lora, monkeypatch):
    monkeypatch.setattr(activations, "RECOMPUTE_ABOVE", 0)
    gradients = []
    for how in (None, {"everything": False}, {"everything": True}):
        model = checkpoint.create(bases(family), lora=lora)
        if how:
            checkpoint_activations(model.network, **how)
        step(model, rate=0.0)
        gradients.append(
            [weight.grad for weight in model.network.parameters() if weight.requires_grad]
        )
    for again in gradients[1:]:
        assert all(torch.equal(one, other) for one, other in zip(again, gradients[0], strict=True))
    assert max(gradient.abs().max() for gradient in gradients[0]) > 0


@pytest.mark.slow
def test_what_a_gpu_will_compute_again_is_not_chosen_as_on_a_cpu(bases):
    """The model still is on the CPU when it is decided."""

    def chosen(device, everything=False):
        network = checkpoint.create(bases("llama")).network
        checkpoint_activations(network, everything, torch.device(device))
        again = [layer.gradient_checkpointing for layer in network.backbone.layers]
        return all(again), len(network._forward_pre_hooks)

    assert [chosen("cpu"), chosen("cuda"), chosen("cuda", True)] == [
        (True, 1),
        (False, 0),
        (True, 0),
    ]
