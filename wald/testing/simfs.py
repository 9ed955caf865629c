"""A simulated file system that keeps apart what programs see and what the disk holds.

It has the port of the real one and passes the same contract tests. On top of that it can ``kill``
(descriptors and locks go, the cache stays), ``crash`` (the cache goes too; unsynced bytes and names
meet their fate, see ``simdisk`` and ``simnames``), fail or stop at any operation, run full, and
write back early. One seeded ``random.Random`` decides everything: a seed is a whole run.
"""

import copy
import errno
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

from wald.ports import File, FileStat
from wald.testing.simdisk import PAGE_BYTES, pages_of
from wald.testing.simnames import Inode, Kind, Names, NameTree, os_error

_UNLIMITED_BYTES = 1 << 40
_LOG_OPERATIONS = 4096


class Stopped(BaseException):
    """The simulated machine stopped inside an operation: only ``kill`` or ``crash`` helps."""


@dataclass(slots=True)
class Fault:
    """A failure to come: at the n-th operation from now (of a kind, if one is given).

    ``error`` None stops the machine there instead.
    """

    at: int
    kind: str | None
    error: int | None
    for_ever: bool

    def strikes(self, kind: str) -> bool:
        """Count an operation; tell whether it fails."""
        if self.kind is not None and self.kind != kind:
            return False
        self.at -= 1
        return self.at == 0 or (self.at < 0 and self.for_ever)


class SimFile:
    """An open simulated file; see ``wald.ports.File``."""

    __slots__ = ("_fs", "_inode", "_path", "_write", "closed")

    def __init__(self, fs: "SimFileSystem", inode: Inode, path: str, *, write: bool) -> None:
        self._fs = fs
        self._inode = inode
        self._path = path
        self._write = write
        self.closed = False

    def pread(self, length: int, offset: int) -> bytes:
        """Read up to ``length`` bytes; short only at the end of the file."""
        with self._fs.guard:
            self._begin("pread", length, offset)
            if self._fs.has_bad_sector(self._inode, offset, length):
                raise os_error(errno.EIO, self._path)
            return bytes(self._inode.bytes.live[offset : offset + length])

    def pwritev(self, parts: Sequence[bytes], offset: int) -> None:
        """Write all parts at ``offset``, or raise; after an error any prefix may be written."""
        data = b"".join(parts)
        with self._fs.guard:
            self._begin_write("pwritev", data, offset)
            room = self._fs.room_for(self._inode, offset, len(data))
            self._put(data[:room], offset)
            if room < len(data):
                raise os_error(errno.ENOSPC, self._path)
            self._fs.maybe_write_back(self._inode)

    def sync(self) -> None:
        """Make bytes and size durable; after a failure the cache lies."""
        with self._fs.guard:
            self._alive()
            fault = self._fs.strike("sync", self._path)
            if fault is None:
                self._inode.bytes.flush()
                return
            if fault.error is None:  # stopped inside: some of it got through, the rest is dirty
                self._inode.bytes.write_back(self._fs.chance)
                raise Stopped
            self._inode.bytes.fail_flush(self._fs.chance)
            raise os_error(fault.error, self._path)

    def allocate(self, offset: int, length: int) -> None:
        """Reserve room and extend the size; bytes read as zeros."""
        with self._fs.guard:
            self._begin("allocate", length, offset)
            self._writable()
            if self._fs.room_for(self._inode, offset, length) < length:
                raise os_error(errno.ENOSPC, self._path)
            content = self._inode.bytes
            content.resize(max(len(content.live), offset + length))
            self._fs.used(self._inode, pages_of(offset, length))

    def truncate(self, size_bytes: int) -> None:
        """Cut or extend with zeros; durable after ``sync``."""
        with self._fs.guard:
            self._begin("truncate", size_bytes)
            self._writable()
            self._inode.bytes.resize(size_bytes)

    def size(self) -> int:
        """Return the size in bytes."""
        with self._fs.guard:
            self._alive()
            return len(self._inode.bytes.live)

    def lock(self) -> bool:
        """Take the exclusive lock of the file without waiting; False if another holds it."""
        with self._fs.guard:
            self._begin("lock")
            return self._fs.take_lock(self, self._inode)

    def close(self) -> None:
        """Close; harmless to repeat."""
        with self._fs.guard:
            if not self.closed:
                self.closed = True
                self._fs.forget(self, self._inode)

    def _alive(self) -> None:
        if self.closed:
            raise os_error(errno.EBADF, self._path)

    def _writable(self) -> None:
        if not self._write:
            raise os_error(errno.EBADF, self._path)

    def _begin(self, kind: str, *facts: int) -> None:
        self._alive()
        fault = self._fs.strike(kind, self._path, *facts)
        if fault is not None:
            fault_raises(fault, self._path)

    def _begin_write(self, kind: str, data: bytes, offset: int) -> None:
        self._alive()
        self._writable()
        fault = self._fs.strike(kind, self._path, len(data), offset)
        if fault is not None:
            some = self._fs.chance.randint(0, len(data))
            self._put(data[: min(some, self._fs.room_for(self._inode, offset, some))], offset)
            fault_raises(fault, self._path)

    def _put(self, data: bytes, offset: int) -> None:
        self._inode.bytes.write(data, offset)
        self._inode.modified = self._fs.operations


class SimFileSystem:
    """Files in memory that can be killed, cut from power, failed and filled.

    Attributes:
        chance: what decides; seed it to repeat a run.
        operations: how many operations were asked so far.
        log: the last operations, for people.
        capacity_bytes: where the disk is full; None for never.
        write_back: the odds that a write or a change of names makes dirty things durable early.
        machine: what ``machine_id`` says.
        uid: what ``stat`` says of the owner.
    """

    def __init__(
        self,
        chance: Random,
        *,
        directories: Sequence[str] = (),
        capacity_bytes: int | None = None,
        write_back: float = 0.0,
        names: Names = Names.JOURNAL,
    ) -> None:
        self.chance = chance
        self.capacity_bytes = capacity_bytes
        self.write_back = write_back
        self.machine = "0" * 32
        self.uid = os.getuid() if hasattr(os, "getuid") else 0
        self.operations = 0
        self.log: deque[str] = deque(maxlen=_LOG_OPERATIONS)
        self.guard = threading.RLock()
        self.stopped = False
        self._faults: list[Fault] = []
        self._bad_sectors: list[tuple[Inode, range]] = []
        self._tree = NameTree(names)
        self._open: dict[SimFile, Inode] = {}
        self._locks: dict[int, SimFile] = {}  # inode number to who holds its lock
        for path in directories:
            self.make_directory(path)
        self.settle()

    # --- the port -------------------------------------------------------------------------------

    def open(self, path: str, *, write: bool = False) -> File:
        """Open an existing file."""
        with self.guard:
            self._begin("open", path)
            inode = self._tree.existing(path)
            if inode.kind is Kind.SYMLINK:
                raise os_error(errno.ELOOP, path)
            if inode.kind is Kind.DIRECTORY and write:
                raise os_error(errno.EISDIR, path)
            return self._opened(inode, path, write=write)

    def create(self, path: str, *, mode: int = 0o600) -> File:
        """Make a new, empty file to read and write."""
        with self.guard:
            self._begin("create", path)
            inode = self._tree.add(path, Kind.FILE, mode, self.operations)
            self._maybe_commit_names()
            return self._opened(inode, path, write=True)

    def make_directory(self, path: str, *, mode: int = 0o700) -> None:
        """Make a directory."""
        with self.guard:
            self._begin("make_directory", path)
            self._tree.add(path, Kind.DIRECTORY, mode, self.operations)
            self._maybe_commit_names()

    def list_directory(self, path: str) -> list[str]:
        """Return the names in a directory, sorted."""
        with self.guard:
            self._begin("list_directory", path)
            return sorted(self._tree.directory(path).names)

    def stat(self, path: str) -> FileStat | None:
        """Return what is at the name, itself if a link; None if nothing is there."""
        with self.guard:
            self._begin("stat", path)
            try:
                inode = self._tree.existing(path)
            except (FileNotFoundError, NotADirectoryError):
                return None
            return FileStat(
                size_bytes=len(inode.bytes.live),
                inode=inode.number,
                device=1,
                block_size_bytes=PAGE_BYTES,
                is_directory=inode.kind is Kind.DIRECTORY,
                is_symlink=inode.kind is Kind.SYMLINK,
                uid=self.uid,
                mode=inode.mode,
                modified_ns=inode.modified,
            )

    def link(self, source: str, target: str) -> None:
        """Give a file a second name."""
        with self.guard:
            self._begin("link", source, target)
            self._tree.link(source, target)
            self._maybe_commit_names()

    def unlink(self, path: str) -> None:
        """Remove a name."""
        with self.guard:
            self._begin("unlink", path)
            self._tree.remove(path)
            self._maybe_commit_names()

    def rename(self, source: str, target: str) -> None:
        """Move a name to one that must not exist."""
        with self.guard:
            self._begin("rename", source, target)
            self._tree.move(source, target, over=False)
            self._maybe_commit_names()

    def replace(self, source: str, target: str) -> None:
        """Move a name over another in one step."""
        with self.guard:
            self._begin("replace", source, target)
            self._tree.move(source, target, over=True)
            self._maybe_commit_names()

    def sync_directory(self, path: str) -> None:
        """Make the names in a directory durable.

        What fails here is tried again by the next sync, as the journal does; the bytes of a file
        are another matter.
        """
        with self.guard:
            fault = self.strike("sync_directory", path)
            if fault is not None:
                self._tree.commit_some(self.chance)
                fault_raises(fault, path)
            self._tree.commit(self._tree.directory(path))

    def free_bytes(self, path: str) -> int:
        """Return how many bytes may still be written."""
        with self.guard:
            self._begin("free_bytes", path)
            return self._free_pages() * PAGE_BYTES

    def machine_id(self) -> str:
        """Return what names this machine."""
        return self.machine

    # --- what happens to machines ---------------------------------------------------------------

    def kill(self) -> None:
        """End the process: descriptors and locks go, the cache stays."""
        with self.guard:
            for file in self._open:
                file.closed = True
            self._open.clear()
            self._locks.clear()
            self._faults.clear()
            self.stopped = False
            self.log.append("KILL")

    def crash(self, chance: Random | None = None) -> None:
        """Cut the power: what was not synced meets its fate, then the machine is up again."""
        with self.guard:
            self.kill()
            self.log.append("CRASH")
            if chance is not None:
                self.chance = chance
            self._tree.crash(self.chance)
            for inode in self._tree.inodes():
                inode.bytes.crash(self.chance)

    def settle(self) -> None:
        """Let the kernel write everything back: all that programs see is durable."""
        with self.guard:
            self._tree.commit_all()
            for inode in self._tree.inodes():
                inode.bytes.flush()

    def drop_caches(self) -> None:
        """Forget clean pages: what a failed sync left unwritten is seen no more."""
        with self.guard:
            for inode in self._tree.inodes():
                inode.bytes.drop_clean_cache()

    def fail(
        self, at: int, error: int = errno.EIO, *, kind: str | None = None, for_ever: bool = False
    ) -> None:
        """Let the ``at``-th operation from now fail, once or from there on."""
        self._faults.append(Fault(at, kind, error, for_ever))

    def stop(self, at: int, *, kind: str | None = None) -> None:
        """Stop the machine inside the ``at``-th operation from now: ``Stopped`` is raised."""
        self._faults.append(Fault(at, kind, None, for_ever=True))

    def heal(self) -> None:
        """Take back all faults to come."""
        self._faults.clear()

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Within it no fault strikes and none comes nearer: for a test to look at files."""
        faults, self._faults = self._faults, []
        try:
            yield
        finally:
            self._faults = faults

    def damage(self, path: str, offset: int, data: bytes) -> None:
        """Overwrite bytes in cache and on disk, as a bad disk does."""
        content = self._tree.existing(path).bytes
        for side in (content.live, content.durable):
            side[offset : offset + len(data)] = data

    def spoil_sectors(self, path: str, offset: int, length: int) -> None:
        """Let every read fail that touches these bytes, as a bad disk does; a write heals none."""
        content = self._tree.existing(path)
        self._bad_sectors.append((content, range(offset, offset + length)))

    def heal_sectors(self) -> None:
        """Let reads go well again: the disk was away, and is back."""
        self._bad_sectors.clear()

    def has_bad_sector(self, inode: Inode, offset: int, length: int) -> bool:
        """Tell whether a read of these bytes fails."""
        return any(
            inode is spoiled and offset < sectors.stop and sectors.start < offset + length
            for spoiled, sectors in self._bad_sectors
        )

    def symlink(self, target: str, path: str) -> None:
        """Make a symbolic link (for tests: the port has none)."""
        self._tree.add(path, Kind.SYMLINK, 0o777, self.operations).target = target

    def clone(self) -> "SimFileSystem":
        """Return an independent copy: what happens to one is not seen in the other."""
        with self.guard:
            return copy.deepcopy(self)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "guard"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.guard = threading.RLock()

    @property
    def open_files(self) -> int:
        """How many descriptors are open."""
        return len(self._open)

    # --- what files ask -------------------------------------------------------------------------

    def strike(self, kind: str, *facts: object) -> Fault | None:
        """Count an operation and return the fault that hits it, if any."""
        if self.stopped:
            raise Stopped
        self.operations += 1
        self.log.append(f"{self.operations} {kind} {' '.join(map(str, facts))}")
        struck = [fault for fault in self._faults if fault.strikes(kind)]
        if not struck:
            return None
        self.log.append(f"  FAULT {struck[0]}")
        self.stopped = struck[0].error is None
        return struck[0]

    def room_for(self, inode: Inode, offset: int, length: int) -> int:
        """Return how many of ``length`` bytes fit the disk."""
        if self.capacity_bytes is None:
            return length
        free = self._free_pages()
        for page in pages_of(offset, length):
            if page not in inode.bytes.pages:
                free -= 1
                if free < 0:
                    return max(0, page * PAGE_BYTES - offset)
        return length

    def used(self, inode: Inode, pages: range) -> None:
        """Note that pages of a file take room."""
        inode.bytes.pages.update(pages)

    def maybe_write_back(self, inode: Inode) -> None:
        """Write back early, if chance wants it."""
        if self.write_back and self.chance.random() < self.write_back:
            inode.bytes.write_back(self.chance)

    def forget(self, file: SimFile, inode: Inode) -> None:
        """Drop a closed descriptor and its lock."""
        self._open.pop(file, None)
        if self._locks.get(inode.number) is file:
            del self._locks[inode.number]

    def take_lock(self, file: SimFile, inode: Inode) -> bool:
        """Give the lock of a file to a descriptor, if no other has it."""
        return self._locks.setdefault(inode.number, file) is file

    # --- how ------------------------------------------------------------------------------------

    def _begin(self, kind: str, *paths: str) -> None:
        fault = self.strike(kind, *paths)
        if fault is not None:
            fault_raises(fault, paths[0])

    def _opened(self, inode: Inode, path: str, *, write: bool) -> SimFile:
        file = SimFile(self, inode, path, write=write)
        self._open[file] = inode
        return file

    def _maybe_commit_names(self) -> None:
        if self.write_back and self.chance.random() < self.write_back:
            self._tree.commit_some(self.chance)

    def _free_pages(self) -> int:
        if self.capacity_bytes is None:
            return _UNLIMITED_BYTES // PAGE_BYTES
        inodes = {inode.number: inode for inode in self._tree.inodes()}
        inodes.update({inode.number: inode for inode in self._open.values()})
        used = sum(len(inode.bytes.pages) for inode in inodes.values())
        return max(0, self.capacity_bytes // PAGE_BYTES - used)


def fault_raises(fault: Fault, path: str) -> None:
    """Raise what a fault says."""
    if fault.error is None:
        raise Stopped
    raise os_error(fault.error, path)
