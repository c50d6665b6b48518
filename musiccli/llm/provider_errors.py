"""Errors of providers: whether and when to try again, and whether other calls would fail, too."""

import os
import re
import time
from collections.abc import Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime

from musiccli.llm.call import Reply

# HTTP statuses.
RETRYABLE = {408, 409, 425, 429}  # and everything from 500 up
OVERLOADED = {429, 503, 529}
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


class ProviderError(Exception):
    """A call that brought no usable reply. Its message holds no key.

    Attributes:
        status: the HTTP status, or the one that fits best.
        retry_after: seconds to wait, if the provider named any.
        unreachable: nobody listens at the address.
        overloaded: there are too many calls.
        fatal: every call to this model would fail.
        request_specific: says nothing about other calls.
        retryable: the same call may succeed later.
    """

    def __init__(
        self,
        text: str,
        status: int = 500,
        retry_after: float | None = None,
        unreachable: bool = False,
    ):
        super().__init__(redact_keys(" ".join(text.split()))[:MAX_MESSAGE].rstrip(". "))
        self.status, self.unreachable = status, unreachable
        self.retry_after = parse_delay(text) if retry_after is None else retry_after
        self.overloaded = status in OVERLOADED
        self.fatal = status in FATAL
        self.request_specific = status in REQUEST_SPECIFIC
        self.retryable = (status in RETRYABLE or status >= 500) and not self.wait_too_long

    @property
    def wait_too_long(self) -> bool:
        """Whether the provider asks for a longer wait than MAX_RETRY_AFTER."""
        return (self.retry_after or 0) > MAX_RETRY_AFTER


class EmptyReply(ProviderError):
    """The model replied with nothing. `reply` has the tokens that this cost.

    A model that used up its tokens before the first word (mostly on thinking) would do so again.
    """

    def __init__(self, reply: Reply):
        cut = reply.finish == "length"
        text = "an empty reply"
        if cut:
            text += (
                f": all {reply.completion_tokens:,} tokens it may write were gone before the first "
                "word; allow it more"
            )
        super().__init__(text)
        self.reply, self.request_specific, self.retryable = reply, True, not cut


def environment_keys() -> list[str]:
    """The keys in the environment, the longest first: one may be part of another."""
    values = {value.strip() for name, value in os.environ.items() if KEY_VARIABLE.search(name)}
    return sorted((value for value in values if len(value) >= 6), key=len, reverse=True)


def redact_keys(text: str) -> str:
    """The text without anything that looks like a key or stands in the environment as one."""
    return KEY.sub("[key]", redact(text, environment_keys()))


def redact(text: str, secrets: Sequence[str]) -> str:
    """The text with "[key]" in place of each secret."""
    for secret in secrets:
        text = text.replace(secret, "[key]")
    return text


def parse_delay(text: str) -> float | None:
    """The seconds that an error's text asks to wait; None where it names none."""
    match = DELAY.search(text)
    if not match or not any(match.groups()):
        return None
    hours, minutes, seconds, milli = match.groups()
    return (
        3600 * int(hours or 0)
        + 60 * int(minutes or 0)
        + float(seconds or 0) / (1000 if milli else 1)
    )


def parse_retry_after(header: str | None) -> float | None:
    """The header Retry-After in seconds: a number or an HTTP date (RFC 9110, 10.2.3), else None."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time.time())
