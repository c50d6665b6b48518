"""What a layer computes forwards and needs again backwards: what is dear is kept, what is cheap is computed again."""

from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from musiccli.cpu import products as gemm
from musiccli.reward_model.network import RewardNetwork
from musiccli.reward_model.packing import cost

# On a CPU the products are nearly all of the work, and norms, gates and rotations nearly all of the memory: to compute
# these again takes half off the peak, and a tenth more time. So it is done where many tokens are computed at once.
RECOMPUTE_ABOVE = 1024  # tokens, up to which everything is kept
CPU = torch.device("cpu")
SAVED_OPS = {
    torch.ops.mkldnn._linear_pointwise.default if gemm.ONEDNN else torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.musiccli.attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def recompute(network: RewardNetwork, everything: bool, device: torch.device = CPU) -> None:
    """Let each layer compute again backwards all but its input (`everything`), or, where `device`, on which it will be
    trained, is a CPU and of more than KEPT tokens at once, all but its products. The gradients stay the same to the
    last bit."""
    if everything:
        network.core.activation_checkpointing_enable({"use_reentrant": False})
    elif selects(network, device):
        network.core.activation_checkpointing_enable(
            {
                "use_reentrant": False,
                "context_fn": partial(create_selective_checkpoint_contexts, _policy),
            }
        )
        layers = [
            module
            for module in network.backbone.modules()
            if hasattr(module, "gradient_checkpointing")
        ]

        def choose(_, given):
            many = sum(map(cost, given[0])) > RECOMPUTE_ABOVE
            for layer in layers:
                layer.gradient_checkpointing = many

        network.register_forward_pre_hook(choose)


def selects(network: RewardNetwork, device: torch.device) -> bool:
    """Whether of many tokens products are kept and the rest is computed again, in training on `device`."""
    return network.packed and device.type == "cpu" and network.core.supports_gradient_checkpointing


class Products(TorchDispatchMode):
    """Counts the bytes of products that are computed within it."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func in SAVED_OPS:
            self.bytes += (found[0] if isinstance(found, tuple) else found).nbytes
        return found


def _policy(context, operation, *args, **kwargs):
    return (
        CheckpointPolicy.MUST_SAVE if operation in SAVED_OPS else CheckpointPolicy.PREFER_RECOMPUTE
    )
