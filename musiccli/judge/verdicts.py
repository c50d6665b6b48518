"""LLMs decide which of two conversations is better: every pair in both orders, by one judge or a panel."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

from musiccli import prompts
from musiccli.core import votes
from musiccli.core.errors import CallError, InputError
from musiccli.core.jsonl import Rejects
from musiccli.core.records import Message, Record, content_id, same_text, side_names
from musiccli.llm.call import Call
from musiccli.llm.client import Client, LimitReached
from musiccli.llm.concurrency import gather_all, map_ordered
from musiccli.prompts import transcript

ORDERS = ("ab", "ba")  # "ab": the record's first side is shown as A


@dataclass(frozen=True)
class JudgeConfig:
    """Who judges, by which prompt. Temperature 0: the same question gets the same verdict."""

    judges: tuple[str, ...]
    prompts: str = "paper"
    max_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0


def judge(
    pairs: Iterable[Record],
    settings: JudgeConfig,
    client: Client,
    *,
    rejects: Rejects | None = None,
    counts: Counter | None = None,
    limits: list[str] | None = None,
) -> Iterator[dict]:
    """The same records with `winner`, `verdict` and `votes`, in input order.

    `verdict` is a side's name, "tie", "inconsistent" or "unreadable"; `winner` is the side, "tie" for the two where
    none won, or None where no judge could be read. A winner that was there before is kept as `given_winner`. Two
    conversations of the same text are a tie, and nobody is asked.
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
            return record, await gather_all(
                *(_vote(record, prompt, *one, settings, client) for one in asked)
            )
        except (CallError, LimitReached) as error:
            return record, error

    unfinished = 0
    for record, result in map_ordered(pairs, work, window=max(64, 2 * client.config.concurrency)):
        if isinstance(result, LimitReached):
            unfinished += 1
        elif isinstance(result, Exception):
            rejects.add(CallError(f"{record.where or record['id']}: {result}"), record)
        else:
            verdict = (
                votes.panel_verdict(votes.outcomes_by_judge(result).values())
                if result
                else votes.TIE
            )
            _count(counts, verdict, result)
            yield {
                **record,
                **_given(record),
                "winner": votes.winner_of(verdict),
                "verdict": verdict,
                "votes": result,
            }
    if unfinished and limits is not None:
        limits.append(
            f"stopped by --max-cost with {unfinished} pairs unjudged; the same line with a higher limit goes "
            "on from here, and pays for no finished call again"
        )


def _given(record: Record) -> dict:
    """The winner that a record came with, a person's mostly: judge's own takes its place, but must not make it lost."""
    return (
        {votes.GIVEN_WINNER: record["winner"]}
        if "winner" in record and "votes" not in record
        else {}
    )


def _count(counts: Counter, verdict: str, found: list[dict]) -> None:
    """For the last line: what kept records from having a winner, and why verdicts could not be read."""
    said = {
        votes.TIE: "tied",
        votes.INCONSISTENT: "inconsistent (the orders disagree)",
        votes.UNREADABLE: "unreadable",
    }
    if verdict in said:
        counts[said[verdict]] += 1
    counts["replies cut by --max-tokens"] += sum("truncated" in vote for vote in found)
    if len({vote["judge"] for vote in found}) > 1:
        for name, one in votes.outcomes_by_judge(found).items():
            counts[f"inconsistent by {name}"] += one == votes.INCONSISTENT
            counts[f"unreadable by {name}"] += one == votes.UNREADABLE


async def _vote(
    record: Record,
    prompt: prompts.Prompt,
    model: str,
    order: str,
    settings: JudgeConfig,
    client: Client,
) -> dict:
    left, right = side_names(record) if order == "ab" else reversed(side_names(record))
    text = show(prompt, record[left], record[right], (settings.seed, record["id"]))
    question = (
        {"text": text, "mode": "completion"}
        if prompt.as_ == "completion"
        else {"messages": ({"role": "user", "content": text},), "schema": votes.VERDICT_SCHEMA}
    )
    call_key = (record["id"], record.get("best_of"), record.get("sample"), order, "judge", 0)
    reply = await client.complete(
        Call(
            model=model,
            call_key=call_key,
            max_tokens=settings.max_tokens,
            stop=prompt.stop,
            temperature=settings.temperature,
            seed=settings.seed,
            **question,
        )
    )
    cut = reply.finish == "length"
    letter = votes.read_verdict(reply.text, cut)
    return {
        "judge": model,
        "order": order,
        "winner": {"A": left, "B": right, "C": votes.TIE}.get(letter),
        "explanation": reply.text,
    } | ({"truncated": True} if cut else {})


def show(prompt: prompts.Prompt, first: list[Message], second: list[Message], salt: tuple) -> str:
    """What a judge reads: the prompt with both conversations, plain and behind a mark that nothing in them can know.

    The mark follows from both texts, so a text that holds its own mark cannot be written; should one hold it by
    chance, another mark is drawn.
    """
    plain = transcript(first), transcript(second)
    tries = (content_id(*salt, *plain, attempt).upper() for attempt in count())
    fence = next(mark for mark in tries if not any(mark in text.upper() for text in plain))
    return prompt.fill(
        a=plain[0],
        b=plain[1],
        marked_a=transcript(first, fence),
        marked_b=transcript(second, fence),
        fence=fence,
    )
