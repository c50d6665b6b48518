"""LLMs decide which of two conversations is better: every pair in both orders, by one judge or a panel."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from musiccli import prompts
from musiccli.errors import CallError, InputError
from musiccli.jsonl import Rejects
from musiccli.llm.call import Call
from musiccli.llm.client import Client, LimitReached
from musiccli.llm.inflight import all_of, in_order
from musiccli.prompts import transcript
from musiccli.records import Record, content_id, same_text, side_names

ORDERS = ("ab", "ba")  # "ab": the record's first side is shown as A


@dataclass(frozen=True)
class Settings:
    """Who judges, by which prompt. Temperature 0: the same question gets the same verdict."""

    judges: tuple[str, ...]
    prompts: str = "paper"
    max_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0


def judge(pairs: Iterable[Record], settings: Settings, client: Client, *, rejects: Rejects | None = None,
          counts: Counter | None = None, limits: list[str] | None = None) -> Iterator[dict]:
    """The same records with `winner` and `votes`, in input order.

    `winner` is a side's name, "tie", or None where no judge could be read. Two conversations of the same text are a
    tie, and nobody is asked.
    """
    rejects, counts = rejects or Rejects(), Counter() if counts is None else counts
    prompt = prompts.load(settings.prompts, "judge")
    if prompt is None:
        raise InputError(f"--prompts {settings.prompts} has no judge.md")

    async def work(record: Record) -> tuple[Record, list[dict] | Exception]:
        left, right = side_names(record)
        if same_text(record[left], record[right]):
            return record, []
        asked = [(name, order) for name in settings.judges for order in ORDERS]
        try:
            return record, await all_of(*(_vote(record, prompt, *one, settings, client) for one in asked))
        except (CallError, LimitReached) as error:
            return record, error

    unfinished = 0
    for record, result in in_order(pairs, work, window=max(64, 2 * client.concurrency)):
        if isinstance(result, LimitReached):
            unfinished += 1
        elif isinstance(result, Exception):
            rejects.add(CallError(f"{record.where or record['id']}: {result}"), record)
        else:
            outcomes = [outcome([vote for vote in result if vote["judge"] == name]) for name in settings.judges]
            winner = majority(outcomes) if result else "tie"
            counts["unreadable"] += winner is None
            counts["inconsistent (the orders disagree)"] += outcomes.count("inconsistent") if result else 0
            yield {**record, "winner": winner, "votes": result}
    if unfinished and limits is not None:
        limits.append(f"stopped by --max-cost with {unfinished} pairs unjudged; the same line with a higher limit goes "
                      "on from here, and pays for no finished call again")


async def _vote(record: Record, prompt: prompts.Prompt, model: str, order: str, settings: Settings,
                client: Client) -> dict:
    left, right = side_names(record) if order == "ab" else reversed(side_names(record))
    # Nothing inside a conversation can know this mark, so nothing inside can end the fence around it.
    fence = content_id(settings.seed, record["id"], transcript(record[left]), transcript(record[right])).upper()
    text = prompt.fill(a=transcript(record[left]), b=transcript(record[right]), fence=fence)
    question = {"text": text, "as_": "completion"} if prompt.as_ == "completion" else {
        "messages": ({"role": "user", "content": text},)}
    whom = (record["id"], record.get("best_of"), record.get("sample"), order, "judge", 0)
    reply = await client.ask(Call(model=model, whom=whom, max_tokens=settings.max_tokens, stop=prompt.stop,
                                  temperature=settings.temperature, seed=settings.seed, **question))
    verdict = read_verdict(reply.text)
    return {"judge": model, "order": order, "winner": {"A": left, "B": right, "C": "tie"}.get(verdict),
            "explanation": reply.text}


def read_verdict(text: str) -> str | None:
    """ "A", "B" or "C" (tie) as a judge wrote it: the last line's [[A]], or a reply that is one letter; else None."""
    lines = text.strip().splitlines()
    found = re.findall(r"\[\[([ABC])\]\]", lines[-1]) if lines else []
    if len(found) == 1:
        return found[0]
    alone = re.fullmatch(r"\W*([ABC])\W*", text)
    return alone[1] if alone and not found else None


def outcome(votes: list[dict]) -> str | None:
    """One judge's two votes as one: a side that won in both orders, "tie", "inconsistent", or None if unreadable.

    A side preferred in one order and tied in the other has not won in both: that is a tie, as in MT-Bench
    (arXiv 2306.05685).
    """
    winners = [vote["winner"] for vote in votes]
    if None in winners or not winners:
        return None
    if len(set(winners)) == 1:
        return winners[0]
    return "tie" if "tie" in winners else "inconsistent"


def majority(outcomes: list[str | None]) -> str | None:
    """The panel's verdict: what more judges say than anything else; "tie" where none leads; None if nobody was read.

    An inconsistent judge counts as one that sees no difference.
    """
    counted = Counter("tie" if one == "inconsistent" else one for one in outcomes if one is not None)
    if not counted:
        return None
    (first, most), *rest = counted.most_common()
    return "tie" if rest and rest[0][1] == most else first
