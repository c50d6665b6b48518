"""What silently ruins reward models, looked for before the first step.

A check says what is right in one line, or raises: InputError for what must be mended first, Doubt for what a person
should know. Rewards are compared on a few of the shortest pairs, which costs a moment.
"""

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open

from musiccli.core.errors import InputError
from musiccli.core.quiet import quiet_libraries
from musiccli.reward_model.checkpoint import RewardModel, has_logit_softcap
from musiccli.reward_model.network import RewardNetwork, last_rewards
from musiccli.train.tokenized_pairs import Pair

SAMPLE = 4, 512  # pairs, tokens: at most so many are scored to look for differences


class Doubt(InputError):
    """Something that does not stop a run."""


@dataclass
class Report:
    """What was found, a line each."""

    right: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def check(model: RewardModel, pairs: Sequence[Pair]) -> Report:
    """All checks of a model and of the pairs it is to be trained and measured on."""
    report = Report()
    for look in (one_bos, padding, reward_token, attention, company, head):
        try:
            report.right.append(look(model, pairs))
        except Doubt as doubt:
            report.doubts.append(str(doubt))
        except InputError as fault:
            report.faults.append(str(fault))
    return report


def one_bos(model: RewardModel, pairs: Sequence[Pair]) -> str:
    """Exactly one BOS, first, where the tokenizer writes one before plain text; a doubled one nowhere."""
    bos, text = model.tokenizer.bos_token_id, model.tokenizer.bos_token
    sides = [side.ids for pair in pairs for side in pair.sides]
    expected = bos is not None and model.tokenizer("a")["input_ids"][:1] == [bos]
    if bos is not None and any(ids[:2] == [bos, bos] for ids in sides):
        raise InputError("the template writes two BOS tokens; remove one from the chat template")
    if expected and any(ids[0] != bos for ids in sides):
        raise InputError(
            f"conversations begin without the BOS token {text}, which the backbone knows before every "
            "text; add {{ bos_token }} to the chat template"
        )
    if expected and (again := sum(bos in ids[1:] for ids in sides)):
        raise Doubt(
            f"{again:,} conversations hold {text} in their text, where it reads as another BOS"
        )
    return (
        f"one BOS token, {text}, begins every conversation"
        if all(ids[0] == bos for ids in sides)
        else "no BOS token, which this tokenizer does not write either"
    )


def padding(model: RewardModel, pairs: Sequence[Pair]) -> str:
    """Padding is a token of its own: transformers reads the reward at the last token that is not padding."""
    tokenizer, pad = model.tokenizer, model.network.core.config.pad_token_id
    if pad is None or pad != tokenizer.pad_token_id:
        raise InputError(
            f"the padding token is {pad} in the model's config, {tokenizer.pad_token_id} in its tokenizer"
        )
    if pad == tokenizer.eos_token_id:
        raise InputError(
            f"the padding token ({tokenizer.pad_token}) is eos, too; a reward would be read one token "
            "early"
        )
    if any(side.ids[-1] == pad for pair in pairs for side in pair.sides):
        raise InputError(
            f"conversations end with the padding token ({tokenizer.pad_token}), which no reward can be "
            "read at"
        )
    instead = (
        f", in place of {model.replaced_padding}, which also ends turns"
        if model.replaced_padding
        else ""
    )
    return f"padding is {tokenizer.pad_token}{instead}"


def reward_token(model: RewardModel, pairs: Sequence[Pair]) -> str:
    """The reward is read at one and the same token, the template's last; it is stored with the checkpoint."""
    ends = Counter(
        side.ids[end] for pair in pairs for side in pair.sides for end in side.reward_positions
    )
    shown = ", ".join(repr(model.tokenizer.decode([end])) for end, _ in ends.most_common(3))
    if len(ends) > 1:
        raise Doubt(
            f"rewards are read at {len(ends):,} different tokens ({shown}{', ...' * (len(ends) > 3)}); let the "
            "chat template end every turn with a token of its own"
        )
    return f"the reward is read at {shown}, token {ends.most_common(1)[0][0]}, the last that the template writes"


def attention(model: RewardModel, pairs: Sequence[Pair]) -> str:
    """The attention in use gives the rewards that transformers' own forward gives, one conversation at a time."""
    core = model.network.core
    if has_logit_softcap(core.config) and "sdpa" in str(core.config._attn_implementation):
        raise InputError(
            "attention is sdpa, which leaves out this model's soft-capping; use eager or flash attention"
        )
    groups = _sample(pairs)
    with _reference(model.network), torch.inference_mode():
        expected = torch.cat(
            [
                core(input_ids=torch.tensor([one.ids], device=core.device)).logits[:, 0].float()
                for group in groups
                for one in group
            ]
        )
    _same(
        _rewards(model.network, groups),
        expected,
        core.dtype,
        "rewards differ from those of transformers' own forward by {:.2g}",
    )
    return (
        f"{'packed' if model.network.packed else 'padded'} attention gives the rewards of transformers' own "
        f"forward on {2 * len(groups)} conversations"
    )


def company(model: RewardModel, pairs: Sequence[Pair]) -> str:
    """A reward does not depend on the size of its batch, nor on who else is in it."""
    groups = _sample(pairs)
    together = _rewards(model.network, groups)
    alone = torch.cat([_rewards(model.network, [[one]]) for group in groups for one in group])
    turned = _rewards(model.network, groups[::-1]).view(-1, 2).flip(0).flatten()
    for other in (alone, turned):
        _same(
            together,
            other,
            model.network.core.dtype,
            "rewards depend on the batch: they differ by {:.2g} between batches",
        )
    return "rewards do not depend on the batch"


def head(model: RewardModel, pairs: Sequence[Pair] = ()) -> str:
    """The head is trained, and what is written to disk holds it as it is (an adapted head, for example, is lost)."""
    network = model.network
    if not all(
        weight.requires_grad
        for weight in network.core.score.parameters()
        if weight.is_floating_point()
    ) and not hasattr(network.model, "peft_config"):
        raise InputError("the reward head is frozen; nothing would be learnt in it")
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        if hasattr(network.model, "peft_config"):
            network.model.save_pretrained(folder, save_embedding_layers=False)
        else:
            weights = {
                name: weight
                for name, weight in network.core.state_dict().items()
                if "score" in name
            }
            network.core.save_pretrained(folder, state_dict=weights)
        stored = list(_stored_heads(Path(folder)))
    trained = {
        name: weight
        for name, weight in network.named_parameters()
        if weight.requires_grad and "score" in name and name.endswith("weight")
    }
    if (
        len(stored) != 1
        or len(trained) != 1
        or not torch.equal(stored[0], next(iter(trained.values())).detach().cpu())
    ):
        raise InputError(
            "the reward head does not come back from disk as it is in training; its LoRA must save it "
            "whole (modules_to_save)"
        )
    return "the reward head is trained, and comes back from disk"


def _stored_heads(folder: Path) -> Iterator[torch.Tensor]:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            yield from (
                weights.get_tensor(name)
                for name in weights.keys()  # noqa: SIM118
                if name.endswith("score.weight")
            )


def _sample(pairs: Sequence[Pair]) -> list[tuple]:
    """The sides of some of the shortest pairs: at least one, else within SAMPLE."""
    found, room = [], SAMPLE[1]
    for pair in sorted(pairs, key=lambda pair: pair.size)[: SAMPLE[0]]:
        room -= pair.size
        if found and room < 0:
            break
        found.append(pair.sides)
    return found


def _rewards(network: RewardNetwork, groups: Sequence) -> torch.Tensor:
    with torch.inference_mode():
        return last_rewards(network.eval()(groups))


@contextlib.contextmanager
def _reference(network: RewardNetwork) -> Iterator[None]:
    """Transformers' own plain attention for a while."""
    configs = [network.core.config, network.backbone.config]
    kept = [config._attn_implementation for config in configs]
    network.eval()
    network.core.set_attn_implementation("eager")
    try:
        yield
    finally:
        for config, implementation in zip(configs, kept, strict=True):
            config._attn_implementation = implementation


def _same(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, fault: str) -> None:
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    if not torch.allclose(found, expected, atol=tolerance, rtol=tolerance):
        raise InputError(fault.format((found - expected).abs().max().item()))
