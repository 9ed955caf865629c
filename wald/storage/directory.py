"""The data directory as a whole: may we use it, is it ours alone, is it a log's at all."""

import errno
import os

from wald import limits
from wald.errors import (
    DataDirectoryForeign,
    DataDirectoryHeld,
    DataDirectoryUnusable,
    StartFailed,
    WaldError,
)
from wald.ports import Clock, File, FileStat, FileSystem
from wald.storage import identity as identities
from wald.storage import segment as segments
from wald.storage.prepare import disk_full, is_full

LOCK_NAME = "log.lock"
_LOCK_POLL_S = 0.05
_PID_MAX_BYTES = 32
_UNSAFE_MODE = 0o022
# what stays so until a person mends it; all else (memory, open files, the disk) may pass
_LASTING = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOENT,
        errno.EEXIST,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EINVAL,
        errno.ENOTSUP,
        errno.ENOSYS,
    }
)


def unusable(data_dir: str, error: OSError) -> WaldError:
    """Translate an error of the system that a start met."""
    if is_full(error):
        return disk_full(data_dir, "starting the log")
    msg = f"cannot use the data directory {data_dir}: {error.strerror or error}"
    if error.errno not in _LASTING:
        return StartFailed(msg, path=data_dir, errno=error.errno)
    hint = "check that it exists on a writable file system and belongs to the user of wald"
    return DataDirectoryUnusable(msg, hint=hint, path=data_dir, errno=error.errno)


def make_and_check(fs: FileSystem, data_dir: str) -> None:
    """Make the directory if it is not there, its name durable; refuse an unsafe one.

    Raises:
        DataDirectoryUnusable: a link, not a directory, or of an unsafe owner or mode.
        OSError: as the system does.
    """
    found = fs.stat(data_dir)
    if found is None:
        fs.make_directory(data_dir)
        fs.sync_directory(parent(data_dir))
        return
    _refuse_unsafe(data_dir, found)


def check(fs: FileSystem, data_dir: str) -> None:
    """Refuse an unsafe directory, as a start does; one that is not there is no concern of this.

    Raises:
        DataDirectoryUnusable: a link, not a directory, or of an unsafe owner or mode.
        OSError: as the system does.
    """
    found = fs.stat(data_dir)
    if found is not None:
        _refuse_unsafe(data_dir, found)


def _refuse_unsafe(data_dir: str, found: FileStat) -> None:
    if found.is_symlink or not found.is_directory:
        msg = f"the data directory {data_dir} is not a directory itself"
        raise DataDirectoryUnusable(msg, hint="name the real directory, not a link", path=data_dir)
    if found.uid != os.geteuid():
        msg = f"the data directory {data_dir} belongs to user {found.uid}"
        hint = f"run as that user, not as {os.geteuid()}"
        raise DataDirectoryUnusable(msg, hint=hint, path=data_dir)
    if found.mode & _UNSAFE_MODE:
        msg = f"the data directory {data_dir} is writable for others"
        raise DataDirectoryUnusable(msg, hint=f"chmod go-w {data_dir}", path=data_dir)


def refuse_foreign(fs: FileSystem, data_dir: str) -> None:
    """Refuse a directory that holds log files and no identity: before anything is made in it.

    Raises:
        DataDirectoryForeign: it does.
        OSError: as the system does.
    """
    if fs.stat(f"{data_dir}/{identities.NAME}") is not None:
        return
    log_dir = f"{data_dir}/{segments.LOG_DIRECTORY}"
    pool_dir = f"{data_dir}/{segments.POOL_DIRECTORY}"
    names: list[str] = []
    for directory in (log_dir, pool_dir):
        if fs.stat(directory) is not None:
            names += fs.list_directory(directory)
    names = [name for name in names if name != "pool"]
    if names:
        msg = f"{log_dir} holds files, and {data_dir} has no identity: not this log's"
        hint = "bring back the identity file, or name another data directory"
        raise DataDirectoryForeign(msg, hint=hint, path=data_dir, found=names[:3])


def make_rooms(fs: FileSystem, data_dir: str) -> None:
    """Make the directories of the log, and make every name durable before any is trusted.

    Raises:
        OSError: as the system does.
    """
    for name in (
        segments.LOG_DIRECTORY,
        segments.POOL_DIRECTORY,
        segments.QUARANTINE_DIRECTORY,
        segments.REPORTS_DIRECTORY,
    ):
        path = f"{data_dir}/{name}"
        if fs.stat(path) is None:
            fs.make_directory(path)
        fs.sync_directory(path)
    fs.sync_directory(f"{data_dir}/{segments.LOG_DIRECTORY}")
    fs.sync_directory(data_dir)
    fs.sync_directory(parent(data_dir))


def take_lock(fs: FileSystem, clock: Clock, data_dir: str) -> File:
    """Take ``log.lock``; an orphan of a killed supervisor may finish a write meanwhile.

    Raises:
        DataDirectoryHeld: another process kept it for ``limits.LOCK_WAIT_S``.
        OSError: as the system does.
    """
    path = f"{data_dir}/{LOCK_NAME}"
    try:
        file = fs.create(path)
    except FileExistsError:
        file = fs.open(path, write=True)
    try:
        _wait_for(file, clock, data_dir)
        file.truncate(0)
        file.pwritev([f"{os.getpid()}\n".encode()], 0)
    except BaseException:
        file.close()
        raise
    return file


def _wait_for(file: File, clock: Clock, data_dir: str) -> None:
    deadline_ns = clock.monotonic_ns() + int(limits.LOCK_WAIT_S * limits.CLOCK_NS_PER_S)
    while not file.lock():
        if clock.monotonic_ns() >= deadline_ns:
            holder = file.pread(_PID_MAX_BYTES, 0).decode("ascii", "replace").strip()
            msg = f"another process writes the log in {data_dir}"
            hint = f"process {holder or 'unknown'} holds {LOCK_NAME}"
            raise DataDirectoryHeld(msg, hint=hint, path=data_dir, pid=holder)
        clock.sleep(_LOCK_POLL_S)


def parent(path: str) -> str:
    """Return the directory that holds a path's last name."""
    head, _, _ = path.rstrip("/").rpartition("/")
    return head or ("/" if path.startswith("/") else ".")
