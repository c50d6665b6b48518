"""music merge adapter --out rm"""

from pathlib import Path
from typing import Annotated

import typer

from musiccli.cli.app import plain_command
from musiccli.cli.paths import FOLDER_WRITTEN, MODEL_READ, READ
from musiccli.core.progress import Clock, say


@plain_command
def merge(
    adapter: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            help="A LoRA adapter as peft writes it: another tool's, or the folder `adapter` of a "
            "reward model.",
        ),
        READ,
    ],
    out: Annotated[
        str,
        typer.Option(metavar="DIR", help="The folder of the merged checkpoint, a new one."),
        FOLDER_WRITTEN,
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            show_default=False,
            help="The adapter's backbone. Left out: the one that the adapter names.",
        ),
        MODEL_READ,
    ] = None,
) -> None:
    """Merge a LoRA adapter into its backbone: a plain checkpoint with the same scores.

    \b
    music merge rm/adapter --out plain
    music merge trl-adapter --model google/gemma-2-9b-it --out rm
    music score pairs.jsonl --model rm | music bench agreement
    """
    from musiccli.reward_model.adapter_config import refuse_impossible_merge

    refuse_impossible_merge(Path(adapter), Path(out), model)
    from musiccli.reward_model.merge import merge

    clock = Clock()
    difference = merge(
        Path(adapter), Path(out), model=model, say=lambda text: say(f"music merge: {text}")
    )
    say(
        f"music merge: reward model in {out}; its rewards differ by {difference:.1g} from the "
        f"adapter's; {clock}"
    )
