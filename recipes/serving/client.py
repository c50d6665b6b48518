"""Send one conversation through every protocol of `music serve`: python client.py ADDRESS"""

import json
import sys
from typing import Any
from urllib.request import Request, urlopen

QUESTION = {"role": "user", "content": "What is 2 + 2?"}
ANSWER = {"role": "assistant", "content": "4."}
MESSAGES = [QUESTION, ANSWER]


def post(address: str, path: str, **body: Any) -> Any:
    """The reply to a request."""
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(address + path, json.dumps(body).encode(), headers)) as reply:
        return json.load(reply)


def scores(address: str) -> dict[str, float]:
    """The score of MESSAGES by each protocol that takes messages or plain texts."""
    classify = post(address, "/classify", messages=MESSAGES, per_turn=True)
    pooling = post(address, "/pooling", messages=MESSAGES)
    pair = {"text_1": QUESTION["content"], "text_2": ANSWER["content"]}
    return {
        "vLLM /classify": classify["data"][0]["probs"][0],
        "its last turn": classify["data"][0]["turn_scores"][-1],
        "vLLM /pooling": pooling["data"][0]["data"][0],
        "vLLM /v1/score": post(address, "/v1/score", **pair)["data"][0]["score"],
    }


if __name__ == "__main__":
    for protocol, score in scores(sys.argv[1].rstrip("/")).items():
        print(f"{score:10.6f}  {protocol}")
