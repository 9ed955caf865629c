"""CHECKING: ask the target for the lane's row, judge it by the table, and do what the case says."""

import logging
from dataclasses import replace

from wald.core.delivery import Event, Parked
from wald.core.row import LogFinding, RowCase, RowFacts, effective_dead_rev, judge_row
from wald.drainer.adopting import adopt, stand_of
from wald.drainer.moving import take_over
from wald.drainer.recalling import note_in_line, recall
from wald.drainer.route import LaneMemory, Route
from wald.drainer.takeover import is_decided, is_moved, lane_owner, settle_decision
from wald.errors import LedgerFailed
from wald.model import (
    NO_ANCHOR,
    Checkpoint,
    Outcome,
    ProgressRow,
    ReplayClass,
    Systemic,
    SystemicKind,
)
from wald.storage.deadlog import Chain

_log = logging.getLogger("wald.drain")
_IN_LINE = frozenset({Event.ROW_FITS, Event.ROW_APPLIED, Event.ADOPTED})


def check_row(route: Route, memory: LaneMemory) -> tuple[Event, ProgressRow | None]:
    """Return what the row means for the lane, and the row.

    Where the row is to be adopted it has been (T12). A lane that is another owner's touches no row
    at all, an absent one included.
    """
    assert memory.sink is not None
    if memory.replay is not ReplayClass.TRANSACTIONAL:
        recall(route, memory)
        return _recollect(route, memory)
    row, owner = None, lane_owner(route)
    if owner == route.shared.owner:
        answer = memory.sink.read_row(route.key)
        if answer is not None and not isinstance(answer, ProgressRow):
            return _cannot_say(route, memory, answer), None
        row = answer
    decided = is_decided(route)
    facts = _facts(route, memory, row, owner, decided=decided)
    case = judge_row(facts)
    chain = None
    if case.event in {Event.ADOPTED, Event.TAKE_OVER} or case.parked is not None:
        chain = route.shared.dead_log.walk(stand_of(route, row).dead_rev)
        facts = replace(facts, log=_look(route, memory, row), chain=chain is not None)
        case = judge_row(facts)
    event = _carry_out(route, memory, case, row, chain, decided=decided)
    if decided and event is not Event.TAKE_OVER and _is_carried_out(case, facts):
        settle_decision(route)
    if event in _IN_LINE:
        note_in_line(route, memory)
    return event, row


def _recollect(route: Route, memory: LaneMemory) -> tuple[Event, ProgressRow | None]:
    """Return what would be read of a row, as far as this process knows: T5 found no room."""
    manifest, checkpoint = memory.held.manifest, memory.held.checkpoint
    if manifest is None or memory.took not in {each.rev_id for each in manifest.revisions}:
        return Event.ROW_FITS, None
    revision = manifest.revision(memory.took)
    row = ProgressRow(
        manifest.number,
        revision.rev_id,
        revision.hi,
        NO_ANCHOR,
        route.shared.owner,
        effective_dead_rev(checkpoint, revision),
    )
    return Event.ROW_APPLIED, row


def _cannot_say(route: Route, memory: LaneMemory, answer: Outcome) -> Event:
    """Wait for a target that says nothing of the row; park at one that another has for its own."""
    memory.note(answer)
    if not isinstance(answer, Systemic) or answer.kind is not SystemicKind.OWNED:
        return Event.SYSTEMIC
    _park_for(route, memory, Parked.DIVERGED, f"{answer.message}; {answer.hint}")
    return Event.ROW_STRANGE


def _carry_out(
    route: Route,
    memory: LaneMemory,
    case: RowCase,
    row: ProgressRow | None,
    chain: Chain | None,
    *,
    decided: bool,
) -> Event:
    if case.event is Event.TAKE_OVER:
        assert row is not None
        return take_over(route, memory, row)
    if case.event is Event.ADOPTED:
        assert chain is not None
        adopt(route, memory, row, chain, case.label, taken_over=decided)
    elif case.event is Event.ROW_STRANGE:
        _park(route, memory, case, row)
    return case.event


def _is_carried_out(case: RowCase, facts: RowFacts) -> bool:
    """Tell whether a person's decision is no longer needed: the row is ours, and the log holds on.

    Until what the log no longer holds has been passed the lane would be parked for it again.
    """
    short = facts.log_short if facts.fits else facts.log is LogFinding.GONE
    return case.event in _IN_LINE and not short


def _facts(
    route: Route, memory: LaneMemory, row: ProgressRow | None, owner: int, *, decided: bool
) -> RowFacts:
    checkpoint, manifest = memory.held
    return RowFacts(
        row,
        checkpoint,
        tuple(item.rev_id for item in manifest.revisions) if manifest else (),
        route.shared.owner,
        owner,
        log_short=_is_released(route, memory, checkpoint),
        ask_first=route.settings.on_rewind == "park",
        decided=decided,
        moved=decided and row is not None and is_moved(route, row),
    )


def _is_released(route: Route, memory: LaneMemory, at: Checkpoint) -> bool:
    """Tell whether our log let go, once it was delivered, of something behind a position."""
    frontier, reader = route.frontier(), memory.reader
    assert frontier is not None
    assert reader is not None
    released = route.shared.released(route.birth.route_id) > at.lsn
    return released and not reader.holds_after(at.lsn, frontier)


def _look(route: Route, memory: LaneMemory, row: ProgressRow | None) -> LogFinding:
    """Return what our log says of the row's position."""
    frontier, ours = route.frontier(), memory.held.checkpoint
    assert frontier is not None
    at = stand_of(route, row)
    if frontier.lsn < at.lsn <= route.shared.sealed_through:
        msg = f"the log is not known yet up to LSN {at.lsn}, where the target's row is"
        raise LedgerFailed(msg)  # a hint from before a power cut: to be tried again
    if at.lsn > frontier.lsn:
        return LogFinding.BEYOND
    known = {(ours.lsn, ours.anchor), (route.begin_lsn, NO_ANCHOR)}
    if (at.lsn, at.anchor) not in known:
        found = route.find_anchor(at.lsn, frontier)
        if found is None:
            return LogFinding.GONE
        if found != at.anchor:
            return LogFinding.DIFFERS
    return LogFinding.GONE if _is_released(route, memory, at) else LogFinding.HOLDS


def _park(route: Route, memory: LaneMemory, case: RowCase, row: ProgressRow | None) -> None:
    code = case.parked or Parked.DIVERGED
    checkpoint = memory.held.checkpoint
    why = (
        f"{case.label}: {case.when}; ours: batch {checkpoint.batch_no} through LSN "
        f"{checkpoint.lsn}; the target's: "
        + (f"batch {row.batch_no} through LSN {row.hi_lsn}" if row else "none")
    )
    _park_for(route, memory, code, why)


def _park_for(route: Route, memory: LaneMemory, code: Parked, why: str) -> None:
    if memory.parked is not code:
        _log.error("route %s is parked as %s: %s", route.birth.name, code.value, why)
    memory.park(code, why)
