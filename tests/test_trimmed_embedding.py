"""An embedding that holds the rows of a run's tokens alone trains to the same checkpoint."""

import pytest
import torch
from build import talk
from toys import VOCABULARY, backbone, pair, pairs

from musiccli.core.records import Record
from musiccli.reward_model import checkpoint
from musiccli.reward_model import trimmed_embedding as vocabulary
from musiccli.train import run
from musiccli.train.config import TrainConfig
from musiccli.train.tokenized_pairs import tokenize_pairs


@pytest.fixture(params=["llama", "gemma3"])
def base(request, tmp_path):
    return str(
        backbone(
            tmp_path / "base",
            request.param,
            num_hidden_layers=2,
            **({"layer_types": None} if request.param == "gemma3" else {}),
        )
    )


def embedding(model):
    return model.network.backbone.get_input_embeddings()


def encoded(model):
    return tokenize_pairs([Record(one) for one in pairs(6)], model, 512)


def tokens(found):
    return vocabulary.used_tokens(side.ids for pair in found for side in pair.sides)


@pytest.mark.slow
def test_rewards_stay_as_they_are(base):
    model = checkpoint.create(base)
    found = encoded(model)
    groups = [one.sides for one in found]
    with torch.inference_mode():
        before = torch.cat(model.network.eval()(groups))
    narrowed = vocabulary.TrimmedEmbedding(model.network, tokens(found))
    assert len(embedding(model).weight) == len(narrowed.tokens) < 200
    assert narrowed.offloaded_bytes == narrowed.whole.nbytes
    with torch.inference_mode():
        assert torch.equal(torch.cat(model.network(groups)), before)


@pytest.mark.slow
def test_training_gives_the_weights_that_a_whole_embedding_gives(base, tmp_path, monkeypatch):
    settings = TrainConfig(model=base, batch=3, steps=4, lr=1e-2)
    records = [Record(one) for one in pairs(12)]
    narrow = run.train(records, tmp_path / "narrow", settings)
    monkeypatch.setattr(run, "used_tokens", lambda sequences: list(range(VOCABULARY)))
    whole = run.train(records, tmp_path / "whole", settings)
    for name in ("loss", "margin"):
        assert narrow[name] == pytest.approx(whole[name], abs=1e-6)
    ours, theirs = (
        checkpoint.load(str(tmp_path / name)).network.state_dict() for name in ("narrow", "whole")
    )
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.slow
def test_rows_that_no_token_reached_are_those_of_the_backbone(base, tmp_path):
    run.train(
        [Record(one) for one in pairs(12)],
        tmp_path / "rm",
        TrainConfig(model=base, batch=3, steps=2, lr=1e-2),
    )
    before, after = (
        embedding(one).weight
        for one in (checkpoint.create(base), checkpoint.load(str(tmp_path / "rm")))
    )
    reached = (before != after).any(dim=1).nonzero()[:, 0].tolist()
    found = tokens(encoded(checkpoint.create(base)))
    assert len(before) == len(after) == VOCABULARY
    assert 5 < len(reached) < 200 and len(found) < 200


@pytest.mark.slow
def test_adapters_leave_the_embedding_whole(base):
    model = checkpoint.create(base, lora=2)
    weight = embedding(model).weight
    narrowed = vocabulary.TrimmedEmbedding(model.network, [0, 5, 6])
    assert embedding(model).weight is weight and narrowed.offloaded_bytes == 0
    narrowed.restore()
    assert embedding(model).weight is weight


@pytest.mark.slow
def test_widened_it_holds_what_was_trained_among_the_rest(base):
    model = checkpoint.create(base)
    before = embedding(model).weight.detach().clone()
    narrowed = vocabulary.TrimmedEmbedding(model.network, [0, 7, 9])
    with torch.no_grad():
        embedding(model).weight[1] += 1
    narrowed.restore()
    after = embedding(model).weight
    assert torch.equal(after[7], before[7] + 1)
    others = [row for row in range(len(before)) if row != 7]
    assert torch.equal(after[others], before[others])
    assert torch.equal(
        embedding(model)(torch.tensor([7])),
        torch.nn.functional.embedding(torch.tensor([7]), after)
        * getattr(embedding(model), "embed_scale", 1.0),
    )


@pytest.mark.slow
def test_a_run_goes_on_only_with_the_held_out_pairs_it_began_with(base, tmp_path, monkeypatch):
    settings = TrainConfig(model=base, batch=3, steps=4, lr=1e-2)
    records, out = [Record(one) for one in pairs(12)], tmp_path / "rm"
    monkeypatch.setattr(
        run, "write_checkpoint", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        run.train(records, out, settings, save_every=2)
    others = [Record(pair("other", talk("quite", "another"), talk("quite", "unheard")))]
    with pytest.raises(run.InputError, match="held-out"):
        run.train(records, out, settings, held_out=others, save_every=2)


@pytest.mark.slow
def test_rows_trained_in_fp32_stay_so_where_the_files_are_in_bf16(base):
    model = checkpoint.create(base, dtype=torch.bfloat16)
    whole = embedding(model).weight.float()
    narrowed = vocabulary.TrimmedEmbedding(model.network, [5, 7])
    trained = torch.full((2, 32), 1 / 3)
    embedding(model).weight = torch.nn.Parameter(trained)
    narrowed.restore()
    restored = embedding(model).weight
    assert torch.equal(restored[[5, 7]], trained)
    assert torch.equal(restored[8:], whole[8:])
