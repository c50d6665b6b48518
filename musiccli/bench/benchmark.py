"""What a benchmark is. Each file of this folder that sets BENCHMARK adds one to `music bench`.

Such a file holds everything about its benchmark: what it reads, its formula and where that comes
from, its tables and its plot. The command line finds the files by itself, and imports all of them
for any command of `music bench`. So numpy, scipy and matplotlib are imported inside functions.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from musiccli.bench.config import BenchConfig
from musiccli.bench.report.notes import comparison_notes
from musiccli.bench.report.tables import Table, comparison_tables
from musiccli.bench.stats.outcomes import MetricRecord
from musiccli.core.errors import InputError
from musiccli.core.records import Record, content_id, lookup, side_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Config = TypeVar("Config", bound=BenchConfig)
Rows = Sequence[MetricRecord]


def option(default: Any, *names: str, metavar: str, help: str) -> Any:
    """A field of a benchmark's config that is an option of its command.

    Args:
        default: a tuple, for an option that may be repeated, or None.
        names: the option as people type it; left out, it follows from the field's name.
        metavar: what help calls the option's value.
        help: one sentence, and what leaving the option out means.
    """
    return field(default=default, metadata={"names": names, "metavar": metavar, "help": help})


def one_panel(rows: Rows) -> list[Rows]:
    """All metric records in one panel of the figure."""
    return [rows]


class FieldCheck:
    """Refuses fields that a user named and that no record has."""

    def __init__(self, parameter: str, fields: Iterable[str]):
        self._parameter, self._missing = parameter, dict.fromkeys(fields)
        self._read_any = False

    def add(self, record: Record) -> None:
        """Look for the fields in one record."""
        self._read_any = True
        for field_name in [*self._missing]:
            if lookup(record, field_name) is not None:
                del self._missing[field_name]

    def check(self) -> None:
        """Raise InputError where records were read and none has a value in one of the fields."""
        if self._read_any and self._missing:
            raise InputError(f"`{self._parameter}` {next(iter(self._missing))}: no record has it")


def conversations(record: Mapping[str, Any]) -> object:
    """All conversations of a record: what another model must be measured on to be compared."""
    return [record.get(side) for side in side_names(record)]


class DataDigest:
    """A digest of the records that a run measures, whatever their order and their scores."""

    def __init__(self, measured: Callable[[Mapping[str, Any]], object]) -> None:
        """Take no record yet. `measured` gives what of a record is digested."""
        self._measured, self._sum = measured, 0

    def watch(self, records: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
        """The records as they are. They are digested as they pass."""
        for record in records:
            self._sum += int(content_id(self._measured(record)), 16)
            yield record

    def __str__(self) -> str:
        """16 hex digits."""
        return f"{self._sum % (1 << 64):016x}"


@dataclass(frozen=True)
class Benchmark(Generic[Config]):
    """One benchmark.

    Attributes:
        name: the command's name, and `benchmark` of its metric records.
        title: its name in tables and figures.
        summary: what it measures, for help: one paragraph or several.
        example: one or more pipelines for help, a line each.
        parse: checks a record that was read, and returns it. Raises RecordError.
        metrics: called as `metrics(records, config, stats, worst)`; yields metric records.
        tables: makes the tables of the metric records, at least one. Those without lines are not
            shown.
        notes: sentences on what the tables do not show.
        plot: draws the metric records of one panel.
        panels: divides the metric records among the panels of the figure.
        config: the class of the config. Its fields made by `option` are options of the command.
        options: which of `models`, `bootstrap` and `seed` are options of the command.
        unique_ids: False where several records of one input may have the same id.
        measured: what of a record tells its data from other data, in the metric records' `data`;
            None for a benchmark whose records have none.
        reads_branches: branches are joined to preferences before `metrics` sees them.
        asks_judges: `metrics` also takes `judge_pairs`, a function that adds votes to preferences
            or None, and the command has the options of music judge.
    """

    name: str
    title: str
    summary: str
    example: str
    parse: Callable[[Record, Config], Record]
    metrics: Callable[..., Iterator[MetricRecord]]
    tables: Callable[[Rows, Config], list[Table]]
    plot: "Callable[[Axes, Rows], None]"
    notes: Callable[[Rows], list[str]] = lambda rows: []
    panels: Callable[[Rows], list[Rows]] = one_panel
    config: type[Config] = BenchConfig  # type: ignore[assignment]  # a TypeVar takes no default
    options: tuple[str, ...] = ()
    unique_ids: bool = True
    measured: Callable[[Mapping[str, Any]], object] | None = conversations
    reads_branches: bool = False
    asks_judges: bool = False

    def all_tables(self, rows: Rows, config: Config) -> list[Table]:
        """The tables that have lines; of many models their comparisons stand behind the first."""
        first, *rest = self.tables(rows, config) if rows else [Table("", [], [])]
        tables = [first, *comparison_tables(rows, config.confidence), *rest]
        return [table for table in tables if table.cells]

    def all_notes(self, rows: Rows) -> list[str]:
        """The notes, and the comparisons of few models."""
        return [*self.notes(rows), *comparison_notes(rows)]
