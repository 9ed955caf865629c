"""A producer for an application's tests: the real client, and a daemon in memory.

Everything but the socket is what the application uses in production: encoding, requests,
duplicates, errors. It runs on any system, needs no daemon, and takes no time: where the real one
would wait, its clock goes on.
"""

from collections.abc import Callable, Mapping
from random import Random
from typing import Any, TypeVar

from wald import limits
from wald.client.blocking import Producer
from wald.client.link import Deadline
from wald.client.session import Session
from wald.ports import Chance
from wald.testing.clock import ManualClock
from wald.testing.memory_daemon import MemoryDaemon, MemoryLink
from wald.testing.on_demand import Delivery, OnDemand, answer

_T = TypeVar("_T")


class FakeProducer(OnDemand, Producer):
    """A ``Producer`` whose daemon is in memory.

    All methods are the producer's. ``records`` is what is stored; ``refuse``, ``throttle``,
    ``fill_disk``, ``lose_answer``, ``stop_daemon``, ``lose_sessions`` and ``hold_delivery`` make
    the next calls go wrong as they can in production.

    Args:
        name: as in ``wald.connect``.
        timeout: seconds for each call, by its own clock.
        beside: another one, whose daemon this one shares.
        dedup: whether the daemon compares dedup ids, as with ``[streams.NAME.dedup]``.
    """

    def __init__(
        self,
        *,
        name: str = "",
        timeout: float = limits.APPEND_TIMEOUT_S,
        beside: "FakeProducer | None" = None,
        dedup: bool = False,
    ) -> None:
        self.clock: ManualClock = ManualClock() if beside is None else beside.clock
        self.daemon: MemoryDaemon = MemoryDaemon(self.clock) if beside is None else beside.daemon
        self.asked: Delivery = Delivery() if beside is None else beside.asked
        self.daemon.compares_ids |= dedup
        chance = Random(0)  # noqa: S311 - jitter, always the same
        super().__init__("memory", name=name, timeout=timeout, clock=self.clock, chance=chance)

    def _new_asker(self) -> "_Asker":
        return _Asker(self)

    def _new_session(self, name: str) -> Session:
        return _Session(self.daemon, name, patient=self._patient, chance=self._chance)


class _Session(Session):
    """A session over connections in memory; it waits by the clock of its daemon."""

    def __init__(self, daemon: MemoryDaemon, name: str, *, patient: bool, chance: Chance) -> None:
        super().__init__("memory", name, patient=patient, chance=chance)
        self._daemon = daemon

    def _make_link(self, timeout_s: float) -> MemoryLink:
        del timeout_s  # it is there at once, or it is not
        return self._daemon.connect()

    def _wait(self, timeout_s: float) -> None:
        self._daemon.clock.advance(timeout_s)

    def _let_go(self, wait: Callable[[], _T]) -> _T:
        return wait()  # in memory nothing holds up another thread


class _Asker:
    """Answers what a producer asks over the control socket."""

    def __init__(self, producer: FakeProducer) -> None:
        self._producer = producer

    def ask(self, op: str, deadline: Deadline, **request: Any) -> Mapping[str, Any]:  # noqa: ANN401
        """Answer as the daemon does."""
        del deadline
        return answer(self._producer, op, request)

    def rest(self, seconds: float) -> None:
        """Wait, by its own clock."""
        self._producer.clock.advance(seconds)

    def close(self) -> None:
        """Nothing is open."""

    def drop(self) -> None:
        """Nothing is open."""
