"""Carrying out the recovery plan: from a directory to what the log goes on with."""

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial

from wald import limits
from wald.core.frame import BlockHeader
from wald.core.ids import DedupPolicy, IdTable
from wald.core.recovery import RecoveryPlan, decide
from wald.core.retention import FinishedSegment
from wald.core.state import LogState
from wald.errors import FormatDamaged, WaldError
from wald.model import Frontier, LostRange, Lsn
from wald.ports import Chance, Clock, FileSystem
from wald.storage import fresh, recover
from wald.storage import identity as identities
from wald.storage import segment as segments
from wald.storage.identity import Identity
from wald.storage.ids import IdStore
from wald.storage.inspect import damages_of
from wald.storage.prepare import Place, Pool, Preallocator, quietly
from wald.storage.recover import Found
from wald.storage.segment import Draft, SeenBlock, SegmentWriter
from wald.storage.watched import Watched

_LOSSES_TOLD_MAX = 20


@dataclass(frozen=True, slots=True)
class LogOptions:
    """How large segments are, and how many are kept.

    Attributes:
        segment_bytes: of a new segment; a multiple of the alignment.
        retain_after_delivery_s: how long delivered segments stay, ...
        retain_after_delivery_bytes: ... and how many bytes of them; until either bound.
        pool_max_segments: how many retired files are kept to be used again.
        reserve_bytes: what a new segment leaves free on the disk, for ledger and restarts.
        dedup: how long the dedup ids of streams are remembered, by the name of a stream.
        snapshot_every_sections: after how many sections the state is written again, so that a
            start need not apply them one by one.
    """

    segment_bytes: int = limits.SEGMENT_BYTES
    retain_after_delivery_s: float = limits.RETAIN_AFTER_DELIVERY_S
    retain_after_delivery_bytes: int = limits.RETAIN_AFTER_DELIVERY_BYTES
    pool_max_segments: int = limits.POOL_MAX_SEGMENTS
    reserve_bytes: int = limits.DISK_RESERVE_BYTES
    snapshot_every_sections: int = limits.SNAPSHOT_EVERY_SECTIONS
    dedup: Mapping[str, DedupPolicy] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What a start found and did, for people.

    Attributes:
        clean: the stop before was clean.
        cases: labels of the recovery table.
        losses: LSNs below the frontier that are gone; where nobody knows which, ``last_lsn`` is
            below ``first_lsn``.
        cut_lsns: first and last LSN that a torn, never acknowledged tail named.
        jumped_to: the next LSN, if some were skipped on purpose.
        moved: the directory is a copy, or was moved: an alarm.
        notes: what else a person should know.
    """

    clean: bool
    cases: tuple[str, ...]
    losses: tuple[LostRange, ...]
    cut_lsns: tuple[Lsn, Lsn] | None
    jumped_to: Lsn | None
    moved: bool
    notes: tuple[str, ...]

    def alarms(self) -> tuple[str, ...]:
        """Return what nobody may overlook, a line each: every loss, and a directory that moved."""
        lines = [_loss_line(loss) for loss in self.losses[:_LOSSES_TOLD_MAX]]
        more = len(self.losses) - len(lines)
        if more:
            lines.append(f"{more:,} more losses: see the loss report")
        if self.moved:
            lines.append(
                "the data directory is a copy or was moved: the log goes on with LSNs far above;"
                " where it was copied from must not go on too"
            )
        return tuple(lines)


def _loss_line(loss: LostRange) -> str:
    place = f"{segments.segment_name(loss.segment)} offset {loss.offset_bytes:,}: {loss.reason}"
    if loss.last_lsn < loss.first_lsn:
        return f"records are lost, and nothing says which: {place}"
    return f"LSN {loss.first_lsn} .. {loss.last_lsn} are lost: {place}"


@dataclass(slots=True)
class Started:
    """What a log goes on with."""

    place: Place
    preallocator: Preallocator
    state: LogState
    writer: SegmentWriter
    frontier: Frontier
    next_lsn: Lsn
    finished: list[FinishedSegment]
    keep_all: bool  # which routes need what is there is not known
    ids: IdStore
    report: RecoveryReport


def start(
    fs: FileSystem, clock: Clock, chance: Chance, data_dir: str, options: LogOptions
) -> Started:
    """Recover the log and take the fresh path. The caller holds ``log.lock``.

    Raises:
        DataDirectoryForeign, FormatNewer, FormatDamaged: it cannot be used as it is.
        DiskFull: there is no room even for a small segment.
        OSError: as the system does.
    """
    identity, damaged = _identity(fs, chance, data_dir)
    moved = damaged or (identity.segment > 0 and not _is_at_home(fs, data_dir, identity))
    place = Place(
        fs,
        clock,
        chance,
        data_dir,
        identity.log_id,
        segments.alignment_for(fs, f"{data_dir}/{segments.LOG_DIRECTORY}"),
        options.segment_bytes,
        options.reserve_bytes,
    )
    found = _read_log(place, identity, options, moved=moved)
    plan = decide(found.facts)
    notes = list(_notes(found, damaged=damaged))
    notes += _report_losses(place, plan, found)
    pool = Pool(place, options.pool_max_segments)
    pool.load()
    preallocator = Preallocator(place, pool)
    state = _state(found, plan)
    ids = _ids(place, options, found, plan)
    writer, next_lsn = _go_on(place, plan, found, state, preallocator)
    _take_ids(ids, found)  # of the last group
    notes += ids.notes
    finished = _finished(found, plan)
    _tidy(place, plan, preallocator, finished)
    preallocator.want(writer.number + 1)
    quietly(partial(preallocator.zero_tail, writer))
    return Started(
        place,
        preallocator,
        state,
        writer,
        Frontier(writer.number, writer.end_bytes, writer.last_lsn),
        next_lsn,
        finished,
        _routes_unknown(found),
        ids,
        _report(plan, tuple(notes)),
    )


def _read_log(place: Place, identity: Identity, options: LogOptions, *, moved: bool) -> Found:
    """Read the log, several times where the disk does not give a part of it.

    What a start does not find is lost for good; a disk that was away for a moment gives it later.
    """
    tries = 1
    while True:
        seen = Watched(place.fs)
        found = recover.read_log(
            seen.files(), place.data_dir, identity, moved=moved, compares=options.dedup
        )
        if not seen.failed or tries == limits.START_READ_TRIES_COUNT:
            return found
        tries += 1
        place.clock.sleep(limits.START_READ_AGAIN_S)


# --- identity -----------------------------------------------------------------------------------


def _identity(fs: FileSystem, chance: Chance, data_dir: str) -> tuple[Identity, bool]:
    """Return the identity, made before any segment; True if it had to be taken from headers."""
    try:
        found = identities.read(fs, data_dir)
    except FormatDamaged:
        return _identity_from_headers(fs, data_dir), True
    if found is None:
        found = Identity(chance.randbytes(identities.LOG_ID_BYTES), 0, "", 0)
        identities.write(fs, data_dir, found)
    return found, False


def _identity_from_headers(fs: FileSystem, data_dir: str) -> Identity:
    """Take the log id from the newest header that can be read.

    Raises:
        FormatDamaged: there is none.
    """
    log_dir = f"{data_dir}/{segments.LOG_DIRECTORY}"
    for name in reversed(fs.list_directory(log_dir)):
        if segments.segment_number(name) is not None:
            page = recover.with_file(fs, f"{log_dir}/{name}", segments.read_header)
            if page.header is not None:
                return Identity(page.header.log_id, 0, "", 0)
    msg = f"{data_dir}/{identities.NAME} is damaged, and no segment says whose log this is"
    raise FormatDamaged(msg, hint="bring the file back from a backup", path=data_dir)


def _is_at_home(fs: FileSystem, data_dir: str, identity: Identity) -> bool:
    found = fs.stat(data_dir)
    inode = 0 if found is None else found.inode
    return (identity.machine, identity.inode) == (fs.machine_id(), inode)


# --- the plan, step by step ---------------------------------------------------------------------


def _state(found: Found, plan: RecoveryPlan) -> LogState:
    state = found.rebuilt.state
    oldest = min((item.number for item in found.present if item.used), default=0)
    state.lost_files |= {loss.segment for loss in found.facts.lost_files}
    state.lost_files = {number for number in state.lost_files if number >= oldest}
    if plan.forget_sessions:
        state.forget_all_sessions()
    if plan.skip_ids:
        state.next_stream_id += limits.CATALOGUE_JUMP
        state.next_route_id += limits.CATALOGUE_JUMP
    return state


def _ids(place: Place, options: LogOptions, found: Found, plan: RecoveryPlan) -> IdStore:
    """Return the dedup ids of all that stands before the fresh segment, durable by themselves."""
    ids = IdStore(place.fs, place.data_dir, IdTable(options.dedup), place.alignment)
    ids.load(found.rebuilt.state, found.rebuilt.ids)
    _take_ids(ids, found)
    if plan.losses:
        ids.forget(plan.losses)
    ids.persist()
    return ids


def _take_ids(ids: IdStore, found: Found) -> None:
    """Take what was read in groups: of what an earlier start read, nobody knows if it is durable.

    So it is written again, also where the files show it already.
    """
    state = found.rebuilt.state
    for new, time_ns in found.rebuilt.ids:
        if ids.table.of(new.stream, state.streams[new.stream].name) is not None:
            ids.add([new], time_ns)
    found.rebuilt.ids.clear()


def _go_on(
    place: Place, plan: RecoveryPlan, found: Found, state: LogState, preallocator: Preallocator
) -> tuple[SegmentWriter, Lsn]:
    """Take the fresh path; the last group, if copied, is durable and applied on return."""
    held = found.rebuilt.held if plan.copy else None
    group = None if held is None else _draft_of(held)
    # not the copied group's: LSNs that were skipped stay so, whatever happens before the next one
    header = fresh.fresh_header(place, plan.number, plan.predecessor, plan.next_lsn)
    writer = fresh.make_fresh(place, header, state.snapshot(), group, preallocator.release_one)
    if found.rebuilt.held is not None:
        found.rebuilt.settle()
        if plan.forget_sessions:
            state.forget_all_sessions()
    return writer, plan.next_lsn


def _draft_of(block: SeenBlock) -> Draft:
    header: BlockHeader = block.header
    assert block.payload is not None
    return Draft(
        header.kind,
        block.payload,
        header.sections,
        header.commit_time_ns,
        header.first_lsn,
        header.records,
        header.flags,
    )


def _finished(found: Found, plan: RecoveryPlan) -> list[FinishedSegment]:
    """Return the segments before the fresh one, oldest first, with the LSNs they hold.

    Where a header cannot be read and the blocks were not, nobody knows where its segment begins:
    anywhere from 0 on, so that it is not taken for empty, nor the one before for drained.
    """
    scanned = {scan.number: scan.before_lsn for scan in found.facts.scans}
    finished: list[FinishedSegment] = []
    last = plan.predecessor.last_lsn
    for item in reversed(found.present):
        if not item.used:
            continue
        before = item.header.pred_last_lsn if item.header else scanned.get(item.number)
        finished.append(FinishedSegment(item.number, before or 0, last, item.size_bytes))
        last = last if before is None else before
    return finished[::-1]


def _tidy(
    place: Place, plan: RecoveryPlan, preallocator: Preallocator, finished: list[FinishedSegment]
) -> None:
    """Give back what is not needed, now that the fresh segment is durable."""
    for number in plan.unused:
        # what is kept in quarantine must not be written over
        quietly(partial(preallocator.retire, number, keep=number not in plan.quarantine))
    superseded = plan.superseded
    if superseded is not None:
        quietly(partial(preallocator.retire, superseded, keep=True))
        finished[:] = [item for item in finished if item.number != superseded]
    elif plan.truncate_bytes is not None:
        fresh.cut_tail(place, plan.predecessor.segment, plan.truncate_bytes)


# --- reports ------------------------------------------------------------------------------------


def _report_losses(place: Place, plan: RecoveryPlan, found: Found) -> list[str]:
    """Keep the damaged segments and write the loss report; a start does not fail for want of it."""
    notes: list[str] = []
    fs = place.fs
    quarantine = f"{place.data_dir}/{segments.QUARANTINE_DIRECTORY}"
    for number in plan.quarantine:
        target = f"{quarantine}/{segments.segment_name(number)}"
        try:
            if fs.stat(place.path(number)) is not None and fs.stat(target) is None:
                fs.link(place.path(number), target)
                fs.sync_directory(quarantine)
        except OSError as error:
            notes.append(f"segment {number} could not be quarantined: {error.strerror}")
    if plan.losses:
        said = {
            "log_id": place.log_id.hex(),
            "time_ns": place.clock.wall_ns(),
            "cases": [case.label for case in plan.cases],
            "lost": [asdict(loss) for loss in plan.losses],
            "damages": list(_damages(place, plan, found)),
            "next_lsn": plan.next_lsn,
        }
        data = json.dumps(said, indent=2).encode() + b"\n"
        reports = f"{place.data_dir}/{segments.REPORTS_DIRECTORY}"
        name = f"loss-{plan.number:010d}.json"
        try:
            identities.write_whole_file(fs, reports, name, data)
        except OSError as error:
            notes.append(f"the loss report could not be written: {error.strerror}")
        else:
            notes.append(f"loss report: {reports}/{name}")
    return notes


def _damages(place: Place, plan: RecoveryPlan, found: Found) -> Iterator[dict[str, object]]:
    """Yield whose records the losses held: streams, producers, bytes, as far as that is left."""
    state = copy.deepcopy(found.rebuilt.state)
    for item in found.present:
        if item.number not in plan.quarantine:
            continue
        try:
            damages = damages_of(place.fs, place.data_dir, item, place.log_id, state)
        except (OSError, WaldError):
            continue  # it is gone, or the disk does not give it: the report says so above
        yield from (asdict(damage) for damage in damages)


def _routes_unknown(found: Found) -> bool:
    """Tell whether there may be routes that nothing tells of, and records for them."""
    rebuilt = found.rebuilt
    return bool(rebuilt.scans) and not rebuilt.whole and rebuilt.known is None


def _notes(found: Found, *, damaged: bool) -> list[str]:
    notes = []
    if damaged:
        notes.append("the identity file was damaged; the log id was taken from a segment header")
    notes += [
        f"the header of segment {item.number} cannot be read"
        for item in found.present
        if item.header is None
    ]
    if found.rebuilt.known is not None:
        notes.append("streams and routes were taken from the figures in ingest.page")
    if _routes_unknown(found):
        notes.append("not all routes are known any more: no segment retires until the next start")
    if found.foreign_names:
        notes.append(
            f"{len(found.foreign_names)} strange names in the log directory are left alone"
        )
    return notes


def _report(plan: RecoveryPlan, notes: tuple[str, ...]) -> RecoveryReport:
    cases = tuple(case.label for case in plan.cases)
    return RecoveryReport(
        clean=plan.clean,
        cases=cases,
        losses=plan.losses,
        cut_lsns=plan.cut,
        jumped_to=plan.next_lsn if plan.jumped else None,
        moved="moved" in cases,
        notes=notes,
    )
