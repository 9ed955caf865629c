"""A person's decision that this directory goes on with a route: ``wald route takeover``.

The decision is durable in the ledger before anything is done: who may touch the route's rows from
now on, and that each of its lanes takes over, once, what it finds at the target. A lane then moves
the row from its owner to ours, in a batch without records (number n + 1, a new revision id): one
compare-and-set at the target. Whoever else writes this route finds another owner's row at its next
attempt and is parked; a decision there would take it back.

Where the row is of another history than our log's (a virtual machine that was set back, a host
that went on with a copy), nobody can tell which of our records behind our own checkpoint that
history delivered. They are set aside as dead letters, ``diverged``, with their bodies: sent again
by a person, or not. Our log's next LSNs are above them.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol, cast

from wald import limits
from wald.core.delivery import Event, Parked
from wald.drainer.aside import body_of
from wald.drainer.recount import letters_of_lane, read_between
from wald.drainer.route import LaneMemory, Route, Shared
from wald.errors import InputError
from wald.model import (
    NO_REVISION,
    Anchor,
    Attempt,
    Checkpoint,
    Delivered,
    Lsn,
    Outcome,
    ProgressRow,
    Record,
    RevisionId,
    RouteBirth,
    RouteId,
    RowMoved,
    Systemic,
)
from wald.ports import Ledger
from wald.storage.deadlog import DeadEntry, Reason
from wald.storage.tail import TailBlock

_log = logging.getLogger("wald.drain")
CODE = "diverged"
_OWNERS_KEPT = 8
_MESSAGE = "the target may hold it: another history of this log was delivered there"


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


def _settled(route: Route) -> str:
    return f"taken over {route.birth.route_id}.{route.layout}.{route.lane}"


# --- at the target ------------------------------------------------------------------------------


class _Place(NamedTuple):
    lsn: Lsn
    anchor: Anchor


def take_over(route: Route, memory: LaneMemory, row: ProgressRow) -> Event:
    """Move a row that is another owner's, or of another history, to ours; the lane looks again."""
    assert memory.sink is not None
    found = _plan(route, memory.held.checkpoint, row)
    if isinstance(found, str):
        memory.say(f"nothing is taken over: {found}")
        return Event.ROW_MOVED
    place, doubtful = found
    rev_id = route.new_revision()
    dead_rev = _dead_rev(route, row, memory.held.checkpoint.dead_rev)
    aside = [] if doubtful is None else _aside(route, row.batch_no + 1, doubtful, dead_rev)
    if aside:
        entry = DeadEntry(
            rev_id,
            dead_rev,
            tuple(record for record, _ in aside),
            reasons=tuple(reason for _, reason in aside),
        )
        route.shared.dead_log.append(entry)  # COMMIT POINT: the dead log
        dead_rev = rev_id
    moved = ProgressRow(
        row.batch_no + 1, rev_id, place.lsn, place.anchor, route.shared.owner, dead_rev
    )
    attempt = Attempt(route.key, route.birth.stream, row.rev_id, moved, (), from_owner=row.owner)
    outcome = memory.sink.deliver(attempt)  # COMMIT POINT: the target's
    memory.note(outcome)
    _log.warning(
        "route %s: taken over at batch %d, LSN %d, %d records set aside: %s",
        route.birth.name, row.batch_no, place.lsn, len(aside), type(outcome).__name__,
    )  # fmt: skip
    return _EVENTS.get(type(outcome), Event.UNKNOWN)


_EVENTS: Mapping[type[Outcome], Event] = {
    Delivered: Event.TAKE_OVER,
    Systemic: Event.SYSTEMIC,
    RowMoved: Event.ROW_MOVED,
}


def _plan(
    route: Route, before: Checkpoint, row: ProgressRow
) -> tuple[_Place, list[Record] | None] | str:
    """Return where the lane goes on and what may or may not be at the target; in words why not.

    A row of our own chain tells what the target holds, as it does without a decision. Of another's
    our log can tell that up to our checkpoint, and of what lies between the two, nothing.
    """
    place = _place_of(route, row)
    if place is None:
        return f"our log holds nothing up to LSN {row.hi_lsn}"
    ours = _is_of_ours(route, row)
    if place == (row.hi_lsn, row.anchor) and (ours or place.lsn >= before.lsn):
        return place, None
    doubtful = _between(route, *sorted((before.lsn, place.lsn)))
    if doubtful is None:
        return (
            f"more than {limits.TAKE_OVER_MAX_RECORDS:,} records between LSN {before.lsn} and LSN "
            f"{place.lsn} may or may not be at the target"
        )
    return (_Place(before.lsn, before.anchor) if place.lsn < before.lsn else place), doubtful


def _is_of_ours(route: Route, row: ProgressRow) -> bool:
    """Tell whether a row's owner was ours once: before the directory was moved."""
    decision = _decision_of(route)
    assert decision is not None
    return row.owner in {route.birth.owner, decision.owner, *decision.before}


def _place_of(route: Route, row: ProgressRow) -> _Place | None:
    """Return where our log goes on: at the row, or at our newest block that is not beyond it.

    None where it holds no block up to there.
    """
    frontier = route.frontier()
    assert frontier is not None
    lsn = min(row.hi_lsn, frontier.lsn)
    anchor = route.find_anchor(lsn, frontier)
    if anchor is not None:
        return _Place(lsn, anchor)
    back = 1
    while True:  # a gap, or damage: look further back, in ever longer strides
        after = max(route.begin_lsn, lsn - back)
        found = _newest_block(route, after, lsn)
        if found is not None or after == route.begin_lsn:
            return found
        back *= 64


def _newest_block(route: Route, after: Lsn, lsn: Lsn) -> _Place | None:
    frontier = route.frontier()
    assert frontier is not None
    newest = None
    reader = route.blocks(after)
    try:
        for item in reader.read(frontier):
            if isinstance(item, TailBlock) and item.header.records:
                if item.header.first_lsn > lsn:
                    break
                newest = _Place(min(lsn, item.header.last_lsn), item.anchor)
    finally:
        reader.close()
    return newest


def _between(route: Route, low: Lsn, high: Lsn) -> list[Record] | None:
    """Return the lane's records above an LSN up to another; None if they are too many."""
    found: list[Record] = []
    if low < high:
        for piece in read_between(route, low, high):
            found += piece.records
            if len(found) > limits.TAKE_OVER_MAX_RECORDS:
                return None
    return found


def _dead_rev(route: Route, row: ProgressRow, ours: RevisionId) -> RevisionId:
    """Return the chain to go on with: the row's, or, where it leads to nothing here, ours."""
    for dead_rev in (row.dead_rev, ours):
        if route.shared.dead_log.walk(dead_rev) is not None:
            return dead_rev
    return NO_REVISION


def _aside(
    route: Route, batch_no: int, doubtful: Iterable[Record], dead_rev: RevisionId
) -> list[tuple[Record, Reason]]:
    """Return what is set aside, with why: also our dead letters that the row's chain does not name.

    The other history knows nothing of them: they stay what they are.
    """
    now_ns = route.shared.clock.wall_ns()
    found = {
        record.lsn: (record, Reason(record.lsn, CODE, _MESSAGE, batch_no, 0, now_ns))
        for record in doubtful
    }
    chain = route.shared.dead_log.walk(dead_rev)
    named = chain.letters if chain else {}
    for letter in letters_of_lane(route):
        record = None if letter.lsn in named else body_of(route, letter)
        if record is not None:
            reason = Reason(
                letter.lsn,
                letter.code,
                letter.message,
                letter.batch_no,
                letter.attempts,
                letter.time_ns,
                letter.producer,
                letter.trace,
            )
            found[letter.lsn] = record, reason
    return [found[lsn] for lsn in sorted(found)]
