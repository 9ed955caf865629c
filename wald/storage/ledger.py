"""The ledger in LMDB: manifests, checkpoints, index of dead letters, history. Its only importer.

    ledger/data.mdb, lock.mdb; five tables, keys big-endian, values msgpack arrays

    meta     "format", "log_id"
    routes   route u32                              -> the birth (T1)
    lanes    route u32 layout u32 lane u32          -> [checkpoint, open manifest or nil]
    aside    route u32 layout u32 lane u32 rev 16s  -> dead letters of an open revision
    dead     route u32 lsn u64                      -> a dead letter that counts
    history  route u32 layout u32 lane u32 number u64 -> a finished batch

LMDB's traps, each met here: it is made in a temporary directory and renamed, since its own
initialisation is not crash-safe, and directories are synced, since it never does; the format of
0.9 is asked for by name; stale readers are cleared at the start; a data file shorter than its
pages would kill the process that maps it, so that it is measured first; the map grows when full.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from struct import Struct
from typing import Any, TypeAlias, TypeVar, cast

import lmdb
import msgpack

from wald import limits
from wald.core import manifests
from wald.errors import DataDirectoryForeign, DiskFull, FormatNewer, LedgerFailed
from wald.model import (
    Anchor,
    AttemptStamp,
    Checkpoint,
    DeadLetter,
    FinishedBatch,
    LaneKey,
    LaneProgress,
    Lsn,
    Manifest,
    Revision,
    RevisionId,
    RouteBirth,
    RouteId,
)
from wald.ports import FileSystem

FORMAT = 1
_TABLES = ("meta", "routes", "lanes", "aside", "dead", "history")
_ROUTE = Struct(">I")
_LANE = Struct(">III")
_NUMBER = Struct(">Q")
_NO_ROOM = frozenset({28, 122})  # ENOSPC, EDQUOT
_READER_CHECK_EVERY = 1024  # transactions
_DOUBLINGS_MAX = 16

# the two meta pages of LMDB 0.9: page header 16, magic u32, version u32, address, map size,
# free table (its first field is the page size) and main table of 48 each, last page, transaction
_META = Struct("<16xI I 8x 8x I 44x 48x Q Q".replace(" ", ""))
_META_MAGIC = 0xBEEFC0DE

_T = TypeVar("_T")
_Transaction: TypeAlias = "lmdb.Transaction"


class LmdbLedger:
    """The ``Ledger`` of a data directory; any thread, one transaction at a time."""

    def __init__(self, environment: "lmdb.Environment", log_id: bytes) -> None:
        self._environment = environment
        self._log_id = log_id
        self._pid = os.getpid()  # an environment used across a fork goes wrong without an error
        self._lock = threading.RLock()
        self._closed = False
        self._count = 0
        self._db = {name: environment.open_db(name.encode()) for name in _TABLES}
        environment.reader_check()

    @classmethod
    def open(
        cls,
        fs: FileSystem,
        data_dir: str,
        log_id: bytes,
        *,
        map_bytes: int = limits.LEDGER_MAP_BYTES,
    ) -> "LmdbLedger":
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
            ledger = cls(_open(path, map_bytes), log_id)
        except lmdb.Error as error:
            raise _failed(error) from error
        except OSError as error:
            msg = f"the ledger cannot be opened: {error.strerror}"
            raise LedgerFailed(msg, path=path) from error
        try:
            ledger._check_owner()
        except BaseException:
            ledger.close()
            raise
        return ledger

    def _check_owner(self) -> None:
        with self._environment.begin() as txn:
            version = msgpack.unpackb(txn.get(b"format", db=self._db["meta"]) or b"\0")
            log_id = txn.get(b"log_id", db=self._db["meta"])
        if version > FORMAT:
            msg = f"the ledger has format {version}, this release reads {FORMAT}"
            raise FormatNewer(msg, needs_format=version, has_format=FORMAT)
        if version != FORMAT or log_id != self._log_id:
            msg = "the ledger belongs to another log"
            raise DataDirectoryForeign(msg)

    # --- transactions ---------------------------------------------------------------------------

    def birth(self, birth: RouteBirth) -> RouteBirth:
        """See ``Ledger.birth`` (T1)."""

        def work(txn: _Transaction) -> RouteBirth:
            key = _ROUTE.pack(birth.route_id)
            held = txn.get(key, db=self._db["routes"])
            if held is not None:
                return RouteBirth(*msgpack.unpackb(held))
            txn.put(key, _pack(birth), db=self._db["routes"])
            lane = LaneKey(self._log_id, birth.route_id, 0, 0)
            self._put_lane(txn, lane, LaneProgress(Checkpoint(lsn=birth.birth_lsn), None))
            return birth

        return self._write(work)

    def births(self) -> Sequence[RouteBirth]:
        """See ``Ledger.births``."""
        return self._read(
            lambda txn: [
                RouteBirth(*msgpack.unpackb(value)) for _, value in txn.cursor(self._db["routes"])
            ]
        )

    def lane(self, key: LaneKey) -> LaneProgress:
        """See ``Ledger.lane``."""
        return self._read(lambda txn: self._get_lane(txn, key))

    def seal(self, key: LaneKey, manifest: Manifest) -> bool:
        """See ``Ledger.seal`` (T2)."""
        return self._write(
            lambda txn: self._put_lane(txn, key, manifests.seal(self._get_lane(txn, key), manifest))
        )

    def revise(
        self,
        key: LaneKey,
        worked_on: RevisionId,
        revision: Revision,
        set_aside: Sequence[DeadLetter],
        stamp: AttemptStamp,
    ) -> bool:
        """See ``Ledger.revise`` (T3)."""

        def work(txn: _Transaction) -> bool:
            held = self._get_lane(txn, key)
            letters = _pack(list(set_aside))
            if not self._put_lane(txn, key, manifests.revise(held, worked_on, revision, stamp)):
                return False
            txn.put(_lane_bytes(key) + revision.rev_id, letters, db=self._db["aside"])
            return True

        return self._write(work)

    def set_aside(self, key: LaneKey, rev_id: RevisionId) -> Sequence[DeadLetter]:
        """See ``Ledger.set_aside``."""

        def work(txn: _Transaction) -> list[DeadLetter]:
            held = txn.get(_lane_bytes(key) + rev_id, db=self._db["aside"])
            return _letters(held) if held else []

        return self._read(work)

    def attempt(self, key: LaneKey, worked_on: RevisionId, stamp: AttemptStamp) -> bool:
        """See ``Ledger.attempt`` (T4)."""
        return self._write(
            lambda txn: self._put_lane(
                txn, key, manifests.attempt(self._get_lane(txn, key), worked_on, stamp)
            )
        )

    def finish(
        self,
        key: LaneKey,
        worked_on: RevisionId,
        checkpoint: Checkpoint,
        finished: FinishedBatch,
        lost: Sequence[DeadLetter] = (),
        following: Manifest | None = None,
    ) -> bool:
        """See ``Ledger.finish`` (T5, with the T2 of the next)."""

        def work(txn: _Transaction) -> bool:
            held = self._get_lane(txn, key)
            after = manifests.finish(held, worked_on, checkpoint, following)
            if after is None or held.manifest is None:
                return False
            lane = _lane_bytes(key)
            for revision in held.manifest.revisions:
                aside = txn.pop(lane + revision.rev_id, db=self._db["aside"])
                if revision.rev_id == worked_on and aside:
                    self._bury(txn, key.route_id, _letters(aside))
            self._bury(txn, key.route_id, lost)
            history = self._db["history"]
            txn.put(lane + _NUMBER.pack(finished.number), _pack(finished), db=history)
            forgotten = finished.number - limits.HISTORY_BATCHES_PER_LANE
            if forgotten > 0:
                txn.delete(lane + _NUMBER.pack(forgotten), db=history)
            return self._put_lane(txn, key, after)

        return self._write(work)

    def advance(
        self,
        key: LaneKey,
        worked_on: Checkpoint,
        checkpoint: Checkpoint,
        lost: Sequence[DeadLetter] = (),
    ) -> bool:
        """See ``Ledger.advance`` (T6)."""

        def work(txn: _Transaction) -> bool:
            after = manifests.advance(self._get_lane(txn, key), worked_on, checkpoint)
            if not self._put_lane(txn, key, after):
                return False
            self._bury(txn, key.route_id, lost)
            return True

        return self._write(work)

    def dead_letters(
        self, route_id: RouteId, *, after: Lsn = 0, limit: int = 1000
    ) -> Sequence[DeadLetter]:
        """See ``Ledger.dead_letters``."""
        prefix = _ROUTE.pack(route_id)

        def work(txn: _Transaction) -> list[DeadLetter]:
            found: list[DeadLetter] = []
            cursor = txn.cursor(self._db["dead"])
            more = cursor.set_range(prefix + _NUMBER.pack(after + 1))
            while more and len(found) < limit and bytes(cursor.key()).startswith(prefix):
                found.append(DeadLetter(*msgpack.unpackb(cursor.value())))
                more = cursor.next()
            return found

        return self._read(work)

    def history(self, key: LaneKey) -> Sequence[FinishedBatch]:
        """See ``Ledger.history``."""
        prefix = _lane_bytes(key)

        def work(txn: _Transaction) -> list[FinishedBatch]:
            found: list[FinishedBatch] = []
            cursor = txn.cursor(self._db["history"])
            more = cursor.set_range(prefix)
            while more and bytes(cursor.key()).startswith(prefix):
                found.append(FinishedBatch(*msgpack.unpackb(cursor.value())))
                more = cursor.next()
            return found

        return self._read(work)

    def close(self) -> None:
        """Close; harmless to repeat."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._environment.close()

    # --- inside a transaction -------------------------------------------------------------------

    def _get_lane(self, txn: _Transaction, key: LaneKey) -> LaneProgress:
        held = txn.get(_lane_bytes(key), db=self._db["lanes"])
        return LaneProgress(Checkpoint(), None) if held is None else _lane_of(held)

    def _put_lane(self, txn: _Transaction, key: LaneKey, after: LaneProgress | None) -> bool:
        if after is None:
            return False
        txn.put(
            _lane_bytes(key),
            _pack(list(after)),
            db=self._db["lanes"],
        )
        return True

    def _bury(self, txn: _Transaction, route_id: RouteId, letters: Sequence[DeadLetter]) -> None:
        for letter in letters:
            key = _ROUTE.pack(route_id) + _NUMBER.pack(letter.lsn)
            txn.put(key, _pack(letter), db=self._db["dead"])

    def _read(self, work: Callable[[_Transaction], _T]) -> _T:
        with self._lock:
            self._check_usable()
            try:
                with self._environment.begin() as txn:
                    return work(txn)
            except lmdb.Error as error:
                raise _failed(error) from error

    def _write(self, work: Callable[[_Transaction], _T]) -> _T:
        """Run a write transaction; COMMIT POINT: durable when this returns."""
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

    def _commit(self, work: Callable[[_Transaction], _T]) -> _T:
        try:
            with self._environment.begin(write=True) as txn:
                return work(txn)
        except lmdb.MapFullError:
            raise
        except lmdb.Error as error:
            raise _failed(error) from error

    def _check_usable(self) -> None:
        assert os.getpid() == self._pid, "the ledger is used across a fork"
        if self._closed:
            msg = "the ledger is closed"
            raise LedgerFailed(msg)


# --- the environment ----------------------------------------------------------------------------


def _open(path: str, map_bytes: int) -> "lmdb.Environment":
    return lmdb.open(
        path, map_size=map_bytes, max_dbs=len(_TABLES), mode=0o600, lib_version=0, max_readers=64
    )


def _make(fs: FileSystem, data_dir: str, log_id: bytes) -> None:
    """Make an empty ledger under a temporary name, whole and synced, then rename it."""
    path, temporary = f"{data_dir}/ledger", f"{data_dir}/ledger.new"
    fs.make_directory(temporary)
    environment = _open(temporary, limits.MIB)
    try:
        tables = {name: environment.open_db(name.encode()) for name in _TABLES}
        with environment.begin(write=True) as txn:
            txn.put(b"format", _pack(FORMAT), db=tables["meta"])
            txn.put(b"log_id", log_id, db=tables["meta"])
        environment.sync(force=True)
    finally:
        environment.close()
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
    "move the directory 'ledger' away: a new one is made, no acknowledged record is lost; lanes "
    "whose target is ahead of it are parked as ledger-older"
)
_WALK = """
import lmdb, sys
environment = lmdb.open(sys.argv[1], readonly=True, max_dbs=16, lib_version=0)
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


# --- values -------------------------------------------------------------------------------------


def _pack(value: object) -> bytes:
    return cast("bytes", msgpack.packb(value, default=_fields))


def _fields(value: Any) -> list[object]:  # noqa: ANN401 - any of our slotted dataclasses
    return [getattr(value, name) for name in value.__slots__]


def _lane_bytes(key: LaneKey) -> bytes:
    return _LANE.pack(key.route_id, key.layout, key.lane)


def _lane_of(data: bytes | memoryview) -> LaneProgress:
    checkpoint, manifest = msgpack.unpackb(data)
    batch_no, rev_id, lsn, anchor, *rest = checkpoint
    return LaneProgress(
        Checkpoint(batch_no, rev_id, lsn, Anchor(*anchor), *rest), _manifest_of(manifest)
    )


def _manifest_of(row: list[object] | None) -> Manifest | None:
    if row is None:
        return None
    number, lo, prev_rev, attempts, revisions, *rest = row
    return Manifest(
        number,  # type: ignore[arg-type]
        lo,  # type: ignore[arg-type]
        prev_rev,  # type: ignore[arg-type]
        attempts,  # type: ignore[arg-type]
        tuple(
            Revision(rev_id, hi, tuple(excluded), *more)
            for rev_id, hi, excluded, *more in revisions  # type: ignore[attr-defined]
        ),
        *rest,  # type: ignore[arg-type]
    )


def _letters(data: bytes | memoryview) -> list[DeadLetter]:
    return [DeadLetter(*row) for row in msgpack.unpackb(data)]
