"""A reward model's network, read by transformers: a backbone with a trained or a new head."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from musiccli.core.errors import InputError
from musiccli.core.pretrained import (
    load_classifier,
    load_config,
    load_tokenizer,
    report_custom_code,
)
from musiccli.reward_model.activations import CPU
from musiccli.reward_model.quantization import quantization_config
from musiccli.reward_model.vocabulary import forget_padding_outside

Say = Callable[[str], None]


@dataclass(frozen=True)
class Placement:
    """In which precision weights are loaded, and where they are then.

    Attributes:
        dtype: of the weights; "auto" is that of their files, which are then mapped and not copied.
        device: where the network will compute.
        sharded: whether the weights stay on the CPU until they are sharded.
        quantized: whether linear layers are in 4 bits, and compute in `dtype`.
    """

    dtype: torch.dtype | Literal["auto"] = torch.float32
    device: torch.device = CPU
    sharded: bool = False
    quantized: bool = False

    @property
    def device_map(self) -> dict[str, torch.device] | None:
        """transformers' argument: weights are read straight to a GPU, without a copy on the CPU."""
        if self.sharded or self.device.type != "cuda":
            return None
        index = self.device.index
        return {"": torch.device("cuda", torch.cuda.current_device() if index is None else index)}


def load_backbone(
    name: str, path: str, placement: Placement, tokenizer: str, layers: int | None, say: Say
) -> tuple[Any, Any, bool]:
    """Load a sequence classifier with one label; its head is drawn at random where it has none.

    Args:
        name: the model, as people call it.
        path: its folder or hub id.
        placement: the precision and the device of its weights.
        tokenizer: the folder or hub id of its tokenizer.
        layers: how many of its layers are kept, counted from the first; None keeps all.
        say: told in a line what people should know.

    Returns:
        transformers' model, its tokenizer, and whether the head was loaded.

    Raises:
        InputError: it cannot be loaded, or some weights of the backbone are missing.
    """
    try:
        config = load_config(path)
        if layers:
            _keep_first_layers(config, layers)
        labels = config.num_labels if _is_classifier(config) else 1
        config.num_labels = 1  # a config without labels says 2
        forget_padding_outside(config)
        if labels == 1:
            tokens = load_tokenizer(tokenizer)
            quantization = {}
            if placement.quantized:
                quantization["quantization_config"] = quantization_config(placement.dtype)
            core, report = load_classifier(
                path,
                config,
                dtype=placement.dtype,
                device_map=placement.device_map,
                ignore_mismatched_sizes=True,
                **quantization,
                attn_implementation="eager" if has_logit_softcap(config) else None,
            )
    except InputError as error:
        raise InputError(f"{name}: cannot be loaded as a reward model: {error}") from error
    if labels != 1:
        raise InputError(
            f"{name}: has {labels} labels; a reward model has one (was it trained as a classifier?)"
        )
    report_custom_code(name, path, say)
    _refuse_without_head(name, core)
    _refuse_random_weights(name, core, report)
    trained_head = not any(key.startswith("score") for key in report["missing_keys"])
    return core, tokens, trained_head


def _keep_first_layers(config: Any, layers: int) -> None:
    """Let a config name fewer layers; transformers then leaves the weights of the others unread.

    Raises:
        InputError: it has fewer layers than that.
    """
    text_config = config.get_text_config()
    depth = text_config.num_hidden_layers
    if layers > depth:
        raise InputError(f"`layers` {layers}: it has {depth}")
    text_config.num_hidden_layers = layers
    if types := getattr(text_config, "layer_types", None):  # which attention each layer has
        text_config.layer_types = types[:layers]


def _is_classifier(config: Any) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or [])


def _refuse_without_head(name: str, core: Any) -> None:
    if not hasattr(core, "score"):
        raise InputError(
            f"{name}: {type(core).__name__} has no linear head named score; only decoders with "
            "one are read"
        )


def _refuse_random_weights(name: str, core: Any, report: dict[str, Any]) -> None:
    """Raise InputError where weights of the backbone were drawn at random.

    transformers would only warn.
    """
    weights = {weight for weight, _ in core.named_parameters()}  # a missing buffer is computed
    missing = {key for key in report["missing_keys"] & weights if not key.startswith("score")}
    reshaped = {key for key, *_ in report["mismatched_keys"]}
    if missing:
        reason = "not in its files (are they whole, and names without a prefix such as module.?)"
    else:
        reason = "of another shape in its files than by its config"
    if missing or reshaped:
        raise InputError(
            f"{name}: cannot be loaded as a reward model: {len(missing or reshaped)} weights are "
            f"{reason}; {min(missing or reshaped)} is one"
        )


def has_logit_softcap(config: Any) -> bool:
    """Whether attention scores are soft-capped, as Gemma-2's: sdpa ignores that, or refuses."""
    return bool(getattr(config.get_text_config(), "attn_logit_softcapping", None))


def draw_head(core: Any, seed: int) -> None:
    """Draw a new head in fp32 on the CPU, so that it is the same on every device."""
    head, device = core.score, core.score.weight.device
    head.weight = nn.Parameter(torch.empty_like(head.weight, dtype=torch.float32, device=CPU))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        core._init_weights(head)
    head.to(device)
