"""One connection to the daemon: a socket with deadlines, and the events that arrive on it."""

import contextlib
import os
import select
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Protocol, TypeAlias

from wald import limits
from wald.core.events import Event, read_ack
from wald.core.wire import Side, next_frame
from wald.errors import InputError, Unavailable
from wald.ports import Clock

ROOT_SOCKET = "/run/wald/wald.sock"
_READ_BYTES = 64 * limits.KIB


def default_socket(environment: Mapping[str, str], uid: int) -> str:
    """Return where the daemon listens if nobody says: ``WALD_SOCKET``, root's or the user's."""
    said = environment.get("WALD_SOCKET")
    if said:
        return said
    if uid == 0:
        return ROOT_SOCKET
    runtime = environment.get("XDG_RUNTIME_DIR")
    if runtime:
        return f"{runtime}/wald/wald.sock"
    home = environment.get("HOME") or "~"
    state = environment.get("XDG_STATE_HOME") or f"{home}/.local/state"
    return f"{state}/wald/wald.sock"


_LONGEST_WAIT_S = 2_000_000.0  # 23 days; a poll takes no more than 2^31 ms
_NS_PER_S = float(limits.CLOCK_NS_PER_S)  # text times a whole number would be a longer text


class Deadline:
    """A point in time by the monotonic clock.

    Raises:
        InputError: the time-out is no number of seconds.
    """

    __slots__ = ("_at_ns", "_clock", "began_ns", "timeout_s")

    def __init__(self, clock: Clock, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.began_ns = clock.monotonic_ns()
        self._clock = clock
        try:
            self._at_ns = self.began_ns + int(timeout_s * _NS_PER_S)
        except (TypeError, ValueError, OverflowError) as error:
            msg = f"timeout is {timeout_s!r}, not a number of seconds"
            raise InputError(msg, hint="for example timeout=5, or 0.5") from error

    def left_s(self) -> float:
        """Return the seconds that are left, no more than can be waited at a time; 0 for none."""
        left_ns = self._at_ns - self._clock.monotonic_ns()
        return min(left_ns / limits.CLOCK_NS_PER_S, _LONGEST_WAIT_S) if left_ns > 0 else 0.0


Rest: TypeAlias = memoryview
NO_REST: Final = memoryview(b"")  # all went out, nearly always


class NothingSent(ConnectionError):
    """The connection has ended, and no byte of what was to be sent went out."""


class Carries(Protocol):
    """A connection: frames there, events back. One thread may read while another sends.

    Raises:
        OSError: from any method, when the connection is lost; ``TimeoutError`` at a deadline.
    """

    def send(self, data: bytes) -> Rest:
        """Send what goes out at once; return the rest. ``NothingSent`` where that is certain."""

    def send_rest(self, rest: Rest, deadline: Deadline) -> None:
        """Send what did not go out at once, while no other thread uses it."""

    def send_more(self, rest: Rest) -> Rest:
        """Send of it what goes out at once; return what is left."""

    def wait_for_room(self, timeout_s: float) -> None:
        """Wait until more goes out."""

    def wait(self, timeout_s: float, *, writes: bool = False) -> None:
        """Wait until something can be read; with ``writes``, or until more goes out."""

    def has_more(self) -> bool:
        """Whether there is something to read, if only the end."""

    def events(self) -> Iterable[Event]:
        """Read what is there; return what is complete."""

    def shut(self) -> None:
        """End it, so that a thread that waits on it wakes."""

    def close(self) -> None:
        """Close."""


class Link:
    """A connected socket; see ``Carries``."""

    def __init__(self, connected: socket.socket) -> None:
        connected.settimeout(0)
        self._socket = connected
        # each waits in one thread at a time: a poll object is no two threads'
        self._readable = _poll(connected, select.POLLIN)
        self._writable = _poll(connected, select.POLLOUT)
        self._either = _poll(connected, select.POLLIN | select.POLLOUT)
        self._now = _poll(connected, select.POLLIN)
        self._data = b""
        self._at = 0  # what is before it was taken
        self._ahead = False  # more was read than anybody has looked at

    @classmethod
    def connect(cls, path: str, timeout_s: float) -> "Link":
        """Connect to the daemon's socket."""
        if len(os.fsencode(path)) > limits.SOCKET_PATH_MAX_BYTES:
            msg = f"a socket's path has at most {limits.SOCKET_PATH_MAX_BYTES} bytes: {path!r}"
            raise Unavailable(msg, hint="name a shorter path", path=path)
        connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connecting.settimeout(max(timeout_s, 0.001))
            connecting.connect(path)
            return cls(connecting)
        except BaseException:
            connecting.close()
            raise

    def send(self, data: bytes) -> Rest:
        """Send what goes out at once; return the rest. ``NothingSent`` where that is certain."""
        try:
            sent = self._send_some(data)
        except OSError as error:
            raise NothingSent from error
        return NO_REST if sent == len(data) else memoryview(data)[sent:]

    def send_rest(self, rest: Rest, deadline: Deadline) -> None:
        """Send what did not go out at once, while no other thread uses it.

        What arrives is kept: a daemon whose answers are not read does not read either.
        """
        while rest:
            self.wait(deadline.left_s(), writes=True)
            arrived = self._received()
            if arrived:
                self._data = self._data[self._at :] + arrived
                self._at, self._ahead = 0, True
            rest = self.send_more(rest)

    def send_more(self, rest: Rest) -> Rest:
        """Send of it what goes out at once; return what is left."""
        return rest[self._send_some(rest) :]

    def _send_some(self, data: bytes | Rest) -> int:
        try:
            return self._socket.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0

    def wait_for_room(self, timeout_s: float) -> None:
        """Wait until more goes out."""
        if not self._writable.poll(timeout_s * 1000):
            raise TimeoutError

    def wait(self, timeout_s: float, *, writes: bool = False) -> None:
        """Wait until something can be read; with ``writes``, or until more goes out."""
        poll = self._either if writes else self._readable
        if (writes or not self._ahead) and not poll.poll(timeout_s * 1000):
            raise TimeoutError

    def has_more(self) -> bool:
        """Whether there is something to read, if only the end."""
        return self._ahead or bool(self._now.poll(0))

    def events(self) -> Iterable[Event]:
        """Read what is there; return what is complete.

        Raises:
            ConnectionResetError: the daemon has closed.
            ProtocolMismatch: the daemon broke the protocol.
        """
        self._ahead = False
        data = self._received()
        if data:
            if self._at == len(self._data):
                ack = read_ack(data)
                if ack is not None:
                    return (ack,)
            self._data = self._data[self._at :] + data
            self._at = 0
        return self._frames()

    def _received(self) -> bytes:
        """Return what has arrived; nothing if nothing has."""
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return b""
        if not data:
            raise ConnectionResetError
        return data

    def _frames(self) -> Iterator[Event]:
        while (found := next_frame(self._data, self._at, Side.CLIENT)) is not None:
            event, self._at = found
            yield event

    def shut(self) -> None:
        """End it, so that a thread that waits on it wakes."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close; after a fork this leaves the parent's connection alone."""
        self._socket.close()


def _poll(connected: socket.socket, events: int) -> "select.poll":
    made = select.poll()
    made.register(connected, events)
    return made
