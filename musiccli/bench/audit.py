"""What the contrast really teaches: leaks, equal replies, lengths, and, with a judge, how noisy the labels are.

Every contrasted reply of a rejected branch is held against the reply in the same place of the chosen branch. Turn 1 is
the one at which the branches part, where both answer the same message of the user; later replies answer messages that
differ. A judge who knows nothing of the contrast sees, at the fork, the whole conversation so far and the two replies;
later each branch's last message and its reply.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from musiccli.bench.stats import baselines
from musiccli.bench.stats import intervals as statistics
from musiccli.bench.stats.outcomes import Tally, accuracy, metric, prompt
from musiccli.core import records, text_checks, votes
from musiccli.core.errors import RecordError
from musiccli.core.records import Message, Record, first_divergence

if TYPE_CHECKING:
    import numpy as np

NAME = "audit"
CONTRAST = "contrast"  # stands where other metrics name their model
TEXT = (
    "leak",
    "names_instruction",
    "quotes_instruction",
    "refusal",
    "not_rewritten",
    "same",
    "identical",
    "rejected_shorter",
    "chosen_truncated",
    "rejected_truncated",
)  # shares of the contrasted turns
FLAWS = ("leak", "refusal", "not_rewritten", "same")  # what spoils a contrasted reply
WHOLE = "conversations"  # the subset of whole conversations; others are of turns
SIDES = ("chosen", "rejected")


def contrasted(record: Record) -> Record:
    """A branch, or a preference made of two, that says in `contrast` which replies answer which altered instruction."""
    paired = "messages" not in record
    (records.parse_preference if paired else records.parse_branch)(record)
    replies, entries = (
        record["rejected" if paired else "messages"],
        record.get("contrast", None if paired else []),
    )
    if not isinstance(entries, list):
        problem = "is missing; music simulate writes it" if entries is None else "should be a list"
        raise RecordError(problem, field="contrast", record=record)
    for number, entry in enumerate(entries):
        about = entry if isinstance(entry, dict) else {}
        index, field = about.get("message"), f"contrast[{number}]"
        if not isinstance(index, int) or not isinstance(about.get("instruction"), str):
            raise RecordError(
                "should hold a message's index and an instruction", field=field, record=record
            )
        if not 0 < index < len(replies) or replies[index]["role"] != "assistant":
            raise RecordError(
                "is not the index of an assistant's message",
                field=f"{field}.message",
                record=record,
            )
    cut = (paired and record.get("truncated")) or {}  # of a branch it has been checked
    if not (isinstance(cut, dict) and all(isinstance(at, list) for at in cut.values())):
        raise RecordError(
            "should name, for each side, the messages that were cut",
            field="truncated",
            record=record,
        )
    return record


class Audit:
    """Columns, one entry a contrasted turn, and what judges said of it."""

    def __init__(self) -> None:
        self.turns, self.prompts = array("i"), array("q")
        self.flags = {name: array("b") for name in TEXT}
        self.lengths = {side: array("l") for side in SIDES}
        self.tally, self.whole = (
            Tally(),
            Tally(),
        )  # content-blind guesses: a turn's, a whole conversation's
        self.said: dict[str, dict[int, str]] = {}  # by judge: a turn's outcome

    def read(self, pairs: Iterable[Record]) -> Iterator[Record]:
        """Each contrasted turn of preferences as a preference of its own, for a judge, once it is counted."""
        for pair in pairs:
            fork = first_divergence(pair["chosen"], pair["rejected"])
            self.whole.add({**pair, "scores": {}}, 0, {})
            for entry in pair["contrast"]:
                if entry["message"] < len(pair["chosen"]):
                    yield self._add(pair, entry, fork)

    def hear(self, judged: Iterable[Record], judges: Sequence[str]) -> None:
        """Keep what judges said of turns; of two equal conversations all say that they are."""
        for record in judged:
            said = votes.outcomes_by_judge(record["votes"]) or dict.fromkeys(judges, votes.TIE)
            for judge, outcome in said.items():
                self.said.setdefault(judge, {})[record["row"]] = outcome

    def _add(self, pair: Record, entry: dict, fork: int) -> Record:
        index, instruction = entry["message"], entry["instruction"]
        texts = {side: pair[side][index]["content"] for side in SIDES}
        measured = measure(
            texts["chosen"], texts["rejected"], instruction, pair["rejected"][index - 1]["content"]
        )
        cut = pair.get("truncated") or {}
        measured |= {f"{side}_truncated": index in cut.get(side, ()) for side in SIDES}
        for name in TEXT:
            self.flags[name].append(measured[name])
        for side in SIDES:
            self.lengths[side].append(len(texts[side]))
        shown = {side: exchange(pair[side], index, fork) for side in SIDES}
        replies = {side: pair[side][index : index + 1] for side in SIDES}
        self.tally.add({"id": pair["id"], **replies, "scores": {}}, 0, {}, prompt(pair))
        self.turns.append(max(0, index - fork) // 2 + 1)
        self.prompts.append(prompt(pair))
        about = {name: pair[name] for name in ("sample", "metadata") if name in pair}
        flaws = [name for name in FLAWS if measured[name]]
        return Record(
            {
                "id": f"{pair['id']}/{index}",
                **about,
                **shown,
                "flaws": flaws,
                "row": len(self.turns) - 1,
            },
            getattr(pair, "where", None),
        )


def measure(chosen: str, rejected: str, instruction: str, asked: str) -> dict[str, bool]:
    """What can be said of a contrasted reply without a judge; see TEXT."""
    names, quotes = (
        text_checks.names_an_instruction(rejected),
        text_checks.quotes(rejected, instruction),
    )
    return {
        "leak": names or quotes,
        "names_instruction": names,
        "quotes_instruction": quotes,
        "refusal": text_checks.refuses(rejected),
        "not_rewritten": text_checks.alike(instruction, asked),
        "same": text_checks.alike(chosen, rejected),
        "identical": chosen == rejected,
        "rejected_shorter": len(rejected) < len(chosen),
    }


def exchange(conversation: Sequence[Message], index: int, fork: int) -> list[Message]:
    """What a judge sees of a turn: all before it that both branches share, or, later, the user's message alone."""
    return list(conversation[0 if index <= fork else index - 1 : index + 1])


def audit(found: Audit, *, confidence: float = 0.95) -> Iterator[dict]:
    """Metric records: of all contrasted turns, of each turn from the fork, and of whole conversations.

    Of turns: the shares in TEXT; `length_ratio`, the median of rejected over chosen in characters; and the accuracy of
    the content-blind guesses, which should be near one half. Of each judge: how often it prefers either side in both
    orders, sees no difference (`tie`, `inconsistent`) or cannot be read; and `label_noise`, the share of labels that
    it would call wrong: those where it prefers the rejected side, and half of those where it sees no difference, for
    there a label is right as often as a coin. Intervals take turns of one prompt as dependent.
    """
    import numpy as np

    turns = np.asarray(found.turns)
    subsets = [("all", turns > 0), *((f"turn={turn}", turns == turn) for turn in np.unique(turns))]
    for subset, mask in subsets:
        if mask.any():
            yield from texts(found, subset, mask, confidence)
            yield from guesses(found.tally, subset, mask, confidence)
            for judge in found.said:
                yield from verdicts(found, judge, subset, mask, confidence)
    if len(found.whole):
        yield from guesses(found.whole, WHOLE, None, confidence)


def texts(found: Audit, subset: str, mask: "np.ndarray", confidence: float) -> Iterator[dict]:
    import numpy as np

    prompts = np.asarray(found.prompts)[mask]
    for name in TEXT:
        yield share(
            CONTRAST, subset, name, np.asarray(found.flags[name])[mask], prompts, confidence
        )
    chosen, rejected = (np.asarray(found.lengths[side])[mask] for side in SIDES)
    ratios = rejected / chosen
    interval = median_interval(ratios, prompts, confidence)
    yield metric(NAME, CONTRAST, subset, "length_ratio", np.median(ratios), interval, len(ratios))


def guesses(
    tally: Tally, subset: str, mask: "np.ndarray | None", confidence: float
) -> Iterator[dict]:
    """How often the longer and how often the shorter side is the chosen one; a draw is half."""
    for name in ("longest", "shortest", "longest-last-reply"):
        if subset == WHOLE or name != "longest-last-reply":
            yield accuracy(NAME, subset, tally.outcomes(baselines.PREFIX + name, mask), confidence)


def verdicts(
    found: Audit, judge: str, subset: str, mask: "np.ndarray", confidence: float
) -> Iterator[dict]:
    import numpy as np

    rows = [row for row in np.flatnonzero(mask) if int(row) in found.said[judge]]
    said = np.array([found.said[judge][int(row)] for row in rows])
    prompts = np.asarray(found.prompts)[rows]
    if not len(said):
        return
    yield share(judge, subset, "unreadable", said == votes.UNREADABLE, prompts, confidence)
    read = said != votes.UNREADABLE
    if not read.any():
        return
    said, prompts = said[read], prompts[read]
    for name, outcome in (
        ("prefers_chosen", "chosen"),
        ("prefers_rejected", "rejected"),
        ("tie", votes.TIE),
        ("inconsistent", votes.INCONSISTENT),
    ):
        yield share(judge, subset, name, said == outcome, prompts, confidence)
    noise = (said == "rejected") + 0.5 * np.isin(said, (votes.TIE, votes.INCONSISTENT))
    yield share(judge, subset, "label_noise", noise, prompts, confidence)


def share(
    model: str,
    subset: str,
    name: str,
    values: "np.ndarray",
    prompts: "np.ndarray",
    confidence: float,
) -> dict:
    """The metric record of a mean of values from 0 to 1."""
    return metric(
        NAME,
        model,
        subset,
        name,
        values.mean(),
        statistics.share_interval(values, prompts, confidence),
        len(values),
    )


def median_interval(
    values: "np.ndarray", clusters: "np.ndarray", confidence: float
) -> statistics.Interval:
    """Woodruff's interval of a median: the quantiles at the ends of the interval of the share that lies below it
    (Woodruff 1952, JASA 47:635), for as many values as the clustered ones are worth."""
    import numpy as np

    below = values < np.median(values)
    worth = statistics.effective_count(below, clusters)
    low, high = np.quantile(values, statistics.wilson(0.5, worth, confidence))
    return float(low), float(high)
