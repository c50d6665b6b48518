"""A frozen base in 4 bits below adapters in fp32: QLoRA (arXiv 2305.14314), by bitsandbytes."""

from typing import Any

import torch
from torch import nn

HEAD = "score"  # stays as it is, like the embedding and the norms


def quantization_config(compute: torch.dtype) -> Any:
    """transformers' settings of the paper: 4-bit NormalFloat, its constants quantized as well.

    Args:
        compute: the precision of products.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=[HEAD],
    )


def keep_precision(core: nn.Module) -> None:
    """Let layers in 4 bits compute as they are told, and alike in training and in evaluation."""
    for layer in quantized_layers(core).values():
        layer.compute_type_is_set = True  # otherwise the first input decides
        layer.support_avx512bf16_for_cpu = False  # evaluation would lay weights out anew


def is_quantized(core: nn.Module) -> bool:
    """Whether layers of a network are in 4 bits."""
    return bool(getattr(core, "is_loaded_in_4bit", False))


def quantized_layers(core: nn.Module) -> dict[str, Any]:
    """The linear layers in 4 bits, without their adapters, by their names."""
    if not is_quantized(core):
        return {}
    from bitsandbytes.nn import Linear4bit

    return {name: layer for name, layer in core.named_modules() if isinstance(layer, Linear4bit)}


def weight_count(weight: torch.Tensor) -> int:
    """How many weights a parameter holds; 4-bit ones lie two in a byte."""
    return weight.numel() * (2 if weight.dtype == torch.uint8 else 1)


def constant_bytes(core: nn.Module) -> int:
    """Bytes of the constants by which blocks of 4-bit weights are scaled."""
    states = [layer.weight.quant_state for layer in quantized_layers(core).values()]
    parts = [part for state in states for part in (state.absmax, state.state2.absmax)]
    return sum(part.numel() * part.element_size() for part in parts)


def merge_into_dequantized(peft_model: Any) -> Any:
    """The sequence classifier with plain weights: those of the base, dequantized, plus adapters.

    These are the weights that the adapters were trained on. They are added in fp32, and kept on the
    CPU in the precision in which the base computed.
    """
    from peft.tuners.lora.bnb import Linear4bit as AdaptedLinear

    core = peft_model.get_base_model()
    layers = quantized_layers(core)
    for name, module in list(core.named_modules()):
        if isinstance(module, AdaptedLinear):
            base = layers.pop(f"{name}.base_layer")
            delta = sum(module.get_delta_weight(adapter) for adapter in module.active_adapters)
            _replace(core, name, _plain_linear(base, delta))
    for name, base in layers.items():
        _replace(core, name, _plain_linear(base, 0.0))
    merged = peft_model.merge_and_unload()  # the head
    merged.is_loaded_in_4bit = merged.is_quantized = False
    merged.hf_quantizer = None
    del merged.config.quantization_config
    return merged


def _plain_linear(layer: Any, delta: torch.Tensor | float) -> nn.Linear:
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float() + delta
    linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.to("cpu", layer.compute_dtype))
    if layer.bias is not None:
        linear.bias = nn.Parameter(layer.bias.data.to("cpu", layer.compute_dtype))
    return linear


def _replace(core: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(core.get_submodule(parent), attribute, layer)
