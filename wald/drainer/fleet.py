"""The lanes of all routes: begun when a route is born, ended when it dies; their figures."""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from wald import limits
from wald.config import RouteSettings, Settings
from wald.core.state import RouteState
from wald.drainer.lane import Lane, LaneFigures
from wald.drainer.route import Route, Shared
from wald.model import Checkpoint, LaneKey, Lsn, RouteBirth, RouteId, StreamId

_log = logging.getLogger("wald.drain")


@dataclass(slots=True)
class _Orphan:
    """A route in the log that no setting names: kept, not delivered."""

    birth: RouteBirth
    checkpoint: Checkpoint


@dataclass(slots=True)
class Fleet:
    """One lane per route. Used by one thread; the lanes are threads of their own."""

    settings: Settings
    shared: Shared
    stream_name: Callable[[StreamId], str]
    lanes: dict[RouteId, Lane] = field(default_factory=dict)
    orphans: dict[RouteId, _Orphan] = field(default_factory=dict)

    def follow(self, routes: Mapping[RouteId, RouteState]) -> None:
        """Begin lanes of new routes (T1), end those of dead ones."""
        for route in routes.values():
            if route.route_id not in self.lanes and route.route_id not in self.orphans:
                self._begin(route)
        for gone in [route_id for route_id in self.lanes if route_id not in routes]:
            _log.info("route %s has ended", self.lanes[gone].route.birth.name)
            self.lanes.pop(gone).stop(0.0)
        for gone in [route_id for route_id in self.orphans if route_id not in routes]:
            del self.orphans[gone]

    def _begin(self, state: RouteState) -> None:
        birth = self.shared.ledger.birth(
            RouteBirth(
                state.route_id,
                state.name,
                state.stream_id,
                self.stream_name(state.stream_id),
                state.sink,
                state.birth_lsn,
                self.shared.owner,
            )
        )  # COMMIT POINT: T1
        settings = self._settings_of(birth)
        if settings is None:
            _log.warning("route %s is in the log, but not in the settings", birth.name)
            key = LaneKey(self.shared.log_id, birth.route_id, 0, 0)
            self.orphans[birth.route_id] = _Orphan(birth, self.shared.ledger.lane(key).checkpoint)
            return
        lane = Lane(Route(self.shared, birth, settings, self.settings.sinks[settings.sink]))
        self.lanes[birth.route_id] = lane
        lane.start()

    def _settings_of(self, birth: RouteBirth) -> RouteSettings | None:
        settings = self.settings.routes.get(birth.name)
        if settings is None and birth.sink == self.settings.auto_sink:
            settings = RouteSettings(birth.name, birth.stream, birth.sink)
        if settings is None or settings.sink not in self.settings.sinks:
            return None
        return settings

    def flush(self, through: Lsn) -> None:
        """Let every lane seal at once what waits up to an LSN."""
        for lane in self.lanes.values():
            lane.flush(through)

    def stop(self, deliver_for_s: float) -> None:
        """Ask every lane to leave once it has delivered what is there, or after so long."""
        for lane in self.lanes.values():
            lane.stop(deliver_for_s)

    def join(self, timeout_s: float) -> list[str]:
        """Wait for the lanes to leave; returns the names of those that have not."""
        end_ns = self.shared.clock.monotonic_ns() + round(timeout_s * 1e9)
        staying = []
        for lane in self.lanes.values():
            left_s = (end_ns - self.shared.clock.monotonic_ns()) / 1e9
            if not lane.join(max(0.0, left_s)):
                staying.append(lane.route.birth.name)
        return staying

    def each_lane(self) -> list[Lane]:
        """Return all lanes."""
        return list(self.lanes.values())

    def route_id(self, name: str) -> RouteId | None:
        """Return the id of a living route by its name."""
        births = [lane.route.birth for lane in self.lanes.values()]
        births += [orphan.birth for orphan in self.orphans.values()]
        return max((birth.route_id for birth in births if birth.name == name), default=None)

    def route_ids(self) -> Collection[RouteId]:
        """Return the ids of the living routes."""
        return self.lanes.keys() | self.orphans.keys()

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return the routes as ``drain.page`` says them."""
        said = {
            lane.route.birth.name: _figures(lane.route.birth, lane.figures)
            for lane in self.lanes.values()
        }
        for orphan in self.orphans.values():
            at = orphan.checkpoint
            figures = LaneFigures(
                "orphan", "", at.lsn, at.lsn, at.delivered, at.dead_letters, at.batch_no
            )
            said.setdefault(orphan.birth.name, _figures(orphan.birth, figures))
        return said

    def checkpoints(self) -> dict[str, Lsn]:
        """Return the durable checkpoints by route id: what may be retired.

        An orphan pins the log like any other: undelivered records never go by themselves.
        """
        said = {
            str(route_id): lane.figures.checkpoint_lsn
            for route_id, lane in self.lanes.items()
            if lane.figures.checkpoint_lsn
        }
        for route_id, orphan in self.orphans.items():
            said[str(route_id)] = orphan.checkpoint.lsn
        return said


def fitting_the_page(routes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the figures with errors cut, so that any number of routes fits ``drain.page``."""
    share = limits.PAGE_ERRORS_MAX_BYTES // max(1, len(routes))
    for figures in routes.values():
        text = figures["last_error"]
        if len(text) * 4 > share:  # no character is longer
            figures["last_error"] = text.encode(errors="replace")[:share].decode(errors="ignore")
    return routes


def _figures(birth: RouteBirth, figures: LaneFigures) -> dict[str, Any]:
    return {
        "route_id": birth.route_id,
        "stream": birth.stream,
        "sink": birth.sink,
        "class": figures.replay,
        "state": figures.state,
        "through_lsn": figures.through_lsn,
        "delivered": figures.delivered,
        "dead_letters": figures.dead_letters,
        "batch_no": figures.batch_no,
        "attempts": figures.attempts,
        "last_error": figures.last_error,
        "oldest_pending_ns": figures.oldest_pending_ns,
        "parked": figures.parked,
        "policy": dict(figures.policy),
    }
