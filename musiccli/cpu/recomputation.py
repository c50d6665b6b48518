"""Which results of a layer's forward pass a CPU keeps for the backward pass.

Matrix products take nearly all of the time, while norms, gates and rotations take nearly all of
the memory. Keeping only the products halves the peak memory and takes a tenth more time.
"""

from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

import musiccli.cpu.attention  # noqa: F401  defines torch.ops.musiccli.attention
from musiccli.cpu.linear import ONEDNN_IS_FASTER

SAVED_OPS = {
    torch.ops.mkldnn._linear_pointwise.default if ONEDNN_IS_FASTER else torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.musiccli.attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def _policy(context, operation, *args, **kwargs) -> CheckpointPolicy:
    return (
        CheckpointPolicy.MUST_SAVE if operation in SAVED_OPS else CheckpointPolicy.PREFER_RECOMPUTE
    )


# For torch.utils.checkpoint's `context_fn`.
save_products = partial(create_selective_checkpoint_contexts, _policy)


class SavedBytes(TorchDispatchMode):
    """Counts the bytes that the operations of SAVED_OPS return within it."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Call one operation, as PyTorch asks of a dispatch mode."""
        result = func(*args, **(kwargs or {}))
        if func in SAVED_OPS:
            self.bytes += (result[0] if isinstance(result, tuple) else result).nbytes
        return result
