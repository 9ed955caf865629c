"""The ledger's store in LMDB: tables of ordered keys, durable transactions. Its only importer.

    ledger/data.mdb, lock.mdb

LMDB's traps, each met here: it is made in a temporary directory and renamed, since its own
initialisation is not crash-safe, and directories are synced, since it never does; the format of
0.9 is asked for by name; stale readers are cleared at the start; a damaged data file may kill the
process that maps it, so that another one walks through it first; the map grows when full.

LMDB has no checksums. Each value carries one behind it, CRC-32C of key and value, little-endian:
a flipped bit is found and is never taken for a checkpoint.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from struct import Struct
from typing import TypeVar

import lmdb

from wald import limits
from wald.core.frame import crc32c
from wald.errors import DiskFull, LedgerDamaged, LedgerFailed
from wald.ports import FileSystem, Transaction
from wald.storage.ledger import TABLES, StoreLedger, found_ledger
from wald.storage.ledger_rows import pack
from wald.storage.tickets import Ticket, Tickets

_NO_ROOM = frozenset({28, 122})  # ENOSPC, EDQUOT
_READER_CHECK_EVERY = 1024  # transactions
_DOUBLINGS_MAX = 16
_SEAL = Struct("<I")
_BARE_FORMAT = pack(1)  # what the row "format" was before values had a checksum

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
        LedgerDamaged: it cannot be read, or a value is not what was written.
        LedgerFailed: the system refuses.
        DataDirectoryForeign: it belongs to another log.
        FormatNewer: a newer release wrote it.
        DiskFull: no room to make it.
    """
    path = f"{data_dir}/ledger"
    try:
        _remove_unfinished(fs, f"{path}.new")
        if fs.stat(path) is None:
            _make(fs, data_dir, log_id)
        walk_in_a_child(path)
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
    """The ``Store`` of an environment; any thread, one transaction at a time.

    What several threads have to write while another's is made durable goes into one transaction.
    """

    def __init__(self, environment: "lmdb.Environment") -> None:
        self._environment = environment
        self._pid = os.getpid()  # an environment used across a fork goes wrong without an error
        self._lock = threading.RLock()
        self._closed = False
        self._damaged = False
        self._count = 0
        self._tickets = Tickets(self._write)
        self._later = threading.Semaphore(0)
        self._clerk: threading.Thread | None = None  # commits what nobody waits for
        self._tables = {name: environment.open_db(name.encode()) for name in TABLES}
        environment.reader_check()
        self._seal_bare_values()

    @property
    def is_usable(self) -> bool:
        """False behind damage, and behind a meta page that LMDB could not write."""
        return not (self._damaged or self._closed)

    def read(self, work: Callable[[Transaction], _T]) -> _T:
        """See ``Store.read``."""
        with self._lock, self._noting_damage():
            self._check_usable()
            with self._environment.begin() as txn:
                return work(_LmdbTransaction(txn, self._tables))

    def write(self, work: Callable[[Transaction], _T]) -> _T:
        """See ``Store.write``. COMMIT POINT: durable when this returns."""
        ticket = self._tickets.put(work)
        with self._lock:
            self._tickets.commit()
        return ticket.wait()

    def write_later(self, work: Callable[[Transaction], _T]) -> Ticket[_T]:
        """See ``Store.write_later``; now, where the system gives no thread for it."""
        employed = self._clerk is not None or self._employ()
        ticket = self._tickets.put(work)
        self._later.release()
        if self._closed or not employed:  # the clerk may have gone
            with self._lock:
                self._tickets.commit()
        return ticket

    def _employ(self) -> bool:
        with self._lock:
            if self._clerk is None:
                clerk = threading.Thread(target=self._serve, name="ledger", daemon=True)
                try:
                    clerk.start()
                except RuntimeError:
                    return False
                self._clerk = clerk
            return True

    def _serve(self) -> None:
        while True:
            self._later.acquire()
            with self._lock:
                self._tickets.commit()
                if self._closed:
                    return

    def _write(self, work: Callable[[Transaction], _T]) -> _T:
        with self._noting_damage():
            self._check_usable()
            self._count += 1
            if self._count % _READER_CHECK_EVERY == 0:
                self._environment.reader_check()
            for _ in range(_DOUBLINGS_MAX):
                try:
                    with self._environment.begin(write=True) as txn:
                        return work(_LmdbTransaction(txn, self._tables))
                except lmdb.MapFullError:
                    # no transaction is open here: the lock is ours and the failed one was aborted
                    self._environment.set_mapsize(2 * self._environment.info()["map_size"])
            msg = "the ledger's map is full, however large"
            raise LedgerFailed(msg)

    @contextmanager
    def _noting_damage(self) -> Iterator[None]:
        """Let errors be ours, and remember damage."""
        try:
            yield
        except LedgerDamaged:
            self._damaged = True
            raise
        except lmdb.Error as error:
            failure = _failed(error)
            self._damaged = self._damaged or isinstance(failure, LedgerDamaged)
            raise failure from error

    def _seal_bare_values(self) -> None:
        """Give the values of a ledger from before there were checksums theirs, in one step."""
        with self._environment.begin(write=True) as txn:
            if txn.get(b"format", db=self._tables["meta"]) != _BARE_FORMAT:
                return
            for table in self._tables.values():
                for key, value in list(txn.cursor(table)):
                    txn.put(key, _sealed(key, value), db=table)

    def sync(self) -> None:
        """Make everything durable, also what LMDB would leave to later."""
        self._environment.sync(force=True)

    def close(self) -> None:
        """Close; harmless to repeat."""
        with self._lock:
            if not self._closed:
                self._tickets.commit()
                self._closed = True
                self._environment.close()
        if self._clerk is not None:
            self._later.release()
            self._clerk.join()

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
        return None if value is None else _unsealed(table, key, bytes(value))

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Set a value."""
        self._txn.put(key, _sealed(key, value), db=self._tables[table])

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
            key = bytes(cursor.key())
            yield key, _unsealed(table, key, bytes(cursor.value()))
            more = cursor.next()


def _sealed(key: bytes, value: bytes) -> bytes:
    return value + _SEAL.pack(crc32c(key + value))


def _unsealed(table: str, key: bytes, sealed: bytes) -> bytes:
    value = sealed[: -_SEAL.size]
    if len(sealed) < _SEAL.size or sealed[-_SEAL.size :] != _SEAL.pack(crc32c(key + value)):
        msg = f"a value in the ledger's table {table!r} is not what was written"
        raise LedgerDamaged(msg)
    return value


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


def walk_in_a_child(path: str) -> None:
    """Let another process read every value first: a damaged file may kill who maps it.

    Raises:
        LedgerDamaged: it died of the file, found damage, or did not come to an end.
        LedgerFailed: the system refused it something.
    """
    data = f"{path}/data.mdb"
    if not Path(data).is_file() or not Path(data).stat().st_size:
        msg = "the ledger's data file is gone, or empty"
        raise LedgerDamaged(msg, path=data)
    parts = 1 + Path(data).stat().st_size // limits.LEDGER_WALK_PART_BYTES
    # of a processor, not of a clock: a disk that is slow, or a host that stood still, is no damage
    most_s = ceil(limits.LEDGER_WALK_S * parts)
    walk = subprocess.run(  # noqa: S603 - our own interpreter, no shell
        [sys.executable, "-P", "-c", _WALK, path, str(most_s)],
        capture_output=True,
        text=True,
        check=False,
    )
    if walk.returncode == -signal.SIGXCPU:
        msg = f"the ledger could not be read to its end within {most_s} s of a processor"
        raise LedgerDamaged(msg, path=data)
    if -walk.returncode in _DEADLY:
        msg = "the ledger's data file kills who reads it"
        raise LedgerDamaged(msg, path=data, signal=signal.Signals(-walk.returncode).name)
    if walk.returncode:
        said = walk.stderr.strip().splitlines()[-1:] or [f"exit code {walk.returncode}"]
        kind = LedgerDamaged if walk.returncode == _WALK_FOUND_DAMAGE else LedgerFailed
        msg = f"the ledger cannot be read: {said[0]}"
        raise kind(msg, path=data)


_DEADLY = frozenset({signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE})
_WALK_FOUND_DAMAGE = 3
_WALK = f"""
import resource, struct, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
most_s, (_, hard) = int(sys.argv[2]), resource.getrlimit(resource.RLIMIT_CPU)
resource.setrlimit(resource.RLIMIT_CPU, (most_s if hard < 0 else min(most_s, hard), hard))
import google_crc32c, lmdb

def damaged(what):
    print(what, file=sys.stderr)
    sys.exit({_WALK_FOUND_DAMAGE})

def claims_too_much():  # the size of the map in either meta page: behind it the system says no
    with open(sys.argv[1] + "/data.mdb", "rb") as file:
        head = file.read(8192).ljust(8192, bytes(1))
    return max(struct.unpack_from("<Q", head, at + 32)[0] for at in (0, 4096)) > 1 << 42

try:
    environment = lmdb.open(
        sys.argv[1], readonly=True, lock=False, max_dbs={_TABLES_MAX}, lib_version=0)
    with environment.begin() as txn:
        names = [name for name, _ in txn.cursor()]
        meta = environment.open_db(b"meta", txn=txn, create=False)
        bare = txn.get(b"format", db=meta) == {_BARE_FORMAT!r}
        # neither names nor counts have a checksum: a name of one bit less is an empty table
        ours = {{{", ".join(repr(name.encode()) for name in TABLES)}}}
        if len(names) != txn.stat()["entries"] or (ours - set(names) and set(names) - ours):
            damaged("the names of its tables are not those that were written")
        for name in names:
            table = environment.open_db(name, txn=txn, create=False)
            if sum(1 for _ in txn.cursor(table)) != txn.stat(table)["entries"]:
                damaged(f"its table {{name.decode()}} does not hold as much as was written")
            for key, value in txn.cursor(table):
                crc = struct.pack("<I", google_crc32c.value(key + value[:-4]))
                if not bare and (len(value) < 4 or value[-4:] != crc):
                    damaged(f"a value in its table {{name.decode()}} is not what was written")
except (lmdb.DiskError, lmdb.LockError, lmdb.ReadonlyError):
    raise
except lmdb.MemoryError as error:
    if claims_too_much():
        damaged(error)
    raise
except lmdb.Error as error:
    if type(error) is not lmdb.Error or "Invalid argument" in str(error):
        damaged(error)
    raise
"""


def _failed(error: lmdb.Error) -> LedgerFailed | DiskFull:
    if (
        isinstance(error, lmdb.DiskError)
        and any(isinstance(part, int) and part in _NO_ROOM for part in error.args)
    ) or "No space left" in str(error):
        msg = "no room for the ledger"
        return DiskFull(msg, retry_after_s=limits.RETRY_CAP_S)
    msg = f"the ledger failed: {error}"
    return LedgerDamaged(msg) if isinstance(error, _DAMAGE) else LedgerFailed(msg)


_DAMAGE = (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError, lmdb.PanicError)
