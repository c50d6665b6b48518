"""music bench report pairs.jsonl --model rm --html rm.html"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from musiccli.cli.options import SEED
from musiccli.cli.paths import MODEL_READ, WRITTEN
from musiccli.cli.run import Run
from musiccli.core import records
from musiccli.core.records import Record
from musiccli.sample.config import Emit, SampleConfig
from musiccli.score.config import ScoreConfig

if TYPE_CHECKING:
    from musiccli.bench.stats.outcomes import MetricRecord
    from musiccli.reward_model.checkpoint import RewardModel

MODEL = Annotated[
    str,
    typer.Option(
        metavar="DIR|ID",
        help="The reward model: a folder that music train wrote, or any sequence classifier with "
        "one label from the hub.",
    ),
    MODEL_READ,
]
PAGE = Annotated[
    str,
    typer.Option(metavar="FILE", help="The page to put beside the model."),
    WRITTEN,
]


def report(run: Run, model: MODEL, html: PAGE, seed: SEED = SampleConfig.seed) -> None:
    """Measure one reward model on labeled pairs, and write a page to put beside its release.

    \b
    music sample votes.jsonl --emit pairs | music bench report --model rm --html rm.html

    The model scores the pairs, the pairs by their last exchange alone, and corruptions of them.
    The page says what the model is good for, what it reads and where it fails, with tables, the
    worst records and how to do it again. The metric records are those of agreement and
    sensitivity.
    """
    from musiccli.cli.report import check_folders, save_model_page

    check_folders({"--html": html})
    from musiccli.bench import agreement, sensitivity
    from musiccli.bench.model_report import findings
    from musiccli.bench.report.worst_records import WorstRecords

    name = model.rstrip("/").rsplit("/", 1)[-1]
    config = agreement.AgreementConfig(seed=seed)
    pairs = list(run.read(check_pair))
    from musiccli.reward_model.checkpoint import load

    reward_model = load(model, run.say)
    worst = WorstRecords((name,))
    of_pairs = list(
        agreement.metrics(with_scores(run, pairs, reward_model, name), config, run.stats, worst)
    )
    corrupted = corruptions(run, pairs, seed)
    of_corruptions: list[MetricRecord] = []
    if corrupted:
        of_corruptions = list(
            sensitivity.metrics(
                with_scores(run, corrupted, reward_model, name), config, run.stats, WorstRecords()
            )
        )
    run.write([*of_pairs, *of_corruptions])
    save_model_page(
        run,
        html,
        name,
        findings(of_pairs, of_corruptions, name),
        [(agreement.BENCHMARK, of_pairs), (sensitivity.BENCHMARK, of_corruptions)],
        config,
        worst,
    )


def check_pair(record: Record) -> Record:
    """Check a preference, or a comparison that has a winner."""
    if records.record_kind(record) == "preference":
        return records.parse_preference(record)
    return records.parse_judged(record)


def corruptions(run: Run, pairs: Iterable[Record], seed: int) -> list[Record]:
    """Corrupted copies of the better sides; none where all have fewer than two turns."""
    from musiccli.sample.sampler import sample

    config = SampleConfig(emit=Emit.corruptions, seed=seed)
    copies = (("pairs", Record(pair)) for pair in pairs)
    return [Record(result) for result in sample(copies, config, stats=run.stats)]


def with_scores(run: Run, pairs: Iterable[Record], model: "RewardModel", name: str) -> list[Record]:
    """The pairs with the model's scores of whole conversations and of their last exchange."""
    from musiccli.score.scorer import score

    results: Iterable[dict[str, Any]] = pairs
    for config in (ScoreConfig(), ScoreConfig(last_only=True)):
        full_name = name + "/last-only" * config.last_only
        results = score(map(Record, results), model, full_name, config, stats=run.stats)
    return [Record(result) for result in results]
