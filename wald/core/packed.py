"""Packed files, format 1: records of one stream, dense and compressed. Drawn and measured here.

A packed file holds what a stream still needs of a closed range of LSNs, so that the segments
they stood in may go. It is written once, as a whole, and never changed. All integers are
little-endian.

    file | head | chunk | chunk | ... | tail |

    head (PACKED_HEAD_BYTES = 80)
      0  magic 8s b"WALDPACK"   8  format u16   10 oldest_reader u16   12 0 x4
     16  log_id 16s
     32  stream u32     36 reserved u32
     40  lo u64         48 hi u64: every LSN of the stream above lo up to hi is in the file
     56  segment u64, the last that it was made of      64  created_ns u64
     72  reserved u32   76 crc u32 (of bytes 0..75)

    chunk = header, then stored_length bytes
      chunk header (CHUNK_HEADER_BYTES = 64)
      0  magic u32 b"WPCK"  4  version u8   5  codec u8 (0 stored, 1 zlib)   6  flags u16
      8  offset u64 (in the file)
     16  after u64      24  through u64: the chunk answers for the LSNs above after up to through
     32  records u32    36  entries u32
     40  raw_length u32 44  stored_length u32
     48  log_id u64 (the first 8 bytes)
     56  payload_crc u32 (of the bytes as stored)       60 header_crc u32

    a chunk's bytes, once unpacked: entries, one behind the other
      entry (ENTRY_BYTES = 40)
      0  kind u8 (1 block, 2 lost)  1  0 x3   4  sections u32   8  length u32   12 payload_crc u32
     16  first_lsn u64  24  lsns u64    32  commit_time u64
      block: sections x (LSNs of the block in front of this section u32), then the sections as in
             the log (wald.core.frame); payload CRC, LSNs and commit time are the whole block's,
             so that they are its anchor. The last block of a range stands there also if it has
             no record of the stream.
      lost:  one msgpack map {segment, offset, reason, records}: damage that was found on the way

    tail = head again, every chunk header again, trailer
      trailer (TRAILER_BYTES = 40)
      0  magic 8s b"WALDPEND"   8  chunks u32   12 0 x4
     16  records u64    24  raw_bytes u64    32  0 x4    36 crc u32 (of the tail up to here)

Head and chunk headers stand there twice, so that a flipped bit, or a lost page, costs no more
than the chunks it lies in.
"""

import zlib
from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from struct import error as StructError  # noqa: N812 - a class, named like one
from typing import NamedTuple, TypeAlias, cast

from wald import limits
from wald.core import frame
from wald.core.frame import Section, crc32c, short_log_id
from wald.errors import FormatDamaged, FormatNewer
from wald.model import Anchor, LostRange, Lsn, StreamId

FORMAT = 1
HEAD_MAGIC = b"WALDPACK"
TRAILER_MAGIC = b"WALDPEND"
CHUNK_MAGIC = 0x4B435057  # "WPCK" as bytes on disk
CHUNK_VERSION = 1

_HEAD = Struct("<8sHH4x16sIIQQQQI")
_CRC = Struct("<I")
_CHUNK = Struct("<IBBHQQQIIIIQI")
_ENTRY = Struct("<B3xIIIQQQ")
_TRAILER = Struct("<8sI4xQQ4x")

PACKED_HEAD_BYTES = _HEAD.size + _CRC.size
CHUNK_HEADER_BYTES = _CHUNK.size + _CRC.size
ENTRY_BYTES = _ENTRY.size
TRAILER_BYTES = _TRAILER.size + _CRC.size

assert PACKED_HEAD_BYTES == 80
assert CHUNK_HEADER_BYTES == 64
assert ENTRY_BYTES == 40
assert TRAILER_BYTES == 40

_OFFSET = Struct("<I")
_LEVEL = 1  # of zlib: three quarters of what level 6 saves, in a fifth of its time


class ChunkCodec(IntEnum):
    """How the bytes of a chunk are stored."""

    STORED = 0
    ZLIB = 1


class _EntryKind(IntEnum):
    BLOCK = 1
    LOST = 2


class PackedHead(NamedTuple):
    """What a packed file is: of which log and stream, and for which LSNs it answers."""

    log_id: bytes
    stream_id: StreamId
    lo: Lsn
    hi: Lsn
    segment: int
    created_ns: int


class ChunkHeader(NamedTuple):
    """The first bytes of a chunk; it answers for the LSNs above ``after`` up to ``through``."""

    codec: int
    offset: int
    after: Lsn
    through: Lsn
    records: int
    entries: int
    raw_length: int
    stored_length: int
    log_id: int
    payload_crc: int

    @property
    def end(self) -> int:
        """The offset behind the chunk."""
        return self.offset + CHUNK_HEADER_BYTES + self.stored_length


class PackedBlock(NamedTuple):
    """What is left of a block of the log: its anchor, its LSNs, and the stream's sections."""

    first_lsn: Lsn
    lsns: int
    anchor: Anchor
    sections: tuple[tuple[Lsn, Section], ...]

    @property
    def last_lsn(self) -> Lsn:
        """The LSN of the block's last record, of whatever stream."""
        return self.first_lsn + self.lsns - 1


Entry: TypeAlias = PackedBlock | LostRange


class PackedTail(NamedTuple):
    """What stands at the end of a file: all of it but the records, once more."""

    head: PackedHead
    chunks: tuple[ChunkHeader, ...]
    records: int
    raw_bytes: int


# --- head and tail ------------------------------------------------------------------------------


def encode_head(head: PackedHead) -> bytes:
    """Pack a head."""
    log_id, stream_id, lo, hi, segment, created_ns = head
    fields = (log_id, stream_id, 0, lo, hi, segment, created_ns, 0)
    packed = _HEAD.pack(HEAD_MAGIC, FORMAT, FORMAT, *fields)
    return packed + _CRC.pack(crc32c(packed))


def decode_head(data: bytes) -> PackedHead:
    """Unpack the first bytes of a file.

    Raises:
        FormatNewer: whole, but written by a release whose format this one cannot read.
        FormatDamaged: torn, foreign, or all zeros.
    """
    if len(data) < PACKED_HEAD_BYTES:
        msg = "the head of a packed file is cut short"
        raise FormatDamaged(msg)
    magic, _, oldest_reader, log_id, stream_id, _, *rest = _HEAD.unpack_from(data)
    (crc,) = _CRC.unpack_from(data, _HEAD.size)
    if magic != HEAD_MAGIC or crc != crc32c(data[: _HEAD.size]):
        msg = "the head of a packed file does not match its checksum"
        raise FormatDamaged(msg)
    if oldest_reader > FORMAT:
        msg = f"a packed file needs a reader of format {oldest_reader}, this is format {FORMAT}"
        raise FormatNewer(msg, needs_format=oldest_reader, has_format=FORMAT)
    head = PackedHead(log_id, stream_id, *rest[:4])
    if not head.lo < head.hi <= limits.LSN_MAX:
        msg = "the head of a packed file holds impossible values"
        raise FormatDamaged(msg)
    return head


def encode_tail(tail: PackedTail) -> bytes:
    """Pack a tail."""
    parts = [encode_head(tail.head), *map(encode_chunk_header, tail.chunks)]
    parts.append(_TRAILER.pack(TRAILER_MAGIC, len(tail.chunks), tail.records, tail.raw_bytes))
    packed = b"".join(parts)
    return packed + _CRC.pack(crc32c(packed))


def tail_length(trailer: bytes) -> int:
    """Return how long a tail is, by its last bytes; its checksum is not known yet.

    Raises:
        FormatDamaged: there is no trailer, or it names more chunks than a file may have.
    """
    if len(trailer) < TRAILER_BYTES:
        msg = "the end of a packed file is cut short"
        raise FormatDamaged(msg)
    magic, chunks, _, _ = _TRAILER.unpack_from(trailer, len(trailer) - TRAILER_BYTES)
    if magic != TRAILER_MAGIC or chunks > limits.PACKED_CHUNKS_MAX:
        msg = "a packed file does not end as it should"
        raise FormatDamaged(msg)
    return PACKED_HEAD_BYTES + int(chunks) * CHUNK_HEADER_BYTES + TRAILER_BYTES


def decode_tail(data: bytes) -> PackedTail:
    """Unpack a tail, which is all of ``data``.

    Raises:
        FormatNewer: whole, but a newer release wrote it.
        FormatDamaged: it is not whole.
    """
    if tail_length(data) != len(data):
        msg = "a packed file does not end as it should"
        raise FormatDamaged(msg)
    (crc,) = _CRC.unpack_from(data, len(data) - _CRC.size)
    if crc != crc32c(data[: len(data) - _CRC.size]):
        msg = "the tail of a packed file does not match its checksum"
        raise FormatDamaged(msg)
    head = decode_head(data)
    _, count, records, raw_bytes = _TRAILER.unpack_from(data, len(data) - TRAILER_BYTES)
    chunks = []
    for index in range(count):
        chunk = decode_chunk_header(data, PACKED_HEAD_BYTES + index * CHUNK_HEADER_BYTES)
        if chunk is None:
            msg = "the tail of a packed file names a chunk that cannot be"
            raise FormatDamaged(msg)
        chunks.append(chunk)
    return PackedTail(head, tuple(chunks), records, raw_bytes)


# --- chunks -------------------------------------------------------------------------------------


def encode_chunk_header(chunk: ChunkHeader) -> bytes:
    """Pack the header of a chunk."""
    packed = _CHUNK.pack(CHUNK_MAGIC, CHUNK_VERSION, chunk.codec, 0, *chunk[1:])
    return packed + _CRC.pack(crc32c(packed))


def decode_chunk_header(data: bytes, at: int = 0) -> ChunkHeader | None:
    """Unpack the header of a chunk; None where there is none that is whole.

    Raises:
        FormatNewer: a whole one of a newer version.
    """
    if len(data) < at + CHUNK_HEADER_BYTES:
        return None
    magic, version, codec, _, *rest = _CHUNK.unpack_from(data, at)
    (crc,) = _CRC.unpack_from(data, at + _CHUNK.size)
    if magic != CHUNK_MAGIC or crc != crc32c(data[at : at + _CHUNK.size]):
        return None
    if version > CHUNK_VERSION:
        msg = f"a packed chunk has version {version}, this release reads up to {CHUNK_VERSION}"
        raise FormatNewer(msg, needs_format=version, has_format=CHUNK_VERSION)
    chunk = ChunkHeader(codec, *rest)
    possible = (
        codec in ChunkCodec._value2member_map_
        and chunk.after < chunk.through
        and chunk.raw_length <= limits.PACKED_CHUNK_RAW_MAX_BYTES
        and chunk.stored_length <= chunk.raw_length
    )
    return chunk if possible else None


class ChunkBuilder:
    """Gathers entries until a chunk is full."""

    def __init__(self, log_id: bytes) -> None:
        self._log_id = short_log_id(log_id)
        self._parts: list[bytes] = []
        self._records = 0
        self.raw_length = 0
        self.through: Lsn = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added since the last chunk."""
        return not self._parts

    def has_room(self, packed: bytes) -> bool:
        """Tell whether an entry still fits; an empty chunk takes any that the log can hold."""
        return self.is_empty or self.raw_length + len(packed) <= limits.PACKED_CHUNK_BYTES

    def add(self, entry: Entry, packed: bytes) -> None:
        """Put an entry, packed by ``encode_entry``, behind the others."""
        self._parts.append(packed)
        self.raw_length += len(packed)
        self.through = entry.last_lsn
        if isinstance(entry, PackedBlock):
            self._records += sum(section.records for _, section in entry.sections)

    def build(self, offset: int, after: Lsn, through: Lsn) -> tuple[ChunkHeader, bytes]:
        """Return the chunk that stands at an offset, header and bytes, and begin the next."""
        raw = b"".join(self._parts)
        stored, codec = zlib.compress(raw, _LEVEL), ChunkCodec.ZLIB
        if len(stored) >= len(raw):
            stored, codec = raw, ChunkCodec.STORED
        chunk = ChunkHeader(
            codec,
            offset,
            after,
            through,
            self._records,
            len(self._parts),
            len(raw),
            len(stored),
            self._log_id,
            crc32c(stored),
        )
        self._parts, self._records, self.raw_length = [], 0, 0
        return chunk, encode_chunk_header(chunk) + stored


def decode_chunk(chunk: ChunkHeader, stored: bytes) -> list[Entry]:
    """Unpack the entries of a chunk, no more memory than its header says.

    Raises:
        FormatDamaged: the bytes are not the chunk's.
    """
    if len(stored) != chunk.stored_length or crc32c(stored) != chunk.payload_crc:
        msg = "a packed chunk does not match its checksum"
        raise FormatDamaged(msg)
    raw = stored if chunk.codec == ChunkCodec.STORED else _inflate(stored, chunk.raw_length)
    if len(raw) != chunk.raw_length:
        msg = "a packed chunk is not as long as it says"
        raise FormatDamaged(msg)
    return list(_decode_entries(raw, chunk.entries))


def _inflate(stored: bytes, raw_length: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(stored, raw_length + 1)
    except zlib.error as error:
        msg = "a packed chunk cannot be unpacked"
        raise FormatDamaged(msg) from error


# --- entries ------------------------------------------------------------------------------------


def encode_entry(entry: Entry) -> bytes:
    """Pack a block or a loss."""
    if isinstance(entry, LostRange):
        body = frame.pack_statement(
            {
                "segment": entry.segment,
                "offset": entry.offset_bytes,
                "reason": entry.reason,
                "records": entry.records,
            }
        )
        lsns = entry.last_lsn - entry.first_lsn + 1
        return _ENTRY.pack(_EntryKind.LOST, 0, len(body), 0, entry.first_lsn, lsns, 0) + body
    offsets = b"".join(_OFFSET.pack(lsn - entry.first_lsn) for lsn, _ in entry.sections)
    body = offsets + frame.join_sections([section for _, section in entry.sections])
    crc, time_ns = entry.anchor
    count = len(entry.sections)
    fields = (_EntryKind.BLOCK, count, len(body), crc, entry.first_lsn, entry.lsns, time_ns)
    return _ENTRY.pack(*fields) + body


def _decode_entries(raw: bytes, count: int) -> Iterator[Entry]:
    at = 0
    try:
        for _ in range(count):
            kind, sections, length, crc, first_lsn, lsns, time_ns = _ENTRY.unpack_from(raw, at)
            body = raw[at + ENTRY_BYTES : at + ENTRY_BYTES + length]
            at += ENTRY_BYTES + length
            if kind == _EntryKind.LOST:
                yield _decode_lost(first_lsn, lsns, body)
            else:
                begin = _OFFSET.size * sections
                offsets = [first_lsn + row[0] for row in _OFFSET.iter_unpack(body[:begin])]
                held = frame.decode_sections(body[begin:], sections)
                numbered = tuple(zip(offsets, held, strict=True))
                yield PackedBlock(first_lsn, lsns, Anchor(crc, time_ns), numbered)
    except (StructError, ValueError, KeyError, TypeError) as error:
        msg = "an entry of a packed chunk cannot be unpacked"
        raise FormatDamaged(msg) from error
    if at != len(raw):
        msg = "a packed chunk holds more than its entries"
        raise FormatDamaged(msg)


def _decode_lost(first_lsn: Lsn, lsns: int, body: bytes) -> LostRange:
    said = frame.unpack_statement(body)
    return LostRange(
        first_lsn,
        first_lsn + lsns - 1,
        cast("int", said["segment"]),
        cast("int", said["offset"]),
        cast("str", said["reason"]),
        cast("int | None", said["records"]),
    )
