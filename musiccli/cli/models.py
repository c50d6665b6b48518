"""Options and accounts of the commands that ask LLMs: simulate and judge."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from musiccli.cli.common import Run
from musiccli.progress import table

PROMPTS = Annotated[str | None, typer.Option(
    metavar="SET|FOLDER", show_default=False, help="Prompt texts: paper, small (for models of few parameters), or a "
    "folder with your own files; left out: small for the embedded models, else paper.")]
MAX_COST = Annotated[float | None, typer.Option(
    metavar="DOLLARS", show_default=False, help="Stop in good order when this much has been spent; left out: no "
    "limit.")]
CONCURRENCY = Annotated[int, typer.Option(min=1, help="Most calls in flight to one model; fewer when it refuses.")]
TIMEOUT = Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="For one call.")]
API_BASE = Annotated[list[str] | None, typer.Option(
    metavar="[MODEL=]URL", show_default=False, help="Where a server listens that speaks OpenAI's protocol, up to /v1; "
    "give it several times to share the calls among several. MODEL=URL is for that model only; without MODEL it is for "
    "every model on a server of one's own (hosted_vllm/NAME, openai/NAME, ...). Left out: litellm's environment "
    "variables.")]
CACHE = Annotated[str | None, typer.Option(
    metavar="FILE", show_default=False, help="Finished calls; left out: calls.sqlite in the cache folder "
    "(MUSIC_CACHE).")]
NO_CACHE = Annotated[bool, typer.Option("--no-cache", help="Neither read nor keep finished calls.")]


def default_prompts(given: str | None, model: str) -> str:
    from musiccli.llm.embedded import EMBEDDED

    return given or ("small" if model.removeprefix("local/") in EMBEDDED else "paper")


@contextmanager
def client_for(run: Run, cache: str | None, no_cache: bool, concurrency: int, timeout: float,
               max_cost: float | None, api_base: list[str] | None, models: Sequence[str]) -> Iterator:
    """The run's door to its models; afterwards says what each role and model used, whatever ended the run."""
    from musiccli.llm import endpoints
    from musiccli.llm.client import open_client

    endpoints.check(api_base or (), models)
    limits = {} if max_cost is None else {"max_cost": max_cost}
    client = open_client(cache, no_cache, concurrency=concurrency, timeout=timeout, api_base=api_base or (),
                         **limits)
    run.live = client.progress
    try:
        yield client
    finally:
        for line in client.summary():
            run.say(line)
        client.close()


def show_costs(planned: dict) -> None:
    """What a run would take, as a table on stderr: {(role, model): Counter(calls, prompt_tokens, completion_tokens)}.
    """
    from musiccli.llm.provider import price

    rows, total, unknown = [], 0.0, False
    for (role, model), count in planned.items():
        prices = price(model)
        cost = prices and count["prompt_tokens"] * prices[0] + count["completion_tokens"] * prices[1]
        total, unknown = total + (cost or 0.0), unknown or cost is None
        sizes = (f"{count[name]:,}" for name in ("calls", "prompt_tokens", "completion_tokens"))
        rows.append([f"{role} {model}", *sizes, "unknown" if cost is None else f"${cost:.2f}"])
    rows.append(["all", *("",) * 3, f"${total:.2f}" + (" and what is unknown" if unknown else "")])
    table(["", "calls", "tokens in", "tokens out", "dollars"], rows, "Estimate: characters / 4, no retries")
