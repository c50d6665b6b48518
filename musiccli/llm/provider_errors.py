"""What it means that a call brought no usable reply: whether to try again, when, and whether others would fare better."""

import os
import re
import time
from datetime import UTC
from email.utils import parsedate_to_datetime

from musiccli.llm.call import Reply

PASSING = {408, 409, 425, 429}  # and everything from 500 up: worth another try
OVERLOADED = {429, 503, 529}
FATAL = {401, 402, 403, 404}  # no other call to this model would fare better
OF_THE_QUESTION = {400, 413, 422}  # says nothing about the calls after this one
SECRET = re.compile(r"\b(?:sk|pk|gsk|hf|AIza)[-_]?[-_A-Za-z0-9*]{8,}|(?<=://)[^/@\s]+@")
SECRET_NAME = re.compile(r"_(API_)?(KEY|TOKEN|SECRET|PASSWORD)$")  # of an environment variable
LONGEST = 300  # characters of a provider's own words
# Gemini's RetryInfo, and what OpenAI and others say in words: "retryDelay": "45s", "Please try again in 1m2.5s"
DELAY = re.compile(
    r"(?:retryDelay\W+|(?:retry|try again) in )(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)(m?)s)?"
)


class ProviderError(Exception):
    """A call that brought no usable reply.

    `retry_after` is in seconds, if the provider named any. `unreachable`: nobody listens at the address. `passing`:
    worth another try. `fatal`: no other call would fare better. `of_the_server`: says something about other calls, too.
    """

    def __init__(
        self,
        text: str,
        status: int = 500,
        retry_after: float | None = None,
        unreachable: bool = False,
    ):
        super().__init__(without_keys(" ".join(text.split()))[:LONGEST].rstrip(". "))
        self.status, self.unreachable = status, unreachable
        self.retry_after = delay_in(text) if retry_after is None else retry_after
        self.passing = status in PASSING or status >= 500
        self.overloaded = status in OVERLOADED
        self.fatal = status in FATAL
        self.of_the_server = status not in OF_THE_QUESTION


class Empty(ProviderError):
    """The model answered, with nothing; `reply` says what that cost. A model that has used up its tokens before it
    wrote a word (thinking, mostly) would do so again."""

    def __init__(self, reply: Reply):
        cut = reply.finish == "length"
        super().__init__(
            "an empty reply"
            + (
                f": all {reply.completion_tokens:,} tokens it may write were gone before "
                "the first word; allow it more"
                if cut
                else ""
            )
        )
        self.reply, self.of_the_server, self.passing = reply, False, not cut


def keys() -> list[str]:
    """The keys in the environment, the longest first: one may be part of another."""
    found = {value.strip() for name, value in os.environ.items() if SECRET_NAME.search(name)}
    return sorted((key for key in found if len(key) >= 6), key=len, reverse=True)


def without_keys(text: str) -> str:
    """The text without anything that looks like a key, or stands in the environment as one."""
    return SECRET.sub("[key]", without(keys(), text))


def without(secrets: list[str], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, "[key]")
    return text


def delay_in(text: str) -> float | None:
    """The seconds that a refusal's text asks to wait, where it names any."""
    found = DELAY.search(text)
    if not found or not any(found.groups()):
        return None
    hours, minutes, seconds, milli = found.groups()
    return (
        3600 * int(hours or 0)
        + 60 * int(minutes or 0)
        + float(seconds or 0) / (1000 if milli else 1)
    )


def seconds_until(retry_after: str | None) -> float | None:
    """Retry-After in seconds: a number, or an HTTP date (RFC 9110, 10.2.3); None where it is neither."""
    if not retry_after:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time.time())
