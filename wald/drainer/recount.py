"""Counting a lane's records between two LSNs, from the log itself."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from wald import limits
from wald.core.batching import Bounds
from wald.core.frame import BlockHeader, BlockKind, SectionKind
from wald.core.lanes import WHOLE
from wald.core.row import Between, lies_within
from wald.core.state import LogState
from wald.drainer.route import Route
from wald.errors import LedgerFailed
from wald.model import NO_REVISION, Checkpoint, DeadLetter, LostRange, Lsn, Record
from wald.storage.deadlog import Chain
from wald.storage.tail import TailBlock, TailReader

_BOUNDS = Bounds(limits.BATCH_MAX_RECORDS, limits.GROUP_MAX_BYTES, limits.BATCH_MAX_AGE_S)


@dataclass(frozen=True, slots=True)
class Recount:
    """What lies between, and the letters of what damage took of it."""

    between: Between = field(default_factory=Between)
    lost: tuple[DeadLetter, ...] = ()


class Piece(NamedTuple):
    """A part of what lies between two LSNs, in order."""

    records: list[Record]
    lost: tuple[LostRange, ...]


def letters_of_lane(route: Route) -> list[DeadLetter]:
    """Return the lane's dead letters as the ledger has them."""
    found: list[DeadLetter] = []
    after: Lsn = 0
    while page := route.shared.ledger.dead_letters(route.birth.route_id, after=after):
        found += [each for each in page if (each.layout, each.lane) == (route.layout, route.lane)]
        after = page[-1].lsn
    return found


def recount(route: Route, before: Checkpoint, at: Checkpoint, chain: Chain) -> Recount:
    """Count the lane's records between its checkpoint and where the row stands.

    A record that was set aside and lost since counts once, as the dead letter it was. Where the
    log no longer holds all of it (an older ledger, brought back) the counts of the log say it.

    Raises:
        LedgerFailed: the log is not known that far yet; to be tried again.
    """
    low, high = sorted((before.lsn, at.lsn))
    if low == high:
        return Recount()
    ahead = at.lsn > before.lsn
    known = (
        _accepted_through(route, low, high) if ahead and _has_released(route, low, high) else None
    )
    through, accepted = known or (low, None)
    released = max(through, route.shared.released(route.birth.route_id)) if ahead else through
    aside = chain.ever if ahead else frozenset(each.lsn for each in letters_of_lane(route))
    count, lost = 0, []
    for piece in read_between(route, low, high):
        count += sum(record.lsn > through for record in piece.records)
        lost += [item for item in piece.lost if item.last_lsn > released]  # let go is no damage
    letters = route.letters_of_lost(lost, at.batch_no, at.rev_id, aside)
    count += sum(letter.records for letter in letters)
    count += sum(
        any(item.first_lsn <= lsn <= item.last_lsn for item in lost)
        for lsn in aside
        if lies_within(lsn, low, high)
    )
    if accepted is not None:
        return Recount(Between(accepted=accepted + count), tuple(letters))
    return Recount(Between(count), tuple(letters))


def read_between(route: Route, low: Lsn, high: Lsn) -> Iterator[Piece]:
    """Yield the lane's records above ``low`` up to ``high``, within bounds of memory.

    Raises:
        LedgerFailed: the log is not known that far yet: ingest has not begun again, and its hint is
            from before a power cut, or of a segment that another one has taken the place of.
    """
    frontier, reader = route.frontier(), route.reader(low)
    assert frontier is not None
    try:
        while reader.through < high:
            reader.fill(frontier, _BOUNDS)
            if reader.is_empty:
                if reader.through < high:
                    msg = f"the log is not known yet up to LSN {high}, where the lane was"
                    raise LedgerFailed(msg)
                yield Piece([], _up_to(high, reader.take_lost()))
                return
            batch = reader.take(_BOUNDS)
            records = [record for record in batch.records if record.lsn <= high]
            yield Piece(records, _up_to(high, batch.lost))
    finally:
        reader.close()


def _up_to(high: Lsn, lost: tuple[LostRange, ...]) -> tuple[LostRange, ...]:
    """Return what was lost up to an LSN; of a range that goes on nobody counted the part."""
    return tuple(
        item if item.last_lsn <= high else replace(item, last_lsn=high, records=None)
        for item in lost
        if item.first_lsn <= high
    )


def _has_released(route: Route, low: Lsn, high: Lsn) -> bool:
    """Tell whether something between was let go of, of a route whose lane is all of it.

    Of one of several lanes, or one behind a change of their number, the log's counts do not tell
    how many were its: they are since the route's birth. An older ledger may name packed files that
    have gone since.
    """
    frontier, released = route.frontier(), route.shared.released(route.birth.route_id)
    assert frontier is not None
    is_all = route.share.is_whole and route.begin_lsn == route.birth.birth_lsn
    if not is_all or released <= low:
        return False
    reader = route.reader(low)
    try:
        if not reader.holds_after(low, frontier):
            return True
    finally:
        reader.close()
    between = read_between(route, low, high)
    return any(item.last_lsn <= released for piece in between for item in piece.lost)


def _accepted_through(route: Route, low: Lsn, high: Lsn) -> tuple[Lsn, int] | None:
    """Return what the counts of the log come to: through which LSN up to ``high``, how many.

    Where the oldest snapshot lies above, packed files hold what lies between.
    """
    known = _accepted_at_head(route, low)
    if known is None or known[0] <= high:
        return known
    through, accepted = known
    stream = replace(route, share=WHOLE)  # a former lane reads no further than its layout goes
    for piece in read_between(stream, high, through):
        gone = route.letters_of_lost(piece.lost, 0, NO_REVISION)  # let go of, too
        accepted -= len(piece.records) + sum(letter.records for letter in gone)
    return high, accepted


def _accepted_at_head(route: Route, low: Lsn) -> tuple[Lsn, int] | None:
    """Return what the oldest snapshot above an LSN counts: through which LSN, how many accepted."""
    shared, frontier, state = route.shared, route.frontier(), LogState()
    assert frontier is not None
    reader = TailReader(
        shared.fs,
        shared.data_dir,
        shared.log_id,
        after=low,
        wants_block=_is_snapshot,
        wants_section=lambda section: section.kind is SectionKind.SNAPSHOT,
    )
    try:
        for item in reader.read(frontier):
            if not isinstance(item, TailBlock):
                continue
            if not _is_snapshot(item.header) and state.streams:
                break
            for _, section in item.sections:
                if "sessions" not in section.statement():
                    state.apply(section, 0, item.header.commit_time_ns)
    finally:
        reader.close()
    stream = state.streams.get(route.birth.stream_id)
    born = state.routes.get(route.birth.route_id)
    if stream is None or born is None:
        return None
    return stream.last_lsn, stream.records - born.birth_records


def _is_snapshot(header: BlockHeader) -> bool:
    return header.kind is BlockKind.SNAPSHOT
