"""How to score."""

from dataclasses import dataclass

from musiccli.reward_model.packing import DEFAULT_BUDGET


@dataclass(frozen=True)
class ScoreConfig:
    """How to score.

    Attributes:
        per_turn: whether to add the reward after each assistant turn as well.
        last_only: whether the model sees the last user message and its reply alone, after the
            system message if there is one.
        max_length: tokens, above which a conversation loses its oldest exchanges; None for what
            the model takes.
        budget: tokens in one forward pass.
    """

    per_turn: bool = False
    last_only: bool = False
    max_length: int | None = None
    budget: int = DEFAULT_BUDGET
