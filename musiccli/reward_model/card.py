"""The model card, README.md of a checkpoint: what it is, what it was made of, what was measured, how it is loaded."""

import re
from collections.abc import Iterator
from pathlib import Path

MEASURES = {
    "eval_accuracy": "accuracy",
    "eval_loss": "Bradley-Terry loss",
    "eval_margin": "mean margin",
    "eval_ece": "expected calibration error, 10 bins",
    "eval_mean_reward": "mean reward",
}
LOADING = """\
The checkpoint is an `AutoModelForSequenceClassification` with one label, and its score is the reward, a number without
bounds. Conversations are written by the tokenizer's chat template, which writes all special tokens itself: add none.

```python
from transformers import pipeline

reward = pipeline("text-classification", model="{name}", function_to_apply="none")
messages = [{{"role": "user", "content": "What is 2 + 2?"}}, {{"role": "assistant", "content": "4."}}]
text = reward.tokenizer.apply_chat_template(messages, tokenize=False)
reward(text, add_special_tokens=False)[0]["score"]
```

With TRL it is a reward function by name: `GRPOTrainer(reward_funcs="{name}", ...)`. For many records:
`music score records.jsonl --model {name}`. Servers must be told to leave the score as it is, and
to add no second BOS (vLLM: `"add_special_tokens": false` in the request; SGLang: send `input_ids`):

```
vllm serve {name} --runner pooling --convert classify --pooler-config '{{"use_activation": false}}'
python -m sglang.launch_server --model-path {name} --is-embedding
```
"""


def card(notes: dict, name: str = "PATH-OR-REPO") -> str:
    """Markdown with the hub's metadata before it, from a checkpoint's notes; what these do not hold is left out."""
    parts = [
        _metadata(notes),
        _title(notes),
        *_data(notes),
        *_measured(notes),
        "## Loading\n\n" + LOADING.format(name=name),
        *_made(notes),
    ]
    return "\n".join(parts)


def _metadata(notes: dict) -> str:
    lines = ["library_name: transformers", "pipeline_tag: text-classification"]
    base = notes.get("base") or ""
    if (
        re.fullmatch(r"[\w.-]+/[\w.-]+", base)
        and not base.startswith("local/")
        and not Path(base).exists()
    ):
        lines += [f"base_model: {base}"]
    lines += ["tags:", "- reward-model", "- preference", "- bradley-terry", "- musiccli"]
    return "\n".join(["---", *lines, "---"])


def _title(notes: dict) -> str:
    read = notes.get("reward_token", {})
    where = (
        f" The reward is read at the last token that the chat template writes, {read['text']!r}."
        if read
        else ""
    )
    lora = notes.get("lora")
    how = f"with LoRA of rank {lora}, merged" if lora else "in full"
    at = (
        " at every assistant turn from where they part"
        if notes.get("settings", {}).get("per_turn")
        else ""
    )
    return (
        f"# A reward model on {notes.get('base', 'an unnamed backbone')}\n\nIt gives a whole conversation one "
        "number: the higher, the better the assistant did in it. It was trained by musiccli on pairs of "
        f"conversations with the Bradley-Terry loss{at}, {how}.{where} Its licence is that of its backbone, and of "
        "its data.\n"
    )


def _data(notes: dict) -> Iterator[str]:
    for title, key in (("Training data", "files"), ("Held-out data", "held_out_files")):
        if notes.get(key):
            rows = [
                (
                    file["name"],
                    f"{file['pairs']:,}",
                    f"`{file['sha256']}`" if file["sha256"] else "a pipe",
                )
                for file in notes[key]
            ]
            yield f"## {title}\n\n" + _table(("file", "pairs read", "sha256"), rows)
    if counts := notes.get("counts"):
        yield "".join(f"- {count:,} {what}\n" for what, count in counts.items())


def _measured(notes: dict) -> Iterator[str]:
    metrics = notes.get("metrics", {})
    rows = [(label, f"{metrics[name]:.4g}") for name, label in MEASURES.items() if name in metrics]
    for name, label in (
        ("eval_by_turns", "accuracy, {} assistant turns"),
        ("eval_by_divergence", "accuracy, sides part: {}"),
    ):
        rows += [
            (label.format(kind), f"{one['accuracy']:.4g} of {one['pairs']}")
            for kind, one in metrics.get(name, {}).items()
        ]
    if rows:
        yield f"## On {metrics['eval_pairs']:,} held-out pairs\n\n" + _table(
            ("measure", "value"), rows
        )


def _made(notes: dict) -> Iterator[str]:
    if notes.get("command"):
        yield f"## How it was made\n\n```\n{notes['command']}\n```\n"
    if notes.get("settings"):
        yield _table(
            ("setting", "value"),
            [(name, str(value)) for name, value in notes["settings"].items() if value is not None],
        )
    if notes.get("versions"):
        yield _table(("package", "version"), list(notes["versions"].items()))


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def line(cells):
        return (
            "| "
            + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in cells)
            + " |\n"
        )

    return line(head) + "|" + " --- |" * len(head) + "\n" + "".join(map(line, rows))
