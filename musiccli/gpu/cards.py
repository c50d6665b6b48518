"""The rates of GPUs, for the share of a card's rate that a run reaches (MFU)."""

import re

import torch

# Dense bf16 matrix products in TFLOP/s by the name that the driver gives, from NVIDIA's data sheets
# (their figures "with sparsity" halved). The first that is found in it counts.
BF16_TFLOPS = {
    "B200": 2250.0,
    "GH200": 989.5,
    "H200": 989.5,
    "H100 PCIe": 756.5,
    "H100 NVL": 835.5,
    "H100": 989.5,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A40": 149.7,
    "A10G": 70.0,
    "A10": 125.0,
    "RTX 6000 Ada": 364.2,
    "RTX A6000": 154.8,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}


def bf16_flops(device: torch.device) -> float | None:
    """The card's rate of dense bf16 matrix products in FLOP/s; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next(
        (rate * 1e12 for card, rate in BF16_TFLOPS.items() if re.search(rf"\b{card}\b", name)), None
    )


def mfu(tokens: float, seconds: float, weights: int, trained: bool, rate: float) -> float:
    """Model FLOPs utilization (PaLM, arXiv 2204.02311, appendix B), without attention's products.

    Args:
        tokens: that passed through the network; what is computed again is not counted.
        seconds: that they took.
        weights: of the layers, without embeddings.
        trained: whether all weights are trained, 6 operations a weight and token. Frozen weights,
            as with LoRA, have no gradients: 4.
        rate: of the device in FLOP/s.
    """
    return (6 if trained else 4) * weights * tokens / (seconds * rate)
