"""What people say about routes while a drainer runs: hold back, go on, give up, ask the target now.

Each answer comes at once, from the main thread. A target may be slow to answer, so that it is
asked by a thread of its own, and what it said is asked for later.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from wald import limits
from wald.core.lanes import Share
from wald.drainer.asks import Request, natural
from wald.drainer.fleet import Fleet
from wald.drainer.layout import RouteLanes
from wald.drainer.route import Route
from wald.errors import Backpressure, InputError
from wald.model import Outcome, ProgressRow, ReplayClass, RouteId, Severity
from wald.storage.orders import ALL_ROUTES

_log = logging.getLogger("wald.drain")
_NS = limits.CLOCK_NS_PER_S
_RETRY_S = 10.0


class RouteDesk:
    """Carries out what is asked of routes; used by the main thread."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._probes: dict[RouteId, Probe] = {}
        self.operations: Mapping[str, Callable[[Request], dict[str, Any]]] = {
            "drain.pause": self._pause,
            "drain.resume": self._resume,
            "drain.drop": self._drop,
            "drain.probe": self._probe,
            "drain.probed": self._probed,
        }

    def _pause(self, request: Request) -> dict[str, Any]:
        return {"paused_ns": self._fleet.pause(self._chosen(request))}

    def _resume(self, request: Request) -> dict[str, Any]:
        route_id = self._chosen(request)
        resumed = self._fleet.resume(route_id)
        figures = self._fleet.figures()
        return {
            "resumed": resumed,
            "paused_all_ns": self._fleet.paused_all_ns,
            "still_paused": sorted(name for name, each in figures.items() if "paused_ns" in each),
        }

    def _drop(self, request: Request) -> dict[str, Any]:
        route_id = self._chosen(request)
        return asdict(self._fleet.drop(route_id, natural(request, "records", 0)))

    def _chosen(self, request: Request) -> RouteId:
        """Return the id of the route that is meant; ``ALL_ROUTES`` with ``all``."""
        if request.get("all") is True:
            return ALL_ROUTES
        name = request.get("route")
        route_id = self._fleet.route_id(str(name))
        if route_id is None:
            msg = f"there is no route {str(name)!r}"
            raise InputError(msg, hint=f"routes: {', '.join(sorted(self._fleet.figures()))}")
        return route_id

    # --- asking the target ----------------------------------------------------------------------

    def _probe(self, request: Request) -> dict[str, Any]:
        route = self._delivered(request)
        route_id = route.template.birth.route_id
        running = [each for each in self._probes.values() if each.is_running]
        if any(each.route_id == route_id for each in running):
            return {"begun": False}
        if len(running) >= limits.PROBES_MAX:
            msg = f"{len(running)} targets are being asked, and do not answer"
            raise Backpressure(msg, retry_after_s=_RETRY_S)
        self._probes[route_id] = Probe(route)
        return {"begun": True}

    def _probed(self, request: Request) -> dict[str, Any]:
        route = self._delivered(request)
        probe = self._probes.get(route.template.birth.route_id)
        return {"found": None if probe is None or probe.is_running else probe.found}

    def _delivered(self, request: Request) -> RouteLanes:
        route = self._fleet.routes.get(self._chosen(request))
        if route is None:
            msg = "the route is not delivered: the configuration does not name it"
            raise InputError(msg, hint="add it there, and restart the daemon; or drop it")
        return route


class Probe:
    """Asks a target what ``wald check`` asks and for a lane's row; then lets the lanes try."""

    def __init__(self, route: RouteLanes) -> None:
        template, layout = route.template, route.layout
        self.route_id = template.birth.route_id
        self.found: dict[str, Any] = {}
        self._lanes = list(route.each())
        self._route = replace(
            template, layout=layout.number, share=Share(layout.lanes), since=layout.since
        )
        self._thread = threading.Thread(
            target=self._run, name=f"probe {template.birth.name}", daemon=True
        )
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether the target has not answered yet."""
        return self._thread.is_alive()

    def _run(self) -> None:
        clock = self._route.shared.clock
        began_ns = clock.monotonic_ns()
        try:
            said = ask_target(self._route)
        except Exception as error:  # noqa: BLE001 - a sink is anybody's code
            _log.warning("route %s: the probe failed: %r", self._route.birth.name, error)
            said = {
                "findings": [],
                "row": None,
                "error": repr(error)[: limits.ERROR_TEXT_MAX_CHARS],
            }
        self.found = said | {"seconds": (clock.monotonic_ns() - began_ns) / _NS}
        for lane in self._lanes:
            lane.hurry()


def ask_target(route: Route) -> dict[str, Any]:
    """Ask a target over a connection of its own: findings, and what it remembers of the lane."""
    sink = route.shared.make_sink(route.settings, route.sink)
    try:
        findings = [asdict(each) | {"severity": each.severity.value} for each in sink.check()]
        row: ProgressRow | Outcome | None = None
        if sink.capabilities.replay is ReplayClass.TRANSACTIONAL:
            row = sink.read_row(route.key)
    finally:
        sink.close()
    if row is None or isinstance(row, ProgressRow):
        about = row and {"batch_no": row.batch_no, "hi_lsn": row.hi_lsn, "owner": row.owner}
        wrong = [each for each in findings if each["severity"] == Severity.ERROR.value]
        return {"findings": findings, "row": about, "error": wrong[0]["message"] if wrong else ""}
    error = getattr(row, "message", repr(row))[: limits.ERROR_TEXT_MAX_CHARS]
    return {"findings": findings, "row": None, "error": error}
