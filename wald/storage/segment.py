"""One file of the log: its name, its header, writing blocks to its end, reading them again."""

import errno
import mmap
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from wald import limits
from wald.core import frame
from wald.core.frame import (
    BLOCK_HEADER_BYTES,
    BlockFlag,
    BlockHeader,
    BlockKind,
    Section,
    SegmentHeader,
    SegmentKind,
)
from wald.errors import FormatDamaged
from wald.model import Lsn
from wald.ports import File, FileSystem

LOG_DIRECTORY = "log"
POOL_DIRECTORY = "log/pool"
QUARANTINE_DIRECTORY = "quarantine"
REPORTS_DIRECTORY = "reports"
TEMPORARY_SUFFIX = ".tmp"

_NAME = re.compile(r"seg-(\d{10})\.wal")
_MAGIC = frame.BLOCK_MAGIC.to_bytes(4, "little")
_CHUNK_BYTES = limits.MIB
_PAGE_BYTES = limits.ALIGNMENT_MIN_BYTES
_ZEROS = bytes(_CHUNK_BYTES)

assert _CHUNK_BYTES % limits.ALIGNMENT_MAX_BYTES == 0


def segment_name(number: int) -> str:
    """Return the file name of a segment."""
    return f"seg-{number:010d}.wal"


def segment_number(name: str) -> int | None:
    """Return the number in a segment's file name; None for other names."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def segment_path(data_dir: str, number: int) -> str:
    """Return where a segment stands."""
    return f"{data_dir}/{LOG_DIRECTORY}/{segment_name(number)}"


def alignment_for(fs: FileSystem, directory: str) -> int:
    """Return on what boundaries blocks begin in files of a directory."""
    found = fs.stat(directory)
    return alignment_of(0 if found is None else found.block_size_bytes, mmap.PAGESIZE)


def alignment_of(block_size_bytes: int, page_bytes: int) -> int:
    """Return the larger of both, a power of two: whole pages are written, torn ones harm one."""
    wanted = max(limits.ALIGNMENT_MIN_BYTES, page_bytes, block_size_bytes)
    return min(1 << (wanted - 1).bit_length(), limits.ALIGNMENT_MAX_BYTES)


class HeaderPage(NamedTuple):
    """What the first page of a segment says; no header if it cannot be read."""

    header: SegmentHeader | None
    crc: int


def read_around(file: File, length: int, offset: int) -> bytes:
    """Read as ``pread`` does; a page that the disk cannot give is zeros.

    Whoever checks the bytes then finds the damage, and no more is lost than that page.

    Raises:
        OSError: as the system does, but for what it cannot read; EIO where no page can be read.
    """
    data = _pread(file, length, offset)
    if data is not None:
        return data
    parts: list[bytes | None] = []
    sizes: list[int] = []
    end = min(offset + length, file.size())
    while offset < end:
        step = min(_PAGE_BYTES - offset % _PAGE_BYTES, end - offset)
        parts.append(_pread(file, step, offset))
        sizes.append(step)
        offset += step
    if len(parts) > 1 and not any(parts):
        # not some sectors but the disk: nothing may be called lost, it may come back
        raise OSError(errno.EIO, "not one page can be read")
    return b"".join(
        bytes(size) if part is None else part for part, size in zip(parts, sizes, strict=True)
    )


def _pread(file: File, length: int, offset: int) -> bytes | None:
    """Return None where the disk fails."""
    try:
        return file.pread(length, offset)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    return None


def read_header(file: File) -> HeaderPage:
    """Read the first page of a segment.

    Raises:
        FormatNewer: of a newer format.
        OSError: as the system does.
    """
    page = read_around(file, frame.SEGMENT_HEADER_BYTES, 0)
    try:
        header = frame.decode_segment_header(page)
    except FormatDamaged:
        return HeaderPage(None, 0)
    return HeaderPage(header, frame.segment_header_crc(page))


class SeenBlock(NamedTuple):
    """A block with a whole header; no payload where it does not match its CRC."""

    header: BlockHeader
    payload: bytes | None

    def sections(self) -> Iterator[Section]:
        """Unpack the sections of a whole block."""
        assert self.payload is not None
        return frame.decode_sections(self.payload, self.header.sections)


class BlockReader:
    """Reads the blocks of a segment in order, every aligned offset of it, to the end of the file.

    Holds one chunk of the file and one payload. Behind an unreadable header (``header`` None)
    the first whole block of that number and log gives the salt.
    """

    def __init__(
        self,
        file: File,
        number: int,
        log_id: bytes,
        header: SegmentHeader | None,
        end_bytes: int | None = None,
        *,
        begin_bytes: int | None = None,
    ) -> None:
        self._file = file
        self._header = header
        self._guess = SegmentHeader(
            SegmentKind.ROLL, limits.ALIGNMENT_MIN_BYTES, log_id, number, 0, 0, 0, 0, 0, 0
        )
        self._alignment = self._guess.alignment if header is None else header.alignment
        size = file.size()
        self._begin = self._alignment if begin_bytes is None else begin_bytes
        self._end = size if end_bytes is None else min(size, end_bytes)

    def __iter__(self) -> Iterator[SeenBlock]:
        """Yield the blocks that belong to the segment's present life.

        Raises:
            FormatNewer: a whole block of a newer version.
            OSError: as the system does.
        """
        at = self._begin
        base, chunk = 0, b""
        while at < self._end:
            if not base <= at < base + len(chunk):
                base, chunk = at, read_around(self._file, _CHUNK_BYTES, at)
                if chunk == _ZEROS:
                    at += _CHUNK_BYTES
                    continue
                if not chunk:
                    return
            inside = at - base
            block = None
            if chunk[inside : inside + 4] == _MAGIC:
                block = self._block(frame.decode_block_header(chunk, inside), at, chunk, inside)
            if block is None:
                at += self._alignment
                continue
            yield block
            at = block.header.end(self._alignment)

    def _block(
        self, header: BlockHeader | None, at: int, chunk: bytes, inside: int
    ) -> SeenBlock | None:
        if header is None:
            return None
        segment = self._header or self._guess._replace(salt=header.salt)
        if not frame.belongs(header, segment, at):
            return None
        begin, length = inside + BLOCK_HEADER_BYTES, header.payload_length
        if begin + length <= len(chunk):
            payload = chunk[begin : begin + length]
        else:
            payload = read_around(self._file, length, at + BLOCK_HEADER_BYTES)
        if len(payload) != length or frame.crc32c(payload) != header.payload_crc:
            return SeenBlock(header, None)
        self._header = segment
        return SeenBlock(header, payload)


class Draft(NamedTuple):
    """What a block shall say; place, chain and checksums are given when it is staged."""

    kind: BlockKind
    payload: bytes
    sections: int
    time_ns: int
    first_lsn: Lsn = 0
    records: int = 0
    flags: int = 0
    next_segment: int = 0


class SegmentWriter:
    """Writes blocks to the end of one segment: staged first, then one write and one sync.

    After ``flush`` raised, nothing more may be written here: the caller takes the fresh path.
    """

    def __init__(self, header: SegmentHeader) -> None:
        self.header = header
        self.capacity_bytes = 0
        self.end_bytes = 0  # of what is durable
        self.last_lsn: Lsn = header.pred_last_lsn  # of what is staged
        self._file: File | None = None
        self._alignment = header.alignment
        self._short_log_id = frame.short_log_id(header.log_id)
        page = frame.encode_segment_header(header)
        self._parts: list[bytes] = [page]
        self._staged_end = len(page)
        self._last_crc = frame.segment_header_crc(page)
        self._failed = False

    def attach(self, file: File, capacity_bytes: int) -> None:
        """Say which file it is; before the first ``flush``."""
        self._file = file
        self.capacity_bytes = capacity_bytes

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    @property
    def number(self) -> int:
        """The segment's number."""
        return self.header.segment

    @property
    def need_bytes(self) -> int:
        """What the file must hold for what is staged, and a seal behind it."""
        return self._staged_end + self._alignment

    def has_room(self, payload_length: int) -> bool:
        """Tell whether a block with such a payload fits, and a seal behind it."""
        block = frame.block_bytes(payload_length, self._alignment)
        return self._staged_end + block + self._alignment <= self.capacity_bytes

    def stage(self, draft: Draft) -> BlockHeader:
        """Put a block behind what is staged; a block without records gets the LSN that follows."""
        payload = draft.payload
        header = BlockHeader(
            draft.kind,
            draft.flags,
            self._short_log_id,
            self.header.segment,
            self.header.salt,
            self._staged_end,
            draft.first_lsn if draft.records else self.last_lsn + 1,
            self.last_lsn,
            draft.records,
            draft.sections,
            len(payload),
            self._last_crc,
            draft.time_ns,
            draft.next_segment,
            frame.crc32c(payload),
        )
        packed = frame.encode_block_header(header)
        length = len(packed) + len(payload)
        self._parts += (packed, payload, _ZEROS[: -length % self._alignment])
        self._staged_end += length + -length % self._alignment
        self._last_crc = frame.block_header_crc(packed)
        self.last_lsn = header.last_lsn
        return header

    def stage_snapshot(self, parts: Iterable[Section], time_ns: int) -> None:
        """Stage a snapshot in blocks of bounded size, marked where it begins and ends."""
        blocks = list(_snapshot_blocks(parts))
        for index, sections in enumerate(blocks):
            flags = BlockFlag.SNAPSHOT_FIRST if index == 0 else 0
            flags |= BlockFlag.SNAPSHOT_LAST if index == len(blocks) - 1 else 0
            payload = frame.join_sections(sections)
            self.stage(Draft(BlockKind.SNAPSHOT, payload, len(sections), time_ns, flags=flags))

    def flush(self) -> None:
        """Write what is staged and make it durable: the commit point of a group.

        Raises:
            OSError: as the system does; what was staged may or may not be on the disk.
        """
        assert self._file is not None
        assert not self._failed, "a segment was written to after a failure"
        parts, self._parts = self._parts, []
        self._failed = True
        self._file.pwritev(parts, self.end_bytes)
        self._file.sync()
        self._failed = False
        self.end_bytes = self._staged_end


def _snapshot_blocks(parts: Iterable[Section]) -> Iterator[list[Section]]:
    block: list[Section] = []
    size = 0
    for section in parts:
        length = frame.section_bytes(section)
        if block and size + length > limits.SNAPSHOT_BLOCK_MAX_BYTES:
            yield block
            block, size = [], 0
        block.append(section)
        size += length
    if block:
        yield block
