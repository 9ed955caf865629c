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
from typing import NamedTuple, cast

from wald import limits
from wald.core.delivery import Event
from wald.drainer.recount import read_between
from wald.drainer.route import LaneMemory, Route
from wald.model import (
    NO_ANCHOR,
    NO_REVISION,
    Anchor,
    Attempt,
    Delivered,
    Lsn,
    ProgressRow,
    Record,
    RevisionId,
    RouteId,
    RowMoved,
    Systemic,
)
from wald.ports import Ledger
from wald.storage.deadlog import DeadEntry, Reason
from wald.storage.tail import TailBlock

_log = logging.getLogger("wald.drain")
CODE = "diverged"
_MESSAGE = "the target may hold it: another history of this log was delivered there"


class Decision(NamedTuple):
    """Who may touch the rows of a route, and when a person said so."""

    owner: int
    time_ns: int


def decide(ledger: Ledger, route_id: RouteId, owner: int, now_ns: int) -> Decision:
    """Let an owner take over the rows of a route; durable on return. Each lane does it once."""
    decision = Decision(owner, now_ns)
    ledger.note(_decided(route_id), list(decision))
    return decision


def lane_owner(route: Route) -> int:
    """Return who may touch the lane's rows: who took the route over, or who it was born under."""
    decision = _decision(route)
    return route.birth.owner if decision is None else decision.owner


def is_decided(route: Route) -> bool:
    """Tell whether the lane is to take over what it finds, and has not yet."""
    decision = _decision(route)
    if decision is None or decision.owner != route.shared.owner:
        return False
    return route.shared.ledger.note(_settled(route)) != decision.time_ns


def settle_decision(route: Route) -> None:
    """Note that the lane has done what was decided."""
    decision = _decision(route)
    assert decision is not None
    route.shared.ledger.note(_settled(route), decision.time_ns)


def _decision(route: Route) -> Decision | None:
    found = route.shared.ledger.note(_decided(route.birth.route_id))
    return None if found is None else Decision(*cast("tuple[int, int]", found))


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
    before = memory.held.checkpoint
    place = _place_of(route, row)
    aside: list[Record] = []
    if place.anchor != row.anchor or place.lsn != row.hi_lsn:
        found = _doubtful(route, before.lsn, place.lsn)
        if found is None:
            memory.say(
                f"more than {limits.TAKE_OVER_MAX_RECORDS:,} records behind LSN {before.lsn} may "
                "or may not be at the target: nothing is taken over"
            )
            return Event.ROW_MOVED
        aside = found
    rev_id = route.new_revision()
    dead_rev = _dead_rev(route, row, before.dead_rev)
    if aside:
        dead_rev = _set_aside(route, rev_id, dead_rev, row.batch_no + 1, aside)
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
    match outcome:
        case Delivered():
            return Event.TAKE_OVER
        case Systemic():
            return Event.SYSTEMIC
        case RowMoved():
            return Event.ROW_MOVED
        case _:
            return Event.UNKNOWN


def _place_of(route: Route, row: ProgressRow) -> _Place:
    """Return where our log goes on: at the row, or at our newest block that is not beyond it."""
    frontier = route.frontier()
    assert frontier is not None
    lsn = min(row.hi_lsn, frontier.lsn)
    anchor = route.find_anchor(lsn, frontier)
    if anchor is not None:
        return _Place(lsn, anchor)
    back = 1
    while back < 2 * lsn:  # a gap, or damage: look further back, in ever longer strides
        found = _newest_block(route, max(0, lsn - back), lsn)
        if found is not None:
            return found
        back *= 64
    return _Place(route.begin_lsn, NO_ANCHOR)


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


def _doubtful(route: Route, low: Lsn, high: Lsn) -> list[Record] | None:
    """Return what may or may not be at the target; None if it is too much."""
    found: list[Record] = []
    if low >= high:
        return found
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


def _set_aside(
    route: Route, rev_id: RevisionId, previous: RevisionId, batch_no: int, records: list[Record]
) -> RevisionId:
    now_ns = route.shared.clock.wall_ns()
    reasons = tuple(Reason(record.lsn, CODE, _MESSAGE, batch_no, 0, now_ns) for record in records)
    entry = DeadEntry(rev_id, previous, tuple(records), reasons=reasons)
    route.shared.dead_log.append(entry)  # COMMIT POINT: the dead log
    return rev_id
