"""What a supervisor must hold before it starts anything: the data directory and the socket.

Locks, not files that exist, tell a second start from a stale one: a lock ends with its process.
"""

import os
import posixpath
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from wald import limits
from wald.errors import (
    DataDirectoryForeign,
    DataDirectoryHeld,
    SocketHeld,
    SocketUnusable,
    WaldError,
    WrongSetting,
)
from wald.ports import File, FileSystem
from wald.storage.directory import make_and_check, refuse_foreign, unusable

SERVE_LOCK = "serve.lock"
CONTROL_SUFFIX = ".ctl"
_BACKLOG = 4_096  # the kernel cuts it to net.core.somaxconn
_PID_MAX_BYTES = 32
_SOCKET_UMASK = 0o177  # bind makes the name with its final mode: no moment at which others connect
_OURS = frozenset(
    {SERVE_LOCK, "identity", "log.lock", "ledger.lock", "log", "ledger", "ingest.page", "owner"}
)
_FURNITURE = frozenset({"lost+found", "wald.sock", "wald.sock.ctl", "wald.sock.lock"})


class Manner(NamedTuple):
    """How sockets are made: their mode, and their owner and group if those are others."""

    mode: int = 0o600
    uid: int = -1
    gid: int = -1


class Sockets(NamedTuple):
    """The listening sockets of a daemon, and what of the file system is ours to remove."""

    data: socket.socket
    control: socket.socket
    made: tuple[str, ...]


_PRIVATE = Manner()


def claim_data_directory(fs: FileSystem, path: str, *, pid: int) -> File:
    """Make the directory if need be, durably, and take ``serve.lock``; return the held lock.

    Raises:
        DataDirectoryHeld: another daemon holds it; ``pid`` names it.
        DataDirectoryForeign: it holds files and none of them is wald's.
        DataDirectoryUnusable: it cannot be made or written, or others may write in it.
        StartFailed: the system refused something; the same may go well later.
    """
    try:
        _make_directories(fs, posixpath.dirname(path), mode=0o755)
        make_and_check(fs, path)
        _refuse_foreign(fs, path)
        return _locked(fs, posixpath.join(path, SERVE_LOCK), pid)
    except _HeldError as error:
        msg = f"{path} is held by another daemon, pid {error.pid}"
        raise DataDirectoryHeld(
            msg,
            hint="it delivers what is there: use its socket, or stop it first; a second daemon "
            "needs a --data-dir of its own",
            pid=error.pid,
        ) from None
    except OSError as error:
        raise unusable(path, error) from error


def claim_sockets(
    fs: FileSystem,
    path: str,
    passed: socket.socket | None,
    *,
    pid: int,
    manner: Manner = _PRIVATE,
) -> tuple[Sockets, File]:
    """Bind data and control socket, or take the data socket that systemd ``passed``.

    A stale name is removed only under the lock beside it: two daemons with different data
    directories may have been told the same path.

    Raises:
        WrongSetting: the path is too long for the kernel.
        SocketHeld: another daemon holds the path; ``pid`` names it.
        SocketUnusable: the path cannot be bound.
    """
    control = path + CONTROL_SUFFIX
    if len(os.fsencode(control)) > limits.SOCKET_PATH_MAX_BYTES:
        msg = (
            f"the path of the control socket, {control}, has {len(os.fsencode(control))} bytes;"
            f" the kernel takes {limits.SOCKET_PATH_MAX_BYTES}"
        )
        raise WrongSetting(msg, hint="name a shorter path with --socket or daemon.socket")
    lock = None
    try:
        _make_directories(fs, posixpath.dirname(path), mode=0o755)
        lock = _locked(fs, path + ".lock", pid)
        return _bound(fs, path, control, passed, manner), lock
    except _HeldError as error:
        msg = f"{path} is the socket of another daemon, pid {error.pid}"
        hint = "stop that one, or name another path: daemon.socket, WALD_SOCKET or --socket"
        raise SocketHeld(msg, hint=hint, pid=error.pid) from None
    except OSError as error:
        if lock is not None:
            lock.close()
        msg = f"{path}: {error.strerror}"
        raise SocketUnusable(msg, hint="name another path with --socket") from error
    except WaldError:
        if lock is not None:
            lock.close()
        raise


def release_sockets(fs: FileSystem, sockets: Sockets) -> None:
    """Close the sockets and remove the names that were made for them."""
    sockets.data.close()
    sockets.control.close()
    for name in sockets.made:
        with suppress(OSError):
            fs.unlink(name)


class _HeldError(Exception):
    def __init__(self, pid: int | None) -> None:
        super().__init__(pid)
        self.pid = pid


def _bound(
    fs: FileSystem, path: str, control: str, passed: socket.socket | None, manner: Manner
) -> Sockets:
    made = []
    data = passed
    try:
        if data is None:
            data = _listen(fs, path, manner)
            made.append(path)
        made.append(control)
        return Sockets(data, _listen(fs, control, manner), tuple(made))
    except (OSError, WaldError):
        if data is not None and data is not passed:
            data.close()
        raise


def _listen(fs: FileSystem, path: str, manner: Manner) -> socket.socket:
    found = fs.stat(path)
    if found is not None:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            msg = f"{path} exists and is not a socket"
            raise SocketUnusable(msg, hint="name another path with --socket")
        fs.unlink(path)  # stale: its daemon would hold the lock that we hold
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _umask(_SOCKET_UMASK):
            listening.bind(path)
        # nobody else before it has its owner, and then no more than they may
        if (manner.uid, manner.gid) != (-1, -1):
            os.chown(path, manner.uid, manner.gid, follow_symlinks=False)
        if manner.mode != _PRIVATE.mode:
            os.chmod(path, manner.mode)  # noqa: PTH101 - beside its chown
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    listening.setblocking(False)  # noqa: FBT003 - the socket's own signature
    return listening


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _make_directories(fs: FileSystem, path: str, *, mode: int) -> None:
    """Make a directory and the ones above it; each name is durable on return."""
    if fs.stat(path) is not None or path in ("", "/"):
        return
    parent = posixpath.dirname(path)
    _make_directories(fs, parent, mode=0o755)
    with suppress(FileExistsError):
        fs.make_directory(path, mode=mode)
    fs.sync_directory(parent or ".")


def _refuse_foreign(fs: FileSystem, path: str) -> None:
    """Refuse a directory of somebody else's files, before anything is made in it."""
    names = set(fs.list_directory(path)) - _FURNITURE
    if names and not names & _OURS:
        msg = f"{path} holds files and none of them is wald's, {min(names)!r} for one"
        raise DataDirectoryForeign(msg, hint="name an empty or a new directory with --data-dir")
    refuse_foreign(fs, path)


def _locked(fs: FileSystem, path: str, pid: int) -> File:
    """Take the lock of a file and write our pid into it, for the messages of others."""
    try:
        file = fs.create(path)
    except FileExistsError:
        file = fs.open(path, write=True)
    try:
        held = not file.lock()
        if not held:
            file.truncate(0)
            file.pwritev((b"%d\n" % pid,), 0)
            return file
        holder = _pid_in(file)
    except OSError:
        file.close()
        raise
    file.close()
    raise _HeldError(holder)


def _pid_in(file: File) -> int | None:
    said = file.pread(_PID_MAX_BYTES, 0).strip()
    return int(said) if said.isdigit() else None
