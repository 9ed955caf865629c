"""A producer for tests of asynchronous applications: ``FakeProducer`` in an event loop."""

import asyncio
import contextlib
from random import Random
from typing import Any

from wald import limits
from wald.client.aio import AsyncProducer
from wald.client.aio_asking import AsyncAsker
from wald.client.aio_link import AsyncLink
from wald.client.aio_session import AsyncSession
from wald.client.link import Deadline, NothingSent
from wald.ports import Chance, Clock
from wald.testing.clock import ManualClock
from wald.testing.memory_daemon import MemoryDaemon, MemoryLink
from wald.testing.on_demand import Delivery, OnDemand, answer

_QUIET_S = 0.01  # of real time: so long one waits for an answer that was lost


class AsyncFakeProducer(OnDemand, AsyncProducer):
    """An ``AsyncProducer`` whose daemon is in memory; see ``FakeProducer``.

    Args:
        name: as in ``wald.connect_async``.
        timeout: seconds for each call, by its own clock.
        beside: another one, whose daemon this one shares.
        dedup: whether the daemon compares dedup ids.
    """

    def __init__(
        self,
        *,
        name: str = "",
        timeout: float = limits.APPEND_TIMEOUT_S,
        beside: OnDemand | None = None,
        dedup: bool = False,
    ) -> None:
        self.clock: ManualClock = ManualClock() if beside is None else beside.clock
        self.daemon: MemoryDaemon = MemoryDaemon(self.clock) if beside is None else beside.daemon
        self.asked: Delivery = Delivery() if beside is None else beside.asked
        self.daemon.compares_ids |= dedup
        chance = Random(0)  # noqa: S311 - jitter, always the same
        super().__init__("memory", name=name, timeout=timeout, clock=self.clock, chance=chance)

    def _new_session(self) -> AsyncSession:
        return _Session(self.daemon, self._name, patient=self._patient, chance=self._chance)

    def _new_asker(self) -> AsyncAsker:
        return _Asker(self)


class _Deadline(Deadline):
    """By the clock of the daemon; but who waits in vain does not wait long."""

    def __init__(self, daemon: MemoryDaemon, timeout_s: float) -> None:
        super().__init__(daemon.clock, timeout_s)
        self._daemon = daemon

    def left_s(self) -> float:
        left_s = super().left_s()
        return min(left_s, _QUIET_S) if self._daemon.is_quiet else left_s


class _Session(AsyncSession):
    """A session over connections in memory; it waits by the clock of its daemon."""

    def __init__(self, daemon: MemoryDaemon, name: str, *, patient: bool, chance: Chance) -> None:
        super().__init__("memory", name, patient=patient, chance=chance)
        self._daemon = daemon

    def deadline(self, clock: Clock, timeout_s: float) -> Deadline:
        """Return the deadline of a call; it comes back, and finds what was stored."""
        del clock
        self._daemon.end_silence()
        return _Deadline(self._daemon, timeout_s)

    async def sleep(self, seconds: float) -> None:
        """Wait, by the clock of the daemon."""
        self._daemon.clock.advance(seconds)
        await asyncio.sleep(0)

    async def _make_link(self) -> AsyncLink:
        link = AsyncLink(self)
        link.connection_made(_Transport(self._daemon.connect(), link))
        return link


class _Transport(asyncio.Transport):
    """A connection in memory; what is answered arrives in the next turn of the loop."""

    def __init__(self, peer: MemoryLink, link: AsyncLink) -> None:
        super().__init__()
        self._peer = peer
        self._link = link
        self._lost = False
        self._loop = asyncio.get_running_loop()
        peer.told = self._told

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send; it is answered at once."""
        with contextlib.suppress(NothingSent):  # it has ended: that is told below
            self._peer.send(bytes(data))
        self._told()

    def _told(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon(self._arrive)

    def _arrive(self) -> None:
        while self._peer.has_more() and not self._lost:
            if self._peer.broken and not self._peer.has_events:
                self._end()
                return
            data = b"".join(event.encode() for event in self._peer.events())
            self._link.data_received(data)

    def _end(self) -> None:
        if not self._lost:
            self._lost = True
            self._link.connection_lost(None)

    def is_closing(self) -> bool:
        """Whether it has ended."""
        return self._lost

    def close(self) -> None:
        """Close."""
        self._peer.broken = True
        self._loop.call_soon(self._end)

    def abort(self) -> None:
        """Close at once."""
        self.close()

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401
        """There is no socket."""
        del name
        return default


class _Asker(AsyncAsker):
    """Answers what a producer asks over the control socket."""

    def __init__(self, producer: AsyncFakeProducer) -> None:
        super().__init__("memory")
        self._producer = producer

    async def ask(self, op: str, deadline: Deadline, **request: object) -> dict[str, Any]:
        """Answer as the daemon does."""
        del deadline
        return answer(self._producer, op, request)

    async def rest(self, seconds: float) -> None:
        """Wait, by the clock of the daemon."""
        self._producer.clock.advance(seconds)
        await asyncio.sleep(0)
