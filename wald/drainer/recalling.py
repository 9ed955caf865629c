"""A ledger that is lost or older than it was, at targets without a progress row.

Nobody can ask such a target. What is known all the same: how far each lane was (``stands``), and
which revisions set records aside and took effect (``final`` entries of the dead log). A lane goes
on behind that, as ADOPT does behind a row (T12). What lies between that and the last batch that
may have been sealed is sent again where that is harmless; where it may double, batches of it are
sealed as held: a person says what became of them.

The same holds of dead letters that were being sent again: the newest entry of the dead log behind
the end of a lane's chain names them.

Every step is durable in the ledger, so that a crash in it does it again: what was told (``told``),
then of each lane up to where it is unsure, then T12, then that it is done.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from wald import limits
from wald.core import told as telling
from wald.core.batching import Bounds
from wald.core.told import Told, ToldRoute
from wald.drainer.adopting import adopt
from wald.drainer.doubt import hold
from wald.drainer.reader import Batch
from wald.drainer.route import LaneMemory, Route
from wald.drainer.stands import StandsPage
from wald.errors import LedgerFailed
from wald.model import (
    NO_ANCHOR,
    NO_REVISION,
    REVISION_BYTES,
    Checkpoint,
    LaneKey,
    Lsn,
    ProgressRow,
    ReplayClass,
    RouteId,
)
from wald.ports import Chance, Ledger
from wald.storage.deadlog import Chain, DeadEntry, DeadLog, Final
from wald.storage.orders import Orders

_log = logging.getLogger("wald.drain")
_LIFE, _TOLD, _NOTICED = "life", "told", "went back"
WHY_UNSURE = (
    "ledger-lost: the ledger is older than what was sent, and nobody knows whether this batch "
    "was; look into the target"
)


class _Noted(NamedTuple):
    """What the ledger notes of a lane: of which life, up to where it is unsure, whether it is done.

    ``redrives`` are the dead letters that may have been sent again; an earlier release notes none.
    """

    life: int
    unsure_through: Lsn
    done: int = 0
    redrives: Sequence[Lsn] = ()


def begin_life(
    ledger: Ledger,
    dead_log: DeadLog,
    page: StandsPage,
    released: dict[RouteId, Lsn],
    through: Callable[[], Lsn],
    chance: Chance,
) -> Told | None:
    """Begin a drainer: find out whether the ledger is the one of the drainer before.

    Args:
        ledger: as it was opened.
        dead_log: its companion.
        page: what was told beside it.
        released: where every lane of a route was at least, as ``progress`` says.
        through: returns where the log ends; asked only if need be.
        chance: for the names of entries.

    Returns:
        What a ledger that went back, now or in an earlier life, does not know; None if none did.
    """
    said = ledger.note(_LIFE)
    known = said if isinstance(said, int) else 0
    routes = page.told(released)
    # a page of an older release counts no lives: then a ledger that knows no route is a new one
    went_back = (
        page.life > known
        or (not page.life and bool(routes or dead_log.files()) and not ledger.births())
        or _is_behind(ledger, routes)
    )
    if went_back:
        bounded = page.life > 0 or not routes
        ledger.note(_TOLD, Told(page.life, through(), routes, bounded=bounded).packed())
        if page.paused is not None:
            Orders(ledger.store).hold_exactly(page.paused)
        for place, purges in dead_log.purges():
            ledger.recall_purges(*purges, told_at=place)
        _log.error(
            "the ledger is older than what was delivered: lanes go on behind what was told; what "
            "was to be sent again since, and replays not at their end, have to be asked for anew"
        )
    elif not known:
        _name_finals(ledger, dead_log, chance)
    life = max(known, page.life) + 1
    ledger.note(_LIFE, life)  # before the page: a page that is ahead says that the ledger is older
    sealed = {} if page.life or not routes else dict.fromkeys(routes, through())
    try:
        page.begin_life(life, sealed)
        page.hold(Orders(ledger.store).paused())
    except OSError as error:
        msg = f"'progress' cannot be written: {error.strerror}"
        raise LedgerFailed(msg, hint="make room, or mend the data directory") from error
    return telling.unpacked(ledger.note(_TOLD))


def noticed_ns(ledger: Ledger, told: Told | None, now_ns: int) -> int | None:
    """Return when it was found, by the wall clock, that the ledger went back; None: it did not.

    Args:
        ledger: keeps it.
        told: what ``begin_life`` returned.
        now_ns: the wall clock.
    """
    if told is None:
        return None
    said = ledger.note(_NOTICED)
    if not isinstance(said, Sequence) or said[0] != told.life:
        said = [told.life, now_ns]
        ledger.note(_NOTICED, said)
    return int(said[1])


def _is_behind(ledger: Ledger, routes: Mapping[RouteId, ToldRoute]) -> bool:
    """Tell whether a lane was told to be further than the ledger knows: a copy of a running one.

    A lane that was not brought up to date yet stands behind what it was told in an earlier life,
    which the ledger keeps. That is no news, and would make records unsure that came since.
    """
    before = telling.unpacked(ledger.note(_TOLD))
    kept = before.routes if before is not None else {}
    return any(
        stand.lsn > held.checkpoint.lsn
        and stand not in (kept.get(route_id, ToldRoute()).stands or ())
        for route_id, told in routes.items()
        for key, held in ledger.lanes(route_id).items()
        for stand in told.stands or ()
        if (stand.layout, stand.lane) == (key.layout, key.lane)
    )


def is_to_recall(route: Route, memory: LaneMemory) -> bool:
    """Tell whether a lane is to be brought to where it was told to be.

    So it is before a person is asked about a batch that an older ledger has open.
    """
    return route.shared.told is not None and not memory.recalled


def recall(route: Route, memory: LaneMemory) -> None:
    """Bring a lane to where it was told to be; its target has no row."""
    told = route.shared.told
    if told is None or memory.recalled:
        return
    memory.recalled = True
    ledger, name = route.shared.ledger, _name(route.key)
    until = route.share.until or limits.LSN_MAX
    may_double = telling.is_held(memory.replay, route.settings.on_unknown)
    noted = _noted(ledger, route.key)
    if noted is None or noted.life != told.life:
        noted = _Noted(told.life, told.unsure_through(route.birth.route_id, until))
        ledger.note(name, noted)
    if not noted.done:
        _believe(route, memory, told, until)
        noted = noted._replace(done=1, redrives=_ask_again(route, memory))
        if may_double:
            _doubt_open_batch(route, memory)
        ledger.note(name, noted)
    if may_double:
        memory.unsure_through = noted.unsure_through
        memory.unsure_redrives = tuple(noted.redrives)
        settle_unsure(route, memory, _being_redriven(memory))


def _noted(ledger: Ledger, key: LaneKey) -> _Noted | None:
    said = ledger.note(_name(key))
    return _Noted(*said) if isinstance(said, Sequence) else None


def note_in_line(route: Route, memory: LaneMemory) -> None:
    """Note that the ledger holds what the row of a lane's target says."""
    told, ledger = route.shared.told, route.shared.ledger
    if told is not None and not memory.recalled:
        memory.recalled = True
        if not is_in_line(ledger, told, route.key):
            ledger.note(_name(route.key), _Noted(told.life, 0, done=1))


def is_in_line(ledger: Ledger, told: Told | None, key: LaneKey) -> bool:
    """Tell whether a ledger that went back, if it did, has learned since how far a lane was."""
    if told is None:
        return True
    noted = _noted(ledger, key)
    return noted is not None and noted.life == told.life and bool(noted.done)


def _name(key: LaneKey) -> str:
    return f"{_TOLD} {key.route_id}.{key.layout}.{key.lane}"


def _believe(route: Route, memory: LaneMemory, told: Told, until: Lsn) -> None:
    """T12: go on behind what was told of the lane, if the ledger holds less."""
    held, frontier = memory.held.checkpoint, route.frontier()
    assert frontier is not None
    at = told.stand(route.birth.route_id, route.layout, route.lane, route.begin_lsn, until)
    final, chain = _newest(route)
    lsn = max(at.lsn, final.lsn, held.lsn)
    batch_no = max(at.batch_no, final.batch_no, held.batch_no)
    if lsn <= held.lsn and final.batch_no <= held.batch_no:
        return
    row = ProgressRow(
        batch_no,
        route.new_revision(),
        lsn,
        route.find_anchor(lsn, frontier) or NO_ANCHOR,
        route.shared.owner,
        final.rev_id,
    )
    adopt(route, memory, row, chain, "told-further")


def _doubt_open_batch(route: Route, memory: LaneMemory) -> None:
    """T11: hold the batch that an older ledger has open, where nothing says that it was closed.

    What that ledger knows of its attempts does not count: there may have been others since.
    """
    manifest = memory.held.manifest
    if manifest is not None and not manifest.held and not manifest.decision:
        hold(route, memory, WHY_UNSURE)


def _ask_again(route: Route, memory: LaneMemory) -> list[Lsn]:
    """Ask anew for what was being sent again when the ledger was lost; return what that is.

    The newest entry behind the end of the lane's chain says it: a redrive that took effect would
    be the end, and what came behind another one that did not would have an entry of its own, or
    changed nothing.
    """
    held, ledger, again = memory.held, route.shared.ledger, tuple[Lsn, ...]()
    if held.checkpoint.dead_rev == NO_REVISION:
        return []
    for _, entry in route.shared.dead_log.entries():
        if entry.previous == held.checkpoint.dead_rev:
            again = entry.redriven
    opened = _being_redriven(memory)
    lsns = [lsn for lsn in again if lsn not in opened]
    now_ns = route.shared.clock.wall_ns()
    ledger.ask_redrive(route.birth.route_id, lsns, "", now_ns, forced=True)
    return lsns


def _being_redriven(memory: LaneMemory) -> tuple[Lsn, ...]:
    manifest = memory.held.manifest
    return manifest.revisions[0].redriven if manifest is not None else ()


def settle_unsure(route: Route, memory: LaneMemory, sealed: Collection[Lsn]) -> None:
    """Note that these dead letters are in a batch that is held (T7): there is no more to do."""
    left = tuple(lsn for lsn in memory.unsure_redrives if lsn not in sealed)
    if left == memory.unsure_redrives:
        return
    memory.unsure_redrives = left
    ledger = route.shared.ledger
    noted = _noted(ledger, route.key)
    assert noted is not None
    ledger.note(_name(route.key), noted._replace(redrives=left))


def _newest(route: Route) -> tuple[Final, Chain]:
    """Return the last revision of the lane that is known to have set records aside, and which."""
    dead_log = route.shared.dead_log
    known = dead_log.index()
    finals = [each for each in dead_log.finals() if each.lane == tuple(route.key)[1:]]
    for final in sorted(finals, key=lambda each: each.batch_no, reverse=True):
        chain = dead_log.walk(final.rev_id, known)
        if chain is not None:
            return final, chain
    return Final((0, 0, 0), 0, NO_REVISION, 0), Chain({}, frozenset())


# --- while it is at work ------------------------------------------------------------------------


def name_final(route: Route, memory: LaneMemory, after: Checkpoint) -> None:
    """Name the revision that changed what is dead, before the ledger does (T5, T8).

    At a transactional target the row names it.
    """
    if memory.replay is ReplayClass.TRANSACTIONAL:
        return
    if after.dead_rev != memory.held.checkpoint.dead_rev:
        entry = final_entry(route.shared.chance, route.key, after)
        route.shared.dead_log.append(entry)  # COMMIT POINT: the dead log


def final_entry(chance: Chance, key: LaneKey, at: Checkpoint) -> DeadEntry:
    """Return an entry that names the end of a lane's chain."""
    lane = (key.route_id, key.layout, key.lane)
    final = Final(lane, at.batch_no, at.dead_rev, at.lsn)
    return DeadEntry(chance.randbytes(REVISION_BYTES), NO_REVISION, (), final=final)


def _name_finals(ledger: Ledger, dead_log: DeadLog, chance: Chance) -> None:
    """Name what an older release did not."""
    for birth in ledger.births():
        for key, held in ledger.lanes(birth.route_id).items():
            if held.checkpoint.dead_rev != NO_REVISION:
                dead_log.append(final_entry(chance, key, held.checkpoint))


def reserve(route: Route, memory: LaneMemory, batch: Batch) -> None:
    """Tell how far batches are sealed, before one is that may double, whatever is done then."""
    if telling.is_held(memory.replay, on_unknown="hold"):
        route.shared.reserve(route.birth.route_id, batch.hi)


def take_unsure(route: Route, memory: LaneMemory) -> Batch | None:
    """Return a batch of what may have been sent before the ledger was lost; None: none is left."""
    reader, frontier, sink = memory.reader, route.frontier(), memory.sink
    assert reader is not None
    assert frontier is not None
    assert sink is not None
    batch, able = route.settings.batch, sink.capabilities
    bounds = Bounds(
        min(batch.max_records, able.max_records), min(batch.max_bytes, able.max_bytes), 0.0
    )
    reader.fill(frontier, bounds)
    count = reader.count_through(memory.unsure_through)
    if not count:
        if reader.through >= memory.unsure_through:  # else the log is not known that far yet
            memory.unsure_through = 0
        return None
    return reader.take(replace(bounds, max_records=min(count, bounds.max_records)))


def why_unsure(memory: LaneMemory, hi: Lsn) -> str:
    """Return why a batch is held from the start; empty if it is not."""
    return "" if hi > memory.unsure_through else WHY_UNSURE
