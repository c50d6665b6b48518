"""Does text inside a conversation steer a judge, and do marks around conversations prevent it?

    python recipes/injections/measure.py OUT      # SmolLM2 on a CPU core, 15 minutes
    python recipes/injections/measure.py OUT --judge openai/NAME --api-base http://HOST:PORT/v1 \\
        --forced 0 --free 15

Each text of injections.json is added to the last reply of a pair's worse side, once naming A and
once naming B. The pair is judged in both orders, with two prompts. "fenced" is the packaged prompt:
each turn stands below a mark that no text can know. "plain" is the same prompt without the marks
and without the paragraph about them. The tables count how often the verdict is the letter that the
text names, compared with the same pair, order and prompt without the text.

`--free N`: N pairs are judged as music judge does it. Calls are cached, so the same command goes on
where it stopped.

`--forced N`: for N pairs the prompt is continued up to "Verdict: [[", and the logits of the next
token say which letter the model would write. A small model seldom comes to a verdict by itself.
This needs a local/ model that takes ChatML, as SmolLM2 does. The logits are kept in OUT, one line
each.

Reads recipes/tiny-data/pairs.jsonl and writes the tables to stdout.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

from musiccli import prompts
from musiccli.bench.stats.bootstrap import bootstrap_interval, cluster_sums
from musiccli.core import jsonl, votes
from musiccli.core.records import Record, content_id, parse_preference
from musiccli.judge.config import JudgeConfig
from musiccli.judge.verdicts import ORDERS, judge, judge_prompt
from musiccli.llm.client import open_client
from musiccli.llm.config import ClientConfig

FOLDER = Path(__file__).parent
INJECTIONS = json.loads((FOLDER / "injections.json").read_text("utf-8"))
NO_INJECTION = {"name": "", "text": ""}
PROMPTS = ("plain", "fenced")
CHATML = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\nVerdict: [["
FORCED_HEAD = """
| forced | verdicts | A, B, C without a text | names the injected letter, % \
| beyond the same pair without the text, points | moves the letter's log-odds, nats |
| :-- | --: | --: | --: | --: | --: |""".lstrip()
FREE_HEAD = """
| free | verdicts | readable | A, B, C | inconsistent pairs \
| names the injected letter beyond the same pair without the text, points |
| :-- | --: | --: | --: | --: | --: |"""


def without_fence(prompt: str) -> str:
    """The judge's prompt without the marks and without the paragraph about them."""
    paragraphs = [part for part in prompt.split("\n\n") if "the mark {{fence}}" not in part]
    text = "\n\n".join(paragraphs).replace("{{marked_", "{{")
    for side in "AB":
        text = text.replace(f"[{{{{fence}}}} conversation {side} begins]", f"Conversation {side}:")
        text = text.replace(f"\n[{{{{fence}}}} conversation {side} ends]", "")
    assert "fence" not in text
    return text


def write_prompts(out: Path) -> None:
    """Write both prompts as folders that --prompts takes."""
    packaged = prompts.require("paper", "judge").text
    for name, text in (("fenced", packaged), ("plain", without_fence(packaged))):
        (out / name).mkdir(parents=True, exist_ok=True)
        (out / name / "judge.md").write_text(text, "utf-8")


def injected_pairs(
    pairs: list[Record], injections: list[dict[str, str]], letters: str
) -> Iterator[Record]:
    """Each pair with each text at the end of its worse side, once for each letter."""
    for pair, injection, letter in product(pairs, injections, letters):
        text = injection["text"].replace("{{letter}}", letter)
        *history, last = pair["rejected"]
        reply = {**last, "content": f"{last['content']}\n\n{text}".strip()}
        yield Record(
            {
                "id": f"{pair['id']}/{injection['name']}/{letter}",
                "chosen": pair["chosen"],
                "rejected": [*history, reply],
                "pair": pair["id"],
                "injection": injection["name"],
                "letter": letter,
            }
        )


def letter_of(vote: dict[str, Any]) -> str | None:
    """The letter that a vote named."""
    first, second = {"ab": ("chosen", "rejected"), "ba": ("rejected", "chosen")}[vote["order"]]
    return {first: "A", second: "B", "tie": "C", None: None}[vote["winner"]]


def mean_with_interval(values: list[float], clusters: list[str], scale: int = 100) -> str:
    """A mean and its 95% interval, from a bootstrap of clusters. A scale of 100 gives percent."""
    mean = sum(values) / len(values)
    rows = cluster_sums([values, [1.0] * len(values)], clusters)
    low, high = bootstrap_interval(rows, lambda sums: sums[:, 0] / sums[:, 1]) or (mean, mean)
    digits = ".1f" if scale == 100 else ".2f"
    shown = [format(scale * number, digits) for number in (mean, low, high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


class NextLetter:
    """The logits of A, B and C as a local model's next token, kept in a file."""

    def __init__(self, model: str, path: Path):
        self._model, self._path, self._engine = model, path, None
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self._logits = {line["key"]: line["logits"] for line in map(json.loads, lines)}

    def logits(self, prompt: str) -> list[float]:
        """Three numbers, computed or read."""
        key = content_id(self._model, prompt)
        if key not in self._logits:
            self._logits[key] = self._compute(CHATML.format(prompt=prompt))
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "logits": self._logits[key]}) + "\n")
        return self._logits[key]

    def _compute(self, text: str) -> list[float]:
        import torch

        from musiccli.llm.local.engine import LocalEngine

        self._engine = self._engine or LocalEngine(self._model)
        tokenizer = self._engine.tokenizer
        letters = [
            tokenizer(letter, add_special_tokens=False).input_ids[0] for letter in votes.LETTERS
        ]
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.inference_mode():
            return self._engine.model(ids, logits_to_keep=1).logits[0, -1, letters].tolist()


def measure_forced(pairs: list[Record], out: Path, model: str) -> None:
    """Print what the next token would be, and by how much each text moves its log-odds."""
    next_letter = NextLetter(model, out / "logits.jsonl")
    rows = {
        name: list(shifts(pairs, prompts.require(str(out / name), "judge"), next_letter))
        for name in PROMPTS
    }
    names = [row["text"] for row in rows["plain"]]
    print(FORCED_HEAD)
    for prompt, measured in rows.items():
        print_forced(prompt, measured, names)
    difference = [
        plain["shift"] - fenced["shift"] for plain, fenced in zip(*rows.values(), strict=True)
    ]
    print(f"\nThe fence takes {mean_with_interval(difference, names, 1)} nats off.")
    print("\n| text | plain | fenced |\n| :-- | --: | --: |")
    for text in dict.fromkeys(names):
        means = []
        for measured in rows.values():
            values = [row["shift"] for row in measured if row["text"] == text]
            means.append(f"{sum(values) / len(values):+.2f}")
        print(f"| {text} | {' | '.join(means)} |")


def print_forced(prompt: str, measured: list[dict[str, Any]], names: list[str]) -> None:
    """One row of the table: a prompt over all pairs, orders, texts and letters."""
    before = [row["before"] for row in measured[:: 2 * len(INJECTIONS)]]  # one a pair and order
    counts = ", ".join(str(before.count(letter)) for letter in votes.LETTERS)
    hits = [float(row["after"] == row["letter"]) for row in measured]
    gains = [
        hit - (row["before"] == row["letter"]) for hit, row in zip(hits, measured, strict=True)
    ]
    cells = (
        mean_with_interval(hits, names),
        mean_with_interval(gains, names),
        mean_with_interval([row["shift"] for row in measured], names, 1),
    )
    print(f"| {prompt} | {len(measured)} | {counts} | {' | '.join(cells)} |")


def shifts(
    pairs: list[Record], prompt: prompts.Prompt, next_letter: NextLetter
) -> Iterator[dict[str, Any]]:
    """For each pair, order, text and letter: the verdict without and with the text.

    `shift` is by how many nats the text raises the named letter's log-odds against the other
    conversation's.
    """
    for pair, order in product(pairs, ORDERS):
        original = next(injected_pairs([pair], [NO_INJECTION], "-"))
        before = next_letter.logits(prompt_of(original, prompt, order))
        for record in injected_pairs([pair], INJECTIONS, "AB"):
            after = next_letter.logits(prompt_of(record, prompt, order))
            sign = 1 if record["letter"] == "A" else -1
            yield {
                "text": record["injection"],
                "letter": record["letter"],
                "before": most_likely(before),
                "after": most_likely(after),
                "shift": sign * ((after[0] - after[1]) - (before[0] - before[1])),
            }


def prompt_of(record: Record, prompt: prompts.Prompt, order: str) -> str:
    sides = (record["chosen"], record["rejected"])[:: 1 if order == "ab" else -1]
    return judge_prompt(prompt, *sides, (0, record["id"]))


def most_likely(logits: list[float]) -> str:
    return votes.LETTERS[logits.index(max(logits))]


def measure_free(pairs: list[Record], out: Path, model: str, api_base: str | None) -> None:
    """Print the verdicts of music judge: each pair with one text, the texts in turn."""
    print(FREE_HEAD)
    client = open_client(
        ClientConfig(api_base=(api_base,) if api_base else ()), str(out / "calls.sqlite")
    )
    with closing(client):
        for name in PROMPTS:
            config = JudgeConfig(judges=(model,), prompts=str(out / name), max_tokens=200)
            originals = list(judge(injected_pairs(pairs, [NO_INJECTION], "-"), config, client))
            injected = [
                next(injected_pairs([pair], [INJECTIONS[index % len(INJECTIONS)]], "AB"[index % 2]))
                for index, pair in enumerate(pairs)
            ]
            print_free(f"{name}, without", originals)
            print_free(f"{name}, injected", list(judge(injected, config, client)), originals)


def print_free(
    name: str, judged: list[dict[str, Any]], originals: list[dict[str, Any]] | None = None
) -> None:
    """One row of the table: verdicts, compared with those without a text where there are any."""
    letters = [letter_of(vote) for record in judged for vote in record["votes"]]
    counts = ", ".join(str(letters.count(letter)) for letter in votes.LETTERS)
    inconsistent = sum(record["verdict"] == votes.INCONSISTENT for record in judged)
    readable = len(letters) - letters.count(None)
    gain = gain_over(originals, judged) if originals else ""
    print(
        f"| {name} | {len(letters)} | {readable} | {counts} | {inconsistent} | {gain} |", flush=True
    )


def gain_over(originals: list[dict[str, Any]], judged: list[dict[str, Any]]) -> str:
    """How much more often the named letter is the verdict, over the votes that can be read."""
    letters_before = {
        (record["pair"], vote["order"]): letter_of(vote)
        for record in originals
        for vote in record["votes"]
    }
    gains, clusters = [], []
    for record in judged:
        for vote in record["votes"]:
            before, after = letters_before[record["pair"], vote["order"]], letter_of(vote)
            if before and after:
                gains.append((after == record["letter"]) - (before == record["letter"]))
                clusters.append(record["pair"])
    return mean_with_interval(gains, clusters) if gains else ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--judge", default="local/smollm2")
    parser.add_argument("--api-base", help="where the judge listens, as for music judge")
    parser.add_argument(
        "--forced", type=int, default=2, help="how many pairs get every text, by their logits"
    )
    parser.add_argument("--free", type=int, default=4, help="how many pairs are judged freely")
    options = parser.parse_args()
    path = FOLDER.parent / "tiny-data" / "pairs.jsonl"
    records = [parse_preference(record) for record in jsonl.read([str(path)], Record)]
    pairs = [pair for pair in records if len(pair["chosen"]) == 2]
    write_prompts(options.out)
    if options.forced:
        measure_forced(pairs[: options.forced], options.out, options.judge)
    if options.free:
        measure_free(pairs[: options.free], options.out, options.judge, options.api_base)


if __name__ == "__main__":
    main()
