"""The ledger's store on a simulated disk: what a crash leaves of it is what LMDB documents.

    ledger/data    page 0 and page 1: a meta page each; behind them the tables of two transactions

A commit writes its tables where neither of the last two transactions has theirs, syncs, writes the
older of the two meta pages, and syncs again. So a power cut in it leaves the transaction before,
never a part of one; a commit whose second sync is left out may be undone; one without any sync
may leave a file that cannot be read. A file whose directory was not synced may be gone. Behind a
meta page that could not be synced the store is of no use before it is opened again.

It passes the contract of ``wald.ports.Store`` as LMDB does.
"""

import errno
import threading
from collections.abc import Callable
from struct import Struct
from typing import Final, Generic, TypeVar

import msgpack

from wald.core.frame import crc32c
from wald.errors import DiskFull, LedgerDamaged, LedgerFailed
from wald.limits import RETRY_CAP_S
from wald.ports import FileSystem, Transaction, Underway
from wald.storage.ledger import StoreLedger, found_ledger
from wald.storage.tickets import Ticket, Tickets
from wald.testing.memory_ledger import MemoryTransaction, Tables, copied

DATA_NAME: Final = "data"
_PAGE_BYTES = 4096
_META: Final = Struct("<8sQQQI")  # magic, transaction, offset and length of its tables, their CRC
_CRC: Final = Struct("<I")
_MAGIC = b"SIMLEDGR"
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})

_T = TypeVar("_T")


def open_sim_ledger(fs: FileSystem, data_dir: str, log_id: bytes) -> StoreLedger:
    """Open the ledger of a data directory, made if it is not there, as ``open_ledger`` does.

    Raises:
        LedgerDamaged: it cannot be read.
        LedgerFailed: the system refuses.
        DiskFull: no room to make it.
    """
    path = f"{data_dir}/ledger"
    try:
        if fs.stat(path) is None:
            _make(fs, data_dir, log_id)
        store = SimStore(fs, f"{path}/{DATA_NAME}")
    except OSError as error:
        raise _failed(error) from error
    return StoreLedger(store, log_id)


def _make(fs: FileSystem, data_dir: str, log_id: bytes) -> None:
    """Make an empty ledger under a temporary name, whole and synced, then rename it."""
    temporary = f"{data_dir}/ledger.new"
    if fs.stat(temporary) is None:
        fs.make_directory(temporary)
    for name in fs.list_directory(temporary):
        fs.unlink(f"{temporary}/{name}")
    fs.create(f"{temporary}/{DATA_NAME}").close()
    store = SimStore(fs, f"{temporary}/{DATA_NAME}", new=True)
    store.write(lambda txn: found_ledger(txn, log_id))
    store.close()
    fs.sync_directory(temporary)
    fs.rename(temporary, f"{data_dir}/ledger")
    fs.sync_directory(data_dir)


class SimStore:
    """The ``Store`` of a file; any thread, one transaction at a time.

    Args:
        fs: where the file is.
        path: its path.
        new: it is empty.

    Raises:
        LedgerDamaged: it cannot be read.
        OSError: as the system does.
    """

    def __init__(self, fs: FileSystem, path: str, *, new: bool = False) -> None:
        self._lock = threading.RLock()
        self._file = fs.open(path, write=True)
        self._why_useless = ""
        self._number = 0
        self._places: dict[int, tuple[int, int]] = {}  # offset and length, by transaction
        self._tables: Tables = {} if new else self._load()
        self._tickets = Tickets(self._write)

    @property
    def is_usable(self) -> bool:
        """False behind a meta page that could not be written."""
        return not self._why_useless

    def read(self, work: Callable[[Transaction], _T]) -> _T:
        """See ``Store.read``."""
        with self._lock:
            self._check_usable()
            return work(MemoryTransaction(self._tables))

    def write(self, work: Callable[[Transaction], _T]) -> _T:
        """See ``Store.write``. COMMIT POINT: durable when this returns."""
        ticket = self._tickets.put(work)
        self.commit_waiting()
        return ticket.wait()

    def write_later(self, work: Callable[[Transaction], _T]) -> Underway[_T]:
        """See ``Store.write_later``: not before somebody waits, writes, or lets it be committed."""
        return _Later(self, self._tickets.put(work))

    def commit_waiting(self) -> None:
        """Make durable what was given to be written later."""
        with self._lock:
            self._tickets.commit()

    def _write(self, work: Callable[[Transaction], _T]) -> _T:
        self._check_usable()
        tables = copied(self._tables)
        result = work(MemoryTransaction(tables))
        try:
            self._commit(tables)
        except OSError as error:
            raise _failed(error) from error
        self._tables = tables
        return result

    def close(self) -> None:
        """Close; harmless to repeat."""
        with self._lock:
            self._tickets.commit()
            self._why_useless = "the ledger is closed"
            self._file.close()

    def _check_usable(self) -> None:
        if self._why_useless:
            raise LedgerFailed(self._why_useless)

    def _commit(self, tables: Tables) -> None:
        data = msgpack.packb(tables)
        number, offset = self._number + 1, self._free_place(len(data))
        self._file.pwritev([data], offset)
        self._file.sync()
        meta = _META.pack(_MAGIC, number, offset, len(data), crc32c(data))
        self._why_useless = "the ledger failed: its meta page could not be written"
        self._file.pwritev([meta, _CRC.pack(crc32c(meta))], number % 2 * _PAGE_BYTES)
        self._file.sync()
        self._why_useless = ""
        before = {each: at for each, at in self._places.items() if each == self._number}
        self._places = {**before, number: (offset, len(data))}
        self._number = number

    def _free_place(self, length: int) -> int:
        """Return where the last two transactions have nothing."""
        at = 2 * _PAGE_BYTES
        for offset, size in sorted(self._places.values()):
            if at + length <= offset:
                break
            at = max(at, -(-(offset + size) // _PAGE_BYTES) * _PAGE_BYTES)
        return at

    def _load(self) -> Tables:
        metas = [meta for meta in map(self._meta, (0, 1)) if meta is not None]
        if not metas:
            msg = "the ledger cannot be read: neither of its meta pages is whole"
            raise LedgerDamaged(msg)
        self._places = {number: (offset, length) for number, offset, length, _ in metas}
        self._number, offset, length, crc = max(metas)
        data = self._file.pread(length, offset)
        if crc32c(data) != crc:
            msg = "the ledger cannot be read: its last transaction is not there"
            raise LedgerDamaged(msg)
        return dict(msgpack.unpackb(data, strict_map_key=False))

    def _meta(self, page: int) -> tuple[int, int, int, int] | None:
        said = self._file.pread(_META.size + _CRC.size, page * _PAGE_BYTES)
        if len(said) < _META.size + _CRC.size or said[:8] != _MAGIC:
            return None
        if _CRC.unpack_from(said, _META.size)[0] != crc32c(said[: _META.size]):
            return None
        _, *meta = _META.unpack_from(said)
        return (meta[0], meta[1], meta[2], meta[3])


class _Later(Generic[_T]):
    """See ``wald.ports.Underway``: who waits for it commits it."""

    def __init__(self, store: SimStore, ticket: Ticket[_T]) -> None:
        self._store = store
        self._ticket = ticket

    @property
    def took(self) -> bool:
        """Whether it is durable."""
        return self._ticket.took

    def is_settled_within(self, timeout_s: float) -> bool:
        """Commit it: here nothing takes time."""
        self._store.commit_waiting()
        return self._ticket.is_settled_within(timeout_s)

    def wait(self) -> _T:
        """Return what the work returned, or raise what kept it from becoming durable."""
        self._store.commit_waiting()
        return self._ticket.wait()


def _failed(error: OSError) -> LedgerFailed | DiskFull:
    if error.errno in _NO_ROOM:
        msg = "no room for the ledger"
        return DiskFull(msg, retry_after_s=RETRY_CAP_S)
    msg = f"the ledger failed: {error.strerror}"
    return LedgerFailed(msg)
