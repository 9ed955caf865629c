"""Dedup ids: which record of a stream has one, as long as that is remembered.

An id is remembered for the stream's window, by the commit times of the records, and no longer than
until as many newer ones have come as the stream keeps. Pure: time is an argument.

An id counts as seen only if its record is durable: ``IdTable.add`` is called with what a durable
group holds, by ``wald.storage.log`` as it runs and at a start.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple, TypeAlias

from wald import limits
from wald.core import body as bodies
from wald.core import frame
from wald.core.frame import Section
from wald.errors import FormatDamaged
from wald.model import LostRange, Lsn, StreamId

Id: TypeAlias = str | bytes  # a str and a bytes are different ids

_MARKS_PER_WINDOW: Final = 64  # what is forgotten by time is so within a window and this part of it


class DedupPolicy(NamedTuple):
    """How long the ids of a stream are remembered."""

    window_s: float
    max_ids: int = limits.DEDUP_IDS_COUNT


class NewIds(NamedTuple):
    """Ids of records of one stream, in the order of their LSNs."""

    stream: StreamId
    lsns: Sequence[Lsn]
    ids: Sequence[Id]


class StreamIds:
    """The ids of one stream.

    Attributes:
        crowded_out: how many were forgotten before their window had passed.
        newest_ns: when the newest was committed.
    """

    def __init__(self, policy: DedupPolicy) -> None:
        self.policy = policy
        self.crowded_out = 0
        self._window_ns = int(policy.window_s * limits.CLOCK_NS_PER_S)
        self._lsns: dict[Id, Lsn] = {}
        self._order: deque[Id] = deque()
        self._order_lsns: deque[Lsn] = deque()  # of ``_order``: an id may come again
        self._marks: deque[tuple[Lsn, int]] = deque()  # from this LSN on: at this time or later
        self.newest_ns = 0

    def __len__(self) -> int:
        return len(self._lsns)

    def get(self, dedup_id: Id) -> Lsn | None:
        """Return the LSN of the record that has an id; None if no such record is remembered."""
        return self._lsns.get(dedup_id)

    def knows_none(self, ids: AbstractSet[Id | None]) -> bool:
        """Tell whether no record that is remembered has one of these ids."""
        return self._lsns.keys().isdisjoint(ids)

    @property
    def oldest_lsn(self) -> Lsn | None:
        """The oldest record that is remembered."""
        return self._order_lsns[0] if self._order_lsns else None

    @property
    def oldest_ns(self) -> int:
        """About when that was committed; 0 if there is none."""
        return self._marks[0][1] if self._marks else 0

    def all(self) -> tuple[list[Lsn], list[Id]]:
        """Return all that is remembered, in the order of their LSNs."""
        return list(self._order_lsns), list(self._order)

    def add(self, lsns: Sequence[Lsn], ids: Sequence[Id], time_ns: int) -> None:
        """Remember ids, in the order of their LSNs; what is known already may come again.

        Args:
            lsns: of the records.
            ids: of the records.
            time_ns: when they were committed.
        """
        known = self._lsns
        newest = self._order_lsns[-1] if self._order_lsns else 0
        if lsns and lsns[0] <= newest:  # a start reads some groups twice
            fresh = [pair for pair in zip(lsns, ids, strict=True) if pair[0] > newest]
            lsns, ids = [lsn for lsn, _ in fresh], [each for _, each in fresh]
        if not lsns:
            return
        known.update(zip(ids, lsns, strict=True))
        self._order.extend(ids)
        self._order_lsns.extend(lsns)
        self.newest_ns = max(self.newest_ns, time_ns)
        marks = self._marks
        if not marks or self.newest_ns - marks[-1][1] >= self._window_ns // _MARKS_PER_WINDOW:
            marks.append((lsns[0], self.newest_ns))
        excess = len(self._order) - self.policy.max_ids
        if excess > 0:
            self.crowded_out += excess
            self._forget_first(excess)

    def set_forward(self, jumped_ns: int, now_ns: int) -> None:
        """The wall clock jumped: what is remembered is not older by that.

        Nothing was committed later than now: what says so was committed before a clock went back.
        """
        if jumped_ns or self.newest_ns > now_ns:
            self._marks = deque(
                (lsn, min(time_ns + jumped_ns, now_ns)) for lsn, time_ns in self._marks
            )
            self.newest_ns = min(self.newest_ns + jumped_ns, now_ns)

    def forget_old(self, now_ns: int) -> None:
        """Forget what was committed before the window."""
        marks, horizon_ns = self._marks, now_ns - self._window_ns
        if self.newest_ns <= horizon_ns:
            for each in (self._lsns, self._order, self._order_lsns, marks):
                each.clear()  # at once: there may be millions
            return
        while len(marks) > 1 and marks[1][1] <= horizon_ns:
            marks.popleft()
            lsns = self._order_lsns
            while lsns and lsns[0] < marks[0][0]:
                self._forget_first(1)

    def forget_lost(self, lost: LostRange) -> None:
        """Forget the ids of records that are gone: what comes again is new.

        A range that names no LSNs takes all: nobody knows which.
        """
        nobody_knows = lost.last_lsn < lost.first_lsn
        kept = [
            (lsn, each)
            for lsn, each in zip(self._order_lsns, self._order, strict=True)
            if not nobody_knows and not lost.first_lsn <= lsn <= lost.last_lsn
        ]
        self._order = deque(each for _, each in kept)
        self._order_lsns = deque(lsn for lsn, _ in kept)
        self._lsns = {each: lsn for lsn, each in kept}

    def _forget_first(self, count: int) -> None:
        known, order, lsns = self._lsns, self._order, self._order_lsns
        for _ in range(count):
            dedup_id, lsn = order.popleft(), lsns.popleft()
            if known[dedup_id] == lsn:
                del known[dedup_id]


class IdTable:
    """The ids of all streams that compare them.

    Args:
        policies: by the name of a stream.
    """

    def __init__(self, policies: Mapping[str, DedupPolicy]) -> None:
        self._policies = policies
        self._streams: dict[StreamId, StreamIds] = {}
        self._ahead_ns: int | None = None  # of the boot's clock the wall clock, at the last look

    def __bool__(self) -> bool:
        """Whether any stream compares ids."""
        return bool(self._policies)

    def of(self, stream: StreamId, name: str) -> StreamIds | None:
        """Return the ids of a stream; None if it compares none."""
        found = self._streams.get(stream)
        if found is None:
            policy = self._policies.get(name)
            if policy is None:
                return None
            found = self._streams[stream] = StreamIds(policy)
        return found

    def known(self, stream: StreamId) -> StreamIds | None:
        """Return the ids of a stream that was asked for by name before."""
        return self._streams.get(stream)

    def forget_old(self, now_ns: int, boot_ns: int) -> None:
        """Forget what was committed before the window of its stream.

        Between two looks nothing grows older by more than really passed, however the wall clock
        was set: forgotten too early, an id lets a duplicate in.

        Args:
            now_ns: the wall clock, which commits are dated by.
            boot_ns: the clock of the boot, which nobody sets.
        """
        ahead_ns = now_ns - boot_ns
        jumped_ns = 0 if self._ahead_ns is None else max(ahead_ns - self._ahead_ns, 0)
        self._ahead_ns = ahead_ns
        for stream in self._streams.values():
            stream.set_forward(jumped_ns, now_ns)
            stream.forget_old(now_ns)

    def __iter__(self) -> Iterator[tuple[StreamId, StreamIds]]:
        return iter(self._streams.items())


def ids_in(section: Section, first_lsn: Lsn) -> NewIds | None:
    """Return the ids that the stored records of a section have; None if none has one.

    Args:
        section: a run of requests of a durable block.
        first_lsn: of its first stored record.
    """
    lsns: list[Lsn] = []
    found: list[Id] = []
    at, lsn = 0, first_lsn
    for entry in frame.request_entries(section):
        data = section.bodies[at : at + entry.body_length]
        at += entry.body_length
        column = _ids_of(data) if entry.stored else None
        for offset, each in enumerate(column or ()):
            if each is not None:
                lsns.append(lsn + offset)
                found.append(each)
        lsn += entry.stored
    return NewIds(section.stream, lsns, found) if found else None


def _ids_of(data: bytes) -> list[Id | None] | None:
    try:
        return bodies.decode(data).dedup_ids
    except FormatDamaged:  # the reader of the stream tells of it
        return None
