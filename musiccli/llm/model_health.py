"""Decide when a model has failed so often that the run stops calling it."""

from collections.abc import Callable

from musiccli.core.errors import CallError, InputError
from musiccli.llm.call import Call
from musiccli.llm.provider_errors import MAX_RETRY_AFTER, ProviderError

LONGEST_DURATION = 1000 * 3600.0  # seconds; longer ones are not told apart
MAX_FAILURES = 8  # calls that fail for good, one after the other, before the run stops


class ModelHealth:
    """Counts the failures of one model.

    Args:
        cached: whether finished calls are kept, so that another run continues from them.
        say: tells people something.

    Attributes:
        stop_reason: why no further call is made; None while calls are made.
        has_replied_before: whether the cache holds a reply of an earlier run to a call of this one.
            A wrong key or name may be new since, but a request that fails for a reason of its own
            does so again, and says nothing of the others.
    """

    def __init__(self, cached: bool = False, say: Callable[[str], None] = lambda text: None):
        self.stop_reason: str | None = None
        self.has_replied_before = False
        self._cached, self._say = cached, say
        self._has_succeeded = self._has_warned = False
        self._failures = 0  # since the last success

    def check(self) -> None:
        """Raises InputError where no further call is made."""
        if self.stop_reason:
            raise InputError(self.stop_reason)

    def record_success(self) -> None:
        """A call succeeded."""
        self._has_succeeded, self._failures = True, 0

    def warn(self, call: Call, error: ProviderError) -> None:
        """Say once why a model that has not replied yet is tried again."""
        if not self._has_succeeded and not self._has_warned:
            self._has_warned = True
            self._say(f"{call.model}: {error}; trying again")

    def record_failure(
        self, call: Call, error: ProviderError, attempts: int
    ) -> CallError | InputError:
        """The exception for a call that failed for good: one record's, or the whole run's.

        A model that has never replied stops the run at once if no call can succeed (wrong key, no
        such model), else after MAX_FAILURES failures of any kind. A model that has replied before
        stops it after MAX_FAILURES failures in a row that other calls would share: its server died,
        or its credit is spent. Requests that are refused or answered with nothing do not count
        then, nor where a reply of an earlier run is in the cache. Those that are too long or
        filtered never count.
        """
        text = f"{call.model}: {error}" + (f" (after {attempts} attempts)" if attempts > 1 else "")
        if error.retry_after and error.wait_too_long:
            text += (
                f"; it asks for a wait of {_duration(error.retry_after)}, and "
                f"{_duration(MAX_RETRY_AFTER)} is the most"
            )
        has_replied = self._has_succeeded or self.has_replied_before
        if error.about_the_question or (has_replied and error.request_specific):
            return CallError(text)
        self._failures += 1
        if not self.stop_reason:  # a call that was in flight may have set it
            self.stop_reason = self._reason_to_stop(text, error)
        return InputError(self.stop_reason) if self.stop_reason else CallError(text)

    def _reason_to_stop(self, text: str, error: ProviderError) -> str | None:
        if not self._has_succeeded and (error.fatal or self._failures >= MAX_FAILURES):
            return f"{text}; no call to it has succeeded, so the run stops here"
        if self._failures < MAX_FAILURES:
            return None
        reason = f"{text}; {self._failures} calls to it have failed in a row, so the run stops here"
        if self._cached:
            reason += "; the same command continues from here and pays for no finished call again"
        return reason


def _duration(seconds: float) -> str:
    if seconds > LONGEST_DURATION:
        return f"more than {_duration(LONGEST_DURATION)}"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
