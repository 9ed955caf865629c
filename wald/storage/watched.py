"""A file system of which somebody wants to know whether the disk failed to give a part of it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from wald.ports import File, FileSystem


class Watched:
    """A file system of which somebody wants to know whether the disk failed to give a part."""

    def __init__(self, fs: FileSystem) -> None:
        self._fs = fs
        self.failed = False

    def files(self) -> FileSystem:
        """Return the file system."""
        return cast("FileSystem", self)

    def open(self, path: str, *, write: bool = False) -> File:
        """See ``FileSystem.open``."""
        with self.watching():
            return cast("File", _WatchedFile(self._fs.open(path, write=write), self))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See what goes wrong within it."""
        try:
            yield
        except OSError as error:
            self.failed = self.failed or error.errno == errno.EIO
            raise

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else is the file system's
        return getattr(self._fs, name)


class _WatchedFile:
    def __init__(self, file: File, watched: Watched) -> None:
        self._file = file
        self._watched = watched

    def pread(self, length: int, offset: int) -> bytes:
        with self._watched.watching():
            return self._file.pread(length, offset)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else is the file's
        return getattr(self._file, name)
