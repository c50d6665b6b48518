"""Reward models on disk: made from a backbone, loaded, and saved so that transformers opens them as they are."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

import orjson
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from musiccli.core.bundled_models import list_model_files, path_or_hub_id
from musiccli.core.errors import InputError
from musiccli.core.quiet import quiet_libraries
from musiccli.cpu.linear import use_onednn_linear
from musiccli.cpu.memory import retain_freed_memory
from musiccli.reward_model.card import card
from musiccli.reward_model.chat_template import ChatTemplate, EncodedConversation
from musiccli.reward_model.network import RewardNetwork
from musiccli.reward_model.out_of_memory import explain_out_of_memory

NOTES = "music.json"  # beside the weights: what config.json has no place for
CARD = "README.md"
ADAPTER = "adapter"  # the LoRA weights alone, beside the merged checkpoint
PADDING = (
    "<pad>",
    "<|pad|>",
    "[PAD]",
    "<|endoftext|>",
    "<|finetune_right_pad_id|>",
    "<unk>",
)  # rather than any other


@dataclass
class RewardModel:
    """A network, the tokenizer and template it reads with, and the notes that travel with it."""

    network: RewardNetwork
    tokenizer: object
    chat_template: ChatTemplate
    notes: dict = field(default_factory=dict)
    replaced_padding: str | None = (
        None  # the tokenizer's own padding token, where it could not stay
    )
    trained_head: bool = True  # else it was drawn just now
    identity: str = ""  # of what was loaded and how it computes: equal ones give equal scores

    @property
    def context_length(self) -> int:
        """The most tokens that the backbone takes."""
        return (
            getattr(self.network.core.config.get_text_config(), "max_position_embeddings", None)
            or 1 << 20
        )


def create(
    base: str,
    *,
    seed: int = 0,
    lora: int | None = None,
    trained: bool = False,
    tokenizer: str | None = None,
    say: Callable[[str], None] = lambda _: None,
    dtype: torch.dtype = torch.float32,
) -> RewardModel:
    """A reward model to be trained: `base` with a scalar head, new unless `base` is a reward model already; InputError
    where it must be one (`trained`) and is not. `tokenizer` is where another tokenizer than its own is.

    `lora` is the rank of low-rank adapters on all linear layers; the head is then trained and saved whole. What no text
    passes through is neither trained nor adapted. Weights are loaded in `dtype`: fp32 masters, since a bf16 parameter
    would swallow a step of 2e-6.
    """
    model = _open(base, say, dtype, None if trained else seed, tokenizer)
    config = model.network.core.config
    config.problem_type = (
        "regression"  # pipelines and servers then return the raw score, without a sigmoid
    )
    config.label2id, config.id2label = {"reward": 0}, {0: "reward"}
    unused_modules = model.network.unused_modules
    for part in unused_modules:
        model.network.core.get_submodule(part).requires_grad_(
            False
        )  # DDP would wait for its gradients
    if lora:
        from peft import LoraConfig, get_peft_model

        # SEQ_CLS keeps the head out of the adapters and saves it whole; else peft would adapt, and lose, the head.
        adapters = LoraConfig(
            r=lora,
            lora_alpha=2 * lora,
            target_modules="all-linear",
            task_type="SEQ_CLS",
            exclude_modules=rf"({'|'.join(unused_modules)})\..*" if unused_modules else None,
        )
        torch.manual_seed(seed)
        with quiet_libraries():
            model.network.model = get_peft_model(model.network.model, adapters)
        model.network.model.float()
        use_onednn_linear(model.network.model)
    model.notes = {"base": base, "seed": seed, "lora": lora}
    return model


def load(path: str, say: Callable[[str], None] = lambda _: None) -> RewardModel:
    """A trained reward model, ready to score on the best device here: ours or anybody's with one label.

    Raises InputError for a model that is missing, has no score head, more than one label, or no chat template.
    """
    gpu = torch.cuda.is_available()
    model = _open(path, say, torch.bfloat16 if gpu else torch.float32, None)
    with explain_out_of_memory("the weights alone take more than there is"):
        model.network.to("cuda" if gpu else "cpu").eval()
    model.network.core.score.float()  # a small head, and rewards that can be told apart
    model.identity = _identity(path_or_hub_id(path), model.network)
    return model


def save(model: RewardModel, folder: Path) -> None:
    """Write the checkpoint at the top of `folder`: safetensors, tokenizer, template, card, notes; LoRA is merged, its
    adapter kept beside. The config keeps the attention that transformers itself should use."""
    core, network = model.network.core, model.network
    if hasattr(network.model, "peft_config"):
        network.model.save_pretrained(folder / ADAPTER)
        core = network.model.merge_and_unload()
    with quiet_libraries():
        core.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    for file in folder.rglob("*.safetensors"):
        shutil.copymode(folder / "config.json", file)  # safetensors keeps it from everybody else
    last = _last_token(model.chat_template)
    notes = model.notes | {
        "reward_token": {"id": last, "text": model.tokenizer.decode([last])},
        "attention": "eager" if has_logit_softcap(core.config) else "sdpa",
        "versions": {
            name: version(name)
            for name in ("musiccli", "torch", "transformers", "peft", "accelerate")
        },
    }
    (folder / CARD).write_text(card(notes), "utf-8")
    (folder / NOTES).write_bytes(orjson.dumps(notes, option=orjson.OPT_INDENT_2))


def _open(
    name: str,
    say: Callable,
    dtype: torch.dtype,
    seed: int | None,
    other_tokenizer: str | None = None,
) -> RewardModel:
    path = path_or_hub_id(name, say)
    if os.path.isfile(os.path.join(path, "adapter_config.json")):
        raise InputError(
            f"{name}: is a LoRA adapter; `music merge {name} --out DIR` makes a reward model of it"
        )
    if os.path.isdir(path) and not os.path.exists(os.path.join(path, "config.json")):
        raise InputError(f"{name}: is a folder without a config.json; expected a model's folder")
    if os.path.isfile(path) or (name.startswith(("/", ".", "~")) and not os.path.isdir(path)):
        raise InputError(
            f"{name}: no such folder; expected a model's folder, a hub id or local/NAME"
        )
    retain_freed_memory()
    torch.manual_seed(seed or 0)  # a new head is drawn here
    try:
        with quiet_libraries():
            config = AutoConfig.from_pretrained(path)
        if config.num_labels != 1 and _is_classifier(config):
            raise InputError(
                f"{name}: has {config.num_labels} labels; a reward model has one (was it trained as a "
                "classifier?)"
            )
        config.num_labels = 1  # a config without labels says 2
        with quiet_libraries():
            tokenizer = AutoTokenizer.from_pretrained(other_tokenizer or path)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                attn_implementation="eager" if has_logit_softcap(config) else None,
            )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise InputError(
            f"{name}: cannot be loaded as a reward model: {_first_sentence(error)}"
        ) from error
    if not hasattr(model, "score"):
        raise InputError(
            f"{name}: {type(model).__name__} has no linear head named score; only decoders with one are "
            "read"
        )
    _refuse_random(name, model, report)
    trained = not any(key.startswith("score") for key in report["missing_keys"])
    if seed is None and not trained:
        raise InputError(
            f"{name}: has no trained reward head; `music train --model {name}` makes a reward model of it"
        )
    use_onednn_linear(model)
    template, notes = ChatTemplate(tokenizer), read_notes(Path(path))
    read_at, last = notes.get("reward_token"), _last_token(template)
    if read_at and read_at["id"] != last:
        raise InputError(
            f"{name}: was trained to be read at {read_at['text']!r}, but its chat template ends with "
            f"{tokenizer.decode([last])!r} now; put its own chat_template.jinja back"
        )
    replaced = _choose_padding(tokenizer, model, last)
    return RewardModel(_network(model, say), tokenizer, template, notes, replaced, trained)


def _refuse_random(name: str, model, report: dict) -> None:
    """Raises InputError where weights other than a new head's were drawn at random; transformers would only warn."""
    weights = {
        weight for weight, _ in model.named_parameters()
    }  # a buffer that is missing is computed
    missing = {key for key in report["missing_keys"] & weights if not key.startswith("score")}
    reshaped = {key for key, *_ in report["mismatched_keys"]}
    if missing or reshaped:
        how = (
            "not in its files (are they whole, and names without a prefix such as module.?)"
            if missing
            else "of another shape in its files than by its config"
        )
        raise InputError(
            f"{name}: cannot be loaded as a reward model: {len(missing or reshaped)} weights are {how}; "
            f"{min(missing or reshaped)} is one"
        )


def _identity(path: str, network: RewardNetwork) -> str:
    """A local folder by its files, a hub model by its commit; and by what else makes its numbers."""
    weight = next(network.parameters())
    source = (
        list_model_files(Path(path)) or getattr(network.core.config, "_commit_hash", None),
        str(weight.dtype),
        weight.device.type,
        network.packed,
        version("torch"),
        version("transformers"),
    )
    return f"{path} {blake2b(repr(source).encode(), digest_size=4).hexdigest()}"


def _first_sentence(error: Exception) -> str:
    """What happened; libraries add links and advice for their own users."""
    return " ".join(str(error).split()).split(". ")[0].split(" Check your internet")[0][:300]


def read_notes(folder: Path) -> dict:
    """What a checkpoint's notes say; nothing where there are none. Raises InputError where they are damaged."""
    try:
        return orjson.loads((folder / NOTES).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, orjson.JSONDecodeError) as error:
        raise InputError(f"{folder / NOTES}: is damaged: {error}") from error


def _is_classifier(config) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or [])


def has_logit_softcap(config) -> bool:
    """Whether attention logits are soft-capped, as Gemma-2's: sdpa leaves that out, or refuses."""
    return bool(getattr(config.get_text_config(), "attn_logit_softcapping", None))


def _last_token(template: ChatTemplate) -> int:
    return template.encode(
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], False
    ).ids[-1]


def _choose_padding(tokenizer, model, last: int) -> str | None:
    """transformers reads the reward at the last token that is not padding, so padding must never be `last`, that token.

    Returns the padding token that had to be replaced, if any.
    """
    own = tokenizer.pad_token
    avoid = {
        last,
        *(id for id in (tokenizer.eos_token_id, tokenizer.bos_token_id) if id is not None),
    }
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in avoid:
        special = {
            token.content: id
            for id, token in tokenizer.added_tokens_decoder.items()
            if token.special
        }
        best = [name for name in PADDING if name in special] + list(special)
        usable = [name for name in best if special[name] not in avoid]
        if not usable:
            raise InputError(
                f"{tokenizer.name_or_path}: its padding token also ends conversations, and it has no "
                "other special token to use; add one to its tokenizer as pad_token"
            )
        tokenizer.pad_token = usable[0]
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return own if own != tokenizer.pad_token else None


def _network(model, say: Callable) -> RewardNetwork:
    """Packed where the model's attention can do it and gives what padding gives, measured; else padded."""
    draw = torch.Generator().manual_seed(0)
    vocabulary = min(1000, model.config.get_text_config().vocab_size)
    common, *rests = (
        torch.randint(5, vocabulary, (size,), generator=draw).tolist() for size in (24, 9, 14)
    )
    group = [EncodedConversation(common + rest, [30, len(common + rest) - 1]) for rest in rests]
    own = model.config._attn_implementation
    with torch.inference_mode():
        expected = torch.cat(RewardNetwork(model, packed=False).eval()([group]))
        try:
            found = torch.cat(RewardNetwork(model, packed=True).eval()([group]))
        except (TypeError, ValueError, RuntimeError, KeyError):
            found = None
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    if found is not None and torch.allclose(found, expected, atol=tolerance, rtol=tolerance):
        return RewardNetwork(model, packed=True)
    say(
        f"{type(model).__name__}: its attention cannot be packed; padding instead (slower, same scores)"
    )
    model.set_attn_implementation(own)
    return RewardNetwork(model, packed=False)
