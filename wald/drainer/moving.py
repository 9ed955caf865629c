"""Moving a row to this directory, as a person decided (``wald.drainer.takeover``).

A row of our own history tells what the target holds. Where it is of another's (a virtual machine
that was set back, a host that went on with a copy) nobody can tell which of our records behind our
own checkpoint that history delivered. They are set aside as dead letters, ``diverged``, with their
bodies, before the row is moved: sent again by a person, or not. Our log's next LSNs are above them.

Numbers only grow at a target that is not set back. A row of another history whose number is not
above ours is on a target that was, to a batch of ours that nobody can tell: what we had delivered
there is in doubt as well, and is set aside as far as the log still holds it. What it let go of is
told (``Healing.unsure_through``).
"""

import logging
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from wald import limits
from wald.core.delivery import Event
from wald.drainer.adopting import note_unsure
from wald.drainer.aside import body_of
from wald.drainer.recount import letters_of_lane, read_between
from wald.drainer.route import LaneMemory, Route
from wald.drainer.takeover import CODE, note_moved, was_ours
from wald.model import (
    NO_ANCHOR,
    NO_REVISION,
    Anchor,
    Attempt,
    Checkpoint,
    DeadLetter,
    Delivered,
    Lsn,
    Outcome,
    ProgressRow,
    Record,
    RevisionId,
    RowMoved,
    Systemic,
)
from wald.storage.deadlog import Chain, DeadEntry, Reason
from wald.storage.tail import TailBlock

_log = logging.getLogger("wald.drain")
_MESSAGE = "the target may hold it: another history of this log was delivered there"


class _Place(NamedTuple):
    lsn: Lsn
    anchor: Anchor


_Aside: TypeAlias = tuple[Record, Reason]


class _Plan(NamedTuple):
    """Where the lane goes on, and what may or may not be at the target.

    ``doubtful`` is None where the row tells what the target holds; ``unsure_through`` is up to
    where the target may lack what the log let go of, once it was delivered: 0 for nothing.
    """

    place: _Place
    doubtful: Sequence[Record] | None = None
    unsure_through: Lsn = 0


def take_over(route: Route, memory: LaneMemory, row: ProgressRow) -> Event:
    """Move a row that is another owner's, or of another history, to ours; the lane looks again.

    What is set aside for that is written once, however often the target does not answer.
    """
    assert memory.sink is not None
    if not _is_ready(route, memory, row):
        plan = _plan(route, memory.held.checkpoint, row)
        if isinstance(plan, str):
            memory.say(f"nothing is taken over: {plan}")
            return Event.ROW_MOVED
        memory.moving = row, _moved(route, memory, row, plan)
    assert memory.moving is not None
    moved = memory.moving[1]
    attempt = Attempt(route.key, route.birth.stream, row.rev_id, moved, (), from_owner=row.owner)
    outcome = memory.sink.deliver(attempt)  # COMMIT POINT: the target's
    memory.note(outcome)
    _log.warning(
        "route %s: taken over at batch %d, LSN %d: %s",
        route.birth.name, row.batch_no, moved.hi_lsn, type(outcome).__name__,
    )  # fmt: skip
    return _EVENTS.get(type(outcome), Event.UNKNOWN)


def _is_ready(route: Route, memory: LaneMemory, row: ProgressRow) -> bool:
    """Tell whether all is set aside for moving this very row, and was not tidied away since."""
    if memory.moving is None or memory.moving[0] != row:
        return False
    return route.shared.dead_log.walk(memory.moving[1].dead_rev) is not None


def _moved(route: Route, memory: LaneMemory, row: ProgressRow, plan: _Plan) -> ProgressRow:
    """Set aside what may or may not be at the target; return the row that names it."""
    place, rev_id = plan.place, route.new_revision()
    dead_rev, count = _set_aside(route, row, plan, memory.held.checkpoint, rev_id)
    note_unsure(route, memory, plan.unsure_through)
    note_moved(route, rev_id)
    _log.warning(
        "route %s: to be taken over at batch %d, LSN %d: %d records set aside, unsure through LSN "
        "%d", route.birth.name, row.batch_no, place.lsn, count, plan.unsure_through,
    )  # fmt: skip
    owner = route.shared.owner
    return ProgressRow(row.batch_no + 1, rev_id, place.lsn, place.anchor, owner, dead_rev)


_EVENTS: Mapping[type[Outcome], Event] = {
    Delivered: Event.TAKE_OVER,
    Systemic: Event.SYSTEMIC,
    RowMoved: Event.ROW_MOVED,
}


def _plan(route: Route, before: Checkpoint, row: ProgressRow) -> _Plan | str:
    """Return where the lane goes on and what may or may not be at the target; in words why not.

    A row of our own chain tells what the target holds, as it does without a decision. Of another's
    our log can tell that up to our checkpoint, and of what lies between the two, nothing; where the
    target was set back before the other history went on there, not even that.
    """
    ours, known = was_ours(route, row.owner), None
    if (row.batch_no, row.rev_id) == (before.batch_no, before.rev_id):
        known = _Place(before.lsn, before.anchor)  # an idle lane has gone on behind its row
    elif ours and _is_gone(route, row):
        known = _Place(row.hi_lsn, NO_ANCHOR)  # it was not looked at
    if known is not None:  # what is dead here stays so, unless the row's chain knows better
        return _Plan(known, (), known.lsn if known.lsn > before.lsn else 0)
    place = _place_of(route, row) or _Place(before.lsn, before.anchor)
    if place == (row.hi_lsn, row.anchor) and _tells(route, row, before, ours=ours):
        return _Plan(place)
    low, high = sorted((before.lsn, place.lsn))
    between = _newest(route, low, high)
    if not between.is_all:
        return (
            f"more than {limits.TAKE_OVER_MAX_RECORDS:,} records, or "
            f"{limits.TAKE_OVER_MAX_BYTES:,} bytes of them, between LSN {low} and LSN {high} may "
            "or may not be at the target"
        )
    if place.lsn < before.lsn:
        place = _Place(before.lsn, before.anchor)
    if row.batch_no > before.batch_no or row.rev_id == before.rev_id:
        return _Plan(place, between.records, between.gone_through)
    older = _newest_delivered(route, low)
    unsure_through = max(older[0].lsn - 1 if older else low, between.gone_through)
    is_all = unsure_through <= route.begin_lsn
    return _Plan(place, [*older, *between.records], 0 if is_all else unsure_through)


def _tells(route: Route, row: ProgressRow, before: Checkpoint, *, ours: bool) -> bool:
    """Tell whether a row at a block of our log says what the target holds up to there.

    Ours does behind our checkpoint, where we know what is dead; beyond it, and of another's, only
    if our dead log knows its dead letters.
    """
    if row.hi_lsn < before.lsn:
        return ours
    return route.shared.dead_log.walk(row.dead_rev) is not None


def _is_gone(route: Route, row: ProgressRow) -> bool:
    """Tell whether our log no longer holds a row's block, and nothing says that it is not ours."""
    frontier = route.frontier()
    assert frontier is not None
    is_within = route.begin_lsn < row.hi_lsn <= frontier.lsn
    return is_within and route.find_anchor(row.hi_lsn, frontier) is None


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


class _Newest(NamedTuple):
    """The newest records of a range, whether they are all, and up to where the log let go of it."""

    records: list[Record]
    is_all: bool
    gone_through: Lsn


def _newest(route: Route, low: Lsn, high: Lsn) -> _Newest:
    """Return the lane's newest records above an LSN up to another, within bounds."""
    found: deque[Record] = deque()
    is_all, size, gone_through = True, 0, 0
    released = route.shared.released(route.birth.route_id)
    for piece in read_between(route, low, high) if low < high else ():
        gone_through = max(
            [gone_through, *(item.last_lsn for item in piece.lost if item.last_lsn <= released)]
        )
        for record in piece.records:
            found.append(record)
            size += len(record.value)
            while len(found) > limits.TAKE_OVER_MAX_RECORDS or size > limits.TAKE_OVER_MAX_BYTES:
                size -= len(found.popleft().value)
                is_all = False
    return _Newest(list(found), is_all, gone_through)


def _newest_delivered(route: Route, through: Lsn) -> list[Record]:
    """Return the newest records that the log still holds up to an LSN.

    It is read back in ever longer strides: what is kept in packed files may reach far.
    """
    stride = limits.TAKE_OVER_MAX_RECORDS
    while True:
        after = max(route.begin_lsn, through - stride)
        found = _newest(route, after, through)
        if after == route.begin_lsn or not found.is_all:
            return found.records
        stride *= 64


def _dead_rev(route: Route, row: ProgressRow, place: _Place, before: Checkpoint) -> RevisionId:
    """Return the chain to go on with: the row's, or, where it leads to nothing here, ours.

    Ours does not where the lane goes back: it names what will be sent again.
    """
    ours = NO_REVISION if place.lsn < before.lsn else before.dead_rev
    for dead_rev in (row.dead_rev, ours):
        if route.shared.dead_log.walk(dead_rev) is not None:
            return dead_rev
    return NO_REVISION


def _set_aside(
    route: Route, row: ProgressRow, plan: _Plan, before: Checkpoint, rev_id: RevisionId
) -> tuple[RevisionId, int]:
    """Make durable what is set aside; return the chain that names it, and how many there are.

    Of several entries the last is of the revision that moves the row: then all is there.
    """
    dead_rev = _dead_rev(route, row, plan.place, before)
    if plan.doubtful is None and dead_rev == row.dead_rev:
        return dead_rev, 0  # the row tells all: what is dead, too
    count = 0
    chain = route.shared.dead_log.walk(dead_rev) or Chain({}, frozenset())
    # what our own chain sent again may have been forgotten by the target since
    known = chain.ever if dead_rev == row.dead_rev else {*chain.letters, *chain.dropped}
    is_lost = dead_rev != row.dead_rev and was_ours(route, row.owner)
    parts = _parts(_aside(route, row.batch_no + 1, plan, known, is_lost=is_lost))
    part = next(parts, None)
    while part is not None:
        following = next(parts, None)
        entry = DeadEntry(
            route.new_revision() if following else rev_id,
            dead_rev,
            tuple(record for record, _ in part),
            reasons=tuple(reason for _, reason in part),
        )
        route.shared.dead_log.append(entry)  # COMMIT POINT: the dead log
        count, dead_rev, part = count + len(part), entry.rev_id, following
    return dead_rev, count


def _parts(aside: Iterable[_Aside]) -> Iterator[list[_Aside]]:
    """Yield as much at a time as one entry of the dead log holds."""
    part: list[_Aside] = []
    size = 0
    for item in aside:
        if part and size + len(item[0].value) > limits.DEAD_LOG_PART_BYTES:
            yield part
            part, size = [], 0
        part.append(item)
        size += len(item[0].value)
    if part:
        yield part


def _aside(
    route: Route, batch_no: int, plan: _Plan, known: Collection[Lsn], *, is_lost: bool
) -> Iterator[_Aside]:
    """Yield what is set aside, with why: also our dead letters that the row's chain does not know.

    What that did not set aside it may have delivered. Where entries of our own chain are lost
    (``is_lost``) the ledger knows them: they stay what they are.
    """
    ours = {
        letter.lsn: letter
        for letter in letters_of_lane(route)
        if letter.dead_file and letter.lsn not in known and letter.lsn <= plan.place.lsn
    }
    for lsn, letter in ours.items():
        body = _body_of(route, letter)
        if body is None:  # it stays a dead letter, by the ledger alone
            route.shared.ledger.move_letters(
                route.birth.route_id, {lsn: (0, 0)}, letter.dead_file + 1
            )
            continue
        yield body, _reason(letter, is_lost=is_lost)
    now_ns = route.shared.clock.wall_ns()
    for record in plan.doubtful or ():
        if record.lsn not in known and record.lsn not in ours:
            yield record, Reason(record.lsn, CODE, _MESSAGE, batch_no, 0, now_ns)


def _reason(letter: DeadLetter, *, is_lost: bool) -> Reason:
    code, message = letter.code, letter.message
    if not is_lost and code != CODE:
        code, message = CODE, f"{_MESSAGE}; it was dead as {code}: {message}"
    return Reason(
        letter.lsn,
        code,
        message[: limits.ERROR_TEXT_MAX_CHARS],
        letter.batch_no,
        letter.attempts,
        letter.time_ns,
        letter.producer,
        letter.trace,
    )


def _body_of(route: Route, letter: DeadLetter) -> Record | None:
    """Return the record of a letter, from the log where the dead log does not have it any more."""
    found = body_of(route, letter)
    if found is None:
        pieces = read_between(route, letter.lsn - 1, letter.lsn)
        found = next((record for piece in pieces for record in piece.records), None)
    return found
