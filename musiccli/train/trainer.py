"""One step of training after another, on this rank's share of the pairs; and how to stop and go on."""

import contextlib
import os
import shutil
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import orjson
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import get_scheduler

from musiccli.core.errors import InputError
from musiccli.core.processes import ProcessGroup
from musiccli.core.progress import Clock
from musiccli.reward_model.checkpoint import RewardModel
from musiccli.reward_model.loss import pair_losses
from musiccli.reward_model.network import last_rewards
from musiccli.reward_model.trimmed_embedding import TrimmedEmbedding, fingerprint
from musiccli.train import metrics as measures
from musiccli.train.batching import deal, total_steps
from musiccli.train.config import RENAMED_SETTINGS, RESUMABLE_SETTINGS, TrainConfig
from musiccli.train.tokenized_pairs import Pair

STATE, CHECKPOINTS, VOCABULARY = "state.json", "checkpoints", "vocabulary"


class Trainer:
    """One run: model, optimiser and plan, and how to save and resume them."""

    def __init__(
        self,
        model: RewardModel,
        pairs: list[Pair],
        out: Path,
        settings: TrainConfig,
        accelerator: Accelerator,
        vocabulary: TrimmedEmbedding,
    ):
        self.model, self.pairs, self.out, self.settings, self.accelerator = (
            model,
            pairs,
            out,
            settings,
            accelerator,
        )
        self.vocabulary = vocabulary
        self.steps = total_steps(len(pairs), settings)
        # Sharded weights are gathered for each micro-batch, so their gradients are shared out for each, too.
        self.sharded = accelerator.distributed_type == DistributedType.FSDP
        trained = [weight for weight in model.network.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        self.schedule = get_scheduler(
            settings.schedule, optimizer, round(settings.warmup * self.steps), self.steps
        )
        self.network, self.optimizer = accelerator.prepare(model.network, optimizer)
        accelerator.register_for_checkpointing(self.schedule)

    def step(self, batches: list[list[int]]) -> dict:
        """One optimiser step from this rank's micro-batches; returns what the log says of it."""
        clock, margins, rewards, losses, tokens = Clock(), [], [], [], 0
        self.network.train()
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            self.accelerator.sync_gradients = (
                last  # DeepSpeed clips and steps in the last backward pass
            )
            waits = not last and not self.sharded
            with self.accelerator.no_sync(self.network) if waits else contextlib.nullcontext():
                chosen, rejected = self._rewards(self.pairs, batch)
                by = [self.pairs[index].margin for index in batch or [0]]
                loss = pair_losses(chosen, rejected, by, self.settings.center or 0.0)
                # The mean over the whole step's pairs: ranks are averaged when gradients are, hence their number.
                scale = self.accelerator.num_processes / self.settings.batch if batch else 0.0
                self.accelerator.backward(loss.sum() * scale)
            if batch:
                losses += loss.tolist()
                margins += (last_rewards(chosen) - last_rewards(rejected)).tolist()
                rewards += last_rewards([*chosen, *rejected]).tolist()
                tokens += sum(self.pairs[index].tokens for index in batch)
        norm = self.accelerator.clip_grad_norm_(
            self.network.parameters(), self.settings.max_grad_norm
        )  # or None
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        losses, margins, rewards, tokens = self._gather(losses, margins, rewards, [tokens])
        return measures.means(losses, margins, rewards) | {
            "lr": rate,
            "grad_norm": None if norm is None else float(norm),
            "tokens": sum(tokens),
            "tokens_per_s": round(sum(tokens) / clock.seconds, 1),
            "pairs_per_s": round(self.settings.batch / clock.seconds, 3),
        }

    def evaluate(self, pairs: list[Pair]) -> dict:
        """What measures.held_out says of held-out pairs."""
        dealt = deal(
            range(len(pairs)),
            [pair.size for pair in pairs],
            self.settings.budget,
            self.accelerator.num_processes,
            padded=not self.model.network.packed,
        )
        found = []
        self.network.eval()
        with torch.no_grad():
            for batch in dealt[self.accelerator.process_index]:
                chosen, rejected = self._rewards(pairs, batch)
                if batch:
                    found += zip(
                        batch,
                        last_rewards(chosen).tolist(),
                        last_rewards(rejected).tolist(),
                        strict=True,
                    )
        [found] = self._gather(found)
        return measures.held_out(
            [(chosen, rejected) for _, chosen, rejected in sorted(found)], pairs
        )

    def _rewards(
        self, pairs: list[Pair], batch: list[int]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Rewards (chosen, rejected) of some pairs, (turns,) of each side; of any pair for an empty batch, since all
        ranks must take part."""
        with self.accelerator.autocast():
            found = self.network([pairs[index].sides for index in batch or [0]])
        return found[::2], found[1::2]

    def _gather(self, *lists: list) -> list[list]:
        """Each list with those of all ranks behind each other, one value a pair: ranks hold different numbers of them,
        so a mean of their means would be wrong. Nothing that grows with tokens is sent."""
        process_group = ProcessGroup(self.accelerator.num_processes, self.accelerator.process_index)
        return [list(chain(*parts)) for parts in zip(*process_group.gather([lists]), strict=True)]

    def _rows(self) -> str:
        return fingerprint(self.vocabulary.tokens)

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
            (partial / STATE).write_bytes(
                orjson.dumps({"step": step, VOCABULARY: self._rows()} | identity)
            )
            os.rename(partial, target)
            remove_states(folder, but=target)
        self.accelerator.wait_for_everyone()

    def resume(self, identity: dict) -> tuple[int, list[str]]:
        """The step to go on from: 0, or that of the last checkpoint; and what is computed in another way from there on.
        Raises InputError if the checkpoint belongs to another run."""
        found = sorted((self.out / CHECKPOINTS).glob("step-*"))
        if not found:
            return 0, []
        try:
            state = orjson.loads((found[-1] / STATE).read_bytes())
        except (OSError, orjson.JSONDecodeError) as error:
            raise InputError(
                f"{found[-1]}: is damaged ({error}); remove it to start again"
            ) from error
        differs = refuse_other_run(state, identity, self.out)
        if state.get(VOCABULARY) != self._rows():
            raise InputError(
                f"{self.out}: was begun with other held-out pairs, or by another version, and cannot go "
                "on with these; name the same --eval, or another --out"
            )
        try:
            self.accelerator.load_state(str(found[-1]))
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{found[-1]}: cannot be loaded ({reason}); remove it to start again"
            ) from error
        return state["step"], differs


def remove_states(folder: Path, but: Path | None = None) -> None:
    """Remove what save_state wrote into a folder, and then the folder if it is empty; what else it holds stays."""
    for state in {*folder.glob("step-*"), *folder.glob(".step-*")} - {but}:
        shutil.rmtree(state, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def refuse_other_run(state: dict, identity: dict, out: Path) -> list[str]:
    """Raises InputError where a folder's run differs from the one that is asked for, naming what differs; returns what
    differs of HOW alone. A setting that the run does not name is younger than it, and had its default."""
    recorded = {
        RENAMED_SETTINGS.get(name, name): value for name, value in state.get("settings", {}).items()
    }
    then, now = asdict(TrainConfig()) | recorded, identity["settings"]
    changed = {
        name: f"{name} was {then[name]!r}, is {now[name]!r}"
        for name in now
        if then[name] != now[name]
    }
    differs = [text for name, text in changed.items() if name not in RESUMABLE_SETTINGS]
    if state.get("data") != identity["data"]:
        differs.append("the pairs are others")
    if differs:
        raise InputError(
            f"{out}: holds another run ({'; '.join(differs)}); name another --out or remove it"
        )
    return [text for name, text in changed.items() if name in RESUMABLE_SETTINGS]
