"""How to train: what a run is told, kept with the checkpoint, and compared when it is resumed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the paper's (arXiv 2512.24693): 64 pairs a step, 2e-6, 2048 tokens."""

    model: str = "google/gemma-2-9b-it"
    batch: int = 64  # pairs a step, over all processes
    steps: int | None = None  # else `epochs` passes over the pairs
    epochs: float = 1.0
    lr: float = 2e-6
    schedule: str = "linear"  # to zero, as TRL's default; the paper does not say
    warmup: float = 0.03  # of all steps
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int = 2048
    lora: int | None = None
    init_from: str | None = None  # a reward model to go on from, in place of `model`
    margin_field: str | None = (
        None  # by how much chosen should be ahead (Llama 2, arXiv 2307.09288, eq. 2)
    )
    margin_scale: float = 1.0  # margins are multiplied by it
    per_turn: bool = False  # the loss at every assistant turn from where the sides part, in place of the last alone
    center: float | None = None  # weight of the squared sum of a pair's rewards (arXiv 2312.09244)
    budget: int = 1024  # tokens a micro-batch
    activation_checkpointing: bool = False
    seed: int = 0


# Fields that notes written before call by another name.
RENAMED_SETTINGS = {"centre": "center"}

RESUMABLE_SETTINGS = {
    "budget",
    "activation_checkpointing",
}  # how a step is computed, not what: a run goes on with others
