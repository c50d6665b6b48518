"""Errors of providers: whether and when to try again, and whether other calls would fail, too."""

import os
import re
from collections.abc import Sequence
from urllib.parse import quote

from musiccli.llm.call import Call, Reply

# HTTP statuses.
RETRYABLE = {408, 409, 425, 429}  # and everything from 500 up
OVERLOADED = {429, 503, 529}
TIMED_OUT = {408, 504, 524}  # too many calls, too, where the server shares its speed among them
FATAL = {401, 402, 403, 404}  # every call to this model would fail
REQUEST_SPECIFIC = {400, 413, 422}  # the fault of this request; others may succeed

MAX_RETRY_AFTER = 300.0  # seconds; a longer wait (mostly a used-up quota) is not waited for
MAX_MESSAGE = 300  # characters that are kept of a provider's message
KEY = re.compile(r"\b(?:sk|pk|gsk|hf|AIza)[-_]?[-_A-Za-z0-9*]{8,}|(?<=://)[^/@\s]+@")
KEY_VARIABLE = re.compile(
    r"_(API_)?(KEY|TOKEN|SECRET|PASSWORD)$"
)  # name of an environment variable
# Gemini's RetryInfo is "retryDelay": "45s"; OpenAI and others write "Please try again in 1m2.5s".
DELAY = re.compile(
    r"(?:retryDelay\W+|(?:retry|try again) in )(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)(m?)s)?"
)


# A refusal of this question alone. The words are those of OpenAI, Anthropic, Gemini, Mistral, vLLM,
# SGLang, llama.cpp and Azure.
ABOUT_THE_QUESTION = re.compile(
    r"context.(length|window|size)|too many tokens|prompt is too|"
    r"\b(prompt|input|message|sequence)s?\b.{0,60}(too (long|large)|longer than|exceed|tokens)|"
    r"content.(filter|policy|management)|inappropriate|flagged",
    re.IGNORECASE,
)
# What servers call a reply that they broke off themselves.
FAILED_FINISH = {
    *("abort", "aborted", "cancelled", "canceled", "error", "timeout", "network_error"),
    *("insufficient_system_resource", "overloaded", "unload", "load"),
}
EMPTY_CAUSES = {  # by finish reason: why a reply is empty
    "content_filter": "the provider's filter held it back",
    "refusal": "the model refused to answer",
    "reasoning": "it holds reasoning alone, and no answer",
    "tool_calls": "it calls a tool and says nothing",
    "function_call": "it calls a tool and says nothing",
}
EMPTY_ATTEMPTS = 3  # for a call that is answered with nothing
# Values that people set where a server needs no key. They may be words of a reply.
PLACEHOLDER_KEYS = {
    *("anything", "default", "dummy", "dummy-key", "empty", "lm-studio", "no-key", "none"),
    *("not-needed", "nothing", "ollama", "placeholder", "secret", "whatever"),
}
MIN_SECRET = 6  # characters of a key that is removed wherever it stands


class ProviderError(Exception):
    """A call that brought no usable reply. Its message holds no key.

    Attributes:
        status: the HTTP status, or the one that fits best.
        retry_after: seconds to wait, if the provider named any.
        unreachable: nobody listens at the address.
        overloaded: there are too many calls.
        timed_out: there was no answer in time.
        fatal: every call to this model would fail.
        request_specific: says nothing about other calls.
        about_the_question: refuses this question for its length or its content.
        retryable: the same call may succeed later.
        max_attempts: errors of this kind after which the call has failed, where these are fewer
            than its attempts.
    """

    max_attempts = 1000

    def __init__(
        self,
        text: str,
        status: int = 500,
        retry_after: float | None = None,
        unreachable: bool = False,
        secrets: Sequence[str] = (),
    ):
        text = redact(text, secrets)
        super().__init__(redact_keys(" ".join(text.split()))[:MAX_MESSAGE].rstrip(". "))
        self.status, self.unreachable = status, unreachable
        self.retry_after = parse_delay(text) if retry_after is None else retry_after
        self.overloaded, self.timed_out = status in OVERLOADED, status in TIMED_OUT
        self.fatal = status in FATAL
        self.request_specific = status in REQUEST_SPECIFIC
        self.about_the_question = self.request_specific and bool(
            ABOUT_THE_QUESTION.search(str(self))
        )
        self.retryable = (status in RETRYABLE or status >= 500) and not self.wait_too_long

    @property
    def wait_too_long(self) -> bool:
        """Whether the provider asks for a longer wait than MAX_RETRY_AFTER."""
        return (self.retry_after or 0) > MAX_RETRY_AFTER


class UnusableReply(ProviderError):
    """A reply that nothing can be done with. `reply` has the tokens that it cost."""

    def __init__(self, text: str, reply: Reply):
        super().__init__(text)
        self.reply = reply


class EmptyReply(UnusableReply):
    """The model replied with nothing, or with the beginning of its thoughts.

    A model that used up its tokens before the first word (mostly on thinking) would do so again.
    """

    max_attempts = EMPTY_ATTEMPTS

    def __init__(self, reply: Reply, call: Call):
        cut = reply.finish == "length"
        text = "an empty reply"
        if cut:
            text += (
                f": all {call.max_tokens:,} tokens it may write were gone before the first word, "
                f"where thoughts count, too; raise `{call.limit_option}` or lower `reasoning`"
            )
        elif reply.finish != "stop":
            text += f": {EMPTY_CAUSES.get(reply.finish, f'it ended with {reply.finish}')}"
        super().__init__(text, reply)
        self.request_specific, self.retryable = True, not cut
        self.about_the_question = reply.finish in ("content_filter", "refusal")


class BrokenReply(UnusableReply):
    """A reply that the server broke off."""

    def __init__(self, reply: Reply):
        super().__init__(f"the server broke off its reply (finish_reason {reply.finish})", reply)


class OversizedReply(ProviderError):
    """A reply that is larger than anything that was asked for."""

    def __init__(self, limit: int):
        super().__init__(
            f"a reply of more than {limit / (1 << 20):.1f} MB, which is more than was asked for; "
            "it was not read"
        )
        self.request_specific, self.retryable = True, False


def redirect_error(status: int, location: str | None, secrets: Sequence[str] = ()) -> ProviderError:
    """The error for a redirect. None is followed: the key and the conversation are for one host."""
    where = location or "another address"
    return ProviderError(
        f"{status}: redirected to {where}; name that address", 404, secrets=secrets
    )


def is_secret(key: str) -> bool:
    """Whether a key that was sent is removed from replies; a placeholder may be a word of one."""
    return len(key) >= MIN_SECRET and key.lower() not in PLACEHOLDER_KEYS


def environment_keys() -> list[str]:
    """The keys in the environment, the longest first: one may be part of another."""
    values = {value.strip() for name, value in os.environ.items() if KEY_VARIABLE.search(name)}
    return sorted((value for value in values if len(value) >= 6), key=len, reverse=True)


def redact_keys(text: str) -> str:
    """The text without anything that looks like a key or stands in the environment as one."""
    return KEY.sub("[key]", redact(text, environment_keys()))


def redact(text: str, secrets: Sequence[str]) -> str:
    """The text with "[key]" in place of each secret, also as it stands in an address."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "[key]").replace(quote(secret, safe=""), "[key]")
    return text


def parse_delay(text: str) -> float | None:
    """The seconds that an error's text asks to wait; None where it names none."""
    match = DELAY.search(text)
    if not match or not any(match.groups()):
        return None
    hours, minutes, seconds, milli = match.groups()
    return (
        3600 * float(hours or 0)
        + 60 * float(minutes or 0)
        + float(seconds or 0) / (1000 if milli else 1)
    )
