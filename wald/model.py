"""Frozen values that travel between the parts: identifiers, records, batches, outcomes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum, StrEnum
from typing import NamedTuple, TypeAlias

Lsn: TypeAlias = int  # log sequence number: orders the records, is never used twice; 0 is "none"
StreamId: TypeAlias = int  # durable, u32, given by ingest; 0 is "none"
RouteId: TypeAlias = int  # durable, u32, given by ingest; 0 is "none"
RevisionId: TypeAlias = bytes  # 16 random bytes

NO_REVISION: RevisionId = bytes(16)  # the prev_rev of a lane's first batch
REVISION_BYTES = 16


class Content(IntEnum):
    """How a record's value is encoded: the content code."""

    BYTES = 0
    MSGPACK = 1
    JSON = 2


class Record(NamedTuple):
    """One record as the drainer and the sinks see it.

    Attributes:
        lsn: its log sequence number.
        time_ns: wall clock of the commit of its group, nanoseconds since the epoch.
        content: a ``Content`` code (a plain int, for speed).
        value: the encoded value, as the producer sent it.
        key: text or bytes, at most ``limits.KEY_MAX_BYTES`` encoded.
        headers: names to text or bytes.
        dedup_id: the producer's own identifier of the record.
    """

    lsn: Lsn
    time_ns: int
    content: int
    value: bytes
    key: str | bytes | None = None
    headers: Mapping[str, str | bytes] | None = None
    dedup_id: str | bytes | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """The answer to an append: what was promised, and where the record stands."""

    stream: str
    lsn: Lsn
    level: str
    durable_lsn: Lsn


@dataclass(frozen=True, slots=True)
class Refused:
    """One refused record of a request: its index in the request, a stable code, why, what to do."""

    index: int
    code: str
    message: str
    hint: str = ""


class Frontier(NamedTuple):
    """The end of what is known to be durable.

    A position and not an LSN alone: an abandoned segment may still show a block (a ghost) whose
    LSN lies below it.
    """

    segment: int
    end_bytes: int  # offset just behind the last durable block of that segment
    lsn: Lsn  # the highest durable LSN; 0 for an empty log


class Anchor(NamedTuple):
    """What tells one history of the log from another: of the block that holds an LSN."""

    payload_crc: int
    commit_time_ns: int


# --- delivery -----------------------------------------------------------------------------------


class LaneKey(NamedTuple):
    """What a target remembers a lane by."""

    log_id: bytes  # 16 bytes
    route_id: RouteId
    layout: int
    lane: int


@dataclass(frozen=True, slots=True)
class ProgressRow:
    """What a transactional target remembers of a lane (protocols: one chain per lane)."""

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


NO_ANCHOR = Anchor(0, 0)


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
    """

    boot_id: str
    boot_clock_ns: int
    time_ns: int
    last_error: str = ""
    crashes: int = 0
    cleared: int = 0
    begins: bool = True
    batches: int = 0


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
    """A line of a lane's history: what became of a batch. No rule depends on it."""

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


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try to make a revision take effect.

    At a transactional target the sink moves the row from (number - 1, prev_rev, owner) to ``row``
    and applies ``records``, in one transaction of the target.

    Attributes:
        key: the lane.
        stream: the stream's name.
        prev_rev: the revision that the row must hold before.
        row: the row after it; ``row.rev_id`` names this batch for ever.
        records: what is sent, in order.
        body: the frozen request of a sink that freezes it (``Capabilities.freezes``), else None.
        number: how many attempts of this batch were counted, this one among them; from 1.
        timeout_s: how long it may take; None for the sink's own bound.
        from_owner: whose row is moved, where a person took the lane over; None for ``row.owner``.
    """

    key: LaneKey
    stream: str
    prev_rev: RevisionId
    row: ProgressRow
    records: Sequence[Record]
    body: bytes | None = None
    number: int = 1
    timeout_s: float | None = None
    from_owner: int | None = None

    @property
    def stands_on(self) -> tuple[int, RevisionId, int]:
        """Number, revision and owner that the row must have before; number 0: there is none."""
        owner = self.row.owner if self.from_owner is None else self.from_owner
        return self.row.batch_no - 1, self.prev_rev, owner


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """A record that the target refuses for good, with the target's own words."""

    lsn: Lsn
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Delivered:
    """The attempt took effect. ``notes`` counts what the sink ignored on the way, by reason."""

    notes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rejected:
    """The target refuses records for good, and nothing of the attempt took effect.

    An empty ``records`` means that the target did not name them: bisect. ``code`` is then that of
    each record that is found.
    """

    records: tuple[RejectedRecord, ...]
    message: str
    code: str = "rejected"


@dataclass(frozen=True, slots=True)
class Partial:
    """The target answered for each record: those that are not named took effect.

    Only of targets without transactions.

    Attributes:
        rejected: refused for good.
        retry: not taken now; the same record may be taken later.
        message: what is said of the attempt as a whole.
        retry_after_s: what the target asks for.
    """

    rejected: tuple[RejectedRecord, ...] = ()
    retry: tuple[RejectedRecord, ...] = ()
    message: str = ""
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The batch is too large for the target, which took nothing of it: less at a time."""

    message: str


class SystemicKind(Enum):
    """Why a target as a whole cannot take anything now."""

    UNREACHABLE = "unreachable"
    BUSY = "busy"
    FULL = "full"
    AUTHENTICATION = "authentication"
    CONFIGURATION = "configuration"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class Systemic:
    """The target as a whole cannot take it; no record is to blame; nothing took effect."""

    kind: SystemicKind
    message: str
    hint: str = ""
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """The commit was sent and not answered: it may or may not have taken effect."""

    message: str


@dataclass(frozen=True, slots=True)
class RowMoved:
    """The progress row is not the one the attempt continues; nothing took effect."""

    row: ProgressRow | None


Outcome: TypeAlias = Delivered | Partial | Rejected | TooLarge | Systemic | Unknown | RowMoved


class ReplayClass(Enum):
    """What makes sending the same batch again harmless at a target."""

    TRANSACTIONAL = "transactional"
    MONOTONE = "monotone"
    KEYED = "keyed"
    WINDOW = "window"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a sink's target can express.

    Attributes:
        replay: what makes sending again harmless.
        max_records, max_bytes: of one batch.
        window_s: of the class ``window``: how long the target remembers a batch's id.
        window_batches: of the class ``window``: how many batches it remembers; None for no bound.
        freezes: whether what is sent is encoded once (``Sink.encode``) and kept until it took
            effect; so it is with every sink of the class ``window``.
    """

    replay: ReplayClass
    max_records: int
    max_bytes: int
    window_s: float | None = None
    window_batches: int | None = None
    freezes: bool = False


class Severity(Enum):
    """How a finding of ``wald check`` counts."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of ``wald check``: what was verified at a target, and what to do about it."""

    severity: Severity
    code: str
    message: str
    hint: str = ""


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
    """A dead letter that is to be sent again, through ``transform`` ("module:function") if any."""

    letter: DeadLetter
    transform: str


class Purged(NamedTuple):
    """What a purge did: letters, the records they stood for, letters that are being sent again."""

    letters: int
    records: int
    spared: int


@dataclass(frozen=True, slots=True)
class LostRange:
    """LSNs below the frontier that damage took; all else was kept.

    ``records`` is how many of them were of the stream that is read, where that is known.
    """

    first_lsn: Lsn
    last_lsn: Lsn
    segment: int
    offset_bytes: int
    reason: str
    records: int | None = None


@dataclass(frozen=True, slots=True)
class PackedRange:
    """A packed file, as ledger and directory know it: the records of a stream from a range of LSNs.

    Attributes:
        stream_id: the stream.
        lo: it answers for every LSN above this one
        hi: up to this one.
        segment: the last segment that it was made of.
        size_bytes: what it takes on disk.
        raw_bytes: what was compressed.
        records: how many records it holds.
        archive: whether it is kept on purpose, in ``archive/``.
    """

    stream_id: StreamId
    lo: Lsn
    hi: Lsn
    segment: int
    size_bytes: int
    raw_bytes: int
    records: int
    archive: bool = False
