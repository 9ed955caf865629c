"""A producer for an application's tests: the real client, and a daemon in memory.

Everything but the socket is what the application uses in production: encoding, requests,
duplicates, errors. It runs on any system, needs no daemon, and takes no time: where the real one
would wait, its clock goes on.
"""

from collections.abc import Mapping
from random import Random
from typing import Any

from wald import limits
from wald.client.blocking import Producer
from wald.client.link import Deadline
from wald.client.session import Session
from wald.core.events import Refusal
from wald.errors import Backpressure, DiskFull, NoRecord, Unavailable
from wald.ports import Chance
from wald.testing.clock import ManualClock
from wald.testing.memory_daemon import MemoryDaemon, MemoryLink, MemoryRecord, no_room

_ROUTE = "memory"


class FakeProducer(Producer):
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
        self.asked: _Delivery = _Delivery() if beside is None else beside.asked
        self.daemon.compares_ids |= dedup
        chance = Random(0)  # noqa: S311 - jitter, always the same
        super().__init__("memory", name=name, timeout=timeout, clock=self.clock, chance=chance)

    def _new_asker(self) -> "_Asker":
        return _Asker(self)

    def _new_session(self, name: str) -> Session:
        return _Session(self.daemon, name, patient=self._patient, chance=self._chance)

    # --- what came of it ------------------------------------------------------------------------

    @property
    def records(self) -> list[MemoryRecord]:
        """What is stored, in order."""
        return list(self.daemon.records)

    def values(self, stream: str) -> list[object]:
        """Return the values of one stream, in order."""
        return [each.value for each in self.daemon.records if each.stream == stream]

    # --- what goes wrong ------------------------------------------------------------------------

    def refuse(self, code: str = "record.value", message: str = "refused", times: int = 1) -> None:
        """Refuse the next records: ``RecordRefused``, or a refusal in ``Results``."""
        self.daemon.refusals.extend([Refusal(0, code, message)] * times)

    def refuse_stream(self, name: str) -> None:
        """Take nothing for a stream that was not used yet: ``UnknownStream``."""
        self.daemon.unknown_streams.add(name)

    def throttle(self, retry_after: float = 1.0, times: int = 1) -> None:
        """Have no room for the next requests: a call waits ``retry_after``, and tries again.

        One that may not wait so long raises ``Backpressure``; nothing is stored.
        """
        self.daemon.no_room.extend([no_room(Backpressure, retry_after)] * times)

    def fill_disk(self, retry_after: float = 1.0, times: int = 1) -> None:
        """Have a full disk for the next requests: as ``throttle``, with ``DiskFull``."""
        self.daemon.no_room.extend([no_room(DiskFull, retry_after)] * times)

    def lose_answer(self, times: int = 1) -> None:
        """Store the next requests, and lose the answers: ``OutcomeUnknown``, to be settled."""
        self.daemon.lost_answers += times

    def lose_sessions(self) -> None:
        """Forget who sent what: what is unanswered stays ``OutcomeUnknown`` for good."""
        self.daemon.forget_sessions()

    def stop_daemon(self) -> None:
        """End the daemon: ``Unavailable``; what was submitted before goes out when it is back."""
        self.daemon.stop()

    def start_daemon(self) -> None:
        """Start it again; what was stored is there."""
        self.daemon.start()

    def hold_delivery(self, reason: str = "") -> None:
        """Deliver nothing: ``DeliveryTimeout``; ``DeliveryPending`` if a person has to act."""
        self.asked.verdict = "blocked" if reason else "pending"
        self.asked.reason = reason

    def refuse_delivery(self, reason: str = "the target refuses it") -> None:
        """Let everything become dead letters: ``DeliveryRefused``."""
        self.asked.verdict, self.asked.reason = "refused", reason

    def deliver(self) -> None:
        """Deliver everything, as at the beginning."""
        self.asked.verdict, self.asked.reason = "delivered", ""


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


class _Delivery:
    """What is said of the delivery of all records."""

    def __init__(self) -> None:
        self.verdict = "delivered"
        self.reason = ""

    def at_its_route(self) -> dict[str, Any]:
        fates = {"delivered": "delivered", "refused": "dead-letter"}
        blocked = self.reason if self.verdict == "blocked" else ""
        return {"fate": fates.get(self.verdict, "durable"), "blocked": blocked, "why": self.reason}


class _Asker:
    """Answers what a producer asks over the control socket."""

    def __init__(self, producer: FakeProducer) -> None:
        self._producer = producer

    def ask(self, op: str, deadline: Deadline, **request: Any) -> Mapping[str, Any]:  # noqa: ANN401
        """Answer as the daemon does."""
        del deadline
        daemon, said = self._producer.daemon, self._producer.asked
        if not daemon.running:
            msg = "no daemon answers at 'memory'"
            raise Unavailable(msg)
        routes = {_ROUTE: said.at_its_route()}
        if op == "drain.delivered":
            lsns = request["lsns"]
            if said.verdict == "delivered":
                return {"ok": True, "delivered": len(lsns), "next": None}
            following = {"lsn": lsns[0], "verdict": said.verdict, "routes": routes}
            return {"ok": True, "delivered": 0, "next": following}
        lsn = request["lsn"]
        found = [each for each in daemon.records if each.lsn == lsn]
        if not found:
            msg = f"no record has LSN {lsn}"
            raise NoRecord(msg)
        now_ns = daemon.clock.wall_ns()
        where = {"lsn": lsn, "stream": found[0].stream, "durable_ns": now_ns, "trace": ""}
        return {"ok": True, **where, "routes": routes}

    def rest(self, seconds: float) -> None:
        """Wait, by its own clock."""
        self._producer.clock.advance(seconds)

    def close(self) -> None:
        """Nothing is open."""

    def drop(self) -> None:
        """Nothing is open."""
