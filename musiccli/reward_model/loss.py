"""The loss of a reward model: Bradley-Terry on the rewards of two conversations."""

from collections.abc import Sequence

import torch


def bradley_terry(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    margin: torch.Tensor | float = 0.0,
    center: float = 0.0,
) -> torch.Tensor:
    """-log sigmoid(chosen - rejected - margin) + center (chosen + rejected)^2, (pairs,).

    The negative log likelihood of the preferences (Bradley and Terry, 1952; the loss of arXiv 2512.24693, eq. for its
    reward model), with the margin of Llama 2 (arXiv 2307.09288, eq. 2) and the pull of rewards to a mean of zero of
    arXiv 2312.09244 (TRL's center_rewards_coefficient). Not reduced: the caller knows the batch.
    """
    loss = -torch.nn.functional.logsigmoid(chosen - rejected - margin)
    return loss + center * (chosen + rejected).square() if center else loss


def pair_losses(
    chosen: Sequence[torch.Tensor],
    rejected: Sequence[torch.Tensor],
    margins: Sequence[float],
    center: float = 0.0,
) -> torch.Tensor:
    """`bradley_terry` of each pair, (pairs,): the mean over the turns at which its sides are compared.

    `chosen` and `rejected` hold a tensor (turns,) a pair, both of a pair of one length; `margins` a number a pair.
    """
    turns = [len(one) for one in chosen]
    margin = chosen[0].new_tensor(
        [by for by, count in zip(margins, turns, strict=True) for _ in range(count)]
    )
    losses = bradley_terry(torch.cat(list(chosen)), torch.cat(list(rejected)), margin, center)
    return torch.stack([one.mean() for one in losses.split(turns)])
