"""Contests between the picks that two models make from the same candidates."""

from collections.abc import Mapping
from typing import Any


def is_same_pick(contest: Mapping[str, Any]) -> bool:
    """Whether both sides are the same candidate. Such a contest is a tie that needs no judge."""
    picks = contest.get("picks")
    return isinstance(picks, dict) and "a" in picks and picks["a"] == picks.get("b")
