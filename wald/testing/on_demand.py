"""What goes wrong with a producer in a test, on demand; of the blocking fake and of its twin."""

from collections.abc import Mapping
from typing import Any

from wald.core.events import Refusal
from wald.errors import Backpressure, DiskFull, NoRecord, Unavailable
from wald.testing.clock import ManualClock
from wald.testing.memory_daemon import MemoryDaemon, MemoryRecord, no_room

_ROUTE = "memory"


class Delivery:
    """What is said of the delivery of all records."""

    def __init__(self) -> None:
        self.verdict = "delivered"
        self.reason = ""

    def at_its_route(self) -> dict[str, Any]:
        """Return where every record is at the one route."""
        fates = {"delivered": "delivered", "refused": "dead-letter"}
        blocked = self.reason if self.verdict == "blocked" else ""
        return {"fate": fates.get(self.verdict, "durable"), "blocked": blocked, "why": self.reason}


class OnDemand:
    """What beside the methods of a producer a fake one has."""

    clock: ManualClock
    daemon: MemoryDaemon
    asked: Delivery

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


def answer(producer: OnDemand, op: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the control socket of the daemon in memory answers.

    Raises:
        Unavailable: it does not run.
        NoRecord: no record has the LSN.
    """
    daemon, said = producer.daemon, producer.asked
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
