"""A LoRA adapter and its backbone made into one plain checkpoint, whoever trained the adapter."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from musiccli.core.errors import InputError
from musiccli.core.quiet import quiet_libraries
from musiccli.reward_model import checkpoint

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PROBES = ("Name a fugue.", "The Art of Fugue.", "Who wrote it?", "Bach did, in his last years.")


def merge(
    adapter: Path,
    out: Path,
    *,
    base: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> float:
    """Write `adapter`, merged into its backbone (`base`, else the one that it names), to the new folder `out`.

    Returns by how much a probe's rewards differ before and after. Raises InputError for what is no adapter, has no
    trained reward head, does not fit its backbone, or would change rewards by more than float noise.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is there already; name another --out")
    config, names = _read(adapter)
    base = base or config.get("base_model_name_or_path")
    if not base:
        raise InputError(f"{adapter}: names no backbone; give it as --model")
    model = _with_head(adapter, base, any(name.endswith("score.weight") for name in names), say)
    _adapt(model, adapter, names, base)
    before = _probe(model)
    try:
        model.network.model = model.network.model.merge_and_unload()
    except AttributeError as error:
        raise InputError(
            f"{adapter}: a {config.get('peft_type')} adapter cannot be merged"
        ) from error
    differ = (_probe(model) - before).abs().max().item()
    if differ > 1e-3 * max(1.0, before.abs().max().item()):
        raise InputError(f"{adapter}: merged into {base} it would change rewards by {differ:.2g}")
    model.notes = {"base": base, "lora": config.get("r"), "merged": adapter.name}
    _write(model, out)
    return differ


def _read(adapter: Path) -> tuple[dict, set[str]]:
    """The adapter's configuration, and the names of its weights."""
    if not (adapter / CONFIG).is_file():
        if (adapter / checkpoint.ADAPTER / CONFIG).is_file():
            raise InputError(
                f"{adapter}: is merged already; its adapter alone is in {adapter / checkpoint.ADAPTER}"
            )
        raise InputError(
            f"{adapter}: holds no {CONFIG}; expected the folder of a LoRA adapter, as peft writes it"
        )
    try:
        with safe_open(adapter / WEIGHTS, "pt") as weights:
            names = set(weights.keys())
        return json.loads((adapter / CONFIG).read_bytes()), names
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{adapter}: cannot be read: {' '.join(str(error).split())}") from error


def _with_head(adapter: Path, base: str, has_head: bool, say: Callable) -> checkpoint.RewardModel:
    """The backbone under the adapter's tokenizer; its own head must be trained where the adapter brings none."""
    tokenizer = str(adapter) if (adapter / "tokenizer_config.json").is_file() else None
    model = checkpoint.create(base, tokenizer=tokenizer, say=say)
    if not has_head and not model.trained_head:
        raise InputError(
            f"{adapter}: holds no reward head, and {base} has no trained one; LoRA keeps it with "
            "task_type SEQ_CLS"
        )
    return model


def _adapt(model: checkpoint.RewardModel, adapter: Path, names: set[str], base: str) -> None:
    from peft import PeftModel, get_peft_model_state_dict

    try:
        with quiet_libraries():
            model.network.model = PeftModel.from_pretrained(model.network.core, adapter)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{adapter}: does not fit {base}: {reason}; another --model?") from error
    missed = names ^ set(
        get_peft_model_state_dict(model.network.model, save_embedding_layers=False)
    )
    if missed := {name for name in missed if "lora_" in name or name.endswith("score.weight")}:
        raise InputError(
            f"{adapter}: does not fit {base}: {len(missed)} weights have no place, {min(missed)} is one; "
            "another --model?"
        )


def _probe(model: checkpoint.RewardModel) -> torch.Tensor:
    messages = [
        {"role": ("user", "assistant")[place % 2], "content": text}
        for place, text in enumerate(PROBES)
    ]
    with torch.inference_mode():
        return torch.cat(
            model.network.eval()(
                [[model.chat_template.encode(messages[:2]), model.chat_template.encode(messages)]]
            )
        )


def _write(model: checkpoint.RewardModel, out: Path) -> None:
    """The folder, whole or not at all."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
            partial = Path(scratch, "merged")
            partial.mkdir()
            checkpoint.save(model, partial)
            os.replace(partial, out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}") from error
