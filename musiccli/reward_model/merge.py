"""A LoRA adapter and its backbone made into one plain checkpoint, whoever trained the adapter."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from musiccli.core.errors import InputError
from musiccli.core.messages import Message
from musiccli.core.partial_files import partial_folder
from musiccli.core.pretrained import load_adapter
from musiccli.reward_model import checkpoint
from musiccli.reward_model.adapter_config import (
    Shapes,
    base_model,
    lora_settings,
    read_config,
    refuse_impossible_merge,
)
from musiccli.reward_model.checkpoint import RewardModel

# An embedding that was saved whole, under the names that decoders give it.
EMBEDDING = re.compile(r"\.(embed_tokens|wte|embed_in|word_embeddings)(\.[a-z_]+)*\.weight$")
WEIGHTS = "adapter_model.safetensors"
PROBES = ("Name a fugue.", "The Art of Fugue.", "Who wrote it?", "Bach did, in his last years.")


def merge(
    adapter: Path,
    out: Path,
    *,
    model: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> float:
    """Write an adapter, merged into its backbone, as a checkpoint.

    Args:
        adapter: the folder of the adapter.
        out: a folder that does not exist yet, or is empty.
        model: the backbone; left out, the one that the adapter names.
        say: called with one-line messages for the user.

    Returns:
        The largest difference between rewards before and after, on two conversations.

    Raises:
        InputError: `adapter` is no adapter, has no trained reward head or does not fit its
            backbone. Or merging would change rewards by more than a thousandth.
    """
    refuse_impossible_merge(adapter, out, model)
    with contextlib.ExitStack() as stack:
        with _writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            scratch = stack.enter_context(partial_folder(out))
        merged, difference = _merge(adapter, model, say)
        with _writing(out):
            (scratch / "merged").mkdir()
            checkpoint.save(merged, scratch / "merged")
            os.replace(scratch / "merged", out)
    return difference


def _merge(
    adapter: Path, model: str | None, say: Callable[[str], None]
) -> tuple[RewardModel, float]:
    """The merged model, and the largest difference between rewards before and after."""
    config, shapes = read_config(adapter), _read_shapes(adapter)
    names, base = set(shapes), base_model(adapter, config, model)
    try:
        settings = lora_settings(config, shapes)
    except InputError as error:
        raise InputError(f"{adapter}: {error}") from error
    has_head = any(name.endswith("score.weight") for name in names)
    rows = next((shape[0] for name, shape in shapes.items() if EMBEDDING.search(name)), None)
    reward_model = _create_with_head(adapter, base, has_head, rows, say)
    _add_adapter(reward_model, adapter, settings, names, base)
    before = _probe(reward_model)
    reward_model.network.model = reward_model.network.model.merge_and_unload()
    difference = (_probe(reward_model) - before).abs().max().item()
    if difference > 1e-3 * max(1.0, before.abs().max().item()):
        raise InputError(
            f"{adapter}: merged into {base} it would change rewards by {difference:.2g}"
        )
    reward_model.notes = {"base": base, "lora": config.get("r"), "merged": adapter.name}
    return reward_model, difference


def _read_shapes(adapter: Path) -> Shapes:
    """The shapes of the adapter's weights, by their names."""
    try:
        with safe_open(adapter / WEIGHTS, "pt") as weights:
            names = weights.keys()
            shapes = {name: weights.get_slice(name).get_shape() for name in names}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{adapter}: cannot be read: {' '.join(str(error).split())}") from error
    if empty := sorted(name for name, shape in shapes.items() if not shape or 0 in shape):
        raise InputError(f"{adapter}: {empty[0][:100]}: has the shape {list(shapes[empty[0]])}")
    return shapes


def _create_with_head(
    adapter: Path,
    base: str,
    adapter_has_head: bool,
    rows: int | None,
    say: Callable[[str], None],
) -> RewardModel:
    """The backbone, with the adapter's tokenizer; one of the two must have a trained head.

    Its embedding gets as many rows as the adapter's has: trainers resize it for new tokens, and
    then save it whole.
    """
    tokenizer = str(adapter) if (adapter / "tokenizer_config.json").is_file() else None
    model = checkpoint.create(base, tokenizer=tokenizer, rows=rows, say=say)
    if not adapter_has_head and not model.trained_head:
        raise InputError(
            f"{adapter}: holds no reward head, and {base} has no trained one; LoRA keeps it with "
            "task_type SEQ_CLS"
        )
    return model


def _add_adapter(
    model: RewardModel, adapter: Path, settings: dict[str, Any], names: set[str], base: str
) -> None:
    from peft import get_peft_model_state_dict

    try:
        model.network.model = load_adapter(model.network.core, adapter, settings)
    except InputError as error:
        raise InputError(f"{adapter}: does not fit {base}: {error}; another `model`?") from error
    loaded = set(get_peft_model_state_dict(model.network.model, save_embedding_layers=False))
    unmatched = {
        name for name in names ^ loaded if "lora_" in name or name.endswith("score.weight")
    }
    if unmatched:
        raise InputError(
            f"{adapter}: does not fit {base}: {len(unmatched)} weights have no place, "
            f"{min(unmatched)} is one; another `model`?"
        )


def _probe(model: RewardModel) -> torch.Tensor:
    """Rewards (2,): of a conversation of one turn, and of one of two.

    They are read after the last turn alone: some templates rewrite earlier turns.
    """
    messages: list[Message] = [
        {"role": ("user", "assistant")[index % 2], "content": text}
        for index, text in enumerate(PROBES)
    ]
    group = [
        model.chat_template.encode(messages[:length], every_turn=False)
        for length in (2, len(messages))
    ]
    with torch.inference_mode():
        return torch.cat(model.network.eval()([group]))


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Raise InputError where the folder cannot be written within this context."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}") from error
