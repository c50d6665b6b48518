"""Candidates: several replies to one prompt, some right and some wrong."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from musiccli.core.messages import Message
from musiccli.core.records import Record
from musiccli.sample.columns import make_record


@dataclass(frozen=True)
class Candidate:
    """One reply, as a whole conversation, whether it is right, and what labels it alone."""

    messages: list[Message]
    right: bool
    labels: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidates:
    """The candidates of one row, and what their records share.

    Attributes:
        candidates: in the order of their numbers.
        id: the id of the prompt.
        labels: metadata.
        texts: columns that do not become metadata.
    """

    candidates: Sequence[Candidate]
    id: str
    labels: dict[str, Any] = field(default_factory=dict)
    texts: Collection[str] = ()


def candidate_conversations(
    row: Record, source: str, prompt: Candidates
) -> Iterator[dict[str, Any]]:
    """Each candidate as a conversation. `correct` in the metadata says whether it is right.

    `sample` numbers them from 0.
    """
    for sample, candidate in enumerate(prompt.candidates):
        labels = {**prompt.labels, **candidate.labels, "correct": candidate.right}
        sides = {"messages": candidate.messages}
        record = make_record(row, source, sides, labels, id=prompt.id, texts=prompt.texts)
        yield record | {"sample": sample}


def candidate_pairs(row: Record, source: str, prompt: Candidates) -> Iterator[dict[str, Any]]:
    """Every right candidate over every wrong one.

    `candidates` in the metadata holds the number of each among its kind, counted from 0.
    """
    right, wrong = (
        [candidate for candidate in prompt.candidates if candidate.right is kind]
        for kind in (True, False)
    )
    for (first, chosen), (second, rejected) in product(enumerate(right), enumerate(wrong)):
        yield make_record(
            row,
            source,
            {"chosen": chosen.messages, "rejected": rejected.messages},
            {
                **prompt.labels,
                "candidates": [first, second],
                **{f"chosen_{name}": label for name, label in chosen.labels.items()},
                **{f"rejected_{name}": label for name, label in rejected.labels.items()},
            },
            id=f"{prompt.id}/{first}-{second}",
            texts=prompt.texts,
        )
