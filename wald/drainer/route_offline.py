"""What ``drain.sock`` answers about routes, over a ledger alone, while no drainer runs."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from wald.drainer.released import ProgressPage
from wald.drainer.stands import StandsPage
from wald.drainer.takeover import decide_by_name
from wald.errors import InputError
from wald.model import RouteId
from wald.ports import Chance, Clock, FileSystem, Ledger
from wald.storage.orders import ALL_ROUTES, Drop, Orders
from wald.storage.owner import load_owner


class OfflineRoutes:
    """Holds routes back, lets them go on, gives up orphans; the holder of ``ledger.lock`` alone.

    Args:
        fs: the door to the files.
        data_dir: the data directory.
        ledger: its ledger.
        clock: time.
        figures: returns what ``status`` answers, from what the processes wrote last.
        chance: for who this directory is to the targets, if that is not said yet.
    """

    def __init__(
        self,
        fs: FileSystem,
        data_dir: str,
        ledger: Ledger,
        clock: Clock,
        figures: Callable[[], dict[str, Any]],
        chance: Chance,
    ) -> None:
        self._fs = fs
        self._data_dir = data_dir
        self._ledger = ledger
        self._clock = clock
        self._figures = figures
        self._chance = chance
        self._orders = Orders(ledger.store)
        self._operations: Mapping[str, Callable[[Mapping[str, object]], dict[str, Any]]] = {
            "drain.pause": self._pause,
            "drain.resume": self._resume,
            "drain.drop": self._drop,
            "drain.takeover": self._take_over,
        }

    def status(self) -> dict[str, Any]:
        """Return what ``status`` answers, with the pauses as they are now."""
        said, paused = self._figures(), self._orders.paused()
        said["paused_all_ns"] = paused.get(ALL_ROUTES)
        for name, route in said["routes"].items():
            route["paused_ns"] = paused.get(self._route_id(name) or -1, said["paused_all_ns"])
            route["state"] = _state_at_rest(route)
        return said

    def ask(self, op: str, **request: object) -> dict[str, Any]:
        """Answer one request.

        Raises:
            InputError: it asks for what is not there.
        """
        return self._operations[op](request)

    def _pause(self, request: Mapping[str, object]) -> dict[str, Any]:
        route_id = self._chosen(request)
        since_ns = self._orders.pause(route_id, self._clock.wall_ns())
        self._tell_paused(lambda told: {**told, route_id: since_ns})
        return {"paused_ns": since_ns}

    def _resume(self, request: Mapping[str, object]) -> dict[str, Any]:
        route_id = self._chosen(request)
        resumed, paused = self._orders.resume(route_id), self._orders.paused()
        self._tell_paused(lambda told: {each: ns for each, ns in told.items() if each != route_id})
        names = {birth.route_id: birth.name for birth in self._ledger.births()}
        return {
            "resumed": resumed,
            "paused_all_ns": paused.get(ALL_ROUTES),
            "still_paused": sorted(names[each] for each in paused if each in names),
        }

    def _tell_paused(self, change: Callable[[dict[RouteId, int]], dict[RouteId, int]]) -> None:
        """Tell it beside the ledger too; what a ledger that was lost does not know stays told."""
        page = StandsPage(self._fs, self._data_dir)
        try:
            told = self._orders.paused() if page.paused is None else page.paused
            page.hold(change(told))
        finally:
            page.close()

    def _take_over(self, request: Mapping[str, object]) -> dict[str, Any]:
        """Decide, for whoever this directory is to the targets now; lanes do it when they begin."""
        owner = load_owner(self._fs, self._data_dir, self._chance).value
        birth = decide_by_name(self._ledger, request.get("route"), owner, self._clock.wall_ns())
        return {"route": birth.name, "parked": []}

    def _drop(self, request: Mapping[str, object]) -> dict[str, Any]:
        """Give up a route, durably here and for ingest's next start."""
        route_id, records = self._chosen(request), request.get("records")
        given_up = records if isinstance(records, int) else 0
        now_ns = self._clock.wall_ns()
        drop = self._orders.drop(route_id, Drop(str(request.get("route")), now_ns, given_up))
        page = ProgressPage(self._fs, self._data_dir)
        try:
            page.drop(route_id)
        finally:
            page.close()
        return asdict(drop)

    def _chosen(self, request: Mapping[str, object]) -> RouteId:
        if request.get("all") is True:
            return ALL_ROUTES
        route_id = self._route_id(str(request.get("route")))
        if route_id is None:
            names = sorted({birth.name for birth in self._ledger.births()})
            msg = f"there is no route {str(request.get('route'))!r}"
            raise InputError(msg, hint=f"routes: {', '.join(names) or 'none yet'}")
        return route_id

    def _route_id(self, name: str) -> RouteId | None:
        found = [birth.route_id for birth in self._ledger.births() if birth.name == name]
        return max(found, default=None)


def _state_at_rest(route: Mapping[str, Any]) -> str:
    """Return the state of a route that nothing delivers now."""
    if route["state"] in {"orphan", "dropped"}:
        return str(route["state"])
    return "paused" if route["paused_ns"] else "stopped"
