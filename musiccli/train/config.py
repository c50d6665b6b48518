"""The settings of a training run, with every default."""

from dataclasses import dataclass
from typing import Literal

Schedule = Literal["linear", "cosine", "constant_with_warmup"]
CPU_BUDGET = 1024  # tokens in a micro-batch


@dataclass(frozen=True)
class TrainConfig:
    """What determines a training run. It is kept with the checkpoint, and compared on resuming.

    The paper (arXiv 2512.24693) gives the defaults of `batch`, `lr` and `max_length`.

    Attributes:
        model: the backbone, which gets a new reward head: a hub id, a folder or local/NAME.
        init_from: a reward model to continue from, with its head, in place of `model`.
        layers: how many of the backbone's layers are kept, counted from the first; None keeps all.
        batch: pairs in one optimizer step, over all processes.
        steps: optimizer steps; None means `epochs` passes over the pairs.
        epochs: passes over the pairs, where `steps` is None.
        lr: peak learning rate.
        schedule: how the learning rate falls after warmup. "linear" falls to zero, as by default in
            TRL; the paper does not say.
        warmup: fraction of the steps in which the learning rate rises.
        weight_decay: AdamW's weight decay.
        max_grad_norm: the L2 norm to which gradients are clipped.
        max_length: the most tokens of one conversation.
        lora: rank of the low-rank adapters; None trains all weights.
        qlora: keep the frozen base below the adapters in 4 bits (arXiv 2305.14314).
        margin_field: the field of each pair that says by how much the chosen reward should be above
            the rejected one (Llama 2, arXiv 2307.09288, eq. 2); None means no margin.
        margin_scale: the factor that multiplies each margin.
        per_turn: compare rewards at every assistant turn from the first difference on, and take the
            mean of the losses. Otherwise compare them at the last turn only.
        center: weight of the squared sum of a pair's rewards in its loss, which pulls rewards to a
            mean of zero (arXiv 2312.09244); None means 0.
        router_aux_loss: weight of the load-balancing loss of a mixture of experts; None means that
            of the backbone's config.
        eval_split: the fraction of the pairs that is held out of training and measured; None holds
            out none.
        patience: how many measurements without a lower loss of the first held-out set stop the run,
            which then keeps the weights of the lowest loss; None means all steps and the last.
        budget: the most tokens in one micro-batch, unless a single pair has more; None means as
            many as suit the device.
        activation_checkpointing: keep only each layer's input, and compute the rest again in the
            backward pass.
        seed: determines the new head, the adapters and the order of the pairs.
    """

    model: str = "google/gemma-2-9b-it"
    init_from: str | None = None
    layers: int | None = None
    batch: int = 64
    steps: int | None = None
    epochs: float = 1.0
    lr: float = 2e-6
    schedule: Schedule = "linear"
    warmup: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int = 2048
    lora: int | None = None
    qlora: bool = False
    margin_field: str | None = None
    margin_scale: float = 1.0
    per_turn: bool = False
    center: float | None = None
    router_aux_loss: float | None = None
    eval_split: float | None = None
    patience: int | None = None
    budget: int | None = None
    activation_checkpointing: bool = False
    seed: int = 0

    @property
    def full_row(self) -> int:
        """`budget`, or what suits a CPU."""
        return self.budget or CPU_BUDGET


# A run may continue with other values of these: they say how a step is computed, not what.
RESUMABLE_SETTINGS = {"budget", "activation_checkpointing"}

# Settings by the names that older checkpoints have for them.
RENAMED_SETTINGS = {"centre": "center"}
