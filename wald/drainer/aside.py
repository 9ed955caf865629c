"""Whether refused records may be set aside, and what was refused before."""

import logging
from collections.abc import Sequence

from wald import limits
from wald.core import dead
from wald.core.delivery import TOO_MANY, Event, Parked
from wald.drainer.reader import Batch
from wald.drainer.route import LaneMemory, Route
from wald.errors import FormatDamaged
from wald.model import DeadLetter, Record, RejectedRecord, Revision
from wald.storage.deadlog import DeadPlace

_log = logging.getLogger("wald.drain")


def may_set_aside(
    route: Route, memory: LaneMemory, found: Sequence[RejectedRecord]
) -> Event | None:
    """Return None if found records may become dead letters, else what happens instead.

    Too large a share of refused records is an outage or a wrong configuration, not bad records,
    unless a person says so; a route may be told to halt instead; and ledger and dead log are
    bounded.
    """
    assert memory.batch is not None
    records = len(memory.batch.records)
    excluded = {*memory.manifest.current.excluded, *(item.lsn for item in found)}
    if not is_pardoned(route, memory) and memory.guard.too_many(records, len(excluded)):
        memory.say(
            f"{TOO_MANY}: {len(excluded)} of {records} records, the first: {found[0].message}"
        )
        return Event.TOO_MANY
    if route.settings.on_reject == "halt" and _halts(route, memory, found):
        return Event.HALTED
    if _dead_letters(route) + len(excluded) > route.settings.dead_letters.quota_records:
        _park_full(route, memory, found)
        return Event.QUOTA
    return None


def is_pardoned(route: Route, memory: LaneMemory) -> bool:
    """Whether a person said of the open batch that what is refused of it is bad, however much."""
    return memory.manifest.current.hi <= route.crew.pardoned_through


def _halts(route: Route, memory: LaneMemory, found: Sequence[RejectedRecord]) -> bool:
    """Park the lane at what is refused, unless a person allowed all of it to be set aside."""
    assert memory.batch is not None
    halting = dead.halting(found, route.shared.ledger.allowed_aside(route.key))
    if not halting:
        return False
    first = halting[0]
    keys = {record.lsn: record.key for record in memory.batch.records}
    memory.halted = tuple(item.lsn for item in halting[: limits.HALTED_LISTED_MAX])
    why = dead.text_of_halt(dead.Halt(first, keys.get(first.lsn), len(halting)))
    before = memory.last_error
    memory.park(Parked.HALTED, f"{why}; mend it there, or: wald dlq set-aside {route.birth.name}")
    if memory.last_error != before:
        _log.error("route %s: %r", route.birth.name, memory.last_error)
    return True


def _dead_letters(route: Route) -> int:
    """Return how many records of the route are dead letters, in all of its lanes."""
    lanes = route.shared.ledger.lanes(route.birth.route_id).values()
    return sum(held.checkpoint.dead_letters for held in lanes)


def _park_full(route: Route, memory: LaneMemory, found: Sequence[RejectedRecord]) -> None:
    """Set nothing more aside. Tried again now and then."""
    before = memory.last_error
    memory.park(
        Parked.QUOTA,
        f"dead-letter-quota: with {len(found)} more the route's dead letters were above "
        f"{route.settings.dead_letters.quota_records:,}; wald dlq redrive or purge makes room; "
        f"the first: {found[0].message}",
    )
    if memory.last_error != before:
        _log.error("route %s: %r", route.birth.name, memory.last_error)


def known_refusals(
    route: Route, revision: Revision, batch: Batch
) -> tuple[list[DeadLetter], list[RejectedRecord], list[Record]]:
    """Return the refusals of the revision before: an earlier search's, in this life or another.

    Those whose record the log has lost since take it from the dead log, so that the new entry holds
    it too: a chain is walked by the entries of the revisions that took effect. First the letters
    whose body is not to be had there either; last the records taken from there.
    """
    letters = route.shared.ledger.set_aside(route.key, revision.rev_id)
    here = {record.lsn for record in batch.records}
    lost = {letter.lsn: body_of(route, letter) for letter in letters if letter.lsn not in here}
    bodies = [record for record in lost.values() if record is not None]
    here |= {record.lsn for record in bodies}
    return (
        [letter for letter in letters if letter.lsn not in here],
        [
            RejectedRecord(letter.lsn, letter.code, letter.message)
            for letter in letters
            if letter.lsn in here
        ],
        bodies,
    )


def body_of(route: Route, letter: DeadLetter) -> Record | None:
    """Return the record that a letter was made of; None if it has no body, or a damaged one."""
    if not letter.dead_file:
        return None
    try:
        entry = route.shared.dead_log.read(DeadPlace(letter.dead_file, letter.dead_offset))
    except FormatDamaged:
        return None
    return next((record for record in entry.excluded if record.lsn == letter.lsn), None)
