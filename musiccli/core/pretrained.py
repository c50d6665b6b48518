"""Load configs, tokenizers and networks by transformers, without running code that comes with them.

Every load of the package goes through here. A model may name Python files of its own, hold pickled
objects, or be larger by its config than by its files: none of these is run, unpickled or built.
"""

import copy
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from musiccli.core.errors import InputError, MusicError
from musiccli.core.quiet_libraries import quiet_libraries

HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")  # gpt2, or OWNER/NAME
CODE_FILES = ("config.json", "tokenizer_config.json")  # may name code, as `auto_map`
WEIGHT_FILES = tuple(
    name + suffix
    for name in ("model.safetensors", "pytorch_model.bin")
    for suffix in ("", ".index.json")
)
MAX_LAYERS = 2000  # the deepest published models have about 200
MAX_WEIGHTS_PER_BYTE = 4  # 4-bit weights are 2 a byte; a tied embedding is counted twice


def is_hub_id(name: str) -> bool:
    """Whether a name may be that of a model on the Hugging Face hub; else it is a folder."""
    return HUB_ID.fullmatch(name) is not None


def load_config(path: str) -> Any:
    """A model's config, from a folder or the Hugging Face hub.

    Raises:
        InputError: there is none, or it cannot be used. The message names no model.
    """
    from transformers import AutoConfig

    _refuse_missing_folder(path)
    with model_errors(path):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        _refuse_kernels_from_hub(config)
        _refuse_impossible_config(config)
    return config


def load_tokenizer(path: str, **settings: Any) -> Any:
    """A tokenizer. Raises InputError as `load_config` does."""
    from transformers import AutoTokenizer

    _refuse_missing_folder(path)
    with model_errors(path):
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False, **settings)


def load_classifier(path: str, config: Any, **settings: Any) -> Any:
    """A sequence classifier and transformers' report. Raises InputError as `load_config` does."""
    from transformers import AutoModelForSequenceClassification

    with model_errors(path):
        _refuse_more_than_files(path, AutoModelForSequenceClassification, config)
        return AutoModelForSequenceClassification.from_pretrained(
            path, config=config, trust_remote_code=False, output_loading_info=True, **settings
        )


def load_language_model(path: str, **settings: Any) -> Any:
    """A causal language model. Raises InputError as `load_config` does."""
    from transformers import AutoModelForCausalLM

    config = None if "gguf_file" in settings else load_config(path)
    with model_errors(path):
        if config:
            _refuse_more_than_files(path, AutoModelForCausalLM, config)
        return AutoModelForCausalLM.from_pretrained(
            path, config=config, trust_remote_code=False, **settings
        )


def load_adapter(network: Any, folder: Path, settings: dict[str, Any]) -> Any:
    """The network with the LoRA adapter of a folder. Raises InputError as `load_config` does.

    Args:
        network: the backbone.
        folder: holds the adapter's weights.
        settings: arguments of peft's LoraConfig. What the folder's own configuration asks for is
            not read.
    """
    from peft import LoraConfig, PeftModel

    with model_errors(str(folder)):
        config = LoraConfig(**settings, inference_mode=True)
        return PeftModel.from_pretrained(network, folder, config=config)


def report_custom_code(name: str, path: str, say: Callable[[str], None]) -> None:
    """Say that a model names code of its own, where transformers could do without it."""
    if code := _custom_code(path):
        say(f"{name}: {code}; music never runs it, and takes transformers' own code")


@contextmanager
def model_errors(path: str) -> Iterator[None]:
    """Raise InputError for whatever transformers raises: a damaged folder can raise anything."""
    try:
        with quiet_libraries():
            yield
    except InputError:
        raise
    except BaseException as error:
        # A panic of the tokenizers library, which is written in Rust, is no Exception.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise InputError(_reason(error, path)) from error
        raise


def _refuse_missing_folder(path: str) -> None:
    """Raise InputError for what is no folder here, and cannot be one of the hub's names."""
    if not Path(path).exists() and not is_hub_id(path):
        raise InputError("no such folder")


def _reason(error: BaseException, path: str) -> str:
    """What is wrong, in one sentence."""
    text = " ".join(str(error).split())
    if isinstance(error, MusicError):
        return text
    if "trust_remote_code" in text:
        code = _custom_code(path) or "it asks to run code of its own"
        return f"{code}; music never runs it, and transformers cannot load the model without it"
    if isinstance(error, UnpicklingError) or "Weights only load failed" in text:
        return (
            "its weights are a pickle that holds more than tensors, which music never unpickles; "
            "expected a .safetensors file"
        )
    if isinstance(error, MemoryError):
        return "memory does not suffice for it"
    sentence = text.partition(". ")[0].partition(" Check your internet")[0][:300]
    plain = isinstance(error, OSError | ValueError | RuntimeError | ImportError) and sentence
    return sentence if plain else f"{type(error).__name__}: {sentence}".rstrip(": ")


def _custom_code(path: str) -> str | None:
    """Which files of a model name code, in words; None where no file does."""
    mentions = []
    for name in CODE_FILES:
        modules = sorted(_named_modules(_read_json(path, name).get("auto_map")))
        if modules:
            mentions.append(f"its {name} names code of its own ({', '.join(modules[:3])})")
    return " and ".join(mentions) or None


def _named_modules(auto_map: object) -> set[str]:
    """The Python files in an `auto_map`: an object of "file.Class", or of lists of such."""
    classes = [*auto_map.values()] if isinstance(auto_map, dict) else [auto_map]
    names = [name for part in classes for name in (part if isinstance(part, list) else [part])]
    return {f"{name.rpartition('.')[0][:60]}.py" for name in names if isinstance(name, str)}


def _read_json(path: str, name: str) -> dict[str, Any]:
    """A JSON file of a model's folder, or of the hub's cache; empty where it cannot be read."""
    file: object = Path(path, name)
    if not Path(path).is_dir():
        from huggingface_hub import try_to_load_from_cache

        try:
            file = try_to_load_from_cache(path, name)
        except ValueError:  # no name of a repository
            return {}
    try:
        value = json.loads(Path(file).read_bytes()) if isinstance(file, str | Path) else None
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _refuse_kernels_from_hub(config: Any) -> None:
    """Raise InputError where the attention is compiled code, which would be fetched from a hub."""
    attention = getattr(config, "_attn_implementation", None)
    if attention is not None and (not isinstance(attention, str) or "/" in attention):
        raise InputError(
            f"its config.json names an attention kernel from the hub ({str(attention)[:60]}); "
            "music never runs it; remove attn_implementation there"
        )


def _refuse_impossible_config(config: Any) -> None:
    """Raise InputError for what transformers takes and cannot use; many layers would take hours."""
    text_config = config.get_text_config()
    layers = getattr(text_config, "num_hidden_layers", 0)
    if not isinstance(layers, int) or layers > MAX_LAYERS:
        raise InputError(f"its config.json asks for {str(layers)[:20]} layers")
    length = getattr(text_config, "max_position_embeddings", None)
    if length is not None and not (isinstance(length, int) and length > 0):
        raise InputError("its config.json: max_position_embeddings is no positive whole number")
    names = config.architectures or []
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise InputError("its config.json: architectures is no list of names")


def _weight_files(path: str) -> list[Path]:
    """The files with the weights of a folder, or of a hub id: these are downloaded now."""
    if Path(path).is_dir():
        return [*Path(path).glob("*.safetensors"), *Path(path).glob("*.bin")]
    from transformers.utils import cached_file

    for name in WEIGHT_FILES:  # in the order in which transformers looks for them
        if file := cached_file(path, name, _raise_exceptions_for_missing_entries=False):
            parts = {name}
            if name.endswith(".index.json"):
                parts = set(json.loads(Path(file).read_bytes())["weight_map"].values())
            return [Path(cached_file(path, part)) for part in sorted(parts)]
    return []


def _refuse_more_than_files(path: str, model_class: Any, config: Any) -> None:
    """Raise InputError where a config makes a network far larger than the model's weight files.

    transformers would fill the difference with random weights, whatever memory that takes.
    """
    size = sum(file.stat().st_size for file in _weight_files(path))
    if not size:
        return
    import torch

    # Building takes no memory on this device, and must not change what is drawn afterwards.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = model_class.from_config(copy.deepcopy(config), trust_remote_code=False)
    weights = sum(part.numel() for part in (*network.parameters(), *network.buffers()))
    if weights > MAX_WEIGHTS_PER_BYTE * size:
        raise InputError(
            f"its config.json describes {weights:,} weights, but its files have {size:,} bytes"
        )
