"""The one door to the operating system: the real file system, and the clock of ``wald.clock``.

``PosixFileSystem`` and ``wald.testing.SimFileSystem`` pass the same contract tests. What is
durable when, and what may be called after a failure, stands in ``wald.ports``.
"""

import ctypes
import errno
import fcntl
import os
import socket
import stat
import struct
import sys
import warnings
from collections.abc import Mapping, MutableMapping, Sequence
from functools import cache
from pathlib import Path

from wald.clock import SystemClock as SystemClock  # noqa: PLC0414 - the clock of this system too
from wald.core.access import Caller
from wald.ports import File, FileStat

_OPEN_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK  # a pipe must not hang us
_MACHINE_ID = "/etc/machine-id"
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_CLOSED_FD = 2**31 - 1  # no process has it: every use raises EBADF, where -1 would be a ValueError
_PARTS_MAX = 1024  # IOV_MAX of Linux and macOS
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_SO_PEERGROUPS = 59  # asm-generic/socket.h; Python has no name for it
_GROUPS_MAX_BYTES = 1024  # what Python asks for at most: 256 groups beside the first
_WHOLE_MAP = ["0", "0", "4294967295"]  # of the first user namespace
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})


class PosixFile:
    """An open file; see ``wald.ports.File``."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def pread(self, length: int, offset: int) -> bytes:
        """Read up to ``length`` bytes; short only at the end of the file."""
        data = os.pread(self._fd, length, offset)
        if len(data) == length or not data:
            return data
        parts = [data]
        got = len(data)
        while got < length and (data := os.pread(self._fd, length - got, offset + got)):
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def pwritev(self, parts: Sequence[bytes], offset: int) -> None:
        """Write all parts at ``offset``, or raise; after an error any prefix may be written."""
        length = sum(map(len, parts))
        if len(parts) > _PARTS_MAX:
            parts = (b"".join(parts),)
        written = os.pwritev(self._fd, parts, offset)
        if written != length:
            self._write_rest(b"".join(parts), written, offset)

    def _write_rest(self, whole: bytes, written: int, offset: int) -> None:
        """Finish a short write: the next try either goes on or says why it was short."""
        rest = memoryview(whole)
        while written < len(whole):
            more = os.pwrite(self._fd, rest[written:], offset + written)
            if more == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            written += more

    def sync(self) -> None:
        """Make bytes and size durable. A failure is final for this file: never retried here."""
        if sys.platform == "darwin":
            fcntl.fcntl(self._fd, fcntl.F_FULLFSYNC)
        else:
            os.fdatasync(self._fd)

    def allocate(self, offset: int, length: int) -> None:
        """Reserve room and extend the size; bytes read as zeros."""
        if sys.platform == "darwin":
            if self.size() < offset + length:
                os.ftruncate(self._fd, offset + length)
        else:
            os.posix_fallocate(self._fd, offset, length)

    def truncate(self, size_bytes: int) -> None:
        """Cut or extend with zeros; durable after ``sync``."""
        os.ftruncate(self._fd, size_bytes)

    def size(self) -> int:
        """Return the size in bytes."""
        return os.fstat(self._fd).st_size

    def lock(self) -> bool:
        """Take the exclusive lock of the file without waiting; False if another holds it."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def detach(self) -> int:
        """Return the descriptor, which is the caller's to close from now on."""
        fd, self._fd = self._fd, _CLOSED_FD
        return fd

    def close(self) -> None:
        """Close; harmless to repeat."""
        fd = self.detach()
        if fd != _CLOSED_FD:
            os.close(fd)

    def __del__(self) -> None:
        """Give back a descriptor that nobody closed, and say so, as the files of Python do."""
        if self._fd != _CLOSED_FD:
            self.close()
            warnings.warn("a file was not closed", ResourceWarning, stacklevel=2, source=self)


class PosixFileSystem:
    """The files of the machine; see ``wald.ports.FileSystem``."""

    def open(self, path: str, *, write: bool = False) -> File:
        """Open an existing file; a symbolic link in the last component raises ``OSError``."""
        return PosixFile(os.open(path, _OPEN_FLAGS | (os.O_RDWR if write else os.O_RDONLY)))

    def create(self, path: str, *, mode: int = 0o600) -> File:
        """Make a new, empty file to read and write."""
        return PosixFile(os.open(path, _OPEN_FLAGS | os.O_RDWR | os.O_CREAT | os.O_EXCL, mode))

    def make_directory(self, path: str, *, mode: int = 0o700) -> None:
        """Make a directory."""
        os.mkdir(path, mode)

    def list_directory(self, path: str) -> list[str]:
        """Return the names in a directory, sorted."""
        return sorted(os.listdir(path))

    def stat(self, path: str) -> FileStat | None:
        """Return what is at the name, itself if a link; None if nothing is there."""
        try:
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return FileStat(
            size_bytes=found.st_size,
            inode=found.st_ino,
            device=found.st_dev,
            block_size_bytes=found.st_blksize,
            is_directory=stat.S_ISDIR(found.st_mode),
            is_symlink=stat.S_ISLNK(found.st_mode),
            uid=found.st_uid,
            mode=stat.S_IMODE(found.st_mode),
            modified_ns=found.st_mtime_ns,
        )

    def link(self, source: str, target: str) -> None:
        """Give a file a second name."""
        os.link(source, target, follow_symlinks=False)

    def unlink(self, path: str) -> None:
        """Remove a name."""
        os.unlink(path)

    def rename(self, source: str, target: str) -> None:
        """Move a name to one that must not exist."""
        if not _rename_noreplace(source, target):
            _rename_by_link(source, target)

    def replace(self, source: str, target: str) -> None:
        """Move a name over another in one step."""
        os.replace(source, target)

    def sync_directory(self, path: str) -> None:
        """Make the names in a directory durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def free_bytes(self, path: str) -> int:
        """Return how many bytes an ordinary user may still write on the file system of ``path``."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def machine_id(self) -> str:
        """Return what names this machine; empty where the system has none."""
        return _first_line(_MACHINE_ID)


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text("ascii").strip()
    except (OSError, ValueError):
        return ""


def _rename_noreplace(source: str, target: str) -> bool:
    """Call renameat2 with RENAME_NOREPLACE; False where kernel or file system has it not."""
    if _renameat2 is None:
        return False
    if _renameat2(
        _AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE
    ):
        number = ctypes.get_errno()
        if number in _UNSUPPORTED:
            return False
        raise OSError(number, os.strerror(number), source, None, target)
    return True


def _rename_by_link(source: str, target: str) -> None:
    """Do the same in two steps: ``link`` never replaces; a crash between them leaves both names.

    A directory cannot be linked. There a check comes first; only the holder of the data
    directory's lock renames in it, so nobody can slip in between.
    """
    if stat.S_ISDIR(os.lstat(source).st_mode):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), source, None, target)
        os.rename(source, target)
        return
    os.link(source, target, follow_symlinks=False)
    os.unlink(source)


_libc = ctypes.CDLL(None, use_errno=True)
_renameat2 = getattr(_libc, "renameat2", None)
if _renameat2 is not None:
    _renameat2.argtypes = (
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_uint,
    )


# --- systemd, and the life of child processes ---------------------------------------------------

LISTEN_FDS_START = 3  # sd_listen_fds(3): the first descriptor passed
_PR_SET_PDEATHSIG = 1


# --- who connects -------------------------------------------------------------------------------


def caller_of(connected: socket.socket) -> Caller:
    """Return who connected, as the kernel noted it then (SO_PEERCRED, SO_PEERGROUPS).

    In a user namespace every user that is not mapped into it has the same overflow id: such an id
    says nothing. Nobody is known where the system does not tell.
    """
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return Caller(None, frozenset())
    said = connected.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(said)
    try:
        more = connected.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_MAX_BYTES)
    except OSError:
        more = b""  # a kernel before 4.13, or more groups than that
    gids = {gid, *(group for (group,) in struct.iter_unpack("I", more))}
    return Caller(_known(uid, "uid"), frozenset(gids - {_overflow("gid")}), pid)


def own_uid() -> int | None:
    """Return the user id of this process; None if others have the same in its user namespace."""
    return _known(os.geteuid(), "uid")


def _known(number: int, kind: str) -> int | None:
    return None if number == _overflow(kind) else number


@cache
def _overflow(kind: str) -> int | None:
    """Return the id that all have who are not mapped into this user namespace; None in the first.

    ``kind`` is ``uid`` or ``gid``. See user_namespaces(7).
    """
    if _first_line(f"/proc/self/{kind}_map").split() == _WHOLE_MAP:
        return None
    said = _first_line(f"/proc/sys/kernel/overflow{kind}")
    return int(said) if said.isdecimal() else None


def sd_notify(environment: Mapping[str, str], *lines: str) -> bool:
    """Tell systemd ``READY=1`` and the like; False where nobody listens.

    A lost message is not an error: the service runs, whatever its manager knows of it.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(0)
            sender.sendto("\n".join(lines).encode(), address)
    except OSError:
        return False
    return True


def listen_fds(environment: MutableMapping[str, str]) -> list[int]:
    """Return the descriptors that systemd passed to this process, and forget that it did.

    The variables are removed so that no child takes the descriptors for its own.
    """
    pid = environment.pop("LISTEN_PID", "")
    passed = environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not passed.isdigit():
        return []
    fds = list(range(LISTEN_FDS_START, LISTEN_FDS_START + int(passed)))
    inheritable = False
    for fd in fds:
        os.set_inheritable(fd, inheritable)
    return fds


def end_with_parent(number: int) -> None:
    """Ask the kernel for a signal to this process when its parent ends (Linux; else nothing)."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number), 0, 0, 0)
