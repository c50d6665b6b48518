"""How far a server's scores are from `music score`'s: python compare.py ADDRESS RM pairs.jsonl

It asks vLLM's POST /classify for both sides of each pair, in three forms.
"""

import sys
from typing import Any

from client import post

from musiccli import RewardModel, read_records


def main(address: str, folder: str, file: str) -> None:
    """Print the largest difference of each form, and how many preferences it turns round."""
    model = RewardModel.load(folder)
    pairs = list(read_records(file))
    sides = [side for pair in pairs for side in (pair["chosen"], pair["rejected"])]
    scores = model.score([{"messages": side} for side in sides])
    texts = [model.tokenizer.apply_chat_template(side, tokenize=False) for side in sides]
    ids = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    forms: dict[str, list[dict[str, Any]]] = {
        "messages": [{"messages": side} for side in sides],
        "text": [{"input": text, "add_special_tokens": False} for text in texts],
        "text, special tokens added": [{"input": text} for text in texts],
        "token ids": [{"input": tokens} for tokens in ids],
    }
    for form, bodies in forms.items():
        served = [post(address, "/classify", **body)["data"][0]["probs"][0] for body in bodies]
        largest = max(abs(a - b) for a, b in zip(scores, served, strict=True))
        turned = sum(
            (scores[n] > scores[n + 1]) != (served[n] > served[n + 1])
            for n in range(0, len(sides), 2)
        )
        print(f"{form}: largest difference {largest:.2g}, {turned} of {len(pairs)} turned round")


if __name__ == "__main__":
    main(*sys.argv[1:])
