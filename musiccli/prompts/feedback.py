"""The feedback to a model whose message has a fault: the sections of a prompt set's retry.md."""

from collections.abc import Mapping

from musiccli import prompts


def load(prompt_set: str) -> dict[str, str]:
    """The texts below the `## ` headings of retry.md, by heading: "FAULT" or "ROLE FAULT".

    Empty where the set has no retry.md.
    """
    return {heading: part.text for heading, part in prompts.sections(prompt_set, "retry").items()}


def for_fault(texts: Mapping[str, str], role: str, fault: str) -> str | None:
    """The text for this role's fault, else for this fault of any role, else None."""
    return texts.get(f"{role} {fault}") or texts.get(fault)
