"""Where a record is, of one route: a table over what ledger, log and lane say of it. Pure.

Values in, a label and a fate out; ``storage.lookup`` and ``drainer.where`` collect the facts.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final, NamedTuple, TypeVar

from wald import limits
from wald.model import DeadLetter, FinishedBatch, Lsn, Manifest

_T = TypeVar("_T")
_HASH_FACTOR: Final = 0x9E37_79B9_7F4A_7C15  # 2^64 over the golden ratio: spreads what is in a row
_HASH_RANGE: Final = 1 << 64
DAMAGED: Final = "damaged"


class Fate(StrEnum):
    """What became of a record on its way to one target."""

    DURABLE = "durable"
    SEALED = "sealed"
    TAKEN = "taken"
    UNCERTAIN = "uncertain"
    DELIVERED = "delivered"
    SUPERSEDED = "superseded"
    DEAD_LETTER = "dead-letter"
    REDRIVING = "redriving"
    REDRIVEN = "redriven"
    PURGED = "purged"
    LOST = "lost"
    GIVEN_UP = "given-up"
    NOT_OURS = "not-ours"


SETTLED: Final = frozenset({Fate.DELIVERED, Fate.SUPERSEDED, Fate.REDRIVEN, Fate.NOT_OURS})
REFUSED: Final = frozenset({Fate.DEAD_LETTER, Fate.PURGED, Fate.LOST, Fate.GIVEN_UP})


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a record and the lane that it is of.

    Attributes:
        lsn: the record's.
        birth_lsn: the route has what is above.
        checkpoint_lsn: up to where the lane is finished.
        manifest: its open batch.
        letter: the dead letter that stands for the record.
        asked: whether a person asked for the letter to be sent again.
        purged: whether a letter of it was purged.
        line: of the history, the batch that the record was sealed in.
        redriven: of the history, the last batch that sent it again.
        superseded: whether a newer record of its key in the same batch took its place.
        dropped: whether a person gave the route up.
    """

    lsn: Lsn
    birth_lsn: Lsn = 0
    checkpoint_lsn: Lsn = 0
    manifest: Manifest | None = None
    letter: DeadLetter | None = None
    asked: bool = False
    purged: bool = False
    line: FinishedBatch | None = None
    redriven: FinishedBatch | None = None
    superseded: bool = False
    dropped: bool = False

    @property
    def is_in_open_batch(self) -> bool:
        """Whether the open batch has the record, for the first time."""
        manifest = self.manifest
        if manifest is None or manifest.is_redrive:
            return False
        return manifest.lo <= self.lsn <= manifest.current.hi

    @property
    def is_sent_again(self) -> bool:
        """Whether the open batch sends the record's dead letter again."""
        manifest = self.manifest
        return manifest is not None and self.lsn in manifest.revisions[0].redriven


class Row(NamedTuple):
    """A row of the table; the first that holds counts."""

    label: str
    when: str
    holds: Callable[[Facts], bool]
    fate: Fate


WHEREABOUTS: tuple[Row, ...] = (
    Row(
        "born-later",
        "the route was born behind it",
        lambda f: f.lsn <= f.birth_lsn,
        Fate.NOT_OURS,
    ),
    Row(
        "being-sent-again",
        "a dead letter that the open batch sends again",
        lambda f: f.letter is not None and f.is_sent_again,
        Fate.REDRIVING,
    ),
    Row(
        "asked-again",
        "a dead letter that is to be sent again",
        lambda f: f.letter is not None and f.asked,
        Fate.REDRIVING,
    ),
    Row(
        "damaged",
        "a dead letter of a damaged range",
        lambda f: f.letter is not None and f.letter.code == DAMAGED and not f.letter.dead_file,
        Fate.LOST,
    ),
    Row("dead-letter", "a dead letter", lambda f: f.letter is not None, Fate.DEAD_LETTER),
    Row("purged", "its dead letter was purged", lambda f: f.purged, Fate.PURGED),
    Row(
        "redriven",
        "a batch of the history sent it again",
        lambda f: f.redriven is not None,
        Fate.REDRIVEN,
    ),
    Row("superseded", "a newer one of its key took its place", lambda f: f.superseded,
        Fate.SUPERSEDED),
    Row(
        "in-history",
        "at or below the checkpoint, and a batch of the history has it",
        lambda f: f.lsn <= f.checkpoint_lsn and f.line is not None,
        Fate.DELIVERED,
    ),
    Row(
        "longer-ago",
        "at or below the checkpoint, longer ago than the history tells",
        lambda f: f.lsn <= f.checkpoint_lsn,
        Fate.DELIVERED,
    ),
    Row("given-up", "above the checkpoint of a route that was dropped", lambda f: f.dropped,
        Fate.GIVEN_UP),
    Row(
        "held",
        "in the open batch, which waits for a person",
        lambda f: f.is_in_open_batch and bool(f.manifest and f.manifest.held),
        Fate.UNCERTAIN,
    ),
    Row(
        "taken",
        "in the open batch, and the target has it",
        lambda f: f.is_in_open_batch and f.lsn in _of(f, lambda m: m.current.settled),
        Fate.TAKEN,
    ),
    Row("sealed", "in the open batch", lambda f: f.is_in_open_batch, Fate.SEALED),
    Row("waiting", "above all that", lambda _: True, Fate.DURABLE),
)  # fmt: skip


def whereabouts(facts: Facts) -> Row:
    """Return what became of a record."""
    return next(row for row in WHEREABOUTS if row.holds(facts))


def _of(facts: Facts, pick: Callable[[Manifest], Collection[Lsn]]) -> Collection[Lsn]:
    return () if facts.manifest is None else pick(facts.manifest)


# --- all routes of a record ---------------------------------------------------------------------


class Verdict(Enum):
    """What is said to who waits for a record to be delivered."""

    DELIVERED = "delivered"
    REFUSED = "refused"
    BLOCKED = "blocked"
    PENDING = "pending"


class Standing(NamedTuple):
    """A record at one route: its fate, and why its lane waits for a person, if it does."""

    fate: Fate
    blocked: str = ""


def judge(standings: Iterable[Standing]) -> Verdict:
    """Return what all routes of the record's stream come to; none at all is no delivery.

    A refusal is told before anything else: waiting changes nothing of it.
    """
    found = [each for each in standings if each.fate is not Fate.NOT_OURS]
    if any(each.fate in REFUSED for each in found):
        return Verdict.REFUSED
    left = [each for each in found if each.fate not in SETTLED]
    if found and not left:
        return Verdict.DELIVERED
    if any(each.blocked or each.fate is Fate.UNCERTAIN for each in left):
        return Verdict.BLOCKED
    return Verdict.PENDING


# --- traces -------------------------------------------------------------------------------------


def is_sampled(lsn: Lsn, share: float) -> bool:
    """Tell whether the trace of a record is kept: the same answer whenever it is asked."""
    return (lsn * _HASH_FACTOR) % _HASH_RANGE < share * _HASH_RANGE


def sampled(
    records: Sequence[_T], lsn_of: Callable[[_T], Lsn], trace_of: Callable[[_T], str], share: float
) -> tuple[tuple[Lsn, str], ...]:
    """Return the trace contexts of the sampled records of a batch, a bounded number."""
    found: list[tuple[Lsn, str]] = []
    if share <= 0:
        return ()
    for record in records:
        if is_sampled(lsn_of(record), share):
            trace = trace_of(record)
            if trace:
                found.append((lsn_of(record), trace))
                if len(found) == limits.TRACES_PER_BATCH_MAX:
                    break
    return tuple(found)
