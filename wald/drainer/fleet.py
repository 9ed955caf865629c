"""The routes of a drainer: begun when they are born, ended when they die, held back, given up."""

import contextlib
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from wald import limits
from wald.config import RouteSettings, Settings
from wald.core.lanes import named_sink
from wald.core.state import RouteState
from wald.core.told import Stand
from wald.drainer.crew import Crew
from wald.drainer.figures import route_figures, summed
from wald.drainer.lane import Lane
from wald.drainer.lane_figures import figures_of
from wald.drainer.layout import RouteLanes
from wald.drainer.route import Route, Shared
from wald.drainer.takeover import agree_to_rewind
from wald.errors import InputError
from wald.model import Checkpoint, LaneKey, Lsn, RouteBirth, RouteId, StreamId
from wald.storage.layouts import Layouts
from wald.storage.orders import ALL_ROUTES, Drop, Orders
from wald.storage.replays import Replays

_log = logging.getLogger("wald.drain")
_NS = limits.CLOCK_NS_PER_S


@dataclass(frozen=True, slots=True)
class Orphan:
    """A route in the log that is not delivered: no setting names it, or it was given up."""

    birth: RouteBirth
    checkpoints: tuple[Checkpoint, ...]  # of the lanes at work
    former: tuple[Checkpoint, ...]


@dataclass(slots=True)
class Fleet:
    """The lanes of all routes. Used by one thread; the lanes are threads of their own."""

    settings: Settings
    shared: Shared
    stream_name: Callable[[StreamId], str]
    routes: dict[RouteId, RouteLanes] = field(default_factory=dict)
    orphans: dict[RouteId, Orphan] = field(default_factory=dict)
    layouts: Layouts = field(init=False)
    _orders: Orders = field(init=False)
    _paused: dict[RouteId, int] = field(init=False)
    _dropped: dict[RouteId, Drop] = field(init=False)
    _pins: Mapping[StreamId, Lsn] = field(init=False)  # of replays, which run with no daemon

    def __post_init__(self) -> None:
        """Read what people said before."""
        store = self.shared.ledger.store
        self.layouts = Layouts(store, self.shared.log_id)
        self._orders = Orders(store)
        self._paused = self._orders.paused()
        self._dropped = self._orders.dropped()
        self._pins = Replays(store, self.shared.log_id).pins()
        if self._pins:
            _log.warning("an unfinished replay keeps records in the log: wald replay --forget")

    def follow(self, routes: Mapping[RouteId, RouteState]) -> None:
        """Begin lanes of new routes (T1), end those of dead ones, and carry on with the others.

        Raises:
            Exception: as ``poll``; a route that cannot be begun keeps no other from it either.
        """
        failures = []
        for route in routes.values():
            if route.route_id not in self.routes and route.route_id not in self.orphans:
                try:
                    self._begin(route)
                except Exception as error:  # noqa: BLE001 - raised below
                    failures.append(error)
        for gone in [route_id for route_id in self.routes if route_id not in routes]:
            _log.info("route %s has ended", self.routes[gone].template.birth.name)
            self.routes.pop(gone).stop(0.0)
        for gone in [route_id for route_id in self.orphans if route_id not in routes]:
            del self.orphans[gone]
        self.poll()
        if failures:
            raise failures[0]

    def poll(self) -> None:
        """Carry on with changes of lanes, and with how many are at work.

        Raises:
            Exception: the first of those that routes ran into; it keeps no other route from going
                on.
        """
        failures = []
        for route in self.routes.values():
            try:
                route.poll()
            except Exception as error:  # noqa: BLE001 - raised below
                failures.append(error)
        self._tell_overdue()
        if failures:
            raise failures[0]

    def _tell_overdue(self) -> None:
        """Say of a lane whose transform does not return that it stands still."""
        now_ns = self.shared.clock.monotonic_ns()
        for lane in self.each_lane():
            since_ns, bound_s = lane.route.shaping.since_ns, lane.attempt_timeout_s
            if not since_ns or now_ns - since_ns <= bound_s * _NS:
                lane.shown.overdue = ""
            elif not lane.shown.overdue:
                text = f"the transform has not returned for {bound_s:g} s: the lane waits for it"
                lane.shown.overdue = text
                _log.error("route %s: %s", lane.name, text)

    def _begin(self, state: RouteState) -> None:
        shared = self.shared
        birth = shared.ledger.birth(
            RouteBirth(
                state.route_id,
                state.name,
                state.stream_id,
                self.stream_name(state.stream_id),
                state.sink,
                state.birth_lsn,
                shared.owner,
            )
        )  # COMMIT POINT: T1
        settings = settings_of(self.settings, birth)
        if settings is None or birth.route_id in self._dropped:
            _log.warning("route %s is in the log, but not in the settings", birth.name)
            self.orphans[birth.route_id] = self._orphan(birth)
            return
        absent = self._absent_sinks(birth.route_id, settings)
        if absent:
            _log.error(
                "route %s has delivered to its fallback, and the settings name no sink %s any more",
                birth.name,
                ", ".join(sorted(absent)),
            )
            self.orphans[birth.route_id] = self._orphan(birth)
            return
        crew = Crew(shared.board.wake)
        crew.hold(self._held_since(birth.route_id))
        template = Route(shared, birth, settings, self.settings.sinks[settings.sink], crew=crew)
        route = RouteLanes(template, self.layouts, self.settings.sinks)
        frontier = shared.board.current()
        route.begin(frontier.lsn if frontier else 0)
        self.routes[birth.route_id] = route

    def _absent_sinks(self, route_id: RouteId, settings: RouteSettings) -> set[str]:
        """Return the sinks that a route has delivered to and the settings do not name any more.

        Nobody may take the layout of a fallback that an older ledger does not know for one of the
        route's own sink, nor for that of another fallback.
        """
        absent = self.layouts.sinks_of(route_id) - self.settings.sinks.keys()
        told, held = self.shared.told_layouts(route_id), self.layouts.of(route_id)
        is_older = bool(told) and (held is None or held.number < told[-1].number)
        sinks, fallback = self.settings.sinks, settings.fallback
        found = {named_sink(each.sink, sinks, fallback) for each in told if each.sink}
        if is_older and not found <= sinks.keys():
            absent.add("(the fallback of before: give it its name in the settings again)")
        return absent

    def _orphan(self, birth: RouteBirth) -> Orphan:
        layout = self.layouts.of(birth.route_id)
        number = layout.number if layout else 0
        held = self.shared.ledger.lanes(birth.route_id)
        return Orphan(
            birth,
            tuple(each.checkpoint for key, each in held.items() if key.layout == number),
            tuple(each.checkpoint for key, each in held.items() if key.layout != number),
        )

    # --- what people say ------------------------------------------------------------------------

    def _held_since(self, route_id: RouteId) -> int | None:
        since = [self._paused[each] for each in (ALL_ROUTES, route_id) if each in self._paused]
        return min(since, default=None)

    def _tell_paused(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # told again before long
            self.shared.tell_paused(self._paused)

    def _hold(self) -> None:
        for route_id, route in self.routes.items():
            route.template.crew.hold(self._held_since(route_id))

    @property
    def paused_all_ns(self) -> int | None:
        """Since when everything is held back; None if it is not."""
        return self._paused.get(ALL_ROUTES)

    @property
    def paused(self) -> Mapping[RouteId, int]:
        """What is held back, ``ALL_ROUTES`` for everything, and since when."""
        return self._paused

    def pause(self, route_id: RouteId) -> int:
        """Hold a route back, or with ``ALL_ROUTES`` everything, durably; return since when."""
        now_ns = self.shared.clock.wall_ns()
        self._paused[route_id] = self._orders.pause(route_id, now_ns)
        self._hold()
        self._tell_paused()
        return self._paused[route_id]

    def resume(self, route_id: RouteId) -> bool:
        """Let it go on, and try at once what waits; False if it was not held back."""
        found = self._orders.resume(route_id)
        self._paused.pop(route_id, None)
        self._hold()
        self._tell_paused()
        for each, route in self.routes.items():
            if route_id == each and agree_to_rewind(self.shared, each, route.each()):
                found = True
            if route_id in (each, ALL_ROUTES):
                route.hurry()
        return found

    @property
    def dropped(self) -> Mapping[RouteId, Drop]:
        """The routes that were given up, those that ingest has not buried yet among them."""
        return self._dropped

    def unburied(self) -> list[RouteId]:
        """Return the routes that were given up and still live in the log."""
        return [route_id for route_id in self.orphans if route_id in self._dropped]

    def drop(self, route_id: RouteId, records: int) -> Drop:
        """Give an orphan up with its pending records, durably; ingest is told by ``progress``.

        Raises:
            InputError: the route is delivered.
        """
        orphan = self.orphans.get(route_id)
        if orphan is None:
            msg = "only a route that the configuration does not name can be dropped"
            raise InputError(msg, hint="take it out of the configuration, and restart the daemon")
        now_ns = self.shared.clock.wall_ns()
        drop = self._orders.drop(route_id, Drop(orphan.birth.name, now_ns, records))
        self._dropped[route_id] = drop
        return drop

    # --- all lanes ------------------------------------------------------------------------------

    def each_lane(self) -> list[Lane]:
        """Return all lanes that run."""
        return [lane for route in self.routes.values() for lane in route.each()]

    def lane_keys(self) -> list[LaneKey]:
        """Return those of all lanes that are delivered, also of those that do not run."""
        return [key for route in self.routes.values() for key in route.lane_keys()]

    def unasked(self) -> list[str]:
        """Return the names of the routes whose targets nobody asks, and that may come back."""
        return [
            orphan.birth.name
            for route_id, orphan in self.orphans.items()
            if route_id not in self._dropped
        ]

    def lane(self, route_id: RouteId, lane: int = 0) -> Lane:
        """Return a lane at work."""
        return self.routes[route_id].lanes[lane]

    def lanes_of(self, route_id: RouteId) -> dict[LaneKey, Lane]:
        """Return all lanes of a route; those of former layouts are woken: more may be asked.

        Of an orphan there is none; what a command changed of its counts is read.
        """
        route = self.routes.get(route_id)
        if route is None:
            orphan = self.orphans.get(route_id)
            if orphan is not None:
                self.orphans[route_id] = self._orphan(orphan.birth)
            return {}
        route.wake_formers()
        return {lane.route.key: lane for lane in route.each()}

    def flush(self, through: Lsn) -> None:
        """Let every lane seal at once what waits up to an LSN."""
        for route in self.routes.values():
            route.flush(through)

    def stop(self, deliver_for_s: float) -> None:
        """Ask every lane to leave once it has delivered what is there, or after so long."""
        for route in self.routes.values():
            route.stop(deliver_for_s)

    def join(self, timeout_s: float) -> list[str]:
        """Wait for the lanes to leave; returns the names of those that have not."""
        end_ns = self.shared.clock.monotonic_ns() + round(timeout_s * _NS)
        staying = []
        for lane in self.each_lane():
            left_s = (end_ns - self.shared.clock.monotonic_ns()) / _NS
            if not lane.join(max(0.0, left_s)):
                staying.append(lane.name)
        return staying

    # --- what others see ------------------------------------------------------------------------

    def route_id(self, name: str) -> RouteId | None:
        """Return the id of a living route by its name."""
        births = [route.template.birth for route in self.routes.values()]
        births += [orphan.birth for orphan in self.orphans.values()]
        return max((birth.route_id for birth in births if birth.name == name), default=None)

    def route_ids(self) -> Collection[RouteId]:
        """Return the ids of the living routes."""
        return self.routes.keys() | self.orphans.keys()

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return the routes as ``drain.page`` says them."""
        said = {route.template.birth.name: route_figures(route) for route in self.routes.values()}
        for route_id, orphan in self.orphans.items():
            state = "dropped" if route_id in self._dropped else "orphan"
            lanes = [figures_of(each, state) for each in orphan.checkpoints]
            former = [figures_of(each, state) for each in orphan.former]
            said.setdefault(orphan.birth.name, summed(orphan.birth, lanes, former))
        return said

    def checkpoints(self) -> dict[str, Lsn]:
        """Return the durable checkpoints by route id: what may be retired.

        An orphan pins the log like any other: undelivered records never go by themselves. So does
        an unfinished replay of a past range, by way of every route of its stream.
        """
        said = {}
        for route_id, route in self.routes.items():
            lsn = self._pinned(route.template.birth, route.checkpoint_lsn())
            if lsn:
                said[str(route_id)] = lsn
        for route_id, orphan in self.orphans.items():
            lsn = min(each.lsn for each in orphan.checkpoints)
            said[str(route_id)] = self._pinned(orphan.birth, lsn)
        return said

    def stands(self) -> dict[str, list[Stand]]:
        """Return how far lanes are at targets that cannot be asked, by route id."""
        said = {str(route_id): route.stands() for route_id, route in self.routes.items()}
        return {route_id: stands for route_id, stands in said.items() if stands is not None}

    def _pinned(self, birth: RouteBirth, lsn: Lsn) -> Lsn:
        pin = self._pins.get(birth.stream_id)
        return lsn if pin is None else min(lsn, max(pin, birth.birth_lsn))


def settings_of(settings: Settings, birth: RouteBirth) -> RouteSettings | None:
    """Return the settings of a route; None if no table names it, or its sink."""
    route = settings.routes.get(birth.name)
    if route is None and birth.sink == settings.auto_sink:
        route = RouteSettings(birth.name, birth.stream, birth.sink)
    if route is None or route.sink not in settings.sinks:
        return None
    return route
