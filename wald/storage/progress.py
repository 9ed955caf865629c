"""Two-slot pages: small statements that one process writes and any may read.

    file at ``offset`` | slot 0 | slot 1 |      each ``slot_bytes`` long

    slot
      0  magic u32 b"WPAG"   4  version u16   6  0 u16   8  counter u64
     16  length u32         20  crc u32 (of bytes 0..19 and the body)
     24  body: one msgpack map of ``length`` bytes

The statement with counter n stands in slot n mod 2, so that a write never touches the newest whole
one: whatever a crash leaves of it, the statement before it is there. A reader takes the newest slot
whose CRC fits; it needs no lock.
"""

import errno
import posixpath
from struct import Struct
from typing import NamedTuple

from wald.core import frame
from wald.errors import FormatDamaged
from wald.ports import File, FileSystem

PAGE_MAGIC = 0x47415057  # "WPAG" as bytes on disk
PAGE_VERSION = 1
_SLOT = Struct("<IHHQI")
_CRC = Struct("<I")
SLOT_HEADER_BYTES = _SLOT.size + _CRC.size
_READ_ATTEMPTS = 16  # a writer at work may spoil one look at both slots, hardly two in a row

assert SLOT_HEADER_BYTES == 24


class _Slot(NamedTuple):
    counter: int
    statement: dict[str, object]


class TwoSlotPage:
    """A page in a file; more than one may stand in a file, at different offsets."""

    def __init__(self, file: File, offset: int, slot_bytes: int, *, instead_of: int = 0) -> None:
        self._file = file
        self._offset = offset
        self._slot_bytes = slot_bytes
        self._sync_failed = False
        newest = self._newest()
        self._counter = newest.counter if newest else 0
        if instead_of:
            self._counter = max(self._counter, instead_of + 1)

    @classmethod
    def open(
        cls,
        fs: FileSystem,
        path: str,
        *,
        offset: int = 0,
        slot_bytes: int,
        write: bool,
        instead_of: int = 0,
    ) -> "TwoSlotPage":
        """Open the page; a writer makes the file if it is not there, its name durable.

        ``instead_of`` is what ``unsynced`` said of a page that was closed: the next statement is
        written whole over that one, and the other slot stands until it is durable.

        Raises:
            FileNotFoundError: only read is asked and there is no file yet.
            OSError: as the system says.
        """
        file = _open_or_create(fs, path) if write else fs.open(path)
        try:
            return cls(file, offset, slot_bytes, instead_of=instead_of)
        except OSError:
            file.close()
            raise

    def write(self, statement: dict[str, object], *, sync: bool) -> None:
        """Replace the statement; with ``sync`` it is durable on return.

        Raises:
            ValueError: the statement does not fit its slot.
            OSError: as the system says, and always after a sync failed once: pages that a failed
                sync has marked clean are never written again.
        """
        if self._sync_failed:
            raise OSError(errno.EIO, "a sync of this page failed before")
        counter = self._counter + 1
        body = frame.pack_statement(statement)
        if SLOT_HEADER_BYTES + len(body) > self._slot_bytes:
            msg = f"a statement of {len(body)} bytes does not fit a slot of {self._slot_bytes}"
            raise ValueError(msg)
        head = _SLOT.pack(PAGE_MAGIC, PAGE_VERSION, 0, counter, len(body))
        crc = _CRC.pack(frame.crc32c(head + body))
        self._file.pwritev((head + crc + body,), self._slot_offset(counter % 2))
        self._counter = counter
        if sync:
            try:
                self._file.sync()
            except OSError:
                self._sync_failed = True
                raise

    @property
    def unsynced(self) -> int:
        """The counter of the statement whose sync failed; 0 if none did."""
        return self._counter if self._sync_failed else 0

    def read(self) -> dict[str, object] | None:
        """Return the newest whole statement; None if there is none."""
        for _ in range(_READ_ATTEMPTS):
            newest = self._newest()
            if newest is not None:
                return newest.statement
        return None

    def close(self) -> None:
        """Close the file; harmless to repeat."""
        self._file.close()

    def _newest(self) -> _Slot | None:
        heads = [self._file.pread(SLOT_HEADER_BYTES, self._slot_offset(i)) for i in (0, 1)]
        order = sorted((0, 1), key=lambda i: _counter_of(heads[i]), reverse=True)
        for index in order:
            found = self._slot(index, heads[index])
            if found is not None:
                return found
        return None

    def _slot(self, index: int, head: bytes) -> _Slot | None:
        if len(head) < SLOT_HEADER_BYTES:
            return None
        magic, version, _, counter, length = _SLOT.unpack_from(head)
        ours = magic == PAGE_MAGIC and version == PAGE_VERSION and counter % 2 == index
        if not ours or SLOT_HEADER_BYTES + length > self._slot_bytes:
            return None
        body = self._file.pread(length, self._slot_offset(index) + SLOT_HEADER_BYTES)
        if _CRC.unpack_from(head, _SLOT.size)[0] != frame.crc32c(head[: _SLOT.size] + body):
            return None
        try:
            return _Slot(counter, frame.unpack_statement(body))
        except FormatDamaged:
            return None

    def _slot_offset(self, index: int) -> int:
        return self._offset + index * self._slot_bytes


def _counter_of(head: bytes) -> int:
    return int(_SLOT.unpack_from(head)[3]) if len(head) == SLOT_HEADER_BYTES else -1


def _open_or_create(fs: FileSystem, path: str) -> File:
    try:
        return fs.open(path, write=True)
    except FileNotFoundError:
        file = fs.create(path)
    try:
        fs.sync_directory(posixpath.dirname(path) or ".")
    except OSError:
        file.close()
        raise
    return file
