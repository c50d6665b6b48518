"""Train a reward model on preferences: Bradley-Terry on whole conversations, under accelerate, on one process or many.

Every rank holds all pairs and plans every step alike; it then computes its own share. A step is exactly `batch` pairs,
whatever the number of processes and micro-batches, and its loss is their mean.
"""

import contextlib
import hashlib
import math
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count as count_from
from pathlib import Path

import orjson
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object, set_seed
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import get_scheduler

from musiccli.chat import Encoded, fit
from musiccli.errors import InputError
from musiccli.jsonl import Rejects
from musiccli.progress import Bar, Clock, bar
from musiccli.records import Record, first_divergence
from musiccli.reward_model import checkpoint
from musiccli.reward_model.network import bradley_terry
from musiccli.reward_model.pack import cost, micro_batches

LOG, STATE, CHECKPOINTS = "log.jsonl", "state.json", "checkpoints"


@dataclass(frozen=True)
class Settings:
    """How to train. The defaults are the paper's (arXiv 2512.24693): 64 pairs a step, 2e-6, 2048 tokens."""

    model: str = "google/gemma-2-9b-it"
    batch: int = 64  # pairs a step, over all processes
    steps: int | None = None  # else `epochs` passes over the pairs
    epochs: float = 1.0
    lr: float = 2e-6
    schedule: str = "linear"  # to zero, as TRL's default; the paper does not say
    warmup: float = 0.03  # of all steps
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int = 2048
    lora: int | None = None
    budget: int = 4096  # tokens a micro-batch
    activation_checkpointing: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Pair:
    """An encoded preference: (chosen, rejected), its size when packed, and its size as two sequences, in tokens."""

    sides: tuple[Encoded, Encoded]
    size: int
    tokens: int


def prepare(preferences: Iterable[Record], model: checkpoint.RewardModel, max_length: int, counts: Counter,
            rejects: Rejects | None = None) -> list[Pair]:
    """Encode preferences; what is too long is cut by the contract of chat.fit, or dropped, and counted either way.

    Pairs whose two sides are the same tokens are dropped: their loss is log 2 and their gradient zero. One that the
    chat template refuses goes to `rejects`.
    """
    rejects = rejects or Rejects()
    encode = partial(model.template.encode, every_turn=False)
    pairs = []
    for record in preferences:
        sides, fitted = [record["chosen"], record["rejected"]], None
        with rejects.guard(record):
            fitted = fit(encode, sides, max_length, first_divergence(*sides))
            if fitted is None:
                counts[f"pairs dropped (over {max_length} tokens and not to be cut)"] += 1
        if fitted is None:
            continue
        (chosen, rejected), cut = fitted
        counts[f"pairs cut to {max_length} tokens"] += cut > 0
        if chosen.ids == rejected.ids:
            counts["pairs dropped (both sides the same tokens)"] += 1
            continue
        pairs.append(Pair((chosen, rejected), cost((chosen, rejected)), len(chosen.ids) + len(rejected.ids)))
    return pairs


def check(model: checkpoint.RewardModel, pairs: Sequence[Pair]) -> None:
    """What silently ruins reward models, looked for before the first step. Raises InputError naming the first found."""
    bos, pad = model.tokenizer.bos_token_id, model.network.core.config.pad_token_id
    for side in (side for pair in pairs for side in pair.sides):
        if side.ids[:2] == [bos, bos]:
            raise InputError("the template writes two BOS tokens; remove one from the chat template")
        if side.ids[-1] == pad:
            raise InputError(f"conversations end with the padding token ({pad}), which no reward can be read at")


def plan(sizes: Sequence[int], settings: Settings, ranks: int) -> Iterator[list[list[list[int]]]]:
    """Each step's micro-batches for each rank: step[rank] = [[pair, ...], ...], as many on every rank.

    Pairs are shuffled anew for each epoch; a step's pairs are dealt to the ranks by size, largest first. A micro-batch
    that is [] only keeps the ranks in step.
    """
    order = _order(len(sizes), settings.seed)
    for _ in range(total_steps(len(sizes), settings)):
        yield deal([next(order) for _ in range(settings.batch)], sizes, settings.budget, ranks)


def deal(indices: Sequence[int], sizes: Sequence[int], budget: int, ranks: int) -> list[list[list[int]]]:
    """Pairs dealt to the ranks by size, largest first, in as many micro-batches on every rank; some may be []."""
    hands: list[list[int]] = [[] for _ in range(ranks)]
    for index in sorted(indices, key=lambda index: -sizes[index]):
        min(hands, key=lambda hand: sum(sizes[other] for other in hand)).append(index)
    dealt = [[[hand[place] for place in batch] for batch in micro_batches([sizes[index] for index in hand], budget)]
             for hand in hands]
    most = max(len(batches) for batches in dealt)
    return [[[]] * (most - len(batches)) + batches for batches in dealt]


def total_steps(pairs: int, settings: Settings) -> int:
    return settings.steps or max(1, round(pairs * settings.epochs / settings.batch))


def _order(count: int, seed: int) -> Iterator[int]:
    for epoch in count_from(0):
        indices = list(range(count))
        random.Random(f"{seed} {epoch}").shuffle(indices)
        yield from indices


class Trainer:
    """One run: model, optimiser and plan, and how to save and resume them."""

    def __init__(self, model: checkpoint.RewardModel, pairs: list[Pair], out: Path, settings: Settings,
                 accelerator: Accelerator):
        self.model, self.pairs, self.out, self.settings, self.accelerator = model, pairs, out, settings, accelerator
        self.steps = total_steps(len(pairs), settings)
        # Sharded weights are gathered for each micro-batch, so their gradients are shared out for each, too.
        self.sharded = accelerator.distributed_type == DistributedType.FSDP
        trained = [weight for weight in model.network.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay)
        self.schedule = get_scheduler(settings.schedule, optimizer, round(settings.warmup * self.steps), self.steps)
        self.network, self.optimizer = accelerator.prepare(model.network, optimizer)
        accelerator.register_for_checkpointing(self.schedule)

    def step(self, batches: list[list[int]]) -> dict:
        """One optimiser step from this rank's micro-batches; returns what the log says of it."""
        clock, margins, rewards, losses, tokens = Clock(), [], [], [], 0
        self.network.train()
        for number, batch in enumerate(batches):
            waits = number < len(batches) - 1 and not self.sharded
            with self.accelerator.no_sync(self.network) if waits else contextlib.nullcontext():
                chosen, rejected = self._rewards(self.pairs, batch)
                loss = bradley_terry(chosen, rejected)
                # The mean over the whole step's pairs: ranks are averaged when gradients are, hence their number.
                scale = self.accelerator.num_processes / self.settings.batch if batch else 0.0
                self.accelerator.backward(loss.sum() * scale)
            if batch:
                losses += loss.tolist()
                margins += (chosen - rejected).tolist()
                rewards += [*chosen.tolist(), *rejected.tolist()]
                tokens += sum(self.pairs[index].tokens for index in batch)
        norm = self.accelerator.clip_grad_norm_(self.network.parameters(), self.settings.max_grad_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        done = self._mean(losses, margins, rewards)
        total = sum(gather_object([tokens])) if self.accelerator.num_processes > 1 else tokens
        return done | {"lr": rate, "grad_norm": float(norm), "tokens": total,
                       "tokens_per_s": round(total / clock.seconds, 1),
                       "pairs_per_s": round(self.settings.batch / clock.seconds, 3)}

    def evaluate(self, pairs: list[Pair]) -> dict:
        """Loss, accuracy (strict), margin and mean reward on held-out pairs."""
        losses, margins, rewards = [], [], []
        dealt = deal(range(len(pairs)), [pair.size for pair in pairs], self.settings.budget,
                     self.accelerator.num_processes)
        self.network.eval()
        with torch.no_grad():
            for batch in dealt[self.accelerator.process_index]:
                chosen, rejected = self._rewards(pairs, batch)
                if batch:
                    losses += bradley_terry(chosen, rejected).tolist()
                    margins += (chosen - rejected).tolist()
                    rewards += [*chosen.tolist(), *rejected.tolist()]
        return self._mean(losses, margins, rewards)

    def _rewards(self, pairs: list[Pair], batch: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rewards (chosen, rejected) of some pairs; of any for an empty batch, since all ranks must take part."""
        with self.accelerator.autocast():
            found = self.network([pairs[index].sides for index in batch or [0]])
        return torch.cat(found[::2]), torch.cat(found[1::2])

    def _mean(self, *values: list[float]) -> dict:
        """Means over the pairs of all ranks: gathered one by one, since ranks hold different numbers of them."""
        if self.accelerator.num_processes > 1:
            values = [gather_object(list(one)) for one in values]
        losses, margins, rewards = values
        count = len(losses)
        return {"loss": math.fsum(losses) / count, "accuracy": sum(margin > 0 for margin in margins) / count,
                "margin": math.fsum(margins) / count, "mean_reward": math.fsum(rewards) / len(rewards)}

    def save_state(self, step: int, identity: dict) -> None:
        """A checkpoint to resume from: written beside, renamed when whole, then older ones are removed."""
        folder = self.out / CHECKPOINTS
        partial, target = folder / f".step-{step:06}", folder / f"step-{step:06}"
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()  # each writes its part
        if self.accelerator.is_main_process:
            (partial / STATE).write_bytes(orjson.dumps({"step": step} | identity))
            os.rename(partial, target)
            for old in folder.iterdir():
                if old != target:
                    shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def resume(self, identity: dict) -> int:
        """The step to go on from: 0, or that of the last checkpoint. Raises InputError if it belongs to another run."""
        found = sorted((self.out / CHECKPOINTS).glob("step-*"))
        if not found:
            return 0
        try:
            state = orjson.loads((found[-1] / STATE).read_bytes())
        except (OSError, orjson.JSONDecodeError) as error:
            raise InputError(f"{found[-1]}: is damaged ({error}); remove it to start again") from error
        refuse_other_run(state, identity, self.out)
        try:
            self.accelerator.load_state(str(found[-1]))
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{found[-1]}: cannot be loaded ({reason}); remove it to start again") from error
        return state["step"]


def train(preferences: Iterable[Record], out: Path, settings: Settings, *, evaluation: Iterable[Record] | None = None,
          save_every: int | None = None, checked: bool = True, only_check: bool = False, rejects: Rejects | None = None,
          counts: Counter | None = None, say: Callable[[str], None] = lambda _: None) -> dict | None:
    """Train and write the reward model to `out`; the same call again resumes, or finds it done.

    Returns the last metrics; None where there was nothing left to do, and in every process but the main one. Raises
    InputError where `out` holds another run.
    """
    counts = Counter() if counts is None else counts
    accelerator = _accelerator()
    say = say if accelerator.is_main_process else lambda _: None
    if settings.batch < accelerator.num_processes:
        raise InputError(f"--batch {settings.batch}: every one of {accelerator.num_processes} processes needs a pair")
    if accelerator.is_main_process and not only_check:
        _claim(out)
    set_seed(settings.seed)
    model = checkpoint.create(settings.model, seed=settings.seed, lora=settings.lora, say=say)
    if settings.activation_checkpointing:
        model.network.core.activation_checkpointing_enable({"use_reentrant": False})
    pairs = _prepare(preferences, model, settings, counts, rejects, say, "to train on")
    if len(pairs) < settings.batch:
        raise InputError(f"--batch {settings.batch}: there are {len(pairs)} pairs; a step would hold some twice")
    held_out = [] if evaluation is None else _prepare(evaluation, model, settings, Counter(), rejects,
                                                      lambda text: say(f"--eval: {text}"), "to evaluate on")
    if checked or only_check:
        check(model, [*pairs, *held_out])
    identity = {"settings": asdict(settings), "data": _fingerprint(pairs)}
    if not only_check and (found := checkpoint.read_notes(out)):
        refuse_other_run(found, identity, out)
        say(f"{out} is trained already, by this same line")
        return None
    say(_plan_in_words(model, pairs, settings, accelerator))
    if only_check:
        return None
    return _run(Trainer(model, pairs, out, settings, accelerator), identity, held_out, save_every, say)


def _prepare(preferences: Iterable[Record], model: checkpoint.RewardModel, settings: Settings, counts: Counter,
             rejects: Rejects | None, say: Callable, purpose: str) -> list[Pair]:
    pairs = prepare(preferences, model, min(settings.max_length, model.context), counts, rejects)
    for what, count in sorted(counts.items()):
        if count:
            say(f"{count:,} {what}")
    if not pairs:
        raise InputError(f"no pairs {purpose} are left")
    return pairs


def _claim(out: Path) -> None:
    """Make the folder, or find out now, not after hours of work, that it holds something else or cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = sorted(file.name for file in out.iterdir() if not file.name.startswith("."))
        if held and not {LOG, CHECKPOINTS, checkpoint.NOTES} & set(held):
            raise InputError(f"{out}: holds something else ({', '.join(held)[:60]}); name another --out")
        with tempfile.TemporaryFile(dir=out):
            pass
    except FileExistsError:
        raise InputError(f"{out}: is a file; --out names a folder") from None
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}") from error


def _run(trainer: Trainer, identity: dict, held_out: list[Pair], save_every: int | None, say: Callable) -> dict:
    main, settings, out = trainer.accelerator.is_main_process, trainer.settings, trainer.out
    start = trainer.resume(identity)
    if start:
        say(f"going on after step {start} of {trainer.steps}")
    log = _Log(out / LOG, start) if main else None
    measured: dict = {}
    planned = plan([pair.size for pair in trainer.pairs], settings, trainer.accelerator.num_processes)
    with bar("train", trainer.steps) if main else contextlib.nullcontext(Bar()) as progress:
        progress.advance(start)
        for number, step in enumerate(planned, 1):
            if number <= start:
                continue
            measured = {"step": number, "epoch": round(number * settings.batch / len(trainer.pairs), 3)}
            measured |= trainer.step(step[trainer.accelerator.process_index])
            for name in ("loss", "grad_norm"):
                if not math.isfinite(measured[name]):
                    raise InputError(f"{name} is {measured[name]} at step {number}; lower --lr, or look at the data")
            ends = number == trainer.steps
            if held_out and (ends or (save_every and number % save_every == 0)):
                measured |= {f"eval_{name}": value for name, value in trainer.evaluate(held_out).items()}
            if main:
                log.add(measured)
            progress.advance(1, f"loss {measured['loss']:.3f} accuracy {measured['accuracy']:.2f} "
                                f"{measured['tokens_per_s']:.0f} tokens/s")
            if save_every and number % save_every == 0 and not ends:
                trainer.save_state(number, identity)
    _finish(trainer, identity | {"metrics": measured})
    trainer.accelerator.end_training()
    return measured if main else None


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
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


def _whole(trainer: Trainer) -> checkpoint.RewardModel:
    """The trained model with all its weights; where they are sharded, the main process makes a new one of them."""
    model, settings = trainer.model, trainer.settings
    if not trainer.sharded:
        model.network = trainer.accelerator.unwrap_model(trainer.network)
        return model
    weights = trainer.accelerator.get_state_dict(trainer.network)
    if trainer.accelerator.is_main_process:
        model = checkpoint.create(settings.model, seed=settings.seed, lora=settings.lora)
        model.network.load_state_dict(weights, assign=True)
    return model


class _Log:
    """One JSON object a step. Steps that will be computed again after a crash are cut off first."""

    def __init__(self, path: Path, start: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in path.read_bytes().splitlines() if _step(line) <= start] if path.exists() else []
        self._path = path
        path.write_bytes(b"".join(line + b"\n" for line in kept))

    def add(self, measured: dict) -> None:
        with self._path.open("ab") as file:
            file.write(orjson.dumps(measured, option=orjson.OPT_APPEND_NEWLINE))


def _step(line: bytes) -> float:
    try:
        return orjson.loads(line)["step"]
    except (orjson.JSONDecodeError, KeyError, TypeError):  # torn by a crash
        return math.inf


def refuse_other_run(state: dict, identity: dict, out: Path) -> None:
    """Raises InputError where a folder's run differs from the one that is asked for, naming what differs."""
    then, now = state.get("settings", {}), identity["settings"]
    differs = [f"{name} was {then.get(name)!r}, is {now[name]!r}" for name in now if then.get(name) != now[name]]
    if state.get("data") != identity["data"]:
        differs.append("the pairs are others")
    if differs:
        raise InputError(f"{out}: holds another run ({'; '.join(differs)}); name another --out or remove it")


def _accelerator() -> Accelerator:
    gpu = torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision="bf16" if gpu and torch.cuda.is_bf16_supported() else "no", cpu=not gpu)
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin and plugin.fsdp_version == 2 and accelerator.mixed_precision == "bf16":
        # accelerate's own would sum gradients and return rewards in bf16.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return accelerator


def _plan_in_words(model: checkpoint.RewardModel, pairs: list[Pair], settings: Settings,
                   accelerator: Accelerator) -> str:
    trained = sum(weight.numel() for weight in model.network.parameters() if weight.requires_grad)
    tokens, packed = sum(pair.tokens for pair in pairs), sum(pair.size for pair in pairs)
    return (f"{len(pairs):,} pairs, {tokens:,} tokens ({packed:,} with shared prefixes once); "
            f"{total_steps(len(pairs), settings):,} steps of {settings.batch}; {trained:,} weights in training; "
            f"{accelerator.num_processes} x {accelerator.device.type}, {accelerator.mixed_precision} mixed precision")


def _fingerprint(pairs: list[Pair]) -> str:
    digest = hashlib.sha256()
    for pair in pairs:
        for side in pair.sides:
            digest.update(orjson.dumps(side.ids))
    return digest.hexdigest()[:16]
