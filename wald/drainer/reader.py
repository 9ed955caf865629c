"""What one lane reads: the records of its stream, decoded a request at a time, within bounds.

A backlog of any length costs a batch and a block of memory: reading stops when the next batch is
full, and goes on when it was taken.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import NamedTuple

from wald import limits
from wald.core import body, frame
from wald.core.batching import Bounds, Waiting, fitting, is_full
from wald.core.frame import Section
from wald.core.lanes import WHOLE, Share
from wald.errors import FormatDamaged
from wald.model import NO_ANCHOR, Anchor, Frontier, LostRange, Lsn, Record, StreamId
from wald.ports import Clock, FileSystem
from wald.storage.stream import Files, StreamReader, no_files
from wald.storage.tail import TailBlock

_VALUE = attrgetter("value")
_RECORD_LSN = attrgetter("lsn")


class Batch(NamedTuple):
    """Records that go to the target together, in order; what was lost between them."""

    records: list[Record]
    hi: Lsn
    anchor: Anchor
    lost: tuple[LostRange, ...]


class _Undecoded(NamedTuple):
    first_lsn: Lsn
    time_ns: int
    anchor: Anchor
    codec: int
    data: bytes
    stored: int


class LaneReader:
    """The records of a stream behind an LSN, up to the frontier; one thread.

    Of a route with several lanes each reads the whole stream and keeps its ``share``: what one
    lane does never waits for another's reading.
    """

    def __init__(  # noqa: PLR0913 - the doors of a reader, and what it reads
        self,
        fs: FileSystem,
        data_dir: str,
        log_id: bytes,
        clock: Clock,
        *,
        stream: StreamId,
        after: Lsn,
        share: Share = WHOLE,
        files: Files = no_files,
    ) -> None:
        self._clock = clock
        self._after = after
        self._share = share
        self._until = limits.LSN_MAX if share.until is None else share.until
        self._tail = StreamReader(fs, data_dir, log_id, stream=stream, after=after, files=files)
        self._records: list[Record] = []
        self._bytes = 0
        self._oldest_ns = 0
        self._urgent: Lsn = 0  # the last record that is
        self._undecoded: deque[_Undecoded] = deque()
        self._anchors: deque[tuple[Lsn, Anchor]] = deque()  # by last LSN, of records that are ours
        self._last_anchor = NO_ANCHOR
        self._lost: list[LostRange] = []

    def close(self) -> None:
        """Close the file; harmless to repeat."""
        self._tail.close()

    def holds_after(self, lsn: Lsn, frontier: Frontier) -> bool:
        """Tell whether every LSN above ``lsn`` is still in the log, or was packed."""
        return self._tail.holds_after(lsn, frontier)

    @property
    def is_empty(self) -> bool:
        """Whether every record that was read has been taken."""
        return not self._records and not self._undecoded

    @property
    def through(self) -> Lsn:
        """Everything of the stream up to here was taken."""
        if self._records:
            return self._records[0].lsn - 1
        at = self._undecoded[0].first_lsn - 1 if self._undecoded else self._tail.cursor
        return min(at, self._until)

    @property
    def through_anchor(self) -> Anchor:
        """The anchor of ``through``, once the reader is empty."""
        return self._last_anchor

    @property
    def oldest_time_ns(self) -> int | None:
        """The commit time of the oldest record that waits."""
        return self._records[0].time_ns if self._records else None

    def waiting(self) -> Waiting:
        """Return what was read and not taken."""
        records = self._records
        urgent = bool(records) and self._urgent >= records[0].lsn
        return Waiting(len(records), self._bytes, self._oldest_ns, urgent)

    def fill(self, frontier: Frontier, bounds: Bounds) -> Waiting:
        """Read until the next batch is full or the frontier is reached."""
        items: Iterator[TailBlock | LostRange] | None = None
        while not is_full(self.waiting(), bounds):
            if self._undecoded:
                self._decode(self._undecoded.popleft())
                continue
            if self._tail.cursor >= self._until:
                break
            items = self._tail.read(frontier) if items is None else items
            item = next(items, None)
            if item is None:
                break
            self._take_in(item)
        return self.waiting()

    def take(self, bounds: Bounds) -> Batch:
        """Take the next batch off; there must be a record."""
        count = min(len(self._records), bounds.max_records)
        if self._bytes > bounds.max_bytes:
            count = fitting(list(map(len, map(_VALUE, self._records[:count]))), bounds)
        return self._cut(count)

    def count_through(self, lsn: Lsn) -> int:
        """Return how many of the records that wait are not behind an LSN."""
        return bisect_right(self._records, lsn, key=_RECORD_LSN)

    def take_through(self, hi: Lsn, frontier: Frontier) -> Batch | None:
        """Read and take everything up to ``hi``: a batch that was sealed before.

        Returns None while the frontier is not known to have reached it, or is that of a file
        that is not there any more: a newer one follows.
        """
        if frontier.lsn < hi:
            return None
        items = self._tail.read(frontier)
        while self._tail.cursor < hi:
            item = next(items, None)
            if item is None:
                break
            self._take_in(item)
        if self._tail.cursor < hi:
            return None
        while self._undecoded and self._undecoded[0].first_lsn <= hi:
            self._decode(self._undecoded.popleft())
        count = sum(record.lsn <= hi for record in self._records)
        return self._cut(count, hi)

    @property
    def has_lost(self) -> bool:
        """Whether a loss was found that was not taken."""
        return bool(self._lost)

    def take_lost(self) -> tuple[LostRange, ...]:
        """Return what was lost before the next record, and forget it."""
        lost = tuple(item for item in self._lost if item.last_lsn <= self.through)
        self._lost = [item for item in self._lost if item.last_lsn > self.through]
        return lost

    def _split(self, count: int) -> list[Record]:
        """Take so many records off: the shorter part is what is copied and counted."""
        records = self._records
        if 2 * count < len(records):
            taken = records[:count]
            del records[:count]
            self._bytes -= _size_bytes(taken)
            return taken
        self._records = records[count:]
        del records[count:]
        self._bytes = _size_bytes(self._records)
        return records

    def _cut(self, count: int, hi: Lsn | None = None) -> Batch:
        records = self._split(count)
        if hi is None:
            hi = records[-1].lsn
        lost = tuple(item for item in self._lost if item.first_lsn <= hi)
        self._lost = [item for item in self._lost if item.first_lsn > hi]
        return Batch(records, hi, self._anchor_of(hi), lost)

    def _anchor_of(self, hi: Lsn) -> Anchor:
        while self._anchors and self._anchors[0][0] < hi:
            self._anchors.popleft()
        return self._anchors[0][1] if self._anchors else self._last_anchor

    def _keep_anchor(self, last_lsn: Lsn, anchor: Anchor) -> None:
        anchors = self._anchors
        if anchors and anchors[-1][1] == anchor:
            anchors.pop()
        anchors.append((last_lsn, anchor))

    def _take_in(self, item: TailBlock | LostRange) -> None:
        if isinstance(item, LostRange):
            self._lose(item)
            return
        if item.header.records:
            self._last_anchor = item.anchor
        for first_lsn, section in item.sections:
            self._undecoded.extend(_requests(first_lsn, section, item))

    def _lose(self, item: LostRange) -> None:
        if self._share.tells_losses and item.first_lsn <= self._until:
            inside = item.last_lsn <= self._until
            self._lost.append(item if inside else replace(item, last_lsn=self._until))

    def _decode(self, request: _Undecoded) -> None:
        last = request.first_lsn + request.stored - 1
        if last <= self._after or request.first_lsn > self._until:
            return
        try:
            columns = _columns(request)
        except FormatDamaged as damage:
            lost = LostRange(request.first_lsn, last, 0, 0, damage.message, request.stored)
            self._lose(lost)
            self._keep_anchor(last, request.anchor)
            return
        if not self._records:
            self._oldest_ns = self._clock.monotonic_ns()
        lsns, ours = _ours(request, columns, self._share, self._after)
        if not lsns:
            return  # nor is its block kept: records of other lanes may come for days
        self._keep_anchor(lsns[-1], request.anchor)
        if ours.headers is not None:
            self._urgent = max(self._urgent, _last_urgent(lsns, ours.headers))
        self._records += body.records(request.time_ns, lsns, ours)
        self._bytes += sum(map(len, ours.values))


def _size_bytes(records: Sequence[Record]) -> int:
    return sum(map(len, map(_VALUE, records)))


def _requests(first_lsn: Lsn, section: Section, block: TailBlock) -> Iterator[_Undecoded]:
    at, lsn = 0, first_lsn
    for entry in frame.request_entries(section):
        data = section.bodies[at : at + entry.body_length]
        if entry.stored:
            yield _Undecoded(
                lsn, block.header.commit_time_ns, block.anchor, section.codec, data, entry.stored
            )
        at += entry.body_length
        lsn += entry.stored


def _columns(request: _Undecoded) -> body.Body:
    columns = body.decode(request.data)
    if len(columns.values) != request.stored:
        msg = "a request does not hold the records that its section says"
        raise FormatDamaged(msg)
    return columns


def _ours(
    request: _Undecoded, columns: body.Body, share: Share, after: Lsn
) -> tuple[Sequence[Lsn], body.Body]:
    """Return the records of a request that are the lane's and behind an LSN."""
    first, until = request.first_lsn, share.until
    picks: Sequence[int] = range(request.stored)
    if not share.is_whole:
        picks = share.picks(first, request.stored, columns.keys)
    if first <= after:
        picks = [index for index in picks if first + index > after]
    if until is not None and first + request.stored > until:
        picks = [index for index in picks if first + index <= until]
    if len(picks) == request.stored:
        return range(first, first + request.stored), columns
    return [first + index for index in picks], body.only(columns, picks)


def _last_urgent(lsns: Sequence[Lsn], headers: Sequence[Mapping[str, str | bytes] | None]) -> Lsn:
    urgent = [
        lsn
        for lsn, each in zip(lsns, headers, strict=True)
        if each and limits.URGENT_HEADER_NAME in each
    ]
    return max(urgent, default=0)
