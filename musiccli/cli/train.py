"""music train pairs.jsonl music.jsonl --model google/gemma-2-9b-it --out rm"""

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from musiccli.cli.options import ACCELERATE_CONFIG, NUM_PROCESSES, SEED
from musiccli.cli.run import Run, stage
from musiccli.core import jsonl, records


class Schedule(StrEnum):
    linear = "linear"
    cosine = "cosine"
    constant_with_warmup = "constant_with_warmup"


@stage(writes=False)
def train(
    run: Run,
    out: Annotated[
        str,
        typer.Option(
            metavar="DIR", help="Where the reward model goes; the same line again resumes."
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Backbone, which gets a new head: a hub id, a folder or local/NAME.",
        ),
    ] = "google/gemma-2-9b-it",
    init_from: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|ID",
            show_default=False,
            help="In place of --model: a reward model to go on from; its head is kept.",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pairs a step, over all processes.")] = 64,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, show_default=False, help="Optimiser steps; left out: as --epochs says."
        ),
    ] = None,
    epochs: Annotated[float, typer.Option(min=0.0, help="Passes over the pairs.")] = 1.0,
    lr: Annotated[
        float, typer.Option(min=0, help="Peak learning rate; LoRA wants about 1e-4.")
    ] = 2e-6,
    schedule: Annotated[
        Schedule, typer.Option(help="How the rate goes on after its rise.")
    ] = Schedule.linear,
    warmup: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the steps in which the rate rises.")
    ] = 0.03,
    max_length: Annotated[
        int,
        typer.Option(
            min=2,
            metavar="TOKENS",
            help="Longer pairs lose whole oldest exchanges on "
            "both sides, or are dropped; both are counted.",
        ),
    ] = 2048,
    lora: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="RANK",
            show_default=False,
            help="Train low-rank adapters and the head; merged when saved. Left out: all weights.",
        ),
    ] = None,
    margin_field: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            show_default=False,
            help="A number of each pair "
            "(or of its metadata) by which chosen should be ahead: Llama 2's margin loss. A list "
            "counts by its length: contrast gives a unit for every contrasted turn.",
        ),
    ] = None,
    margin_scale: Annotated[
        float, typer.Option(metavar="FACTOR", help="Multiplies the margins.")
    ] = 1.0,
    center: Annotated[
        float | None,
        typer.Option(
            "--center",
            min=0,
            metavar="COEF",
            show_default=False,
            help="Pull "
            "rewards to a mean of zero: adds COEF times the squared sum of a pair's rewards to its loss, as "
            "TRL's center_rewards_coefficient does; 0.01 is usual.",
        ),
    ] = None,
    per_turn: Annotated[
        bool,
        typer.Option(
            "--per-turn",
            help="Compare rewards at every assistant turn from where the "
            "sides part, and take the mean; left out: at the last alone.",
        ),
    ] = False,
    budget: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="TOKENS",
            help="Tokens in one micro-batch: a step stays the "
            "same; more takes more memory, and uses a GPU better, say 8192.",
        ),
    ] = 1024,
    activation_checkpointing: Annotated[
        bool,
        typer.Option(
            "--activation-checkpointing",
            help="Keep only each layer's input: less memory, more time.",
        ),
    ] = False,
    eval: Annotated[
        str | None,
        typer.Option(
            "--eval",
            metavar="FILE",
            show_default=False,
            help="Held-out pairs, measured every --eval-every steps and at the end.",
        ),
    ] = None,
    eval_every: Annotated[
        int | None,
        typer.Option(min=1, metavar="STEPS", show_default=False, help="Left out: at every save."),
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="STEPS",
            show_default=False,
            help="Keep a state to resume from; left out: none, a run that is stopped starts again.",
        ),
    ] = None,
    tracker: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="Log to tensorboard, "
            "wandb, trackio, mlflow, ..., too, as accelerate does; may be repeated.",
        ),
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Draw loss, accuracy and margin "
            "over the steps as .png, .svg or .pdf (needs matplotlib).",
        ),
    ] = None,
    plot_beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            show_default=False,
            help="Another run, drawn into the same picture; may be repeated.",
        ),
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="REPO",
            show_default=False,
            help="Push the finished "
            "checkpoint to the Hugging Face hub; a new repository is private.",
        ),
    ] = None,
    num_processes: NUM_PROCESSES = None,
    accelerate_config: ACCELERATE_CONFIG = None,
    check: Annotated[
        bool | None,
        typer.Option(
            "--check/--no-check",
            show_default=False,
            help="--check: only look for "
            "what ruins reward models, and stop; --no-check: train without looking.",
        ),
    ] = None,
    seed: SEED = 0,
) -> None:
    """Train a Bradley-Terry reward model on preference pairs, in full or with LoRA.

    \b
    music train pairs.jsonl music.jsonl --model google/gemma-2-9b-it --out rm
    head -n 20 pairs.jsonl | music train --model local/gemma3-270m --batch 4 --lr 1e-5 --out rm

    DIR holds the checkpoint at its top (transformers opens it as it is) and log.jsonl, one line a step.
    """
    run.in_processes(num_processes, accelerate_config)
    from musiccli.cli.files import save
    from musiccli.core import figures
    from musiccli.core import processes as launch
    from musiccli.train import curves, log
    from musiccli.train.config import TrainConfig
    from musiccli.train.run import train

    if plot:
        figures.check_figure_path(plot)
    curves.read(plot_beside or ())  # what is wrong with them is better known now
    settings = TrainConfig(
        model=model,
        batch=batch,
        steps=steps,
        epochs=epochs,
        lr=lr,
        schedule=schedule.value,
        warmup=warmup,
        max_length=max_length,
        lora=lora,
        budget=budget,
        init_from=init_from,
        margin_field=margin_field,
        margin_scale=margin_scale,
        center=center,
        per_turn=per_turn,
        activation_checkpointing=activation_checkpointing,
        seed=seed,
    )
    held_out = (
        jsonl.read([eval], records.parse_preference, run.rejects, unique=False) if eval else None
    )
    with launch.rank_zero_output():
        launch.refuse_shared_input(run.files)
        measured = train(
            run.read(records.parse_preference, unique=False),
            Path(out),
            settings,
            evaluation=held_out,
            eval_every=eval_every,
            save_every=save_every,
            tracked=tracker or (),
            command=shlex.join(["music", *sys.argv[1:]]),
            hub=push_to_hub,
            checked=check is not False,
            only_check=check is True,
            rejects=run.rejects,
            counts=run.counts,
            say=run.say,
        )
    if plot and not check:
        logs = curves.read([out, *(plot_beside or ())])
        save(plot, [curves.draw(logs, figures.figure_format(plot))])
    if measured:
        run.say(f"{log.in_words(measured)}; {run.clock}; reward model in {out}")
