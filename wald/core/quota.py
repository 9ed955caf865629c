"""Quotas of streams: how much may be undelivered, when producers pause, when they are refused.

What is pending of a stream is what its slowest route has not delivered or set aside: records
exactly, bytes and times between marks that are noted on the way. Time is an argument.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from wald import limits
from wald.core.events import HEADER_BYTES
from wald.model import Lsn

GUARD_RECORDS: Final = 2 * limits.REQUEST_MAX_RECORDS
# what is taken without a look at a quota, between two looks: one read, or one large request
assert limits.RECEIVE_BUFFER_BYTES // 2 <= GUARD_RECORDS  # a record takes two bytes at least
assert limits.REQUEST_MAX_BYTES + HEADER_BYTES <= limits.GROUP_MAX_BYTES


class Quota(NamedTuple):
    """The bounds of a stream; None: no such bound. From ``soft`` of one on producers pause."""

    pending_bytes: int | None = None
    records: int | None = None
    age_s: float | None = None
    soft: float = limits.QUOTA_SOFT_SHARE

    @property
    def is_set(self) -> bool:
        """Whether there is any bound."""
        return (self.pending_bytes, self.records, self.age_s) != (None, None, None)


class Mark(NamedTuple):
    """What a stream held at a moment: its last LSN, its records and bytes ever, and when."""

    lsn: Lsn
    records: int
    bytes: int
    time_ns: int = 0  # the wall clock; 0: not known


class Marks:
    """Moments of a stream, oldest first, and no more than a bound of them."""

    def __init__(self, marks: Iterable[Mark] = ()) -> None:
        self._marks: list[Mark] = []
        for mark in sorted(marks):
            self.note(mark)

    def __iter__(self) -> Iterator[Mark]:
        return iter(self._marks)

    @property
    def last_bytes(self) -> int:
        """The bytes of the newest; 0 if there is none."""
        return self._marks[-1].bytes if self._marks else 0

    def note(self, mark: Mark) -> None:
        """Add the newest; one that says less than the last is of a log that went back."""
        marks = self._marks
        while marks and (marks[-1].records > mark.records or marks[-1].bytes > mark.bytes):
            marks.pop()
        if marks and marks[-1].records == mark.records:
            return
        marks.append(mark)
        if len(marks) > limits.QUOTA_MARKS_COUNT:
            # the one that tells least goes, so that they stay spread over what is pending
            gaps = range(1, len(marks) - 1)
            del marks[min(gaps, key=lambda i: marks[i + 1].bytes - marks[i - 1].bytes)]

    def forget(self, records: int) -> None:
        """Drop what is not needed to know of positions from so many records on."""
        gone = bisect_right(self._marks, records, key=_records) - 1
        if gone > 0:
            del self._marks[:gone]

    def at(self, records: int) -> Mark:
        """Return the moment at which the stream held so many records: bytes by proportion.

        The time is that of the mark before, if it is known: nothing seems younger than it is.
        """
        marks = self._marks
        after = bisect_right(marks, records, key=_records)
        if not after:
            return Mark(0, records, marks[0].bytes if marks else 0)
        low = marks[after - 1]
        if after == len(marks):
            return low._replace(records=records)
        high = marks[after]
        share = (records - low.records) / (high.records - low.records)
        size = low.bytes + int((high.bytes - low.bytes) * share)
        return Mark(low.lsn, records, size, low.time_ns or high.time_ns)

    def records_through(self, lsn: Lsn) -> int:
        """Return how many records the stream surely held up to an LSN."""
        at = bisect_right(self._marks, lsn, key=_lsn)
        return self._marks[at - 1].records if at else 0


def _records(mark: Mark) -> int:
    return mark.records


def _lsn(mark: Mark) -> Lsn:
    return mark.lsn


class Reach(NamedTuple):
    """How far a route is, as the drainer said last.

    Attributes:
        route: its name.
        birth_records: what the stream held when it was born.
        settled: records that it delivered, set aside or purged.
        through_lsn: up to where it is finished.
        oldest_ns: the commit time of what waits longest, or 0.
    """

    route: str
    birth_records: int
    settled: int
    through_lsn: Lsn
    oldest_ns: int = 0


class Pending(NamedTuple):
    """What the slowest route has not delivered; times since it was accepted."""

    records: int = 0
    bytes: int = 0
    age_s: float = 0.0
    route: str = ""


def pending_of(now: Mark, reaches: Sequence[Reach], marks: Marks) -> Pending:
    """Return what is pending of a stream.

    Args:
        now: what it holds now, and the wall clock.
        reaches: of its routes; each has the stream's records since its birth to deliver.
        marks: of the stream.
    """
    found = [_pending_at(now, reach, marks) for reach in reaches]
    if not found:
        return Pending()
    slowest = max(found)
    return slowest._replace(
        bytes=max(each.bytes for each in found), age_s=max(each.age_s for each in found)
    )


def _pending_at(now: Mark, reach: Reach, marks: Marks) -> Pending:
    if reach.through_lsn >= now.lsn:
        return Pending(route=reach.route)  # what damage took is not pending: it is lost
    records = now.records - reach.birth_records - reach.settled
    # what nobody could count of a damaged range stays unsettled for ever: there LSNs say more
    records = max(0, min(records, now.records - marks.records_through(reach.through_lsn)))
    if not records:
        return Pending(route=reach.route)
    position = marks.at(now.records - records)
    since_ns = reach.oldest_ns or position.time_ns
    age_s = max(0, now.time_ns - since_ns) / limits.CLOCK_NS_PER_S if since_ns else 0.0
    return Pending(records, max(0, now.bytes - position.bytes), age_s, reach.route)


class StreamQuota:
    """A stream with a quota: what is pending of it, kept up between two looks at the drainer.

    Attributes:
        guarded: requests are looked at one by one: producers are asked to pause, or may soon be.
        pause_s: for how long they are asked to pause; 0: they are not.
        is_full: they are refused.
    """

    __slots__ = (
        "_accepted_bytes",
        "_accepted_records",
        "_held",
        "_quota",
        "guarded",
        "is_full",
        "marks",
        "pause_s",
        "pending",
        "refused",
        "throttled",
    )

    def __init__(self, quota: Quota, marks: Marks) -> None:
        self._quota = quota
        self._accepted_records = self._accepted_bytes = 0  # and not durable yet
        self._held: Mark | None = None
        self.marks = marks
        self.pending = Pending()
        self.refused = self.throttled = 0  # requests
        self._judge()

    def charge(self, records: int, size_bytes: int) -> None:
        """Something was accepted of the stream."""
        self._accepted_records += records
        self._accepted_bytes += size_bytes
        self._add(records, size_bytes)

    def settle(self) -> bool:
        """What was accepted is durable, or refused: the next look tells. False: nothing was."""
        if not self._accepted_bytes:
            return False
        self._accepted_records = self._accepted_bytes = 0
        return True

    def hold(self, now: Mark) -> None:
        """Take what the stream holds behind a group; note it where bytes would get inexact."""
        bound = self._quota.pending_bytes
        step = limits.LSN_MAX if bound is None else bound // (limits.QUOTA_MARKS_COUNT // 2)
        if now.bytes - self.marks.last_bytes >= step:
            if self._held is not None:
                self.marks.note(self._held)  # so that proportions are those of one group
            self.marks.note(now)
        self._held = now

    def look(self, pending: Pending) -> None:
        """Take what is pending of what is durable."""
        self.pending = pending
        self._add(self._accepted_records, self._accepted_bytes)

    def _add(self, records: int, size_bytes: int) -> None:
        before = self.pending
        self.pending = before._replace(
            records=before.records + records, bytes=before.bytes + size_bytes
        )
        self._judge()

    @property
    def used(self) -> float:
        """The largest share of a bound that is used; 1: it is full."""
        pending, quota = self.pending, self._quota
        return max(
            pending.bytes / quota.pending_bytes if quota.pending_bytes else 0.0,
            pending.records / quota.records if quota.records else 0.0,
            pending.age_s / quota.age_s if quota.age_s else 0.0,
        )

    def _judge(self) -> None:
        used, quota = self.used, self._quota
        self.is_full = used >= 1
        self.pause_s = pause_s(used, quota.soft)
        room_bytes = (quota.pending_bytes or limits.LSN_MAX) - self.pending.bytes
        room_records = (quota.records or limits.LSN_MAX) - self.pending.records
        self.guarded = (
            self.pause_s > 0 or room_bytes < limits.GROUP_MAX_BYTES or room_records < GUARD_RECORDS
        )

    def says(self) -> str:
        """Return what of the quota is used, in words."""
        pending, quota = self.pending, self._quota
        parts = []
        if quota.pending_bytes is not None:
            parts.append(f"{pending.bytes:,} of {quota.pending_bytes:,} bytes")
        if quota.records is not None:
            parts.append(f"{pending.records:,} of {quota.records:,} records")
        if quota.age_s is not None:
            parts.append(f"{pending.age_s:.3g} of {quota.age_s:g} s")
        return ", ".join(parts)


def pause_s(used: float, soft: float) -> float:
    """Return for how long producers are to pause: longer the less is left, 0 below ``soft``."""
    if used < soft:
        return 0.0
    share = min(1.0, (used - soft) / (1.0 - soft)) if soft < 1 else 1.0
    most = limits.QUOTA_PAUSE_MAX_S / limits.QUOTA_PAUSE_MIN_S
    return float(limits.QUOTA_PAUSE_MIN_S * most**share)
