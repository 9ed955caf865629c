"""``DATA/batches/``: what goes to a target byte for byte, kept until it took effect.

    ROUTE-LAYOUT-LANE-REVISION.frozen    one file of each revision that freezes its content

    0  magic u32 b"WBAT"   4  version u16   6  0 u16   8  length u64   16  crc u32 (of bytes 0..15
    and the content)   20  content

A file is durable, its name too, before the transaction that names it (T2, T3, T5), which holds its
SHA-256. A file that no open manifest names counts for nothing, and is removed at the next start.

    ROUTE-LAYOUT-LANE-making    "BOOT NUMBER", while the content of that batch is made

It is not flushed: it is for the process that follows one which ended in the making, and behind a
power cut, which is no record's fault, nobody believes it.
"""

import contextlib
import hashlib
from collections.abc import Collection, Iterator, Sequence
from struct import Struct

from wald import limits
from wald.core import frame
from wald.errors import DiskFull, FormatDamaged, FormatNewer, LedgerFailed
from wald.model import LaneKey, RevisionId
from wald.ports import FileSystem, Ledger

MAGIC = 0x54414257  # "WBAT" as bytes on disk
VERSION = 1
_HEAD = Struct("<IHHQ")
_CRC = Struct("<I")
HEADER_BYTES = _HEAD.size + _CRC.size
_SUFFIX = ".frozen"
_MAKING = "making"
_NOTE_MAX_BYTES = 256
_NO_ROOM = frozenset({28, 122})  # ENOSPC, EDQUOT

assert HEADER_BYTES == 20


class FrozenFiles:
    """The files of all lanes; any thread. The holder of ``ledger.lock`` alone."""

    def __init__(self, fs: FileSystem, data_dir: str) -> None:
        self._fs = fs
        self._data_dir = data_dir
        self._directory = f"{data_dir}/batches"

    def write(self, key: LaneKey, rev_id: RevisionId, content: bytes) -> bytes:
        """Keep the content of a revision; durable on return of its SHA-256.

        Raises:
            DiskFull: there is no room.
            LedgerFailed: it cannot be written.
        """
        assert len(content) <= limits.FROZEN_MAX_BYTES
        head = _HEAD.pack(MAGIC, VERSION, 0, len(content))
        crc = _CRC.pack(frame.crc32c(head + content))
        path = self._path(key, rev_id)
        try:
            self._put(path, [head, crc, content])
        except OSError as error:
            with contextlib.suppress(OSError):
                self._fs.unlink(f"{path}.tmp")
            if error.errno in _NO_ROOM:
                msg = "no room for a frozen batch"
                raise DiskFull(msg, retry_after_s=limits.RETRY_CAP_S) from error
            msg = f"a frozen batch cannot be written: {error.strerror}"
            raise LedgerFailed(msg) from error
        return hashlib.sha256(content).digest()

    def _make_directory(self) -> None:
        if self._fs.stat(self._directory) is None:
            self._fs.make_directory(self._directory)
            self._fs.sync_directory(self._data_dir)

    def _put(self, path: str, parts: list[bytes]) -> None:
        self._make_directory()
        file = self._fs.create(f"{path}.tmp")
        try:
            file.pwritev(parts, 0)
            file.sync()
        finally:
            file.close()
        self._fs.rename(f"{path}.tmp", path)
        self._fs.sync_directory(self._directory)

    def read(self, key: LaneKey, rev_id: RevisionId, digest: bytes) -> bytes:
        """Return the content of a revision.

        Raises:
            FormatDamaged: it is not there, or is not what the digest is of.
            FormatNewer: a newer release wrote it.
        """
        path = self._path(key, rev_id)
        try:
            content = self._read(path)
        except OSError as error:
            msg = f"the frozen batch {path} cannot be read: {error.strerror}"
            raise FormatDamaged(msg) from error
        if hashlib.sha256(content).digest() != digest:
            msg = f"the frozen batch {path} is not the one that the ledger names"
            raise FormatDamaged(msg)
        return content

    def _read(self, path: str) -> bytes:
        file = self._fs.open(path)
        try:
            head = file.pread(HEADER_BYTES, 0)
            length = _length(path, head)
            content = file.pread(length, HEADER_BYTES)
        finally:
            file.close()
        crc = frame.crc32c(head[: _HEAD.size] + content)
        if len(content) != length or _CRC.unpack_from(head, _HEAD.size)[0] != crc:
            msg = f"the frozen batch {path} does not match its checksum"
            raise FormatDamaged(msg)
        return content

    def remove(self, key: LaneKey, rev_id: RevisionId) -> None:
        """Remove the file of a revision that is not sent any more, if there is one."""
        with contextlib.suppress(OSError):  # what stays is removed at the next start
            self._fs.unlink(self._path(key, rev_id))

    @contextlib.contextmanager
    def making(self, key: LaneKey, number: int, boot_id: str) -> Iterator[None]:
        """Leave word while the content of a batch is made, for who follows if that ends us.

        Args:
            key: the lane.
            number: of the batch.
            boot_id: of the machine.

        Raises:
            LedgerFailed: the word cannot be taken back: nothing may be sent of the batch.
        """
        path = f"{self._directory}/{_prefix(key)}{_MAKING}"
        with contextlib.suppress(OSError):  # without room the next process finds out later
            self._make_directory()
            file = self._fs.create(path)
            try:
                file.pwritev([f"{boot_id} {number}".encode()], 0)
            finally:
                file.close()
        try:
            yield
        finally:
            try:
                self._fs.unlink(path)
            except FileNotFoundError:
                pass
            except OSError as error:
                msg = f"{path} cannot be removed: {error.strerror}"
                raise LedgerFailed(msg) from error

    def begin(self, key: LaneKey, keep: Collection[RevisionId], boot_id: str) -> int:
        """Remove of a lane what its open manifest does not name, as nothing of it is at work.

        Returns:
            In the making of which batch the process before ended, said once; 0: none.
        """
        names = self._names()
        self._remove(names, keep, _prefix(key))
        note = f"{_prefix(key)}{_MAKING}"
        return self._take(f"{self._directory}/{note}", boot_id) if note in names else 0

    def _take(self, path: str, boot_id: str) -> int:
        try:
            file = self._fs.open(path)
            try:
                said = file.pread(_NOTE_MAX_BYTES, 0).decode("ascii", "replace")
            finally:
                file.close()
            self._fs.unlink(path)
        except OSError:
            return 0
        boot, _, number = said.rpartition(" ")
        is_ours = boot and boot == boot_id  # a boot without a name may be any
        return int(number) if is_ours and number.isdecimal() else 0

    def sweep(self, keep: Collection[RevisionId]) -> int:
        """Remove what no open manifest names; returns how many."""
        return self._remove(self._names(), keep)

    def _names(self) -> Sequence[str]:
        if self._fs.stat(self._directory) is None:
            return ()
        return self._fs.list_directory(self._directory)

    def _remove(self, names: Sequence[str], keep: Collection[RevisionId], prefix: str = "") -> int:
        kept = {_MAKING, *(f"{rev_id.hex()}{_SUFFIX}" for rev_id in keep)}
        gone = [
            name
            for name in names
            if name.startswith(prefix) and name.rpartition("-")[2] not in kept
        ]
        for name in gone:
            with contextlib.suppress(OSError):
                self._fs.unlink(f"{self._directory}/{name}")
        return len(gone)

    def _path(self, key: LaneKey, rev_id: RevisionId) -> str:
        return f"{self._directory}/{_prefix(key)}{rev_id.hex()}{_SUFFIX}"


def open_revisions(ledger: Ledger) -> set[RevisionId]:
    """Return the revisions of all open manifests."""
    return {
        revision.rev_id
        for birth in ledger.births()
        for held in ledger.lanes(birth.route_id).values()
        if held.manifest is not None
        for revision in held.manifest.revisions
    }


def _prefix(key: LaneKey) -> str:
    return f"{key.route_id}-{key.layout}-{key.lane}-"


def _length(path: str, head: bytes) -> int:
    if len(head) < HEADER_BYTES:
        msg = f"the frozen batch {path} is cut short"
        raise FormatDamaged(msg)
    magic, version, _, length = _HEAD.unpack_from(head)
    if magic != MAGIC or length > limits.FROZEN_MAX_BYTES:
        msg = f"{path} is no frozen batch"
        raise FormatDamaged(msg)
    if version > VERSION:
        msg = f"the frozen batch {path} has version {version}, this release reads {VERSION}"
        raise FormatNewer(msg, needs_format=version, has_format=VERSION)
    return int(length)
