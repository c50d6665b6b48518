"""Checks before the first step for what silently ruins reward models.

Each check returns one line about what is right, or raises: InputError for what must be corrected,
CheckWarning for what does not stop a run. Rewards are compared on a few of the shortest pairs.
"""

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import distributed
from torch.distributed.fsdp import FSDPModule

from musiccli.core.errors import InputError, RecordError
from musiccli.core.messages import FunctionCall, Message
from musiccli.core.quiet_libraries import quiet_libraries
from musiccli.gpu.compilation import uncompiled
from musiccli.gpu.precision import bf16_autocast
from musiccli.reward_model.chat_template import EncodedConversation
from musiccli.reward_model.checkpoint import RewardModel, has_logit_softcap
from musiccli.reward_model.network import RewardNetwork, last_rewards
from musiccli.reward_model.rounding import LEAST, agree, allowed_distances, copies_for, rounded_anew
from musiccli.reward_model.vocabulary import has_embedding
from musiccli.train.pair_arrays import TokenizedPairs
from musiccli.train.sharding import gathered_weight, reshard

SAMPLE_PAIRS, SAMPLE_TOKENS = 4, 512  # the most that is scored to compare rewards
NO_BOS = "no BOS token, which this tokenizer does not write either"

Sides = tuple[EncodedConversation, EncodedConversation]


class CheckWarning(InputError):
    """Something that a person should know, and that does not stop a run."""


@dataclass
class CheckReport:
    """The results of all checks, a line each."""

    passed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def run_checks(model: RewardModel, pairs: TokenizedPairs) -> CheckReport:
    """Run every check on a model and on all pairs that it will be trained and measured on."""
    report = CheckReport()
    for check in (
        check_bos,
        check_padding,
        check_reward_token,
        check_earlier_turns,
        check_tool_turns,
        check_attention,
        check_batch_invariance,
        check_head,
    ):
        try:
            report.passed.append(check(model, pairs))
        except CheckWarning as warning:
            report.warnings.append(str(warning))
        except InputError as error:
            report.errors.append(str(error))
        except RecordError as refusal:  # of the chat template, which the check asked
            report.warnings.append(str(refusal))
    return report


def check_bos(model: RewardModel, pairs: TokenizedPairs) -> str:
    """Each conversation begins with exactly one BOS, where the tokenizer begins text with it."""
    bos, text = model.tokenizer.bos_token_id, model.tokenizer.bos_token
    if bos is None:
        return NO_BOS
    expected = model.tokenizer("a")["input_ids"][:1] == [bos]
    count = _count_bos(pairs, bos)
    if count.at_both:
        raise InputError("the template writes two BOS tokens; remove one from the chat template")
    if expected and count.at_start < 2 * len(pairs):
        raise InputError(
            f"conversations begin without the BOS token {text}, which the backbone knows before "
            "every text; add {{ bos_token }} to the chat template"
        )
    if expected and count.later:
        raise CheckWarning(
            f"{count.later:,} conversations hold {text} in their text, where it reads as another "
            "BOS"
        )
    if count.at_start == 2 * len(pairs):
        return f"one BOS token, {text}, begins every conversation"
    return NO_BOS


class _BosCount(NamedTuple):
    """Conversations with a BOS at their start, at their first two tokens, and after the first."""

    at_start: int = 0
    at_both: int = 0
    later: int = 0


def _count_bos(pairs: TokenizedPairs, bos: int) -> _BosCount:
    at_start = at_both = later = 0
    for part in pairs.parts():
        starts, stops = part.sides()
        places = np.flatnonzero(part.tokens == bos)
        sides = np.searchsorted(starts, places, side="right") - 1
        selected = (sides >= 0) & (places < stops[sides])  # the rest is of pairs that are not used
        places, sides = places[selected], sides[selected]
        offsets = places - starts[sides]
        at_start += int((offsets == 0).sum())
        at_both += len(np.intersect1d(sides[offsets == 0], sides[offsets == 1]))
        later += len(np.unique(sides[offsets > 0]))
    return _BosCount(at_start, at_both, later)


def check_padding(model: RewardModel, pairs: TokenizedPairs) -> str:
    """The padding token has no other use: transformers reads a reward at the last other token."""
    tokenizer, pad = model.tokenizer, model.network.core.config.pad_token_id
    if pad is None or pad != tokenizer.pad_token_id:
        raise InputError(
            f"the padding token is {pad} in the model's config, {tokenizer.pad_token_id} in its "
            "tokenizer"
        )
    if pad == tokenizer.eos_token_id:
        raise InputError(
            f"the padding token ({tokenizer.pad_token}) is eos, too; a reward would be read one "
            "token early"
        )
    if any((part.tokens[part.sides()[1] - 1] == pad).any() for part in pairs.parts()):
        raise InputError(
            f"conversations end with the padding token ({tokenizer.pad_token}), which no reward "
            "can be read at"
        )
    replaced = ""
    if model.replaced_padding:
        replaced = f", in place of {model.replaced_padding}, which "
        has_row = has_embedding(tokenizer, model.replaced_padding, model.network.core)
        replaced += "also ends turns" if has_row else "the model has no embedding of"
    return f"padding is {tokenizer.pad_token}{replaced}"


def check_reward_token(model: RewardModel, pairs: TokenizedPairs) -> str:
    """All rewards are read at the same token, the last that the chat template writes."""
    tokens: Counter[int] = Counter()
    for part in pairs.parts():
        tokens.update(part.reward_tokens().tolist())
    most_common = tokens.most_common(3)
    shown = ", ".join(repr(model.tokenizer.decode([token])) for token, _ in most_common)
    if len(tokens) > 1:
        more = ", ..." if len(tokens) > 3 else ""
        raise CheckWarning(
            f"rewards are read at {len(tokens):,} different tokens ({shown}{more}); let the chat "
            "template end every turn with a token of its own"
        )
    token = most_common[0][0]
    return f"the reward is read at {shown}, token {token}, the last that the template writes"


def check_earlier_turns(model: RewardModel, pairs: TokenizedPairs) -> str:
    """Every turn reaches the tokens: a template may write the last ones alone."""
    losses = model.chat_template.losses()
    thoughts = "thoughts of earlier turns"  # several models were trained without these
    if lost := [name for name in losses if name != thoughts]:
        raise CheckWarning(
            f"the chat template leaves out {' and '.join(lost)}; no reward can depend on them"
        )
    return "earlier turns reach the tokens" + (f", without {thoughts}" if losses else "")


def check_tool_turns(model: RewardModel, pairs: TokenizedPairs) -> str:
    """Two conversations that differ in the result of a call alone are different tokens."""
    template = model.chat_template
    first, second = (template.encode(_tool_turn(result), False).ids for result in ("3", "4"))
    if first == second:
        raise CheckWarning("results of tools do not reach the tokens; no reward can depend on them")
    how = "as the chat template writes them"
    if not template.takes_calls:
        how = "as text in <tool_call> and <tool_response>: the chat template would lose some"
    return f"calls and results of tools reach the tokens, {how}"


def _tool_turn(result: str) -> list[Message]:
    """A conversation in which the assistant calls a function and reads its result."""
    function: FunctionCall = {"name": "count", "arguments": "{}"}
    return [
        {"role": "user", "content": "How many?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": function}],
        },
        {"role": "tool", "content": result},
        {"role": "assistant", "content": "I see."},
    ]


def check_attention(model: RewardModel, pairs: TokenizedPairs) -> str:
    """The attention in use gives the same rewards as transformers' plain attention does."""
    core = model.network.core
    if has_logit_softcap(core.config) and "sdpa" in str(core.config._attn_implementation):
        raise InputError(
            "attention is sdpa, which leaves out this model's soft-capping; use eager or flash "
            "attention"
        )
    sample = _sample(pairs)
    _compare(
        _measure(model.network, sample),
        *_measure_plainly(model.network, sample),
        "rewards differ from those of transformers' own forward by {:.2g}",
    )
    layout = "packed" if model.network.packed else "padded"
    layout = "compiled flex" if model.network.flex else layout
    return (
        f"{layout} attention gives the rewards of transformers' own forward on {2 * len(sample)} "
        "conversations"
    )


def check_batch_invariance(model: RewardModel, pairs: TokenizedPairs) -> str:
    """A reward depends neither on the size of its batch nor on the other conversations in it."""
    network, sample = model.network, _sample(pairs)
    batched = _measure(network, sample)
    allowed = allowed_distances(batched.states[None])
    if copies_for(network.core):
        _, allowed = _measure_plainly(network, sample)
    single = [_measure(network, [(side,)]) for sides in sample for side in sides]
    reversed_pairs = _measure(network, sample[::-1])
    order = torch.arange(2 * len(sample)).view(-1, 2).flip(0).flatten()
    for measured in (
        _Measured(*(torch.cat(parts) for parts in zip(*single, strict=True))),
        _Measured(*(part[order] for part in reversed_pairs)),
    ):
        _compare(
            measured,
            batched,
            allowed,
            "rewards depend on the batch: they differ by {:.2g} between batches",
        )
    return "rewards do not depend on the batch"


def check_head(model: RewardModel, pairs: TokenizedPairs | None = None) -> str:
    """The reward head is trained, and saving keeps it as it is (an adapted head would be lost)."""
    network = model.network
    reshard(network)
    adapted = hasattr(network.model, "peft_config")
    head = [weight for weight in network.core.score.parameters() if weight.is_floating_point()]
    if not adapted and not all(weight.requires_grad for weight in head):
        raise InputError("the reward head is frozen; nothing would be learnt in it")
    trained = [
        gathered_weight(weight.detach()).cpu()
        for name, weight in network.named_parameters()
        if weight.requires_grad and "score" in name and name.endswith("weight")
    ]
    saved = _saved_heads(network)
    if distributed.is_initialized() and distributed.get_rank():
        return "the reward head is trained"  # transformers saves in the first process alone
    if len(saved) != 1 or len(trained) != 1 or not torch.equal(saved[0], trained[0]):
        raise InputError(
            "the reward head does not come back from disk as it is in training; its LoRA must save "
            "it whole (modules_to_save)"
        )
    return "the reward head is trained, and comes back from disk"


def _saved_heads(network: RewardNetwork) -> list[torch.Tensor]:
    """The weights of reward heads in the files that saving the network writes."""
    head = {
        name: gathered_weight(weight)
        for name, weight in network.model.state_dict().items()
        if "score" in name
    }
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        if hasattr(network.model, "peft_config"):
            network.model.save_pretrained(folder, state_dict=head, save_embedding_layers=False)
        else:
            network.core.save_pretrained(folder, state_dict=head)
        heads = []
        for file in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(file, "pt") as saved:
                names = [name for name in saved.keys() if name.endswith("score.weight")]  # noqa: SIM118
                heads += [saved.get_tensor(name) for name in names]
        return heads


def _sample(pairs: TokenizedPairs) -> list[Sides]:
    """The sides of the shortest pairs: at least one pair, and no more than the sample's limits."""
    sample: list[Sides] = []
    remaining = SAMPLE_TOKENS
    for index in np.argsort(pairs.sizes, kind="stable")[:SAMPLE_PAIRS].tolist():
        pair = pairs[index]
        remaining -= pair.size
        if sample and remaining < 0:
            break
        sample.append(pair.sides)
    return sample


class _Measured(NamedTuple):
    """Rewards of conversations, (conversations,), and the hidden states that they are read from."""

    rewards: torch.Tensor
    states: torch.Tensor  # (conversations, size)


def _measure(network: RewardNetwork, groups: Sequence[Sequence[EncodedConversation]]) -> _Measured:
    """Each whole conversation of each group, by the network."""
    with torch.no_grad(), bf16_autocast(network.core.device):  # FSDP cannot infer and then train
        outputs = network.eval()(groups, states=True)
    count = len(outputs) // 2
    return _Measured(last_rewards(outputs[:count]), last_rewards(outputs[count:]))


def _measure_plainly(
    network: RewardNetwork, sample: Sequence[Sides]
) -> tuple[_Measured, torch.Tensor]:
    """The same by transformers' own forward; and how far states may be from it, (conversations)."""
    core = network.core
    copies = copies_for(core)
    rewards, states = [], []

    def keep(head: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        states.append(inputs[0][:, -1].float())  # of the last token, (1 + copies, size)

    with (
        _plain_attention(network),
        rounded_anew(network.layers if copies else (), exact=1),
        core.score.register_forward_pre_hook(keep),
        torch.no_grad(),
        bf16_autocast(core.device),
    ):
        for side in (side for sides in sample for side in sides):
            ids = torch.tensor([side.ids] * (1 + copies), device=core.device)
            rewards.append(core(input_ids=ids).logits[0].float())
    by_copy = torch.stack(states, dim=1)
    return _Measured(torch.cat(rewards), by_copy[0]), allowed_distances(by_copy)


@contextlib.contextmanager
def _plain_attention(network: RewardNetwork) -> Iterator[None]:
    """Let the network's core compute with transformers' plain attention for a while.

    Under FSDP the core is called without the network, which would gather the head.
    """
    configs = [network.core.config, network.backbone.config]
    implementations = [config._attn_implementation for config in configs]
    network.eval()
    if isinstance(network, FSDPModule):
        network.unshard()
    network.core.set_attn_implementation("eager")
    try:
        with uncompiled() if network.flex else contextlib.nullcontext():
            yield
    finally:
        for config, implementation in zip(configs, implementations, strict=True):
            config._attn_implementation = implementation


def _compare(measured: _Measured, expected: _Measured, allowed: torch.Tensor, message: str) -> None:
    """Raise InputError with the largest difference of rewards where it is more than rounding."""
    rewards = expected.rewards
    share = max(LEAST, (allowed / expected.states.norm(dim=-1)).max().item())
    usual = 1 + rewards.square().mean().sqrt().item()
    close = torch.allclose(measured.rewards, rewards, rtol=share, atol=share * usual)
    if not (close and agree(measured.states, expected.states, allowed)):
        raise InputError(message.format((measured.rewards - rewards).abs().max().item()))
