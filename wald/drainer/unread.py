"""A disk that gives a page later: what it does not give now is not lost yet.

To a reader of the log a page that cannot be read (EIO) is damage like any other. But a disk that is
away for a moment says the same of each of its pages, and what counts as lost once is a dead letter
for good. So a lane begins anew a number of times before it believes that a page is gone.
"""

import errno
from typing import Any, NamedTuple, cast

from wald import limits
from wald.errors import LogFailed
from wald.ports import File, FileSystem


class _Tries(NamedTuple):
    number: int
    start: int  # what was not given at the last try and has not been since: from here
    end: int


class Unread:
    """How often in a row which file could not be read; one for each who reads."""

    def __init__(self) -> None:
        self._tries: dict[str, _Tries] = {}

    def files(self, fs: FileSystem) -> FileSystem:
        """Return a file system whose files raise ``LogFailed`` where a page cannot be read.

        Less than ``limits.UNREAD_TRIES_COUNT`` times for each; then they are as they are.
        """
        return cast("FileSystem", _Files(fs, self))

    def given(self, path: str, offset: int, length: int) -> None:
        """Take in a read that went well: where all is given at last, nothing counts any more."""
        tries = self._tries.get(path)
        if tries is None or not offset <= tries.start < offset + length:
            return
        if offset + length < tries.end:
            self._tries[path] = tries._replace(start=offset + length)
        else:
            del self._tries[path]

    def take(self, error: OSError, path: str, offset: int, length: int) -> None:
        """Take in an error of a read.

        Raises:
            LogFailed: it may go well later.
        """
        if error.errno != errno.EIO:
            return
        if path not in self._tries and len(self._tries) >= limits.UNREAD_FILES_COUNT:
            self._tries.clear()  # then it takes longer
        tries = self._tries[path].number + 1 if path in self._tries else 1
        self._tries[path] = _Tries(tries, offset, offset + length)
        if tries < limits.UNREAD_TRIES_COUNT:
            msg = (
                f"the disk does not give a part of {path}: try {tries} of "
                f"{limits.UNREAD_TRIES_COUNT}, then it counts as lost"
            )
            raise LogFailed(msg, hint="look at the disk", path=path) from error


class _Files:
    def __init__(self, bare: FileSystem, unread: Unread) -> None:
        self._bare = bare
        self._unread = unread

    def open(self, path: str, *, write: bool = False) -> File:
        return cast("File", _File(self._bare.open(path, write=write), path, self._unread))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else is the file system's
        return getattr(self._bare, name)


class _File:
    def __init__(self, file: File, path: str, unread: Unread) -> None:
        self._file = file
        self._path = path
        self._unread = unread

    def pread(self, length: int, offset: int) -> bytes:
        try:
            data = self._file.pread(length, offset)
        except OSError as error:
            self._unread.take(error, self._path, offset, length)
            raise
        self._unread.given(self._path, offset, length)
        return data

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else is the file's
        return getattr(self._file, name)
