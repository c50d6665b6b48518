"""Train a reward model on preference pairs: the recipe.

The loss is Bradley-Terry's on whole conversations. accelerate runs it on one process or many. Every
rank maps all pairs and plans every step alike, then computes its own share. A step is exactly
`batch` pairs, whatever the number of processes and micro-batches, and its loss is their mean.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed

from musiccli.core.errors import InputError
from musiccli.core.processes import leave_gloo_groups
from musiccli.core.progress import Bar, bar
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.reward_model import checkpoint
from musiccli.reward_model.activations import checkpoint_activations
from musiccli.reward_model.checkpoint import RewardModel
from musiccli.reward_model.eval_names import eval_prefix
from musiccli.reward_model.hub import create_repository, push
from musiccli.reward_model.out_of_memory import explain_out_of_memory
from musiccli.reward_model.trimmed_embedding import TrimmedEmbedding, used_tokens
from musiccli.train.accelerator import (
    is_sharded,
    make_accelerator,
    process_group,
    refuse_different_data,
    refuse_different_layouts,
)
from musiccli.train.batching import plan_steps, total_steps
from musiccli.train.checks import run_checks
from musiccli.train.config import TrainConfig
from musiccli.train.data import TrainingData, load_data
from musiccli.train.early_stopping import EarlyStopping, refuse_deepspeed
from musiccli.train.log import LOG_FILE, TrainingLog, read_log
from musiccli.train.memory import (
    LESS_MEMORY,
    MemoryEstimate,
    estimate_memory,
    suitable_budget,
)
from musiccli.train.metrics import Metrics
from musiccli.train.model import collect_model, create_model
from musiccli.train.output_folder import claim_folder, mark_begun, write_checkpoint
from musiccli.train.pair_arrays import TokenizedPairs
from musiccli.train.prefetch import STEPS_AHEAD, Prefetcher, steps_with_pairs
from musiccli.train.refusals import refuse_first_records, refuse_impossible
from musiccli.train.sharding import reshard, shard
from musiccli.train.states import RunIdentity, TrainingStates, refuse_other_run
from musiccli.train.trackers import check_trackers, start_trackers, track_metrics
from musiccli.train.trainer import Trainer

Say = Callable[[str], None]
LOW_LORA_LR = 2e-5  # below it adapters hardly move in the few steps of a reward model
SHARDING = (DistributedType.FSDP, DistributedType.DEEPSPEED)


class ChecksFailed(InputError):
    """More than one check has found something wrong, and each was reported in a line."""


@explain_out_of_memory(LESS_MEMORY)
def train(
    preferences: Iterable[Record],
    out: Path,
    config: TrainConfig,
    *,
    held_out: Mapping[str, Iterable[Record]] | Iterable[Record] | None = None,
    eval_every: int | None = None,
    save_every: int | None = None,
    trackers: Sequence[str] = (),
    push_to_hub: str | None = None,
    command: str = "",
    check: bool = True,
    check_only: bool = False,
    stats: RunStats | None = None,
) -> Metrics | None:
    """Train a reward model and write it to a folder.

    The same call again resumes the run from its last saved state, or finds it finished.

    Args:
        preferences: the pairs to train on.
        out: the folder, which gets the checkpoint, the log, and states to resume from.
        config: the settings of the run.
        held_out: pairs that are only measured: one set, or several by their names.
        eval_every: steps between two measurements of them; None means at every saved state. The
            last step is always measured.
        save_every: steps between two saved states; None saves none.
        trackers: names of accelerate's experiment trackers.
        push_to_hub: the repository on the Hugging Face hub to push the checkpoint to.
        command: the command line, for the notes of the checkpoint.
        check: look for what ruins reward models before the first step.
        check_only: say what the checks find, and do nothing else.
        stats: counts pairs that are cut or dropped, takes bad records, and speaks to people.

    Returns:
        The metrics of the last step, or with `patience` of the best one. None where there was
        nothing to do, with `check_only`, and in every process but the main one.

    Raises:
        InputError: the data, the model or the settings cannot be used, or `out` holds another run.
    """
    stats = stats or RunStats()
    sets = {} if held_out is None else held_out
    sets = sets if isinstance(sets, Mapping) else {"": sets}
    refuse_impossible(config, sets, eval_every, save_every)
    refuse_first_records(preferences, sets, config, skip=stats.rejects.skip)
    accelerator = make_accelerator(config, check_trackers(trackers), out)
    if config.patience:
        refuse_deepspeed(accelerator)
    if config.qlora and accelerator.distributed_type in SHARDING:
        raise InputError("`qlora`: 4-bit weights are not sharded; use DDP, or `lora` alone")
    is_main = accelerator.is_main_process
    say: Say = stats.say if is_main else lambda text: None
    if is_main and not check_only:
        push_to_hub = create_repository(push_to_hub) if push_to_hub else None
    with claim_folder(out) if is_main and not check_only else contextlib.nullcontext():
        set_seed(config.seed)
        model = create_model(config, accelerator, say)
        refuse_different_layouts(model.network.layout, accelerator)
        budget = config.budget or suitable_budget(model.network, accelerator)
        config = replace(config, budget=budget)
        checkpoint_activations(model.network, config.activation_checkpointing, accelerator.device)
        with _progress("encode", accelerator) as progress:
            data = load_data(
                preferences,
                sets,
                model,
                config,
                stats,
                say,
                progress,
                leads=accelerator.is_local_main_process,
            )
        refuse_different_data(data.fingerprint, accelerator)

        identity: RunIdentity = {"settings": asdict(config), "data": data.pairs.fingerprint}
        if not check_only and (notes := checkpoint.read_notes(out)):
            refuse_other_run(notes, identity, out)
            say(f"{out} is trained already, by this same line")
            _push(push_to_hub, out, accelerator, say)
            return None

        vocabularies = [pairs.vocabulary for pairs in data.all_pairs()]
        embedding = TrimmedEmbedding(model.network, used_tokens(vocabularies))
        processes = process_group(accelerator)
        if is_sharded(accelerator):
            shard(model.network, accelerator)
            processes.wait()  # some have slower disks to read from
        say(describe_run(model, data.pairs, config, accelerator))
        if config.lora and config.lr < LOW_LORA_LR:
            say(
                f"`lr` {config.lr:g}: is low for adapters, which are usually trained at 1e-4 to "
                "2e-4 (arXiv 2305.14314)"
            )
        if check or check_only:
            report_checks(model, data, config, accelerator, embedding, say, show_passed=check_only)
        if check_only:
            return None

        trainer = Trainer(model, data.pairs, config, accelerator)
        for decision in (trainer.fit_activations(), trainer.fit_gathering()):
            if decision:
                say(decision)
        states = TrainingStates(out, trainer, identity, embedding)
        stopping = None
        if config.patience:
            metric = f"{eval_prefix(next(iter(data.held_out)))}loss"
            stopping = EarlyStopping(config.patience, metric, out, accelerator, trainer.network)
        metrics = run_steps(
            trainer, states, data.held_out, eval_every or save_every, save_every, stopping, say
        )
        last_step = metrics["step"]
        if stopping:
            metrics = keep_best(stopping, last_step, trainer.steps, say)

        processes.wait()
        model = collect_model(model, trainer.network, embedding, config, accelerator)
        if is_main:
            origin = {"command": command, "counts": stats.phrases(), **data.notes}
            origin["layout"] = model.network.layout
            if stopping:
                origin["early_stopping"] = stopping.describe(last_step, trainer.steps)
            write_checkpoint(model, out, {**identity, **origin, "metrics": metrics})
            if stopping:
                stopping.remove()
        processes.wait()
        leave_gloo_groups()
        accelerator.end_training()  # before the push, for which the others would wait here
        _push(push_to_hub, out, accelerator, say)
        return metrics if is_main else None


def describe_run(
    model: RewardModel, pairs: TokenizedPairs, config: TrainConfig, accelerator: Accelerator
) -> str:
    """What will be trained, and where, in one line."""
    trained = sum(weight.numel() for weight in model.network.parameters() if weight.requires_grad)
    tokens, size = int(pairs.tokens.sum()), int(pairs.sizes.sum())
    layout = "with shared prefixes once" if model.network.packed else "padded"
    compared = f" compared at {pairs.compared:,} turns" if config.per_turn else ""
    rows = f", compiled layers and flex attention in rows of {config.full_row:,} tokens"
    return (
        f"{len(pairs):,} pairs{compared}, {tokens:,} tokens ({size:,} {layout}); "
        f"{total_steps(len(pairs), config):,} steps of {config.batch}; "
        f"{trained:,} weights in training; "
        f"{accelerator.num_processes} x {accelerator.device.type}, "
        f"{accelerator.mixed_precision} mixed precision"
        f"{rows if model.network.flex else ''}"
    )


def report_checks(
    model: RewardModel,
    data: TrainingData,
    config: TrainConfig,
    accelerator: Accelerator,
    embedding: TrimmedEmbedding,
    say: Say,
    *,
    show_passed: bool,
) -> None:
    """Run the checks, estimate the memory, and say what a person should know.

    Every rank must call this: sharded weights are gathered layer by layer.

    Args:
        show_passed: say also which checks have passed, and the estimate.

    Raises:
        InputError: one check has found something wrong.
        ChecksFailed: several have.
    """
    if not is_sharded(accelerator):
        model.network.to(accelerator.device)
    report = run_checks(model, data.pairs.joined(*data.held_out.values()))
    errors = [*dict.fromkeys(process_group(accelerator).gather(report.errors))]
    passed = report.passed
    if not model.network.flex:  # the trainer measures compiled layers, and keeps what fits
        memory = _estimate(model, data, config, accelerator, embedding)
        passed = [*passed, str(memory)]
        if (spare := memory.spare(accelerator.device)) < 0:
            report.warnings.append(f"{memory}; {-spare / 1e9:.1f} GB are missing: {LESS_MEMORY}")
    reshard(model.network)
    for text in (*(passed if show_passed else ()), *report.warnings):
        say(f"check: {text}")
    if len(errors) == 1:
        raise InputError(errors[0])
    for error in errors:
        say(f"check: wrong: {error}")
    if errors:
        raise ChecksFailed(f"{len(errors)} things are wrong")


def _estimate(
    model: RewardModel,
    data: TrainingData,
    config: TrainConfig,
    accelerator: Accelerator,
    embedding: TrimmedEmbedding,
) -> MemoryEstimate:
    with accelerator.autocast():
        return estimate_memory(
            model,
            data.pairs,
            config,
            ranks=accelerator.num_processes,
            sharded=is_sharded(accelerator),
            offloaded=_offloaded(embedding, accelerator),
            device=accelerator.device,
        )


def _offloaded(embedding: TrimmedEmbedding, accelerator: Accelerator) -> list[torch.Tensor]:
    """The whole embedding where it waits beside the network; under FSDP it stays in its file."""
    on_cpu = accelerator.device.type == "cpu" and not is_sharded(accelerator)
    return [embedding.whole] if on_cpu and embedding.offloaded_bytes else []


def run_steps(
    trainer: Trainer,
    states: TrainingStates,
    held_out: Mapping[str, TokenizedPairs],
    eval_every: int | None,
    save_every: int | None,
    stopping: EarlyStopping | None,
    say: Say,
) -> Metrics:
    """Take the steps that remain, and log each. Returns the metrics of the last one.

    With `stopping` these may be fewer than were planned.

    Raises InputError where the loss or the gradient is not finite, or a held-out reward is not and
    nothing stops early. An early stop takes such a measurement as the worst.
    """
    accelerator, config = trainer.accelerator, trainer.config
    start, changed = states.resume()
    if accelerator.is_main_process:
        mark_begun(states.out)
    start_trackers(accelerator, asdict(config), states.out.name)
    if start:
        say("; ".join([f"going on after step {start} of {trainer.steps}", *changed]))
    log = TrainingLog(states.out / LOG_FILE, start) if accelerator.is_main_process else None
    metrics: Metrics = {}
    if stopping:
        metrics = resume_stopping(stopping, start, accelerator)
    padded = not trainer.model.network.packed
    plan = plan_steps(trainer.pairs.sizes, config, accelerator.num_processes, padded)
    remaining = islice(plan, start, None)
    read = steps_with_pairs(remaining, trainer.pairs, accelerator.process_index)
    with (
        _progress("train", accelerator, trainer.steps) as progress,
        Prefetcher(read, STEPS_AHEAD) as steps,
    ):
        progress.advance(start)
        for step, (micro_batches, trainer.pairs.ready) in enumerate(steps, start + 1):
            if stopping and stopping.stopped:
                break
            epoch = step * config.batch / len(trainer.pairs)
            metrics = {"step": step, "epoch": round(epoch, 3)}
            metrics |= trainer.step(micro_batches)
            if accelerator.device.type == "cuda":
                metrics["data_wait"] = steps.waited_share()
            _refuse_non_finite(metrics)
            last = step == trainer.steps
            if held_out and (last or (eval_every and step % eval_every == 0)):
                metrics |= trainer.evaluate(held_out)
            if log:
                log.add(metrics)
            if stopping:
                stopping.add(metrics)
            else:
                _refuse_non_finite_rewards(metrics, held_out)
            track_metrics(accelerator, metrics)
            progress.advance(1, _progress_note(metrics))
            if save_every and step % save_every == 0 and not last:
                states.save(step)
                if stopping:
                    stopping.state_saved()
        states.wait()
    return metrics


def resume_stopping(stopping: EarlyStopping, start: int, accelerator: Accelerator) -> Metrics:
    """Let `stopping` continue from the log of the main process; returns the last step there."""
    steps: list[Metrics] = []
    if start and accelerator.is_main_process:
        *before, last = read_log(stopping.out / LOG_FILE)
        steps = [*(step for step in before if stopping.metric in step), last]
    steps = process_group(accelerator).gather(steps)
    stopping.resume(steps)
    return steps[-1] if steps else {}


def keep_best(stopping: EarlyStopping, last_step: int, steps: int, say: Say) -> Metrics:
    """Put the best weights back where the last are others. Returns the metrics of their step."""
    if stopping.best_step != last_step:
        stopping.restore()
    if stopping.best_step != last_step or last_step != steps:
        say(
            f"stopped after step {last_step} of {steps}; {stopping.metric} was lowest at step "
            f"{stopping.best_step}, whose weights are kept"
        )
    return stopping.best


def _refuse_non_finite(metrics: Metrics) -> None:
    for name in ("loss", "grad_norm"):
        value = metrics[name]
        if value is not None and not math.isfinite(value):
            raise InputError(
                f"{name} is {value} at step {metrics['step']}; lower `lr`, or look at the data"
            )


def _refuse_non_finite_rewards(metrics: Metrics, held_out: Iterable[str]) -> None:
    """Raise InputError where a held-out reward is no finite number; names the set and the step."""
    for name in held_out:
        value = metrics.get(f"{eval_prefix(name)}mean_reward", 0.0)
        if not math.isfinite(value):
            raise InputError(
                f"the mean reward of the held-out pairs{f' {name}' if name else ''} is {value} at "
                f"step {metrics['step']}; lower `lr`, or look at the data"
            )


def _progress(
    label: str, accelerator: Accelerator, total: int | None = None
) -> AbstractContextManager[Bar]:
    """A progress bar, in the main process."""
    return bar(label, total) if accelerator.is_main_process else contextlib.nullcontext(Bar())


def _progress_note(metrics: Metrics) -> str:
    return (
        f"loss {metrics['loss']:.3f} accuracy {metrics['accuracy']:.2f} "
        f"{metrics['tokens_per_s']:.0f} tokens/s"
    )


def _push(repository: str | None, out: Path, accelerator: Accelerator, say: Say) -> None:
    if repository and accelerator.is_main_process:
        say(f"pushed to {push(repository, out)}")
