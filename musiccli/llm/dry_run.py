"""What calls would take: a client that counts them and asks no model."""

from collections import Counter
from collections.abc import Collection

from musiccli.llm.call import Call, Reply

ESTIMATE_SAMPLE = 200  # the most records whose calls are counted for an estimate
Planned = dict[tuple[str, str], Counter[str]]  # counts by role and model


class DryRunClient:
    """Counts calls and answers them with made-up text.

    A token counts as 4 characters, and a reply as two thirds of its limit. With thoughts it counts
    as the whole of it, the most that it can be.

    Args:
        thinking: the models that may think before they reply.

    Attributes:
        planned: number of "calls", "prompt_tokens" and "completion_tokens" by role and model.
    """

    def __init__(self, thinking: Collection[str] = ()):
        self.planned: Planned = {}
        self._thinking = thinking

    async def complete(self, call: Call) -> Reply:
        """A reply of made-up text, at once."""
        text = self.reply_text(call)
        prompt_characters = sum(len(message["content"]) for message in call.messages) + len(
            call.text
        )
        written = call.max_tokens if call.model in self._thinking else len(text) // 4
        counts = Counter(calls=1, prompt_tokens=prompt_characters // 4, completion_tokens=written)
        self.planned.setdefault((call.role, call.model), Counter()).update(counts)
        return Reply(text, "stop", counts["prompt_tokens"], counts["completion_tokens"], 0.0)

    def reply_text(self, call: Call) -> str:
        """What the model replies."""
        return made_up_text(call.max_tokens)

    def scaled(self, drawn: int, total: int) -> Planned:
        """What `total` records take, where the calls for `drawn` of them were counted."""
        return {
            key: Counter({name: round(count * total / drawn) for name, count in counts.items()})
            for key, counts in sorted(self.planned.items())
        }


def made_up_text(max_tokens: int) -> str:
    """A text of two thirds of so many tokens, at 4 characters a token."""
    return "word" * (max_tokens * 2 // 3)
