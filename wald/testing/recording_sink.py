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
    Partial,
    ProgressRow,
    Record,
    Rejected,
    RejectedRecord,
    ReplayClass,
    RowMoved,
    Severity,
    Systemic,
    TooLarge,
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
        wants_later: tells which records it does not take now.
        per_record: whether it answers for each record (``Partial``) and takes what it can; not
            at a target with a progress row.
        largest: so many records it takes at a time; None for any number.
        script: what the next attempts come to instead of taking effect; an exception is raised.
            ``Unknown`` means here that nothing took effect.
        lost_answers: so many attempts take effect and their answer is lost.
        now_s: the target's clock, by which it forgets ids (class ``window``).
        bodies: what it was sent, as bytes, of each attempt.
        changed: notified at each attempt.
    """

    records: list[Record] = field(default_factory=list)
    rows: dict[LaneKey, ProgressRow] = field(default_factory=dict)
    refuses: Callable[[Record], bool] = lambda _: False
    names: bool = True
    wants_later: Callable[[Record], bool] = lambda _: False
    per_record: bool = False
    largest: int | None = None
    script: deque[Script] = field(default_factory=deque)
    lost_answers: int = 0
    down: Systemic | None = None
    attempts: list[Attempt] = field(default_factory=list)
    probes: int = 0
    now_s: Callable[[], float] = lambda: 0.0
    bodies: list[bytes] = field(default_factory=list)
    remembers: dict[bytes, tuple[float, Outcome]] = field(default_factory=dict)  # by batch id
    highest: dict[LaneKey, Lsn] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def lsns(self) -> list[Lsn]:
        """What was applied, in order."""
        return [record.lsn for record in self.records]

    def wait_for(self, holds: Callable[[], bool], timeout_s: float = 60.0) -> bool:
        """Wait until something holds that attempts may change; False if it never did."""
        with self.changed:
            return self.changed.wait_for(holds, timeout_s)


class RecordingSink:
    """A ``Sink`` of a ``RecordingTarget``; of any replay class, ``transactional`` by default.

    It keeps what its class promises: ``monotone`` skips what is not above the highest record,
    ``keyed`` what it holds, ``window`` a batch whose id it remembers, ``none`` nothing.

    Args:
        target: the store; outlives the sink.
        replay: the class.
        max_records: of one batch.
        window_s: how long a target of the class ``window`` remembers a batch.
        window_batches: how many batches it remembers.
        encoder: name and version of what makes the bytes that are sent.
    """

    def __init__(
        self,
        target: RecordingTarget | None = None,
        *,
        replay: ReplayClass = ReplayClass.TRANSACTIONAL,
        max_records: int = 100_000,
        window_s: float | None = None,
        window_batches: int | None = None,
        encoder: str = "plain/1",
    ) -> None:
        self.target = target or RecordingTarget()
        self.capabilities = Capabilities(
            replay,
            max_records,
            1 << 30,
            window_s,
            window_batches,
            freezes=replay is ReplayClass.WINDOW,
            awaits_seal=replay is ReplayClass.TRANSACTIONAL,
        )
        self.encoder = encoder
        self.closed = False

    def read_row(self, key: LaneKey) -> ProgressRow | Outcome | None:
        """Return the lane's row."""
        return self.target.down or self.target.rows.get(key)

    def encode(self, attempt: Attempt) -> bytes:
        """Return the records as text, behind the name of the encoder."""
        lines = [b"%d:%s" % (record.lsn, record.value) for record in attempt.records]
        return b"\n".join([self.encoder.encode(), *lines])

    def deliver(self, attempt: Attempt) -> Outcome:
        """Apply the attempt, or what the script says."""
        with self.target.changed:
            self.target.attempts.append(attempt)
            self.target.bodies.append(
                self.encode(attempt) if attempt.body is None else attempt.body
            )
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
        if target.down or (target.largest is not None and len(attempt.records) > target.largest):
            return target.down or TooLarge(f"takes no more than {target.largest} records")
        outcome = self._known(attempt) or self._take(attempt)
        if target.lost_answers and not isinstance(outcome, Rejected):
            target.lost_answers -= 1
            return Unknown("the answer was lost")
        return outcome

    def _take(self, attempt: Attempt) -> Outcome:
        target = self.target
        refused = self._refused(attempt.records)
        later = [
            RejectedRecord(record.lsn, "busy", "this target takes it later")
            for record in attempt.records
            if target.wants_later(record) and not target.refuses(record)
        ]
        if (refused or later) and (self._is_transactional or not target.per_record):
            return Rejected(tuple(refused) if target.names else (), "refused")
        named = {item.lsn for item in [*refused, *later]}
        attempt.await_seal()
        self._apply(attempt, [record for record in attempt.records if record.lsn not in named])
        target.rows[attempt.key] = attempt.row
        part = Partial(tuple(refused), tuple(later), f"{len(named)} not taken")
        outcome = part if named else Delivered()
        target.remembers[attempt.row.rev_id] = (target.now_s(), outcome)
        return outcome

    def _apply(self, attempt: Attempt, records: Sequence[Record]) -> None:
        target = self.target
        match self.capabilities.replay:
            case ReplayClass.MONOTONE:
                highest = target.highest.get(attempt.key, 0)
                records = [record for record in records if record.lsn > highest]
                target.highest[attempt.key] = max([highest, *[each.lsn for each in records]])
            case ReplayClass.KEYED:
                held = set(target.lsns)
                records = [record for record in records if record.lsn not in held]
            case _:
                pass
        target.records.extend(records)

    def _known(self, attempt: Attempt) -> Outcome | None:
        """Return what the target said of the batch before, if it remembers it."""
        able, target = self.capabilities, self.target
        if able.replay is not ReplayClass.WINDOW or attempt.row.rev_id not in target.remembers:
            return None
        since_s, outcome = target.remembers[attempt.row.rev_id]
        newer = list(reversed(target.remembers)).index(attempt.row.rev_id)
        in_number = able.window_batches is None or newer < able.window_batches
        in_time = able.window_s is None or target.now_s() - since_s <= able.window_s
        return outcome if in_number and in_time else None

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
