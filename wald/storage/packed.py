"""Packed files on disk: written once under a temporary name, read a chunk at a time, deleted.

    DATA/packed/pack-<stream>-<lo>-<hi>.wpk    while a route needs it
    DATA/archive/pack-<stream>-<lo>-<hi>.wpk   kept on purpose

A file is whole and durable before it has its name, and never changes; its name and its head say
all that the ledger knows of it, so that a lost or an older ledger loses none. Damage costs the
chunks it lies in: they become a ``LostRange``, all else is read.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from wald import limits
from wald.core import packed as codec
from wald.core.frame import BlockHeader, BlockKind, short_log_id
from wald.core.packed import ChunkBuilder, ChunkHeader, Entry, PackedBlock, PackedHead, PackedTail
from wald.errors import DataDirectoryForeign, FormatDamaged
from wald.model import LostRange, Lsn, PackedRange, StreamId
from wald.ports import File, FileSystem
from wald.storage.segment import TEMPORARY_SUFFIX, read_around
from wald.storage.tail import TailBlock

PACKED_DIRECTORY = "packed"
ARCHIVE_DIRECTORY = "archive"
_NAME = re.compile(r"pack-(\d{10})-(\d{19})-(\d{19})\.wpk")
_SYNC_BYTES = 4 * limits.MIB  # so much is synced at once, not a whole file


def packed_name(stream_id: StreamId, lo: Lsn, hi: Lsn) -> str:
    """Return the file name of a range."""
    return f"pack-{stream_id:010d}-{lo:019d}-{hi:019d}.wpk"


def directory_of(data_dir: str, *, archive: bool) -> str:
    """Return where files of a kind stand."""
    return f"{data_dir}/{ARCHIVE_DIRECTORY if archive else PACKED_DIRECTORY}"


def packed_path(data_dir: str, packed: PackedRange) -> str:
    """Return where a packed file stands."""
    name = packed_name(packed.stream_id, packed.lo, packed.hi)
    return f"{directory_of(data_dir, archive=packed.archive)}/{name}"


class PackWriter:
    """Writes one packed file; one thread. Either ``finish`` or ``abandon`` ends it.

    Args:
        fs: the door to the files.
        data_dir: the data directory.
        head: what the file will be.
        archive: whether it is kept on purpose.

    Raises:
        OSError: as the system does, from every method; ``abandon`` then.
    """

    def __init__(
        self, fs: FileSystem, data_dir: str, head: PackedHead, *, archive: bool = False
    ) -> None:
        self._fs = fs
        self._head = head
        self._archive = archive
        self._directory = directory_of(data_dir, archive=archive)
        name = packed_name(head.stream_id, head.lo, head.hi)
        self._path = f"{self._directory}/{name}"
        self._temporary = f"{self._path}{TEMPORARY_SUFFIX}"
        self._builder = ChunkBuilder(head.log_id)
        self._chunks: list[ChunkHeader] = []
        self._anchor: PackedBlock | None = None  # of a last block without records of the stream
        self.raw_bytes = 0
        self.written_bytes = 0
        self._unsynced = 0
        if fs.stat(self._directory) is None:
            fs.make_directory(self._directory)
        fs.sync_directory(data_dir)
        if fs.stat(self._temporary) is not None:
            fs.unlink(self._temporary)
        self._file = fs.create(self._temporary)
        try:
            self._write(codec.encode_head(head))
        except OSError:
            self.abandon()
            raise

    def add(self, item: TailBlock | LostRange) -> None:
        """Take in what follows: blocks of the log, or of older packed files, and losses."""
        if isinstance(item, LostRange):
            self._add_anchor()  # entries stand in order
            first = max(item.first_lsn, self._head.lo + 1)
            last = min(item.last_lsn, self._head.hi)
            self._add(replace(item, first_lsn=first, last_lsn=last))
        elif item.header.records:
            header = item.header
            block = PackedBlock(header.first_lsn, header.records, item.anchor, item.sections)
            if block.sections:
                self._add(block)
                self._anchor = None
            else:
                self._anchor = block

    def finish(self) -> PackedRange:
        """Make the file durable under its name; the range is what the ledger is told."""
        self._add_anchor()
        if not self._builder.is_empty:
            self._write_chunk(self._head.hi)
        elif self._chunks:
            assert self._chunks[-1].through == self._head.hi, "a chunk was closed too early"
        records = sum(chunk.records for chunk in self._chunks)
        tail = PackedTail(self._head, tuple(self._chunks), records, self.raw_bytes)
        self._write(codec.encode_tail(tail))
        self._file.sync()
        self._file.close()
        self._fs.rename(self._temporary, self._path)
        self._fs.sync_directory(self._directory)  # COMMIT POINT: the file is there
        _, stream_id, lo, hi, segment, _ = self._head
        sizes = (self.written_bytes, self.raw_bytes, records)
        return PackedRange(stream_id, lo, hi, segment, *sizes, archive=self._archive)

    def abandon(self) -> None:
        """Leave nothing behind; harmless to repeat."""
        self._file.close()
        if self._fs.stat(self._temporary) is not None:
            self._fs.unlink(self._temporary)

    def _add_anchor(self) -> None:
        if self._anchor is not None:
            self._add(self._anchor)
            self._anchor = None

    def _add(self, entry: Entry) -> None:
        data = codec.encode_entry(entry)
        if not self._builder.has_room(data):
            self._write_chunk(self._builder.through)
        self._builder.add(entry, data)

    def _write_chunk(self, through: Lsn) -> None:
        after = self._chunks[-1].through if self._chunks else self._head.lo
        self.raw_bytes += self._builder.raw_length
        chunk, data = self._builder.build(self.written_bytes, after, through)
        self._chunks.append(chunk)
        self._write(data)

    def _write(self, data: bytes) -> None:
        self._file.pwritev([data], self.written_bytes)
        self.written_bytes += len(data)
        self._unsynced += len(data)
        if self._unsynced >= _SYNC_BYTES:
            self._file.sync()
            self._unsynced = 0


# --- reading ------------------------------------------------------------------------------------


class Span(NamedTuple):
    """A part of a file's range, and the chunk that answers for it; None where it is lost."""

    after: Lsn
    through: Lsn
    chunk: ChunkHeader | None


class OpenPack:
    """An open packed file, read by LSN; one thread.

    Raises:
        DataDirectoryForeign: it is of another log, or another stream.
        FormatNewer: a newer release wrote it.
        OSError: as the system does. A file that is not there is damage.
    """

    def __init__(self, fs: FileSystem, data_dir: str, log_id: bytes, packed: PackedRange) -> None:
        self.packed = packed
        self._path = packed_path(data_dir, packed)
        self._log_id = log_id
        self._reason = "it is not there"
        self._span: Span | None = None
        self._items: list[Entry] = []
        self._at = 0
        self._file: File | None = None
        self.spans = [Span(packed.lo, packed.hi, None)]
        try:
            self._file = fs.open(self._path)
        except FileNotFoundError:
            return
        try:
            self.spans = self._find_spans(self._file)
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; harmless to repeat."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def next_after(self, lsn: Lsn) -> TailBlock | LostRange | None:
        """Return the first item that ends above an LSN; None if there is none up to the end."""
        for span in self.spans:
            if span.through <= lsn:
                continue
            if span is not self._span:
                lost = self.load(span)
                if lost is not None:
                    return _behind(lost, lsn)
            while self._at < len(self._items) and self._items[self._at].last_lsn <= lsn:
                self._at += 1
            if self._at < len(self._items):
                item = self._items[self._at]
                return _behind(item, lsn) if isinstance(item, LostRange) else self._block(item)
        return None

    @property
    def is_missing(self) -> bool:
        """Whether there is no such file."""
        return self._file is None

    def load(self, span: Span) -> LostRange | None:
        """Unpack a chunk; return what is lost if it cannot be."""
        self._span, self._items, self._at = None, [], 0
        reason, offset, records = self._reason, 0, None
        if span.chunk is not None:
            chunk = span.chunk
            offset, records = chunk.offset, chunk.records
            assert self._file is not None
            start = chunk.offset + codec.CHUNK_HEADER_BYTES
            try:
                self._items = codec.decode_chunk(
                    chunk, read_around(self._file, chunk.stored_length, start)
                )
            except FormatDamaged as damage:
                reason = damage.message
            else:
                self._span = span
                return None
        elif (span.after, span.through) == (self.packed.lo, self.packed.hi):
            records = self.packed.records if self.packed.raw_bytes else None
        name = self._path.rpartition("/")[2]
        segment = self.packed.segment
        text = f"packed file {name}: {reason}"
        return LostRange(span.after + 1, span.through, segment, offset, text, records)

    def _block(self, block: PackedBlock) -> TailBlock:
        """Return a block as the log would, as far as anybody asks."""
        crc, time_ns = block.anchor
        first, previous = block.first_lsn, block.first_lsn - 1
        head = (BlockKind.RECORDS, 0, short_log_id(self._log_id), self.packed.segment, 0, 0)
        rest = (block.lsns, len(block.sections), 0, 0, time_ns, 0, crc)
        return TailBlock(BlockHeader(*head, first, previous, *rest), block.sections)

    # --- where the chunks are -------------------------------------------------------------------

    def _find_spans(self, file: File) -> list[Span]:
        """Find the chunks by the tail, or, where that is damaged, from the head on."""
        try:
            tail = read_tail(file)
            self._check(tail.head)
            return _spans_of(tail.chunks, self.packed.lo)
        except FormatDamaged as damage:
            self._reason = damage.message
        spans = _spans_of(self._walk(file), self.packed.lo)
        through = spans[-1].through if spans else self.packed.lo
        if through < self.packed.hi:
            spans.append(Span(through, self.packed.hi, None))
        return spans

    def _check(self, head: PackedHead) -> None:
        ours = (self._log_id, self.packed.stream_id, self.packed.lo, self.packed.hi)
        if head[:4] != ours:
            msg = f"{self._path} is of another log, or not what its name says"
            raise DataDirectoryForeign(msg, path=self._path)

    def _walk(self, file: File) -> list[ChunkHeader]:
        """Go from chunk to chunk; one whose header is damaged ends it: the tail is gone too."""
        chunks: list[ChunkHeader] = []
        offset = codec.PACKED_HEAD_BYTES
        while True:
            data = read_around(file, codec.CHUNK_HEADER_BYTES, offset)
            chunk = codec.decode_chunk_header(data)
            if (
                chunk is None
                or chunk.offset != offset
                or chunk.log_id != short_log_id(self._log_id)
            ):
                return chunks
            chunks.append(chunk)
            offset = chunk.end


def _spans_of(chunks: Sequence[ChunkHeader], lo: Lsn) -> list[Span]:
    starts = [lo, *(chunk.through for chunk in chunks)]
    return [Span(after, chunk.through, chunk) for after, chunk in zip(starts, chunks, strict=False)]


def _behind(lost: LostRange, lsn: Lsn) -> LostRange:
    """Return a loss without what lies at or below an LSN; then nobody knows how much it holds."""
    if lsn < lost.first_lsn:
        return lost
    return replace(lost, first_lsn=lsn + 1, records=None)


def read_tail(file: File) -> PackedTail:
    """Read the tail of a packed file.

    Raises:
        FormatNewer: a newer release wrote it.
        FormatDamaged: it is not whole.
        OSError: as the system does.
    """
    size = file.size()
    length = codec.tail_length(
        read_around(file, codec.TRAILER_BYTES, max(0, size - codec.TRAILER_BYTES))
    )
    if length > size:
        msg = "a packed file is shorter than its tail"
        raise FormatDamaged(msg)
    return codec.decode_tail(read_around(file, length, size - length))


# --- the directories ----------------------------------------------------------------------------


def list_packed(fs: FileSystem, data_dir: str) -> list[PackedRange]:
    """Return the packed files that are there, by their names and what their tails say.

    Of a file whose tail is damaged it is not known how much it holds: 0 records, 0 raw bytes.

    Raises:
        FormatNewer: a newer release wrote one.
        OSError: as the system does.
    """
    found: list[PackedRange] = []
    for packed in named_packed(fs, data_dir):
        try:
            file = fs.open(packed_path(data_dir, packed))
        except FileNotFoundError:
            continue  # deleted meanwhile
        try:
            found.append(_with_tail(replace(packed, size_bytes=file.size()), file))
        finally:
            file.close()
    return found


def named_packed(fs: FileSystem, data_dir: str) -> list[PackedRange]:
    """Return the packed files that are there, by their names alone: no file is opened.

    Raises:
        OSError: as the system does.
    """
    found: list[PackedRange] = []
    for archive in (False, True):
        directory = directory_of(data_dir, archive=archive)
        names = fs.list_directory(directory) if fs.stat(directory) is not None else []
        for match in filter(None, map(_NAME.fullmatch, names)):
            stream_id, lo, hi = map(int, match.groups())
            found.append(PackedRange(stream_id, lo, hi, 0, 0, 0, 0, archive=archive))
    return found


def _with_tail(packed: PackedRange, file: File) -> PackedRange:
    try:
        tail = read_tail(file)
    except FormatDamaged:
        return packed
    return replace(
        packed, segment=tail.head.segment, raw_bytes=tail.raw_bytes, records=tail.records
    )


def sync_directories(fs: FileSystem, data_dir: str) -> None:
    """Make the names of packed files durable before any is trusted.

    Raises:
        OSError: as the system does.
    """
    for archive in (False, True):
        directory = directory_of(data_dir, archive=archive)
        if fs.stat(directory) is not None:
            fs.sync_directory(directory)


def remove_unfinished(fs: FileSystem, data_dir: str) -> None:
    """Delete what was being written when its writer ended; only the drainer may.

    Raises:
        OSError: as the system does.
    """
    for archive in (False, True):
        directory = directory_of(data_dir, archive=archive)
        names = fs.list_directory(directory) if fs.stat(directory) is not None else []
        for name in names:
            if name.endswith(TEMPORARY_SUFFIX) and _NAME.fullmatch(
                name.removesuffix(TEMPORARY_SUFFIX)
            ):
                fs.unlink(f"{directory}/{name}")


def delete_packed(fs: FileSystem, data_dir: str, packed: PackedRange) -> None:
    """Delete a packed file that the ledger does not name any more; harmless to repeat.

    Raises:
        OSError: as the system does.
    """
    path = packed_path(data_dir, packed)
    if fs.stat(path) is not None:
        fs.unlink(path)
        fs.sync_directory(directory_of(data_dir, archive=packed.archive))
