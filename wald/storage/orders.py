"""What people said about routes, durably: held back, resumed, given up.

    paused   route u32  -> since when, ns of the wall clock; route 0 stands for all routes
    dropped  route u32  -> [name, when, records given up]

A drop stays when its route is gone: it says what became of records that were accepted. Only the
newest ``limits.DROPS_KEPT_MAX`` are remembered.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from wald import limits
from wald.model import RouteId
from wald.ports import Store, Transaction
from wald.storage.ledger_rows import ROUTE, pack, unpack

ALL_ROUTES: Final[RouteId] = 0


@dataclass(frozen=True, slots=True)
class Drop:
    """A route that was given up, with ``records`` that were not delivered."""

    name: str
    time_ns: int
    records: int


class Orders:
    """Pauses and drops; any thread. Each method is one transaction."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def pause(self, route_id: RouteId, now_ns: int) -> int:
        """Hold a route back, or with ``ALL_ROUTES`` everything; return since when it is held."""

        def work(txn: Transaction) -> int:
            held = txn.get("paused", ROUTE.pack(route_id))
            if held is not None:
                return int(unpack(held))
            txn.put("paused", ROUTE.pack(route_id), pack(now_ns))
            return now_ns

        return self._store.write(work)

    def resume(self, route_id: RouteId) -> bool:
        """Let it go on; False if it was not held back."""
        return self._store.write(lambda txn: txn.delete("paused", ROUTE.pack(route_id)))

    def paused(self) -> dict[RouteId, int]:
        """Return what is held back, and since when."""
        return self._store.read(
            lambda txn: {_route_of(at): int(unpack(row)) for at, row in txn.scan("paused")}
        )

    def hold_exactly(self, paused: Mapping[RouteId, int]) -> None:
        """Hold back what is named, since when it says, and nothing else."""

        def work(txn: Transaction) -> None:
            for at in [at for at, _ in txn.scan("paused")]:
                txn.delete("paused", at)
            for route_id, since_ns in paused.items():
                txn.put("paused", ROUTE.pack(route_id), pack(since_ns))

        self._store.write(work)

    def drop(self, route_id: RouteId, drop: Drop) -> Drop:
        """Give a route up; returns what stands, old or new."""

        def work(txn: Transaction) -> Drop:
            held = txn.get("dropped", ROUTE.pack(route_id))
            if held is not None:
                return Drop(*unpack(held))
            drops = sorted(
                (Drop(*unpack(row)).time_ns, at) for at, row in txn.scan("dropped")
            )  # the oldest first
            for _, at in drops[: max(0, len(drops) + 1 - limits.DROPS_KEPT_MAX)]:
                txn.delete("dropped", at)
            txn.put("dropped", ROUTE.pack(route_id), pack(drop))
            return drop

        return self._store.write(work)

    def dropped(self) -> dict[RouteId, Drop]:
        """Return the drops that are remembered."""
        return self._store.read(
            lambda txn: {_route_of(at): Drop(*unpack(row)) for at, row in txn.scan("dropped")}
        )


def _route_of(at: bytes) -> RouteId:
    return int(ROUTE.unpack(at)[0])
