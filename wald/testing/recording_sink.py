"""A sink that records what it is given, keeps a progress row, and fails as it is told."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from wald.model import (
    Attempt,
    Capabilities,
    Delivered,
    Finding,
    LaneKey,
    Lsn,
    Outcome,
    ProgressRow,
    Record,
    Rejected,
    RejectedRecord,
    ReplayClass,
    RowMoved,
    Severity,
    Systemic,
    Unknown,
)

Script: TypeAlias = Outcome | Exception


@dataclass(slots=True)
class RecordingTarget:
    """The store behind recording sinks: outlives them, as a database does.

    Attributes:
        records: what was applied, in order.
        rows: the progress rows.
        refuses: tells which records it refuses for good.
        names: whether a refusal names its records.
        script: what the next attempts come to instead of taking effect; an exception is raised.
            ``Unknown`` means here that nothing took effect.
        lost_answers: so many attempts take effect and their answer is lost.
        changed: notified at each attempt.
    """

    records: list[Record] = field(default_factory=list)
    rows: dict[LaneKey, ProgressRow] = field(default_factory=dict)
    refuses: Callable[[Record], bool] = lambda _: False
    names: bool = True
    script: deque[Script] = field(default_factory=deque)
    lost_answers: int = 0
    down: Systemic | None = None
    attempts: list[Attempt] = field(default_factory=list)
    probes: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def lsns(self) -> list[Lsn]:
        """What was applied, in order."""
        return [record.lsn for record in self.records]

    def wait_for(self, holds: Callable[[], bool], timeout_s: float = 10.0) -> bool:
        """Wait until something holds that attempts may change; False if it never did."""
        with self.changed:
            return self.changed.wait_for(holds, timeout_s)


class RecordingSink:
    """A ``Sink`` of a ``RecordingTarget``; of any replay class, ``transactional`` by default."""

    def __init__(
        self,
        target: RecordingTarget | None = None,
        *,
        replay: ReplayClass = ReplayClass.TRANSACTIONAL,
        max_records: int = 100_000,
    ) -> None:
        self.target = target or RecordingTarget()
        self.capabilities = Capabilities(replay, max_records, 1 << 30)
        self.closed = False

    def read_row(self, key: LaneKey) -> ProgressRow | Outcome | None:
        """Return the lane's row."""
        return self.target.down or self.target.rows.get(key)

    def deliver(self, attempt: Attempt) -> Outcome:
        """Apply the attempt, or what the script says."""
        with self.target.changed:
            self.target.attempts.append(attempt)
            self.target.changed.notify_all()
            return self._outcome(attempt)

    def _outcome(self, attempt: Attempt) -> Outcome:
        target = self.target
        if target.script:
            scripted = target.script.popleft()
            if isinstance(scripted, Exception):
                raise scripted
            return scripted
        row = target.rows.get(attempt.key)
        if self._is_transactional and not _continues(row, attempt):
            return RowMoved(row)
        refused = self._refused(attempt.records)
        if target.down or refused:
            return target.down or Rejected(tuple(refused) if target.names else (), "refused")
        target.records.extend(attempt.records)
        target.rows[attempt.key] = attempt.row
        if target.lost_answers:
            target.lost_answers -= 1
            return Unknown("the answer was lost")
        return Delivered()

    def probe(
        self, attempt: Attempt, records: Sequence[Record]
    ) -> Sequence[RejectedRecord] | Outcome:
        """Say what would be refused."""
        del attempt
        self.target.probes += 1
        refused = self._refused(records)
        if self.target.down:
            return self.target.down
        if refused and not self.target.names:
            return Rejected((), "refused")
        return refused

    def check(self) -> Sequence[Finding]:
        """Find nothing wrong."""
        return [Finding(Severity.OK, "recording", "records what it is given")]

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True

    @property
    def _is_transactional(self) -> bool:
        return self.capabilities.replay is ReplayClass.TRANSACTIONAL

    def _refused(self, records: Iterable[Record]) -> list[RejectedRecord]:
        return [
            RejectedRecord(record.lsn, "refused", "this target refuses it")
            for record in records
            if self.target.refuses(record)
        ]


def _continues(row: ProgressRow | None, attempt: Attempt) -> bool:
    """Tell whether an attempt moves the row: from (n, prev, owner) to n + 1."""
    if row is None:
        return attempt.row.batch_no == 1
    return (row.batch_no, row.rev_id, row.owner) == attempt.stands_on
