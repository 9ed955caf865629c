"""ADOPT (T12): the lane believes its target's row, and goes on behind it.

One rule for a target that went back in time, a ledger that was brought back from a copy, and a
commit that landed late after either: checkpoint and dead letters become the row's, the open
manifest is dropped, and what lies between is recounted, so that the books balance. What follows
the row is then sealed as usual, with new revision ids: an attempt that is still on its way finds
another row and takes no effect, or takes effect first and is adopted in its turn.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace

from wald import limits
from wald.core.healing import Healing, from_numbers
from wald.core.row import adopted
from wald.drainer.recount import letters_of_lane, recount
from wald.drainer.route import LaneMemory, Route, must
from wald.model import (
    NO_REVISION,
    Checkpoint,
    DeadLetter,
    LaneProgress,
    Lsn,
    ProgressRow,
)
from wald.storage.deadlog import Chain

_log = logging.getLogger("wald.drain")
_PURGED = "purged"


def stand_of(route: Route, row: ProgressRow | None) -> Checkpoint:
    """Return where a row stands, without counts; the lane's beginning where there is none."""
    if row is None:
        return Checkpoint(lsn=route.begin_lsn)
    return Checkpoint(row.batch_no, row.rev_id, row.hi_lsn, row.anchor, row.dead_rev)


def adopt(
    route: Route,
    memory: LaneMemory,
    row: ProgressRow | None,
    chain: Chain,
    label: str,
    *,
    taken_over: bool = False,
) -> None:
    """T12: make the ledger hold what the row says; the lane reads on from there.

    Args:
        route: the lane.
        memory: what it works with; ``held`` is what the ledger holds now.
        row: the target's.
        chain: what its ``dead_rev`` leads to.
        label: why, for the log.
        taken_over: whether a person decided that this directory goes on.

    Raises:
        LedgerFailed: the ledger holds something else by now; the lane begins anew.
    """
    ledger, key, before = route.shared.ledger, route.key, memory.held.checkpoint
    at = stand_of(route, row)
    purged = ledger.purged(key)
    letters = _letters_of_chain(route, chain)
    found = recount(route, before, at, chain)
    letters.update(_damaged(route, at.lsn))
    if at.lsn > before.lsn:
        letters.update({letter.lsn: letter for letter in found.lost})
    # what has a body is purged only if the chain knows it: else it was sent again, or is pending
    bodiless = ledger.purged(key, without_body=True)
    left = {lsn: purged[lsn] for lsn in purged if lsn in bodiless or lsn in chain.dropped}
    letters.update(_purged_letters(route, left, at.lsn, letters))
    base = replace(
        at,
        purged=len(chain.dropped - purged.keys()),
        superseded=before.superseded - _superseded_behind(route, at.batch_no),
    )
    dead = sum(letter.records for letter in letters.values())
    after = adopted(before, base, found.between, dead)
    must(done=ledger.adopt(key, memory.held, after, list(letters.values())))
    # COMMIT POINT: T12
    memory.held = LaneProgress(ledger.lane(key).checkpoint, None)
    _go_on(route, memory, before, found.between.records, taken_over=taken_over)
    _log.warning(
        "route %s: %s: the target holds batch %d through LSN %d, we had batch %d through LSN %d",
        route.birth.name,
        label,
        at.batch_no,
        at.lsn,
        before.batch_no,
        before.lsn,
    )


def _go_on(
    route: Route, memory: LaneMemory, before: Checkpoint, between: int, *, taken_over: bool
) -> None:
    """Forget what the lane had read and sealed; note what happened."""
    after = memory.held.checkpoint
    if memory.reader is not None:
        memory.reader.close()
    memory.reader = route.reader(after.lsn)
    memory.batch = None
    memory.counted = NO_REVISION
    behind = after.lsn < before.lsn
    if behind:
        route.crew.go_back(route.layout, route.settings.sink)
    # the log may let go of what was delivered once, until ingest hears that it is wanted again
    memory.pause_s = limits.REWIND_PAUSE_S if behind else 0.0
    until_lsn, had = before.lsn, before.batch_no
    earlier = memory.healing
    if behind and earlier and earlier.went_back and not earlier.done_ns:
        until_lsn, had = max(until_lsn, earlier.until_lsn), max(had, earlier.had_batch)
        between += max(0, earlier.records - earlier.again)
    memory.healing = Healing(
        route.shared.clock.wall_ns(),
        after.batch_no,
        had,
        until_lsn,
        between if behind else 0,
        after.delivered,
        taken_over=int(taken_over),
        unsure_through=earlier.unsure_through if earlier and taken_over else 0,
    )
    _keep(route, memory.healing)
    follow_healing(route, memory)


# --- the letters --------------------------------------------------------------------------------


def _letters_of_chain(route: Route, chain: Chain) -> dict[Lsn, DeadLetter]:
    """Return the letters that the chain declares; as the ledger has them, where it has them."""
    known = {letter.lsn: letter for letter in letters_of_lane(route)}
    letters = {}
    for lsn, item in chain.letters.items():
        letter = known.get(lsn)
        fits = letter is not None and letter.rev_id == item.rev_id and letter.dead_file
        letters[lsn] = letter if letter is not None and fits else route.letter(item)
    return letters


def _damaged(route: Route, through: Lsn) -> dict[Lsn, DeadLetter]:
    """Return the letters without a body up to an LSN; those above are found again."""
    return {
        letter.lsn: letter
        for letter in letters_of_lane(route)
        if not letter.dead_file and letter.lsn <= through
    }


def _purged_letters(
    route: Route, purged: Mapping[Lsn, int], through: Lsn, letters: Collection[Lsn]
) -> dict[Lsn, DeadLetter]:
    """Return stand-ins for purged letters that no chain names: they stay purged up to an LSN.

    Beyond it the record is pending again, and is delivered or set aside anew.
    """
    return {
        lsn: DeadLetter(
            route.birth.name, lsn, _PURGED, "", 0, NO_REVISION, 0, 0, records=records,
            layout=route.layout, lane=route.lane,
        )
        for lsn, records in purged.items()
        if lsn <= through and lsn not in letters
    }  # fmt: skip


def _superseded_behind(route: Route, batch_no: int) -> int:
    """Return how many superseded records the batches behind a number had, as far as is known."""
    return sum(
        line.superseded for line in route.shared.ledger.history(route.key) if line.number > batch_no
    )


# --- what people are told -----------------------------------------------------------------------


def follow_healing(route: Route, memory: LaneMemory) -> None:
    """Bring the note in line with what was delivered since; durable when that is all of it."""
    healing, checkpoint = memory.healing, memory.held.checkpoint
    if healing is None or healing.done_ns:
        return
    now_ns = route.shared.clock.wall_ns()
    memory.healing = healing.at(checkpoint.lsn, checkpoint.delivered, now_ns)
    if memory.healing.done_ns:
        _keep(route, memory.healing)


def recall_healing(route: Route, memory: LaneMemory) -> None:
    """Take up the note of an earlier life."""
    if memory.healing is None:
        memory.healing = from_numbers(route.shared.ledger.note(_name(route)))


def note_unsure(route: Route, memory: LaneMemory, through: Lsn) -> None:
    """Note up to where the target may lack what had been delivered; durable on return."""
    if through <= (memory.healing.unsure_through if memory.healing else 0):
        return
    memory.healing = replace(memory.healing or Healing(0, 0, 0), unsure_through=through)
    _keep(route, memory.healing)


def _keep(route: Route, healing: Healing) -> None:
    route.shared.ledger.note(_name(route), healing.numbers())


def _name(route: Route) -> str:
    return f"healing {route.birth.route_id}.{route.layout}.{route.lane}"
