"""The options of `music sample` with their defaults."""

from dataclasses import dataclass
from enum import StrEnum


class Emit(StrEnum):
    """The kind of record that the rows become."""

    seeds = "seeds"
    prompts = "prompts"
    pairs = "pairs"
    comparisons = "comparisons"
    conversations = "conversations"
    corruptions = "corruptions"
    contrasts = "contrasts"


class Speaker(StrEnum):
    """Who speaks after a seed."""

    user = "user"
    assistant = "assistant"
    any = "any"


class CorruptionKind(StrEnum):
    """What is wrong at one turn. See corruptions.py for each kind."""

    reply = "reply"
    user = "user"
    drop_user = "drop_user"
    swap = "swap"


class ContrastTurn(StrEnum):
    """The turn whose reply a contrast replaces."""

    any = "any"
    last = "last"


class Ranked(StrEnum):
    """Which pairs a row with several ranked replies gives."""

    all = "all"
    best_worst = "best-worst"


@dataclass(frozen=True)
class SampleConfig:
    """What to make of each record, and which results to keep."""

    emit: Emit = Emit.seeds
    count: int | None = None  # results to choose at random; None keeps all
    seed: int = 0
    next_speaker: Speaker = Speaker.user  # seeds end before this speaker's message
    max_tokens: int | None = None  # about 4 characters each; None allows any length
    kinds: tuple[CorruptionKind, ...] = tuple(CorruptionKind)  # of corruptions
    turn: ContrastTurn = ContrastTurn.any  # of contrasts
    label: str | None = None  # ranks replies that have several labels; None is the format's first
    ranked: Ranked = Ranked.all
