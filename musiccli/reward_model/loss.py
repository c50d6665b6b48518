"""The losses of reward models, each a function of the rewards of chosen and rejected replies."""

from collections.abc import Sequence

import torch

from musiccli.gpu.transfer import copy_to_device


def bradley_terry(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    margin: torch.Tensor | float = 0.0,
    center: float = 0.0,
) -> torch.Tensor:
    """-log sigmoid(chosen - rejected - margin) + center * (chosen + rejected)^2.

    The negative log likelihood of the preferences (Bradley and Terry, 1952), the loss of the
    reward model in arXiv 2512.24693.

    Args:
        chosen: rewards (pairs,).
        rejected: rewards (pairs,).
        margin: by how much chosen should be ahead (Llama 2, arXiv 2307.09288, eq. 2).
        center: weight of the term that pulls rewards to a mean of zero (arXiv 2312.09244; TRL's
            center_rewards_coefficient).

    Returns:
        (pairs,), not reduced: the caller knows the batch.
    """
    loss = -torch.nn.functional.logsigmoid(chosen - rejected - margin)
    return loss + center * (chosen + rejected).square() if center else loss


def pair_losses(
    chosen: Sequence[torch.Tensor],
    rejected: Sequence[torch.Tensor],
    margins: Sequence[float],
    center: float = 0.0,
) -> torch.Tensor:
    """`bradley_terry` of each pair, as the mean over the turns at which its sides are compared.

    Args:
        chosen: for each pair the rewards (turns,) of its chosen side.
        rejected: the same of its rejected side, of the same lengths.
        margins: a number for each pair.
        center: as in `bradley_terry`.

    Returns:
        (pairs,).
    """
    turns = [len(rewards) for rewards in chosen]
    margin = torch.tensor(
        [margin for margin, count in zip(margins, turns, strict=True) for _ in range(count)],
        dtype=chosen[0].dtype,
    )
    margin = copy_to_device(margin, chosen[0].device)
    losses = bradley_terry(torch.cat(list(chosen)), torch.cat(list(rejected)), margin, center)
    return torch.stack([turn_losses.mean() for turn_losses in losses.split(turns)])
