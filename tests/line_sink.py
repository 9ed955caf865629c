"""A sink of the class ``none``: appends a line for each record to a file that nobody asks.

Values that hold ``refused`` are refused for good; while a file ``out.dies`` stands beside it the
process ends behind the effect of an attempt, before its answer.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from wald.model import (
    Attempt,
    Capabilities,
    Delivered,
    Finding,
    LaneKey,
    Outcome,
    ProgressRow,
    Record,
    Rejected,
    RejectedRecord,
    ReplayClass,
)


class LineSink:
    capabilities = Capabilities(ReplayClass.NONE, max_records=100, max_bytes=1 << 20)

    def __init__(self, path: Path) -> None:
        self._path = path

    def read_row(self, key: LaneKey) -> ProgressRow | Outcome | None:
        del key
        return None

    def deliver(self, attempt: Attempt) -> Outcome:
        refused = [
            RejectedRecord(record.lsn, "refused", "not here")
            for record in attempt.records
            if b"refused" in record.value
        ]
        if refused:
            return Rejected(tuple(refused), "not here")
        with self._path.open("a") as lines:
            lines.writelines(f"{record.lsn}\n" for record in attempt.records)
            lines.flush()
            os.fsync(lines.fileno())
        if self._path.with_suffix(".dies").exists():
            os._exit(3)
        return Delivered()

    def probe(
        self, attempt: Attempt, records: Sequence[Record]
    ) -> Sequence[RejectedRecord] | Outcome:
        del attempt, records
        return ()

    def check(self) -> Sequence[Finding]:
        return ()

    def close(self) -> None:
        pass


def make(route: str, stream: str, settings: Mapping[str, object]) -> LineSink:
    del route, stream
    return LineSink(Path(str(settings["path"])))
