"""LLMs play user and assistant: once plainly (chosen), once with an assistant that answers altered instructions
(rejected).

The algorithm of MUSIC (arXiv 2512.24693). From a seed context, each branch grows by `turns` exchanges; the user of each
branch sees that branch only. While nothing has been contrasted yet the branches are one conversation and are sampled
once, so that what differs later is the contrast's doing.

A user's message takes one call or, after ReviewInstruct (arXiv 2505.11010), two: a reviewer says what the assistant's
last reply lacks, and a chairman makes a message of that. (There several reviewers write, and the chairman chooses.)
"""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from random import Random

from musiccli import prompts
from musiccli.core import text_checks
from musiccli.core.errors import CallError, InputError
from musiccli.core.jsonl import Rejects
from musiccli.core.records import Message, Record
from musiccli.llm.call import Call, Reply
from musiccli.llm.client import Client, LimitReached
from musiccli.llm.concurrency import gather_all, map_ordered
from musiccli.prompts import Prompt, feedback, transcript
from musiccli.simulate import faults

RETRY_TEMPERATURE_STEP = 0.2  # added to the temperature each time a faulty message is asked for again, or it would come out the same
MAX_RETRY_TEMPERATURE = 1.0  # some providers refuse more
ESTIMATE_SAMPLE = 200  # conversations that an estimate rests on
SHORT_ROLES = (
    "user",
    "reviewer",
    "chairman",
    "rewrite",
)  # roles whose messages are of the user's length
SPEAKER = {"chairman": "user"}  # in whose name a role writes: its faults are that one's
INSTRUCTION = re.compile(r"<instruction>(.*?)</instruction>", re.DOTALL | re.IGNORECASE)
REPLY = re.compile(r"<reply>(.*?)(?:</reply>|\Z)", re.DOTALL | re.IGNORECASE)
# Where a sentence ends, and where a dot ends none: after the number of a list's line, and some abbreviations.
ENDS = re.compile(r"[.!?…。！？][\"')\]*_”’]*(?=\s|$)|[。！？]|(?<=\S)\n+")
NO_END = re.compile(
    r"(?:(?:^|\n)[\s>*_#]*(?:\d+|[A-Za-z])|\b(?:Dr|Mr|Mrs|Ms|Prof|St|vs|Fig|e\.g|i\.e|cf))\.$"
)
POLICIES = "all | none | first | last | random:K | prob:P"


@dataclass(frozen=True)
class SimulateConfig:
    """How to simulate. `turns` counts assistant replies added to the seed; token limits are per message."""

    assistant: str
    user: str
    contraster: str | None = None  # who writes the contrast; none: the assistant itself
    turns: int = 5
    contrast: str = "all"
    samples: int = 1
    review: bool = False  # a user's message in two calls, a reviewer's and a chairman's, both by the user's model
    one_call: bool = True  # rewrite and answer in one call, as the paper does; else two calls
    prompts: str = "paper"
    assistant_tokens: int = 512
    user_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 0.95
    retries: int = 3  # how often a reply with a fault is asked for again
    seed: int = 0


@dataclass
class Branch:
    """One conversation as it grows, and what its calls cost."""

    messages: list[Message]
    contrast: list[dict] = field(default_factory=list)
    faults: list[dict] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    usage: Counter = field(default_factory=Counter)
    cost: float | None = 0.0

    def copy(self) -> "Branch":
        """The same history for another branch; what was spent so far stays with this one."""
        return Branch(list(self.messages), faults=list(self.faults), truncated=list(self.truncated))

    def add(self, role: str, reply: Reply, fault: str | None) -> None:
        if fault:
            self.faults.append({"message": len(self.messages), "fault": fault})
        if reply.finish == "length":
            self.truncated.append(len(self.messages))
        self.messages.append({"role": role, "content": reply.text})

    def pay(self, reply: Reply) -> None:
        self.usage.update(
            prompt_tokens=reply.prompt_tokens, completion_tokens=reply.completion_tokens
        )
        self.cost = None if self.cost is None or reply.cost is None else self.cost + reply.cost


def contrasted(policy: str, turns: int, rng: Random) -> set[int]:
    """Which of the simulated turns (0-based) get an altered instruction in the rejected branch.

    Raises InputError for a policy that is none of POLICIES.
    """
    name, _, number = policy.partition(":")
    try:
        match name:
            case "all" | "none" | "first" | "last" if not number:
                return {"all": set(range(turns)), "none": set(), "first": {0}, "last": {turns - 1}}[
                    name
                ]
            case "random" if 1 <= int(number) <= turns:
                return set(rng.sample(range(turns), int(number)))
            case "prob" if 0 < float(number) <= 1:
                drawn = {turn for turn in range(turns) if rng.random() < float(number)}
                return drawn or {
                    rng.randrange(turns)
                }  # a pair without any contrast would teach nothing
    except ValueError:
        pass
    raise InputError(
        f"--contrast {policy}: expected {POLICIES}, with K from 1 to --turns and P above 0 and up to 1"
    )


class Simulator:
    """Plays conversations. Every fault that had to be asked again is counted under its name."""

    def __init__(self, settings: SimulateConfig, client: Client, counts: Counter):
        self.settings, self.client, self.counts = settings, client, counts
        self.review_prompt = prompts.load(settings.prompts, "review") if settings.review else None
        self.user_prompt = prompts.load(settings.prompts, "chair" if settings.review else "user")
        self.contrast_prompt = prompts.load(
            settings.prompts, "contrast" if settings.one_call else "rewrite"
        )
        if self.contrast_prompt is None:
            raise InputError(
                f"--prompts {settings.prompts} has no contrast.md, the contrast in one call; "
                "use --contrast-calls 2"
            )
        self.feedback = feedback.load(settings.prompts)
        contrasted(settings.contrast, settings.turns, Random(0))

    async def conversation(self, seed: Record, sample: int) -> list[dict]:
        """The chosen branch and, unless nothing is contrasted, the rejected one. Raises CallError, LimitReached."""
        rng = Random(f"{self.settings.seed} {seed['id']} {sample}")
        turns = contrasted(self.settings.contrast, self.settings.turns, rng)
        call_key = (seed["id"], sample)
        chosen = Branch(list(seed["messages"]))
        fork = min(turns, default=self.settings.turns)
        for turn in range(fork):
            await self._exchange(chosen, turn, ("chosen", *call_key))
        if fork == self.settings.turns:
            return [self._record(seed, sample, "chosen", chosen)]
        await self._user(chosen, fork, ("chosen", *call_key))
        rejected = chosen.copy()

        async def rest(branch: Branch, name: str, altered: set[int]) -> None:
            for turn in range(fork, self.settings.turns):
                await self._exchange(branch, turn, (name, *call_key), altered=turn in altered)

        await gather_all(rest(chosen, "chosen", set()), rest(rejected, "rejected", turns))
        return [
            self._record(seed, sample, "chosen", chosen),
            self._record(seed, sample, "rejected", rejected),
        ]

    async def _exchange(
        self, branch: Branch, turn: int, call_key: tuple, altered: bool = False
    ) -> None:
        await self._user(branch, turn, call_key)
        if altered:
            await self._contrast(branch, turn, call_key)
        else:
            await self._assistant(branch, turn, call_key)

    async def _user(self, branch: Branch, turn: int, call_key: tuple) -> None:
        if branch.messages[-1]["role"] == "user":  # the seed already ends with the user's message
            return
        history, given = list(branch.messages), {"transcript": transcript(branch.messages)}
        if self.review_prompt:
            given["review"] = await self._review(branch, turn, call_key)
        reply, fault = await self._ask(
            branch,
            "chairman" if self.review_prompt else "user",
            turn,
            call_key,
            self.settings.user,
            self._question(self.user_prompt, history, **given),
            lambda reply: faults.user_fault(reply.text, history, given.get("review", "")),
        )
        branch.add("user", reply, fault)

    async def _review(self, branch: Branch, turn: int, call_key: tuple) -> str:
        """What the last reply lacks. It stands nowhere in the conversation, so what stays faulty in it is no fault of
        the branch: what the chairman makes of it is checked."""
        question = self._question(
            self.review_prompt, branch.messages, transcript=transcript(branch.messages)
        )
        review, _ = await self._ask(
            branch,
            "reviewer",
            turn,
            call_key,
            self.settings.user,
            question,
            lambda reply: faults.review_fault(reply.text),
        )
        return review.text

    async def _assistant(self, branch: Branch, turn: int, call_key: tuple) -> None:
        history = list(branch.messages)
        reply, fault = await self._ask(
            branch,
            "assistant",
            turn,
            call_key,
            self.settings.assistant,
            {"messages": tuple(history)},
            lambda reply: faults.reply_fault(reply.text, history),
        )
        branch.add("assistant", reply, fault)

    async def _contrast(self, branch: Branch, turn: int, call_key: tuple) -> None:
        """The assistant answers another instruction than the user's; the conversation keeps the user's message."""
        history, model = list(branch.messages), self.settings.contraster or self.settings.assistant
        asked = history[-1]["content"]
        question = self._question(
            self.contrast_prompt, history, transcript=transcript(history[:-1]), instruction=asked
        )
        if self.settings.one_call:
            both, fault = await self._ask(
                branch,
                "contrast",
                turn,
                call_key,
                model,
                question,
                lambda reply: contrast_fault(reply.text, asked, history),
            )
            instruction, text = split_contrast(both.text)
            reply = Reply(text or both.text, both.finish, 0, 0, 0.0)
        else:
            rewritten, fault = await self._ask(
                branch,
                "rewrite",
                turn,
                call_key,
                model,
                question,
                lambda reply: faults.rewrite_fault(reply.text, asked),
            )
            instruction = rewritten.text
            altered = (*history[:-1], {"role": "user", "content": instruction})
            reply, second = await self._ask(
                branch,
                "contrast",
                turn,
                call_key,
                model,
                {"messages": altered},
                lambda reply: faults.contrast_reply_fault(reply.text, instruction, history),
            )
            fault = fault or second
        branch.contrast.append({"message": len(branch.messages), "instruction": instruction or ""})
        branch.add("assistant", reply, fault)

    def _question(self, prompt: Prompt, history: list[Message], **values: str) -> dict:
        if prompt.as_ == "turn":
            return {"messages": tuple(history), "mode": "turn", "stop": prompt.stop}
        if prompt.as_ == "completion":
            return {"text": prompt.fill(**values), "mode": "completion", "stop": prompt.stop}
        return {
            "messages": ({"role": "user", "content": prompt.fill(**values)},),
            "stop": prompt.stop,
        }

    async def _ask(
        self,
        branch: Branch,
        role: str,
        turn: int,
        call_key: tuple,
        model: str,
        question: dict,
        fault_of: Callable[[Reply], str | None],
    ) -> tuple[Reply, str | None]:
        """A reply without a fault, or after every retry the last one and "SPEAKER FAULT"."""
        name, identifier, sample = call_key
        asked, speaker = question, SPEAKER.get(role, role)
        for attempt in range(self.settings.retries + 1):
            reply = await self.client.complete(
                Call(
                    model=model,
                    call_key=(identifier, name, sample, turn, role, attempt),
                    max_tokens=self._room(role),
                    temperature=self._temperature(attempt),
                    top_p=self.settings.top_p,
                    seed=self.settings.seed,
                    **asked,
                )
            )
            branch.pay(reply)
            reply, whole = whole_sentences(self._fit(role, reply))
            fault = (
                "empty"
                if not reply.text.strip()
                else fault_of(reply) or (None if whole else "cut off")
            )
            if (
                fault == "unreadable" and reply.finish == "length"
            ):  # what is missing of its form is its end
                fault = "cut off"
            if fault is None:
                return reply, None
            self.counts[f"retried ({speaker} {fault})"] += attempt < self.settings.retries
            asked = self._again(question, reply.text, feedback.text(self.feedback, speaker, fault))
        if fault == "empty":
            raise CallError(
                f"{model} wrote nothing as {role} in turn {turn + 1}, {self.settings.retries + 1} times"
            )
        return reply, f"{speaker} {fault}"

    def _again(self, question: dict, bad: str, told: str | None) -> dict:
        """The question with the message that cannot be used, and what is wrong with it, behind it.

        A model that continues raw text is asked the same again: there is nobody to talk to.
        """
        if not told or question.get("mode", "chat") != "chat":
            return question
        behind = (
            {"role": "assistant", "content": bad.strip() or "(nothing)"},
            {"role": "user", "content": told},
        )
        return question | {"messages": (*question["messages"], *behind)}

    def _room(self, role: str) -> int:
        """The token limit of a message; a contrast in one call needs room for the instruction, too, or its reply would
        be the shorter one."""
        if role in SHORT_ROLES:
            return self.settings.user_tokens
        both = role == "contrast" and self.settings.one_call
        return self.settings.assistant_tokens + self.settings.user_tokens * both

    def _fit(self, role: str, reply: Reply) -> Reply:
        """What was said aloud; of a contrast in one call no more tokens of its reply than any other may have, or the
        rejected side would be the longer one wherever a model writes as much as it can."""
        said = replace(reply, text=spoken(reply.text))
        both = role == "contrast" and self.settings.one_call
        found = REPLY.search(said.text) if both and reply.completion_tokens else None
        room = (
            len(reply.text) * self.settings.assistant_tokens // max(1, reply.completion_tokens)
        )  # characters
        if not found or len(found[1]) <= room:
            return said
        return replace(said, text=said.text[: found.start(1) + room], finish="length")

    def _temperature(self, attempt: int) -> float:
        asked = self.settings.temperature
        return (
            min(
                round(asked + RETRY_TEMPERATURE_STEP * attempt, 2),
                max(asked, MAX_RETRY_TEMPERATURE),
            )
            if attempt
            else asked
        )

    def _record(self, seed: Record, sample: int, name: str, branch: Branch) -> dict:
        optional = {"faults": branch.faults, "truncated": branch.truncated}
        reviewed = {"user_turns": "review"} if self.settings.review else {}
        return {
            **seed,
            "messages": branch.messages,
            "branch": name,
            "sample": sample,
            "seed_messages": len(seed["messages"]),
            "contrast": branch.contrast,
            "simulator": {
                "assistant": self.settings.assistant,
                "user": self.settings.user,
                "contrast": self.settings.contrast,
                **reviewed,
            },
            "usage": dict(branch.usage),
            "cost": branch.cost,
        } | {k: v for k, v in optional.items() if v}


def simulate(
    seeds: Iterable[Record],
    settings: SimulateConfig,
    client: Client,
    *,
    rejects: Rejects | None = None,
    counts: Counter | None = None,
    limits: list[str] | None = None,
) -> Iterator[dict]:
    """The branches of every seed, in input order; the two branches of one sample stand together.

    A seed of which a conversation's calls fail goes to `rejects`, once; when the money runs out, what is finished is
    yielded and the reason is added to `limits`.
    """
    rejects, counts = rejects or Rejects(), Counter() if counts is None else counts
    simulator = Simulator(settings, client, counts)
    stopped = False

    def wanted() -> Iterator[tuple[Record, int]]:
        for seed in seeds:
            for sample in range(settings.samples):
                if stopped:
                    return
                yield seed, sample

    async def work(item: tuple[Record, int]) -> tuple[Record, list[dict] | Exception]:
        nonlocal stopped
        try:
            return item[0], await simulator.conversation(*item)
        except LimitReached as reached:
            stopped = True
            return item[0], reached
        except CallError as error:
            return item[0], error

    unfinished, failed = 0, None
    for seed, result in map_ordered(wanted(), work, window=max(64, 2 * client.config.concurrency)):
        if isinstance(result, LimitReached):
            unfinished += 1
        elif isinstance(result, Exception):
            if seed is not failed:  # by another of its samples, and has been told
                rejects.add(CallError(f"{seed.where or seed['id']}: {result}"), seed)
            failed = seed
        else:
            yield from result
    if stopped and limits is not None:
        limits.append(
            f"stopped by --max-cost with {unfinished} conversations unfinished; the same line with a higher "
            "limit goes on from here, and pays for no finished call again"
        )


class DryRunClient:
    """A client that asks nobody and counts what would be asked: `planned` is {(role, model): Counter(calls,
    prompt_tokens, completion_tokens)}. A token is reckoned as 4 characters, and a reply as two thirds of its limit."""

    def __init__(self, settings: SimulateConfig):
        self.planned: dict[tuple[str, str], Counter] = {}
        self._reply = "word" * (settings.assistant_tokens * 2 // 3)
        self._user = "word" * (settings.user_tokens * 2 // 3)
        self._both = f"<instruction>{self._user}</instruction><reply>{self._reply}</reply>"
        self._one_call = settings.one_call

    async def complete(self, call: Call) -> Reply:
        role = call.call_key[-2]
        text = (
            self._user
            if role in SHORT_ROLES
            else self._both
            if role == "contrast" and self._one_call
            else self._reply
        )
        asked = sum(len(message["content"]) for message in call.messages) + len(call.text)
        counts = Counter(calls=1, prompt_tokens=asked // 4, completion_tokens=len(text) // 4)
        self.planned.setdefault((role, call.model), Counter()).update(counts)
        return Reply(text, "stop", counts["prompt_tokens"], counts["completion_tokens"], 0.0)


def estimate(
    seeds: Iterable[Record], settings: SimulateConfig
) -> tuple[dict[tuple[str, str], Counter], int, int]:
    """What these seeds would take without retries: Rehearsal's counts, on how many conversations they rest, and how
    many there are.

    Up to REHEARSED conversations, drawn at random from all (Algorithm R: Vitter 1985, ACM TOMS 11:37), are simulated on
    a Rehearsal and their counts scaled up; where there are no more than these, the number of calls is exact.
    """
    client = DryRunClient(settings)
    simulator = Simulator(replace(settings, retries=0), client, Counter())
    rng, drawn, total = Random(settings.seed), [], 0
    for seed in seeds:
        for sample in range(settings.samples):
            total += 1
            if len(drawn) < ESTIMATE_SAMPLE:
                drawn.append((seed, sample))
            elif (place := rng.randrange(total)) < ESTIMATE_SAMPLE:
                drawn[place] = (seed, sample)

    async def rehearse() -> None:
        for seed, sample in drawn:
            await simulator.conversation(seed, sample)

    asyncio.run(rehearse())
    planned = {
        call_key: Counter(
            {name: round(count * total / len(drawn)) for name, count in counts.items()}
        )
        for call_key, counts in sorted(client.planned.items())
    }
    return planned, len(drawn), total


def contrast_fault(both: str, asked: str, history: list[Message]) -> str | None:
    """What is wrong with a contrast that was made in one call."""
    instruction, text = split_contrast(both)
    if not instruction or not text:
        return "refusal" if text_checks.refuses(both) else "unreadable"
    return faults.rewrite_fault(instruction, asked) or faults.contrast_reply_fault(
        text, instruction, history
    )


def split_contrast(text: str) -> tuple[str | None, str | None]:
    """The rewritten instruction and the reply out of a contrast made in one call; None for a part that is missing."""
    instruction, reply = INSTRUCTION.search(text), REPLY.search(text)
    return instruction and instruction[1].strip(), reply and reply[1].strip()


def spoken(text: str) -> str:
    """A reply without the thoughts that some models write before it, between <think> and </think>."""
    return re.sub(r"^\s*<think>.*?(</think>|\Z)", "", text, flags=re.DOTALL).strip()


def whole_sentences(reply: Reply) -> tuple[Reply, bool]:
    """A reply that the token limit cut, up to its last whole sentence or line, and whether it now ends in peace.

    It stays as it is, cut off, where that would lose more than half of it or leave a code block open.
    """
    if reply.finish != "length":
        return reply, True
    ends = [
        found.end()
        for found in ENDS.finditer(reply.text)
        if not NO_END.search(reply.text, 0, found.end())
    ]
    end = max(ends, default=0)
    text = reply.text[:end].rstrip()
    if end * 2 < len(reply.text) or text.count("```") % 2:
        return reply, False
    return replace(reply, text=text), True
