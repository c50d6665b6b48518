"""Options that are numbers: their name in help, and the refusal of nan and infinity."""

import inspect
import math
from collections.abc import Iterable
from typing import get_args

import typer

WHOLE, FRACTIONAL = (int, int | None), (float, float | None)


def prepare_numbers(parameters: Iterable[inspect.Parameter]) -> None:
    """Let help call a number N, where its option has no other name for it, and refuse odd ones.

    nan is below no least value and above no greatest, so a range alone lets it pass.
    """
    for parameter in parameters:
        kind, *settings = get_args(parameter.annotation) or (None,)
        for option in settings:
            if kind in (*WHOLE, *FRACTIONAL):
                option.metavar = option.metavar or "N"
            if kind in FRACTIONAL:
                option.callback = finite


def finite(parameter: typer.CallbackParam, value: float | None) -> float | None:
    """The value of an option. Infinity alone passes where it stands for no limit, by default.

    Raises:
        typer.BadParameter: it is nan or infinite.
    """
    if value is None or math.isfinite(value) or value == parameter.default:
        return value
    raise typer.BadParameter(f"{value:g} is no finite number")
