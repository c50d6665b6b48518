"""Options of the commands that call language models: simulate, judge and bench audit."""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from musiccli.cli.paths import PathUse
from musiccli.cli.run import Run
from musiccli.core.progress import table
from musiccli.core.records import Record
from musiccli.judge.config import JudgeConfig
from musiccli.llm.config import ClientConfig

if TYPE_CHECKING:
    from musiccli.llm.client import Client
    from musiccli.llm.dry_run import Estimate

PROMPTS = Annotated[
    str | None,
    typer.Option(
        metavar="SET|FOLDER",
        show_default=False,
        help="Prompt texts: paper, small (for models of few parameters), self-taught and "
        "self-taught-small (contrasts that read the plain reply), rankjudge (judges name the "
        "flaw), or a folder with your own files; left out: small for the bundled models, else "
        "paper.",
    ),
    PathUse(names="prompts"),
]
CACHE = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        show_default=False,
        help="Finished calls; left out: calls.sqlite in the cache folder (MUSIC_CACHE).",
    ),
    PathUse(written=True, store="calls.sqlite"),
]
MAX_COST = Annotated[
    float,
    typer.Option(
        metavar="DOLLARS",
        show_default=False,
        help="Stop in good order when this much has been spent; left out: no limit.",
    ),
]
CONCURRENCY = Annotated[
    int, typer.Option(min=1, help="Most calls in flight to one model; fewer when it refuses.")
]
TIMEOUT = Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="For one call.")]
API_BASE = Annotated[
    list[str],
    typer.Option(
        metavar="[MODEL=]URL",
        show_default=False,
        help="Address of a server that speaks OpenAI's protocol, up to /v1; give it several times "
        "to share the calls among several servers. MODEL=URL is for that model only; URL alone is "
        "for every model on a server of your own (hosted_vllm/NAME, openai/NAME, ..., with a NAME "
        "that `curl URL/models` lists). Left out: "
        "litellm's environment variables.",
    ),
]
REASONING = Annotated[
    list[str],
    typer.Option(
        metavar="[MODEL=]EFFORT",
        show_default=False,
        help="How much a model thinks before it replies: none, minimal, low, medium, high, xhigh "
        "or max. Thoughts count in the limit of a reply and in its cost. MODEL=EFFORT is for that "
        "model only; may be repeated. Left out: the model's own way.",
    ),
]
DRY_RUN = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Only estimate calls, tokens and dollars, from a sample of the input.",
    ),
]
NO_CACHE = Annotated[bool, typer.Option("--no-cache", help="Neither read nor keep finished calls.")]
OPTIONS: dict[str, tuple[Any, Any]] = {  # name -> annotation, default
    "max_cost": (MAX_COST, ClientConfig.max_cost),
    "concurrency": (CONCURRENCY, ClientConfig.concurrency),
    "timeout": (TIMEOUT, ClientConfig.timeout),
    "api_base": (API_BASE, list(ClientConfig.api_base)),
    "reasoning": (REASONING, list(ClientConfig.reasoning)),
    "cache": (CACHE, None),
    "no_cache": (NO_CACHE, False),
}


LIMITS = ("assistant_tokens", "user_tokens", "max_tokens")  # options that limit replies


@dataclass(frozen=True)
class OpenClient:
    """What a command with OPTIONS is handed: `with open_client(models) as client`.

    Attributes:
        limits: the options of the command that limit the tokens of replies.
        options: the values of OPTIONS.
    """

    run: Run
    limits: tuple[str, ...]
    options: Mapping[str, Any]

    @contextmanager
    def __call__(self, models: Sequence[str]) -> Iterator["Client"]:
        """A client for these models; when it closes, the run says what each of them used."""
        from musiccli.llm.client import open_client

        self.thinking_models(models)
        settings = dict(self.options)
        cache, no_cache = settings.pop("cache"), settings.pop("no_cache")
        for name in ("api_base", "reasoning"):
            settings[name] = tuple(settings[name])
        config = ClientConfig(**settings)
        client = open_client(config, cache, no_cache, self.run.stats, self.run.title)
        self.run.live = client.progress
        try:
            yield client
        finally:
            for line in client.summary():
                self.run.say(line)
            client.close()

    def thinking_models(self, models: Sequence[str]) -> set[str]:
        """Those of the models that may think before they reply.

        What that means is said of each that no effort is given to.

        Raises:
            InputError: a model cannot be called as the options say.
        """
        from musiccli.llm.endpoints import check_api_base
        from musiccli.llm.reasoning import check_reasoning, effort_of, may_think

        api_base, reasoning = self.options["api_base"], self.options["reasoning"]
        check_api_base(api_base, models)
        check_reasoning(reasoning, models, api_base)
        efforts = {model: effort_of(model, reasoning) for model in models}
        thinking = {model for model, effort in efforts.items() if may_think(model, effort)}
        limits = " and ".join(f"`{name}`" for name in self.limits)
        for model in sorted(thinking):
            if not efforts[model]:
                self.run.say(
                    f"{model} may think before it replies: thoughts are paid for as replies are, "
                    f"and count in {limits}, so that a reply may be cut or empty; set `reasoning` "
                    f"none or low, or raise {limits}"
                )
        return thinking


def with_llm_options(body: Callable[..., None]) -> Callable[..., None]:
    """Add OPTIONS to a command.

    In their place `body(run, open_client, ...)` gets an OpenClient.
    """

    @wraps(body)
    def command(run: Run, **options: Any) -> None:
        limits = tuple(name for name in LIMITS if name in options)
        client_options = {name: options.pop(name) for name in OPTIONS}
        body(run, open_client=OpenClient(run, limits, client_options), **options)

    parameters = inspect.signature(body, eval_str=True).parameters.values()
    kept = [parameter for parameter in parameters if parameter.name != "open_client"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter(name, keyword, annotation=annotation, default=default)
        for name, (annotation, default) in OPTIONS.items()
    ]
    signature = inspect.Signature([*kept, *added])
    command.__signature__ = signature  # type: ignore[attr-defined]  # typer reads the options here
    return command


def default_prompts(prompts: str | None, model: str) -> str:
    """The prompt set that was asked for, else the one that suits the model."""
    from musiccli.core.bundled_models import BUNDLED_MODELS

    return prompts or ("small" if model.removeprefix("local/") in BUNDLED_MODELS else "paper")


def show_estimate(
    run: Run, estimate: "Estimate", items: str, thinking: Collection[str], more: str
) -> None:
    """Print what a run would take, as a table on stderr; the run writes nothing.

    Args:
        estimate: what was counted.
        items: what it was counted on, in the plural.
        thinking: the models that may think before they reply.
        more: what else was assumed, to end the sentence.
    """
    from musiccli.llm.providers.litellm_provider import token_prices

    names = ("calls", "prompt_tokens", "completion_tokens")
    rows, cost, without_price = [], 0.0, 0
    planned = estimate.planned
    for (role, model), count in planned.items():
        prices = token_prices(model)
        dollars = "unknown"
        if prices is None:
            without_price += 1
        else:
            part = prices.cost(count["prompt_tokens"], count["completion_tokens"])
            cost, dollars = cost + part, f"${part:.2f}"
        rows.append([f"{role} {model}", *(f"{count[name]:,}" for name in names), dollars])
    sums = [f"{sum(count[name] for count in planned.values()):,}" for name in names]
    dollars = "unknown" if planned and without_price == len(planned) else f"${cost:.2f}"
    if 0 < without_price < len(planned):
        dollars += " and what is unknown"
    rows.append(["all", *sums, dollars])
    table(
        ["", "calls", "tokens in", "tokens out", "dollars"],
        rows,
        "Estimate: characters / 4, no retries",
    )
    run.withhold()
    run.say(
        f"an estimate from {estimate.drawn:,} of {estimate.total:,} {items}, drawn at random; each "
        "reply counts as two thirds of its limit"
        + (", one with thoughts as all of it" if thinking else "")
        + more
    )


def show_judge_estimate(
    run: Run, pairs: Iterable[Record], config: JudgeConfig, thinking: Collection[str]
) -> None:
    """Print what judging these pairs would take; the run writes nothing.

    Args:
        thinking: the judges that may think before they reply.
    """
    from musiccli.judge.estimate import estimate

    show_estimate(run, estimate(pairs, config, thinking), "pairs", thinking, "")
