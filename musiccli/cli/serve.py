"""music serve --model rm --port 8000"""

from typing import Annotated

import typer

from musiccli.cli.app import plain_command
from musiccli.cli.options import BUDGET, MAX_LENGTH, NUM_PROCESSES
from musiccli.cli.paths import NAMED_MODEL_READ, TOKENIZER_READ
from musiccli.core.errors import InputError
from musiccli.core.progress import say
from musiccli.serve.config import MIN_MAX_BODY, ServeConfig

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@plain_command
def serve(
    model: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]DIR|ID",
            help="A reward model, as for music score; again for more. Left out, NAME is the last "
            "part of it. A request that names no model means the first.",
        ),
        NAMED_MODEL_READ,
    ],
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Listen here; 0.0.0.0 is every network."),
    ] = ServeConfig.host,
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Listen here; 0 is any free port.")
    ] = ServeConfig.port,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="MUSIC_API_KEY",
            metavar="KEY",
            show_default=False,
            help="Serve those alone who send it as a bearer token; best set in the environment.",
        ),
    ] = ServeConfig.api_key,
    actor_template: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|ID",
            show_default=False,
            help="The tokenizer of the model in training: OpenRLHF and LLaMA-Factory send text in "
            "its chat template. Left out: the text is in the reward model's.",
        ),
        TOKENIZER_READ,
    ] = None,
    max_length: MAX_LENGTH = ServeConfig.max_length,
    budget: BUDGET = ServeConfig.budget,
    patience: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="MS",
            help="Milliseconds that an idle server waits for more requests before it computes.",
        ),
    ] = ServeConfig.patience,
    max_body: Annotated[
        int, typer.Option(min=MIN_MAX_BODY, metavar="MB", help="Refuse larger requests (413).")
    ] = ServeConfig.max_body,
    max_queue: Annotated[
        int,
        typer.Option(
            min=1, metavar="TOKENS", help="Send requests away while more tokens wait (429)."
        ),
    ] = ServeConfig.max_queue,
    timeout: Annotated[
        float, typer.Option(min=0.001, metavar="S", help="Give up a request after so many seconds.")
    ] = ServeConfig.timeout,
    num_processes: NUM_PROCESSES = None,
) -> None:
    """Serve rewards over HTTP, in the protocols of vLLM, SGLang, OpenRLHF and LLaMA-Factory.

    \b
    music serve --model rm --port 8000
    music serve --model rm --model baseline=other/rm --actor-template policy
    music serve --model rm 2>&1 | tee serve.log
    """
    paths = named_models(model)
    import asyncio

    from musiccli.core.processes import divide_threads

    processes = num_processes or ServeConfig.processes
    if processes > 1:
        divide_threads(processes)  # before torch is imported

    from musiccli.reward_model.checkpoint import load
    from musiccli.serve.actor_template import ActorTemplate
    from musiccli.serve.served_model import ServedModel
    from musiccli.serve.server import RewardServer, run

    def report(text: str) -> None:
        say(f"music serve: {text}")

    config = ServeConfig(
        host, port, api_key, max_length, budget, patience, max_body, max_queue, timeout, processes
    )
    template = ActorTemplate.load(actor_template) if actor_template else None
    models = []
    for name, path in paths.items():
        loaded = load(path, report)
        limit = min(max_length or loaded.context_length, loaded.context_length)
        models.append(ServedModel(name, path, loaded, limit))
    if host not in LOOPBACK and api_key is None:
        report(f"warning: whoever reaches {host} is served; `api_key` would ask for a key")
    asyncio.run(run(RewardServer(models, config, template, report), report))


def named_models(models: list[str]) -> dict[str, str]:
    """The path of each model by its name.

    Raises:
        InputError: two have the same name.
    """
    paths: dict[str, str] = {}
    for text in models:
        name, separator, path = text.partition("=")
        if not separator:
            name, path = text.rstrip("/").rsplit("/", 1)[-1], text
        if not name or not path:
            raise InputError(f"`model` {text}: expected NAME=DIR, or a model alone")
        if name in paths:
            raise InputError(f"`model` {text}: another one is called {name}; write NAME=DIR")
        paths[name] = path
    return paths
