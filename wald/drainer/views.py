"""Routes as questions about single records see them: of a fleet at work, or of a ledger alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wald.core.lanes import Layout
from wald.drainer.fleet import Fleet
from wald.drainer.layout import RouteLanes
from wald.model import LaneKey, Lsn, RouteBirth, RouteId
from wald.ports import Ledger
from wald.storage.layouts import Layouts
from wald.storage.orders import Orders

_ORPHAN = "orphan: the configuration does not name the route"


@dataclass(frozen=True, slots=True)
class RouteView:
    """A route as a question sees it.

    Attributes:
        birth: the route.
        layouts: its divisions, oldest first, the one at work last.
        coalesces: whether a newer record of a key may take another's place in a batch.
        blocked: by lane, why it waits for a person; of every lane under None.
        dropped: whether a person gave it up.
    """

    birth: RouteBirth
    layouts: Sequence[Layout] = (Layout(),)
    coalesces: bool = False
    blocked: Mapping[LaneKey | None, str] = field(default_factory=dict)
    dropped: bool = False

    def layout_of(self, lsn: Lsn) -> Layout | None:
        """Return the division that has an LSN; None behind the barrier of a change."""
        found = [each for each in self.layouts if each.since < lsn]
        layout = found[-1] if found else self.layouts[0]
        return None if layout.is_changing and lsn > layout.barrier else layout

    def why_blocked(self, key: LaneKey | None) -> str:
        """Return why a lane waits for a person; empty if it does not."""
        return self.blocked.get(None, "") or self.blocked.get(key, "")


def views_of_fleet(fleet: Fleet) -> list[RouteView]:
    """Return the living routes of a fleet, and why their lanes wait, if a person is needed."""
    found = [_running(fleet, route) for route in fleet.routes.values()]
    for route_id, orphan in fleet.orphans.items():
        dropped = route_id in fleet.dropped
        layouts = _layouts(fleet.layouts, route_id, orphan.birth)
        found.append(RouteView(orphan.birth, layouts, blocked={None: _ORPHAN}, dropped=dropped))
    return found


def _running(fleet: Fleet, route: RouteLanes) -> RouteView:
    birth, settings = route.template.birth, route.template.settings
    blocked: dict[LaneKey | None, str] = {}
    if route.template.crew.paused_ns is not None:
        blocked[None] = "paused: 'wald route resume' lets it go on"
    for lane in route.each():
        if lane.figures.parked:
            blocked[lane.route.key] = f"parked as {lane.figures.parked}: {lane.figures.last_error}"
    layouts = [*fleet.layouts.former(birth.route_id), route.layout]
    return RouteView(birth, layouts, settings.coalesce is not None, blocked)


def views_of_ledger(ledger: Ledger, log_id: bytes) -> list[RouteView]:
    """Return the routes that a ledger knows, with nobody at work: of each name the newest."""
    layouts, dropped = Layouts(ledger.store, log_id), Orders(ledger.store).dropped()
    newest: dict[str, RouteBirth] = {}
    for birth in sorted(ledger.births(), key=lambda each: each.route_id):
        newest[birth.name] = birth
    return [
        RouteView(
            birth,
            _layouts(layouts, birth.route_id, birth),
            dropped=birth.route_id in dropped,
        )
        for birth in newest.values()
    ]


def _layouts(layouts: Layouts, route_id: RouteId, birth: RouteBirth) -> Sequence[Layout]:
    return [
        *layouts.former(route_id),
        layouts.of(route_id) or Layout(since=birth.birth_lsn),
    ]
