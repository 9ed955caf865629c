"""Looking at a log without changing it: what ``wald log inspect`` and ``wald log verify`` say.

No lock is taken, so that it works beside a running daemon: what is being written lies above the
hint that is read first, and a segment that retires meanwhile is left out.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from wald import limits
from wald.core import frame, recovery
from wald.core.chain import Chain, Hole, SegmentScan
from wald.core.frame import (
    BlockHeader,
    BlockKind,
    Section,
    SectionKind,
    SegmentHeader,
    SegmentKind,
)
from wald.core.state import LogState, RouteState
from wald.errors import DataDirectoryUnusable, FormatDamaged
from wald.model import Lsn, StreamId
from wald.ports import File, FileSystem
from wald.storage import identity as identities
from wald.storage import recover
from wald.storage import segment as segments
from wald.storage.recover import FoundSegment
from wald.storage.segment import BlockReader, SeenBlock


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that should be there and is not, or cannot be read.

    Attributes:
        file: the file's name.
        segment: its number; 0 for what is no segment.
        offset_bytes: where.
        reason: what does not match.
        first_lsn: the first LSN that is gone; none if ``last_lsn`` is below it.
        last_lsn: the last one.
        records: how many that are.
        streams: the streams whose records they are, as far as anything still says so.
        producers: the names of their producers, or the ids of their sessions, likewise.
        size_bytes: how many bytes of the file cannot be read; 0 where nobody knows.
        missing: the file is not there.
        set_aside: a start has found it, kept the file in the quarantine and reported the loss.
    """

    file: str
    segment: int
    offset_bytes: int
    reason: str
    first_lsn: Lsn
    last_lsn: Lsn
    records: int
    streams: tuple[str, ...] = ()
    producers: tuple[str, ...] = ()
    size_bytes: int = 0
    missing: bool = False
    set_aside: bool = False


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """One segment: what it is and holds. LSNs are 0 where it holds no records."""

    file: str
    number: int
    kind: str
    size_bytes: int
    end_bytes: int
    first_lsn: Lsn
    last_lsn: Lsn
    groups: int
    records: int
    ends_with: str
    streams: dict[str, int]


@dataclass(frozen=True, slots=True)
class LogReport:
    """A log as it stands on disk.

    Attributes:
        log_id: as hexadecimal text; empty where the identity file cannot be read.
        segments: those in use, oldest first.
        unused: prepared ones, and retired ones waiting in the pool.
        end_lsn: the last LSN that can be read.
        hint_lsn: the highest that a page names.
        streams: names by durable id.
        routes: those that are born and not dead.
        torn_bytes: behind the end of the last segment a torn block begins here; 0 if none does.
        damages: what is wrong; empty if all is well.
    """

    log_id: str
    segments: tuple[SegmentReport, ...]
    unused: int
    end_lsn: Lsn
    hint_lsn: Lsn
    streams: dict[StreamId, str]
    routes: tuple[RouteState, ...]
    torn_bytes: int
    damages: tuple[Damage, ...]

    @property
    def exit_code(self) -> int:
        """0 if nothing is damaged, else 1."""
        return 1 if self.damages else 0


@dataclass(slots=True)
class _Look:
    """What a walk through the segments gathers."""

    state: LogState = field(default_factory=LogState)
    segments: list[SegmentReport] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)
    last: SegmentScan | None = None

    def names(self, ids: Sequence[StreamId]) -> tuple[str, ...]:
        """Name streams by their ids, as far as they are known."""
        known = (self.state.streams.get(stream_id) for stream_id in dict.fromkeys(ids))
        return tuple(stream.name for stream in known if stream is not None)

    def producers(self, sessions: Sequence[int]) -> tuple[str, ...]:
        """Name sessions by their producers, or by their ids."""
        known = ((each, self.state.sessions.get(each)) for each in dict.fromkeys(sessions))
        return tuple(state.name if state and state.name else f"#{each}" for each, state in known)


def inspect_log(fs: FileSystem, data_dir: str) -> LogReport:
    """Read a whole log and say what it holds and what is damaged; nothing is changed.

    Raises:
        DataDirectoryForeign: there is no log, or a segment of another one.
        DataDirectoryUnusable: it cannot be read.
        FormatNewer: a newer release wrote it.
    """
    try:
        return _inspect(fs, data_dir)
    except OSError as error:
        msg = f"cannot read the data directory {data_dir}: {error.strerror or error}"
        raise DataDirectoryUnusable(
            msg, hint="it is its daemon's: run the command as that user or root", path=data_dir
        ) from error


def _inspect(fs: FileSystem, data_dir: str) -> LogReport:
    look = _Look()
    hints = recover.read_hints(fs, data_dir)  # before the files: what is written later is above
    identity = _identity(fs, data_dir, look)
    found = _find(fs, data_dir, identity)
    log_id = identity.log_id if identity is not None else _log_id_of(found)
    lineage = recover.lineage_of(found)
    for index, item in enumerate(lineage):
        _walk(fs, data_dir, log_id, lineage, index, look)
        look.damages += _damage_before(lineage, index, item)
    look.damages += _unreadable(found, lineage)
    made = identity.segment if identity is not None else 0
    look.damages += _damage_behind(look.last, lineage, found, made=made, hint_lsn=hints.lsn)
    pool = f"{data_dir}/{segments.POOL_DIRECTORY}"
    pooled = len(fs.list_directory(pool)) if fs.stat(pool) is not None else 0
    torn = look.last.torn[0].offset if look.last is not None and look.last.torn else 0
    return LogReport(
        log_id.hex(),
        tuple(look.segments),
        pooled + sum(not item.used for item in found),
        look.last.last_lsn if look.last is not None else 0,
        hints.lsn,
        {stream.stream_id: stream.name for stream in look.state.streams.values()},
        tuple(look.state.routes.values()),
        torn,
        _with_what_a_start_did(fs, data_dir, look.damages),
    )


def _with_what_a_start_did(
    fs: FileSystem, data_dir: str, damages: Sequence[Damage]
) -> tuple[Damage, ...]:
    quarantine = f"{data_dir}/{segments.QUARANTINE_DIRECTORY}"
    kept = set(fs.list_directory(quarantine)) if fs.stat(quarantine) is not None else set()
    told = [replace(damage, set_aside=damage.file in kept) for damage in damages]
    return tuple(sorted(told, key=lambda item: (item.segment, item.offset_bytes)))


def _identity(fs: FileSystem, data_dir: str, look: _Look) -> identities.Identity | None:
    try:
        return identities.required(fs, data_dir)
    except FormatDamaged as error:
        look.damages.append(Damage(identities.NAME, 0, 0, error.message, 1, 0, 0))
        return None


def _find(
    fs: FileSystem, data_dir: str, identity: identities.Identity | None
) -> list[FoundSegment]:
    log_dir = f"{data_dir}/{segments.LOG_DIRECTORY}"
    if fs.stat(log_dir) is None:
        return []
    numbers = [n for n in map(segments.segment_number, fs.list_directory(log_dir)) if n is not None]
    log_id = None if identity is None else identity.log_id
    found: list[FoundSegment] = []
    for number in sorted(numbers):
        try:
            if log_id is None:
                path = segments.segment_path(data_dir, number)
                header = recover.with_file(fs, path, segments.read_header).header
                log_id = None if header is None else header.log_id
            if log_id is not None:
                made = limits.LSN_MAX if identity is None else identity.segment
                found += recover.find_segments(fs, data_dir, [number], log_id, newest_made=made)
        except FileNotFoundError:
            continue  # retired meanwhile
    return found


def _log_id_of(found: Sequence[FoundSegment]) -> bytes:
    headers = [item.header for item in found if item.header is not None]
    return headers[0].log_id if headers else b""


def _walk(
    fs: FileSystem,
    data_dir: str,
    log_id: bytes,
    lineage: Sequence[FoundSegment],
    index: int,
    look: _Look,
) -> None:
    """Read one segment and report it."""
    item = lineage[index]

    def read(file: File) -> None:
        limit = recover.limit_of(lineage, index)
        blocks = BlockReader(file, item.number, log_id, item.header, limit)
        _report_segment(file, item, blocks, look)

    try:
        recover.with_file(fs, segments.segment_path(data_dir, item.number), read)
    except FileNotFoundError:
        return  # retired meanwhile


def _report_segment(file: File, item: FoundSegment, blocks: BlockReader, look: _Look) -> None:
    chain = Chain(item.number, item.header, item.header_crc)
    counts: Counter[StreamId] = Counter()
    torn: list[BlockHeader] = []
    unreadable: list[BlockHeader] = []
    first_lsn = 0
    for block in blocks:
        if block.payload is None:
            torn.append(block.header)
            chain.add_torn(block.header)
            continue
        chain.add(block.header)
        if block.header.records and not first_lsn:
            first_lsn = block.header.first_lsn
        if not _take_in(block, look.state, counts):
            unreadable.append(block.header)
    scan = chain.scan()
    look.last = scan
    name = segments.segment_name(item.number)
    look.segments.append(
        SegmentReport(
            name,
            item.number,
            _kind_of(item.header),
            item.size_bytes,
            scan.end_bytes,
            first_lsn,
            scan.last_lsn if scan.records else 0,
            scan.groups,
            scan.records,
            "" if scan.last is None else scan.last.kind.name.lower().replace("_", "-"),
            {
                stream: counts[stream_id]
                for stream_id in counts
                for stream in look.names([stream_id]) or (f"#{stream_id}",)
            },
        )
    )
    for hole in scan.holes:
        look.damages.append(_damage_of(hole, torn, file, item, look))
    for header in unreadable:
        reason = "the sections of a block cannot be read"
        look.damages.append(Damage(name, item.number, header.offset, reason, 1, 0, 0))
    if item.header is None:
        reason = "segment header checksum does not match"
        look.damages.append(Damage(name, item.number, 0, reason, 1, 0, 0))


def _take_in(block: SeenBlock, state: LogState, counts: Counter[StreamId]) -> bool:
    """Learn names and count records; False if the sections cannot be read."""
    try:
        for section in block.sections():
            if section.kind is SectionKind.APPEND:
                counts[section.stream] += section.records
            else:
                state.apply(section, block.header.first_lsn, block.header.commit_time_ns)
    except FormatDamaged:
        return False
    return True


def _damage_of(
    hole: Hole, torn: Sequence[BlockHeader], file: File, item: FoundSegment, look: _Look
) -> Damage:
    """Say of a hole what does not match, and whose records it held, if a header is left."""
    inside = [
        header
        for header in torn
        if hole.first_lsn <= header.first_lsn
        and header.last_lsn <= hole.last_lsn
        and header.records
    ]
    sections: list[Section] = []
    for header in inside:
        payload = segments.read_around(
            file, header.payload_length, header.offset + frame.BLOCK_HEADER_BYTES
        )
        sections += _sections_in(payload, header)
    records = sum(header.records for header in inside)
    whole = records == hole.last_lsn - hole.first_lsn + 1
    return Damage(
        segments.segment_name(item.number),
        item.number,
        hole.offset_bytes,
        "payload checksum does not match" if whole and inside else "block cannot be read",
        hole.first_lsn,
        hole.last_lsn,
        max(0, hole.last_lsn - hole.first_lsn + 1),
        look.names([section.stream for section in sections]),
        look.producers([section.session for section in sections]),
        sum(frame.BLOCK_HEADER_BYTES + header.payload_length for header in inside),
    )


def _sections_in(payload: bytes, header: BlockHeader) -> list[Section]:
    """Return the requests that a damaged payload tells of, as far as it can be unpacked."""
    found: list[Section] = []
    try:
        for section in frame.decode_sections(payload, header.sections):
            found += [section] if section.kind is SectionKind.APPEND else []
    except FormatDamaged:
        return found  # what came before the damage
    return found


def damages_of(
    fs: FileSystem, data_dir: str, item: FoundSegment, log_id: bytes, state: LogState
) -> tuple[Damage, ...]:
    """Return what is damaged inside one segment: for the report of a start that found it so.

    Args:
        fs: the door to the files.
        data_dir: the data directory.
        item: the segment.
        log_id: 16 bytes.
        state: what gives streams and sessions their names; it is changed.
    """
    look = _Look(state)
    recover.with_file(
        fs,
        segments.segment_path(data_dir, item.number),
        lambda file: _report_segment(
            file, item, BlockReader(file, item.number, log_id, item.header), look
        ),
    )
    return tuple(look.damages)


def _damage_before(lineage: Sequence[FoundSegment], index: int, item: FoundSegment) -> list[Damage]:
    """Report a segment that should stand between this one and the one before it."""
    if index == 0 or item.header is None:
        return []
    before = lineage[index - 1]
    named = item.header.pred_segment
    if named == before.number:
        return []
    name = segments.segment_name(named)
    return [Damage(name, named, 0, "the segment is missing", 1, 0, 0, missing=True)]


def _unreadable(found: Sequence[FoundSegment], lineage: Sequence[FoundSegment]) -> list[Damage]:
    """Report files of which nothing can be read, older than the newest in use."""
    newest = lineage[-1].number if lineage else 0
    reason = "neither its header nor any block can be read"
    return [
        Damage(segments.segment_name(item.number), item.number, 0, reason, 1, 0, 0)
        for item in found
        if not item.used and item.header is None and item.number < newest
    ]


def _damage_behind(
    last: SegmentScan | None,
    lineage: Sequence[FoundSegment],
    found: Sequence[FoundSegment],
    *,
    made: int,
    hint_lsn: Lsn,
) -> list[Damage]:
    """Report what should stand behind the last block that can be read."""
    end_lsn = last.last_lsn if last is not None else 0
    newest = lineage[-1].number if lineage else 0
    present = {item.number for item in found}
    number, offset = newest, last.end_bytes if last is not None else 0
    missing = False
    sealed = last is not None and last.last is not None and last.last.kind is BlockKind.SEAL
    if made > newest:
        number, offset, reason = made, 0, "the segment that identity names is missing"
        missing = True
    elif (
        sealed
        and last is not None
        and last.last is not None
        and (last.last.next_segment not in present)
    ):
        number, offset = last.last.next_segment, 0
        reason = "the segment that a seal names is missing"
        missing = True
    elif hint_lsn > end_lsn:
        reason = recovery.Case.HINT_AHEAD.found
    else:
        return []
    lost = max(0, hint_lsn - end_lsn)
    return [
        Damage(
            segments.segment_name(number),
            number,
            offset,
            reason,
            end_lsn + 1,
            max(hint_lsn, end_lsn),
            lost,
            missing=missing,
        )
    ]


def _kind_of(header: SegmentHeader | None) -> str:
    return "unreadable" if header is None else SegmentKind(header.kind).name.lower()
