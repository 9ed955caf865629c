"""One connection to the daemon in an event loop, and how tasks wait for it."""

import asyncio
import os
from collections.abc import Sequence
from typing import Protocol, cast

from wald.client.link import Deadline
from wald.core.events import Event
from wald.core.wire import FrameReader, Side
from wald.errors import WaldError


class Takes(Protocol):
    """Who is told what happens on a connection."""

    def arrived(self, link: "AsyncLink", event: Event) -> None:
        """An event has arrived."""

    def took(self, link: "AsyncLink") -> None:
        """All that has arrived was told."""

    def lost(self, link: "AsyncLink", error: Exception | None) -> None:
        """The connection has ended."""


class AsyncLink(asyncio.Protocol):
    """One connection: bytes to events, until it ends."""

    def __init__(self, session: Takes) -> None:
        self._session = session
        self._reader = FrameReader(Side.CLIENT)
        self.transport: asyncio.Transport | None = None
        self.ended = False
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods only

    def data_received(self, data: bytes) -> None:
        """Hand on what is complete."""
        self._reader.receive_data(data)
        try:
            while not self.ended and (event := self._reader.next_event()) is not None:
                self._session.arrived(self, event)
        except (WaldError, ConnectionResetError) as error:
            self.end()
            self._session.lost(self, error)
        else:
            self._session.took(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the session."""
        self.ended = True
        if not self.closed.done():
            self.closed.set_result(None)
        self._session.lost(self, error)

    def send(self, data: bytes) -> None:
        """Send all of it, in time; a connection that has ended sends nothing."""
        transport = self.transport
        if transport is not None and not self.ended and not transport.is_closing():
            transport.write(data)  # (asyncio logs each write to one that is closing)

    def end(self) -> None:
        """Close at once."""
        self.ended = True
        if self.transport is not None:
            self.transport.abort()

    def forget(self) -> None:
        """In the child of a fork: let go of the parent's connection, and not of its event loop."""
        self.ended = True
        if self.transport is not None:
            descriptor = self.transport.get_extra_info("socket").fileno()
            nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(nothing, descriptor, inheritable=False)
            os.close(nothing)


async def woken(future: "asyncio.Future[None]", deadline: Deadline) -> bool:
    """Wait until a future is woken; False at the deadline."""
    late = False

    def expire() -> None:
        nonlocal late
        if not future.done():
            late = True
            future.set_result(None)

    timer = asyncio.get_running_loop().call_later(deadline.left_s(), expire)
    try:
        await future
    finally:
        timer.cancel()
    return not late


def wake(waiting: "Sequence[asyncio.Future[None]]", error: WaldError | None = None) -> None:
    """Wake all that wait; with an error, it is raised where they wait."""
    for each in waiting:
        if not each.done():
            if error is None:
                each.set_result(None)
            else:
                each.set_exception(error)
