"""The options of `music score` with their defaults."""

from dataclasses import dataclass

from musiccli.reward_model import DEFAULT_BUDGET


@dataclass(frozen=True)
class ScoreConfig:
    """Which rewards are computed, and in batches of what size.

    Attributes:
        per_turn: whether to add the reward after each assistant turn as well.
        last_only: whether the model sees the last user message and its reply alone, after the
            system message if there is one.
        max_length: the most tokens of a conversation; a longer one loses its oldest exchanges.
            None is the length of the model's context.
        budget: the most tokens in one forward pass.
    """

    per_turn: bool = False
    last_only: bool = False
    max_length: int | None = None
    budget: int = DEFAULT_BUDGET
