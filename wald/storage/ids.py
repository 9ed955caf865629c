"""Dedup ids on the disk, so that a start knows them without reading the log.

    file ids/ids-%010d.log | entry | entry | ... | zeros | entry | ...

    entry (IDS_HEADER_BYTES, then the body)
      0  magic u32 b"WIDS"   4  version u16   6  0 u16   8  length u32   12  crc u32 (of bytes
      0..11 and the body)
     16  body: one msgpack array of [stream, commit time, array of LSN, array of id]

Every snapshot of the log stands for the ids of all records before it: they are durable here before
it is written. So a start reads these files and the groups behind the newest snapshot, which it
reads anyway; what it reads twice is known already. Nothing here is of a group that is not durable.

Each process begins a new file, and so does each failed write: nothing is ever written behind bytes
whose fate is unknown. Each write begins on a page of its own, so that a torn one harms no earlier
one. A file goes when all its ids are forgotten; or, where they are many and little of them is
remembered, once that is written anew: one stream that remembers for long would keep the files that
others fill. So entries of later files may be of earlier LSNs.
"""

import errno
from collections import Counter
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Final, NamedTuple, cast

import msgpack

from wald import limits
from wald.core import frame
from wald.core.ids import IdTable, NewIds
from wald.core.state import LogState
from wald.errors import DiskFull
from wald.model import LostRange, Lsn
from wald.ports import File, FileSystem

IDS_DIRECTORY: Final = "ids"
IDS_MAGIC: Final = 0x53444957  # "WIDS" as bytes on disk
IDS_VERSION: Final = 1
_HEAD = Struct("<IHHI")
_CRC = Struct("<I")
IDS_HEADER_BYTES: Final = _HEAD.size + _CRC.size
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_PREFIX, _SUFFIX = "ids-", ".log"

assert IDS_HEADER_BYTES == 16


class _Timed(NamedTuple):
    new: NewIds
    time_ns: int


class IdStore:
    """The ids of all streams, in memory and on the disk. Owned by the log.

    Attributes:
        table: what is remembered.
        notes: what a start could not read.
    """

    def __init__(
        self,
        fs: FileSystem,
        data_dir: str,
        table: IdTable,
        alignment: int = limits.ALIGNMENT_MIN_BYTES,
    ) -> None:
        self.table = table
        self._alignment = alignment
        self.notes: list[str] = []
        self._fs = fs
        self._directory = f"{data_dir}/{IDS_DIRECTORY}"
        self._pending: list[_Timed] = []
        self._file: File | None = None
        self._size_bytes = 0
        self._number = 0
        self._is_named = False  # whether the directory's own name is durable
        self._last_lsns: dict[int, Lsn] = {}  # of each file, the highest it holds
        self._counts: Counter[int] = Counter()  # of each file, how many ids it holds

    def load(self, state: LogState, behind: Sequence[tuple[NewIds, int]] = ()) -> None:
        """Read what the processes before this one wrote.

        Args:
            state: for the names of streams.
            behind: what stands in the groups behind the newest snapshot, with commit times. A crash
                may have cut out of the files what is older than something that they hold of it.

        Raises:
            OSError: as the system does.
        """
        if not self.table or self._fs.stat(self._directory) is None:
            return
        names = {stream.stream_id: stream.name for stream in state.streams.values()}
        found = [_Timed(new, time_ns) for new, time_ns in behind]
        for name in self._fs.list_directory(self._directory):
            number = _number(name)
            if number is None:
                continue
            self._number = max(self._number, number)
            self._last_lsns[number] = 0
            entries = list(_entries(self._read(name), name, self.notes))
            self._note(number, entries)
            found += entries
        for new, time_ns in sorted(found, key=_first_lsn):
            stream = self.table.of(new.stream, names.get(new.stream, ""))
            if stream is not None:
                stream.add(new.lsns, new.ids, time_ns)
        for _, stream in self.table:
            stream.crowded_out = 0  # files hold more than is remembered: that was told before

    def add(self, new: Sequence[NewIds], time_ns: int) -> None:
        """Remember the ids of a durable group; they reach the disk with the next snapshot."""
        for each in new:
            stream = self.table.known(each.stream)
            assert stream is not None, "ids of a stream that compares none"
            stream.add(each.lsns, each.ids, time_ns)
            self._pending.append(_Timed(each, time_ns))

    def forget(self, losses: Sequence[LostRange]) -> None:
        """Forget the ids of records that damage took, on the disk too.

        Raises:
            DiskFull, OSError: as ``persist``.
        """
        older = sorted(self._last_lsns)
        self._pending.clear()
        for number, stream in self.table:
            for lost in losses:
                stream.forget_lost(lost)
            if len(stream):
                self._pending.append(_Timed(NewIds(number, *stream.all()), stream.newest_ns))
        self.persist()
        gone = [number for number in older if number in self._last_lsns]
        for number in gone:
            self._unlink(number)
        if gone:
            self._fs.sync_directory(self._directory)

    def persist(self) -> None:
        """Make durable what was added: before every snapshot of the log.

        Raises:
            DiskFull: there is no room; nothing may stand for these ids yet.
            OSError: as the system does, also with another file.
        """
        if not self._pending:
            return
        data = b"".join(map(_packed, self._pending))
        try:
            try:
                self._write(data)
            except OSError as error:
                if error.errno in _NO_ROOM:
                    raise
                self._give_up()
                self._write(data)
        except OSError as error:
            self._give_up()
            if error.errno in _NO_ROOM:
                msg = "no room for the dedup ids of what is stored"
                raise DiskFull(msg, retry_after_s=limits.DISK_FULL_RETRY_S) from error
            raise
        self._note(self._number, self._pending)
        self._pending.clear()
        self._drop_files()
        self._carry_over()
        if self._size_bytes >= limits.DEDUP_FILE_BYTES:
            self._leave()

    def close(self) -> None:
        """Let go of the file; what is not durable is read from the log by the next start."""
        self._leave()

    def _write(self, data: bytes) -> None:
        file = self._file or self._begin()
        size_bytes = frame.padded(len(data), self._alignment)
        file.pwritev([data.ljust(size_bytes, b"\0")], self._size_bytes)
        file.sync()
        self._size_bytes += size_bytes

    def _begin(self) -> File:
        fs = self._fs
        if not self._is_named:
            if fs.stat(self._directory) is None:
                fs.make_directory(self._directory)
            fs.sync_directory(self._directory.rpartition("/")[0])
            self._is_named = True
        self._number += 1
        self._file = fs.create(self._path(self._number))
        self._size_bytes = 0
        fs.sync_directory(self._directory)
        return self._file

    def _path(self, number: int) -> str:
        return f"{self._directory}/{_PREFIX}{number:010d}{_SUFFIX}"

    def _leave(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _give_up(self) -> None:
        """Leave a file whose write failed; where it holds nothing else, it goes.

        Whatever of the write is on the disk would be known twice. A full disk is tried again with
        every group: it must not get fuller by that.
        """
        begun = self._file is not None and self._number not in self._last_lsns
        self._leave()
        if begun:
            try:
                self._unlink(self._number)
            except OSError:
                self._last_lsns[self._number] = 0  # tried again

    def _drop_files(self) -> None:
        """Remove the oldest files, as far as all that they hold is forgotten."""
        oldest = [ids.oldest_lsn for _, ids in self.table if ids.oldest_lsn is not None]
        needed_from = min(oldest, default=limits.LSN_MAX)
        for number in sorted(self._last_lsns):
            if number == self._number or self._last_lsns[number] >= needed_from:
                return
            try:
                self._unlink(number)
            except OSError:
                return  # tried again

    def _carry_over(self) -> None:
        """Write what the oldest file holds of use anew, and remove it, where files hold too much.

        So that what is on the disk stays in proportion to what is remembered. One file at a time,
        and where it fails, it is tried again.
        """
        oldest = min(self._last_lsns)
        remembered = sum(len(ids) for _, ids in self.table)
        if (
            len(self._last_lsns) < limits.DEDUP_FILES_COUNT
            or self._counts.total() <= 2 * remembered
            or oldest == self._number
        ):
            return
        try:
            data = self._data_of(self._path(oldest))
            useful = [each for each in map(self._useful, _entries(data)) if each.new.ids]
            if useful:
                self._write(b"".join(map(_packed, useful)))
                self._note(self._number, useful)
            self._unlink(oldest)
        except OSError:
            self._give_up()

    def _useful(self, each: _Timed) -> _Timed:
        """Return what of an entry is remembered."""
        known = self.table.known(each.new.stream)
        pairs = zip(each.new.lsns, each.new.ids, strict=True)
        kept = [pair for pair in pairs if known is not None and known.get(pair[1]) == pair[0]]
        lsns, ids = [lsn for lsn, _ in kept], [dedup_id for _, dedup_id in kept]
        return each._replace(new=NewIds(each.new.stream, lsns, ids))

    def _note(self, number: int, entries: Sequence[_Timed]) -> None:
        """Note what a file holds."""
        for new, _ in entries:
            self._last_lsns[number] = max(self._last_lsns.get(number, 0), new.lsns[-1])
            self._counts[number] += len(new.lsns)

    def _unlink(self, number: int) -> None:
        self._fs.unlink(self._path(number))
        self._last_lsns.pop(number, None)
        self._counts.pop(number, None)

    def _read(self, name: str) -> bytes:
        try:
            return self._data_of(f"{self._directory}/{name}")
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return b"?"

    def _data_of(self, path: str) -> bytes:
        file = self._fs.open(path)
        try:
            return file.pread(file.size(), 0)
        finally:
            file.close()


def _entries(data: bytes, name: str = "", notes: list[str] | None = None) -> Iterator[_Timed]:
    """Yield what a file holds; what cannot be read is noted."""
    at = 0
    while at < len(data):
        found = _unpacked(data, at)
        if found is not None:
            each, at = found
            yield each
            continue
        page_end = frame.padded(at + 1, limits.ALIGNMENT_MIN_BYTES)
        if notes is not None and any(data[at:page_end]):
            # (what a crash or a failed write cut off was written again elsewhere)
            notes.append(f"{name} cannot be read at byte {at:,}")
        at = page_end


def _first_lsn(each: _Timed) -> Lsn:
    return each.new.lsns[0]


def _packed(each: _Timed) -> bytes:
    new = each.new
    said = [new.stream, each.time_ns, list(new.lsns), list(new.ids)]
    body = cast("bytes", msgpack.packb(said, use_bin_type=True))
    head = _HEAD.pack(IDS_MAGIC, IDS_VERSION, 0, len(body))
    return head + _CRC.pack(frame.crc32c(head + body)) + body


def _unpacked(data: bytes, at: int) -> tuple[_Timed, int] | None:
    if at + IDS_HEADER_BYTES > len(data):
        return None
    magic, version, _, length = _HEAD.unpack_from(data, at)
    (crc,) = _CRC.unpack_from(data, at + _HEAD.size)
    start = at + IDS_HEADER_BYTES
    end = start + length
    body = data[start:end]
    if (
        magic != IDS_MAGIC
        or version != IDS_VERSION
        or end > len(data)
        or crc != frame.crc32c(data[at : at + _HEAD.size] + body)
    ):
        return None
    stream, time_ns, lsns, ids = msgpack.unpackb(body)
    return _Timed(NewIds(stream, lsns, ids), time_ns), end


def _number(name: str) -> int | None:
    digits = name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
    return int(digits) if name == f"{_PREFIX}{digits}{_SUFFIX}" and digits.isdigit() else None
