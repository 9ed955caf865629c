"""A batch's life as a labelled table; retry; the search for refused records.

Pure: facts in, decisions out; the lane carries them out.
"""

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple, TypeAlias

from wald import limits
from wald.model import (
    LostRange,
    Lsn,
    Record,
    Rejected,
    RejectedRecord,
)
from wald.ports import Chance

# --- the life of a batch ------------------------------------------------------------------------


class Step(Enum):
    """Where a lane stands."""

    CHECKING = "checking"  # asks the target for its row
    COLLECTING = "collecting"  # waits for a batch, or takes up the open one
    SENDING = "sending"  # an attempt is counted and may be under way
    SEARCHING = "searching"  # finds the refused records
    SETTLING = "settling"  # makes durable what a part of a batch came to
    WAITING = "waiting"  # until the next try
    PARKED = "parked"  # needs a person, or a target that came back; asks now and then


class Event(Enum):
    """What happens to a lane."""

    ROW_FITS = "row fits"
    ROW_APPLIED = "row has it"
    ROW_STRANGE = "row strange"
    ADOPTED = "row adopted"
    TAKE_OVER = "row taken over"
    LOOK = "time to look at the row"
    OPEN_FOUND = "open batch found"
    SEALED = "sealed"
    DELIVERED = "delivered"
    PARTIAL = "taken in part"
    REST = "rest wanted later"
    NOTHING_LEFT = "nothing left"
    TOO_LARGE = "too large"
    CUT = "cut"
    REJECTED = "rejected"
    CULPRITS = "culprits named"
    NO_CULPRIT = "no culprit"
    TOO_MANY = "too many rejects"
    QUOTA = "dead-letter quota full"
    HALTED = "halted"
    SYSTEMIC = "systemic"
    UNKNOWN = "unknown"
    UNCERTAIN = "uncertain"
    ROW_MOVED = "row moved"
    DUE = "due"


class Transition(NamedTuple):
    """A row of the table: in ``step``, at ``event``, go to ``then``; ``durable`` is so before."""

    label: str
    step: Step
    event: Event
    then: Step
    durable: str


LIFE_OF_A_BATCH: tuple[Transition, ...] = (
    Transition("row-fits", Step.CHECKING, Event.ROW_FITS, Step.COLLECTING, "-"),
    Transition("already-applied", Step.CHECKING, Event.ROW_APPLIED, Step.COLLECTING, "T5"),
    Transition("row-strange", Step.CHECKING, Event.ROW_STRANGE, Step.PARKED, "-"),
    Transition("adopted", Step.CHECKING, Event.ADOPTED, Step.WAITING, "T12"),
    Transition("taken-over", Step.CHECKING, Event.TAKE_OVER, Step.CHECKING, "the target's row"),
    Transition("not-taken-over", Step.CHECKING, Event.ROW_MOVED, Step.WAITING, "-"),
    Transition("taken-over-or-not", Step.CHECKING, Event.UNKNOWN, Step.WAITING, "-"),
    Transition("look-again", Step.COLLECTING, Event.LOOK, Step.CHECKING, "-"),
    Transition("cannot-ask", Step.CHECKING, Event.SYSTEMIC, Step.WAITING, "-"),
    Transition("still-held", Step.CHECKING, Event.UNCERTAIN, Step.PARKED, "-"),
    Transition("sealed", Step.COLLECTING, Event.SEALED, Step.SENDING, "T2"),
    Transition("again", Step.COLLECTING, Event.OPEN_FOUND, Step.SENDING, "T4"),
    Transition("not-again", Step.COLLECTING, Event.UNCERTAIN, Step.PARKED, "T11"),
    Transition("took-effect", Step.SENDING, Event.DELIVERED, Step.COLLECTING, "T5 with T2"),
    Transition("taken-in-part", Step.SENDING, Event.PARTIAL, Step.SETTLING, "-"),
    Transition("too-large", Step.SENDING, Event.TOO_LARGE, Step.SETTLING, "-"),
    Transition("refused", Step.SENDING, Event.REJECTED, Step.SEARCHING, "-"),
    Transition("target-fails", Step.SENDING, Event.SYSTEMIC, Step.WAITING, "-"),
    Transition("no-answer", Step.SENDING, Event.UNKNOWN, Step.WAITING, "-"),
    Transition("uncertain", Step.SENDING, Event.UNCERTAIN, Step.PARKED, "T11"),
    Transition("row-moved", Step.SENDING, Event.ROW_MOVED, Step.WAITING, "-"),
    Transition("set-aside", Step.SEARCHING, Event.CULPRITS, Step.SENDING, "dead log, T3"),
    Transition("halved", Step.SEARCHING, Event.CUT, Step.CHECKING, "T3"),
    Transition("not-halved", Step.SEARCHING, Event.REST, Step.WAITING, "T3"),
    Transition("no-culprit", Step.SEARCHING, Event.NO_CULPRIT, Step.WAITING, "-"),
    Transition("too-many-rejects", Step.SEARCHING, Event.TOO_MANY, Step.WAITING, "-"),
    Transition("quota-full", Step.SEARCHING, Event.QUOTA, Step.PARKED, "-"),
    Transition("halts", Step.SEARCHING, Event.HALTED, Step.PARKED, "-"),
    Transition("search-fails", Step.SEARCHING, Event.SYSTEMIC, Step.WAITING, "-"),
    Transition("search-unanswered", Step.SEARCHING, Event.UNKNOWN, Step.WAITING, "-"),
    Transition("search-row-moved", Step.SEARCHING, Event.ROW_MOVED, Step.WAITING, "-"),
    Transition("rest-later", Step.SETTLING, Event.REST, Step.WAITING, "dead log, T3"),
    Transition("all-settled", Step.SETTLING, Event.NOTHING_LEFT, Step.SENDING, "dead log, T3"),
    Transition("cut", Step.SETTLING, Event.CUT, Step.CHECKING, "T3"),
    Transition("alone-too-large", Step.SETTLING, Event.CULPRITS, Step.SENDING, "dead log, T3"),
    Transition("part-too-many", Step.SETTLING, Event.TOO_MANY, Step.WAITING, "T3"),
    Transition("part-quota-full", Step.SETTLING, Event.QUOTA, Step.PARKED, "T3"),
    Transition("part-halts", Step.SETTLING, Event.HALTED, Step.PARKED, "T3"),
    Transition("next-try", Step.WAITING, Event.DUE, Step.CHECKING, "-"),
    Transition("ask-again", Step.PARKED, Event.DUE, Step.CHECKING, "-"),
)

_BY_STEP_AND_EVENT = {(row.step, row.event): row for row in LIFE_OF_A_BATCH}
assert len(_BY_STEP_AND_EVENT) == len(LIFE_OF_A_BATCH)


def after(step: Step, event: Event) -> Transition:
    """Return the row of the table; a pair that is not in it is a bug of ours."""
    return _BY_STEP_AND_EVENT[step, event]


class Parked(Enum):
    """Why a lane waits for a person; the codes of status."""

    TARGET_BEHIND = "target-behind"
    WENT_BACK = "target-went-back"
    DIVERGED = "diverged"
    UNCERTAIN = "uncertain"
    QUOTA = "dead-letter-quota"
    HALTED = "halted"


# --- what damage took ---------------------------------------------------------------------------


def without(lost: Sequence[LostRange], excluded: Collection[Lsn]) -> list[LostRange]:
    """Return the lost ranges less LSNs that were set aside before they were lost."""
    rest: list[LostRange] = []
    for item in lost:
        first, records = item.first_lsn, item.records
        inside = sorted(lsn for lsn in excluded if first <= lsn <= item.last_lsn)
        if inside and records is not None:
            records = max(0, records - len(inside))  # all in the first part: it is a sum
        for lsn in inside:
            if first < lsn:
                rest.append(replace(item, first_lsn=first, last_lsn=lsn - 1, records=records))
                records = None if records is None else 0
            first = lsn + 1
        if first <= item.last_lsn:
            rest.append(replace(item, first_lsn=first, records=records))
    return rest


# --- retry --------------------------------------------------------------------------------------


def backoff_s(
    failures: int,
    chance: Chance,
    *,
    floor_s: float | None = None,
    base_s: float = limits.RETRY_BASE_S,
    cap_s: float = limits.RETRY_CAP_S,
) -> float:
    """Return how long to wait after so many failures in a row: full jitter.

    ``floor_s`` is what the target asked for; it is honoured within ``limits.RETRY_AFTER_MAX_S``.
    """
    drawn = chance.uniform(0.0, min(cap_s, base_s * 2.0 ** min(failures, 32)))
    return max(drawn, min(floor_s or 0.0, limits.RETRY_AFTER_MAX_S))


# --- refused records ---------------------------------------------------------------------------


TOO_MANY = "too-many-rejects"  # how the last error of a lane begins that waits for the guard


@dataclass(frozen=True, slots=True)
class RejectGuard:
    """Looks at the last records over batches: too large a refused share is an outage.

    ``window`` holds (records, refused) of the last batches that make up the guard's count. It is
    in memory only: after a restart it begins anew.
    """

    window: tuple[tuple[int, int], ...] = ()

    def with_batch(self, records: int, refused: int) -> "RejectGuard":
        """Return the guard after a batch took effect; older batches than needed are dropped."""
        kept: list[tuple[int, int]] = [(records, refused)]
        total = records
        for earlier in reversed(self.window):
            if total >= limits.REJECT_GUARD_RECORDS:
                break
            kept.append(earlier)
            total += earlier[0]
        return RejectGuard(tuple(reversed(kept)))

    def too_many(self, records: int, refused: int) -> bool:
        """Tell whether with this batch more than the allowed share would be refused."""
        window = self.with_batch(records, refused).window
        total = sum(batch[0] for batch in window)
        return (
            total >= limits.REJECT_GUARD_RECORDS
            and sum(batch[1] for batch in window) > total * limits.REJECT_GUARD_SHARE
        )


ProbeAnswer: TypeAlias = Sequence[RejectedRecord] | Rejected
Search: TypeAlias = Generator[list[Record], ProbeAnswer, tuple[RejectedRecord, ...]]


def find_refused(records: Sequence[Record], known: Sequence[RejectedRecord] = ()) -> Search:
    """Search for every refused record: yields what to probe, takes answers, returns the refused.

    Where the target names them, each probe names more until the rest is taken. Where it does not,
    the shortest refused prefix ends in a culprit: records that only clash with each other, as two
    of one key, are judged in their order, and the search takes O(k log n) probes.
    """
    ours = {record.lsn for record in records}
    refused = {item.lsn: item for item in known if item.lsn in ours}
    good: list[Record] = []  # taken together; what follows is probed behind them
    rest = [record for record in records if record.lsn not in refused]
    while rest:
        answer = yield good + rest
        if not answer:
            break
        taken, told = 0, answer
        if not _named(told):
            taken, told = yield from _longest_taken(good, rest, answer)
        culprit = rest[taken]  # where none is named: with the words for it, not for what follows
        named = _named(told) or (_unnamed(culprit, told),)
        before = len(refused)
        refused.update((item.lsn, item) for item in named if item.lsn in ours)
        if len(refused) == before:
            break  # it names none that was sent: a bug of the sink, not a record's fault
        good, rest = good + rest[:taken], rest[taken:]
        good = [record for record in good if record.lsn not in refused]
        rest = [record for record in rest if record.lsn not in refused]
    return tuple(refused[lsn] for lsn in sorted(refused))


def _named(answer: ProbeAnswer) -> Sequence[RejectedRecord]:
    return answer.records if isinstance(answer, Rejected) else answer


def _unnamed(culprit: Record, answer: ProbeAnswer) -> RejectedRecord:
    assert isinstance(answer, Rejected)
    return RejectedRecord(culprit.lsn, answer.code, answer.message)


def _longest_taken(
    good: list[Record], rest: list[Record], answer: ProbeAnswer
) -> Generator[list[Record], ProbeAnswer, tuple[int, ProbeAnswer]]:
    """Return how many of ``rest`` are taken behind ``good``, and what one more is answered.

    ``answer`` is for all of ``rest``: it is refused.
    """
    taken, refused = 0, len(rest)
    while refused - taken > 1:
        middle = (taken + refused) // 2
        found = yield good + rest[:middle]
        if found:
            refused, answer = middle, found
        else:
            taken = middle
    return taken, answer
