"""What happens to bad records."""

import contextlib
from collections.abc import Callable, Iterator

from musiccli.core.errors import RecordError
from musiccli.core.jsonl.writer import open_output
from musiccli.core.records import Record

REPORTED = 10  # bad records that are reported one by one


class Rejects:
    """Counts, reports and keeps bad records, or ends the run at the first one.

    Attributes:
        skip: whether the run goes on after a bad record.
        count: how many bad records there were so far.
    """

    def __init__(
        self,
        *,
        skip: bool = False,
        path: str | None = None,
        report: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Write bad records to the file `path`, and call `report` with the first few errors."""
        self.skip, self.count = skip, 0
        self._report = report
        self._output = open_output(path) if path else None

    @contextlib.contextmanager
    def guard(self, record: Record | None = None) -> Iterator[None]:
        """Count a RecordError within this context if `skip` is set, and raise it otherwise."""
        try:
            yield
        except RecordError as error:
            error.where = error.where or getattr(record, "where", None)
            error.record = error.record if error.record is not None else record
            if not self.skip:
                raise
            self.add(error, error.record)

    def add(self, error: Exception, record: object = None) -> None:
        """Count one bad record, whatever `skip` is. `record` may also be a line's text."""
        self.count += 1
        if self.count <= REPORTED:
            self._report(str(error))
        elif self.count == REPORTED + 1:
            self._report("more bad records follow; they are counted, and kept by `rejects` FILE")
        if self._output:
            fields = dict(record) if isinstance(record, dict) else {"line": record}
            self._output.write(fields | {"error": str(error)})

    def close(self) -> None:
        """Complete the file with the bad records."""
        if self._output:
            self._output.close()

    def discard(self) -> None:
        """Give up the file: another process writes it."""
        if self._output:
            self._output.discard()
