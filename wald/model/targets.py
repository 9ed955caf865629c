"""What a sink is given, what it returns, and what it says of itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Self, TypeAlias

from wald.model.batches import (
    LaneKey,
    ProgressRow,
)
from wald.model.records import (
    Lsn,
    Record,
    RevisionId,
)


class Secret(str):
    """Text that must not appear in any output: its ``repr`` hides it.

    ``source`` is the file that it was read from, for what may be renewed there; empty for none.
    """

    __slots__ = ("source",)
    source: str

    def __new__(cls, text: str, source: str = "") -> Self:
        """Make one; ``source`` is no part of its value."""
        made = super().__new__(cls, text)
        made.source = source
        return made

    def __repr__(self) -> str:
        """Return what stands in for the secret in dumps and messages."""
        return "'***'"


def sealed_before() -> None:
    """Return at once: the batch was sealed durably before the sink was called."""


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
        await_seal: returns once it is durable that this attempt is made. A sink whose capabilities
            say ``awaits_seal`` calls it right before its commit point, everything else sent; what
            it raises goes through, and nothing has taken effect then.
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
    await_seal: Callable[[], object] = field(default=sealed_before, compare=False, repr=False)

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
    """The attempt took effect.

    ``notes`` counts what the sink ignored on the way, by reason; ``requests`` among them says how
    many requests of the target the attempt took, if not one.
    """

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
    OWNED = "owned"  # by another log or route, and it can have only one


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
    retry_after_s: float | None = None  # what the target asks for, if it said something


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
        overwrites: whether a record replaces what is under its key, be that of a newer record: a
            dead letter is then sent again only if a person says so.
        max_requests_per_s, max_records_per_s: what the target takes at most, of all lanes to it;
            None for no bound. Lanes hold back before a batch is sealed.
        awaits_seal: of the class ``transactional``: ``deliver`` may be called while the batch is
            still being sealed, since it calls ``Attempt.await_seal`` before its commit.
    """

    replay: ReplayClass
    max_records: int
    max_bytes: int
    window_s: float | None = None
    window_batches: int | None = None
    freezes: bool = False
    overwrites: bool = False
    max_requests_per_s: float | None = None
    max_records_per_s: float | None = None
    awaits_seal: bool = False


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
