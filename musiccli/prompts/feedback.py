"""What a model is told when its message has a fault: retry.md of a prompt set, a section a fault."""

import re
from collections.abc import Mapping

from musiccli import prompts


def load(prompt_set: str) -> dict[str, str]:
    """{fault, or "role fault": text} from the `## ` sections of retry.md; empty where there is none."""
    prompt = prompts.load(prompt_set, "retry")
    _, *sections = re.split(r"^##\s+", prompt.text if prompt else "", flags=re.MULTILINE)
    parts = (section.partition("\n") for section in sections)
    return {name.strip(): text.strip() for name, _, text in parts if text.strip()}


def for_fault(sections: Mapping[str, str], role: str, fault: str) -> str | None:
    """The text about a role's fault, or about the fault in any role; None where there is neither."""
    return sections.get(f"{role} {fault}") or sections.get(fault)
