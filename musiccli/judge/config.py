"""The options of `music judge` with their defaults."""

from dataclasses import dataclass


@dataclass(frozen=True)
class JudgeConfig:
    """Which models judge, by which prompt, and how much they may write.

    Attributes:
        judges: models, as litellm names them or local/NAME. Several of them decide by majority.
        prompts: a prompt set's name, or a folder.
        max_tokens: the token limit of a reply, an explanation and a verdict.
        temperature: 0, so that the same question gets the same verdict.
        seed: sent with every call. The marks before the turns also depend on it.
    """

    judges: tuple[str, ...] = ("local/smollm2",)
    prompts: str = "paper"
    max_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0
