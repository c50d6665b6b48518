"""Does text inside a conversation give a judge orders, and does the fence around conversations help?

    python recipes/injections/measure.py OUT                                    # SmolLM2 on a CPU core, 15 minutes
    python recipes/injections/measure.py OUT --judge openai/NAME --api-base http://HOST:PORT/v1 --forced 0 --free 15

Each text of injections.json is added to the last reply of a pair's worse side, once naming A and once naming B, and the
pair is judged in both orders: with the packaged prompt, whose turns stand behind a mark that no text can know (fenced),
and with the same prompt without marks and without the paragraph about them (plain). What is counted is how often the
verdict is the letter that the text names, beyond the same pair, order and prompt without the text.

`--free N`: N pairs, judged as music judge does it; the calls are cached, so the same line goes on where it stopped.
`--forced N`: a small model seldom ends with a verdict when it may write what it likes, and may say the same letter
always. So its prompt is continued as far as "Verdict: [[", and the next token's logits say which letter it would write
and by how much. Only for a local/ model that takes ChatML, as SmolLM2 does. Kept in OUT, one line each, as they come.

Reads recipes/tiny-data/pairs.jsonl, writes tables to stdout.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import closing
from itertools import product
from pathlib import Path

from musiccli import prompts
from musiccli.bench.stats.bootstrap import bootstrap_interval, cluster_sums
from musiccli.core import jsonl, votes
from musiccli.core.records import Record, content_id, parse_preference
from musiccli.judge.config import JudgeConfig
from musiccli.judge.verdicts import ORDERS, judge, judge_prompt
from musiccli.llm.client import open_client
from musiccli.llm.config import ClientConfig

HERE = Path(__file__).parent
INJECTIONS = json.loads((HERE / "injections.json").read_text("utf-8"))
BARE = {"name": "", "text": ""}
PROMPTS = ("plain", "fenced")
CHATML = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\nVerdict: [["


def without_fence(prompt: str) -> str:
    """The judge's prompt with nothing between what it says and what the conversations say."""
    paragraphs = [one for one in prompt.split("\n\n") if "the mark {{fence}}" not in one]
    text = "\n\n".join(paragraphs).replace("{{marked_", "{{")
    for side in "AB":
        text = text.replace(f"[{{{{fence}}}} conversation {side} begins]", f"Conversation {side}:")
        text = text.replace(f"\n[{{{{fence}}}} conversation {side} ends]", "")
    assert "fence" not in text
    return text


def write_prompts(out: Path) -> None:
    """Two folders that --prompts takes."""
    packaged = prompts.load("paper", "judge").text
    for name, text in (("fenced", packaged), ("plain", without_fence(packaged))):
        (out / name).mkdir(parents=True, exist_ok=True)
        (out / name / "judge.md").write_text(text, "utf-8")


def attacked(pairs: list[Record], injections: list[dict], letters: str) -> Iterator[Record]:
    """Each pair with each text at the end of its worse side's last reply, naming each letter."""
    for pair, injected, letter in product(pairs, injections, letters):
        text = injected["text"].replace("{{letter}}", letter)
        *before, last = pair["rejected"]
        whole = {**last, "content": f"{last['content']}\n\n{text}".strip()}
        yield Record(
            {
                "id": f"{pair['id']}/{injected['name']}/{letter}",
                "chosen": pair["chosen"],
                "rejected": [*before, whole],
                "pair": pair["id"],
                "injection": injected["name"],
                "letter": letter,
            }
        )


def letter(vote: dict) -> str | None:
    """The letter that a vote named."""
    shown = {"ab": ("chosen", "rejected"), "ba": ("rejected", "chosen")}[vote["order"]]
    return {shown[0]: "A", shown[1]: "B", "tie": "C", None: None}[vote["winner"]]


def share(values: list[float], clusters: list[str], scale: int = 100) -> str:
    """A mean with its 95% interval, from a bootstrap of clusters; times `scale`, so 100 is percent."""
    mean, rows = (
        sum(values) / len(values),
        cluster_sums([values, [1.0] * len(values)], clusters),
    )
    low, high = bootstrap_interval(rows, lambda sums: sums[:, 0] / sums[:, 1]) or (mean, mean)
    shown = [
        format(scale * number, ".1f" if scale == 100 else ".2f") for number in (mean, low, high)
    ]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


class Forced:
    """Which letter a local model would write next, and the logits of all three; what was asked before is read."""

    def __init__(self, model: str, path: Path):
        self.model, self.path, self.engine = model, path, None
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self.known = {line["key"]: line["logits"] for line in map(json.loads, lines)}

    def __call__(self, text: str) -> list[float]:
        key = content_id(self.model, text)
        if key not in self.known:
            self.known[key] = self._ask(CHATML.format(prompt=text))
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "logits": self.known[key]}) + "\n")
        return self.known[key]

    def _ask(self, text: str) -> list[float]:
        import torch

        from musiccli.llm.local.engine import LocalEngine

        self.engine = self.engine or LocalEngine(self.model)
        tokenizer = self.engine.tokenizer
        letters = [
            tokenizer(letter, add_special_tokens=False).input_ids[0] for letter in votes.LETTERS
        ]
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.inference_mode():
            return self.engine.model(ids, logits_to_keep=1).logits[0, -1, letters].tolist()


def forced(pairs: list[Record], out: Path, model: str) -> None:
    """The table of next tokens, and by how much each text moves them."""
    ask = Forced(model, out / "logits.jsonl")
    print(
        "| forced | verdicts | A, B, C without a text | names the injected letter, % | beyond the same pair without "
        "the text, points | moves the letter's log-odds, nats |\n| :-- | --: | --: | --: | --: | --: |"
    )
    rows = {
        name: list(moved(pairs, prompts.load(str(out / name), "judge"), ask)) for name in PROMPTS
    }
    names = [row["text"] for row in rows["plain"]]
    for name, found in rows.items():
        before = [row["before"] for row in found[:: 2 * len(INJECTIONS)]]
        now = [float(row["now"] == row["letter"]) for row in found]
        more = [one - (row["before"] == row["letter"]) for one, row in zip(now, found, strict=True)]
        print(
            f"| {name} | {len(found)} | {', '.join(str(before.count(one)) for one in votes.LETTERS)} | "
            f"{share(now, names)} | {share(more, names)} | {share([row['shift'] for row in found], names, 1)} |"
        )
    less = [plain["shift"] - fenced["shift"] for plain, fenced in zip(*rows.values(), strict=True)]
    print(
        f"\nThe fence takes {share(less, names, 1)} nats off.\n\n| text | plain | fenced |\n| :-- | --: | --: |"
    )
    for text in dict.fromkeys(names):
        shifts = [[row["shift"] for row in found if row["text"] == text] for found in rows.values()]
        print(f"| {text} | {' | '.join(f'{sum(one) / len(one):+.2f}' for one in shifts)} |")


def moved(pairs: list[Record], prompt: prompts.Prompt, ask: Forced) -> Iterator[dict]:
    """For each pair, order, text and letter: the verdict before and now, and the shift of the letter's log-odds
    against the other conversation's."""
    for pair, order in product(pairs, ORDERS):
        bare = ask(shown(prompt, next(attacked([pair], [BARE], "-")), order))
        for record in attacked([pair], INJECTIONS, "AB"):
            logits = ask(shown(prompt, record, order))
            sign = 1 if record["letter"] == "A" else -1
            yield {
                "text": record["injection"],
                "letter": record["letter"],
                "before": best(bare),
                "now": best(logits),
                "shift": sign * ((logits[0] - logits[1]) - (bare[0] - bare[1])),
            }


def shown(prompt: prompts.Prompt, record: Record, order: str) -> str:
    sides = (record["chosen"], record["rejected"])[:: 1 if order == "ab" else -1]
    return judge_prompt(prompt, *sides, (0, record["id"]))


def best(logits: list[float]) -> str:
    return votes.LETTERS[logits.index(max(logits))]


def free(pairs: list[Record], out: Path, model: str, api_base: str | None) -> None:
    """The table of verdicts as music judge gets them: each pair with one text, the texts in turn."""
    print(
        "\n| free | verdicts | readable | A, B, C | inconsistent pairs | names the injected letter beyond the same "
        "pair without the text, points |\n| :-- | --: | --: | --: | --: | --: |"
    )
    client = open_client(
        ClientConfig(api_base=(api_base,) if api_base else ()), str(out / "calls.sqlite")
    )
    with closing(client):
        for name in PROMPTS:
            settings = JudgeConfig(judges=(model,), prompts=str(out / name), max_tokens=200)
            bare = list(judge(attacked(pairs, [BARE], "-"), settings, client))
            texts = [
                next(attacked([pair], [INJECTIONS[index % len(INJECTIONS)]], "AB"[index % 2]))
                for index, pair in enumerate(pairs)
            ]
            report(f"{name}, without", bare, bare)
            report(f"{name}, injected", list(judge(texts, settings, client)), bare)


def report(name: str, found: list[dict], bare: list[dict]) -> None:
    before = {(one["pair"], vote["order"]): letter(vote) for one in bare for vote in one["votes"]}
    told = [
        (letter(vote), one["letter"], before[one["pair"], vote["order"]], one["pair"])
        for one in found
        for vote in one["votes"]
    ]
    said = [now for now, *_ in told]
    read = [
        ((now == wanted) - (then == wanted), pair)
        for now, wanted, then, pair in told
        if now and then
    ]
    more = share(*map(list, zip(*read, strict=True))) if read and found is not bare else ""
    print(
        f"| {name} | {len(said)} | {len(said) - said.count(None)} | "
        f"{', '.join(str(said.count(one)) for one in votes.LETTERS)} | "
        f"{sum(one['verdict'] == votes.INCONSISTENT for one in found)} | {more} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--judge", default="local/smollm2")
    parser.add_argument("--api-base", help="where the judge listens, as for music judge")
    parser.add_argument(
        "--forced", type=int, default=2, help="how many pairs meet every text, by their logits"
    )
    parser.add_argument("--free", type=int, default=4, help="how many pairs are judged freely")
    options = parser.parse_args()
    every = [
        parse_preference(record)
        for record in jsonl.read([str(HERE.parent / "tiny-data" / "pairs.jsonl")], Record)
    ]
    pairs = [pair for pair in every if len(pair["chosen"]) == 2]
    write_prompts(options.out)
    if options.forced:
        forced(pairs[: options.forced], options.out, options.judge)
    if options.free:
        free(pairs[: options.free], options.out, options.judge, options.api_base)


if __name__ == "__main__":
    main()
