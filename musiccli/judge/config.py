"""How `music judge` asks its judges: every default once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class JudgeConfig:
    """Which models judge, by which prompt, and how much they may write.

    Attributes:
        judges: models, as litellm names them or local/NAME; several form a panel.
        prompts: a prompt set's name, or a folder.
        max_tokens: the longest explanation and verdict.
        temperature: 0, so that the same question gets the same verdict.
        seed: sent with every call; the marks around conversations follow from it.
    """

    judges: tuple[str, ...] = ("local/smollm2",)
    prompts: str = "paper"
    max_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0
