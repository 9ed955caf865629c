"""Reading a log at a start: headers, the blocks of the last segment, the state, the hints.

What is found goes to ``wald.core.recovery.decide``; this module only reads, and deletes
temporary files.
"""

import errno
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from wald import limits
from wald.core.chain import GROUPS, Chain, SegmentScan
from wald.core.frame import (
    BlockFlag,
    BlockKind,
    Section,
    SectionKind,
    SegmentHeader,
    SegmentKind,
)
from wald.core.ids import NewIds, ids_in
from wald.core.recovery import Case, Facts
from wald.core.state import LogState
from wald.errors import DataDirectoryForeign, FormatDamaged
from wald.model import Frontier, LostRange, Lsn
from wald.ports import File, FileSystem
from wald.storage import segment as segments
from wald.storage.identity import Identity
from wald.storage.progress import TwoSlotPage
from wald.storage.refill import Catalogue, read_catalogue
from wald.storage.segment import BlockReader, SeenBlock

INGEST_PAGE = "ingest.page"
PROGRESS_PAGE = "progress"
PROGRESS_SLOT_BYTES = limits.PROGRESS_SLOT_BYTES

_SAYS_NOTHING = frozenset({errno.ENOENT, errno.EIO})  # gone, or not to be read
NO_FRONTIER = Frontier(0, 0, 0)

_T = TypeVar("_T")


class FoundSegment(NamedTuple):
    """A file in the log directory."""

    number: int
    header: SegmentHeader | None
    header_crc: int
    size_bytes: int
    used: bool  # it holds, or may hold, something of the log


@dataclass(slots=True)
class Rebuilt:
    """The state, read from the newest whole snapshot and every block behind it.

    ``held`` is the last group: the state is the one before it, as a snapshot in front of its copy
    must be. ``known`` is what the state was begun with where no snapshot tells of all streams and
    routes. ``ids`` are those in the groups behind the snapshot, with their commit times, of the
    streams in ``compares``.
    """

    state: LogState = field(default_factory=LogState)
    scans: list[SegmentScan] = field(default_factory=list)
    held: SeenBlock | None = None
    whole: bool = True
    known: Catalogue | None = None
    compares: Collection[str] = ()
    ids: list[tuple[NewIds, int]] = field(default_factory=list)

    def begin_with(self, known: Catalogue) -> None:
        """Begin anew with streams and routes that were told elsewhere."""
        before, self.state = self.state, known.state
        before.forget_all_sessions()
        self.state.lost_files = before.lost_files
        self.state.lost_names = before.lost_names
        self.state.next_stream_id = max(self.state.next_stream_id, before.next_stream_id)
        self.state.next_route_id = max(self.state.next_route_id, before.next_route_id)
        self.held = None
        self.known = known

    def take_in(self, block: SeenBlock) -> None:
        """Apply a group to the state, once; what cannot be read is noted."""
        if self.known is not None and self.known.covers(block.header):
            return
        lsn = block.header.first_lsn
        try:
            for section in block.sections():
                try:
                    self.state.apply(section, lsn, block.header.commit_time_ns)
                    self._take_ids(section, lsn, block.header.commit_time_ns)
                except FormatDamaged:
                    self.whole = False
                    self.state.next_stream_id = max(self.state.next_stream_id, section.stream + 1)
                lsn += section.records
        except FormatDamaged:
            self.whole = False

    def _take_ids(self, section: Section, first_lsn: Lsn, time_ns: int) -> None:
        if not self.compares or section.kind is not SectionKind.APPEND:
            return
        if self.state.streams[section.stream].name in self.compares:
            new = ids_in(section, first_lsn)
            if new is not None:
                self.ids.append((new, time_ns))

    def take_out_held(self) -> None:
        """Let the state be the one before the last group, if it holds it already."""
        known, held = self.known, self.held
        if known is None or held is None or not known.covers(held.header):
            return
        self.known = known._replace(frontier=NO_FRONTIER)  # it is applied later
        for section in held.sections():
            stream = self.state.streams.get(section.stream)
            if section.kind is SectionKind.APPEND and stream is not None:
                stream.records -= section.records
                stream.bytes -= len(section.bodies)

    def settle(self) -> None:
        """Apply the last group: it is durable, or is going to be copied."""
        held, self.held = self.held, None
        if held is not None:
            self.take_in(held)


class Hints(NamedTuple):
    """The highest LSN and segment that any page names."""

    lsn: Lsn
    segment: int


@dataclass(frozen=True, slots=True)
class Found:
    """All that a start reads."""

    facts: Facts
    rebuilt: Rebuilt
    present: tuple[FoundSegment, ...]
    foreign_names: tuple[str, ...]


def read_log(
    fs: FileSystem,
    data_dir: str,
    identity: Identity,
    *,
    moved: bool,
    compares: Collection[str] = (),
) -> Found:
    """Read all that a decision needs.

    Args:
        fs: the file system.
        data_dir: the data directory.
        identity: of the log.
        moved: whether the directory is not where it was.
        compares: the names of the streams whose dedup ids are compared.

    Raises:
        FormatNewer: a segment of a newer format.
        DataDirectoryForeign: a segment of another log.
        OSError: as the system does.
    """
    names = clean_names(fs, data_dir)
    numbers = [n for n in map(segments.segment_number, names) if n is not None]
    found = find_segments(
        fs, data_dir, sorted(numbers), identity.log_id, newest_made=identity.segment
    )
    lineage = lineage_of(found)
    rebuilt = rebuild(fs, data_dir, identity.log_id, lineage, compares)
    hints = read_hints(fs, data_dir)
    lost_files = [
        loss
        for loss in find_lost_files(fs, data_dir, identity.log_id, lineage, rebuilt)
        if loss.segment not in rebuilt.state.lost_files
    ]
    newest = lineage[-1].number if lineage else 0
    facts = Facts(
        newest_made=identity.segment,
        moved=moved,
        highest_number=max(
            identity.segment, hints.segment, _highest_name(fs, data_dir), *numbers, 0
        ),
        present=tuple(numbers),
        unused=tuple(item.number for item in found if not item.used or item.number > newest),
        scans=tuple(rebuilt.scans),
        newest_snapshot=bool(rebuilt.scans) and rebuilt.scans[-1].snapshot,
        state_whole=rebuilt.whole,
        hint_lsn=hints.lsn,
        lost_files=tuple(lost_files),
    )
    strange = [n for n in names if segments.segment_number(n) is None and n != "pool"]
    return Found(facts, rebuilt, tuple(found), tuple(strange))


def clean_names(fs: FileSystem, data_dir: str) -> list[str]:
    """Delete temporary files and return the names in the log directory."""
    log_dir = f"{data_dir}/{segments.LOG_DIRECTORY}"
    names = []
    for name in fs.list_directory(log_dir):
        if name.endswith(segments.TEMPORARY_SUFFIX):
            fs.unlink(f"{log_dir}/{name}")
        else:
            names.append(name)
    return names


def _highest_name(fs: FileSystem, data_dir: str) -> int:
    """Return the highest number on a file outside the log directory: none is used twice."""
    highest = 0
    for directory in (segments.POOL_DIRECTORY, segments.QUARANTINE_DIRECTORY):
        for name in fs.list_directory(f"{data_dir}/{directory}"):
            highest = max(highest, segments.segment_number(name) or 0)
    return highest


def with_file(fs: FileSystem, path: str, use: Callable[[File], _T]) -> _T:
    """Open a file to read, use it, close it."""
    file = fs.open(path)
    try:
        return use(file)
    finally:
        file.close()


def find_segments(
    fs: FileSystem,
    data_dir: str,
    numbers: Sequence[int],
    log_id: bytes,
    *,
    newest_made: int = limits.LSN_MAX,
) -> list[FoundSegment]:
    """Read the header of each segment, in order.

    A prepared one is unused, and so is one with an unreadable header and no whole block behind it
    that is newer than all others: a torn write of a roll. An older one of that kind is damage,
    found by the header behind it.

    A rolled segment, which is newer than ``newest_made`` of a fresh path, is unused too if nothing
    but a snapshot can be read of it: no group of it was durable, or its header would be.
    """
    found: list[FoundSegment] = []
    for number in numbers:
        path = segments.segment_path(data_dir, number)

        def look(file: File, number: int = number) -> FoundSegment:
            page = segments.read_header(file)
            header = page.header
            if header is not None:
                used = header.kind is not SegmentKind.PREP
            else:
                blocks = BlockReader(file, number, log_id, None)
                used = any(
                    block.payload is not None
                    and (number <= newest_made or block.header.kind is not BlockKind.SNAPSHOT)
                    for block in blocks
                )
            return FoundSegment(number, header, page.crc, file.size(), used)

        item = with_file(fs, path, look)
        header = item.header
        if header is not None and (header.log_id != log_id or header.segment != number):
            msg = f"{path} is segment {header.segment} of log {header.log_id.hex()}"
            hint = f"this is log {log_id.hex()}: move the file away, or give it its own name back"
            raise DataDirectoryForeign(msg, hint=hint, path=path)
        found.append(item)
    return found


def lineage_of(found: Sequence[FoundSegment]) -> list[FoundSegment]:
    """Return the used segments that the newest one stands on, in order.

    Each header names its predecessor. One that nobody names was given up after a failed roll:
    what it holds was written again in the segment that took its place.
    """
    used = {item.number: item for item in found if item.used}
    if not used:
        return []
    lineage = [used[max(used)]]
    while True:
        head = lineage[-1]
        named = head.header.pred_segment if head.header is not None else head.number - 1
        # one that is named and gone was retired, or is lost: what stood before it is older
        before = max((number for number in used if number <= named), default=0)
        if before == 0:
            return lineage[::-1]
        lineage.append(used[before])


def limit_of(lineage: Sequence[FoundSegment], index: int) -> int | None:
    """Return where a finished segment ends: its successor's header says it, if it can be read."""
    if index + 1 >= len(lineage):
        return None
    after = lineage[index + 1].header
    if after is None or after.pred_segment != lineage[index].number:
        return None
    return after.pred_end


def rebuild(
    fs: FileSystem,
    data_dir: str,
    log_id: bytes,
    lineage: Sequence[FoundSegment],
    compares: Collection[str] = (),
) -> Rebuilt:
    """Rebuild the state and fold the segments that it needs."""
    rebuilt = Rebuilt(compares=compares)
    start = len(lineage)
    while start and not (rebuilt.scans and rebuilt.scans[0].snapshot):
        start -= 1
        rebuilt.scans.insert(0, _scan(fs, data_dir, log_id, lineage, start))
    begin = rebuilt.scans[0].snapshot_at if rebuilt.scans else None
    rebuilt.whole = begin is not None
    _apply_all(fs, data_dir, log_id, lineage, rebuilt, start)
    if not rebuilt.whole and lineage:
        known = read_catalogue(fs, f"{data_dir}/{INGEST_PAGE}", log_id)
        # (what is older than the snapshot may name routes that have died since)
        if known is not None and known.frontier[:2] > (lineage[start].number, begin or 0):
            rebuilt.begin_with(known)
            _apply_all(fs, data_dir, log_id, lineage, rebuilt, start)
            rebuilt.take_out_held()
    if rebuilt.held is not None and not _ends_in_doubt(rebuilt):
        rebuilt.settle()
    return rebuilt


def _apply_all(
    fs: FileSystem,
    data_dir: str,
    log_id: bytes,
    lineage: Sequence[FoundSegment],
    rebuilt: Rebuilt,
    start: int,
) -> None:
    """Apply the newest whole snapshot, unless the state has begun with more, and what follows."""
    begin = rebuilt.scans[0].snapshot_at if rebuilt.scans else None
    for index in range(start, len(lineage)):
        item = lineage[index]

        def read(file: File, index: int = index, item: FoundSegment = item) -> None:
            limit = limit_of(lineage, index)
            at = begin if index == start else None
            blocks = BlockReader(file, item.number, log_id, item.header, limit, begin_bytes=at)
            with_snapshot = index == start and rebuilt.known is None
            _apply(rebuilt, item, blocks, with_snapshot=with_snapshot)

        with_file(fs, segments.segment_path(data_dir, item.number), read)


def _scan(
    fs: FileSystem, data_dir: str, log_id: bytes, lineage: Sequence[FoundSegment], index: int
) -> SegmentScan:
    """Fold the blocks of a segment; nothing of them is kept."""
    item = lineage[index]

    def fold(file: File) -> SegmentScan:
        chain = Chain(item.number, item.header, item.header_crc)
        limit = limit_of(lineage, index)
        for block in BlockReader(file, item.number, log_id, item.header, limit):
            if block.payload is None:
                chain.add_torn(block.header)
            else:
                chain.add(block.header)
        return chain.scan()

    return with_file(fs, segments.segment_path(data_dir, item.number), fold)


def find_lost_files(
    fs: FileSystem,
    data_dir: str,
    log_id: bytes,
    lineage: Sequence[FoundSegment],
    rebuilt: Rebuilt,
) -> Iterator[LostRange]:
    """Compare the segments before the scanned ones with what the headers behind them say.

    Segments retire oldest first: one that is missing between others is lost. Only where something
    does not fit are blocks read, to tell which LSNs are there.
    """
    newer = len(rebuilt.scans)
    for index in range(1, len(lineage) - newer + 1):
        before, after = lineage[index - 1 : index + 1]
        named = before.number if after.header is None else after.header.pred_segment
        end = 0 if after.header is None else after.header.pred_end
        if after.header is not None and named == before.number and before.size_bytes >= end:
            continue
        scan = _scan(fs, data_dir, log_id, lineage, index - 1)
        if after.header is None:
            last_lsn = _scan(fs, data_dir, log_id, lineage, index).before_lsn
        else:
            last_lsn = after.header.pred_last_lsn
        if scan.last_lsn < last_lsn:
            offset = scan.end_bytes if named == before.number else 0
            yield LostRange(scan.last_lsn + 1, last_lsn, named, offset, Case.LOST_FILE.found)


def _ends_in_doubt(rebuilt: Rebuilt) -> bool:
    last = rebuilt.scans[-1].last
    return last is not None and last.kind in GROUPS


def _apply(
    rebuilt: Rebuilt, item: FoundSegment, blocks: BlockReader, *, with_snapshot: bool
) -> None:
    if item.header is not None:
        _drop_ghost(rebuilt, item.header.pred_last_lsn)
    for block in blocks:
        if block.payload is None:
            continue
        _drop_ghost(rebuilt, block.header.prev_lsn)
        rebuilt.settle()
        if block.header.kind in GROUPS:
            rebuilt.held = block
        elif block.header.kind is BlockKind.SNAPSHOT and with_snapshot:
            rebuilt.take_in(block)
            with_snapshot = not block.header.flags & BlockFlag.SNAPSHOT_LAST


def _drop_ghost(rebuilt: Rebuilt, before_lsn: Lsn) -> None:
    """Forget a last group that what follows does not stand on: it was written again there."""
    if rebuilt.held is not None and rebuilt.held.header.last_lsn > before_lsn:
        rebuilt.held = None


def read_hints(fs: FileSystem, data_dir: str) -> Hints:
    """Return the highest LSN and segment that the pages name; a lost page says nothing."""
    hint = _read_page(fs, f"{data_dir}/{INGEST_PAGE}", limits.PAGE_SLOT_BYTES)
    progress = _read_page(fs, f"{data_dir}/{PROGRESS_PAGE}", PROGRESS_SLOT_BYTES)
    routes = progress.get("routes")
    checkpoints = list(routes.values()) if isinstance(routes, dict) else []
    lsns = [_lsn(value) for value in (hint.get("lsn"), *checkpoints)]
    return Hints(max(lsns), _lsn(hint.get("segment")))


def _read_page(fs: FileSystem, path: str, slot_bytes: int) -> dict[str, object]:
    try:
        page = TwoSlotPage.open(fs, path, slot_bytes=slot_bytes, write=False)
    except OSError as error:
        if error.errno not in _SAYS_NOTHING:
            raise
        return {}
    try:
        return page.read() or {}
    except OSError as error:
        if error.errno not in _SAYS_NOTHING:
            raise
        return {}
    finally:
        page.close()


def _lsn(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value <= limits.LSN_MAX else 0
