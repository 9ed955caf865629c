"""The files of the machine without waiting for its disk, for tests in which no power fails."""

from wald.ports import File
from wald.system import PosixFile, PosixFileSystem


class _QuickFile(PosixFile):
    """A file that is as durable as a killed process leaves it: no power fails here."""

    __slots__ = ()

    def sync(self) -> None:
        """Do nothing."""


class QuickFileSystem(PosixFileSystem):
    """The files of the machine, without waiting for its disk: the target is what is tested."""

    def open(self, path: str, *, write: bool = False) -> File:
        """Open an existing file."""
        return self._quick(super().open(path, write=write))

    def create(self, path: str, *, mode: int = 0o600) -> File:
        """Make a new, empty file."""
        return self._quick(super().create(path, mode=mode))

    def sync_directory(self, path: str) -> None:
        """Do nothing."""

    @staticmethod
    def _quick(file: File) -> File:
        assert isinstance(file, PosixFile)
        return _QuickFile(file.detach())
