"""The lanes of one route: those at work, the change of their number, those of former layouts.

A change of ``lanes`` (T9) is decided before any lane begins, so that none can have sealed beyond
the barrier. The lanes seal up to it; when all are there, with nothing open, the next layout goes
to work behind it. A crash anywhere leaves what the ledger says: the change goes on.

A lane of a former layout runs only while it has something to do: a batch that was open, dead
letters that are sent again through its own chain, or a row that may have gone back in time with
its target. It leaves when it has been idle for a while.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise

from wald import limits
from wald.config import SinkSettings
from wald.core.breaker import BreakerState
from wald.core.lanes import Layout, Outage, Share, named_sink, wanted_sink
from wald.core.told import Stand
from wald.drainer.lane import Lane
from wald.drainer.lane_figures import LaneFigures, figures_of, stand_of
from wald.drainer.recalling import is_in_line
from wald.drainer.route import Route
from wald.drainer.sizing import Sizing
from wald.model import Checkpoint, LaneKey, LaneProgress, Lsn, ReplayClass
from wald.storage.layouts import Layouts, folded_key

_log = logging.getLogger("wald.drain")
_NS = limits.CLOCK_NS_PER_S
_LONG_AGO_NS = -(1 << 62)
_WITH_ROW = ReplayClass.TRANSACTIONAL.value
_LEAVES_WITHIN_S = 1.0  # a lane that has nothing to do


class RouteLanes:
    """The lanes of a route; used by one thread, the lanes are threads of their own.

    Args:
        template: the route, as a lane of it without share and layout.
        layouts: where the division is kept.
        sinks: all sinks of the settings, by name.
    """

    def __init__(
        self, template: Route, layouts: Layouts, sinks: Mapping[str, SinkSettings]
    ) -> None:
        self.template = template
        self._sinks = sinks
        self._turning: str | None = None  # where to, while the lanes leave
        self.lanes: list[Lane] = []
        self.layout = Layout()
        self._layouts = layouts
        self._shared = template.shared
        self._formers: dict[LaneKey, Route] = {}
        self._awake: dict[LaneKey, Lane] = {}  # of former layouts
        self._idle_ns: dict[LaneKey, int] = {}
        self._leaving: set[LaneKey] = set()  # of those that are awake
        self._at_rest: dict[LaneKey, Checkpoint] = {}  # of former lanes that do not run
        self._unsure: set[LaneKey] = set()  # former lanes that may be behind: they go first
        self._flushed: Lsn = 0
        self._sizing = Sizing(template)
        self._newest_own = -1  # the number of the newest former layout of the own target
        self._stopping = False
        self._trouble = ""  # that keeps lanes from beginning
        self._well_ns = 0  # since when the own target is well; 0: it is not, as far as is known
        self.own = Outage()  # how the own target stood in the last round

    def begin(self, frontier_lsn: Lsn) -> None:
        """Bring the layout in line with the settings (T9), then start the lanes."""
        birth, wanted = self.template.birth, self.template.settings.lanes
        fallback = self.template.settings.fallback
        told = [
            replace(each, sink=each.sink and named_sink(each.sink, self._sinks, fallback))
            for each in self._shared.told_layouts(birth.route_id)
        ]
        args = birth, wanted, frontier_lsn, told, self._shared.sealed_through
        self.layout = self._layouts.settle(*args)  # COMMIT POINT: T9
        self._tell(self.layout)
        if self.layout.is_changing:
            _log.info(
                "route %s: %d lanes become %d behind LSN %d",
                birth.name,
                self.layout.lanes,
                self.layout.next_lanes,
                self.layout.barrier,
            )
        self._sizing.begin(self.layout.lanes)
        self._start_all()

    def _start_all(self) -> None:
        """Make all lanes, then begin them: what fails before leaves none at work."""
        self._fold_formers()
        held = self._shared.ledger.lanes(self.template.birth.route_id)
        self._awake, self._idle_ns, self._at_rest, self._formers = {}, {}, {}, {}
        self._unsure, self._leaving = set(), set()
        self._learn_formers(held)
        self._ask_formers()  # before a lane behind them begins
        for key, route in self._formers.items():
            unfinished = held[key].manifest or held[key].checkpoint.lsn < (route.share.until or 0)
            if unfinished or self._is_asked(key) or self._is_awaited(key):
                self._wake_former(key)
        self.lanes = self._new_lanes(self.layout, held)
        self._begin_lanes()

    def _begin_lanes(self) -> None:
        """Begin the lanes that have not begun; where the system gives no thread, later."""
        try:
            for lane in self.each():
                lane.start()
        except (RuntimeError, OSError) as error:
            if not self._trouble:
                name = self.template.birth.name
                _log.error("route %s: a lane cannot begin yet: %s", name, error)
            self._trouble = repr(error)
        else:
            self._trouble = ""

    def _to_sink(self, layout: Layout) -> Route:
        """Return the route as a layout has it: with its own sink, or with the fallback."""
        if not layout.sink:
            return self.template
        settings = replace(self.template.settings, sink=layout.sink, options={})
        return replace(self.template, settings=settings, sink=self._sinks[layout.sink])

    def _former_routes(self) -> Iterator[Route]:
        """Yield the lanes of former layouts, oldest first."""
        formers = self._layouts.former(self.template.birth.route_id)
        for layout, following in pairwise([*formers, self.layout]):
            for lane in range(layout.lanes):
                yield replace(
                    self._to_sink(layout),
                    layout=layout.number,
                    share=Share(layout.lanes, lane, following.since),
                    since=layout.since,
                )

    def _learn_formers(self, held: Mapping[LaneKey, LaneProgress]) -> None:
        own = self.template.sink
        self._newest_own = -1
        for route in self._former_routes():
            self._formers[route.key] = route
            self._at_rest[route.key] = held[route.key].checkpoint
            if route.sink is own:
                self._newest_own = route.layout
        folded = folded_key(self.template.key)
        if folded in held:
            self._at_rest[folded] = held[folded].checkpoint

    def _fold_formers(self) -> None:
        """Let the ledger fold former layouts that no row can lead back to, but for the newest.

        Each turn to a fallback and back leaves two.
        """
        ends = {route.layout: route for route in self._former_routes() if route.lane == 0}
        older = list(ends)[: -limits.FORMER_LAYOUTS_KEPT_COUNT]
        if self.template.frontier() is None or not older:
            return
        gone = [number for number in older if not self._is_in_reach(ends[number])]
        if self._layouts.fold(self.template.birth.route_id, gone):  # COMMIT POINT: T9
            _log.info("route %s: former layouts were folded", self.template.birth.name)

    def _new_lanes(self, layout: Layout, held: Mapping[LaneKey, LaneProgress]) -> list[Lane]:
        made = []
        for lane in range(layout.lanes):
            route = replace(
                self._to_sink(layout),
                layout=layout.number,
                share=layout.share(lane),
                since=layout.since,
            )
            begun = Lane(route)
            asked = self._shared.ledger.count_redrives(route.key)
            begun.shown.put(figures_of(held[route.key].checkpoint, "starting", asked))
            begun.flush(max(self._flushed, layout.barrier))
            made.append(begun)
        return made

    # --- former lanes ---------------------------------------------------------------------------

    def _is_asked(self, key: LaneKey) -> bool:
        """Tell whether it is asked for dead letters, or has to find out what a ledger lost."""
        ledger, told = self._shared.ledger, self._shared.told
        return ledger.count_redrives(key) > 0 or not is_in_line(ledger, told, key)

    def _is_in_reach(self, route: Route) -> bool:
        """Tell whether the log still holds the end of a former lane.

        Then its target may have gone back to before the change: its row is looked at.
        """
        frontier, until = route.frontier(), route.share.until
        assert until is not None
        if frontier is None or until <= route.begin_lsn:
            return False
        reader = route.reader(until)
        try:
            return reader.holds_after(until - 1, frontier)
        finally:
            reader.close()

    def _wake_former(self, key: LaneKey) -> None:
        if key in self._leaving and self._awake[key].join(_LEAVES_WITHIN_S):
            self._has_left(key)
        if key in self._awake or self._stopping:
            return
        lane = Lane(self._formers[key])
        lane.shown.put(figures_of(self._at_rest[key], "starting"))
        self._awake[key] = lane
        lane.flush(self._flushed)

    def _is_own(self, key: LaneKey) -> bool:
        """Tell whether a former lane delivers to the route's own target."""
        return self._formers[key].sink is self.template.sink

    def _is_awaited(self, key: LaneKey) -> bool:
        """Tell whether a former lane is the one that notices that the own target is well again.

        Those of the newest layout do, so that the outages of a long life do not add up.
        """
        return bool(self.layout.sink) and key.layout == self._newest_own

    def wake_formers(self) -> None:
        """Let every lane of former layouts look at its row and at what it is asked."""
        for key in self._formers:
            self._idle_ns.pop(key, None)
            self._wake_former(key)
        self._begin_lanes()

    def _ask_formers(self, *, of_both: bool = False) -> None:
        """Let former lanes whose end the log still holds look at their rows, before all others.

        A target that went back to before a change of lanes is behind in former ones too; what
        they deliver again must come before what follows the change. With ``of_both`` those of the
        target that is not delivered to now are asked too.
        """
        here = self._to_sink(self.layout).settings.sink
        in_reach = {
            key.layout: (of_both or route.settings.sink == here) and self._is_in_reach(route)
            for key, route in self._formers.items()
            if key.lane == 0  # all lanes of a layout end together
        }
        for key in self._formers:
            if in_reach[key.layout]:
                self._idle_ns.pop(key, None)
                self._wake_former(key)
                self._awake[key].hurry()
                self._unsure.add(key)
        self._let_who_may()

    def _let_who_may(self) -> None:
        """Hold back the layouts behind the oldest one that may be behind at its target.

        A former lane that is parked, and was through once, holds nobody up: only a person can help
        it. One that was never through does: what follows of a key must not overtake it.
        """
        first: dict[str, int] = {}
        for key in sorted(self._unsure, key=lambda each: each.layout):
            lane = self._awake[key]
            if lane.has_looked and (lane.is_done or (lane.figures.parked and lane.was_through)):
                self._unsure.discard(key)
                self._idle_ns[key] = _LONG_AGO_NS  # it was only to look: with many outages, many
            else:
                first.setdefault(lane.route.settings.sink, key.layout)
        self.template.crew.let(first)

    def _rest_formers(self, now_ns: int) -> None:
        """Let former lanes that have been idle for a while leave."""
        for key, lane in list(self._awake.items()):
            if key in self._leaving:
                if lane.join(0.0):
                    self._has_left(key)
                    if self._is_asked(key):  # meanwhile
                        self._wake_former(key)
                continue
            since_ns = self._idle_ns.setdefault(key, now_ns)
            if key in self._unsure or self._is_awaited(key) or not lane.is_done:
                del self._idle_ns[key]
            elif now_ns - since_ns >= limits.FORMER_LANE_IDLE_S * _NS:
                lane.stop(0.0)
                self._leaving.add(key)

    def _has_left(self, key: LaneKey) -> None:
        self._at_rest[key] = self._shared.ledger.lane(key).checkpoint
        self._leaving.discard(key)
        self._idle_ns.pop(key, None)
        del self._awake[key]

    # --- in every round -------------------------------------------------------------------------

    def poll(self) -> None:
        """Carry on with a change of the layout; size the crew; let former lanes rest."""
        now_ns = self._shared.clock.monotonic_ns()
        self._turn(now_ns)
        if self._turning is not None:
            return
        self._switch()
        if self.template.crew.take_gone_back():
            self._ask_formers(of_both=True)
        self._let_who_may()
        self._rest_formers(now_ns)
        self._begin_lanes()
        self._sizing.follow(self.layout.lanes, [lane.figures for lane in self.lanes], now_ns)

    def _switch(self) -> None:
        """T9: once every lane is through to the barrier the next layout goes to work."""
        layout = self.layout
        if not layout.is_changing or self._stopping or self.waits_for():
            return
        route_id = self.template.birth.route_id
        after = self._layouts.switch(route_id, layout)  # COMMIT POINT: T9
        if after == layout:
            return
        self._tell(after)
        made = self._new_lanes(after, self._shared.ledger.lanes(route_id))
        _log.info("route %s has %d lanes now", self.template.birth.name, after.lanes)
        for lane in self.lanes:
            self._formers[lane.route.key] = lane.route
            self._awake[lane.route.key] = lane
            self._at_rest[lane.route.key] = self._shared.ledger.lane(lane.route.key).checkpoint
        self._newest_own = self._newest_own if layout.sink else layout.number
        self.lanes, self.layout = made, after
        self._begin_lanes()

    def _tell(self, layout: Layout) -> None:
        """Tell of a layout before a lane of it begins, where a lost ledger does not take it."""
        route_id = self.template.birth.route_id
        self._shared.tell_layouts(route_id, [*self._layouts.former(route_id), layout])

    # --- the fallback ---------------------------------------------------------------------------

    def _turn(self, now_ns: int) -> None:
        """T9: go over to the fallback, or back, once every lane has left."""
        if self._stopping:
            return
        if self._turning is None:
            settings = self.template.settings
            self.own = self._outage(now_ns)
            wanted = wanted_sink(
                self.layout,
                settings.fallback,
                self.own,
                settings.fallback_after_s,
                limits.FALLBACK_BACK_S,
            )
            if wanted == self.layout.sink:
                return
            self._turning = wanted
            for lane in self.each():
                lane.stop(0.0)
        if not all(lane.join(0.0) for lane in self.each()):
            return
        if self.layout.sink != self._turning:  # else it was put to work, and could not be told
            self._put_to_work(self._turning)
        self._tell(self.layout)
        self._start_all()
        self._turning = None

    def _put_to_work(self, sink: str) -> None:
        birth = self.template.birth
        self.layout = self._layouts.turn(birth, self.layout, sink)  # COMMIT POINT: T9
        _log.warning(
            "route %s delivers to %s from LSN %d on%s",
            birth.name,
            self.layout.sink or self.template.settings.sink,
            self.layout.since + 1,
            f": {self.template.settings.sink} is down" if self.layout.sink else " again",
        )

    def _outage(self, now_ns: int) -> Outage:
        """Return how the own target stands, by its breaker and the route's.

        It is not well while a lane of its own waits for a person with what comes first.
        """
        targets, settings = self._shared.targets, self.template.settings
        pace = targets.pace(self.template.birth.route_id, settings, now_ns)
        breakers = [guard.breaker for guard in (targets.target(settings.sink).guard, pace.guard)]
        down = [each.since_ns for each in breakers if each.state is not BreakerState.CLOSED]
        behind = [lane for key, lane in self._awake.items() if self._is_own(key)]
        stuck = bool(self.layout.sink) and any(
            lane.figures.parked and not lane.is_through for lane in behind
        )
        if down or stuck:
            self._well_ns = 0
            down_s = (now_ns - min(down, default=now_ns)) / _NS
            return Outage(down_s, word="down" if down else "parked")
        self._well_ns = self._well_ns or now_ns
        return Outage(well_s=(now_ns - self._well_ns) / _NS)

    def waits_for(self) -> list[Lane]:
        """Return the lanes that are not through to the barrier of a change, with nothing open."""
        if not self.layout.is_changing:
            return []
        barrier = self.layout.barrier
        return [
            lane
            for lane in self.lanes
            if lane.figures.checkpoint_lsn < barrier or lane.figures.attempts
        ]

    # --- all of them ----------------------------------------------------------------------------

    def each(self) -> Iterator[Lane]:
        """Yield every lane that runs."""
        yield from self.lanes
        yield from self._awake.values()

    def lane_keys(self) -> list[LaneKey]:
        """Return those of all lanes, also of those that do not run."""
        return [*(lane.route.key for lane in self.lanes), *self._formers]

    def flush(self, through: Lsn) -> None:
        """Let every lane seal at once what waits up to an LSN."""
        self._flushed = max(self._flushed, through)
        for lane in self.each():
            lane.flush(through)

    def hurry(self) -> None:
        """Let every lane try at once what waits."""
        for lane in self.each():
            lane.hurry()

    def stop(self, deliver_for_s: float) -> None:
        """Ask every lane to leave once it has delivered what is there, or after so long."""
        self._stopping = True
        for lane in self.each():
            lane.stop(deliver_for_s)

    def is_unfinished(self, goal: Lsn) -> bool:
        """Tell whether a lane has something to do up to an LSN, and nothing but time is needed."""
        if self.template.crew.paused_ns is not None:
            return False
        if self.layout.is_changing:
            waits_for = self.waits_for()  # for none: the next layout begins in a moment
            return not waits_for or any(lane.figures.parked is None for lane in waits_for)
        shown = ((lane, lane.figures) for lane in self.lanes)  # who has not looked may find more
        lanes = [lane for lane, at in shown if at.through_lsn < goal or at.state == "starting"]
        lanes += [lane for lane in self._awake.values() if not lane.is_through]
        lanes += [lane for lane in self.each() if lane.figures.redrives]
        return any(lane.figures.parked is None for lane in lanes)

    # --- what others see ------------------------------------------------------------------------

    def stands(self) -> list[Stand] | None:
        """Return how far lanes are, where a target cannot be asked; None if that is not known.

        Of former layouts those are named that are not through.
        """
        formers = [lane for lane in self._awake.values() if not lane.was_through]
        lanes = [*self.lanes, *formers]
        classes = {lane.figures.replay for lane in lanes}
        if not all(classes) or (classes == {_WITH_ROW} and not self.layout.number):
            return None
        return [stand_of(lane.route, lane.figures) for lane in lanes]

    def at_rest(self) -> list[LaneFigures]:
        """Return the figures of former lanes that do not run: their counts stay the route's."""
        return [
            figures_of(checkpoint, "idle")
            for key, checkpoint in self._at_rest.items()
            if key not in self._awake
        ]

    def through_lsn(self) -> Lsn:
        """Return up to where every lane has read and finished."""
        return min(figures.through_lsn for figures in self._reaching())

    def checkpoint_lsn(self) -> Lsn:
        """Return up to where every lane is finished, durably; 0 while that is not known."""
        return min(figures.checkpoint_lsn for figures in self._reaching())

    def _reaching(self) -> list[LaneFigures]:
        """Return the figures of the lanes that say how far the route is.

        One of a former layout does only if its target went back: else it is through for good.
        """
        formers = [
            lane.figures
            for lane in self._awake.values()
            if lane.figures.checkpoint_lsn < (lane.route.share.until or 0)
        ]
        return [*(lane.figures for lane in self.lanes), *formers]
