"""Lets clients in: as many as there may be, never more than there are descriptors for.

Our own loop around ``accept``: uvloop's server ends for good when descriptors run out. One spare
descriptor is kept, so that who comes then is told to come back instead of being left to wait.
"""

import asyncio
import contextlib
import errno
import os
import resource
import socket
from collections.abc import Callable
from typing import Final

from wald import limits
from wald.core.access import Caller
from wald.core.events import ErrorFlag, Failed
from wald.ingest.connection import Connection
from wald.ingest.house import House

_NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NO_ROOM_LEFT: Final = Failed(
    "backpressure",
    "too many connections",
    retry_after_ms=limits.RETRY_AFTER_MS,
    flags=ErrorFlag.CLOSING,
).encode()


def raise_file_limit(connections: int) -> int:
    """Let the process open enough files for so many connections; return for how many it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + limits.FILES_BESIDE_COUNT
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(connections, max(1, soft - limits.FILES_BESIDE_COUNT))


class Doorman:
    """Accepts connections from a listening socket, which is the caller's to close.

    Args:
        loop: in which connections live.
        listening: the socket.
        house: what connections share; it counts who was turned away.
        who: says who connected; None: nobody asks.
        most: connections at a time.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listening: socket.socket,
        house: House[Connection],
        who: Callable[[socket.socket], Caller] | None,
        most: int,
    ) -> None:
        self._loop = loop
        self._listening = listening
        self._house = house
        self._who = who
        self._most = most
        self._coming: set[asyncio.Task[object]] = set()
        self._spare = -1
        self._closed = False

    def open(self) -> None:
        """Begin."""
        self._listening.setblocking(False)  # noqa: FBT003 - the socket's own signature
        self._keep_spare()
        self._loop.add_reader(self._listening, self._accept)

    def close(self) -> None:
        """Accept nobody any more; harmless to repeat."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._listening)
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    async def settle(self) -> None:
        """Wait until who was accepted has a connection."""
        if self._coming:
            await asyncio.wait(self._coming)

    def _accept(self) -> None:
        for _ in range(limits.ACCEPTS_PER_TURN_COUNT):
            try:
                connected, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._turn_away(error)
                    return
                continue  # it is gone already
            connected.setblocking(False)  # noqa: FBT003 - the socket's own signature
            if len(self._house.connections) + len(self._coming) >= self._most:
                self._refuse(connected)
            else:
                self._let_in(connected)

    def _let_in(self, connected: socket.socket) -> None:
        caller = self._who(connected) if self._who is not None else None
        coming = self._loop.create_task(
            self._loop.connect_accepted_socket(lambda: Connection(self._house, caller), connected)
        )
        self._coming.add(coming)
        coming.add_done_callback(self._came)

    def _came(self, coming: "asyncio.Task[object]") -> None:
        self._coming.discard(coming)
        if not coming.cancelled() and coming.exception() is not None:
            self._house.tell("accept", f"a connection could not be served: {coming.exception()}")

    def _refuse(self, connected: socket.socket) -> None:
        """Tell who comes that there is no room, as far as that goes without waiting."""
        self._house.count_refused("backpressure")
        self._house.tell("connections", f"more than {self._most:,} at a time are turned away")
        with contextlib.suppress(OSError):
            connected.send(_NO_ROOM_LEFT, socket.MSG_NOSIGNAL)
        connected.close()

    def _turn_away(self, error: OSError) -> None:
        """No descriptor is left: turn away who waits, with the spare one, and rest a moment."""
        self._house.tell("accept", f"no connection can be accepted: {error.strerror}")
        for _ in range(limits.ACCEPTS_PER_TURN_COUNT):
            if self._spare < 0:
                break
            os.close(self._spare)
            self._spare = -1
            try:
                connected, _ = self._listening.accept()
            except OSError:
                break
            self._refuse(connected)
            self._keep_spare()
        self._keep_spare()
        self._loop.remove_reader(self._listening)
        self._loop.call_later(limits.ACCEPT_PAUSE_S, self._accept_again)

    def _accept_again(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listening, self._accept)

    def _keep_spare(self) -> None:
        if self._spare < 0:
            with contextlib.suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
