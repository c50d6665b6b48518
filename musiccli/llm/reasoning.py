"""How much a model thinks before it replies: which models may, and what is asked of them."""

from collections.abc import Iterable, Sequence

from musiccli.core.errors import InputError
from musiccli.llm.endpoints import model_urls, speaks_openai
from musiccli.llm.prices import listed_entry

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")  # litellm's reasoning_effort
NO_EFFORT = "none"


def parse_effort(text: str) -> tuple[str | None, str]:
    """Split "MODEL=EFFORT" or "EFFORT" into the model, or None, and the effort.

    Raises:
        InputError: the effort is none of EFFORTS.
    """
    model, _, effort = text.rpartition("=")
    if effort not in EFFORTS:
        raise InputError(
            f"`reasoning` {text}: expected [MODEL=]EFFORT, with an effort of {', '.join(EFFORTS)}"
        )
    return model or None, effort


def effort_of(model: str, reasoning: Iterable[str]) -> str | None:
    """The effort that is asked of a model: the one for it by name, else the one for all models.

    Args:
        reasoning: what was set, each "EFFORT" or "MODEL=EFFORT".
    """
    efforts = dict(map(parse_effort, reasoning))
    return efforts.get(model, efforts.get(None))


def may_think(model: str, effort: str | None) -> bool:
    """Whether a model may think before it replies, as far as litellm's table knows."""
    if effort:
        return effort != NO_EFFORT
    entry = listed_entry(model)
    default = entry.get("default_reasoning_effort")
    return bool(entry.get("supports_reasoning")) and default != NO_EFFORT


def check_reasoning(
    reasoning: Sequence[str], models: Sequence[str], api_base: Sequence[str] = ()
) -> None:
    """Raises InputError where an effort is none, names no model, or cannot be followed.

    A server of the user's own is not asked beforehand: it refuses its first call.
    """
    for text in reasoning:
        name, _ = parse_effort(text)
        if name and name not in models:
            raise InputError(
                f"`reasoning` {text}: no model of this run has that name; there is "
                f"{', '.join(dict.fromkeys(models))}"
            )
    for model in dict.fromkeys(models):
        if effort := effort_of(model, reasoning):
            _check_effort(model, effort, api_base)


def _check_effort(model: str, effort: str, api_base: Sequence[str]) -> None:
    """Raises InputError where a model is known not to follow an effort."""
    if any(speaks_openai(model, url) for url in model_urls(model, api_base)):
        return
    if not _takes_effort(model, effort):
        efforts = [level for level in EFFORTS if _takes_effort(model, level)]
        raise InputError(
            f"{model}: takes no `reasoning` {effort}"
            + (f", but {', '.join(efforts)}" if efforts else ", nor any other")
            + "; MODEL=EFFORT is for one model of several"
        )


def _takes_effort(model: str, effort: str) -> bool:
    """Whether a model follows an effort, as far as that is known without asking it."""
    if model.startswith("local/"):
        return effort == NO_EFFORT
    from musiccli.llm.providers.litellm_provider import takes_effort

    cannot_stop = effort == NO_EFFORT and listed_entry(model).get("thinking_always_on")
    return not cannot_stop and takes_effort(model, effort)
