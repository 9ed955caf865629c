"""CHECKING: ask the target for the lane's row, and judge it by the table."""

import logging
from dataclasses import replace

from wald.core.delivery import Event, Parked
from wald.core.row import AnchorFinding, RowCase, RowFacts, judge_row
from wald.drainer.route import LaneMemory, Route
from wald.model import ProgressRow, ReplayClass
from wald.storage.tail import find_anchor

_log = logging.getLogger("wald.drain")


def check_row(route: Route, memory: LaneMemory) -> tuple[Event, ProgressRow | None]:
    """Return what the row means for the lane, and the row.

    A lane that was born under another owner touches no row at all.
    """
    assert memory.sink is not None
    if memory.replay is not ReplayClass.TRANSACTIONAL:
        return Event.ROW_FITS, None
    row = None
    if route.birth.owner == route.shared.owner:
        answer = memory.sink.read_row(route.key)
        if answer is not None and not isinstance(answer, ProgressRow):
            memory.note(answer)
            return Event.SYSTEMIC, None
        row = answer
    case = _judge(route, memory, row)
    if case.event is Event.ROW_STRANGE:
        _park(route, memory, case, row)
    return case.event, row


def _judge(route: Route, memory: LaneMemory, row: ProgressRow | None) -> RowCase:
    frontier, reader = route.frontier(), memory.reader
    assert frontier is not None
    assert reader is not None
    checkpoint, manifest = memory.held
    facts = RowFacts(
        row,
        checkpoint,
        tuple(item.rev_id for item in manifest.revisions) if manifest else (),
        route.shared.owner,
        route.birth.owner,
        AnchorFinding.MATCHES,
        went_back=route.shared.released(route.birth.route_id) > checkpoint.lsn
        and not reader.holds_after(checkpoint.lsn, frontier),
    )
    case = judge_row(facts)
    if case.parked is None or row is None:
        return case
    return judge_row(replace(facts, anchor=_find_anchor(route, row)))


def _find_anchor(route: Route, row: ProgressRow) -> AnchorFinding:
    shared, frontier = route.shared, route.frontier()
    assert frontier is not None
    if row.hi_lsn > frontier.lsn:
        return AnchorFinding.BEYOND
    found = find_anchor(shared.fs, shared.data_dir, shared.log_id, row.hi_lsn, frontier)
    if found is None:
        return AnchorFinding.GONE
    return AnchorFinding.MATCHES if found == row.anchor else AnchorFinding.DIFFERS


def _park(route: Route, memory: LaneMemory, case: RowCase, row: ProgressRow | None) -> None:
    code = case.parked or Parked.DIVERGED
    checkpoint = memory.held.checkpoint
    why = (
        f"{case.label}: {case.when}; ours: batch {checkpoint.batch_no} through LSN "
        f"{checkpoint.lsn}; the target's: "
        + (f"batch {row.batch_no} through LSN {row.hi_lsn}" if row else "none")
    )
    if memory.parked is not code:
        _log.error("route %s is parked as %s: %s", route.birth.name, code.value, why)
    memory.park(code, why)
