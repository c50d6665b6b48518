"""Train a reward model on preferences: Bradley-Terry on whole conversations, under accelerate, on one process or many.

Every rank holds all pairs and plans every step alike; it then computes its own share. A step is exactly `batch` pairs,
whatever the number of processes and micro-batches, and its loss is their mean.
"""

import contextlib
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from torch.distributed.fsdp import MixedPrecisionPolicy

from musiccli.core.errors import InputError
from musiccli.core.jsonl import Rejects
from musiccli.core.processes import ProcessGroup
from musiccli.core.progress import Bar, bar
from musiccli.core.records import Record
from musiccli.reward_model import checkpoint
from musiccli.reward_model.activations import checkpoint_activations
from musiccli.reward_model.hub import create_repository, push
from musiccli.reward_model.out_of_memory import explain_out_of_memory
from musiccli.reward_model.trimmed_embedding import TrimmedEmbedding, used_tokens
from musiccli.train import log, trackers
from musiccli.train.batching import plan, total_steps
from musiccli.train.checks import check
from musiccli.train.config import TrainConfig
from musiccli.train.memory import available, estimate
from musiccli.train.provenance import counted, described
from musiccli.train.tokenized_pairs import Pair, fingerprint, prepare
from musiccli.train.trainer import CHECKPOINTS, Trainer, refuse_other_run, remove_states

TRACKED = "trackers"  # where trackers that write files do so
LESS = "a smaller --budget or --max-length, --activation-checkpointing, --lora or more processes with FSDP take less"
BEGUN = ".music-train"  # marks a run's folder until it holds a reward model


@explain_out_of_memory(LESS)
def train(
    preferences: Iterable[Record],
    out: Path,
    settings: TrainConfig,
    *,
    evaluation: Iterable[Record] | None = None,
    eval_every: int | None = None,
    save_every: int | None = None,
    tracked: Sequence[str] = (),
    command: str = "",
    hub: str | None = None,
    checked: bool = True,
    only_check: bool = False,
    rejects: Rejects | None = None,
    counts: Counter | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict | None:
    """Train and write the reward model to `out`; the same call again resumes, or finds it done.

    `evaluation` holds the held-out pairs, if any. `command` is kept with the checkpoint; `hub` names the repository
    that it is pushed to. Returns the last metrics; None where there was nothing left to do, and in every process but
    the main one. Raises InputError where `out` holds another run.
    """
    counts = Counter() if counts is None else counts
    _refuse_impossible(settings)  # before anything takes time
    accelerator = _accelerator(trackers.check(tracked), out, settings)
    main = accelerator.is_main_process
    say = say if main else lambda _: None
    if settings.batch < accelerator.num_processes:
        raise InputError(
            f"--batch {settings.batch}: every one of {accelerator.num_processes} processes needs a pair"
        )
    if main and not only_check:
        hub = create_repository(hub) if hub else None
        _claim(out)
    set_seed(settings.seed)
    model = _create(settings, say)
    checkpoint_activations(
        model.network, everything=settings.activation_checkpointing, device=accelerator.device
    )
    with bar("encode") if main else contextlib.nullcontext(Bar()) as progress:
        pairs, held_out, files = _encode(
            preferences, evaluation, model, settings, rejects, counts, say, progress
        )
    identity = {"settings": asdict(settings), "data": fingerprint(pairs)}
    _refuse_other_data(identity["data"] + fingerprint(held_out), accelerator)
    if not only_check and (found := checkpoint.read_notes(out)):
        refuse_other_run(found, identity, out)
        say(f"{out} is trained already, by this same line")
        _push(accelerator, hub, out, say)
        return None
    vocabulary = TrimmedEmbedding(
        model.network, used_tokens(side.ids for pair in (*pairs, *held_out) for side in pair.sides)
    )
    say(_plan_in_words(model, pairs, settings, accelerator))
    if (checked or only_check) and main:
        _check(
            model,
            pairs,
            held_out,
            settings,
            accelerator,
            vocabulary.offloaded_bytes,
            say,
            whole=only_check,
        )
    if only_check:
        return None
    trainer = Trainer(model, pairs, out, settings, accelerator, vocabulary)
    measured = _run(trainer, identity, held_out, eval_every or save_every, save_every, say)
    made_of = {"command": command, "counts": dict(+counts)} | files
    _finish(trainer, identity | made_of | {"metrics": measured})
    _push(accelerator, hub, out, say)
    accelerator.end_training()
    return measured if main else None


def _encode(
    preferences: Iterable[Record],
    evaluation: Iterable[Record] | None,
    model: checkpoint.RewardModel,
    settings: TrainConfig,
    rejects: Rejects | None,
    counts: Counter,
    say: Callable,
    progress: Bar,
) -> tuple[list[Pair], list[Pair], dict]:
    """The pairs to train on, those held out, and what the notes say of their files. Says what was cut and dropped."""
    files, held_out_files, offloaded_bytes = Counter(), Counter(), Counter()
    encode = partial(
        prepare,
        model=model,
        max_length=min(settings.max_length, model.context_length),
        rejects=rejects,
    )
    pairs = encode(
        progress.track(counted(preferences, files)),
        counts=counts,
        margin_field=settings.margin_field,
        margin_scale=settings.margin_scale,
        per_turn=settings.per_turn,
    )
    for what, count in sorted((+counts).items()):
        say(f"{count:,} {what}")
    held_out = encode(
        progress.track(counted(evaluation or (), held_out_files)), counts=offloaded_bytes
    )
    for what, count in sorted((+offloaded_bytes).items()):
        say(f"--eval: {count:,} {what}")
    if not pairs:
        raise InputError("no pairs to train on are left")
    if len(pairs) < settings.batch:
        raise InputError(
            f"--batch {settings.batch}: there are {len(pairs)} pairs; a step would hold some twice"
        )
    if evaluation is not None and not held_out:
        raise InputError("no pairs to evaluate on are left")
    return pairs, held_out, {"files": described(files), "held_out_files": described(held_out_files)}


def _refuse_other_data(data: str, accelerator: Accelerator) -> None:
    """Raises InputError where ranks have read different pairs, of which each would plan steps of its own."""
    process_group = ProcessGroup(accelerator.num_processes, accelerator.process_index)
    if len(set(process_group.gather([data]))) > 1:
        raise InputError(
            "the processes have read different pairs; each must be given the same files"
        )


def _check(
    model: checkpoint.RewardModel,
    pairs: list[Pair],
    held_out: list[Pair],
    settings: TrainConfig,
    accelerator: Accelerator,
    offloaded_bytes: int,
    say: Callable,
    *,
    whole: bool,
) -> None:
    """Say what the checks found: all (`whole`), or what is doubtful. Raises InputError where something is wrong."""
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if not sharded:
        model.network.to(accelerator.device)
    report = check(model, [*pairs, *held_out])  # in fp32, where a difference means something
    with accelerator.autocast():
        memory = estimate(
            model,
            pairs,
            settings,
            ranks=accelerator.num_processes,
            sharded=sharded,
            offloaded_bytes=offloaded_bytes if accelerator.device.type == "cpu" else 0,
            device=accelerator.device,
        )
    if memory.total > (free := available(accelerator.device)):
        report.doubts.append(f"{memory}; {free / 1e9:.1f} GB are free: {LESS}")
    for text in ([*report.right, str(memory)] if whole else []) + report.doubts:
        say(f"check: {text}")
    if len(report.faults) > 1:
        for fault in report.faults:
            say(f"check: wrong: {fault}")
        raise InputError(
            f"{len(report.faults)} things are wrong; --no-check would train all the same"
        )
    if report.faults:
        raise InputError(report.faults[0])


def _create(
    settings: TrainConfig, say: Callable[[str], None] = lambda _: None
) -> checkpoint.RewardModel:
    return checkpoint.create(
        settings.init_from or settings.model,
        seed=settings.seed,
        lora=settings.lora,
        say=say,
        trained=settings.init_from is not None,
    )


def _push(accelerator: Accelerator, hub: str | None, out: Path, say: Callable) -> None:
    if hub and accelerator.is_main_process:
        say(f"pushed to {push(hub, out)}")


def _refuse_impossible(settings: TrainConfig) -> None:
    """Raises InputError for settings that no model or data could make right."""
    total_steps(settings.batch, settings)
    if not 0 < settings.margin_scale < math.inf:
        raise InputError(f"--margin-scale {settings.margin_scale:g}: give a number above 0")
    if settings.margin_scale != 1 and not settings.margin_field:
        raise InputError(
            f"--margin-scale {settings.margin_scale:g}: needs --margin-field, whose margins it multiplies"
        )


def _claim(out: Path) -> None:
    """Make the folder, or find out now, not after hours of work, that it holds something else or cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = sorted(file.name for file in out.iterdir() if not file.name.startswith("."))
        if held and not any((out / mark).exists() for mark in (BEGUN, checkpoint.NOTES)):
            raise InputError(
                f"{out}: holds something else ({', '.join(held)[:60]}); name another --out"
            )
        with tempfile.TemporaryFile(dir=out):
            pass
    except FileExistsError:
        raise InputError(f"{out}: is a file; --out names a folder") from None
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}") from error


def _run(
    trainer: Trainer,
    identity: dict,
    held_out: list[Pair],
    eval_every: int | None,
    save_every: int | None,
    say: Callable,
) -> dict:
    """The steps that are left; the last one's measures."""
    main, settings, out = trainer.accelerator.is_main_process, trainer.settings, trainer.out
    start, differs = trainer.resume(identity)
    if main:
        (out / BEGUN).touch()
    trackers.start(trainer.accelerator, identity["settings"], out.name)
    if start:
        say("; ".join([f"going on after step {start} of {trainer.steps}", *differs]))
    written = log.Log(out / log.NAME, start) if main else None
    measured: dict = {}
    planned = plan(
        [pair.size for pair in trainer.pairs],
        settings,
        trainer.accelerator.num_processes,
        padded=not trainer.model.network.packed,
    )
    with bar("train", trainer.steps) if main else contextlib.nullcontext(Bar()) as progress:
        progress.advance(start)
        for number, step in enumerate(planned, 1):
            if number <= start:
                continue
            measured = {
                "step": number,
                "epoch": round(number * settings.batch / len(trainer.pairs), 3),
            }
            measured |= trainer.step(step[trainer.accelerator.process_index])
            for name in ("loss", "grad_norm"):
                if measured[name] is not None and not math.isfinite(measured[name]):
                    raise InputError(
                        f"{name} is {measured[name]} at step {number}; lower --lr, or look at the data"
                    )
            ends = number == trainer.steps
            if held_out and (ends or (eval_every and number % eval_every == 0)):
                measured |= {
                    f"eval_{name}": value for name, value in trainer.evaluate(held_out).items()
                }
            if main:
                written.add(measured)
            trackers.log(trainer.accelerator, measured)
            progress.advance(
                1,
                f"loss {measured['loss']:.3f} accuracy {measured['accuracy']:.2f} "
                f"{measured['tokens_per_s']:.0f} tokens/s",
            )
            if save_every and number % save_every == 0 and not ends:
                trainer.save_state(number, identity)
    return measured


def _finish(trainer: Trainer, notes: dict) -> None:
    """The checkpoint at the top of the folder; the notes come last and say that it is whole."""
    trainer.accelerator.wait_for_everyone()
    model, out = _whole(trainer), trainer.out
    if trainer.accelerator.is_main_process:
        model.notes |= notes
        partial = out / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        checkpoint.save(model, partial)
        for file in sorted(partial.iterdir(), key=lambda file: file.name == checkpoint.NOTES):
            if (out / file.name).is_dir():
                shutil.rmtree(out / file.name)
            os.replace(file, out / file.name)
        partial.rmdir()
        (out / BEGUN).unlink(missing_ok=True)
        remove_states(out / CHECKPOINTS)
    trainer.accelerator.wait_for_everyone()


def _whole(trainer: Trainer) -> checkpoint.RewardModel:
    """The trained model with all its weights; where they are sharded, the main process makes a new one of them."""
    model, settings = trainer.model, trainer.settings
    if trainer.accelerator.distributed_type not in (
        DistributedType.FSDP,
        DistributedType.DEEPSPEED,
    ):
        model.network = trainer.accelerator.unwrap_model(trainer.network)
        trainer.vocabulary.restore()
        return model
    weights = trainer.accelerator.get_state_dict(trainer.network)
    if trainer.accelerator.is_main_process:
        model = _create(settings)
        vocabulary = TrimmedEmbedding(model.network, trainer.vocabulary.tokens)
        model.network.load_state_dict(weights, assign=True)
        vocabulary.restore()
    return model


def _accelerator(tracked: list[str], out: Path, settings: TrainConfig) -> Accelerator:
    gpu = torch.cuda.is_available()
    accelerator = Accelerator(
        mixed_precision="bf16" if gpu and torch.cuda.is_bf16_supported() else "no",
        cpu=not gpu,
        log_with=tracked or None,
        project_dir=str(out / TRACKED),
    )
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin and plugin.fsdp_version == 2 and accelerator.mixed_precision == "bf16":
        # accelerate's own would sum gradients and return rewards in bf16.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # It asks for a data loader to count by, and clips by its own setting.
        accelerator.state.deepspeed_plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": settings.max_grad_norm,
        }
    return accelerator


def _plan_in_words(
    model: checkpoint.RewardModel,
    pairs: list[Pair],
    settings: TrainConfig,
    accelerator: Accelerator,
) -> str:
    trained = sum(weight.numel() for weight in model.network.parameters() if weight.requires_grad)
    tokens, size = sum(pair.tokens for pair in pairs), sum(pair.size for pair in pairs)
    laid_out = "with shared prefixes once" if model.network.packed else "padded"
    turns = sum(len(pair.sides[0].reward_positions) for pair in pairs)
    compared = f" compared at {turns:,} turns" if settings.per_turn else ""
    return (
        f"{len(pairs):,} pairs{compared}, {tokens:,} tokens ({size:,} {laid_out}); "
        f"{total_steps(len(pairs), settings):,} steps of {settings.batch}; {trained:,} weights in training; "
        f"{accelerator.num_processes} x {accelerator.device.type}, {accelerator.mixed_precision} mixed precision"
    )
