"""The disk as a power cut may leave it, at any operation of a recorded run.

A file's sectors that were not synced are each lost, kept, kept in an earlier version, or torn; its
size is any that it had since the last sync; names that were not synced are kept or lost as
``wald.testing.Names`` says. What was synced stays as it was.
"""

import copy
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.crash.journal import Entry, Flag, Kind
from wald.testing.simnames import Inode, Names, NameTree
from wald.testing.simnames import Kind as InodeKind

SECTOR = 512
_ZERO = bytes(SECTOR)


@dataclass(slots=True)
class Content:
    """The bytes of one file: durable sectors, and all versions of those written since a sync."""

    durable: dict[int, bytes] = field(default_factory=dict)
    dirty: dict[int, list[bytes]] = field(default_factory=dict)
    size: int = 0
    durable_size: int = 0
    sizes: list[int] = field(default_factory=list)

    def write(self, offset: int, data: bytes) -> None:
        """Write to the cache."""
        at, end = offset, offset + len(data)
        while at < end:
            number, inside = divmod(at, SECTOR)
            length = min(SECTOR - inside, end - at)
            part = data[at - offset : at - offset + length]
            if length < SECTOR:
                old = self._now(number)
                part = old[:inside] + part + old[inside + length :]
            if number in self.dirty or self.durable.get(number, _ZERO) != part:
                self.dirty.setdefault(number, []).append(part)
            at += length
        if end > self.size:
            self.resize(end)

    def resize(self, size: int) -> None:
        """Cut, or extend with zeros."""
        if size < self.size:
            first = -(-size // SECTOR)
            for number in [each for each in self.dirty if each >= first]:
                del self.dirty[number]
            for number in [each for each in self.durable if each >= first]:
                self.dirty[number] = [_ZERO]
            if size % SECTOR:
                number, inside = divmod(size, SECTOR)
                kept = self._now(number)[:inside]
                self.dirty.setdefault(number, []).append(kept + bytes(SECTOR - inside))
        self.size = size
        self.sizes.append(size)

    def _now(self, number: int) -> bytes:
        versions = self.dirty.get(number)
        return versions[-1] if versions else self.durable.get(number, _ZERO)

    def begin_sync(self) -> tuple[dict[int, int], int]:
        """Return what a sync that begins now makes durable: versions of sectors, and sizes."""
        return {number: len(versions) for number, versions in self.dirty.items()}, len(self.sizes)

    def end_sync(self, begun: tuple[dict[int, int], int]) -> None:
        """Make that durable."""
        versions, sizes = begun
        for number, count in versions.items():
            found = self.dirty.get(number)
            if not found:
                continue  # cut off meanwhile
            self.durable[number] = found[min(count, len(found)) - 1]
            del found[:count]
            if not found:
                del self.dirty[number]
        if sizes:
            self.durable_size = self.sizes[min(sizes, len(self.sizes)) - 1]
            del self.sizes[:sizes]

    def after_a_cut(self, chance: Random) -> tuple[int, dict[int, bytes]]:
        """Return size and sectors as a power cut may leave them."""
        sizes = [self.durable_size, *self.sizes]
        size = sizes[chance.randrange(len(sizes))]
        sectors = dict(self.durable)
        if self.dirty:
            _tear(self.dirty, sectors, chance)
        return size, sectors


def _tear(dirty: dict[int, list[bytes]], sectors: dict[int, bytes], chance: Random) -> None:
    mood, grain = chance.random(), chance.choice((1, 8))
    if mood < 0.2:
        return
    keep = 1.0 if mood < 0.4 else chance.random()
    torn = 0.0 if mood < 0.7 else chance.random() / 4
    kept: dict[int, bool] = {}
    for number, versions in dirty.items():
        unit = number // grain
        if unit not in kept:
            kept[unit] = chance.random() < keep
        if kept[unit]:
            version = versions[-1] if mood < 0.4 else chance.choice(versions)
            if chance.random() < torn:
                cut = chance.randrange(SECTOR)
                version = version[:cut] + sectors.get(number, _ZERO)[cut:]
            sectors[number] = version


class Disk:
    """Files and names below a root, as the entries of a journal change them.

    Args:
        root: the absolute path of the directory; it and those above are there for good.
        names: which names survive.
        believes: tells which syncs count: a lie here is a bug planted in who synced.
    """

    def __init__(
        self,
        root: str,
        names: Names = Names.JOURNAL,
        believes: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self.root = root.rstrip("/")
        self.tree = NameTree(names)
        self.contents: dict[int, Content] = {}  # by the inode numbers of the tree
        self._believes = believes
        self._inodes: dict[int, Inode] = {}  # by those of the machine
        self._paths: dict[int, str] = {}
        self._begun: dict[tuple[int, int], tuple[dict[int, int], int]] = {}
        at = ""
        for part in self.root.strip("/").split("/"):
            at += "/" + part
            self.tree.add(at, InodeKind.DIRECTORY, 0o755, 0)
        self.tree.commit_all()

    def apply(self, entry: Entry) -> None:
        """Do what an entry says."""
        match entry.kind:
            case Kind.CREATE | Kind.MKDIR | Kind.OPEN:
                self._named(entry)
            case Kind.RENAME:
                self.tree.move(entry.path, entry.target, over=True)
            case Kind.LINK:
                self.tree.link(entry.path, entry.target)
            case Kind.UNLINK if not entry.path.endswith(".sock"):  # bound, not created: no entry
                self.tree.remove(entry.path)
            case Kind.SYNC_BEGIN if not entry.flags & Flag.DIRECTORY:
                self._begun[entry.process, entry.inode] = self._content(entry).begin_sync()
            case Kind.SYNC_END:
                self._synced(entry)
            case _:  # an empty directory that stays harms nobody
                self._changed(entry)

    def _named(self, entry: Entry) -> None:
        if entry.kind is Kind.OPEN:
            inode = self.tree.existing(entry.path)
        else:
            kind = InodeKind.DIRECTORY if entry.flags & Flag.DIRECTORY else InodeKind.FILE
            inode = self.tree.add(entry.path, kind, 0o600, 0)
        self._inodes[entry.inode] = inode
        self._paths[entry.inode] = entry.path

    def _changed(self, entry: Entry) -> None:
        if entry.kind not in {Kind.WRITE, Kind.TRUNCATE, Kind.ALLOCATE}:
            return
        content = self._content(entry)
        match entry.kind:
            case Kind.WRITE:
                content.write(entry.offset, entry.data)
                if entry.flags & Flag.DURABLE:
                    numbers = range(
                        entry.offset // SECTOR, -(-(entry.offset + len(entry.data)) // SECTOR)
                    )
                    begun = {n: len(content.dirty[n]) for n in numbers if n in content.dirty}
                    content.end_sync((begun, len(content.sizes)))
            case Kind.TRUNCATE if entry.offset != content.size:
                content.resize(entry.offset)
            case Kind.ALLOCATE if entry.flags == 0 and entry.offset + entry.length > content.size:
                content.resize(entry.offset + entry.length)
            case _:
                pass

    def _synced(self, entry: Entry) -> None:
        if entry.flags & Flag.FAILED or not self._believes(self._paths[entry.inode]):
            return
        if entry.flags & Flag.DIRECTORY:
            self.tree.commit(self._inodes[entry.inode])
        else:
            self._content(entry).end_sync(self._begun.pop((entry.process, entry.inode)))

    def _content(self, entry: Entry) -> Content:
        return self.contents.setdefault(self._inodes[entry.inode].number, Content())

    def image(self, chance: Random) -> "Image":
        """Return what is left if the power goes now; changes nothing."""
        tree = copy.deepcopy(self.tree)
        tree.crash(chance)
        image = Image()
        fates: dict[int, tuple[int, dict[int, bytes]]] = {}
        base = tree.directory(self.root)
        waiting = [("", base)]
        while waiting:
            path, directory = waiting.pop()
            for name, inode in directory.names.items():
                below = f"{path}/{name}"
                if inode.kind is InodeKind.DIRECTORY:
                    image.directories.append(below)
                    waiting.append((below, inode))
                    continue
                if inode.number not in fates:
                    content = self.contents.get(inode.number, Content())
                    fates[inode.number] = content.after_a_cut(chance)
                image.files[below] = (inode.number, *fates[inode.number])
        return image


@dataclass(slots=True)
class Image:
    """Directories and files with paths below the root; each file: inode, size, sectors."""

    directories: list[str] = field(default_factory=list)
    files: dict[str, tuple[int, int, dict[int, bytes]]] = field(default_factory=dict)

    def put(self, root: Path, keep: Iterable[str] = ()) -> None:
        """Make it the content of a directory; the directories ``keep`` are emptied, not replaced.

        So the data directory stays the one that it was: it was not copied, the power was cut.
        """
        keep = set(keep)
        _clear(root, keep, "")
        for path in self.directories:
            Path(f"{root}{path}").mkdir(exist_ok=path in keep, mode=0o700)
        written: dict[int, str] = {}
        for path, (inode, size, sectors) in self.files.items():
            if inode in written:
                os.link(written[inode], f"{root}{path}")
                continue
            written[inode] = f"{root}{path}"
            fd = os.open(f"{root}{path}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                for first, data in _runs(sectors):
                    os.pwrite(fd, data, first * SECTOR)
                os.ftruncate(fd, size)
            finally:
                os.close(fd)


def _runs(sectors: dict[int, bytes]) -> Iterable[tuple[int, bytes]]:
    run: list[bytes] = []
    first = last = -2
    for number in sorted(sectors):
        if number != last + 1 and run:
            yield first, b"".join(run)
            run = []
        if not run:
            first = number
        run.append(sectors[number])
        last = number
    if run:
        yield first, b"".join(run)


def _clear(root: Path, keep: set[str], below: str) -> None:
    for found in os.scandir(f"{root}{below}"):
        path = f"{below}/{found.name}"
        if found.is_dir(follow_symlinks=False):
            _clear(root, keep, path)
            if path not in keep:
                Path(found.path).rmdir()
        else:
            Path(found.path).unlink()
