"""The control socket as a producer uses it: one kept connection, opened only when it is asked.

JSON lines; see docs/control.md. What a producer asks may be asked again, so a connection that was
lost or left alone for too long is made anew without a word.
"""

import contextlib
import json
import os
import select
import socket
import threading
from collections.abc import Mapping
from typing import Any, Protocol, cast

from wald import limits
from wald.client.link import Deadline
from wald.errors import Closed, ProtocolMismatch, Unavailable, reported

CONTROL_SUFFIX = ".ctl"
_MOMENT_S = 0.5  # what an ask gets at least, so that a deadline of 0 asks once
_ASK_S = 15.0
_RECV_BYTES = 65_536


def question(op: str, request: Mapping[str, object]) -> bytes:
    """Return one question as a line."""
    return json.dumps({"op": op, **request}).encode() + b"\n"


def time_for(deadline: Deadline) -> float:
    """Return the seconds that one question gets: a moment even behind its deadline."""
    return min(max(deadline.left_s(), _MOMENT_S), _ASK_S)


def check_path(path: str) -> None:
    """Raise ``Unavailable`` if no socket can have the path."""
    if len(os.fsencode(path)) > limits.SOCKET_PATH_MAX_BYTES:
        msg = f"{path} is longer than a socket's path can be"
        raise Unavailable(msg, hint="name a shorter path")


def answer_of(path: str, said: bytes) -> dict[str, Any]:
    """Return the answer in a line.

    Raises:
        WaldError: what the daemon said instead of an answer.
        ProtocolMismatch: it is none of the daemon's.
    """
    try:
        answer = cast("dict[str, Any]", json.loads(said))
        if answer.get("ok"):
            return answer
    except (ValueError, AttributeError) as error:
        msg = f"what answers at {path!r} is not wald"
        raise ProtocolMismatch(msg) from error
    raise reported(answer.get("error") or {})


def unanswered(path: str, error: OSError, within_s: float) -> Unavailable:
    """Return what it means that a question could not be asked, or was not answered."""
    if isinstance(error, TimeoutError):
        msg = f"the daemon at {path!r} did not answer within {within_s:.3g} s"
        return Unavailable(msg, hint="see its log, and 'wald status'")
    msg = f"no daemon answers at {path!r}: {error.strerror or 'it ended'}"
    return Unavailable(msg, path=path)


class Asks(Protocol):
    """Who asks the daemon on a producer's behalf."""

    def ask(self, op: str, deadline: Deadline, **request: object) -> Mapping[str, Any]:
        """Ask one thing and return the answer."""

    def rest(self, seconds: float) -> None:
        """Wait before the next question."""

    def close(self) -> None:
        """Close; harmless to repeat."""

    def drop(self) -> None:
        """Close this process's copy of the connection."""


class Asker:
    """Asks; used from several threads, one question at a time, in one process."""

    def __init__(self, data_socket: str) -> None:
        self._path = data_socket + CONTROL_SUFFIX
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._ended = threading.Event()

    def ask(self, op: str, deadline: Deadline, **request: object) -> dict[str, Any]:
        """Ask one thing and return the answer.

        Raises:
            Unavailable: nobody answers there, or not in time.
            PermissionError: this user may not ask.
            WaldError: what the daemon said instead of an answer.
        """
        line, within_s = question(op, request), time_for(deadline)
        with self._lock:
            self._check_open()
            said = self._answer(line, within_s)
        return answer_of(self._path, said)

    def rest(self, seconds: float) -> None:
        """Wait before the next question; a close wakes.

        Raises:
            Closed: the producer was closed meanwhile.
        """
        if self._ended.wait(seconds):
            self._check_open()

    def close(self) -> None:
        """Close; harmless to repeat. Who waits is told."""
        self._ended.set()
        asked = self._socket
        if asked is not None:
            with contextlib.suppress(OSError):  # it is gone already, or closed meanwhile
                asked.shutdown(socket.SHUT_RDWR)  # who waits for an answer wakes
        with self._lock:
            self.drop()

    def drop(self) -> None:
        """Close this process's copy of the connection, as in the child of a fork."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _check_open(self) -> None:
        if self._ended.is_set():
            msg = "the producer is closed"
            raise Closed(msg)

    def _answer(self, line: bytes, within_s: float) -> bytes:
        kept = self._socket is not None and not _has_ended(self._socket)
        try:
            try:
                return self._exchange(line, within_s)
            except ConnectionError:
                if not kept or self._ended.is_set():
                    raise
                self.drop()  # it was closed for being idle, or by a restart: once more
                return self._exchange(line, within_s)
        except PermissionError:
            raise
        except OSError as error:
            self._check_open()  # a close ends what is asked
            raise unanswered(self._path, error, within_s) from error

    def _exchange(self, line: bytes, within_s: float) -> bytes:
        try:
            connected = self._connected(within_s)
            connected.sendall(line)
            return _read_line(connected)
        except BaseException:
            self.drop()  # an answer that comes later would be taken for that of the next question
            raise

    def _connected(self, within_s: float) -> socket.socket:
        if self._socket is not None and _has_ended(self._socket):
            self.drop()
        if self._socket is None:
            check_path(self._path)
            connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connecting.settimeout(within_s)
            try:
                connecting.connect(self._path)
            except BaseException:
                connecting.close()
                raise
            self._socket = connecting
        self._socket.settimeout(within_s)
        return self._socket


def _has_ended(connected: socket.socket) -> bool:
    """Tell whether there is something to read before anything was asked: that is the end."""
    poll = select.poll()
    poll.register(connected, select.POLLIN)
    return bool(poll.poll(0))


def _read_line(connected: socket.socket) -> bytes:
    parts: list[bytes] = []
    size = 0
    while not parts or not parts[-1].endswith(b"\n"):
        part = connected.recv(_RECV_BYTES)
        size += len(part)
        if not part or size > limits.CONTROL_LINE_MAX_BYTES:
            raise ConnectionResetError
        parts.append(part)
    return b"".join(parts)
