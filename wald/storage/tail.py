"""Reading the log up to the frontier, never beyond, while another process writes it.

Segments are found backwards from the frontier's: each header names its predecessor and the true
end of it, so that ghosts (blocks of an abandoned end) and unused files are never read. Bytes are
read with ``pread`` into a buffer of our own, and number, salt and both checksums of that copy are
checked: the file may be recycled under us. What does not check, or cannot be read at all, is
damage, reported as a ``LostRange``; all else is delivered.

A frontier may be old: ingest began anew, and the segment that it names was cut behind its last
block, or is gone. That is not damage: reading ends there, and goes on with a newer frontier.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import NamedTuple

from wald import limits
from wald.core import frame
from wald.core.frame import BlockHeader, BlockKind, Section, SectionKind, SegmentHeader, SegmentKind
from wald.errors import FormatDamaged
from wald.model import NO_ANCHOR, Anchor, Frontier, LostRange, Lsn, StreamId
from wald.ports import File, FileSystem
from wald.storage.segment import read_around, segment_number

SEGMENT_GONE = "a segment is not there"


class TailBlock(NamedTuple):
    """A whole block below the frontier, with the sections asked for, each with its first LSN."""

    header: BlockHeader
    sections: tuple[tuple[Lsn, Section], ...]

    @property
    def anchor(self) -> Anchor:
        """What tells this block from one of another history at the same LSN."""
        return Anchor(self.header.payload_crc, self.header.commit_time_ns)


class _Extent(NamedTuple):
    """The part of a segment that counts. ``header`` is None where it cannot be read."""

    segment: int
    header: SegmentHeader | None
    end_bytes: int
    last_lsn: Lsn


class _FrontierOld(Exception):
    """The file is not what the frontier says any more; what it held stands elsewhere."""


class _Before(NamedTuple):
    segment: int
    end_bytes: int
    last_lsn: Lsn


def segment_path(data_dir: str, segment: int) -> str:
    """Return where a segment of this number lies."""
    return f"{data_dir}/log/seg-{segment:010d}.wal"


def records_of_stream(stream: StreamId) -> Callable[[Section], bool]:
    """Return the filter for the records of one stream."""
    return lambda section: section.stream == stream and section.kind is SectionKind.APPEND


class TailReader:
    """A cursor of its own over the log; one thread.

    Args:
        fs: the door to the files.
        data_dir: the data directory.
        log_id: 16 bytes; blocks of another log are damage.
        after: read what has a higher LSN.
        wants_block: whether a block's payload is read at all; by default records and control.
        wants_section: which sections of it are handed out; by default all.

    Attributes:
        damaged_at: segment and offset of the last place at which a block could not be read, also
            one without records, of which no ``LostRange`` tells.
        is_through: whether the last ``read`` came to its frontier; not where that was an old one.
    """

    def __init__(
        self,
        fs: FileSystem,
        data_dir: str,
        log_id: bytes,
        *,
        after: Lsn,
        wants_block: Callable[[BlockHeader], bool] | None = None,
        wants_section: Callable[[Section], bool] | None = None,
    ) -> None:
        self._fs = fs
        self._data_dir = data_dir
        self._log_id = log_id
        self._wants_block = wants_block or _holds_sections
        self._wants_section = wants_section
        self.cursor: Lsn = after
        self.damaged_at: tuple[int, int] | None = None
        self.is_through = False
        self._file: File | None = None
        self._segment = 0
        self._header: SegmentHeader | None = None
        self._offset = 0
        self._chain_lsn: Lsn | None = None  # last LSN of the block before; None at a head
        self._whole_lsn: Lsn = 0  # blocks were passed whole up to here, in any segment
        self._salt: int | None = None
        self._window = b""
        self._window_at = 0

    def close(self) -> None:
        """Close the file; harmless to repeat."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self, frontier: Frontier) -> Iterator[TailBlock | LostRange]:
        """Yield what lies between the cursor and the frontier, in order.

        The cursor stands behind an item when it is yielded, so that the iterator may be dropped
        at any point and another call goes on. Blocks without records (control, snapshots) may
        come again after the frontier's segment changed.
        """
        self.is_through = False
        extents, complete = self._extents(frontier)
        if not complete and extents:
            yield from self._lost_before(extents[0])
        for extent in extents:
            try:
                yield from self._read_extent(extent, newest=extent.segment == frontier.segment)
            except (_FrontierOld, FileNotFoundError):  # recycled, or retired meanwhile
                self._leave()
                return
        self.is_through = bool(extents)

    def begin_at_head(self, frontier: Frontier) -> None:
        """Put the cursor before the first block of the frontier's segment."""
        header = self._segment_header(frontier.segment)
        self.cursor = header.pred_last_lsn if header else frontier.lsn

    def skip_to(self, lsn: Lsn) -> None:
        """Put the cursor behind blocks that were read elsewhere, or back to where it stood."""
        self._leave()
        self.cursor = lsn
        self._whole_lsn = max(self._whole_lsn, lsn)

    def holds_after(self, lsn: Lsn, frontier: Frontier) -> bool:
        """Tell whether every LSN above ``lsn`` up to the frontier is still in the log.

        Of an old frontier, whose segment is gone, nothing is known to be missing.
        """
        if lsn >= frontier.lsn:
            return True
        before, self.cursor = self.cursor, lsn
        extents, complete = self._extents(frontier, stop_at_current=False)
        self.cursor = before
        return complete or not extents

    # --- which segments -------------------------------------------------------------------------

    def _extents(
        self, frontier: Frontier, *, stop_at_current: bool = True
    ) -> tuple[list[_Extent], bool]:
        """Return the segments from the cursor to the frontier, and whether none is missing.

        A finished segment ends where its successor's header says, not where its blocks seem to.
        """
        extents: list[_Extent] = []
        complete = True
        number, end, last = frontier.segment, frontier.end_bytes, frontier.lsn
        while number:
            try:
                header = self._segment_header(number)
            except FileNotFoundError:
                complete = False
                if not extents:
                    break
                number, end, last = self._present_below(number, last)
                continue
            extents.append(_Extent(number, header, end, last))
            if stop_at_current and number == self._segment and self._offset <= end:
                break
            before = (
                self._before_unreadable(extents[-1])
                if header is None
                else _Before(header.pred_segment, header.pred_end, header.pred_last_lsn)
            )
            if before.last_lsn <= self.cursor:
                break
            number, end, last = before
        return extents[::-1], complete

    def _segment_header(self, number: int) -> SegmentHeader | None:
        """Return a header; None where it is damaged. FileNotFoundError where it is gone."""
        if number == self._segment and self._header is not None:
            return self._header
        return self._read_header(number)

    def _read_header(self, number: int) -> SegmentHeader | None:
        path = segment_path(self._data_dir, number)
        file = self._fs.open(path)
        try:
            header = frame.decode_segment_header(read_around(file, limits.ALIGNMENT_MIN_BYTES, 0))
        except FormatDamaged:
            return None
        finally:
            file.close()
        if (
            header.segment != number
            or header.log_id != self._log_id
            or header.kind is SegmentKind.PREP
        ):
            raise FileNotFoundError(path)  # recycled, or not ours: what it held is gone
        return header

    def _before_unreadable(self, extent: _Extent) -> "_Before":
        """Behind an unreadable header the first valid block's previous LSN stands for its own.

        What lies before is taken from the numbers; it ends with that LSN at the latest.
        """
        self._enter(extent)
        found = self._next_block(extent)
        self._leave()
        last_lsn = found.prev_lsn if found else self.cursor
        return self._present_below(extent.segment, last_lsn)

    def _present_below(self, number: int, last_lsn: Lsn) -> "_Before":
        """Return the next older segment that is there, where no header says which it is.

        Where it ends is not known either: at the end of its file, with that LSN, at the latest.
        """
        names = self._fs.list_directory(f"{self._data_dir}/log")
        present = filter(None, map(segment_number, names))
        for older in sorted((each for each in present if each < number), reverse=True):
            stat = self._fs.stat(segment_path(self._data_dir, older))
            if stat is not None and self._is_in_use(older):
                return _Before(older, stat.size_bytes, last_lsn)
        return _Before(0, 0, last_lsn)

    def _is_in_use(self, number: int) -> bool:
        try:
            self._segment_header(number)
        except FileNotFoundError:
            return False
        return True

    def _lost_before(self, first: _Extent) -> Iterator[LostRange]:
        last = first.header.pred_last_lsn if first.header else self.cursor
        yield from self._lost(self.cursor + 1, last, first.segment, 0, SEGMENT_GONE)

    # --- blocks ---------------------------------------------------------------------------------

    def _enter(self, extent: _Extent) -> None:
        self.close()
        self._file = self._fs.open(segment_path(self._data_dir, extent.segment))
        self._segment = extent.segment
        self._header = extent.header
        self._salt = extent.header.salt if extent.header else None
        self._offset = self._alignment
        self._chain_lsn = None
        self._window = b""

    def _leave(self) -> None:
        """Close the file; it is entered anew when it is read."""
        self.close()
        self._segment = 0
        self._header = None

    @property
    def _alignment(self) -> int:
        return self._header.alignment if self._header else limits.ALIGNMENT_MIN_BYTES

    def _read_extent(self, extent: _Extent, *, newest: bool) -> Iterator[TailBlock | LostRange]:
        if extent.segment != self._segment or self._file is None:
            self._enter(extent)
        while self._offset < extent.end_bytes:
            at = self._offset
            header = self._next_block(extent)
            if header is None:
                self._note_damage(extent, at, newest=newest)
                break
            if header.offset != at or self._chain_lsn not in {None, header.prev_lsn}:
                self._note_damage(extent, at, newest=newest)
                yield from self._lost_to(extent, header.prev_lsn, at, newest=newest)
            self._offset = header.end(self._alignment)
            self._chain_lsn = header.last_lsn
            if header.last_lsn <= extent.last_lsn:  # no ghost
                self._whole_lsn = max(self._whole_lsn, header.last_lsn)
            yield from self._read_block(header, extent, newest=newest)
        yield from self._lost_to(extent, extent.last_lsn, self._offset, newest=newest)
        self._offset = max(self._offset, extent.end_bytes)

    def _note_damage(self, extent: _Extent, at: int, *, newest: bool) -> None:
        self._must_be_there(extent, newest=newest)
        self.damaged_at = extent.segment, at

    def _must_be_there(self, extent: _Extent, *, newest: bool) -> None:
        """Before anything is called lost: the file must still be the frontier's.

        Raises:
            _FrontierOld: it was recycled, or, as the newest, cut shorter than the frontier.
        """
        assert self._file is not None
        try:
            header = self._read_header(extent.segment)
        except FileNotFoundError:
            raise _FrontierOld from None
        if header != extent.header or (newest and self._file.size() < extent.end_bytes):
            raise _FrontierOld

    def _lost_to(
        self, extent: _Extent, last_lsn: Lsn, at: int, *, newest: bool
    ) -> Iterator[LostRange]:
        first = max(self.cursor, self._chain_lsn or 0) + 1
        if first > last_lsn:
            return
        self._must_be_there(extent, newest=newest)
        ranges = [(first, last_lsn)]
        if extent.header is not None and first < extent.header.first_lsn <= last_lsn:
            # LSNs were skipped before that one: in front of them only the copied group may stand
            begun_lsn = extent.header.first_lsn
            ranges = [(first, begun_lsn - 1), (begun_lsn, last_lsn)]
            if self._whole_lsn > extent.header.pred_last_lsn:
                del ranges[0]  # it was passed; a cursor alone may stand in the middle of it
        for first_lsn, through_lsn in ranges:
            yield from self._lost(first_lsn, through_lsn, self._segment, at, "blocks do not match")

    def _lost(
        self,
        first_lsn: Lsn,
        last_lsn: Lsn,
        segment: int,
        at: int,
        reason: str,
        records: int | None = None,
    ) -> Iterator[LostRange]:
        first_lsn = max(first_lsn, self.cursor + 1)
        if first_lsn <= last_lsn:
            self.cursor = last_lsn
            yield LostRange(first_lsn, last_lsn, segment, at, reason, records)

    def _read_block(
        self, header: BlockHeader, extent: _Extent, *, newest: bool
    ) -> Iterator[TailBlock | LostRange]:
        if header.records and not self.cursor < header.last_lsn <= extent.last_lsn:
            return  # passed before, as one copied to a fresh segment; or a ghost behind the end
        sections: tuple[tuple[Lsn, Section], ...] = ()
        if self._wants_block(header):
            start = header.offset + frame.BLOCK_HEADER_BYTES
            payload = self._bytes(start, header.payload_length, extent.end_bytes)
            try:
                sections = self._sections(header, payload)
            except FormatDamaged as damage:
                self._note_damage(extent, header.offset, newest=newest)
                yield from self._lost(
                    header.first_lsn,
                    header.last_lsn,
                    self._segment,
                    header.offset,
                    damage.message,
                    self._count(header, payload),
                )
                return
        self.cursor = max(self.cursor, header.last_lsn)
        yield TailBlock(header, sections)

    def _sections(self, header: BlockHeader, payload: bytes) -> tuple[tuple[Lsn, Section], ...]:
        if frame.crc32c(payload) != header.payload_crc:
            msg = "the payload does not match its checksum"
            raise FormatDamaged(msg)
        wanted = []
        lsn = header.first_lsn
        for section in frame.decode_sections(payload, header.sections):
            if self._wants_section is None or self._wants_section(section):
                wanted.append((lsn, section))
            lsn += section.records
        return tuple(wanted)

    def _count(self, header: BlockHeader, payload: bytes) -> int | None:
        """Return how many records of the wanted sections a damaged payload held.

        That is believed where a request's own checksum shows that a body took the damage. None
        where the sections themselves may be what is damaged, and name another stream; where they
        do not add up to what the header says; and where a part was read before.
        """
        wanted = total = 0
        in_a_body = False
        try:
            for section in frame.decode_sections(payload, header.sections):
                total += section.records
                in_a_body = in_a_body or not _bodies_match(section)
                if self._wants_section is None or self._wants_section(section):
                    wanted += section.records
        except FormatDamaged:
            return None
        known = in_a_body and total == header.records and self.cursor < header.first_lsn
        return wanted if known else None

    def _next_block(self, extent: _Extent) -> BlockHeader | None:
        """Return the first valid header at or behind the offset; None if there is none."""
        offset = self._offset
        while offset < extent.end_bytes:
            head = self._bytes(offset, frame.BLOCK_HEADER_BYTES, extent.end_bytes)
            header = frame.decode_block_header(head)
            if header is not None and self._is_ours(header, offset, extent):
                return header
            offset += self._alignment
        return None

    def _is_ours(self, header: BlockHeader, offset: int, extent: _Extent) -> bool:
        if self._salt is None and header.segment == extent.segment and header.offset == offset:
            self._salt = header.salt
        return (
            header.segment == extent.segment
            and header.salt == self._salt
            and header.offset == offset
            and header.log_id == frame.short_log_id(self._log_id)
            and header.end(self._alignment) <= extent.end_bytes
        )

    def _bytes(self, offset: int, length: int, end: int) -> bytes:
        """Return bytes of the present file, through a window; never any behind ``end``."""
        length = min(length, end - offset)
        at = offset - self._window_at
        if at < 0 or at + length > len(self._window):
            assert self._file is not None
            want = min(max(length, limits.TAIL_WINDOW_BYTES), end - offset)
            self._window = read_around(self._file, want, offset)
            self._window_at = offset
            at = 0
        return self._window[at : at + length]


def find_anchor(
    fs: FileSystem, data_dir: str, log_id: bytes, lsn: Lsn, frontier: Frontier
) -> Anchor | None:
    """Return the anchor of the block that holds an LSN at or below the frontier; None if gone."""
    if lsn == 0:
        return NO_ANCHOR
    reader = TailReader(fs, data_dir, log_id, after=lsn - 1, wants_block=lambda _: False)
    with closing(reader):
        return anchor_among(reader.read(frontier), lsn)


def anchor_among(items: Iterable[object], lsn: Lsn) -> Anchor | None:
    """Return the anchor of the first block with records, if that holds the LSN.

    Args:
        items: what a reader found behind the LSN before.
        lsn: the one that is looked for.
    """
    for item in items:
        if isinstance(item, TailBlock) and item.header.records:
            return item.anchor if item.header.first_lsn <= lsn else None
        if isinstance(item, LostRange):
            return None
    return None


def _holds_sections(header: BlockHeader) -> bool:
    return header.kind in {BlockKind.RECORDS, BlockKind.CONTROL}


def _bodies_match(section: Section) -> bool:
    """Tell whether each request of a section matches its own checksum."""
    at = 0
    for entry in frame.request_entries(section):
        if frame.crc32c(section.bodies[at : at + entry.body_length]) != entry.body_crc:
            return False
        at += entry.body_length
    return True
