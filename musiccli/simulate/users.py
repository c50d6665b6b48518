"""User simulators: they write the user's messages, in one call or in two."""

from musiccli import prompts
from musiccli.core.messages import without_tools
from musiccli.prompts import transcript
from musiccli.simulate import faults
from musiccli.simulate.branch import Branch
from musiccli.simulate.config import SimulateConfig
from musiccli.simulate.retries import Asker, Question


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


class ReviewUser:
    """Writes a message in two calls, after ReviewInstruct (arXiv 2505.11010).

    A reviewer says what the assistant's last reply lacks, and a chairman makes a message of that.
    The paper has several reviewers; here there is one.
    """

    def __init__(self, config: SimulateConfig, asker: Asker):
        self._asker = asker
        self._review_prompt = prompts.require(config.prompts, "review")
        self._chair_prompt = prompts.require(config.prompts, "chair")
        self._reviewer = Question("reviewer", config.user_model, config.user_tokens)
        self._chairman = Question("chairman", config.user_model, config.user_tokens)

    async def write(self, branch: Branch, turn: int) -> None:
        """Add the user's next message. Reviewer and chairman see this branch only."""
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
