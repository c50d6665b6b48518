"""What a model's tokens cost, from the price table that litellm brings along: reading it takes milliseconds, importing
litellm seconds."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import orjson

TABLE = "model_prices_and_context_window_backup.json"


@cache
def price(model: str) -> tuple[float, float] | None:
    """US dollars per prompt token and per completion token; None where the table does not have them."""
    if model.startswith("local/"):
        return 0.0, 0.0
    prefix, _, name = model.partition("/")
    known = _table()
    found = known.get(model) or known.get(name) or {}
    if model not in known and found.get("litellm_provider") != prefix:
        return None
    prices = found.get("input_cost_per_token"), found.get("output_cost_per_token")
    return None if None in prices else prices


def _table() -> dict:
    spec = find_spec("litellm")
    path = Path(spec.submodule_search_locations[0], TABLE) if spec else None
    return orjson.loads(path.read_bytes()) if path and path.exists() else {}
