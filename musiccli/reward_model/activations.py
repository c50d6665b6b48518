"""What a layer computes forwards and needs again backwards: what is dear is kept, what is cheap is computed again."""

from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from musiccli import gemm
from musiccli.reward_model.network import RewardNetwork

# On a CPU the products are nearly all of the work, and norms, gates and rotations nearly all of the memory: to compute
# these again costs no time that can be measured (less memory is touched) and takes half off the peak.
DEAR = {torch.ops.mkldnn._linear_pointwise.default, torch.ops.musiccli.attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default} if gemm.ONEDNN else set()


def recompute(network: RewardNetwork, everything: bool) -> None:
    """Let each layer compute again backwards all but its input (`everything`), or, on a CPU, all but its products. The
    gradients stay the same to the last bit."""
    options = {"use_reentrant": False}
    if not everything:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    if everything or selects(network):
        network.core.activation_checkpointing_enable(options)


def selects(network: RewardNetwork) -> bool:
    """Whether products are kept and the rest is computed again."""
    return gemm.ONEDNN and network.packed and network.backbone.device.type == "cpu" \
        and network.core.supports_gradient_checkpointing


class Products(TorchDispatchMode):
    """Counts the bytes of products that are computed within it."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func in DEAR:
            self.bytes += (found[0] if isinstance(found, tuple) else found).nbytes
        return found


def _policy(context, operation, *args, **kwargs):
    return CheckpointPolicy.MUST_SAVE if operation in DEAR else CheckpointPolicy.PREFER_RECOMPUTE
