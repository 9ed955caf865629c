"""The packed files of a drainer: known to its lanes at any moment, settled with the ledger."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

from wald.core.packing import covered_through, grouped, of_stream
from wald.errors import DataDirectoryForeign
from wald.model import Lsn, PackedRange, StreamId
from wald.ports import FileSystem
from wald.storage.packed import (
    OpenPack,
    delete_packed,
    list_packed,
    remove_unfinished,
    sync_directories,
)
from wald.storage.packed_index import PackedIndex

_log = logging.getLogger("wald.drain")


class PackedFiles:
    """The packed files that the ledger names, for any thread; changed by one, as a whole."""

    def __init__(self, index: PackedIndex | None = None) -> None:
        """Begin with what the ledger's table holds; without one there are none.

        Raises:
            LedgerFailed: it cannot be read.
        """
        self._index = index
        self.all: Sequence[PackedRange] = ()
        self._by_stream: Mapping[StreamId, Sequence[PackedRange]] = {}
        self._put(index.rows() if index is not None else ())

    def of(self, stream_id: StreamId) -> Sequence[PackedRange]:
        """Return those of a stream, in order."""
        return self._by_stream.get(stream_id, ())

    def change(self, gone: Collection[PackedRange], come: Collection[PackedRange] = ()) -> None:
        """Name other files: in the ledger first (T10), then to the lanes; durable on return.

        Raises:
            LedgerFailed, DiskFull: the ledger cannot be written; nothing changed here.
        """
        assert self._index is not None
        self._index.replace(gone, come)  # COMMIT POINT: T10
        self._put([*(file for file in self.all if file not in gone), *come])

    def settle(self, fs: FileSystem, data_dir: str, log_id: bytes) -> None:
        """Bring directory and ledger together; before a lane begins, and after a failure.

        What was being written is deleted. A file that the ledger does not name is deleted if
        others that are there hold the same, else it is taken in: it may be the only copy.

        Raises:
            FormatNewer: a newer release wrote one.
            LedgerFailed, DiskFull: the ledger cannot be read or written.
            OSError: as the system does.
        """
        assert self._index is not None
        self._put(self._index.rows())
        remove_unfinished(fs, data_dir)
        sync_directories(fs, data_dir)
        there = {_identity(file): file for file in list_packed(fs, data_dir)}
        for identity, orphan in there.items():
            if identity in map(_identity, self.all):
                continue
            kept = [
                file
                for file in self.all
                if _identity(file) in there and file.archive == orphan.archive
            ]
            if covered_through(orphan.lo, of_stream(kept, orphan.stream_id)) >= orphan.hi:
                delete_packed(fs, data_dir, orphan)
            elif _is_ours(fs, data_dir, log_id, orphan):
                _log.warning("the ledger did not name it, and takes it in: %r", orphan)
                self.change([file for file in self.all if _replaces(orphan, file, there)], [orphan])
        for lost in self.all:
            if _identity(lost) not in there:
                _log.error("it is gone; what the log lacks too becomes dead letters: %r", lost)

    def _put(self, files: Collection[PackedRange]) -> None:
        self._by_stream = grouped(files)
        self.all = tuple(files)


_Identity: TypeAlias = tuple[bool, StreamId, Lsn, Lsn]


def _identity(file: PackedRange) -> _Identity:
    return file.archive, file.stream_id, file.lo, file.hi


def _replaces(orphan: PackedRange, named: PackedRange, there: Collection[_Identity]) -> bool:
    """Tell whether a file has taken in one that is named and gone: the ledger is an older one."""
    same_kind = (named.archive, named.stream_id) == (orphan.archive, orphan.stream_id)
    within = orphan.lo <= named.lo and named.hi <= orphan.hi
    return same_kind and within and _identity(named) not in there


def _is_ours(fs: FileSystem, data_dir: str, log_id: bytes, packed: PackedRange) -> bool:
    try:
        OpenPack(fs, data_dir, log_id, packed).close()
    except DataDirectoryForeign as error:
        _log.error("%s", error.message)
        return False
    return True
