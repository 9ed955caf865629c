"""Packed files, byte by byte: what is drawn is what is written, damage is found where it lies."""

import zlib
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.logtools import append
from wald import limits
from wald.core import packed
from wald.core.frame import crc32c
from wald.core.packed import ChunkBuilder, ChunkCodec, PackedBlock, PackedHead, PackedTail
from wald.errors import FormatDamaged, FormatNewer
from wald.model import Anchor, LostRange

LOG_ID = bytes(range(16))
HEAD = PackedHead(LOG_ID, 3, 10, 400, 7, 1_700_000_000_000_000_000)
LOST = LostRange(30, 39, 6, 8192, "blocks do not match", 4)


def block(first: int, *values: bytes, lsns: int | None = None) -> PackedBlock:
    section = append(1, *values)
    return PackedBlock(first, lsns or len(values), Anchor(first, 99), ((first, section),))


ENTRIES = [block(11, b"a", b"b"), block(20, b"c" * 100), LOST, PackedBlock(50, 2, Anchor(5, 6), ())]


def chunk_of(entries, *, after=10, through=400):
    builder = ChunkBuilder(LOG_ID)
    for entry in entries:
        builder.add(entry, packed.encode_entry(entry))
    return builder.build(packed.PACKED_HEAD_BYTES, after, through)


def test_the_head_is_where_it_is_drawn():
    data = packed.encode_head(HEAD)
    assert (data[:8], len(data)) == (b"WALDPACK", packed.PACKED_HEAD_BYTES)
    assert data[8:12] == bytes([1, 0, 1, 0])
    assert data[16:32] == LOG_ID
    assert [int.from_bytes(data[at : at + 8], "little") for at in (40, 48, 56, 64)] == [
        10,
        400,
        7,
        HEAD.created_ns,
    ]
    assert packed.decode_head(data) == HEAD


def test_a_chunk_gives_its_entries_back():
    header, data = chunk_of(ENTRIES)
    assert packed.decode_chunk_header(data) == header
    assert (header.records, header.entries, header.codec) == (3, 4, ChunkCodec.ZLIB)
    assert header.end == packed.PACKED_HEAD_BYTES + len(data)
    assert packed.decode_chunk(header, data[packed.CHUNK_HEADER_BYTES :]) == ENTRIES


def test_what_does_not_shrink_is_stored_as_it_is():
    noise = Random(1).randbytes(4096)
    header, data = chunk_of([block(11, noise)])
    assert header.codec == ChunkCodec.STORED
    assert header.stored_length == header.raw_length
    assert packed.decode_chunk(header, data[packed.CHUNK_HEADER_BYTES :]) == [block(11, noise)]


def test_a_builder_is_empty_again_and_takes_any_entry_first():
    builder = ChunkBuilder(LOG_ID)
    large = packed.encode_entry(block(11, b"x" * limits.PACKED_CHUNK_BYTES))
    assert builder.has_room(large)
    builder.add(block(11, b"x" * limits.PACKED_CHUNK_BYTES), large)
    assert not builder.has_room(packed.encode_entry(block(12, b"y")))
    builder.build(0, 10, 11)
    assert builder.is_empty
    assert builder.has_room(large)


def test_a_tail_holds_head_and_chunk_headers_once_more():
    chunks = (chunk_of(ENTRIES, through=60)[0], chunk_of(ENTRIES, after=60)[0])
    tail = PackedTail(HEAD, chunks, 6, 1234)
    data = packed.encode_tail(tail)
    assert packed.tail_length(data[-packed.TRAILER_BYTES :]) == len(data)
    assert packed.decode_tail(data) == tail


@given(st.integers(0), st.integers(0, 7))
def test_a_flipped_bit_of_head_or_tail_is_found(at, bit):
    tail = packed.encode_tail(PackedTail(HEAD, (chunk_of(ENTRIES)[0],), 3, 9))
    head = packed.encode_head(HEAD)
    for data, decode in ((head, packed.decode_head), (tail, packed.decode_tail)):
        place = at % len(data)
        flipped = bytearray(data)
        flipped[place] ^= 1 << bit
        with pytest.raises((FormatDamaged, FormatNewer)) as raised:
            decode(bytes(flipped))
        assert raised.type is FormatDamaged


@given(st.integers(0), st.integers(0, 7))
def test_a_flipped_bit_of_a_chunk_is_found(at, bit):
    header, data = chunk_of(ENTRIES)
    flipped = bytearray(data)
    flipped[at % len(data)] ^= 1 << bit
    found = packed.decode_chunk_header(bytes(flipped))
    if at % len(data) < packed.CHUNK_HEADER_BYTES:
        assert found is None
    else:
        assert found == header
        with pytest.raises(FormatDamaged):
            packed.decode_chunk(header, bytes(flipped[packed.CHUNK_HEADER_BYTES :]))


@given(st.integers(0))
def test_no_prefix_is_taken_for_the_whole(cut):
    header, data = chunk_of(ENTRIES)
    head = packed.encode_head(HEAD)
    tail = packed.encode_tail(PackedTail(HEAD, (header,), 3, 9))
    with pytest.raises(FormatDamaged):
        packed.decode_head(head[: cut % len(head)])
    with pytest.raises(FormatDamaged):
        packed.decode_tail(tail[: cut % len(tail)])
    assert packed.decode_chunk_header(data[: cut % packed.CHUNK_HEADER_BYTES]) is None
    stored = data[packed.CHUNK_HEADER_BYTES :]
    with pytest.raises(FormatDamaged):
        packed.decode_chunk(header, stored[: cut % len(stored)])


def with_crc(data: bytes, size: int) -> bytes:
    return data[:size] + packed._CRC.pack(crc32c(data[:size])) + data[size + 4 :]


def test_a_newer_format_is_not_damage():
    head = bytearray(packed.encode_head(HEAD))
    head[10] = 2
    with pytest.raises(FormatNewer):
        packed.decode_head(with_crc(bytes(head), packed._HEAD.size))
    _, data = chunk_of(ENTRIES)
    newer = bytearray(data)
    newer[4] = 2
    with pytest.raises(FormatNewer):
        packed.decode_chunk_header(with_crc(bytes(newer), packed._CHUNK.size))


def reworked(header, raw: bytes, **changes):
    """A chunk whose checksums hold and whose bytes do not: a bug, or a hostile file."""
    changed = header._replace(
        codec=ChunkCodec.STORED,
        raw_length=len(raw),
        stored_length=len(raw),
        payload_crc=crc32c(raw),
    )
    return changed._replace(**changes), raw


@pytest.mark.parametrize(
    ("raw", "changes"),
    [
        pytest.param(b"", {"entries": 1}, id="an entry that is not there"),
        pytest.param(b"x" * 10, {"entries": 1}, id="an entry cut short"),
        pytest.param(b"\2" + bytes(39), {"entries": 1}, id="a loss without words"),
        pytest.param(b"\1" + bytes(39) + b"x", {"entries": 1}, id="bytes behind the entries"),
        pytest.param(
            b"\1\0\0\0\1" + bytes(35), {"entries": 1}, id="a block without the sections it names"
        ),
        pytest.param(b"noise", {"codec": ChunkCodec.ZLIB}, id="not zlib"),
        pytest.param(b"abc", {"raw_length": 9}, id="shorter than it says"),
    ],
)
def test_bytes_that_cannot_be_a_chunk_are_damage(raw, changes):
    header, _ = chunk_of(ENTRIES)
    changed, data = reworked(header, raw, **changes)
    with pytest.raises(FormatDamaged):
        packed.decode_chunk(changed, data)


def test_a_small_chunk_cannot_grow_to_much_memory():
    bomb = zlib.compress(bytes(64 * limits.MIB))
    header, _ = chunk_of(ENTRIES)
    changed, data = reworked(header, bomb, codec=ChunkCodec.ZLIB, raw_length=1000)
    with pytest.raises(FormatDamaged, match="as long as"):
        packed.decode_chunk(changed, data)


@pytest.mark.parametrize(
    "changes",
    [
        {"codec": 9},
        {"through": 10},
        {"raw_length": limits.PACKED_CHUNK_RAW_MAX_BYTES + 1},
        {"stored_length": 1 << 31},
    ],
)
def test_a_header_with_impossible_values_is_none(changes):
    header, _ = chunk_of(ENTRIES)
    assert (
        packed.decode_chunk_header(packed.encode_chunk_header(header._replace(**changes))) is None
    )


def test_impossible_heads_and_tails_are_damage():
    with pytest.raises(FormatDamaged, match="impossible"):
        packed.decode_head(packed.encode_head(HEAD._replace(hi=HEAD.lo)))
    header = chunk_of(ENTRIES)[0]._replace(through=0)
    with pytest.raises(FormatDamaged, match="cannot be"):
        packed.decode_tail(packed.encode_tail(PackedTail(HEAD, (header,), 3, 9)))
    many = packed._TRAILER.pack(packed.TRAILER_MAGIC, limits.PACKED_CHUNKS_MAX + 1, 0, 0)
    with pytest.raises(FormatDamaged):
        packed.tail_length(many + bytes(4))
