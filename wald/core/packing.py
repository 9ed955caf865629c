"""What to pack, what the log may let go for it, and which packed files may go: values in, plan out.

A closed segment is packed when every route that still needs it is stuck: then one packed file
per stream takes over what those routes need of it, and the segment may retire. The oldest goes
first, since a segment never retires before an older one. An archived stream is packed always.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

from wald import limits
from wald.core.retention import FinishedSegment, is_drained
from wald.model import Lsn, PackedRange, RouteId, StreamId


@dataclass(frozen=True, slots=True)
class RepackPolicy:
    """When a route that needs a segment counts as stuck: it rests, or either bound is reached."""

    after_s: float = limits.REPACK_AFTER_S
    after_bytes: int = limits.REPACK_AFTER_BYTES


class RouteStanding(NamedTuple):
    """Where a route stands.

    Attributes:
        route_id: the route.
        stream_id: its stream.
        checkpoint: up to where it is finished; its birth before its first checkpoint.
        resting: nobody expects it to go on by itself: parked, paused, of no setting.
        pinning_s: how long it has not passed the end of a segment.
        archive_bytes: how much of its stream is kept on purpose; 0 for none.
    """

    route_id: RouteId
    stream_id: StreamId
    checkpoint: Lsn
    resting: bool = False
    pinning_s: float = 0.0
    archive_bytes: int = 0


class PackJob(NamedTuple):
    """One file to be made: the stream's records above ``lo`` up to ``hi``.

    ``takes_in`` are older files that it replaces: ``lo`` is that of the first of them.
    """

    stream_id: StreamId
    lo: Lsn
    hi: Lsn
    segment: int
    archive: bool = False
    takes_in: tuple[PackedRange, ...] = ()


@dataclass(frozen=True, slots=True)
class Standing:
    """All that is decided on.

    Attributes:
        segments: the closed ones, in order: those before the frontier's own.
        routes: those that live.
        files: the packed files that the ledger names.
        frontier_lsn: the last durable LSN.
        fills: of segments, how much of them is payload, where that was measured.
        complete: whether ``segments`` are all that there are; else nothing new is packed.
    """

    segments: Sequence[FinishedSegment]
    routes: Sequence[RouteStanding]
    files: Sequence[PackedRange]
    frontier_lsn: Lsn
    fills: Mapping[int, float] = field(default_factory=dict)
    complete: bool = True


def of_stream(files: Iterable[PackedRange], stream_id: StreamId) -> list[PackedRange]:
    """Return the files of a stream, in order."""
    mine = [file for file in files if file.stream_id == stream_id]
    return sorted(mine, key=lambda file: (file.lo, file.hi))


def grouped(files: Iterable[PackedRange]) -> dict[StreamId, Sequence[PackedRange]]:
    """Return the files of each stream, in order."""
    found: dict[StreamId, list[PackedRange]] = {}
    for file in sorted(files, key=lambda file: (file.lo, file.hi)):
        found.setdefault(file.stream_id, []).append(file)
    return {stream_id: tuple(mine) for stream_id, mine in found.items()}


def covered_through(lsn: Lsn, files: Sequence[PackedRange]) -> Lsn:
    """Return up to where packed files follow on an LSN without a gap; ``lsn`` if none does.

    Args:
        lsn: what lies above it is asked for.
        files: of one stream, in order.
    """
    for file in files:
        if file.lo <= lsn < file.hi:
            lsn = file.hi
    return lsn


def held_through(checkpoint: Lsn, files: Sequence[PackedRange], standing: Standing) -> Lsn | None:
    """Return up to where packed files hold all that a route needs; None if not from its start.

    The block of the checkpoint itself must be in them, for its anchor, unless the log has
    nothing left in front of the first of them.

    Args:
        checkpoint: the route's.
        files: of its stream, in order.
        standing: the log's segments.
    """
    first = next((file for file in files if file.hi >= checkpoint), None)
    if first is None:
        return None
    if first.lo >= checkpoint and (
        not standing.complete
        or any(
            segment.before_lsn < first.lo and segment.last_lsn >= checkpoint
            for segment in standing.segments
        )
    ):
        return None
    return covered_through(first.hi, files)


def archived_through(stream_id: StreamId, files: Iterable[PackedRange]) -> Lsn:
    """Return up to where a stream is archived; 0 if it is not."""
    mine = (file.hi for file in files if file.stream_id == stream_id and file.archive)
    return max(mine, default=0)


def floors(standing: Standing) -> dict[RouteId, Lsn]:
    """Return what ingest is told of each route: what lies below may retire for its sake.

    That is its checkpoint; or what follows the packed files that hold what it needs, but never
    above the frontier, which a start takes for the end of the log.
    """
    by_stream = grouped(standing.files)
    said = {}
    for route in standing.routes:
        files = by_stream.get(route.stream_id, ())
        held = held_through(route.checkpoint, files, standing)
        floor = route.checkpoint
        if held is not None:
            floor = max(floor, min(held + 1, standing.frontier_lsn))
        if route.archive_bytes:
            floor = min(floor, archived_through(route.stream_id, files) + 1)
        said[route.route_id] = floor
    return said


class Needed:
    """How many bytes of the log are needed from an LSN on: asked for many routes."""

    def __init__(self, segments: Sequence[FinishedSegment]) -> None:
        held = [segment for segment in segments if segment.last_lsn != segment.before_lsn]
        self._held = held
        self._lasts = [segment.last_lsn for segment in held]
        sizes = accumulate((segment.size_bytes for segment in reversed(held)), initial=0)
        self._bytes = list(sizes)[::-1]

    def bytes_from(self, floor: Lsn) -> int:
        """Return the bytes of the segments that are needed with this floor."""
        return self._bytes[bisect_left(self._lasts, floor)]

    def first(self, floor: Lsn) -> FinishedSegment | None:
        """Return the oldest segment that is needed with this floor."""
        at = bisect_left(self._lasts, floor)
        return self._held[at] if at < len(self._held) else None


def next_job(standing: Standing, policy: RepackPolicy) -> PackJob | None:
    """Return the next file to be made; None if there is nothing to do now."""
    if not standing.complete:
        return None
    told = floors(standing)
    needed = min(told.values(), default=limits.LSN_MAX)
    for segment in standing.segments:
        if segment.last_lsn == segment.before_lsn:
            continue
        job = _archive_job(standing, segment)
        if job is None and not is_drained(segment, needed):
            job = _pack_job(standing, segment, told, policy)
            if job is None:
                needed = limits.LSN_MAX  # a younger one would not go before it
        if job is not None:
            return job
    return None


def _archive_job(standing: Standing, segment: FinishedSegment) -> PackJob | None:
    for stream_id in sorted({each.stream_id for each in standing.routes if each.archive_bytes}):
        files = [file for file in of_stream(standing.files, stream_id) if file.archive]
        through = archived_through(stream_id, files)
        if through < segment.last_lsn:
            lo = max(through, segment.before_lsn)
            job = PackJob(stream_id, lo, segment.last_lsn, segment.number, archive=True)
            return _taking_in(job, segment, files)
    return None


def _pack_job(
    standing: Standing,
    segment: FinishedSegment,
    told: Mapping[RouteId, Lsn],
    policy: RepackPolicy,
) -> PackJob | None:
    needing = [route for route in standing.routes if told[route.route_id] <= segment.last_lsn]
    needed = Needed(standing.segments)
    after_s = policy.after_s
    if standing.fills.get(segment.number, 1.0) < limits.PACK_POOR_SHARE:
        after_s = min(after_s, limits.PACK_POOR_AFTER_S)
    if not all(
        route.resting
        or route.pinning_s >= after_s
        or needed.bytes_from(route.checkpoint) >= policy.after_bytes
        for route in needing
    ):
        return None
    for stream_id in sorted({route.stream_id for route in needing}):
        files = of_stream(standing.files, stream_id)
        starts = []
        for route in needing:
            if route.stream_id == stream_id:
                held = held_through(route.checkpoint, files, standing)
                starts.append(route.checkpoint - 1 if held is None else held)
        lo = max(segment.before_lsn, min(starts))
        if lo < segment.last_lsn:
            job = PackJob(stream_id, lo, segment.last_lsn, segment.number)
            return _taking_in(job, segment, [file for file in files if not file.archive])
    return None  # all is held; only the frontier keeps the segment


def _taking_in(job: PackJob, segment: FinishedSegment, files: Sequence[PackedRange]) -> PackJob:
    """Let a job replace the files in front of it that are not much larger.

    So a stream with little in each segment has few files, and what is packed is packed again
    only as often as its file doubles.
    """
    taken: list[PackedRange] = []
    lo, total = job.lo, segment.size_bytes // _GUESSED_SHARE
    for file in reversed(files):
        total_then = total + file.raw_bytes
        if file.hi != lo or file.raw_bytes > 2 * total or total_then > _MERGED_MAX_BYTES:
            break
        taken.insert(0, file)
        lo, total = file.lo, total_then
    return job._replace(lo=lo, takes_in=tuple(taken))


_MERGED_MAX_BYTES = limits.PACKED_MERGED_MAX_BYTES
_GUESSED_SHARE = 64  # what a stream has of a segment is not known before: at least so much is meant


class Passed(NamedTuple):
    """A packed file that every route of its stream has passed, and since when (monotonic)."""

    file: PackedRange
    since_s: float


def is_passed(file: PackedRange, routes: Iterable[RouteStanding]) -> bool:
    """Tell whether no route needs a file: the block of a checkpoint is still needed."""
    return all(route.checkpoint > file.hi for route in routes if route.stream_id == file.stream_id)


def deletable(
    passed: Sequence[Passed], now_s: float, *, after_s: float, after_bytes: int
) -> list[PackedRange]:
    """Return the passed files that may go, oldest first: kept until either bound is reached."""
    rows = sorted((row for row in passed if not row.file.archive), key=lambda row: row.since_s)
    kept_bytes = sum(row.file.size_bytes for row in rows)
    gone = []
    for file, since_s in rows:
        if kept_bytes <= after_bytes and now_s - since_s < after_s:
            break
        gone.append(file)
        kept_bytes -= file.size_bytes
    return gone


def beyond_the_archive(
    passed: Sequence[Passed], files: Sequence[PackedRange], routes: Iterable[RouteStanding]
) -> list[PackedRange]:
    """Return the archived files beyond what is to be kept of their streams, oldest first.

    Of a stream that is archived no more all stays: a person kept it on purpose.
    """
    bounds: dict[StreamId, int] = {}
    for route in routes:
        if route.archive_bytes:
            bounds[route.stream_id] = max(route.archive_bytes, bounds.get(route.stream_id, 0))
    may_go = {row.file for row in passed}
    gone = []
    for stream_id, bound_bytes in bounds.items():
        kept = [file for file in of_stream(files, stream_id) if file.archive]
        total = sum(file.size_bytes for file in kept)
        for file in kept:
            if total <= bound_bytes or file not in may_go:
                break
            gone.append(file)
            total -= file.size_bytes
    return gone


def pinned_bytes(standing: Standing) -> dict[RouteId, int]:
    """Return what each route keeps on disk: of the log by its floor, of packed files by its need.

    An archive is kept on purpose, and by no route.
    """
    needed, told = Needed(standing.segments), floors(standing)
    packed = grouped(file for file in standing.files if not file.archive)
    return {
        route.route_id: needed.bytes_from(told[route.route_id])
        + sum(
            file.size_bytes
            for file in packed.get(route.stream_id, ())
            if file.hi >= route.checkpoint
        )
        for route in standing.routes
    }
