"""Prices of tokens, from the table that litellm brings along.

Reading the table takes milliseconds; importing litellm takes seconds.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from musiccli.llm.call import Reply

TABLE = "model_prices_and_context_window_backup.json"


class TokenPrices(NamedTuple):
    """US dollars for one token of the prompt and for one of the reply."""

    prompt: float
    completion: float

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """US dollars for so many tokens."""
        return prompt_tokens * self.prompt + completion_tokens * self.completion

    def reply_cost(self, reply: Reply) -> float | None:
        """US dollars for a reply; None where its tokens cost money and were not counted."""
        if any(self) and not reply.has_counts:
            return None
        return self.cost(reply.prompt_tokens, reply.completion_tokens)


@cache
def listed_prices(model: str) -> TokenPrices | None:
    """The prices of a model; None where the table does not have them."""
    return TokenPrices(0.0, 0.0) if model.startswith("local/") else prices_of(listed_entry(model))


@cache
def listed_entry(model: str) -> dict[str, Any]:
    """What the table says of a model; nothing of one that it does not list."""
    provider, _, name = model.partition("/")
    table = _table()
    entry: dict[str, Any] = table.get(model) or table.get(name) or {}
    return entry if model in table or entry.get("litellm_provider") == provider else {}


def prices_of(entry: dict[str, Any]) -> TokenPrices | None:
    """The prices in an entry of litellm's table; None where one of the two is missing."""
    prompt, completion = entry.get("input_cost_per_token"), entry.get("output_cost_per_token")
    return None if prompt is None or completion is None else TokenPrices(prompt, completion)


def _table() -> dict[str, Any]:
    spec = find_spec("litellm")
    if not spec or not spec.submodule_search_locations:
        return {}
    path = Path(spec.submodule_search_locations[0], TABLE)
    table: dict[str, Any] = orjson.loads(path.read_bytes()) if path.exists() else {}
    return table
