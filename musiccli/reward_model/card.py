"""The model card, README.md of a checkpoint: what it is, how it was made, and how it is loaded."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from musiccli.core.text_safety import markdown, markdown_block, markdown_code
from musiccli.reward_model.eval_names import eval_prefix, evaluated_sets

METRIC_LABELS = {
    "accuracy": "accuracy",
    "loss": "Bradley-Terry loss",
    "margin": "mean margin",
    "ece": "expected calibration error, 10 bins",
    "mean_reward": "mean reward",
}
GROUPED_METRIC_LABELS = {
    "by_turns": "accuracy, {} assistant turns",
    "by_divergence": "accuracy, sides part: {}",
}
LOADING = """\
The checkpoint is an `AutoModelForSequenceClassification` with one label. Its score is the reward, a
number without bounds. The tokenizer's chat template writes all special tokens of a conversation, so
the tokenizer must add none.

```python
from transformers import pipeline

reward = pipeline("text-classification", model="{name}", function_to_apply="none")
messages = [
    {{"role": "user", "content": "What is 2 + 2?"}},
    {{"role": "assistant", "content": "4."}},
]
text = reward.tokenizer.apply_chat_template(messages, tokenize=False)
reward(text, add_special_tokens=False)[0]["score"]
```

With musiccli, for one conversation or for many:

```python
from musiccli import RewardModel

model = RewardModel.load("{name}")
model.score([messages])[0]
```

On the command line: `music score records.jsonl --model {name}`. In TRL it is a reward function by
its name: `GRPOTrainer(reward_funcs="{name}", ...)`. A server must return the score as it is and add
no second BOS (vLLM: `"add_special_tokens": false` in the request; SGLang: send `input_ids`):

```
vllm serve {name} --dtype float32
python -m sglang.launch_server --model-path {name} --is-embedding
```
"""


def render_card(notes: dict[str, Any], name: str = "PATH-OR-REPO") -> str:
    """The card as Markdown, with the hub's metadata before it.

    Args:
        notes: a checkpoint's notes; what they do not hold is left out.
        name: the folder or hub id that the examples load.
    """
    parts = [
        _metadata(notes),
        _introduction(notes),
        *_data(notes),
        *_metrics(notes),
        "## Loading\n\n" + LOADING.format(name=name),
        *_provenance(notes),
    ]
    return "\n".join(parts)


def _metadata(notes: dict[str, Any]) -> str:
    lines = ["library_name: transformers", "pipeline_tag: text-classification"]
    base = notes.get("base") or ""
    if _is_hub_id(base):
        lines += [f"base_model: {base}"]
    lines += ["tags:", "- reward-model", "- preference", "- bradley-terry", "- musiccli"]
    return "\n".join(["---", *lines, "---"])


def _is_hub_id(base: str) -> bool:
    looks_so = re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None
    return looks_so and not base.startswith("local/") and not Path(base).exists()


def _introduction(notes: dict[str, Any]) -> str:
    base, lora = notes.get("base", "an unnamed backbone"), notes.get("lora")
    if notes.get("layers"):
        base = f"the first {notes['layers']} layers of {base}"
    how = f"with LoRA of rank {lora}, merged" if lora else "in full"
    if notes.get("settings", {}).get("qlora"):
        how = f"with LoRA of rank {lora} on a base in 4 bits, merged"
    per_turn = notes.get("settings", {}).get("per_turn")
    turns = " at every assistant turn from where they part" if per_turn else ""
    token = notes.get("reward_token")
    position = ""
    if token:
        position = (
            " The reward is read at the last token that the chat template writes, "
            f"{markdown_code(repr(token['text']))}."
        )
    return (
        f"# A reward model on {markdown(base)}\n\n"
        "It gives a whole conversation one number: the higher, the better the assistant did in "
        "it. It was trained by musiccli on pairs of conversations with the Bradley-Terry "
        f"loss{turns}, {how}.{position} Its license is that of its backbone, and of its data.\n"
    )


def _data(notes: dict[str, Any]) -> Iterator[str]:
    for title, key in (("Training data", "files"), ("Held-out data", "held_out_files")):
        if notes.get(key):
            rows = [
                (
                    markdown(": ".join(filter(None, (file.get("set"), file["name"])))),
                    f"{file['pairs']:,}",
                    markdown_code(file["sha256"]) if file["sha256"] else "a pipe",
                )
                for file in notes[key]
            ]
            yield f"## {title}\n\n" + _table(("file", "pairs read", "sha256"), rows)
    if split := notes.get("eval_split"):
        yield f"- {split['pairs']:,} of the pairs, in {split['groups']:,} groups, were held out\n"
    if counts := notes.get("counts"):
        yield "".join(f"- {count:,} {markdown(outcome)}\n" for outcome, count in counts.items())


def _metrics(notes: dict[str, Any]) -> Iterator[str]:
    metrics = notes.get("metrics", {})
    for name in evaluated_sets(metrics):
        yield from _set_metrics(metrics, name)


def _set_metrics(metrics: dict[str, Any], set_name: str) -> Iterator[str]:
    """What was measured on one set of held-out pairs."""
    prefix = eval_prefix(set_name)
    rows = [
        (label, f"{metrics[prefix + name]:.4g}")
        for name, label in METRIC_LABELS.items()
        if prefix + name in metrics
    ]
    for name, label in GROUPED_METRIC_LABELS.items():
        rows += [
            (label.format(markdown(group)), f"{measured['accuracy']:.4g} of {measured['pairs']}")
            for group, measured in metrics.get(prefix + name, {}).items()
        ]
    if rows:
        title = f"## On {metrics[f'{prefix}pairs']:,} held-out pairs"
        title += f" of {markdown(set_name)}" if set_name else ""
        yield f"{title}\n\n" + _table(("measure", "value"), rows)


def _provenance(notes: dict[str, Any]) -> Iterator[str]:
    if notes.get("command"):
        yield f"## How it was made\n\n{markdown_block(notes['command'])}"
    if notes.get("settings"):
        settings = notes["settings"].items()
        rows = [(name, markdown(str(value))) for name, value in settings if value is not None]
        yield _table(("setting", "value"), rows)
    if notes.get("versions"):
        yield _table(("package", "version"), notes["versions"].items())


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return _row(head) + "|" + " --- |" * len(head) + "\n" + "".join(map(_row, rows))


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |\n"
