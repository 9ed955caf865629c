"""Files that are read no faster than asked, so that a check does not harm who works beside it."""

import os
from collections.abc import Callable

from wald import limits
from wald.ports import Clock, File
from wald.system import PosixFile, PosixFileSystem


class Pace:
    """Lets a thread wait after it has read more than a second's share of bytes."""

    def __init__(
        self, clock: Clock, bytes_per_s: int, on_read: Callable[[int], None] = lambda _: None
    ) -> None:
        self._clock = clock
        self._bytes_per_s = bytes_per_s
        self._on_read = on_read
        self._free_ns = clock.monotonic_ns()

    def take(self, length: int) -> None:
        """So many bytes were read: wait until they are paid for."""
        self._on_read(length)
        now_ns = self._clock.monotonic_ns()
        cost_ns = length * limits.CLOCK_NS_PER_S // self._bytes_per_s
        self._free_ns = max(self._free_ns, now_ns) + cost_ns
        ahead_s = (self._free_ns - now_ns) / limits.CLOCK_NS_PER_S
        if ahead_s > limits.SCRUB_AHEAD_S:
            self._clock.sleep(ahead_s)


class PacedFile(PosixFile):
    """A file of which every byte read is paid for."""

    def __init__(self, fd: int, pace: Pace) -> None:
        super().__init__(fd)
        self._pace = pace

    def pread(self, length: int, offset: int) -> bytes:
        """Read as any file does."""
        data = super().pread(length, offset)
        self._pace.take(len(data))
        return data


class PacedFileSystem(PosixFileSystem):
    """The files of the machine, to be read at a pace."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def open(self, path: str, *, write: bool = False) -> File:
        """Open an existing file to read it."""
        assert not write
        return PacedFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), self._pace)
