"""What a model is told when its message cannot be used: retry.md of a prompt set, a section a fault."""

import re
from collections.abc import Mapping

from musiccli import prompts


def load(which: str) -> dict[str, str]:
    """{fault, or "role fault": text} from the `## ` sections of retry.md; empty for a set that has none."""
    prompt = prompts.load(which, "retry")
    _, *sections = re.split(r"^##\s+", prompt.text if prompt else "", flags=re.MULTILINE)
    parts = (section.partition("\n") for section in sections)
    return {name.strip(): text.strip() for name, _, text in parts if text.strip()}


def text(feedback: Mapping[str, str], role: str, fault: str) -> str | None:
    """What to say about a role's fault; None where nothing is written about it."""
    return feedback.get(f"{role} {fault}") or feedback.get(fault)
