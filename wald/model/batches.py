"""Lanes and their batches: what ledger and target remember of them; dead letters."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from wald.model.records import NO_ANCHOR, NO_REVISION, Anchor, Lsn, RevisionId, RouteId, StreamId


class LaneKey(NamedTuple):
    """What a target remembers a lane by."""

    log_id: bytes  # 16 bytes
    route_id: RouteId
    layout: int
    lane: int


@dataclass(frozen=True, slots=True)
class ProgressRow:
    """What a transactional target remembers of a lane: the end of its one chain."""

    batch_no: int
    rev_id: RevisionId
    hi_lsn: Lsn
    anchor: Anchor
    owner: int  # 64 random bits kept beside the log's identity
    dead_rev: RevisionId  # the last revision of the chain that excluded or redrove a record


@dataclass(frozen=True, slots=True)
class Revision:
    """What a manifest freezes: which records of lo..hi go to the target under this id.

    Attributes:
        rev_id: random, so that no two histories share one.
        hi: the last LSN of the batch; lower than that of the revision before if it was split.
        excluded: refused for good: dead letters once this revision takes effect.
        encoder: what encoded the frozen body, with its version; empty if nothing is frozen.
        digest: SHA-256 of the body in ``batches/``; empty if nothing is frozen.
        settled: took effect in an attempt of an earlier revision; not sent again.
        superseded: so many records are covered by a newer one of their key.
        redriven: dead letters that are sent again; the batch has no other records.
        retries: so many attempts in a row left records that the target wants sent again.
        boot_id, boot_clock_ns, time_ns: when its first attempt was counted that may have taken
            effect: a window begins here.
        batches: so many batches were sent to the sink then, by all lanes of its routes.
    """

    rev_id: RevisionId
    hi: Lsn
    excluded: tuple[Lsn, ...] = ()
    encoder: str = ""
    digest: bytes = b""
    settled: tuple[Lsn, ...] = ()
    superseded: int = 0
    redriven: tuple[Lsn, ...] = ()
    retries: int = 0
    boot_id: str = ""
    boot_clock_ns: int = 0
    time_ns: int = 0
    batches: int = 0


class Decision(StrEnum):
    """What a person says of a batch of which nobody knows whether it took effect."""

    DELIVERED = "delivered"
    NOT_DELIVERED = "not-delivered"
    DEAD_LETTER = "dead-letter"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A sealed batch of one lane; durable, with ``attempts`` raised, before it is attempted.

    A batch has number n + 1 and begins behind the checkpoint. A redrive is a batch of the same
    chain: its ``lo`` and ``hi`` are the checkpoint's LSN, and it sends dead letters again.

    Attributes:
        crashes: so many attempts in a row ended without a verdict: the process died in them.
        held: why it waits for a person; empty if it does not.
        traces: trace contexts of sampled records, as (LSN, traceparent).
        cleared: of attempts up to this number it is known what took effect: the batch is *in
            doubt* while ``attempts`` is higher.
        decision: a ``Decision`` that its lane has yet to carry out; empty if there is none.
    """

    number: int
    lo: Lsn
    prev_rev: RevisionId
    attempts: int
    revisions: tuple[Revision, ...]
    records: int
    sealed_time_ns: int
    boot_id: str = ""
    boot_clock_ns: int = 0
    attempt_time_ns: int = 0
    last_error: str = ""
    crashes: int = 0
    held: str = ""
    traces: tuple[tuple[Lsn, str], ...] = ()
    cleared: int = 0
    decision: str = ""

    @property
    def current(self) -> Revision:
        """The revision that the next attempt sends."""
        return self.revisions[-1]

    @property
    def is_redrive(self) -> bool:
        """Whether it sends dead letters again."""
        return bool(self.revisions) and bool(self.revisions[0].redriven)

    def revision(self, rev_id: RevisionId) -> Revision:
        """Return one of its revisions."""
        return next(item for item in self.revisions if item.rev_id == rev_id)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Up to where a lane is finished, and what became of its records so far.

    accepted = ``delivered`` (of these, ``superseded``) + pending + ``dead_letters`` + ``purged``.
    """

    batch_no: int = 0
    rev_id: RevisionId = NO_REVISION
    lsn: Lsn = 0
    anchor: Anchor = NO_ANCHOR
    dead_rev: RevisionId = NO_REVISION
    delivered: int = 0
    dead_letters: int = 0
    superseded: int = 0
    purged: int = 0


class LaneProgress(NamedTuple):
    """What the ledger holds of a lane."""

    checkpoint: Checkpoint
    manifest: Manifest | None


@dataclass(frozen=True, slots=True)
class AttemptStamp:
    """When an attempt was begun, by three clocks; durable before the attempt.

    Attributes:
        crashes: how many attempts before it ended without a verdict, in a row.
        cleared: of attempts up to this number it is known what took effect.
        begins: whether the attempt follows; a revision that waits counts none yet.
        batches: so many batches were sent to the sink before.
        records: so many the batch has from now on, where it was cut.
    """

    boot_id: str
    boot_clock_ns: int
    time_ns: int
    last_error: str = ""
    crashes: int = 0
    cleared: int = 0
    begins: bool = True
    batches: int = 0
    records: int | None = None


class Mark(NamedTuple):
    """What T11 changes of an open batch; a field at its default changes nothing.

    Attributes:
        held: why it waits for a person from now on.
        decision: what a person says of a held one, which is held no more.
        cleared: of attempts up to this number it is known what took effect.
    """

    held: str = ""
    decision: Decision | None = None
    cleared: int = 0


@dataclass(frozen=True, slots=True)
class RouteBirth:
    """What the ledger holds of a route from T1 on. ``owner`` is who may touch its rows."""

    route_id: RouteId
    name: str
    stream_id: StreamId
    stream: str
    sink: str
    birth_lsn: Lsn
    owner: int


@dataclass(frozen=True, slots=True)
class FinishedBatch:
    """A line of a lane's history: what became of a batch. No rule depends on it.

    Of a redrive ``asked`` is what it was to send again, ``redriven`` what took effect; its ``lo``
    and ``hi`` are where the chain stood.
    """

    number: int
    rev_id: RevisionId
    lo: Lsn
    hi: Lsn
    records: int
    dead_letters: int
    attempts: int
    sealed_time_ns: int
    finished_time_ns: int
    superseded: int = 0
    redriven: tuple[Lsn, ...] = ()
    last_error: str = ""
    traces: tuple[tuple[Lsn, str], ...] = ()
    asked: tuple[Lsn, ...] = ()


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record set aside, with the reason; its body lies in the dead log at (file, offset).

    A damaged range of the log is one dead letter without a body (``dead_file`` 0) that stands
    for ``records`` records up to ``through_lsn``.
    """

    route: str
    lsn: Lsn
    code: str
    message: str
    batch_no: int
    rev_id: RevisionId
    attempts: int
    time_ns: int
    dead_file: int = 0
    dead_offset: int = 0
    records: int = 1
    through_lsn: Lsn = 0
    layout: int = 0
    lane: int = 0
    key: str | bytes | None = None
    record_time_ns: int = 0
    producer: str = ""
    trace: str = ""


class AskedRedrive(NamedTuple):
    """A dead letter that is to be sent again.

    Attributes:
        letter: the dead letter.
        transform: what it goes through, "module:function"; empty for nothing.
        forced: a person wants it though it may replace a newer record.
    """

    letter: DeadLetter
    transform: str
    forced: bool = False


class Purged(NamedTuple):
    """What a purge did: letters, the records they stood for, letters that are being sent again."""

    letters: int
    records: int
    spared: int
