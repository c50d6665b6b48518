"""The names that logs and checkpoints give to what is measured on sets of held-out pairs.

They are those of transformers' Trainer: `eval_loss`, and of a set with a name `eval_NAME_loss`.
"""

import re
from collections.abc import Iterable

LOSS = re.compile(r"eval_(?:(.+)_)?loss")


def eval_prefix(set_name: str) -> str:
    """What stands before the name of a metric of a set; a set without a name is ""."""
    return f"eval_{set_name}_" if set_name else "eval_"


def evaluated_sets(metrics: Iterable[str]) -> list[str]:
    """The names of the sets that metrics were measured on, in their order."""
    matches = filter(None, map(LOSS.fullmatch, metrics))
    return list(dict.fromkeys(match[1] or "" for match in matches))
