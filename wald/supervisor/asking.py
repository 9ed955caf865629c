"""Whether the children answer: one that is alive and stands still is shown, and not waited for.

Each is asked over the socket on which it serves others, and has a second to say anything at all.
"""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from wald import limits
from wald.core.events import Capability, Hello
from wald.ports import Clock
from wald.supervisor.control import short_address

_T = TypeVar("_T")
_WITHIN_S = 1.0
_ASKED_EVERY_NS = limits.CLOCK_NS_PER_S
_QUEUE_IS_FULL = frozenset({errno.EAGAIN, errno.ENOTCONN})  # nobody takes connections from it
_GREETING = Hello(request=1, capabilities=Capability.FRONTIER).encode()  # costs no session


class Patient(Generic[_T]):
    """Asks a child; one that did not answer is not asked again at every question.

    Args:
        ask: returns what the child said; None if it did not answer in time.
        keeps: whether what it said counts for a while too.
    """

    def __init__(
        self, clock: Clock, ask: Callable[[], Awaitable[_T | None]], *, keeps: bool = False
    ) -> None:
        self._clock = clock
        self._ask = ask
        self._keeps = keeps
        self._told: _T | None = None
        self._until_ns = 0

    async def ask(self) -> _T | None:
        """Return what the child says; None if it does not answer."""
        if self._clock.monotonic_ns() < self._until_ns:
            return self._told
        told = await self._ask()
        if told is None or self._keeps:
            self._told = told
            self._until_ns = self._clock.monotonic_ns() + _ASKED_EVERY_NS
        return told


async def greet_ingest(path: str, within_s: float = _WITHIN_S) -> bool | None:
    """Return True if ingest says anything, None if nothing comes in time.

    A refusal is an answer, and so is a connection that is closed. Where the socket has no name any
    more nobody can tell, and nothing is held against ingest.
    """
    try:
        async with asyncio.timeout(within_s):
            return await _greet(path)
    except TimeoutError:
        return None
    except OSError as error:
        return None if error.errno in _QUEUE_IS_FULL else True


async def _greet(path: str) -> bool:
    with short_address(path) as address:
        reader, writer = await asyncio.open_unix_connection(address)
    try:
        writer.write(_GREETING)
        await reader.read(1)
    finally:
        writer.close()
    return True
