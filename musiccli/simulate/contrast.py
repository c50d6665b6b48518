"""Contrasted replies: the assistant answers an altered form of the user's instruction.

The conversation keeps the user's own message. So the reply is well written, but does not answer
what the user asked. A prompt with the variable {{answer}} also reads the plain reply to the user's
message, as in Self-Taught Evaluators (arXiv 2408.02666).

It is text alone: where the seed ends with the result of a call, the altered instruction takes the
place of the user's, and the call and its result are not read.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from musiccli import prompts
from musiccli.core.errors import InputError
from musiccli.core.messages import (
    Message,
    for_continuation,
    last_user_message,
    without_tools,
)
from musiccli.core.text_checks import refuses
from musiccli.llm.call import Reply
from musiccli.prompts import transcript
from musiccli.simulate import faults
from musiccli.simulate.branch import Branch
from musiccli.simulate.config import SimulateConfig
from musiccli.simulate.retries import Asker, Question, without_thinking

# Two patterns, as one would search the whole text anew from every opening tag.
INSTRUCTION_START = re.compile("<instruction>", re.IGNORECASE)
INSTRUCTION_END = re.compile("</instruction>", re.IGNORECASE)
REPLY = re.compile(r"<reply>(.*?)(?:</reply>|\Z)", re.DOTALL | re.IGNORECASE)


class OneCallContrast:
    """Rewrites the instruction and answers it in one call, as the paper does.

    Attributes:
        reads_answer: whether the prompt shows the plain reply to the user's message.
    """

    def __init__(self, config: SimulateConfig, asker: Asker):
        self._asker = asker
        prompt = prompts.load(config.prompts, "contrast")
        if prompt is None:
            raise InputError(
                f"`prompts` {config.prompts} has no contrast.md, which `contrast_calls` 1 needs; "
                "2 needs rewrite.md instead"
            )
        self._prompt = prompt
        self.reads_answer = prompt.reads("answer")
        self._question = Question(
            "contrast",
            config.contrast_model,
            config.assistant_tokens + config.user_tokens,  # it also holds the instruction
            prepare=lambda reply: limit_reply(reply, config.assistant_tokens),
        )

    async def write(self, branch: Branch, turn: int, answer: str = "") -> None:
        """Add a reply to an altered form of the user's last message.

        Args:
            answer: the plain reply to that message, where the prompt reads it.
        """
        history, message = branch.messages, last_instruction(branch.messages)
        before = without_tools(history[: last_user_message(history)])
        question = self._question.with_prompt(
            self._prompt,
            without_tools(history),
            transcript=transcript(before),
            instruction=message,
            answer=answer,
        )
        reply, fault = await self._asker.ask(
            branch, turn, question, lambda text: contrast_fault(text, message, history, answer)
        )
        instruction, text = split_contrast(reply.text)
        branch.add_contrasted(instruction or "", replace(reply, text=text or reply.text), fault)


class TwoCallContrast:
    """Rewrites the instruction in one call and answers it in another.

    Attributes:
        reads_answer: whether the prompt shows the plain reply to the user's message.
    """

    def __init__(self, config: SimulateConfig, asker: Asker):
        self._asker = asker
        self._prompt = prompts.require(config.prompts, "rewrite")
        self.reads_answer = self._prompt.reads("answer")
        self._rewrite = Question("rewrite", config.contrast_model, config.user_tokens)
        self._answer = Question("contrast", config.contrast_model, config.assistant_tokens)

    async def write(self, branch: Branch, turn: int, answer: str = "") -> None:
        """Add a reply to an altered form of the user's last message.

        Args:
            answer: the plain reply to that message, where the prompt reads it.
        """
        history, message = branch.messages, last_instruction(branch.messages)
        before = history[: last_user_message(history)]
        question = self._rewrite.with_prompt(
            self._prompt,
            without_tools(history),
            transcript=transcript(without_tools(before)),
            instruction=message,
            answer=answer,
        )
        rewritten, rewrite_fault = await self._asker.ask(
            branch, turn, question, lambda text: faults.rewrite_fault(text, message, answer)
        )
        instruction = rewritten.text
        altered: list[Message] = [
            *for_continuation(before),
            {"role": "user", "content": instruction},
        ]
        reply, reply_fault = await self._asker.ask(
            branch,
            turn,
            replace(self._answer, messages=tuple(altered)),
            lambda text: faults.contrast_reply_fault(text, instruction, history, answer),
        )
        branch.add_contrasted(instruction, reply, rewrite_fault or reply_fault)


class PlainAnswer:
    """Asks for the plain reply to a branch's last message, for a contrast that reads it."""

    def __init__(self, config: SimulateConfig, asker: Asker):
        self._asker = asker
        self._question = Question("plain", config.assistant, config.assistant_tokens)

    async def write(self, branch: Branch, turn: int) -> str:
        """What the assistant would say. It is not added to the branch.

        An answer that is still faulty after the last retry does not mark the branch: it is no part
        of the conversation, and the contrasted reply is checked by itself.
        """
        history = branch.messages
        question = replace(self._question, messages=tuple(for_continuation(history)))
        reply, _ = await self._asker.ask(
            branch, turn, question, lambda text: faults.reply_fault(text, history)
        )
        return reply.text


def last_instruction(messages: Sequence[Message]) -> str:
    """The text of the last message of the user."""
    return messages[last_user_message(messages)]["content"]


def split_contrast(text: str) -> tuple[str | None, str | None]:
    """The rewritten instruction and the reply of a one-call contrast; None for a missing part."""
    start, reply = INSTRUCTION_START.search(text), REPLY.search(text)
    end = INSTRUCTION_END.search(text, start.end()) if start else None
    instruction = text[start.end() : end.start()].strip() if start and end else None
    return instruction, reply and reply[1].strip()


def contrast_fault(
    text: str, message: str, history: Sequence[Message], answer: str = ""
) -> str | None:
    """What is wrong with a one-call contrast, or None.

    Args:
        message: the user's message, which was to be rewritten.
        answer: the plain reply to it, where the model has read that.
    """
    instruction, reply = split_contrast(text)
    if not instruction or not reply:
        return "refusal" if refuses(text) else "unreadable"
    return faults.rewrite_fault(instruction, message, answer) or faults.contrast_reply_fault(
        reply, instruction, history, answer
    )


def limit_reply(contrast: Reply, max_tokens: int) -> Reply:
    """A one-call contrast without thoughts, its reply cut to `max_tokens`.

    The call's own limit is higher, as the text also holds the instruction. Without this cut, the
    rejected reply would be the longer one wherever a model writes as much as it may. The number of
    tokens is estimated from the characters, at the call's average.
    """
    limited = without_thinking(contrast)
    reply = REPLY.search(limited.text)
    if not reply or not contrast.completion_tokens:
        return limited
    characters = len(contrast.text) * max_tokens // contrast.completion_tokens
    if len(reply[1]) <= characters:
        return limited
    return replace(limited, text=limited.text[: reply.start(1) + characters], finish="length")
