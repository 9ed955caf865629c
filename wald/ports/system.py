"""Time, chance and files: what the machine does for us."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Clock(Protocol):
    """Time as an argument: monotonic for durations, wall clock for people and for records."""

    def wall_ns(self) -> int:
        """Return the wall clock, nanoseconds since the epoch. May jump either way."""
        ...

    def monotonic_ns(self) -> int:
        """Return a clock that never goes back, in nanoseconds; comparable in one process only."""
        ...

    def boot_ns(self) -> int:
        """Return nanoseconds since boot, suspend included; comparable within one boot."""
        ...

    def boot_id(self) -> str:
        """Return what names this boot of this machine."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait; only drivers of real processes call it, never the core."""
        ...


class Chance(Protocol):
    """Randomness as an argument; ``random.Random`` and ``random.SystemRandom`` fit."""

    def randbytes(self, n: int, /) -> bytes:
        """Return n random bytes."""
        ...

    def uniform(self, a: float, b: float, /) -> float:
        """Return a float between a and b."""
        ...


class FileStat(NamedTuple):
    """What a file system says of a name."""

    size_bytes: int
    inode: int
    device: int
    block_size_bytes: int
    is_directory: bool
    is_symlink: bool
    uid: int
    mode: int
    modified_ns: int


class File(Protocol):
    """An open file. One thread at a time. Every method raises ``OSError`` as the system does.

    Nothing is durable before ``sync`` returned without an error. After ``sync`` raised once, the
    file's unsynced bytes may be lost although a later ``sync`` succeeds and a read shows them:
    no caller may sync this file again and believe it.
    """

    def pread(self, length: int, offset: int) -> bytes:
        """Read up to ``length`` bytes; short only at the end of the file."""
        ...

    def pwritev(self, parts: Sequence[bytes], offset: int) -> None:
        """Write all parts at ``offset``, or raise; after an error any prefix may be written."""
        ...

    def sync(self) -> None:
        """Make bytes and size durable (fdatasync)."""
        ...

    def allocate(self, offset: int, length: int) -> None:
        """Reserve room and extend the size (posix_fallocate); bytes read as zeros."""
        ...

    def truncate(self, size_bytes: int) -> None:
        """Cut or extend with zeros; durable after ``sync``."""
        ...

    def size(self) -> int:
        """Return the size in bytes."""
        ...

    def lock(self) -> bool:
        """Take the exclusive lock of the file without waiting; False if another holds it.

        The lock ends with the process or with ``close`` (flock; descriptors are close-on-exec).
        """
        ...

    def close(self) -> None:
        """Close; harmless to repeat. Does not sync."""
        ...


class FileSystem(Protocol):
    """Names. Paths are absolute or relative strings with ``/``. Raises ``OSError``.

    A new, removed or changed name is durable only after ``sync_directory`` of its directory.
    Files are opened without following a symbolic link in the last component.
    """

    def open(self, path: str, *, write: bool = False) -> File:
        """Open an existing file."""
        ...

    def create(self, path: str, *, mode: int = 0o600) -> File:
        """Make a new, empty file to read and write; ``FileExistsError`` if the name is used."""
        ...

    def make_directory(self, path: str, *, mode: int = 0o700) -> None:
        """Make a directory; ``FileExistsError`` if the name is used."""
        ...

    def list_directory(self, path: str) -> list[str]:
        """Return the names in a directory, sorted."""
        ...

    def stat(self, path: str) -> FileStat | None:
        """Return what is at the name, itself if a link; None if nothing is there."""
        ...

    def link(self, source: str, target: str) -> None:
        """Give a file a second name; ``FileExistsError`` if ``target`` is used."""
        ...

    def unlink(self, path: str) -> None:
        """Remove a name."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Move a name to one that must not exist (RENAME_NOREPLACE); ``FileExistsError`` if so."""
        ...

    def replace(self, source: str, target: str) -> None:
        """Move a name over another in one step: for small whole files, never for the log."""
        ...

    def sync_directory(self, path: str) -> None:
        """Make the names in a directory durable."""
        ...

    def free_bytes(self, path: str) -> int:
        """Return how many bytes may still be written on the file system of ``path``."""
        ...

    def machine_id(self) -> str:
        """Return what names this machine; empty where the system has none."""
        ...
