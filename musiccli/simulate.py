"""LLMs play user and assistant: once plainly (chosen), once with an assistant that answers altered instructions
(rejected).

The algorithm of MUSIC (arXiv 2512.24693). From a seed context, each branch grows by `turns` exchanges; the user of each
branch sees that branch only. While nothing has been contrasted yet the branches are one conversation and are sampled
once, so that what differs later is the contrast's doing.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from random import Random

from musiccli import prompts
from musiccli.errors import CallError, InputError
from musiccli.jsonl import Rejects
from musiccli.llm.call import Call, Reply
from musiccli.llm.client import Client, LimitReached
from musiccli.llm.inflight import all_of, in_order
from musiccli.prompts import Prompt, transcript
from musiccli.records import Message, Record

WARMER = 0.2  # added to the temperature each time a faulty message is asked for again, or it would come out the same
WARMEST = 1.0  # some providers refuse more
POLICIES = "all | none | first | last | random:K | prob:P"


@dataclass(frozen=True)
class Settings:
    """How to simulate. `turns` counts assistant replies added to the seed; token limits are per message."""

    assistant: str
    user: str
    contraster: str | None = None  # who writes the contrast; none: the assistant itself
    turns: int = 5
    contrast: str = "all"
    samples: int = 1
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
            self.faults.append({"message": len(self.messages), "fault": f"{role} {fault}"})
        if reply.finish == "length":
            self.truncated.append(len(self.messages))
        self.messages.append({"role": role, "content": reply.text})

    def pay(self, reply: Reply) -> None:
        self.usage.update(prompt_tokens=reply.prompt_tokens, completion_tokens=reply.completion_tokens)
        self.cost = None if self.cost is None or reply.cost is None else self.cost + reply.cost


def contrasted(policy: str, turns: int, rng: Random) -> set[int]:
    """Which of the simulated turns (0-based) get an altered instruction in the rejected branch.

    Raises InputError for a policy that is none of POLICIES.
    """
    name, _, number = policy.partition(":")
    try:
        match name:
            case "all" | "none" | "first" | "last" if not number:
                return {"all": set(range(turns)), "none": set(), "first": {0}, "last": {turns - 1}}[name]
            case "random" if 1 <= int(number) <= turns:
                return set(rng.sample(range(turns), int(number)))
            case "prob" if 0 < float(number) <= 1:
                drawn = {turn for turn in range(turns) if rng.random() < float(number)}
                return drawn or {rng.randrange(turns)}  # a pair without any contrast would teach nothing
    except ValueError:
        pass
    raise InputError(f"--contrast {policy}: expected {POLICIES}, with K from 1 to --turns and P above 0 and up to 1")


class Simulator:
    """Plays conversations. Every fault that had to be asked again is counted under its name."""

    def __init__(self, settings: Settings, client: Client, counts: Counter):
        self.settings, self.client, self.counts = settings, client, counts
        self.user_prompt = prompts.load(settings.prompts, "user")
        self.contrast_prompt = prompts.load(settings.prompts, "contrast" if settings.one_call else "rewrite")
        if self.contrast_prompt is None:
            raise InputError(f"--prompts {settings.prompts} has no contrast.md, the contrast in one call; "
                             "use --contrast-calls 2")
        contrasted(settings.contrast, settings.turns, Random(0))

    async def conversation(self, seed: Record, sample: int) -> list[dict]:
        """The chosen branch and, unless nothing is contrasted, the rejected one. Raises CallError, LimitReached."""
        rng = Random(f"{self.settings.seed} {seed['id']} {sample}")
        turns = contrasted(self.settings.contrast, self.settings.turns, rng)
        whom = (seed["id"], sample)
        chosen = Branch(list(seed["messages"]))
        fork = min(turns, default=self.settings.turns)
        for turn in range(fork):
            await self._exchange(chosen, turn, ("shared", *whom))
        if fork == self.settings.turns:
            return [self._record(seed, sample, "chosen", chosen)]
        await self._user(chosen, fork, ("shared", *whom))
        rejected = chosen.copy()

        async def rest(branch: Branch, name: str, altered: set[int]) -> None:
            for turn in range(fork, self.settings.turns):
                await self._exchange(branch, turn, (name, *whom), altered=turn in altered)

        await all_of(rest(chosen, "chosen", set()), rest(rejected, "rejected", turns))
        return [self._record(seed, sample, "chosen", chosen), self._record(seed, sample, "rejected", rejected)]

    async def _exchange(self, branch: Branch, turn: int, whom: tuple, altered: bool = False) -> None:
        await self._user(branch, turn, whom)
        if altered:
            await self._contrast(branch, turn, whom)
        else:
            await self._assistant(branch, turn, whom)

    async def _user(self, branch: Branch, turn: int, whom: tuple) -> None:
        if branch.messages[-1]["role"] == "user":  # the seed already ends with the user's message
            return
        history, prompt = list(branch.messages), self.user_prompt
        question = self._question(prompt, history, transcript=transcript(history))
        reply, fault = await self._ask(branch, "user", turn, whom, self.settings.user, question,
                                       lambda reply: user_fault(reply.text, history))
        branch.add("user", reply, fault)

    async def _assistant(self, branch: Branch, turn: int, whom: tuple) -> None:
        history = list(branch.messages)
        reply, fault = await self._ask(branch, "assistant", turn, whom, self.settings.assistant,
                                       {"messages": tuple(history)},
                                       lambda reply: reply_fault(reply.text, history))
        branch.add("assistant", reply, fault)

    async def _contrast(self, branch: Branch, turn: int, whom: tuple) -> None:
        """The assistant answers another instruction than the user's; the conversation keeps the user's message."""
        history, model = list(branch.messages), self.settings.contraster or self.settings.assistant
        asked = history[-1]["content"]
        question = self._question(self.contrast_prompt, history, transcript=transcript(history[:-1]), instruction=asked)
        if self.settings.one_call:
            both, fault = await self._ask(branch, "contrast", turn, whom, model, question,
                                          lambda reply: contrast_fault(*split_contrast(reply.text), asked, history))
            instruction, text = split_contrast(both.text)
            reply = Reply(text or both.text, both.finish, 0, 0, 0.0)
        else:
            rewritten, fault = await self._ask(branch, "rewrite", turn, whom, model, question,
                                               lambda reply: rewrite_fault(reply.text, asked))
            instruction = rewritten.text
            altered = (*history[:-1], {"role": "user", "content": instruction})
            reply, second = await self._ask(branch, "contrast", turn, whom, model, {"messages": altered},
                                            lambda reply: (leak(reply.text, instruction)
                                                           or reply_fault(reply.text, history)))
            fault = fault or second
        branch.contrast.append({"message": len(branch.messages), "instruction": instruction or ""})
        branch.add("assistant", reply, fault and f"contrast {fault}")

    def _question(self, prompt: Prompt, history: list[Message], **values: str) -> dict:
        if prompt.as_ == "turn":
            return {"messages": tuple(history), "as_": "turn", "stop": prompt.stop}
        if prompt.as_ == "completion":
            return {"text": prompt.fill(**values), "as_": "completion", "stop": prompt.stop}
        return {"messages": ({"role": "user", "content": prompt.fill(**values)},), "stop": prompt.stop}

    async def _ask(self, branch: Branch, role: str, turn: int, whom: tuple, model: str, question: dict,
                   fault_of: Callable[[Reply], str | None]) -> tuple[Reply, str | None]:
        """A reply without a fault, or after every retry the last one and its fault."""
        name, identifier, sample = whom
        tokens = self.settings.user_tokens if role in ("user", "rewrite") else self.settings.assistant_tokens
        for attempt in range(self.settings.retries + 1):
            reply = await self.client.ask(Call(
                model=model, whom=(identifier, name, sample, turn, role, attempt), max_tokens=tokens,
                temperature=self._temperature(attempt), top_p=self.settings.top_p, seed=self.settings.seed, **question))
            branch.pay(reply)
            if reply.finish == "length":
                reply = Reply(whole_sentences(reply.text), "length", 0, 0, None)
            fault = "empty" if not reply.text.strip() else fault_of(reply)
            if fault is None:
                return reply, None
            self.counts[f"retried ({role} {fault})"] += attempt < self.settings.retries
        if fault == "empty":
            raise CallError(f"{model} wrote nothing as {role} in turn {turn + 1}, {self.settings.retries + 1} times")
        return reply, fault

    def _temperature(self, attempt: int) -> float:
        asked = self.settings.temperature
        return min(round(asked + WARMER * attempt, 2), max(asked, WARMEST)) if attempt else asked

    def _record(self, seed: Record, sample: int, name: str, branch: Branch) -> dict:
        optional = {"faults": branch.faults, "truncated": branch.truncated}
        return {**seed, "messages": branch.messages, "branch": name, "sample": sample,
                "seed_messages": len(seed["messages"]), "contrast": branch.contrast,
                "simulator": {"assistant": self.settings.assistant, "user": self.settings.user,
                              "contrast": self.settings.contrast},
                "usage": dict(branch.usage), "cost": branch.cost} | {k: v for k, v in optional.items() if v}


def simulate(seeds: Iterable[Record], settings: Settings, client: Client, *, rejects: Rejects | None = None,
             counts: Counter | None = None, limits: list[str] | None = None) -> Iterator[dict]:
    """The branches of every seed, in input order; the two branches of one sample stand together.

    A conversation whose calls fail goes to `rejects`; when the money runs out, what is finished is yielded and the
    reason is added to `limits`.
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

    unfinished = 0
    for seed, result in in_order(wanted(), work, window=max(64, 2 * client.concurrency)):
        if isinstance(result, LimitReached):
            unfinished += 1
        elif isinstance(result, Exception):
            rejects.add(CallError(f"{seed.where or seed['id']}: {result}"), seed)
        else:
            yield from result
    if stopped and limits is not None:
        limits.append(f"stopped by --max-cost with {unfinished} conversations unfinished; the same line with a higher "
                      "limit goes on from here, and pays for no finished call again")


def estimate(seeds: Iterable[Record], settings: Settings) -> dict[tuple[str, str], Counter]:
    """Calls and tokens (characters / 4, replies at two thirds of their limit) that these seeds would take, by role
    and model: {(role, model): Counter(calls, prompt_tokens, completion_tokens)}. Retries are not in it."""
    planned: dict[tuple[str, str], Counter] = {}
    user, reply = settings.user_tokens * 2 // 3, settings.assistant_tokens * 2 // 3
    contraster = settings.contraster or settings.assistant

    def plan(role: str, model: str, prompt: int, completion: int) -> None:
        planned.setdefault((role, model), Counter()).update(calls=1, prompt_tokens=prompt, completion_tokens=completion)

    for seed in seeds:
        for sample in range(settings.samples):
            altered = contrasted(settings.contrast, settings.turns, Random(f"{settings.seed} {seed['id']} {sample}"))
            fork = min(altered, default=settings.turns)
            for branch in ("chosen", "rejected")[:1 + bool(altered)]:
                tokens = sum(len(message["content"]) for message in seed["messages"]) // 4
                for turn in range(settings.turns):
                    shared = branch == "rejected" and turn < fork
                    asks = turn > 0 or seed["messages"][-1]["role"] == "assistant"
                    if asks and not shared and not (branch == "rejected" and turn == fork):
                        plan("user", settings.user, tokens + 200, user)
                    tokens += user * asks
                    if branch == "rejected" and turn in altered:
                        if not settings.one_call:
                            plan("rewrite", contraster, tokens + 200, user)
                        plan("contrast", contraster, tokens + 200 * settings.one_call,
                             reply + user * settings.one_call)
                    elif not shared:
                        plan("assistant", settings.assistant, tokens, reply)
                    tokens += reply
    return planned


# What goes wrong in simulated text. Each function names the fault, or returns None.

_SPEAKS_AS_ASSISTANT = re.compile(
    r"^(assistant:|as an ai\b|as a language model|i('d| would) be happy to (help|assist)|"
    r"(sure|certainly|of course)[,!.] (here|i can|let me)|how (can|may) i (help|assist) you|"
    r"i'm (sorry, but|here to help)|here('s| is| are) (a|an|some|the)\b)", re.IGNORECASE)
_HEADER = re.compile(r"^(user|human|assistant|system)\s*:", re.IGNORECASE | re.MULTILINE)
_GOODBYE = re.compile(
    r"\b(thank(s| you)|good ?bye|bye|have a (great|nice|good) (day|one)|see you|you're welcome|take care)\b",
    re.IGNORECASE)
_LEAK = re.compile(
    r"\b(rewritten|modified|altered|different|contrastive|original) (instruction|question|request|prompt)s?\b|"
    r"<(instruction|reply)>|instead of (what you asked|your (question|request))", re.IGNORECASE)


def user_fault(text: str, history: list[Message]) -> str | None:
    """Whether a simulated user forgot its role, repeats, or ends the conversation."""
    if not re.search(r"\w", text):
        return "empty"
    if _SPEAKS_AS_ASSISTANT.match(text.lstrip()) or _HEADER.search(text):
        return "role flip"
    if _LEAK.search(text) or "{{" in text:
        return "prompt leak"
    if any(alike(text, message["content"]) for message in history if message["role"] != "system"):
        return "repeat"
    if _GOODBYE.search(text) and "?" not in text and len(text.split()) < 25:
        return "goodbye"
    return None


def reply_fault(text: str, history: list[Message]) -> str | None:
    """Whether an assistant's reply speaks for the user, too, or repeats an earlier message."""
    if re.search(r"^(user|human)\s*:", text, re.IGNORECASE | re.MULTILINE):
        return "role flip"
    if any(alike(text, message["content"]) for message in history if message["role"] != "system"):
        return "repeat"
    return None


def rewrite_fault(instruction: str, asked: str) -> str | None:
    """Whether a rewritten instruction is no instruction, or still the user's own."""
    if alike(instruction, asked):
        return "not rewritten"
    return "role flip" if _HEADER.search(instruction) else None


def contrast_fault(instruction: str | None, text: str | None, asked: str, history: list[Message]) -> str | None:
    """What is wrong with a contrast that was made in one call."""
    if not instruction or not text:
        return "unreadable"
    return rewrite_fault(instruction, asked) or leak(text, instruction) or reply_fault(text, history)


def leak(text: str, instruction: str) -> str | None:
    """Whether a contrasted reply gives away that it answers another instruction."""
    quoted = len(instruction.split()) >= 4 and _plain(instruction) in _plain(text)
    return "leak" if quoted or _LEAK.search(text) else None


def split_contrast(text: str) -> tuple[str | None, str | None]:
    """The rewritten instruction and the reply out of a contrast made in one call; None for a part that is missing."""
    instruction = re.search(r"<instruction>(.*?)</instruction>", text, re.DOTALL | re.IGNORECASE)
    reply = re.search(r"<reply>(.*?)(</reply>|\Z)", text, re.DOTALL | re.IGNORECASE)
    return instruction and instruction[1].strip(), reply and reply[1].strip()


def alike(one: str, other: str) -> bool:
    """Whether two messages say the same in nearly the same words. Other numbers are another question."""
    one, other = _plain(one)[:2000], _plain(other)[:2000]
    if one == other:
        return True
    if re.findall(r"\d+", one) != re.findall(r"\d+", other):
        return False
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return matcher.real_quick_ratio() > 0.9 and matcher.quick_ratio() > 0.9 and matcher.ratio() > 0.9


def whole_sentences(text: str) -> str:
    """A reply that the token limit cut, up to its last whole sentence; as it is where that would lose half of it."""
    end = max((found.end() for found in re.finditer(r"[.!?…][\"')\]]?(?=\s|$)|\n(?=\n)", text)), default=0)
    return text[:end].rstrip() if end * 2 >= len(text) else text


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
