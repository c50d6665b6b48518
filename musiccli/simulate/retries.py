"""Ask a model for a message, and ask again with feedback where the message has a fault."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from musiccli.core.errors import CallError
from musiccli.core.messages import Message
from musiccli.core.run_stats import RunStats
from musiccli.core.text_checks import is_english
from musiccli.core.thoughts import without_thoughts
from musiccli.llm.call import Call, Reply, retry_temperature
from musiccli.llm.client import Client
from musiccli.prompts import Prompt, feedback
from musiccli.simulate.branch import Branch
from musiccli.simulate.config import SimulateConfig
from musiccli.simulate.truncation import whole_sentences

SPEAKERS = {
    "chairman": "user",
    "plain": "assistant",
}  # roles that write the message of another role


def without_thinking(reply: Reply) -> Reply:
    """A reply without the thoughts before it, which some models put into <think>...</think>."""
    return replace(reply, text=without_thoughts(reply.text))


@dataclass(frozen=True)
class Question:
    """What a model is asked in one role.

    Attributes:
        role: "user", "reviewer", "chairman", "assistant", "plain", "rewrite" or "contrast".
        max_tokens: the token limit of the reply.
        messages: the conversation that the model continues.
        text: the raw text that the model continues in mode "completion".
        mode: as in llm.call.Call.
        stop: strings that end a reply.
        prepare: applied to every reply before it is checked.
    """

    role: str
    model: str
    max_tokens: int
    messages: tuple[Message, ...] = ()
    text: str = ""
    mode: str = "chat"
    stop: tuple[str, ...] = ()
    prepare: Callable[[Reply], Reply] = without_thinking

    @property
    def limit_option(self) -> str:
        """The parameter that sets the token limit."""
        by_assistant = self.role in ("assistant", "plain", "contrast")
        return "assistant_tokens" if by_assistant else "user_tokens"

    def with_prompt(self, prompt: Prompt, history: Sequence[Message], **values: str) -> "Question":
        """The question in the form that the prompt's head asks for.

        Args:
            history: the conversation so far; a prompt `as: turn` is this alone.
            values: the values of the prompt's variables.
        """
        if prompt.mode == "turn":
            return replace(self, messages=tuple(history), mode="turn", stop=prompt.stop)
        text = prompt.fill(**values)
        if prompt.mode == "completion":
            return replace(self, text=text, mode="completion", stop=prompt.stop)
        return replace(self, messages=({"role": "user", "content": text},), stop=prompt.stop)

    def after_fault(self, text: str, feedback: str | None) -> "Question":
        """The question, followed by the faulty message and the feedback on it.

        Without feedback it is the same question, as it is for a model that continues raw text.
        """
        if not feedback or self.mode != "chat":
            return self
        exchange: list[Message] = [
            {"role": "assistant", "content": text.strip() or "(nothing)"},
            {"role": "user", "content": feedback},
        ]
        return replace(self, messages=(*self.messages, *exchange))


class Asker:
    """Asks until a message has no fault or no retry is left."""

    def __init__(self, config: SimulateConfig, client: Client, stats: RunStats):
        self._config, self._client, self._stats = config, client, stats
        self._feedback = feedback.load(config.prompts)

    async def ask(
        self,
        branch: Branch,
        turn: int,
        question: Question,
        fault_of: Callable[[str], str | None],
    ) -> tuple[Reply, str | None]:
        """A reply and None, or after the last retry a reply and its fault as "SPEAKER FAULT".

        Args:
            branch: the conversation that the message is for; the calls count as its usage.
            turn: the simulated turn, counted from 0.
            fault_of: names the fault of a text, or returns None.

        Raises:
            CallError: the call failed, the last reply is empty, or the record would grow too large.
            LimitReached: nothing more may be spent.
        """
        speaker = SPEAKERS.get(question.role, question.role)
        attempts = self._config.retries + 1
        next_question = question
        for attempt in range(attempts):
            reply = await self._client.complete(self._call(branch, turn, next_question, attempt))
            branch.add_usage(reply)
            branch.check_room(reply)
            only_thoughts = bool(reply.text.strip()) and not without_thinking(reply).text
            reply, whole = whole_sentences(question.prepare(reply))
            fault = _fault(reply, whole, fault_of)
            if fault is None:
                self._count_language(speaker, reply.text)
                return reply, None
            if attempt < self._config.retries:
                self._stats.count("retried", f"{speaker} {fault}")
            next_question = question.after_fault(
                reply.text, feedback.for_fault(self._feedback, speaker, fault)
            )
        if fault == "empty":
            raise CallError(
                f"{question.model} wrote nothing{' but thoughts' if only_thoughts else ''} as "
                f"{question.role} in turn {turn + 1}, {attempts} times"
                + (f"; raise `{question.limit_option}`" if reply.finish == "length" else "")
            )
        return reply, f"{speaker} {fault}"

    def _count_language(self, speaker: str, text: str) -> None:
        """Count a message that most detectors of faults could not read."""
        if not is_english(text):
            self._stats.count("not_in_English", speaker)

    def _call(self, branch: Branch, turn: int, question: Question, attempt: int) -> Call:
        return Call(
            model=question.model,
            call_key=(branch.seed["id"], branch.name, branch.sample, turn, question.role, attempt),
            messages=question.messages,
            text=question.text,
            mode=question.mode,
            max_tokens=question.max_tokens,
            temperature=retry_temperature(self._config.temperature, attempt),
            top_p=self._config.top_p,
            stop=question.stop,
            seed=self._config.seed,
            limit_option=question.limit_option,
        )


def _fault(reply: Reply, whole: bool, fault_of: Callable[[str], str | None]) -> str | None:
    """The fault of a reply, or None. `whole`: it does not end in the middle of a sentence."""
    if not reply.text.strip():
        return "empty"
    if reply.interruption:
        return reply.interruption
    fault = fault_of(reply.text)
    if fault is None:
        return None if whole else "cut off"
    if fault == "unreadable" and reply.finish == "length":  # its form lacks only the end
        return "cut off"
    return fault
