"""The algorithm of MUSIC (arXiv 2512.24693): two branches of a conversation from each seed.

LLMs play user and assistant. In the chosen branch the assistant answers the user's messages. In the
rejected branch it answers altered instructions at the contrasted turns.
"""

from collections.abc import Collection, Generator, Iterable, Iterator
from dataclasses import replace
from random import Random
from typing import Any

from musiccli.core.errors import CallError
from musiccli.core.messages import for_continuation
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.llm.budget import LimitReached
from musiccli.llm.client import Client
from musiccli.llm.concurrency import gather_all, map_ordered
from musiccli.simulate import faults
from musiccli.simulate.branch import Branch
from musiccli.simulate.config import SimulateConfig
from musiccli.simulate.contrast import OneCallContrast, PlainAnswer, TwoCallContrast
from musiccli.simulate.personas import Personas
from musiccli.simulate.policies import contrasted_turns
from musiccli.simulate.retries import Asker, Question
from musiccli.simulate.users import GuidedUser, ReviewUser


class Simulator:
    """Simulates conversations.

    Raises:
        InputError: the contrast policy, the prompt set, the follow-ups or the file of personas
            cannot be used.
    """

    def __init__(self, config: SimulateConfig, client: Client, stats: RunStats):
        contrasted_turns(config.contrast, config.turns, Random(0))
        self._config, self._stats = config, stats
        self._asker = Asker(config, client, stats)
        self._personas = Personas(config.persona, config.seed)
        user = ReviewUser if config.user_turns == "review" else GuidedUser
        contrast = OneCallContrast if config.contrast_calls == 1 else TwoCallContrast
        self._user = user(config, self._asker, stats)
        self._contrast = contrast(config, self._asker)
        self._plain_answer = PlainAnswer(config, self._asker)
        self._assistant = Question("assistant", config.assistant, config.assistant_tokens)

    async def conversation(self, seed: Record, sample: int) -> list[dict[str, Any]]:
        """The chosen branch and, unless no turn is contrasted, the rejected one.

        Up to the first contrasted reply both are one conversation and are simulated once. So every
        later difference comes from the contrast. Where a contrast reads the plain reply, the first
        one waits for that of the chosen branch, which has the same history. Where the user may end
        the conversation, the chosen branch comes first and says how many turns both have.

        Raises:
            CallError: a call failed.
            LimitReached: nothing more may be spent.
        """
        turns = self._config.turns
        persona = self._personas.of(seed, sample)
        if self._config.persona and persona is None:
            self._stats.count("conversations_without_a_persona")
        chosen = Branch(seed, sample, "chosen", list(seed["messages"]), persona=persona)
        if self._user.can_stop(chosen):
            await self._grow(chosen, range(turns))
            turns = len(chosen.replies)
        rng = Random(f"{self._config.seed} {seed['id']} {sample}")
        contrasted = contrasted_turns(self._config.contrast, turns, rng)
        fork = min(contrasted, default=turns)
        await self._grow(chosen, range(len(chosen.replies), fork))
        if fork == turns:
            return [chosen.record(self._config)]
        if len(chosen.replies) == fork:
            await self._add_user_message(chosen, fork)
            if self._contrast.reads_answer:
                await self._add_reply(chosen, fork)
        rejected = chosen.fork("rejected", fork)
        answer = chosen.reply_text(fork) if self._contrast.reads_answer else ""
        await gather_all(
            self._grow(chosen, range(len(chosen.replies), turns)),
            self._grow(rejected, range(fork, turns), contrasted, answer),
        )
        return [chosen.record(self._config), rejected.record(self._config)]

    async def _grow(
        self,
        branch: Branch,
        turns: Iterable[int],
        contrasted: Collection[int] = (),
        answer: str = "",
    ) -> None:
        """Add a user's message and an assistant's reply in each turn, until the user is satisfied.

        A seed may end with the user, or with the result of a call that the assistant has yet to
        read: its first turn then is the reply.

        Args:
            contrasted: the turns whose replies answer an altered instruction.
            answer: the plain reply of the first turn, where that is there already.
        """
        for turn in turns:
            await self._add_user_message(branch, turn)
            if branch.satisfied:
                return
            if turn in contrasted:
                if self._contrast.reads_answer and not answer:
                    answer = await self._plain_answer.write(branch, turn)
                await self._contrast.write(branch, turn, answer)
            else:
                await self._add_reply(branch, turn)
            answer = ""  # of the next turn nothing is there

    async def _add_user_message(self, branch: Branch, turn: int) -> None:
        if branch.messages[-1]["role"] == "assistant":
            await self._user.write(branch, turn)

    async def _add_reply(self, branch: Branch, turn: int) -> None:
        history = branch.messages
        question = replace(self._assistant, messages=tuple(for_continuation(history)))
        reply, fault = await self._asker.ask(
            branch, turn, question, lambda text: faults.reply_fault(text, history)
        )
        branch.add("assistant", reply, fault)


def simulate(
    seeds: Iterable[Record], config: SimulateConfig, client: Client, stats: RunStats | None = None
) -> Generator[dict[str, Any], None, None]:
    """The branches of every seed, in input order; the branches of one sample stand together.

    Args:
        seeds: conversations to continue.
        stats: counts the retries. A seed with a failed conversation goes to its rejects, once. When
            the cost limit is reached, finished conversations are yielded and its limits say so.

    Raises:
        InputError: the policy, the prompts or a model cannot be used.
    """
    stats = stats or RunStats()
    simulator = Simulator(config, client, stats)
    stopped = False

    def conversations() -> Iterator[tuple[Record, int]]:
        for seed in seeds:
            for sample in range(config.samples):
                if stopped:
                    return
                yield seed, sample

    async def work(
        conversation: tuple[Record, int],
    ) -> tuple[Record, list[dict[str, Any]] | Exception]:
        nonlocal stopped
        seed, sample = conversation
        try:
            return seed, await simulator.conversation(seed, sample)
        except LimitReached as error:
            stopped = True
            return seed, error
        except CallError as error:
            return seed, error

    unfinished, failed_seed = 0, None
    window = max(64, 2 * client.config.concurrency)
    for seed, result in map_ordered(conversations(), work, window, stats.say):
        if isinstance(result, LimitReached):
            unfinished += 1
        elif isinstance(result, Exception):
            if seed is not failed_seed:  # else another of its samples was rejected already
                stats.rejects.add(CallError(f"{seed.where or seed['id']}: {result}"), seed)
            failed_seed = seed
        else:
            yield from result
    if stopped:
        stats.limits.append(
            f"stopped by `max_cost` with {unfinished} conversations unfinished; the same run with "
            "a higher limit goes on from here and pays for no finished call again"
        )
