"""What a LoRA adapter's configuration asks of peft, checked: it comes with the adapter.

peft imports a module that a configuration names, matches regular expressions in it, and makes
weights as large as it says. So only what is listed here is taken, and its size is compared with
that of the weights.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from musiccli.core.bundled_models import refuse_missing_model
from musiccli.core.errors import InputError

CONFIG = "adapter_config.json"
ADAPTER = "adapter"  # the folder of the LoRA weights alone, beside a merged checkpoint
MAX_NAMES = 10_000  # modules of one model
LORA_WEIGHT = re.compile(r"base_model\.model\.(.+)\.lora_(embedding_)?A(\.weight)?$")  # (rank, ...)
TOKEN_WEIGHT = "trainable_tokens_delta"  # in the name of weights (tokens, width)
PLAIN_PATTERN = re.compile(r"\^?[\w.\\-]+\$?")  # without repetition: it takes no time to match
PISSA = re.compile(r"pissa(_niter_\d{1,2})?")

Shapes = Mapping[str, Sequence[int]]  # of an adapter's weights, by their names


def refuse_impossible_merge(adapter: Path, out: Path, model: str | None) -> None:
    """Raise InputError where it is seen without the weights that nothing can be merged.

    Args:
        adapter: the folder of the adapter.
        out: the folder of the merged checkpoint; nothing may be in it.
        model: the backbone; None is the one that the adapter names.
    """
    if (adapter / ADAPTER / CONFIG).is_file() and not (adapter / CONFIG).is_file():
        raise InputError(
            f"{adapter}: is merged already; its adapter alone is in {adapter / ADAPTER}"
        )
    if not (adapter / CONFIG).is_file():
        raise InputError(
            f"{adapter}: holds no {CONFIG}; expected the folder of a LoRA adapter, as peft writes "
            "it"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is there already; name another `out`")
    refuse_missing_model(base_model(adapter, read_config(adapter), model))


def read_config(adapter: Path) -> dict[str, Any]:
    """The configuration of the LoRA adapter in a folder.

    Raises InputError where it cannot be read, or is another kind of adapter's.
    """
    try:
        config = json.loads((adapter / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{adapter}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise InputError(f"{adapter}: cannot be read: {CONFIG} holds no object")
    if (kind := config.get("peft_type")) != "LORA":
        raise InputError(f"{adapter}: a {str(kind)[:40]} adapter cannot be merged")
    return config


def base_model(adapter: Path, config: Mapping[str, Any], model: str | None) -> str:
    """The backbone: `model`, or the one that the adapter names. Raises InputError without one."""
    base = model or config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise InputError(f"{adapter}: names no backbone; give it as `model`")
    return base


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_names(value: Any) -> bool:
    is_list = isinstance(value, list) and len(value) <= MAX_NAMES
    return is_list and all(isinstance(name, str) for name in value)


def _are_tokens(value: Any) -> bool:
    lists = [*value.values()] if isinstance(value, dict) else [value]
    return len(lists) <= MAX_NAMES and all(
        isinstance(numbers, list) and all(type(number) is int for number in numbers)
        for numbers in lists
    )


def _are_layers(value: Any) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return len(numbers) <= MAX_NAMES and all(type(number) is int for number in numbers)


def _are_plain_patterns(value: Any) -> bool:
    names = [value] if isinstance(value, str) else value
    return _are_names(names) and all(PLAIN_PATTERN.fullmatch(name) for name in names)


def _are_numbers_by_plain_pattern(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _are_plain_patterns([*value])
        and all(map(_is_number, value.values()))
    )


TAKEN: dict[str, Callable[[Any], bool]] = {  # peft's settings, and what they may be
    "lora_alpha": _is_number,
    "alpha_pattern": _are_numbers_by_plain_pattern,
    "rank_pattern": _are_numbers_by_plain_pattern,
    "target_modules": _are_names,
    "exclude_modules": _are_names,
    "target_parameters": _are_names,
    "modules_to_save": _are_names,
    "layers_to_transform": _are_layers,
    "layers_pattern": _are_plain_patterns,
    "trainable_token_indices": _are_tokens,
    "bias": lambda value: value in ("none", "all", "lora_only"),
    "task_type": lambda value: isinstance(value, str),
    **dict.fromkeys(
        ("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias", "ensure_weight_tying"), _is_flag
    ),
}
# What says something of the adapter's training or origin alone, or is taken otherwise.
WITHOUT_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "megatron_core"),
    *("peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config"),
    *("eva_config", "init_lora_weights", "r"),
}
# How the weights began. Those of an adapter take their place, but the last two change the backbone.
STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
STARTS_OF_BACKBONE = ("olora",)


def lora_settings(config: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """The arguments of peft's LoraConfig for an adapter.

    Args:
        config: what the adapter's configuration holds.
        shapes: of the adapter's weights.

    Raises:
        InputError: it asks for what is not taken. The message names no adapter.
    """
    from peft import LoraConfig

    config = _with_names_for_patterns(config, shapes)
    defaults = vars(LoraConfig())
    settings = {}
    for name, value in config.items():
        if name in WITHOUT_EFFECT or name not in defaults or value in (None, defaults[name], {}):
            continue
        if not (name in TAKEN and TAKEN[name](value)):
            raise InputError(
                f"its {CONFIG} asks for {name} {str(value)[:60]!r}, which music does not take"
            )
        settings[name] = value
    _refuse_other_sizes(config, shapes)
    return settings | {"r": config["r"], "init_lora_weights": _start(config)}


def _with_names_for_patterns(config: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """The configuration with the modules that have weights, where it has a regular expression."""
    patterns = [config.get("target_modules"), config.get("exclude_modules")]
    if not any(isinstance(pattern, str) for pattern in patterns):
        return dict(config)
    modules = sorted({match[1] for name in shapes if (match := LORA_WEIGHT.match(name))})
    return {**config, "target_modules": modules, "exclude_modules": None}


def _refuse_other_sizes(config: Mapping[str, Any], shapes: Shapes) -> None:
    """Raise InputError for a size that no weight has: weights are made as large as it says."""
    ranks = {shape[0] for name, shape in shapes.items() if LORA_WEIGHT.match(name)}
    for rank in (config.get("r"), *(config.get("rank_pattern") or {}).values()):
        if type(rank) is not int or not 0 < rank <= max(ranks, default=0):
            raise InputError(f"its {CONFIG} asks for rank {str(rank)[:20]}, which no weight has")
    tokens = config.get("trainable_token_indices") or {}
    counts = [
        len(numbers) for numbers in (tokens.values() if isinstance(tokens, dict) else [tokens])
    ]
    rows = [shape[0] for name, shape in shapes.items() if TOKEN_WEIGHT in name]
    if max(counts, default=0) > max(rows, default=0):
        raise InputError(f"its {CONFIG} asks for more trainable tokens than its weights have")


def _start(config: Mapping[str, Any]) -> bool | str:
    start = config.get("init_lora_weights", True)
    if start in STARTS_OF_BACKBONE or (isinstance(start, str) and PISSA.fullmatch(start)):
        return str(start)
    if isinstance(start, bool | str | None) and start in STARTS:
        return True
    raise InputError(
        f"its {CONFIG} asks for init_lora_weights {str(start)[:60]!r}, which music does not take"
    )
