"""Segments made ready ahead of need, and the pool of retired ones.

A prepared segment has a PREP header, synced before the file gets its final name; the name is
durable before anybody hears of it. A retired file is overwritten only after its removal from the
log directory is durable. Nothing is renamed over an existing name.
"""

import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from wald import limits
from wald.core import frame
from wald.core.frame import SegmentHeader, SegmentKind
from wald.errors import DiskFull
from wald.ports import Chance, Clock, File, FileSystem
from wald.storage import segment as segments
from wald.storage.segment import SegmentWriter

_FULL = (errno.ENOSPC, errno.EDQUOT)
_ZEROS = bytes(limits.ZERO_STEP_BYTES)
_NOWHERE = 1 << 62
# more than the log may write before it says that it did
_CLEARANCE_BYTES = limits.GROUP_MAX_BYTES + 2 * limits.ALIGNMENT_MAX_BYTES


def is_full(error: OSError) -> bool:
    """Tell whether an error says that there is no room."""
    return error.errno in _FULL


def disk_full(path: str, what: str) -> DiskFull:
    """Return the typed refusal."""
    msg = f"no room on the file system of {path} for {what}"
    return DiskFull(msg, retry_after_s=limits.DISK_FULL_RETRY_S)


class Prepared(NamedTuple):
    """A segment whose name and PREP header are durable; its file is open to write."""

    file: File
    number: int
    capacity_bytes: int


@dataclass(slots=True)
class _Work:
    """A file on its way to become a prepared segment."""

    file: File
    path: str
    number: int
    zero_from: int  # the next offset to fill with zeros
    capacity_bytes: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a log lives and what all its files share."""

    fs: FileSystem
    clock: Clock
    chance: Chance
    data_dir: str
    log_id: bytes
    alignment: int
    segment_bytes: int
    reserve_bytes: int

    @property
    def log_dir(self) -> str:
        """The directory of the segments."""
        return f"{self.data_dir}/{segments.LOG_DIRECTORY}"

    @property
    def pool_dir(self) -> str:
        """The directory of the retired ones."""
        return f"{self.data_dir}/{segments.POOL_DIRECTORY}"

    def path(self, number: int) -> str:
        """Where a segment stands."""
        return segments.segment_path(self.data_dir, number)

    def salt(self) -> int:
        """Return a new secret salt."""
        return int.from_bytes(self.chance.randbytes(8), "little")

    def room_bytes(self) -> int:
        """Return how much the log may still take: the reserve is for ledger and restarts."""
        return self.fs.free_bytes(self.data_dir) - self.reserve_bytes


class Pool:
    """The retired files: names in ``log/pool``, bounded. The caller holds the lock."""

    def __init__(self, place: Place, max_segments: int) -> None:
        self._place = place
        self._max = max_segments
        self._names: list[str] = []

    @property
    def names(self) -> tuple[str, ...]:
        """The files that may be overwritten."""
        return tuple(self._names)

    def load(self) -> None:
        """Take up what is there, at a start; the directories are durable.

        A cut may leave one file under two names: the one in the pool goes, or both would be used.
        """
        fs = self._place.fs
        seen = {found.inode for found in map(fs.stat, self._live_paths()) if found is not None}
        for name in fs.list_directory(self._place.pool_dir):
            path = f"{self._place.pool_dir}/{name}"
            found = fs.stat(path)
            if segments.segment_number(name) is None or found is None:
                continue
            if found.inode in seen or len(self._names) >= self._max:
                fs.unlink(path)
            else:
                seen.add(found.inode)
                self._names.append(name)
        fs.sync_directory(self._place.pool_dir)

    def _live_paths(self) -> list[str]:
        fs, place = self._place.fs, self._place
        held = [f"{place.log_dir}/{name}" for name in fs.list_directory(place.log_dir)]
        quarantine = f"{place.data_dir}/{segments.QUARANTINE_DIRECTORY}"
        return held + [f"{quarantine}/{name}" for name in fs.list_directory(quarantine)]

    def put(self, number: int, *, keep: bool) -> None:
        """Take a file out of the log for good: into the pool, or away with it.

        Only when this has returned is the removal durable. ``keep`` False for a file that has
        another name or failed a sync: it must not be overwritten. Safe to repeat after a failure.
        """
        fs, place = self._place.fs, self._place
        name = segments.segment_name(number)
        keep = keep and len(self._names) < self._max
        if fs.stat(place.path(number)) is None:
            # it went, and only making that durable failed: not to be overwritten
            fs.sync_directory(place.log_dir)
        elif keep and fs.stat(f"{place.pool_dir}/{name}") is None:
            fs.rename(place.path(number), f"{place.pool_dir}/{name}")
            fs.sync_directory(place.log_dir)
            fs.sync_directory(place.pool_dir)
            self._names.append(name)
        else:
            fs.unlink(place.path(number))
            fs.sync_directory(place.log_dir)

    def take(self) -> str | None:
        """Return the path of a file to overwrite; it is the caller's from now on."""
        return f"{self._place.pool_dir}/{self._names.pop()}" if self._names else None

    def release_one(self) -> bool:
        """Give the room of one file back to the file system."""
        path = self.take()
        if path is None:
            return False
        self._place.fs.unlink(path)
        return True


@dataclass(slots=True)
class _Tail:
    """The unwritten rest of the segment that the log writes: zeroed from its end downwards."""

    file: File
    writer: SegmentWriter
    zeroed_from: int


class Preallocator:
    """Fills the rest of a fresh segment with zeros, then makes the next one ready.

    Over blocks that were written before, a flush changes no metadata: half the time.

    ``step`` is called from one thread, everything else from the log's; a lock hands over.

    Attributes:
        zeroing_from: no step writes below this offset of the log's segment; the log looks at it
            before each write, without the lock (``give_way``).
        tail_failed: a sync of the log's segment failed here: no more may be believed of it.
        last_error: why the last step failed.
    """

    def __init__(self, place: Place, pool: Pool) -> None:
        self._place = place
        self._pool = pool
        self._lock = threading.Lock()
        self._wanted = 0
        self._work: _Work | None = None
        self._ready: Prepared | None = None
        self._tail: _Tail | None = None
        self.zeroing_from = _NOWHERE
        self.tail_failed = False
        self.last_error: OSError | None = None

    def step(self) -> bool:
        """Do one step: at most ``limits.ZERO_STEP_BYTES`` of zeros.

        Returns:
            True while there is more to do; False when the next segment is ready, or there is no
            room for it, or preparing it failed (``last_error``): call again later.
        """
        with self._lock:
            try:
                return self._step()
            except OSError as error:
                self.last_error = error
                self._leave_tail()
                self._drop_work()
                return False

    def zero_tail(self, writer: SegmentWriter) -> None:
        """Let the steps zero the rest of the segment that ``writer`` goes on with.

        Raises:
            OSError: as the system does.
        """
        with self._lock:
            self._leave_tail()
            self.tail_failed = False
            place = self._place
            if writer.capacity_bytes > writer.end_bytes + _CLEARANCE_BYTES:
                file = place.fs.open(place.path(writer.number), write=True)
                self._tail = _Tail(file, writer, writer.capacity_bytes)

    def give_way(self, writer: SegmentWriter) -> None:
        """Call before each write to the log's segment: none of the zeros may fall upon it.

        The steps stay above what one group may need. More than that is a snapshot.
        """
        need = writer.need_bytes
        if need > self.zeroing_from or need > writer.end_bytes + _CLEARANCE_BYTES:
            self.leave_tail()

    def leave_tail(self) -> None:
        """Write no more zeros to the log's segment; none is on its way on return."""
        with self._lock:
            self._leave_tail()

    def _leave_tail(self) -> None:
        self.zeroing_from = _NOWHERE
        if self._tail is not None:
            self._tail.file.close()
            self._tail = None

    def _step_tail(self, tail: _Tail) -> bool:
        begin = tail.zeroed_from - limits.ZERO_STEP_BYTES
        # said before it is looked where the log stands: whoever passed the old mark wrote at most
        # one group since, and that lies below (``give_way``)
        self.zeroing_from = begin
        if begin < tail.writer.end_bytes + _CLEARANCE_BYTES:
            self._leave_tail()
            return True
        tail.file.pwritev([_ZEROS], begin)
        try:
            tail.file.sync()
        except OSError:
            self.tail_failed = True
            raise
        tail.zeroed_from = begin
        return True

    def _step(self) -> bool:
        if self._tail is not None:
            return self._step_tail(self._tail)
        if self._ready is not None or not self._wanted:
            return False
        if self._work is None:
            self._work = self._begin(self._wanted)
            return self._work is not None
        work = self._work
        length = min(limits.ZERO_STEP_BYTES, work.capacity_bytes - work.zero_from)
        if length > 0:
            work.file.pwritev([_ZEROS[:length]], work.zero_from)
            work.file.sync()
            work.zero_from += length
            return True
        self._ready = self._finish(work)
        return False

    def want(self, number: int) -> None:
        """Say which segment comes next. What was ready for another number is not used."""
        with self._lock:
            self._wanted = number

    def take(self, number: int, need_bytes: int) -> Prepared:
        """Return the prepared segment of that number, made on the spot if need be.

        Raises:
            DiskFull: there is no room for one.
            OSError: as the system does.
        """
        with self._lock:
            try:
                return self._take(number, need_bytes)
            except OSError as error:
                if self._ready is None:
                    self._drop_work()
                if is_full(error):
                    raise disk_full(self._place.data_dir, "a new segment") from error
                raise

    def _take(self, number: int, need_bytes: int) -> Prepared:
        if self._ready is None:
            if self._work is None:
                self._work = self._begin(number)
            if self._work is None:
                raise disk_full(self._place.data_dir, "a new segment")
            self._ready = self._finish(self._work)
        assert self._ready.number == number
        if self._ready.capacity_bytes < need_bytes:
            self._ready.file.allocate(0, need_bytes)
            self._ready = self._ready._replace(capacity_bytes=need_bytes)
        return self._ready

    def used(self) -> None:
        """Forget the prepared segment: it is the log's now, or was given up."""
        with self._lock:
            self._ready = None
            self._wanted = 0

    def retire(self, number: int, *, keep: bool) -> None:
        """Take a segment out of the log, into the pool; durable on return."""
        with self._lock:
            self._pool.put(number, keep=keep)

    def release_one(self) -> bool:
        """Make room by giving up a pooled file."""
        with self._lock:
            return self._pool.release_one()

    def give_up(self) -> int | None:
        """Drop what is prepared or on its way; return the number of a file that has its name."""
        with self._lock:
            self._drop_work()
            self._wanted = 0
            ready, self._ready = self._ready, None
            if ready is None:
                return None
            ready.file.close()
            return ready.number

    def close(self) -> None:
        """Close the files; what is unfinished is found and taken back at the next start."""
        with self._lock:
            self._wanted = 0
            self._leave_tail()
            if self._work is not None:
                self._work.file.close()
                self._work = None
            if self._ready is not None:
                self._ready.file.close()
                self._ready = None

    def _begin(self, number: int) -> _Work | None:
        place = self._place
        path = self._pool.take()
        if path is not None:
            file = place.fs.open(path, write=True)
        elif place.room_bytes() < place.segment_bytes:
            return None
        else:
            path = f"{place.log_dir}/prep-{number:010d}{segments.TEMPORARY_SUFFIX}"
            file = place.fs.create(path)
        work = _Work(file, path, number, place.segment_bytes, place.segment_bytes)
        self._work = work  # from here on a failure drops it
        size = file.size()
        # what a recycled file holds needs no zeros: its blocks bear another number and salt
        work.zero_from = min(max(size, place.alignment), place.segment_bytes)
        work.capacity_bytes = max(size, place.segment_bytes)
        if size < place.segment_bytes:
            file.allocate(0, place.segment_bytes)
        else:
            work.zero_from = work.capacity_bytes
        return work

    def _finish(self, work: _Work) -> Prepared:
        """Header, sync, final name, directory sync: in this order."""
        place = self._place
        self._work = work
        header = SegmentHeader(
            SegmentKind.PREP,
            place.alignment,
            place.log_id,
            work.number,
            place.salt(),
            0,
            0,
            0,
            0,
            place.clock.wall_ns(),
        )
        work.file.pwritev([frame.encode_segment_header(header)], 0)
        work.file.sync()
        place.fs.rename(work.path, place.path(work.number))
        work.path = place.path(work.number)
        place.fs.sync_directory(place.log_dir)
        place.fs.sync_directory(place.pool_dir)
        self._work = None
        return Prepared(work.file, work.number, work.capacity_bytes)

    def _drop_work(self) -> None:
        work, self._work = self._work, None
        if work is None:
            return
        work.file.close()
        quietly(lambda: self._place.fs.unlink(work.path))


def quietly(action: Callable[[], object]) -> bool:
    """Do what may fail without harm; tell whether it was done."""
    try:
        action()
    except OSError:
        return False
    return True
