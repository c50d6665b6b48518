"""music train pairs.jsonl music.jsonl --model google/gemma-2-2b-it --lora 16 --lr 1e-4 --out rm"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from musiccli.cli.options import ACCELERATE_CONFIG, NUM_PROCESSES, SEED
from musiccli.cli.paths import (
    FOLDER_WRITTEN,
    MODEL_READ,
    NAMED_READ,
    OTHER_MODEL_READ,
    READ,
    WRITTEN,
    split_name,
)
from musiccli.cli.run import Run, stage
from musiccli.core import jsonl
from musiccli.core.errors import InputError
from musiccli.core.records import parse_preference
from musiccli.train.config import Schedule, TrainConfig


@stage(writes=False)
def train(
    run: Run,
    out: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            help="Where the reward model goes. The same command again resumes the run.",
        ),
        FOLDER_WRITTEN,
    ],
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="The backbone, which gets a new reward head: a hub id, a folder or local/NAME.",
        ),
        MODEL_READ,
    ] = TrainConfig.model,
    init_from: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|ID",
            show_default=False,
            help="A reward model to continue from, with its head, in place of --model.",
        ),
        OTHER_MODEL_READ,
    ] = TrainConfig.init_from,
    layers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            show_default=False,
            help="Keep only the backbone's first N layers: a smaller, faster model, for trials. "
            "Left out: all.",
        ),
    ] = TrainConfig.layers,
    batch: Annotated[
        int, typer.Option(min=1, help="Pairs in one optimizer step, over all processes.")
    ] = TrainConfig.batch,
    steps: Annotated[
        int | None,
        typer.Option(min=1, show_default=False, help="Optimizer steps; left out: by --epochs."),
    ] = TrainConfig.steps,
    epochs: Annotated[
        float, typer.Option(min=0.0, help="Passes over the pairs.")
    ] = TrainConfig.epochs,
    lr: Annotated[
        float, typer.Option(min=0, help="Peak learning rate; LoRA needs about 1e-4.")
    ] = TrainConfig.lr,
    schedule: Annotated[
        Schedule, typer.Option(help="How the learning rate falls after warmup.")
    ] = TrainConfig.schedule,
    warmup: Annotated[
        float,
        typer.Option(min=0, max=1, help="Fraction of the steps in which the learning rate rises."),
    ] = TrainConfig.warmup,
    max_length: Annotated[
        int,
        typer.Option(
            min=2,
            metavar="TOKENS",
            help="Longer pairs lose their oldest exchanges on both sides, or are dropped; both are "
            "counted.",
        ),
    ] = TrainConfig.max_length,
    lora: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="RANK",
            show_default=False,
            help="Train low-rank adapters and the head, merged when saved. Left out: all weights.",
        ),
    ] = TrainConfig.lora,
    qlora: Annotated[
        bool,
        typer.Option(
            "--qlora",
            help="With --lora: keep the frozen base in 4 bits, for a card with little memory. "
            "It needs bitsandbytes.",
        ),
    ] = TrainConfig.qlora,
    margin_field: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            show_default=False,
            help="A number of each pair, or of its metadata, by which the chosen reward should be "
            "above the rejected one: Llama 2's margin loss. A list counts by its length: contrast "
            "gives 1 for every contrasted turn.",
        ),
    ] = TrainConfig.margin_field,
    margin_scale: Annotated[
        float, typer.Option(metavar="FACTOR", help="Multiplies the margins.")
    ] = TrainConfig.margin_scale,
    center: Annotated[
        float | None,
        typer.Option(
            "--center",
            min=0,
            metavar="COEF",
            show_default=False,
            help="Add COEF times the squared sum of a pair's rewards to its loss, which pulls "
            "rewards to a mean of zero; 0.01 is usual. TRL's center_rewards_coefficient.",
        ),
    ] = TrainConfig.center,
    router_aux_loss: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="COEF",
            show_default=False,
            help="Weight of the load-balancing loss of a mixture of experts; 0 turns it off. Left "
            "out: router_aux_loss_coef of the backbone's config.",
        ),
    ] = TrainConfig.router_aux_loss,
    per_turn: Annotated[
        bool,
        typer.Option(
            "--per-turn",
            help="Compare rewards at every assistant turn from the first difference on, and take "
            "the mean; left out: at the last turn only.",
        ),
    ] = TrainConfig.per_turn,
    budget: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="TOKENS",
            show_default=False,
            help="The most tokens in one micro-batch. It changes speed and memory only. Left out: "
            "1024; 8192 on a GPU with compiled layers, and 4096 below 40 GB.",
        ),
    ] = TrainConfig.budget,
    activation_checkpointing: Annotated[
        bool,
        typer.Option(
            "--activation-checkpointing",
            help="Keep only each layer's input: less memory, more time.",
        ),
    ] = TrainConfig.activation_checkpointing,
    held_out: Annotated[
        list[str] | None,
        typer.Option(
            "--eval",
            metavar="[NAME=]FILE",
            show_default=False,
            help="Held-out pairs, measured every --eval-every steps and at the end. Several sets "
            "have names: --eval code=code.jsonl is logged as eval_code_loss.",
        ),
        NAMED_READ,
    ] = None,
    eval_split: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="FRACTION",
            show_default=False,
            help="Hold this fraction of the pairs out of training and measure it as eval_loss. "
            "Pairs with the same first user message or group stay together.",
        ),
    ] = TrainConfig.eval_split,
    eval_every: Annotated[
        int | None,
        typer.Option(min=1, metavar="STEPS", show_default=False, help="Left out: at every save."),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            show_default=False,
            help="Stop after N measurements without a lower loss on the first held-out set, and "
            "keep the weights of the lowest. Left out: all steps, and the last weights.",
        ),
    ] = TrainConfig.patience,
    save_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="STEPS",
            show_default=False,
            help="Save a state to resume from. Left out: none, and a stopped run starts again.",
        ),
    ] = None,
    trackers: Annotated[
        list[str] | None,
        typer.Option(
            "--tracker",
            metavar="NAME",
            show_default=False,
            help="Log also to tensorboard, wandb, trackio, mlflow or another tracker that "
            "accelerate knows; may be repeated.",
        ),
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Draw loss, accuracy and margin over the steps, as .png, .svg or .pdf (needs "
            "matplotlib).",
        ),
        WRITTEN,
    ] = None,
    plot_beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            show_default=False,
            help="Another run to draw in the same figure; may be repeated.",
        ),
        READ,
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="REPO",
            show_default=False,
            help="Push the finished checkpoint to the Hugging Face hub; a new repository is "
            "private.",
        ),
    ] = None,
    num_processes: NUM_PROCESSES = None,
    accelerate_config: ACCELERATE_CONFIG = None,
    check: Annotated[
        bool | None,
        typer.Option(
            "--check/--no-check",
            show_default=False,
            help="--check: only look for what ruins reward models, and stop. --no-check: train "
            "without looking.",
        ),
    ] = None,
    seed: SEED = TrainConfig.seed,
) -> None:
    """Train a Bradley-Terry reward model on preference pairs, in full or with LoRA.

    \b
    music train pairs.jsonl music.jsonl --model google/gemma-2-2b-it --lora 16 --lr 1e-4 --out rm
    head -n 20 pairs.jsonl | music train --model local/gemma3-270m --batch 4 --lr 1e-5 --out rm

    DIR gets the checkpoint, which transformers opens as it is, and log.jsonl, one line a step.
    """
    config = TrainConfig(
        model=model,
        init_from=init_from,
        layers=layers,
        batch=batch,
        steps=steps,
        epochs=epochs,
        lr=lr,
        schedule=schedule,
        warmup=warmup,
        max_length=max_length,
        lora=lora,
        qlora=qlora,
        margin_field=margin_field,
        margin_scale=margin_scale,
        per_turn=per_turn,
        center=center,
        router_aux_loss=router_aux_loss,
        eval_split=eval_split,
        patience=patience,
        budget=budget,
        activation_checkpointing=activation_checkpointing,
        seed=seed,
    )
    from musiccli.core.processes import rank_zero_output, refuse_more_than_gpus
    from musiccli.reward_model.hub import refuse_without_login
    from musiccli.train.refusals import (
        refuse_first_records,
        refuse_impossible,
        refuse_other_contents,
        refuse_small_batch,
    )

    with rank_zero_output():
        _check_figure(plot, plot_beside or ())
        held_out_pairs = held_out_files(held_out or ())
        preferences = run.record_files(parse_preference, unique=False)
        refuse_impossible(config, held_out_pairs, eval_every, save_every)
        refuse_small_batch(config, num_processes or 1)
        if check is not True:
            refuse_other_contents(Path(out))
            if push_to_hub:
                refuse_without_login(push_to_hub)
        refuse_first_records(preferences, held_out_pairs, config, skip=run.stats.rejects.skip)
        if num_processes and num_processes > 1 and not accelerate_config:
            refuse_more_than_gpus(num_processes)
        run.in_processes(num_processes, accelerate_config)
        from musiccli.train.log import describe_metrics
        from musiccli.train.run import ChecksFailed, train

        try:
            metrics = train(
                preferences,
                Path(out),
                config,
                held_out=held_out_pairs,
                eval_every=eval_every,
                save_every=save_every,
                trackers=trackers or (),
                push_to_hub=push_to_hub,
                command=shlex.join(["music", *sys.argv[1:]]),
                check=check is not False,
                check_only=check is True,
                stats=run.stats,
            )
        except ChecksFailed as error:
            raise InputError(f"{error}; --no-check would train all the same") from error
        run.read_count = preferences.read_count
    if plot and not check:
        draw(plot, [out, *(plot_beside or ())])
    if metrics:
        run.say(f"{describe_metrics(metrics)}; {run.clock}; reward model in {out}")


def held_out_files(values: Sequence[str]) -> dict[str, jsonl.RecordFiles]:
    """The pairs of each [NAME=]FILE, by the names; one may have none.

    Raises:
        InputError: a file cannot be read, or two have the same name, or none.
    """
    sets: dict[str, jsonl.RecordFiles] = {}
    for value in values:
        name, path = split_name(value)
        if name in sets:
            problem = f"another set is called {name}" if name else "another set has no name, either"
            raise InputError(f"`held_out` {value}: {problem}; write NAME=FILE")
        sets[name] = jsonl.RecordFiles([path], parse_preference, unique=False)
    return sets


def _check_figure(plot: str | None, plot_beside: Sequence[str]) -> None:
    """Raise InputError where a figure could not be drawn after the training."""
    if plot:
        from musiccli.core.figures import check_figure_path

        check_figure_path(plot)
    if plot_beside:
        from musiccli.train.curves import read_logs

        read_logs(plot_beside)


def draw(path: str, folders: list[str]) -> None:
    """Draw the logs of runs into one figure."""
    from musiccli.cli.files import save
    from musiccli.core.figures import figure_format
    from musiccli.train.curves import draw_curves, read_logs

    save(path, [draw_curves(read_logs(folders), figure_format(path))])
