"""User simulators: they write the user's messages, in one call or in two."""

import re
from collections.abc import Sequence
from random import Random

from musiccli import prompts
from musiccli.core.errors import InputError
from musiccli.core.messages import Message, without_tools
from musiccli.core.run_stats import RunStats
from musiccli.prompts import transcript
from musiccli.simulate import faults, follow_ups
from musiccli.simulate.branch import Branch
from musiccli.simulate.config import SimulateConfig
from musiccli.simulate.personas import Persona
from musiccli.simulate.policies import fewest_turns
from musiccli.simulate.retries import Asker, Question

STOP = "[satisfied]"  # what a user writes who has got what they came for
STOP_MARK = re.compile(r"\[\s*satisfied\s*\]|^\W*satisfied\W*$", re.IGNORECASE)


class PlainUser:
    """Writes a message in one call."""

    def __init__(self, config: SimulateConfig, asker: Asker):
        self._asker = asker
        self._prompt = prompts.require(config.prompts, "user")
        self._question = Question("user", config.user_model, config.user_tokens)

    async def write(self, branch: Branch, turn: int) -> None:
        """Add the user's next message. The user sees this branch only."""
        history = without_tools(branch.messages)
        question = self._question.with_prompt(self._prompt, history, transcript=transcript(history))
        reply, fault = await self._asker.ask(
            branch, turn, question, lambda text: faults.user_fault(text, history)
        )
        branch.add("user", reply, fault)


class GuidedUser:
    """Writes a message in one call: as a persona, or of a kind that needs the history.

    Without a persona the messages that are of no such kind are a PlainUser's.
    """

    def __init__(self, config: SimulateConfig, asker: Asker, stats: RunStats):
        self._config, self._asker, self._stats = config, asker, stats
        self._plain_user = PlainUser(config, asker)
        self._shares = follow_ups.parse_shares(config.follow_ups)
        self._prompt = prompts.load(config.prompts, "guided")
        if self._prompt is None and (config.persona or config.follow_ups):
            name = "persona" if config.persona else "follow_ups"
            raise InputError(
                f"`prompts` {config.prompts} has no guided.md, which `{name}` needs: models of few "
                "parameters lose the thread with it; `prompts` paper has it"
            )
        self._guidance = prompts.sections(config.prompts, "guidance")
        self._question = Question("user", config.user_model, config.user_tokens)

    def can_stop(self, branch: Branch) -> bool:
        """Whether the user of a branch may end it early: one who can tell when to.

        The user of the chosen branch says how many turns both branches have. That of the rejected
        one gets the same prompt, so that their messages do not tell the branches apart, but to
        stop is a fault there.
        """
        persona = branch.persona
        return bool(persona and persona.has_end and "may stop" in self._guidance)

    async def write(self, branch: Branch, turn: int) -> None:
        """Add the user's next message, or mark the branch as one with a satisfied user."""
        kind = self._kind(branch, turn)
        if self._prompt is None and branch.persona:
            self._stats.count("messages_without_their_persona", "no guided.md")
        if self._prompt is None or not (kind or branch.persona):
            await self._plain_user.write(branch, turn)
            return
        history = without_tools(branch.messages)
        fewest = fewest_turns(self._config.contrast)
        is_told_how_to_stop = self.can_stop(branch) and len(branch.replies) >= fewest
        may_stop = is_told_how_to_stop and branch.name == "chosen"
        question = self._question.with_prompt(
            self._prompt,
            history,
            transcript=transcript(history),
            persona=self._persona_text(branch.persona),
            task=self._text(kind or "plain"),
            ending=self._text("may stop" if is_told_how_to_stop else "goes on"),
        )
        reply, fault = await self._asker.ask(
            branch, turn, question, lambda text: guided_fault(text, history, may_stop)
        )
        if may_stop and not fault and ends_conversation(reply.text):
            branch.satisfied = True
            self._stats.count("conversations_ended_by_a_satisfied_user")
            return
        if kind:
            branch.follow_ups.append({"message": len(branch.messages), "kind": kind})
        branch.add("user", reply, fault)

    def _kind(self, branch: Branch, turn: int) -> str:
        """The kind of the message in a turn, the same in both branches; "" for a plain one."""
        seed = branch.seed["id"]
        rng = Random(f"{self._config.seed} {seed} {branch.sample} {turn} follow-up")
        kind = follow_ups.draw_kind(self._shares, rng)
        if kind and not follow_ups.is_possible(kind, branch.messages):
            self._stats.count("follow_ups_left_out", f"{kind}: too early")
            return ""
        return kind

    def _persona_text(self, persona: Persona | None) -> str:
        """The sections of the fields that a persona has."""
        if persona is None:
            return self._text("no persona")
        fields = persona.record
        return "\n".join(
            self._guidance[name].fill(**fields) for name in fields if name in self._guidance
        )

    def _text(self, heading: str) -> str:
        """A section of guidance.md; nothing where the set has none."""
        section = self._guidance.get(heading)
        return section.fill(stop=STOP) if section else ""


def guided_fault(text: str, history: Sequence[Message], may_stop: bool) -> str | None:
    """What is wrong with the message of a user who knows STOP, or None.

    Args:
        history: the conversation before it.
        may_stop: whether the user may end the conversation, by STOP or by a goodbye.
    """
    if may_stop and ends_conversation(text):
        return None
    return "early stop" if STOP_MARK.search(text) else faults.user_fault(text, history)


def ends_conversation(text: str) -> bool:
    """Whether a user who may end the conversation does so, by STOP or in other words."""
    return bool(STOP_MARK.search(text)) or faults.says_goodbye(text)


class ReviewUser:
    """Writes a message in two calls, after ReviewInstruct (arXiv 2505.11010).

    A reviewer says what the assistant's last reply lacks, and a chairman makes a message of that.
    The paper has several reviewers; here there is one.
    """

    def __init__(self, config: SimulateConfig, asker: Asker, stats: RunStats):
        self._asker, self._stats = asker, stats
        self._review_prompt = prompts.require(config.prompts, "review")
        self._chair_prompt = prompts.require(config.prompts, "chair")
        self._reviewer = Question("reviewer", config.user_model, config.user_tokens)
        self._chairman = Question("chairman", config.user_model, config.user_tokens)

    def can_stop(self, branch: Branch) -> bool:
        """Whether the user of a branch may end it early: never."""
        return False

    async def write(self, branch: Branch, turn: int) -> None:
        """Add the user's next message. Reviewer and chairman see this branch only."""
        if branch.persona:
            self._stats.count("messages_without_their_persona", "reviewed user")
        history = without_tools(branch.messages)
        review = await self._review(branch, turn)
        question = self._chairman.with_prompt(
            self._chair_prompt, history, transcript=transcript(history), review=review
        )
        reply, fault = await self._asker.ask(
            branch, turn, question, lambda text: faults.user_fault(text, history, review)
        )
        branch.add("user", reply, fault)

    async def _review(self, branch: Branch, turn: int) -> str:
        """What the last reply lacks.

        A review that is still faulty after the last retry does not mark the branch. It is not part
        of the conversation, and the message made from it is checked.
        """
        history = without_tools(branch.messages)
        question = self._reviewer.with_prompt(
            self._review_prompt, history, transcript=transcript(history)
        )
        review, _ = await self._asker.ask(branch, turn, question, faults.review_fault)
        return review.text
