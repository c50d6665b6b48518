"""LLMs decide which of two conversations is better: every judge sees every pair in both orders."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from itertools import count
from typing import Any

from musiccli import prompts
from musiccli.core import json_text, votes
from musiccli.core.errors import CallError
from musiccli.core.jsonl import MAX_LINE
from musiccli.core.messages import Message, same_text
from musiccli.core.records import Record, content_id, side_names
from musiccli.core.run_stats import RunStats
from musiccli.judge.config import JudgeConfig
from musiccli.llm.budget import LimitReached
from musiccli.llm.call import Call, Reply
from musiccli.llm.client import Client
from musiccli.llm.concurrency import gather_all, map_ordered
from musiccli.prompts import transcript

OTHER_FIELDS = 1 << 10  # bytes for the fields beside the votes
ORDERS = ("ab", "ba")  # "ab" shows the record's first side as conversation A, "ba" its second


def judge(
    pairs: Iterable[Record], config: JudgeConfig, client: Client, stats: RunStats | None = None
) -> Generator[dict[str, Any], None, None]:
    """Add `winner`, `verdict` and `votes` to each record, in input order.

    `verdict` is a side's name, "tie", "inconsistent" or "unreadable". `winner` is the side, "tie"
    where neither side won, or None where no judge could be read. An earlier winner is kept as
    `given_winner`. Two conversations of the same text are a tie without any call.

    Args:
        pairs: preferences or comparisons.
        stats: counts the outcomes. A pair with a failed call goes to its rejects. When the cost
            limit is reached, its limits say so.

    Raises:
        InputError: the prompts or a model cannot be used.
    """
    stats = stats or RunStats()
    prompt = prompts.require(config.prompts, "judge")

    async def work(record: Record) -> tuple[Record, list[dict[str, Any]] | Exception]:
        try:
            pair_votes = await votes_on(record, config, client, prompt)
            _check_size(record, pair_votes)
            return record, pair_votes
        except (CallError, LimitReached) as error:
            return record, error

    unjudged = 0
    window = max(64, 2 * client.config.concurrency)
    for record, result in map_ordered(pairs, work, window, stats.say):
        if isinstance(result, LimitReached):
            unjudged += 1
        elif isinstance(result, Exception):
            stats.rejects.add(CallError(f"{record.where or record['id']}: {result}"), record)
        else:
            verdict = (
                votes.panel_verdict(list(votes.outcomes_by_judge(result).values()))
                if result
                else votes.TIE
            )
            _count(stats, verdict, result)
            yield {
                **record,
                **_given_winner(record),
                "winner": votes.winner_of(verdict),
                "verdict": verdict,
                "votes": result,
            }
    if unjudged:
        stats.limits.append(
            f"stopped by `max_cost` with {unjudged} pairs unjudged; the same run with a higher "
            "limit goes on from here and pays for no finished call again"
        )


async def votes_on(
    record: Record, config: JudgeConfig, client: Client, prompt: prompts.Prompt
) -> list[dict[str, Any]]:
    """All votes on a pair; none where its sides are the same text."""
    first, second = side_names(record)
    if same_text(record[first], record[second]):
        return []
    return await gather_all(
        *(
            _vote(client, config, prompt, record, model, order)
            for model in config.judges
            for order in ORDERS
        )
    )


def judge_prompt(
    prompt: prompts.Prompt,
    first: list[Message],
    second: list[Message],
    salt: tuple[object, ...],
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The text that a judge reads: the prompt, with the two conversations filled in.

    Each turn stands below a mark that holds the fence. The fence is a hash of both conversations,
    so nobody can write it into a text beforehand. A fence that a text contains is not used.

    Args:
        salt: values that the hash also depends on.
        tools: the functions on offer in both conversations.
    """
    plain = transcript(first, tools=tools), transcript(second, tools=tools)
    candidates = (content_id(*salt, *plain, attempt).upper() for attempt in count())
    fence = next(mark for mark in candidates if not any(mark in text.upper() for text in plain))
    return prompt.fill(
        a=plain[0],
        b=plain[1],
        marked_a=transcript(first, fence, tools),
        marked_b=transcript(second, fence, tools),
        fence=fence,
    )


async def _vote(
    client: Client,
    config: JudgeConfig,
    prompt: prompts.Prompt,
    record: Record,
    model: str,
    order: str,
) -> dict[str, Any]:
    """One judge's vote on a pair that it sees in one order."""
    first, second = side_names(record) if order == "ab" else side_names(record)[::-1]
    salt = (config.seed, record["id"])
    tools = record.get("tools") or ()
    text = judge_prompt(prompt, record[first], record[second], salt, tools)
    schema = votes.verdict_schema(prompt.fields)
    question: dict[str, Any] = (
        {"text": text, "mode": "completion"}
        if prompt.mode == "completion"
        else {"messages": ({"role": "user", "content": text},), "schema": schema}
    )
    reply = await client.complete(
        Call(
            model=model,
            call_key=(record["id"], record.get("best_of"), record.get("sample"), order, "judge", 0),
            max_tokens=config.max_tokens,
            stop=prompt.stop,
            temperature=config.temperature,
            seed=config.seed,
            **question,
        )
    )
    letter = _letter(reply)
    fields = votes.read_fields(reply.text, prompt.fields) if letter else {}
    return (
        {
            "judge": model,
            "order": order,
            "winner": {"A": first, "B": second, "C": votes.TIE}.get(letter or ""),
            "explanation": votes.read_explanation(reply.text),
        }
        | fields
        | _ending(reply)
    )


def _letter(reply: Reply) -> str | None:
    """The letter that a reply decides for. A reply that was interrupted is not believed."""
    return None if reply.interruption else votes.read_verdict(reply.text, reply.finish == "length")


def _ending(reply: Reply) -> dict[str, Any]:
    """What a vote says of a reply that did not come to its end."""
    if reply.interruption:
        return {"interrupted": reply.interruption}
    return {"truncated": True} if reply.finish == "length" else {}


def _check_size(record: Record, pair_votes: list[dict[str, Any]]) -> None:
    """Raises CallError where the explanations make the record larger than any that is read."""
    if len(json_text.encode(record)) + len(json_text.encode(pair_votes)) > MAX_LINE - OTHER_FIELDS:
        raise CallError(
            "the judges' explanations would make the record larger than the "
            f"{MAX_LINE >> 20} MB that can be read again"
        )


def _given_winner(record: Record) -> dict[str, Any]:
    """The record's winner from before it was judged, often a person's vote, as `given_winner`."""
    return (
        {votes.GIVEN_WINNER: record["winner"]}
        if "winner" in record and "votes" not in record
        else {}
    )


def _count(stats: RunStats, verdict: str, pair_votes: list[dict[str, Any]]) -> None:
    """Count a verdict that has no winner and, for a panel, the judges that gave no clear one."""
    reasons = {
        votes.TIE: ("tied", ""),
        votes.INCONSISTENT: ("inconsistent", "the_orders_disagree"),
        votes.UNREADABLE: ("unreadable", ""),
    }
    if verdict in reasons:
        stats.count(*reasons[verdict])
    stats.count("truncated_replies", number=sum("truncated" in vote for vote in pair_votes))
    for vote in pair_votes:
        if "interrupted" in vote:
            stats.count("interrupted_replies", vote["interrupted"])
    outcomes = votes.outcomes_by_judge(pair_votes)
    if len(outcomes) > 1:
        for model, outcome in outcomes.items():
            if outcome in (votes.INCONSISTENT, votes.UNREADABLE):
                stats.count(f"{outcome}_votes", model)
