"""Options and accounts of the commands that ask LLMs: simulate, judge and bench audit."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import Annotated

import typer

from musiccli.cli.run import Run
from musiccli.core.progress import table

PROMPTS = Annotated[
    str | None,
    typer.Option(
        metavar="SET|FOLDER",
        show_default=False,
        help="Prompt texts: paper, small (for models of few parameters), or a "
        "folder with your own files; left out: small for the embedded models, else paper.",
    ),
]
_MAX_COST = Annotated[
    float | None,
    typer.Option(
        metavar="DOLLARS",
        show_default=False,
        help="Stop in good order when this much has been spent; left out: no limit.",
    ),
]
_CONCURRENCY = Annotated[
    int, typer.Option(min=1, help="Most calls in flight to one model; fewer when it refuses.")
]
_TIMEOUT = Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="For one call.")]
_API_BASE = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[MODEL=]URL",
        show_default=False,
        help="Where a server listens that speaks OpenAI's protocol, up to /v1; "
        "give it several times to share the calls among several. MODEL=URL is for that model only; without MODEL it is for "
        "every model on a server of one's own (hosted_vllm/NAME, openai/NAME, ...). Left out: litellm's environment "
        "variables.",
    ),
]
CACHE = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        show_default=False,
        help="Finished calls; left out: calls.sqlite in the cache folder (MUSIC_CACHE).",
    ),
]
_NO_CACHE = Annotated[
    bool, typer.Option("--no-cache", help="Neither read nor keep finished calls.")
]
_OPTIONS = {
    "max_cost": (_MAX_COST, None),
    "concurrency": (_CONCURRENCY, 64),
    "timeout": (_TIMEOUT, 120),
    "api_base": (_API_BASE, None),
    "cache": (CACHE, None),
    "no_cache": (_NO_CACHE, False),
}


def with_llm_options(body: Callable) -> Callable:
    """A command that asks LLMs: adds the options of the door to them, and hands `body` an `open_client`, by which
    `open_door(models)` is a context with the Client for these models."""
    signature = inspect.signature(body, eval_str=True)
    own = [one for one in signature.parameters.values() if one.name != "open_client"]
    added = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
        )
        for name, (annotation, default) in _OPTIONS.items()
    ]

    @wraps(body)
    def command(run: Run, **given):
        door = {name: given.pop(name) for name in _OPTIONS}
        return body(run, open_client=partial(_client, run, **door), **given)

    command.__signature__ = inspect.Signature([*own, *added])
    return command


def default_prompts(given: str | None, model: str) -> str:
    from musiccli.core.bundled_models import BUNDLED_MODELS

    return given or ("small" if model.removeprefix("local/") in BUNDLED_MODELS else "paper")


@contextmanager
def _client(
    run: Run,
    models: Sequence[str],
    *,
    cache: str | None,
    no_cache: bool,
    max_cost: float | None,
    api_base: list[str] | None,
    **settings,
) -> Iterator:
    """The run's door to its models; afterwards says what each role and model used, whatever ended the run."""
    from musiccli.llm import endpoints
    from musiccli.llm.client import open_client

    endpoints.check(api_base or (), models)
    limits = {} if max_cost is None else {"max_cost": max_cost}
    client = open_client(cache, no_cache, api_base=api_base or (), **settings, **limits)
    run.live = client.progress
    try:
        yield client
    finally:
        for line in client.summary():
            run.say(line)
        client.close()


def show_costs(planned: dict) -> None:
    """What a run would take, as a table on stderr: {(role, model): Counter(calls, prompt_tokens, completion_tokens)}."""
    from musiccli.llm.providers.litellm_provider import price

    rows, total, unknown = [], 0.0, False
    for (role, model), count in planned.items():
        prices = price(model)
        cost = (
            prices and count["prompt_tokens"] * prices[0] + count["completion_tokens"] * prices[1]
        )
        total, unknown = total + (cost or 0.0), unknown or cost is None
        sizes = (f"{count[name]:,}" for name in ("calls", "prompt_tokens", "completion_tokens"))
        rows.append([f"{role} {model}", *sizes, "unknown" if cost is None else f"${cost:.2f}"])
    rows.append(["all", *("",) * 3, f"${total:.2f}" + (" and what is unknown" if unknown else "")])
    table(
        ["", "calls", "tokens in", "tokens out", "dollars"],
        rows,
        "Estimate: characters / 4, no retries",
    )
