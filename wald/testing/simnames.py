"""The names of a simulated file system: what programs see, and what the disk holds.

An operation on names has one effect, or two (a move). It is pending until its directory is synced.
What a power cut may leave is what a journaling file system may leave: of the pending operations on
a directory a prefix survives, and a move survives as a whole. ``Names.ANY`` is harsher: each half
of each operation survives or not, by itself.
"""

import errno
import os
import posixpath
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from random import Random

from wald.testing.simdisk import SimBytes

_LINKS_FOLLOWED_MAX = 8


class Names(Enum):
    """Which pending operations on names a power cut may keep."""

    JOURNAL = "journal"
    ANY = "any"


class Kind(Enum):
    """What an inode is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"


@dataclass(eq=False, slots=True)
class Inode:
    """A file, directory or link, whatever its names."""

    number: int
    kind: Kind
    mode: int
    modified: int
    bytes: SimBytes = field(default_factory=SimBytes)
    names: dict[str, "Inode"] = field(default_factory=dict)  # of a directory, as programs see them
    durable_names: dict[str, "Inode"] = field(default_factory=dict)
    target: str = ""  # of a symbolic link


@dataclass(eq=False, slots=True)
class _Effect:
    """One half of an operation: ``name`` of ``directory`` becomes ``inode``, or ``was`` goes."""

    directory: Inode
    name: str
    inode: Inode | None
    was: Inode | None = None

    def apply(self) -> None:
        if self.inode is not None:
            self.directory.durable_names[self.name] = self.inode
        elif self.directory.durable_names.get(self.name) is self.was:
            self.directory.durable_names.pop(self.name, None)


class NameTree:
    """Directories from the root down, and the operations that are not durable yet."""

    def __init__(self, survival: Names) -> None:
        self.survival = survival
        self._next_inode = 1
        self.root = self._new_inode(Kind.DIRECTORY, 0o755, 0)
        self._pending: list[list[_Effect]] = []

    # --- looking --------------------------------------------------------------------------------

    def existing(self, path: str) -> Inode:
        """Return what is at a path; the last component is not followed."""
        return self._walk(_parts(path), path)

    def directory(self, path: str) -> Inode:
        """Return the directory at a path."""
        inode = self.existing(path)
        if inode.kind is not Kind.DIRECTORY:
            raise os_error(errno.ENOTDIR, path)
        return inode

    def inodes(self, *, durable: bool = False) -> Iterator[Inode]:
        """Yield each inode once that has a name (as seen, or on disk), in a stable order."""
        names: Callable[[Inode], dict[str, Inode]] = (
            (lambda inode: inode.durable_names) if durable else (lambda inode: inode.names)
        )
        seen = {self.root.number}
        queue = deque([self.root])
        while queue:
            inode = queue.popleft()
            yield inode
            for child in names(inode).values():
                if child.number not in seen:
                    seen.add(child.number)
                    queue.append(child)

    # --- changing -------------------------------------------------------------------------------

    def add(self, path: str, kind: Kind, mode: int, time: int) -> Inode:
        """Make a new inode at a free path."""
        directory, name = self._free_name(path)
        inode = self._new_inode(kind, mode, time)
        self._change([_Effect(directory, name, inode)])
        return inode

    def link(self, source: str, target: str) -> None:
        """Give a file a second name at a free path."""
        inode = self.existing(source)
        if inode.kind is Kind.DIRECTORY:
            raise os_error(errno.EPERM, source)
        directory, name = self._free_name(target)
        self._change([_Effect(directory, name, inode)])

    def remove(self, path: str) -> None:
        """Remove the name of a file."""
        inode = self.existing(path)
        if inode.kind is Kind.DIRECTORY:
            raise os_error(errno.EISDIR, path)
        directory, name = self._place(path)
        self._change([_Effect(directory, name, None, inode)])

    def move(self, source: str, target: str, *, over: bool) -> None:
        """Move a name in one step; only with ``over`` to one that is used."""
        inode = self.existing(source)
        directory, name = self._place(target) if over else self._free_name(target)
        old_directory, old_name = self._place(source)
        if directory.names.get(name) is inode:
            return  # two names of one file: nothing happens, as POSIX has it
        self._change(
            [
                _Effect(directory, name, inode),
                _Effect(old_directory, old_name, None, inode),
            ]
        )

    # --- what becomes durable -------------------------------------------------------------------

    def commit(self, directory: Inode) -> None:
        """Make a directory's operations durable, each with the earlier ones it stands on."""
        if self.survival is Names.ANY:
            self._commit_halves(directory)
            return
        touched = {directory.number}
        taken, left = [], []
        for effects in reversed(self._pending):
            directories = {effect.directory.number for effect in effects}
            if directories & touched:
                touched |= directories
                taken.append(effects)
            else:
                left.append(effects)
        self._pending = left[::-1]
        for effects in reversed(taken):
            _apply(effects)

    def commit_some(self, chance: Random) -> None:
        """Make the first so many operations durable, as the journal does when it likes."""
        count = chance.randint(0, len(self._pending))
        for effects in self._pending[:count]:
            _apply(effects)
        del self._pending[:count]

    def commit_all(self) -> None:
        """Make everything durable."""
        for effects in self._pending:
            _apply(effects)
        self._pending.clear()

    def crash(self, chance: Random) -> None:
        """Lose the power: some pending operations survive, and the disk is all there is."""
        keep = chance.choice((0.0, 0.5, 0.8, 1.0))
        ended: set[int] = set()  # directories of which no later operation may survive
        for effects in self._pending:
            if self.survival is Names.ANY:
                _apply([effect for effect in effects if chance.random() < keep])
                continue
            directories = {effect.directory.number for effect in effects}
            if directories & ended or chance.random() >= keep:
                ended |= directories
            else:
                _apply(effects)
        self._pending.clear()
        for inode in self.inodes(durable=True):
            inode.names = dict(inode.durable_names)

    # --- how ------------------------------------------------------------------------------------

    def _new_inode(self, kind: Kind, mode: int, time: int) -> Inode:
        inode = Inode(self._next_inode, kind, mode, time)
        self._next_inode += 1
        return inode

    def _walk(self, parts: list[str], path: str) -> Inode:
        at, links = self.root, 0
        queue = deque(parts)
        while queue:
            part = queue.popleft()
            if at.kind is not Kind.DIRECTORY:
                raise os_error(errno.ENOTDIR, path)
            if part not in at.names:
                raise os_error(errno.ENOENT, path)
            at = at.names[part]
            if at.kind is Kind.SYMLINK and queue:
                links += 1
                if links > _LINKS_FOLLOWED_MAX:
                    raise os_error(errno.ELOOP, path)
                queue.extendleft(reversed(_parts(at.target)))
                at = self.root
        return at

    def _place(self, path: str) -> tuple[Inode, str]:
        parts = _parts(path)
        if not parts:
            raise os_error(errno.EEXIST, path)
        directory = self._walk(parts[:-1], path)
        if directory.kind is not Kind.DIRECTORY:
            raise os_error(errno.ENOTDIR, path)
        return directory, parts[-1]

    def _free_name(self, path: str) -> tuple[Inode, str]:
        directory, name = self._place(path)
        if name in directory.names:
            raise os_error(errno.EEXIST, path)
        return directory, name

    def _change(self, effects: list[_Effect]) -> None:
        for effect in effects:
            if effect.inode is None:
                del effect.directory.names[effect.name]
            else:
                effect.directory.names[effect.name] = effect.inode
        self._pending.append(effects)

    def _commit_halves(self, directory: Inode) -> None:
        for effects in self._pending:
            mine = [effect for effect in effects if effect.directory is directory]
            _apply(mine)
            effects[:] = [effect for effect in effects if effect.directory is not directory]
        self._pending = [effects for effects in self._pending if effects]


def _apply(effects: list[_Effect]) -> None:
    for effect in effects:
        effect.apply()


def os_error(number: int, path: str) -> OSError:
    """Return the error that the system would raise."""
    return OSError(number, os.strerror(number), path)


def _parts(path: str) -> list[str]:
    return [part for part in posixpath.normpath("/" + path).split("/") if part]
