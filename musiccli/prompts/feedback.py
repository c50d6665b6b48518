"""The feedback to a model whose message has a fault: the sections of a prompt set's retry.md."""

import re
from collections.abc import Mapping

from musiccli import prompts


def load(prompt_set: str) -> dict[str, str]:
    """The texts below the `## ` headings of retry.md, by heading: "FAULT" or "ROLE FAULT".

    Empty where the set has no retry.md.
    """
    prompt = prompts.load(prompt_set, "retry")
    _, *sections = re.split(r"^##\s+", prompt.text if prompt else "", flags=re.MULTILINE)
    parts = (section.partition("\n") for section in sections)
    return {heading.strip(): text.strip() for heading, _, text in parts if text.strip()}


def for_fault(texts: Mapping[str, str], role: str, fault: str) -> str | None:
    """The text for this role's fault, else for this fault of any role, else None."""
    return texts.get(f"{role} {fault}") or texts.get(fault)
