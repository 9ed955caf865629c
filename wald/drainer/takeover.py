"""A person's decision that this directory goes on with a route: ``wald route takeover``.

The decision is durable in the ledger before anything is done: who may touch the route's rows from
now on, and that each of its lanes takes over, once, what it finds at the target. A lane then moves
the row from its owner to ours, in a batch without records (number n + 1, a new revision id): one
compare-and-set at the target. Whoever else writes this route finds another owner's row at its next
attempt and is parked; a decision there would take it back. How a row is moved, and what becomes
of records that may or may not be at the target: ``wald.drainer.moving``.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol, cast

from wald.core.delivery import Parked
from wald.drainer.route import Route, Shared
from wald.errors import InputError
from wald.model import ProgressRow, RevisionId, RouteBirth, RouteId
from wald.ports import Ledger

CODE = "diverged"
_OWNERS_KEPT = 8

DECIDABLE = frozenset(
    code.value for code in (Parked.DIVERGED, Parked.TARGET_BEHIND, Parked.WENT_BACK)
)


class Figures(Protocol):
    """What it publishes."""

    @property
    def parked(self) -> str | None:
        """Why it waits for a person."""
        ...


class Lane(Protocol):
    """What a decision needs of a lane."""

    @property
    def figures(self) -> Figures:
        """What it publishes."""
        ...

    def hurry(self) -> None:
        """Try at once what waits."""
        ...


class Decision(NamedTuple):
    """Who may touch the rows of a route, when a person said so, and who might before."""

    owner: int
    time_ns: int
    before: tuple[int, ...] = ()


def decide(ledger: Ledger, route_id: RouteId, owner: int, now_ns: int) -> Decision:
    """Let an owner take over the rows of a route; durable on return. Each lane does it once."""
    before = _decision(ledger, route_id)
    owners = () if before is None else (before.owner, *before.before)[:_OWNERS_KEPT]
    decision = Decision(owner, now_ns, owners)
    ledger.note(_decided(route_id), list(decision))
    return decision


def decide_by_name(ledger: Ledger, name: object, owner: int, now_ns: int) -> RouteBirth:
    """Let an owner take over the rows of the newest route of a name; return the route.

    Raises:
        InputError: there is no such route.
    """
    births = ledger.births()
    found = [birth for birth in births if birth.name == name]
    if not found:
        msg = f"there is no route {name!r}"
        raise InputError(msg, hint=f"routes: {', '.join(sorted({each.name for each in births}))}")
    birth = max(found, key=lambda each: each.route_id)
    decide(ledger, birth.route_id, owner, now_ns)
    return birth


def answer(
    request: Mapping[str, object], shared: Shared, lanes_of: Callable[[RouteId], Iterable[Lane]]
) -> dict[str, Any]:
    """Answer ``drain.takeover``: {"route": name}.

    Raises:
        InputError: there is no such route, or nothing in it waits for this decision.
    """
    births = [birth for birth in shared.ledger.births() if birth.name == request.get("route")]
    lanes = [lane for birth in births for lane in lanes_of(birth.route_id)]
    parked = {lane.figures.parked for lane in lanes}
    if births and not parked & DECIDABLE:
        msg = f"route {request['route']}: nothing waits for a person to take it over"
        raise InputError(msg, hint="it is for a route that is parked: see 'wald status'")
    now_ns = shared.clock.wall_ns()
    birth = decide_by_name(shared.ledger, request.get("route"), shared.owner, now_ns)
    for lane in lanes:
        lane.hurry()
    return {"route": birth.name, "parked": sorted(code for code in parked if code)}


def agree_to_rewind(shared: Shared, route_id: RouteId, lanes: Iterable[Lane]) -> bool:
    """Let lanes go on that asked before they send anything again; False if none did."""
    if all(lane.figures.parked != Parked.WENT_BACK.value for lane in lanes):
        return False
    decide(shared.ledger, route_id, shared.owner, shared.clock.wall_ns())
    return True


def lane_owner(route: Route) -> int:
    """Return who may touch the lane's rows: who took the route over, or who it was born under."""
    decision = _decision_of(route)
    return route.birth.owner if decision is None else decision.owner


def is_decided(route: Route) -> bool:
    """Tell whether the lane is to take over what it finds, and has not yet."""
    decision = _decision_of(route)
    if decision is None or decision.owner != route.shared.owner:
        return False
    return route.shared.ledger.note(_settled(route)) != decision.time_ns


def was_ours(route: Route, owner: int) -> bool:
    """Tell whether an owner was this directory's once: before it was moved."""
    decision = _decision_of(route)
    assert decision is not None
    return owner in {route.birth.owner, decision.owner, *decision.before}


def note_moved(route: Route, rev_id: RevisionId) -> None:
    """Note the revision by which the lane's row is to be moved; durable on return."""
    route.shared.ledger.note(_moved(route), rev_id)


def is_moved(route: Route, row: ProgressRow) -> bool:
    """Tell whether a row is the one that was moved last."""
    return route.shared.ledger.note(_moved(route)) == row.rev_id


def settle_decision(route: Route) -> None:
    """Note that the lane has done what was decided."""
    decision = _decision_of(route)
    assert decision is not None
    route.shared.ledger.note(_settled(route), decision.time_ns)


def _decision(ledger: Ledger, route_id: RouteId) -> Decision | None:
    found = ledger.note(_decided(route_id))
    return None if found is None else Decision(*cast("tuple[int, int, tuple[int, ...]]", found))


def _decision_of(route: Route) -> Decision | None:
    return _decision(route.shared.ledger, route.birth.route_id)


def _decided(route_id: RouteId) -> str:
    return f"takeover {route_id}"


def _moved(route: Route) -> str:
    return f"moved {route.birth.route_id}.{route.layout}.{route.lane}"


def _settled(route: Route) -> str:
    return f"taken over {route.birth.route_id}.{route.layout}.{route.lane}"
