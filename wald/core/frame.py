"""Disk format 1: segments, blocks, sections. Drawn, packed and measured here and nowhere else.

A segment is a preallocated file that starts with one header page and goes on with blocks; every
block starts on an alignment boundary and is padded with zeros to the next. All integers are
little-endian.

    segment  | header page | snapshot block(s) | block | block | ... | zeros |

    header page (SEGMENT_HEADER_BYTES, then zeros up to the alignment)
      0  magic        8s  b"WALDSEG1"
      8  format       u16   10  oldest_reader u16   12  kind u8 (1 PREP 2 ROLL 3 FRESH)  13  0 x3
     16  alignment    u32   20  reserved u32
     24  log_id       16s
     40  segment      u64   48  salt u64            56  first_lsn u64
     64  pred_segment u64   72  pred_end u64        80  pred_last_lsn u64
     88  created_ns   u64   96  crc u32 (of bytes 0..95)

    block header (BLOCK_HEADER_BYTES = 96)
      0  magic u32          4  version u8   5  kind u8   6  flags u16
      8  log_id u64 (the first 8 bytes)    16  segment u64       24  salt u64
     32  offset u64        40  first_lsn u64       48  prev_lsn u64
     56  records u32       60  sections u32        64  payload_length u32   68  prev_header_crc u32
     72  commit_time u64   80  next_segment u64    88  payload_crc u32      92  header_crc u32

    payload = sections, one behind the other

    section (SECTION_BYTES, then what its kind has)
      0  kind u8   1  codec u8   2  flags u16   4  stream u32
      8  session u64       16  first_sequence u64  24  answered_through u64
     32  requests u32      36  refusals u32        40  records u32          44  body_length u32
      append:   requests x (records in all u32, records stored u32, body length u32, body CRC u32),
                refusals x (request index u32, record index u32, code length u8 + code, padded
                to REFUSAL_BYTES), bodies one behind the other
      control and snapshot parts: one msgpack map

    kinds of sections, and the fields of their maps
      1 APPEND   2 SESSION session, name   3 STREAM stream, name
      4 ROUTE_BIRTH route, name, stream, sink, digest, birth_lsn, birth_records, birth_bytes
      5 ROUTE_DEATH route   6 SNAPSHOT parts of the state   7 SESSION_END session
      8 SESSION_TAKEN session, takeovers

A section holds a run of consecutive requests of one session to one stream: LSNs are given to the
stored records of a block in the order of its sections, requests and values. The CRC of a request
is over its body as received (it decides what is a duplicate); the payload CRC guards the disk. A
refused record is not in the stored body.

Salt, segment and offset stand in each block, so that a payload which contains a copied block at
an aligned offset is not taken for one. Two CRCs, so that the LSNs of a torn block can be named.
Zero is never a valid magic.
"""

from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from struct import Struct
from typing import NamedTuple, cast

import google_crc32c
import msgpack

from wald import limits
from wald.errors import FormatDamaged, FormatNewer
from wald.model import Lsn

FORMAT = 1
SEGMENT_MAGIC = b"WALDSEG1"
BLOCK_MAGIC = 0x4B4C4257  # "WBLK" as bytes on disk
BLOCK_VERSION = 1

_SEGMENT = Struct("<8sHHB3xII16sQQQQQQQ")
_CRC = Struct("<I")
_BLOCK = Struct("<IBBHQQQQQQIIIIQQI")
_SECTION = Struct("<BBHIQQQIIII")
_REQUEST = Struct("<IIII")
_REFUSAL = Struct("<II23pB")

SEGMENT_HEADER_BYTES = _SEGMENT.size + _CRC.size
BLOCK_HEADER_BYTES = _BLOCK.size + _CRC.size
SECTION_BYTES = _SECTION.size
REQUEST_BYTES = _REQUEST.size
REFUSAL_BYTES = _REFUSAL.size
REFUSAL_CODE_MAX_BYTES = 22

assert SEGMENT_HEADER_BYTES == 100
assert BLOCK_HEADER_BYTES == 96
assert SECTION_BYTES == 48
assert REQUEST_BYTES == 16
assert REFUSAL_BYTES == 32


# The CRC-32C (Castagnoli, RFC 3720) of some bytes; C itself, since each request calls it.
crc32c: Callable[[bytes], int] = google_crc32c.value


class SegmentKind(IntEnum):
    """PREP: prepared, unused. ROLL: follows its predecessor's seal. FRESH: of the fresh path."""

    PREP = 1
    ROLL = 2
    FRESH = 3


class BlockKind(IntEnum):
    """What a block is for; only RECORDS and CONTROL blocks are groups."""

    RECORDS = 1
    SNAPSHOT = 2
    IDLE_CLOSE = 3
    SEAL = 4
    CONTROL = 5


class BlockFlag(IntEnum):
    """Bits of a block's flags."""

    HAS_CONTROL = 1  # a RECORDS block with control sections in it: catalogue readers look inside
    SNAPSHOT_FIRST = 2  # the first block of a segment's snapshot
    SNAPSHOT_LAST = 4  # the last one: between the two, unbroken, the snapshot is whole


class SectionKind(IntEnum):
    """What a section says; all but APPEND carry one msgpack map."""

    APPEND = 1
    SESSION = 2  # a session was issued: session, name
    STREAM = 3  # a stream got its durable id: stream, name
    ROUTE_BIRTH = 4  # route, name, stream, sink, birth LSN, records of the stream at birth
    ROUTE_DEATH = 5  # route
    SNAPSHOT = 6  # a part of the state before the next block
    SESSION_END = 7  # a session was left or evicted: session
    SESSION_TAKEN = 8  # another client of its name took it: session, takeovers


# a start reads up to a segment of these: a look-up takes a third of an enumeration's call
_SECTION_KINDS: dict[int, SectionKind] = {int(kind): kind for kind in SectionKind}
_BLOCK_KINDS: dict[int, BlockKind] = {int(kind): kind for kind in BlockKind}


class SegmentHeader(NamedTuple):
    """The first page of a segment.

    ``first_lsn`` is the next LSN when the segment was begun: that of the first record in it, or of
    the first behind the group in doubt that a start copied to its head.
    """

    kind: SegmentKind
    alignment: int
    log_id: bytes
    segment: int
    salt: int
    first_lsn: Lsn
    pred_segment: int
    pred_end: int
    pred_last_lsn: Lsn
    created_ns: int


class BlockHeader(NamedTuple):
    """The first 96 bytes of a block."""

    kind: BlockKind
    flags: int
    log_id: int
    segment: int
    salt: int
    offset: int
    first_lsn: Lsn
    prev_lsn: Lsn
    records: int
    sections: int
    payload_length: int
    prev_header_crc: int
    commit_time_ns: int
    next_segment: int
    payload_crc: int
    header_crc: int = 0

    @property
    def last_lsn(self) -> Lsn:
        """The LSN of the last record up to and with this block."""
        return self.first_lsn + self.records - 1 if self.records else self.prev_lsn

    def end(self, alignment: int) -> int:
        """Return the offset of the next block."""
        return self.offset + padded(BLOCK_HEADER_BYTES + self.payload_length, alignment)


class RefusedRecord(NamedTuple):
    """A refused record: the index of its request in the section, its own in the request."""

    request: int
    record: int
    code: str


class Section(NamedTuple):
    """A run of requests, or a control statement. See the module's drawing.

    ``requests`` is the packed table (16 bytes a request) and ``bodies`` the bodies in order; for
    other kinds than APPEND, ``bodies`` holds one packed map and ``records`` is 0.
    """

    kind: SectionKind
    codec: int
    stream: int
    session: int
    first_sequence: int
    answered_through: int
    records: int
    requests: bytes
    refusals: tuple[RefusedRecord, ...]
    bodies: bytes

    @property
    def request_count(self) -> int:
        """How many requests the run has."""
        return len(self.requests) // REQUEST_BYTES

    @property
    def last_sequence(self) -> int:
        """The sequence of the run's last request."""
        return self.first_sequence + self.request_count - 1

    def statement(self) -> dict[str, object]:
        """Return what a control or snapshot section says.

        Raises:
            FormatDamaged: the body is not a map of text.
        """
        return unpack_statement(self.bodies)


class RequestEntry(NamedTuple):
    """A row of a section's table of requests."""

    records: int
    stored: int
    body_length: int
    body_crc: int


def padded(length: int, alignment: int) -> int:
    """Round ``length`` up to a multiple of ``alignment``."""
    return -(-length // alignment) * alignment


def block_bytes(payload_length: int, alignment: int) -> int:
    """Return what a block with such a payload takes on disk."""
    return padded(BLOCK_HEADER_BYTES + payload_length, alignment)


# --- segment headers ----------------------------------------------------------------------------


def encode_segment_header(header: SegmentHeader) -> bytes:
    """Pack a header to a whole page of ``header.alignment`` bytes."""
    packed = _SEGMENT.pack(
        SEGMENT_MAGIC,
        FORMAT,
        FORMAT,
        header.kind,
        header.alignment,
        0,
        header.log_id,
        header.segment,
        header.salt,
        header.first_lsn,
        header.pred_segment,
        header.pred_end,
        header.pred_last_lsn,
        header.created_ns,
    )
    return (packed + _CRC.pack(crc32c(packed))).ljust(header.alignment, b"\0")


def decode_segment_header(page: bytes) -> SegmentHeader:
    """Unpack the first page of a segment.

    Raises:
        FormatNewer: whole, but written by a release whose format this one cannot read.
        FormatDamaged: torn, foreign, or all zeros.
    """
    if len(page) < SEGMENT_HEADER_BYTES:
        msg = "the segment header is cut short"
        raise FormatDamaged(msg)
    fields = _SEGMENT.unpack_from(page)
    (crc,) = _CRC.unpack_from(page, _SEGMENT.size)
    if fields[0] != SEGMENT_MAGIC or crc != crc32c(page[: _SEGMENT.size]):
        msg = "the segment header does not match its checksum"
        raise FormatDamaged(msg)
    _, _, oldest_reader, kind, alignment, _, *rest = fields
    if oldest_reader > FORMAT:
        msg = f"the segment needs a reader of format {oldest_reader}, this is format {FORMAT}"
        raise FormatNewer(
            msg,
            needs_format=oldest_reader,
            has_format=FORMAT,
        )
    if (
        kind not in SegmentKind._value2member_map_
        or not limits.ALIGNMENT_MIN_BYTES <= alignment <= limits.ALIGNMENT_MAX_BYTES
        or alignment & (alignment - 1)
    ):
        msg = "the segment header holds impossible values"
        raise FormatDamaged(msg)
    return SegmentHeader(SegmentKind(kind), alignment, *rest)


def segment_header_crc(page: bytes) -> int:
    """Return the CRC in a whole header page: the "previous header CRC" of the first block."""
    return cast("int", _CRC.unpack_from(page, _SEGMENT.size)[0])


# --- blocks -------------------------------------------------------------------------------------


def encode_block_header(header: BlockHeader) -> bytes:
    """Pack a header and its CRC; ``header.header_crc`` is not looked at."""
    packed = _BLOCK.pack(BLOCK_MAGIC, BLOCK_VERSION, header.kind, header.flags, *header[2:15])
    return packed + _CRC.pack(crc32c(packed))


def block_header_crc(packed: bytes) -> int:
    """Return the CRC that stands in a packed block header."""
    return cast("int", _CRC.unpack_from(packed, _BLOCK.size)[0])


def decode_block_header(data: bytes | memoryview, at: int = 0) -> BlockHeader | None:
    """Unpack a block header; None where there is none, or it does not match its CRC.

    Raises:
        FormatNewer: a whole header of a newer version.
    """
    if len(data) < at + BLOCK_HEADER_BYTES:
        return None
    magic, version, kind, flags, *rest = _BLOCK.unpack_from(data, at)
    if magic != BLOCK_MAGIC:
        return None
    (crc,) = _CRC.unpack_from(data, at + _BLOCK.size)
    if crc != crc32c(bytes(data[at : at + _BLOCK.size])):
        return None
    if version > BLOCK_VERSION:
        msg = f"a block has version {version}, this release reads up to {BLOCK_VERSION}"
        raise FormatNewer(
            msg,
            needs_format=version,
            has_format=BLOCK_VERSION,
        )
    block_kind = _BLOCK_KINDS.get(kind)
    if block_kind is None:
        return None
    return BlockHeader._make((block_kind, flags, *rest, crc))


def belongs(header: BlockHeader, segment: SegmentHeader, offset: int) -> bool:
    """Tell whether a block header was written at this place of this segment's present life."""
    return (
        header.segment == segment.segment
        and header.salt == segment.salt
        and header.offset == offset
        and header.log_id == short_log_id(segment.log_id)
        and header.payload_length <= limits.SEGMENT_BYTES
    )


def short_log_id(log_id: bytes) -> int:
    """Return the part of a log id that stands in each block: its first 8 bytes."""
    return int.from_bytes(log_id[:8], "little")


# --- sections -----------------------------------------------------------------------------------


def encode_section(section: Section) -> list[bytes]:
    """Return the parts of a packed section, to be joined with those of others."""
    kind, codec, stream, session, first, answered, records, requests, refusals, bodies = section
    count = len(requests) // REQUEST_BYTES
    head = _SECTION.pack(
        kind, codec, 0, stream, session, first, answered, count, len(refusals), records, len(bodies)
    )
    if not refusals:  # nearly always; one section for each connection and group
        return [head, requests, bodies]
    assert all(len(item.code) <= REFUSAL_CODE_MAX_BYTES for item in refusals)
    refused = [
        _REFUSAL.pack(item.request, item.record, item.code.encode("ascii"), 0) for item in refusals
    ]
    return [head, requests, *refused, bodies]


def section_bytes(section: Section) -> int:
    """Return the packed length of a section."""
    return (
        SECTION_BYTES
        + len(section.requests)
        + REFUSAL_BYTES * len(section.refusals)
        + len(section.bodies)
    )


def decode_sections(payload: bytes, count: int) -> Iterator[Section]:
    """Unpack the sections of a block's payload, whose CRC has been checked.

    Raises:
        FormatDamaged: lengths or kinds are impossible.
    """
    at = 0
    for _ in range(count):
        if at + SECTION_BYTES > len(payload):
            msg = "a section is cut short"
            raise FormatDamaged(msg)
        (kind, codec, _, stream, session, first, answered, requests, refusals, records, length) = (
            _SECTION.unpack_from(payload, at)
        )
        at += SECTION_BYTES
        table_end = at + requests * REQUEST_BYTES
        refusals_end = table_end + refusals * REFUSAL_BYTES
        end = refusals_end + length
        section_kind = _SECTION_KINDS.get(kind)
        if end > len(payload) or section_kind is None:
            msg = "a section holds impossible values"
            raise FormatDamaged(msg)
        yield Section(
            section_kind,
            codec,
            stream,
            session,
            first,
            answered,
            records,
            payload[at:table_end],
            _unpack_refusals(payload[table_end:refusals_end]) if refusals else (),
            payload[refusals_end:end],
        )
        at = end


def _unpack_refusals(packed: bytes) -> tuple[RefusedRecord, ...]:
    return tuple(
        RefusedRecord(request, record, code.decode("ascii", "replace"))
        for request, record, code, _ in _REFUSAL.iter_unpack(packed)
    )


def request_entries(section: Section) -> list[RequestEntry]:
    """Unpack a section's table of requests."""
    return [RequestEntry(*row) for row in _REQUEST.iter_unpack(section.requests)]


def control_section(kind: SectionKind, statement: dict[str, object]) -> Section:
    """Make a section that carries one statement."""
    return Section(kind, 1, 0, 0, 0, 0, 0, b"", (), pack_statement(statement))


def pack_statement(statement: dict[str, object]) -> bytes:
    """Pack a map of text to plain values."""
    return cast("bytes", msgpack.packb(statement, use_bin_type=True))


def unpack_statement(data: bytes) -> dict[str, object]:
    """Unpack what ``pack_statement`` packed.

    Raises:
        FormatDamaged: the bytes are not such a map.
    """
    try:
        statement = msgpack.unpackb(data, strict_map_key=True)
    except (ValueError, TypeError, RecursionError) as error:
        msg = "a statement is not msgpack"
        raise FormatDamaged(msg) from error
    if type(statement) is not dict:
        msg = "a statement is not a map"
        raise FormatDamaged(msg)
    return cast("dict[str, object]", statement)


def join_sections(sections: Sequence[Section], behind: Sequence[bytes] = ()) -> bytes:
    """Pack sections to one payload, with parts that are packed already behind them."""
    parts: list[bytes] = []
    for section in sections:
        parts += encode_section(section)
    parts += behind
    return b"".join(parts)
