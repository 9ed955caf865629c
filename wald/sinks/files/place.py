"""The directory that files are published in, and the one step that publishes a batch.

    DIR/.wald/LANE.row        the lane's progress row, and the files of its last batch
    DIR/.wald/LANE-REV-N.tmp  files that are written, and not published yet
    DIR/[partition/]NAME      published files: whole, never changed, anybody's to move or remove

A batch, in this order: its files under temporary names, each flushed; the directory flushed; the
row, which names them, in place of the former one: **commit point**; the files renamed; the
directories flushed. What a crash leaves behind the commit point, the next start does again from
the row; what it leaves before, nobody names, and is removed.

No file is believed behind a failed flush: what was not committed is written anew under another
descriptor, and a row whose step may have failed is written anew before it is told.
"""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wald.model import Anchor, LaneKey, ProgressRow

HIDDEN = ".wald"
_FORMAT = 1
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class LockHeld(OSError):
    """Another process publishes files of this lane."""


class RowDamaged(Exception):
    """The progress row cannot be read."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a lane: its row, and (temporary, published) names of its last batch."""

    row: ProgressRow
    files: tuple[tuple[str, str], ...] = ()


class Place:
    """A lane's part of the directory. Every method raises ``OSError`` as the system does."""

    def __init__(self, root: str, key: LaneKey) -> None:
        self._root = Path(root)
        self._hidden = self._root / HIDDEN
        self._lane = f"{key.log_id.hex()}-{key.route_id}-{key.layout}-{key.lane}"
        self._row = self._hidden / f"{self._lane}.row"
        self._ready: tuple[int, int] | None = None  # the directory that was made ready

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes away from the lane.

        Raises:
            LockHeld: one is at work.
        """
        self._make_directories()
        lock = os.open(self._hidden / f"{self._lane}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                msg = "another process writes the files of this lane"
                raise LockHeld(msg) from error
            yield
        finally:
            os.close(lock)

    def read(self) -> Kept | None:
        """Return what is kept, whole and durable; None if nothing is. Under the lock.

        Raises:
            RowDamaged: it cannot be read.
        """
        kept = self._read()
        stat = self._hidden.stat()
        if self._ready != (stat.st_dev, stat.st_ino) or self._is_unpublished(kept):
            if kept is not None:
                self.commit(kept)  # it may be in the page cache only
                self.publish(kept)
            self._tidy(kept)
            self._ready = (stat.st_dev, stat.st_ino)
        return kept

    def distrust(self) -> None:
        """Make sure that what is kept is durable before it is told again."""
        self._ready = None

    def stage(self, rev_id: bytes, number: int, content: bytes) -> str:
        """Write a file under a temporary name, durable but for its name; returns that."""
        name = f"{self._lane}-{rev_id.hex()}-{number}.tmp"
        self._write(self._hidden / name, content)
        return name

    def make_room(self, published: str) -> None:
        """Make the directories of a published file, durable."""
        directory = (self._root / published).parent
        missing = []
        while not directory.is_dir():
            missing.append(directory)
            directory = directory.parent
        for each in reversed(missing):
            _make_directory(each)

    def commit(self, kept: Kept) -> None:
        """Put a row in place of the former one: with it the files that it names are the target's.

        An error says that nothing took effect, unless the place is ``in_doubt`` then.
        """
        beside = self._hidden / f"{self._lane}.row.new"
        beside.unlink(missing_ok=True)
        self._write(beside, _packed(kept))
        _sync_directory(self._hidden)  # the names of what was staged
        self.distrust()
        beside.replace(self._row)  # COMMIT POINT
        _sync_directory(self._hidden)
        self._ready = _identity(self._hidden)

    def publish(self, kept: Kept) -> None:
        """Give committed files their names; harmless to repeat, also once others have them."""
        self.distrust()
        directories = {(self._root / published).parent for _, published in kept.files}
        for temporary, published in kept.files:
            with contextlib.suppress(FileNotFoundError):
                if (self._hidden / temporary).exists():
                    self.make_room(published)
                    (self._hidden / temporary).replace(self._root / published)
        for directory in directories:
            with contextlib.suppress(FileNotFoundError):  # removed since, with what was in it
                _sync_directory(directory)
        self._ready = _identity(self._hidden)

    def discard(self, temporaries: Sequence[str]) -> None:
        """Remove what was staged and is not to be committed."""
        for name in temporaries:
            with contextlib.suppress(OSError):
                (self._hidden / name).unlink()

    @property
    def in_doubt(self) -> bool:
        """Whether a commit has begun, and did not come to its end."""
        return self._ready is None

    # --- within ---------------------------------------------------------------------------------

    def _make_directories(self) -> None:
        for directory in (self._root, self._hidden):
            if not directory.is_dir():
                _make_directory(directory)

    def _read(self) -> Kept | None:
        try:
            content = self._row.read_bytes()
        except FileNotFoundError:
            return None
        return _unpacked(content)

    def _is_unpublished(self, kept: Kept | None) -> bool:
        """Tell whether a row was put back from a copy that was made before its files had names."""
        return any(
            (self._hidden / temporary).exists() for temporary, _ in (kept.files if kept else ())
        )

    def _tidy(self, kept: Kept | None) -> None:
        """Remove temporaries of this lane that no row names."""
        named = {temporary for temporary, _ in kept.files} if kept else set()
        for path in self._hidden.glob(f"{self._lane}-*.tmp"):
            if path.name not in named:
                path.unlink(missing_ok=True)

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        """Write a new file and flush it; what failed is removed, and never flushed again."""
        path.unlink(missing_ok=True)
        file = os.open(path, _FLAGS, 0o666)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(file, view) :]
            os.fsync(file)
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        finally:
            os.close(file)


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def _make_directory(path: Path) -> None:
    """Make a directory, durable; another lane may make it at the same time."""
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _packed(kept: Kept) -> bytes:
    row = kept.row
    said = {
        "format": _FORMAT,
        "batch_no": row.batch_no,
        "rev_id": row.rev_id.hex(),
        "hi_lsn": row.hi_lsn,
        "anchor": list(row.anchor),
        "owner": row.owner,
        "dead_rev": row.dead_rev.hex(),
        "files": [list(each) for each in kept.files],
    }
    return json.dumps(said, indent=1).encode() + b"\n"


def _unpacked(content: bytes) -> Kept:
    try:
        said = json.loads(content)
        if said["format"] != _FORMAT:
            msg = f"a row of format {said['format']!r}, which this release does not know"
            raise RowDamaged(msg)
        row = ProgressRow(
            int(said["batch_no"]),
            bytes.fromhex(said["rev_id"]),
            int(said["hi_lsn"]),
            Anchor(*map(int, said["anchor"])),
            int(said["owner"]),
            bytes.fromhex(said["dead_rev"]),
        )
        return Kept(row, tuple((str(here), str(there)) for here, there in said["files"]))
    except (ValueError, KeyError, TypeError) as error:
        msg = f"the progress row cannot be read: {error!r}"
        raise RowDamaged(msg) from error
