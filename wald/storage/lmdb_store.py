"""The ledger's store in LMDB: tables of ordered keys, durable transactions. Its only importer.

    ledger/data.mdb, lock.mdb

LMDB's traps, each met here: it is made in a temporary directory and renamed, since its own
initialisation is not crash-safe, and directories are synced, since it never does; the format of
0.9 is asked for by name; stale readers are cleared at the start; a data file shorter than its
pages would kill the process that maps it, so that it is measured first; the map grows when full.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import Struct
from typing import TypeVar

import lmdb

from wald import limits
from wald.errors import DiskFull, LedgerFailed
from wald.ports import FileSystem, Transaction
from wald.storage.ledger import TABLES, StoreLedger, found_ledger

_NO_ROOM = frozenset({28, 122})  # ENOSPC, EDQUOT
_READER_CHECK_EVERY = 1024  # transactions
_DOUBLINGS_MAX = 16

# the two meta pages of LMDB 0.9: page header 16, magic u32, version u32, address, map size,
# free table (its first field is the page size) and main table of 48 each, last page, transaction
_META = Struct("<16xI I 8x 8x I 44x 48x Q Q".replace(" ", ""))
_META_MAGIC = 0xBEEFC0DE

_T = TypeVar("_T")
_TABLES_MAX = 32

assert len(TABLES) <= _TABLES_MAX


def open_ledger(
    fs: FileSystem,
    data_dir: str,
    log_id: bytes,
    *,
    map_bytes: int = limits.LEDGER_MAP_BYTES,
) -> StoreLedger:
    """Open the ledger of a data directory, made if it is not there; holds ``ledger.lock``.

    Raises:
        LedgerFailed: it is damaged, or the system refuses.
        DataDirectoryForeign: it belongs to another log.
        FormatNewer: a newer release wrote it.
        DiskFull: no room to make it.
    """
    path = f"{data_dir}/ledger"
    try:
        _remove_unfinished(fs, f"{path}.new")
        if fs.stat(path) is None:
            _make(fs, data_dir, log_id)
        _measure(fs, f"{path}/data.mdb")
        store = LmdbStore(_open(path, map_bytes))
    except lmdb.Error as error:
        raise _failed(error) from error
    except OSError as error:
        msg = f"the ledger cannot be opened: {error.strerror}"
        raise LedgerFailed(msg, path=path) from error
    try:
        return StoreLedger(store, log_id)
    except BaseException:
        store.close()
        raise


class LmdbStore:
    """The ``Store`` of an environment; any thread, one transaction at a time."""

    def __init__(self, environment: "lmdb.Environment") -> None:
        self._environment = environment
        self._pid = os.getpid()  # an environment used across a fork goes wrong without an error
        self._lock = threading.RLock()
        self._closed = False
        self._count = 0
        self._tables = {name: environment.open_db(name.encode()) for name in TABLES}
        environment.reader_check()

    def read(self, work: Callable[[Transaction], _T]) -> _T:
        """See ``Store.read``."""
        with self._lock:
            self._check_usable()
            try:
                with self._environment.begin() as txn:
                    return work(_LmdbTransaction(txn, self._tables))
            except lmdb.Error as error:
                raise _failed(error) from error

    def write(self, work: Callable[[Transaction], _T]) -> _T:
        """See ``Store.write``. COMMIT POINT: durable when this returns."""
        with self._lock:
            self._check_usable()
            self._count += 1
            if self._count % _READER_CHECK_EVERY == 0:
                self._environment.reader_check()
            for _ in range(_DOUBLINGS_MAX):
                try:
                    return self._commit(work)
                except lmdb.MapFullError:
                    # no transaction is open here: the lock is ours and the failed one was aborted
                    self._environment.set_mapsize(2 * self._environment.info()["map_size"])
            msg = "the ledger's map is full, however large"
            raise LedgerFailed(msg)

    def _commit(self, work: Callable[[Transaction], _T]) -> _T:
        try:
            with self._environment.begin(write=True) as txn:
                return work(_LmdbTransaction(txn, self._tables))
        except lmdb.MapFullError:
            raise
        except lmdb.Error as error:
            raise _failed(error) from error

    def sync(self) -> None:
        """Make everything durable, also what LMDB would leave to later."""
        self._environment.sync(force=True)

    def close(self) -> None:
        """Close; harmless to repeat."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._environment.close()

    def _check_usable(self) -> None:
        assert os.getpid() == self._pid, "the ledger is used across a fork"
        if self._closed:
            msg = "the ledger is closed"
            raise LedgerFailed(msg)


class _LmdbTransaction:
    """See ``wald.ports.Transaction``."""

    __slots__ = ("_tables", "_txn")

    def __init__(self, txn: "lmdb.Transaction", tables: "dict[str, lmdb._Database]") -> None:
        self._txn = txn
        self._tables = tables

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return a value; None if the key has none."""
        value = self._txn.get(key, db=self._tables[table])
        return None if value is None else bytes(value)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Set a value."""
        self._txn.put(key, value, db=self._tables[table])

    def delete(self, table: str, key: bytes) -> bool:
        """Remove a key; False if it had no value."""
        return bool(self._txn.delete(key, db=self._tables[table]))

    def scan(
        self, table: str, prefix: bytes = b"", *, start: bytes = b""
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys with a prefix, from ``start`` on, in order, with their values."""
        cursor = self._txn.cursor(self._tables[table])
        more = cursor.set_range(max(prefix, start)) if prefix or start else cursor.first()
        while more and bytes(cursor.key()).startswith(prefix):
            yield bytes(cursor.key()), bytes(cursor.value())
            more = cursor.next()


# --- the environment ----------------------------------------------------------------------------


def _open(path: str, map_bytes: int) -> "lmdb.Environment":
    return lmdb.open(
        path, map_size=map_bytes, max_dbs=_TABLES_MAX, mode=0o600, lib_version=0, max_readers=64
    )


def _make(fs: FileSystem, data_dir: str, log_id: bytes) -> None:
    """Make an empty ledger under a temporary name, whole and synced, then rename it."""
    path, temporary = f"{data_dir}/ledger", f"{data_dir}/ledger.new"
    fs.make_directory(temporary)
    store = LmdbStore(_open(temporary, limits.MIB))
    try:
        store.write(lambda txn: found_ledger(txn, log_id))
        store.sync()
    finally:
        store.close()
    fs.sync_directory(temporary)
    fs.rename(temporary, path)
    fs.sync_directory(data_dir)


def _remove_unfinished(fs: FileSystem, path: str) -> None:
    if fs.stat(path) is not None:
        for name in fs.list_directory(path):
            fs.unlink(f"{path}/{name}")
        Path(path).rmdir()


def _measure(fs: FileSystem, path: str) -> None:
    """Refuse a data file that is shorter than its pages: mapping it would kill this process.

    Pages at the end may be missing that were freed before they were ever written; then another
    process walks all tables first, and only its end would be sudden.

    Raises:
        LedgerFailed: it is damaged.
    """
    stat = fs.stat(path)
    size = stat.size_bytes if stat else 0
    needed = _needed_bytes(fs, path) if size else 0
    if not needed:
        msg = "the ledger's data file is damaged"
        raise LedgerFailed(msg, path=path, hint=_HINT)
    if size >= needed:
        return
    walk = subprocess.run(  # noqa: S603 - our own interpreter, no shell
        [sys.executable, "-c", _WALK, str(Path(path).parent)], capture_output=True, check=False
    )
    if walk.returncode != 0:
        msg = f"the ledger's data file has {size:,} bytes and needs {needed:,}"
        raise LedgerFailed(msg, path=path, hint=_HINT)


_HINT = (
    "move the directory 'ledger' away: a new one is made from the targets and the log, no "
    "acknowledged record is lost; a target without a progress row gets everything again"
)
_WALK = """
import lmdb, sys
environment = lmdb.open(sys.argv[1], readonly=True, max_dbs=32, lib_version=0)
with environment.begin() as txn:
    for name, _ in txn.cursor():
        for _ in txn.cursor(environment.open_db(name, txn=txn, create=False)):
            pass
"""


def _needed_bytes(fs: FileSystem, path: str) -> int:
    """Return what the newer meta page says the file holds; 0 if neither is whole."""
    file = fs.open(path)
    try:
        newest = (-1, 0)
        first = file.pread(_META.size, 0)
        page_bytes = _META.unpack(first)[2] if len(first) == _META.size else 0
        for offset in (0, page_bytes):
            data = file.pread(_META.size, offset)
            if len(data) == _META.size:
                magic, _, size, last_page, transaction = _META.unpack(data)
                if magic == _META_MAGIC and 0 < size <= limits.ALIGNMENT_MAX_BYTES:
                    newest = max(newest, (transaction, (last_page + 1) * size))
        return newest[1]
    finally:
        file.close()


def _failed(error: lmdb.Error) -> LedgerFailed | DiskFull:
    if (
        isinstance(error, lmdb.DiskError)
        and any(isinstance(part, int) and part in _NO_ROOM for part in error.args)
    ) or "No space left" in str(error):
        msg = "no room for the ledger"
        return DiskFull(msg, retry_after_s=limits.RETRY_CAP_S)
    msg = f"the ledger failed: {error}"
    return LedgerFailed(msg)
