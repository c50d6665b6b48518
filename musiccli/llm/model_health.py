"""How one provider's model fares in a run: its pace, its addresses, and whether asking it further makes sense."""

from musiccli.core.errors import CallError, InputError
from musiccli.core.progress import say
from musiccli.llm.call import Call
from musiccli.llm.endpoints import Endpoints
from musiccli.llm.limiter import AdaptiveLimiter
from musiccli.llm.provider_errors import ProviderError

GIVE_UP_AFTER = (
    8  # calls to a model that failed for good, one after the other, without an answer between
)
LONGEST_WAIT = (
    300.0  # seconds; a provider that asks for more (a spent quota, mostly) is not waited for
)


class ModelHealth:
    """One model's. `broken` says why no further call is made, once that is so; `kept`: finished calls are on disk."""

    def __init__(self, endpoints: Endpoints, pace: AdaptiveLimiter, kept: bool = False):
        self.endpoints, self.pace, self.kept = endpoints, pace, kept
        self.broken: str | None = None
        self._answered = self._warned = False
        self._failed = 0  # since the last answer

    def check(self) -> None:
        """Raises InputError where the run has given this model up."""
        if self.broken:
            raise InputError(self.broken)

    def answered(self) -> None:
        self._answered, self._failed = True, 0
        self.pace.succeeded()

    def refused(self, refusal: ProviderError) -> None:
        if refusal.overloaded:
            self.pace.refused(None if _too_long(refusal) else refusal.retry_after)

    def worth_another(self, refusal: ProviderError) -> bool:
        return refusal.passing and not _too_long(refusal)

    def warn(self, call: Call, refusal: ProviderError) -> None:
        """Say once why a model that has not answered yet is asked again: nobody should wait for it in the dark."""
        if not self._answered and not self._warned:
            self._warned = True
            say(f"{call.model}: {refusal}; trying again")

    def failed(self, call: Call, refusal: ProviderError, attempts: int) -> CallError | InputError:
        """What a call that failed for good means: for its record, or for the run.

        A model that has never answered is given up at once where no call can succeed (wrong key, no such model), and
        after GIVE_UP_AFTER failures of any kind. One that has answered is given up after as many failures in a row that
        are not of the question (too long, filtered, answered with nothing): its server died, or its credit is spent.
        """
        text = f"{call.model}: {refusal}" + (
            f" (after {attempts} attempts)" if attempts > 1 else ""
        )
        if _too_long(refusal):
            text += f"; it asks for a wait of {_spell(refusal.retry_after)}, and {_spell(LONGEST_WAIT)} is the most"
        if self._answered and not refusal.of_the_server:
            return CallError(text)
        self._failed += 1
        if self.broken:  # by another that was in flight, too
            pass
        elif not self._answered and (refusal.fatal or self._failed >= GIVE_UP_AFTER):
            self.broken = f"{text}; no call to it has succeeded, so the run stops here"
        elif self._failed >= GIVE_UP_AFTER:
            self.broken = (
                f"{text}; {self._failed} calls to it have failed in a row, so the run stops here"
            )
            if self.kept:
                self.broken += (
                    "; the same line goes on from here, and pays for no finished call again"
                )
        return InputError(self.broken) if self.broken else CallError(text)


def _too_long(refusal: ProviderError) -> bool:
    return (refusal.retry_after or 0) > LONGEST_WAIT


def _spell(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
