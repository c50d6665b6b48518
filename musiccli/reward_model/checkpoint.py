"""Reward models: created from a backbone, loaded, and saved as transformers opens them."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import torch

from musiccli.core.bundled_models import (
    list_model_files,
    path_or_hub_id,
    refuse_other_folder,
)
from musiccli.core.errors import InputError
from musiccli.core.pretrained import model_errors
from musiccli.core.quiet_libraries import quiet_libraries
from musiccli.cpu import plain_torch
from musiccli.cpu.linear import use_onednn_linear
from musiccli.cpu.memory import retain_freed_memory
from musiccli.cpu.threads import limit_threads
from musiccli.gpu.memory import avoid_fragmentation
from musiccli.gpu.precision import computed_precision
from musiccli.reward_model import DEFAULT_BUDGET, NOTES
from musiccli.reward_model.activations import CPU
from musiccli.reward_model.adapter_config import ADAPTER
from musiccli.reward_model.backbone import (
    Placement,
    Say,
    draw_head,
    has_logit_softcap,
    load_backbone,
)
from musiccli.reward_model.batch_layout import choose_layout
from musiccli.reward_model.card import render_card
from musiccli.reward_model.chat_template import ChatTemplate
from musiccli.reward_model.network import RewardNetwork
from musiccli.reward_model.out_of_memory import explain_out_of_memory
from musiccli.reward_model.padding_token import choose_padding_token
from musiccli.reward_model.quantization import (
    is_quantized,
    keep_precision,
    merge_into_dequantized,
)
from musiccli.reward_model.scoring import ConversationLike, score_conversations
from musiccli.reward_model.vocabulary import (
    embed_template,
    embedding_rows,
    has_embedding,
    resize_embedding,
)

CARD = "README.md"
SERVED_ARCHITECTURES = {"Gemma3TextForSequenceClassification": "Gemma3ForSequenceClassification"}
UNLIMITED = 1 << 20  # tokens, for backbones that name no limit


@dataclass
class RewardModel:
    """A reward model: it gives a conversation one number, and a better one a higher number.

    Example:
        >>> from musiccli import RewardModel
        >>> model = RewardModel.load("rm")
        >>> question = {"role": "user", "content": "What is 2 + 2?"}
        >>> model.score([[question, {"role": "assistant", "content": "4."}]])
        [1.93]

    Attributes:
        network: the network, from token ids to rewards.
        tokenizer: transformers' tokenizer.
        chat_template: makes token ids of conversations.
        notes: what the checkpoint tells of its training.
        replaced_padding: the padding token that the tokenizer came with, where it was replaced.
        trained_head: whether the head was loaded; a new one was drawn at random.
        identity: names the weights and how they are computed; equal ones give equal scores.
    """

    network: RewardNetwork
    tokenizer: Any
    chat_template: ChatTemplate
    notes: dict[str, Any] = field(default_factory=dict)
    replaced_padding: str | None = None
    trained_head: bool = True
    identity: str = ""

    @classmethod
    def load(cls, path: str | Path) -> "RewardModel":
        """Load a trained reward model, on the GPU where there is one.

        Args:
            path: a folder that `music train` wrote, or any sequence classifier with one label: a
                folder, or a name on the Hugging Face hub.

        Raises:
            InputError: there is no such model, or it has no trained reward head, more than one
                label, or no chat template.

        Example:
            >>> model = RewardModel.load("rm")
        """
        return load(str(path))

    @property
    def context_length(self) -> int:
        """The most tokens that the backbone takes."""
        config = self.network.core.config.get_text_config()
        return getattr(config, "max_position_embeddings", None) or UNLIMITED

    def score(
        self,
        conversations: Iterable[ConversationLike],
        *,
        max_length: int | None = None,
        budget: int = DEFAULT_BUDGET,
    ) -> list[float]:
        """The reward of each whole conversation, as `music score` gives it.

        Candidates of one prompt are faster as neighbors: what they share is computed once.

        Args:
            conversations: lists of messages, or records that hold such a list as "messages" and
                may hold "tools", the functions on offer. Each ends with the assistant.
            max_length: the most tokens of a conversation. A longer one loses its oldest exchanges.
                None is the length of the backbone's context.
            budget: the most tokens in one forward pass. A smaller budget takes less memory.

        Raises:
            RecordError: a conversation is malformed, or too long to be cut. It says which.
            InputError: memory does not suffice.

        Example:
            >>> question = {"role": "user", "content": "What is 2 + 2?"}
            >>> replies = [{"role": "assistant", "content": text} for text in ("4.", "5.")]
            >>> model.score([[question, reply] for reply in replies])
            [1.93, -0.41]
        """
        limit = min(max_length or self.context_length, self.context_length)
        rewards = score_conversations(
            self.network, self.chat_template, conversations, limit, budget
        )
        return [turns[-1] for turns in rewards]

    def score_turns(
        self,
        conversations: Iterable[ConversationLike],
        *,
        max_length: int | None = None,
        budget: int = DEFAULT_BUDGET,
    ) -> list[list[float]]:
        """The reward after every turn of each conversation.

        The reward after a turn is that of the conversation up to it. The last one is `score`'s.
        Arguments and errors are those of `score`. A conversation that was cut has rewards for
        the turns that are left of it.

        Raises:
            RecordError: as in `score`; or the chat template rewrites earlier turns when more
                follow.

        Example:
            >>> model.score_turns([record["messages"] for record in read_records("talks.jsonl")])
            [[0.52, 1.31], [0.77, 0.12, -0.35]]
        """
        limit = min(max_length or self.context_length, self.context_length)
        return score_conversations(
            self.network, self.chat_template, conversations, limit, budget, every_turn=True
        )


def create(
    base: str,
    *,
    seed: int = 0,
    lora: int | None = None,
    layers: int | None = None,
    trained: bool = False,
    tokenizer: str | None = None,
    rows: int | None = None,
    say: Say = lambda _: None,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    sharded: bool = False,
    quantized: bool = False,
) -> RewardModel:
    """A reward model to be trained: a backbone with a scalar head.

    Modules that no text passes through are neither trained nor adapted.

    Args:
        base: a backbone, which gets a new head, or a reward model, whose head is kept.
        seed: what a new head and new adapters are drawn from.
        lora: rank of low-rank adapters on all linear layers; the head is then trained and saved
            whole. None trains all weights.
        layers: how many of the base's layers are kept, counted from the first; None keeps all.
        trained: whether `base` must be a reward model.
        tokenizer: a folder or hub id with another tokenizer than the base's.
        rows: how many tokens the embedding is resized to; None leaves it as it is.
        say: told in a line what people should know.
        dtype: of the weights. fp32 by default: a bf16 weight would lose a step of 2e-6. A new head
            and adapters are in fp32 whatever it is.
        device: where the model will be trained.
        sharded: whether its weights will be sharded over several devices. Until then they stay in
            their files, mapped into memory; those to be trained are not in `dtype` yet.
        quantized: whether the base is in 4 bits, below adapters.

    Raises:
        InputError: `base` cannot be used.
    """
    mapped = sharded and not lora  # adapters take their first values in the precision of the base
    placement = Placement("auto" if mapped else dtype, device, sharded, quantized)
    model = _open(base, say, placement, None if trained else seed, tokenizer, rows, layers)
    core = model.network.core
    if not model.trained_head:
        draw_head(core, seed)
    core.config.problem_type = "regression"  # pipelines and servers then apply no sigmoid
    core.config.label2id, core.config.id2label = {"reward": 0}, {0: "reward"}
    for name in model.network.unused_modules:
        core.get_submodule(name).requires_grad_(False)  # DDP would wait for its gradients
    if lora:
        add_lora(model.network, lora, seed)
    model.notes = {"base": base, "seed": seed, "lora": lora}
    if layers:
        model.notes["layers"] = layers
    return model


def load(path: str, say: Say = lambda _: None) -> RewardModel:
    """A trained reward model, ready to score on the best device of this machine.

    Args:
        path: a folder, or the hub id of any sequence classifier with one label.
        say: told in a line what people should know.

    Raises:
        InputError: the model is missing, or has no trained reward head, more than one label, or
            no chat template.
    """
    placement = Placement()
    avoid_fragmentation()
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        placement = Placement(computed_precision(device), device)
    model = _open(path, say, placement, None)
    model.network.eval()
    model.network.core.score.float()  # a small head; in bf16 many rewards would be equal
    model.identity = _identity(path_or_hub_id(path), model.network)
    return model


def save(model: RewardModel, folder: Path) -> None:
    """Write a checkpoint: safetensors, tokenizer, chat template, model card and notes.

    LoRA is merged into the weights, and the adapter kept in a folder beside them. The config
    names the attention that transformers itself should use.
    """
    core, network = model.network.core, model.network
    if hasattr(network.model, "peft_config"):
        with quiet_libraries():  # peft says that it saves an embedding that was resized
            network.model.save_pretrained(folder / ADAPTER)
        quantized = is_quantized(core)
        core = (
            merge_into_dequantized(network.model) if quantized else network.model.merge_and_unload()
        )
    with quiet_libraries():
        core.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    _name_architecture_for_servers(folder / "config.json")
    for file in folder.rglob("*.safetensors"):
        shutil.copymode(folder / "config.json", file)  # safetensors lets nobody else read it
    last = model.chat_template.last_token()
    packages = ("musiccli", "torch", "transformers", "peft", "accelerate")
    notes = model.notes | {
        "reward_token": {"id": last, "text": model.tokenizer.decode([last])},
        "attention": "eager" if has_logit_softcap(core.config) else "sdpa",
        "versions": {name: version(name) for name in packages},
    }
    (folder / CARD).write_text(render_card(notes), "utf-8")
    (folder / NOTES).write_bytes(orjson.dumps(notes, option=orjson.OPT_INDENT_2))


def _name_architecture_for_servers(config_file: Path) -> None:
    """Name the architecture so that vLLM finds it; transformers reads `model_type` instead.

    vLLM looks for ...ForCausalLM behind ...ForSequenceClassification, and knows no
    Gemma3TextForCausalLM. It would take Gemma3TextModel, whose weights have other names.
    """
    config = orjson.loads(config_file.read_bytes())
    names = [SERVED_ARCHITECTURES.get(name, name) for name in config["architectures"]]
    if names != config["architectures"]:
        text = json.dumps(config | {"architectures": names}, indent=2, sort_keys=True)
        config_file.write_text(text + "\n", "utf-8")  # as transformers writes it


def read_notes(folder: Path) -> dict[str, Any]:
    """The notes of a checkpoint; empty where there are none.

    Raises:
        InputError: they are damaged.
    """
    try:
        notes = orjson.loads((folder / NOTES).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, orjson.JSONDecodeError) as error:
        raise InputError(f"{folder / NOTES}: is damaged: {error}") from error
    if not isinstance(notes, dict):
        raise InputError(f"{folder / NOTES}: is damaged: expected an object")
    return notes


def add_lora(network: RewardNetwork, rank: int, seed: int) -> None:
    from peft import LoraConfig, get_peft_model

    unused = network.unused_modules
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        task_type="SEQ_CLS",  # saves the head whole; otherwise peft would adapt, and lose, it
        exclude_modules=rf"({'|'.join(unused)})\..*" if unused else None,
    )
    torch.manual_seed(seed)
    with quiet_libraries():
        network.model = get_peft_model(network.model, config)
    for weight in network.model.parameters():
        if weight.requires_grad:  # the adapters and the head; the base stays as it was loaded
            weight.data = weight.data.float()
    use_onednn_linear(network.model)


def _open(
    name: str,
    say: Say,
    placement: Placement,
    seed: int | None,
    tokenizer: str | None = None,
    rows: int | None = None,
    layers: int | None = None,
) -> RewardModel:
    """Load a model. One without a trained head is refused where `seed` is None."""
    refuse_other_folder(name)
    path = path_or_hub_id(name, say)
    retain_freed_memory()
    limit_threads()
    torch.manual_seed(seed or 0)  # new rows of an embedding are drawn
    with explain_out_of_memory("the weights alone take more than there is"):
        core, tokens, trained_head = load_backbone(
            name, path, placement, tokenizer or path, layers, say
        )
    if seed is None and not trained_head:
        raise InputError(
            f"{name}: has no trained reward head; `music train` makes a reward model of it"
        )
    # A tokenizer of another's, or one of a trained model, must fit the embedding as it is.
    resize = seed is not None and not tokenizer
    try:
        with model_errors(path):  # its first conversation, and its first forward pass
            return _assemble(name, path, core, tokens, trained_head, say, rows, resize, placement)
    except InputError as error:
        text = str(error)
        reason = "" if text.startswith((name, path)) else f"{name}: cannot be used: "
        raise InputError(f"{reason}{text}") from error


def _assemble(
    name: str,
    path: str,
    core: Any,
    tokens: Any,
    trained_head: bool,
    say: Say,
    rows: int | None,
    resize: bool,
    placement: Placement,
) -> RewardModel:
    """Make a reward model of a network and a tokenizer that fit, or are made to fit.

    Args:
        name: the model, as people call it.
        path: its folder or hub id.
        core: the sequence-classification model.
        tokens: the tokenizer.
        trained_head: whether the head was loaded.
        say: told in a line what people should know.
        rows: of the embedding, which is resized to them; None leaves it.
        resize: whether the embedding may grow for the template's tokens.
        placement: where the network will compute.
    """
    if rows is not None and rows != embedding_rows(core):
        resize_embedding(core, rows)
    template, notes = ChatTemplate(tokens, embedding_rows(core)), read_notes(Path(path))
    resized = embed_template(name, template, core, resize=resize)
    if resized:
        say(resized)
    use_onednn_linear(core)
    keep_precision(core)
    last = template.last_token()
    _refuse_changed_template(name, tokens, notes, last)
    replaced_padding = choose_padding_token(tokens, core, last, embedding_rows(core))
    if replaced_padding and not has_embedding(tokens, replaced_padding, core):
        say(
            f"{name} has no embedding of its padding token {replaced_padding}; "
            f"{tokens.pad_token} pads in its place"
        )
    network = choose_layout(core, placement.device, say)
    return RewardModel(network, tokens, template, notes, replaced_padding, trained_head)


def _refuse_changed_template(name: str, tokenizer: Any, notes: dict[str, Any], last: int) -> None:
    """Raise InputError where the reward would be read at another token than in training."""
    trained_at = notes.get("reward_token")
    if trained_at and trained_at["id"] != last:
        raise InputError(
            f"{name}: was trained to be read at {trained_at['text']!r}, but its chat template "
            f"ends with {tokenizer.decode([last])!r} now; put its own chat_template.jinja back"
        )


def _identity(path: str, network: RewardNetwork) -> str:
    """What names a model's scores: its files or commit, and how they are computed.

    The key of stored scores holds it, so its form must not change.
    """
    weight = next(network.parameters())
    source: tuple[Any, ...] = (
        list_model_files(Path(path)) or getattr(network.core.config, "_commit_hash", None),
        str(weight.dtype),
        weight.device.type,
        network.packed,
        version("torch"),
        version("transformers"),
    )
    if network.flex:
        source += ("flex",)
    if plain_torch():
        source += ("plain",)
    return f"{path} {blake2b(repr(source).encode(), digest_size=4).hexdigest()}"
