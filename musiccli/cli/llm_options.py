"""Options of the commands that call language models: simulate, judge and bench audit."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from musiccli.cli.run import Run
from musiccli.core.progress import table
from musiccli.llm.config import ClientConfig

if TYPE_CHECKING:
    from musiccli.llm.client import Client

# What a command with these options is handed: `with open_client(models) as client`.
OpenClient = Callable[[Sequence[str]], AbstractContextManager["Client"]]

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
    float,
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
    list[str],
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
_OPTIONS: dict[str, tuple[Any, Any]] = {  # name -> annotation, default
    "max_cost": (_MAX_COST, ClientConfig.max_cost),
    "concurrency": (_CONCURRENCY, ClientConfig.concurrency),
    "timeout": (_TIMEOUT, ClientConfig.timeout),
    "api_base": (_API_BASE, list(ClientConfig.api_base)),
    "cache": (CACHE, None),
    "no_cache": (_NO_CACHE, False),
}


def with_llm_options(body: Callable[..., None]) -> Callable[..., None]:
    """Add the options above to a command, and hand its body an `open_client` in their place."""
    parameters = inspect.signature(body, eval_str=True).parameters.values()
    added = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
        )
        for name, (annotation, default) in _OPTIONS.items()
    ]

    @wraps(body)
    def command(run: Run, **options: Any) -> None:
        client_options = {name: options.pop(name) for name in _OPTIONS}

        def open_client(models: Sequence[str]) -> AbstractContextManager["Client"]:
            return _client(run, models, **client_options)

        body(run, open_client=open_client, **options)

    kept = [parameter for parameter in parameters if parameter.name != "open_client"]
    command.__signature__ = inspect.Signature([*kept, *added])  # type: ignore[attr-defined]  # typer reads it
    return command


def default_prompts(prompts: str | None, model: str) -> str:
    """The prompt set that was asked for, else the one that suits the model."""
    from musiccli.core.bundled_models import BUNDLED_MODELS

    return prompts or ("small" if model.removeprefix("local/") in BUNDLED_MODELS else "paper")


@contextmanager
def _client(
    run: Run,
    models: Sequence[str],
    *,
    cache: str | None,
    no_cache: bool,
    api_base: list[str],
    **settings: Any,
) -> Iterator["Client"]:
    """A client for these models; when it closes, the run says what each role and model used."""
    from musiccli.llm import endpoints
    from musiccli.llm.client import open_client

    endpoints.check(api_base, models)
    config = ClientConfig(api_base=tuple(api_base), **settings)
    client = open_client(config, cache, no_cache, run.stats)
    run.live = client.progress
    try:
        yield client
    finally:
        for line in client.summary():
            run.say(line)
        client.close()


def show_costs(planned: Mapping[tuple[str, str], Counter[str]]) -> None:
    """Print what a run would take, as a table on stderr.

    Args:
        planned: by role and model, the number of "calls", "prompt_tokens" and "completion_tokens".
    """
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
