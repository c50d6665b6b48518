"""The provider for models in this process."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from musiccli.llm.call import Call, Reply
from musiccli.llm.local.choice import weights_and_engine

if TYPE_CHECKING:
    from musiccli.llm.local.engine import LocalEngine


class LocalProvider:
    """Keeps an engine for each model, which is loaded when the model is first called.

    Args:
        say: tells people something.
    """

    def __init__(self, say: Callable[[str], None] = lambda text: None):
        self.engines: dict[str, LocalEngine] = {}
        self._fingerprints: dict[str, str | None] = {}
        self._say = say

    def fingerprint(self, model: str) -> str | None:
        """What tells apart replies under the model's name; the same for a whole run."""
        if model not in self._fingerprints:
            self._fingerprints[model] = weights_and_engine(model)
        return self._fingerprints[model]

    async def complete(self, call: Call, url: str | None = None, key: str | None = None) -> Reply:
        """Generate the reply here. Raises CallError where it does not fit into the context."""
        from musiccli.llm.local.engine import LocalEngine, Request

        if call.model not in self.engines:
            self.engines[call.model] = LocalEngine(call.model, self._say)
        engine = self.engines[call.model]
        prompt = call.text
        if call.mode != "completion":
            speaker = "user" if call.mode == "turn" else "assistant"
            prompt = engine.render(list(call.messages), speaker, call.reasoning)
        request = Request(
            prompt,
            call.max_tokens,
            temperature=1.0 if call.temperature is None else call.temperature,
            top_p=1.0 if call.top_p is None else call.top_p,
            seed=call.call_seed or 0,
            stop=call.stop,
        )
        completion = await engine.complete(request)
        return Reply(
            completion.text.strip(),
            completion.finish,
            completion.prompt_tokens,
            completion.completion_tokens,
            0.0,
        )

    def close(self) -> None:
        """End the engines."""
        for engine in self.engines.values():
            engine.close()
