"""Mixtures of experts: their load-balancing loss by transformers' own formula, and their size."""

from typing import Any

import torch

ROUTER_LOGITS = "router_logits"  # of a backbone's output: for each layer (tokens, experts)
# How configs name the experts of a layer, and those that a token is sent to.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "top_k_experts")


def config_coefficient(backbone: Any) -> float | None:
    """The weight that a backbone's config gives to this loss; None where it has no routers."""
    config = backbone.config.get_text_config()
    recorded = getattr(backbone.get_decoder(), "_can_record_outputs", None) or {}
    coefficient = getattr(config, "router_aux_loss_coef", None)
    if ROUTER_LOGITS not in recorded or coefficient is None:
        return None
    return float(coefficient)


def used_experts(config: Any) -> float:
    """The share of a layer's experts that computes a token; 1 where the config does not tell it."""
    experts, used = (
        next((value for name in names if (value := getattr(config, name, None))), None)
        for names in (EXPERTS, EXPERTS_PER_TOKEN)
    )
    return used / experts if experts and used else 1.0


def router_loss(backbone: Any, output: Any, mask: torch.Tensor | None) -> torch.Tensor:
    """The loss of one forward pass (Switch Transformer, arXiv 2101.03961, eq. 4 to 6), a scalar.

    Args:
        backbone: a mixture of experts.
        output: of its forward pass with `output_router_logits`.
        mask: 1 for a token and 0 for padding (rows, tokens); None where there is no padding.
    """
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = tuple(layer.float() for layer in output[ROUTER_LOGITS])
    top_k = backbone.config.get_text_config().num_experts_per_tok
    return load_balancing_loss_func(logits, logits[0].shape[-1], top_k, mask)
