"""Disk format 1, whole and byte by byte: what is not exactly right is refused, by type."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wald import limits
from wald.core import frame
from wald.core.frame import (
    BlockHeader,
    BlockKind,
    RefusedRecord,
    RequestEntry,
    Section,
    SectionKind,
    SegmentHeader,
    SegmentKind,
)
from wald.errors import FormatDamaged, FormatNewer

LOG_ID = bytes(range(1, 17))
SEGMENT = SegmentHeader(
    SegmentKind.ROLL, 4096, LOG_ID, 9, 0x1122334455667788, 501, 8, 61_440, 500, 1_750_000_000_000
)
BLOCK = BlockHeader(
    BlockKind.RECORDS,
    1,
    frame.short_log_id(LOG_ID),
    9,
    SEGMENT.salt,
    8192,
    501,
    500,
    7,
    2,
    300,
    0xDEADBEEF,
    1_750_000_000_123,
    0,
    0xCAFEBABE,
)
SECTION = Section(
    SectionKind.APPEND,
    1,
    3,
    2**63 + 5,
    41,
    40,
    3,
    frame._REQUEST.pack(2, 2, 5, 1) + frame._REQUEST.pack(2, 1, 4, 2),
    (RefusedRecord(1, 0, "record.too-large"),),
    b"helloabcd",
)


def flips(data: bytes):
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            yield at, bytes(changed)


# --- segment headers ----------------------------------------------------------------------------


def test_a_segment_header_comes_back_as_it_was():
    page = frame.encode_segment_header(SEGMENT)
    assert len(page) == SEGMENT.alignment
    assert frame.decode_segment_header(page) == SEGMENT
    assert frame.segment_header_crc(page) == frame.crc32c(page[:96])
    assert not any(page[frame.SEGMENT_HEADER_BYTES :])


def test_no_prefix_of_a_segment_header_is_one():
    page = frame.encode_segment_header(SEGMENT)
    for length in range(frame.SEGMENT_HEADER_BYTES):
        with pytest.raises(FormatDamaged):
            frame.decode_segment_header(page[:length])
        with pytest.raises(FormatDamaged):
            frame.decode_segment_header(page[:length].ljust(4096, b"\0"))


def test_no_flipped_bit_in_a_segment_header_is_overlooked():
    page = frame.encode_segment_header(SEGMENT)[: frame.SEGMENT_HEADER_BYTES]
    for _, changed in flips(page):
        with pytest.raises(FormatDamaged):
            frame.decode_segment_header(changed)


def with_crc(page: bytearray, length: int) -> bytes:
    page[length : length + 4] = frame.crc32c(bytes(page[:length])).to_bytes(4, "little")
    return bytes(page)


def test_a_newer_segment_is_not_taken_for_damage():
    page = bytearray(frame.encode_segment_header(SEGMENT))
    page[8:12] = b"\x09\0\x02\0"
    with pytest.raises(FormatNewer) as caught:
        frame.decode_segment_header(with_crc(page, 96))
    assert caught.value.facts == {"needs_format": 2, "has_format": 1}
    page[8:12] = b"\x09\0\x01\0"  # newer, but this release may read it
    assert frame.decode_segment_header(with_crc(page, 96)) == SEGMENT


@pytest.mark.parametrize(
    ("at", "value"),
    [
        pytest.param(12, b"\x00", id="no kind"),
        pytest.param(12, b"\x04", id="an unknown kind"),
        pytest.param(16, (2048).to_bytes(4, "little"), id="an alignment that is too small"),
        pytest.param(16, (131_072).to_bytes(4, "little"), id="one that is too large"),
        pytest.param(16, (4097).to_bytes(4, "little"), id="one that is no power of two"),
    ],
)
def test_impossible_values_in_a_segment_header_are_damage(at: int, value: bytes):
    page = bytearray(frame.encode_segment_header(SEGMENT))
    page[at : at + len(value)] = value
    with pytest.raises(FormatDamaged):
        frame.decode_segment_header(with_crc(page, 96))


# --- block headers ------------------------------------------------------------------------------


def test_a_block_header_comes_back_as_it_was():
    packed = frame.encode_block_header(BLOCK)
    crc = frame.block_header_crc(packed)
    assert len(packed) == frame.BLOCK_HEADER_BYTES
    assert frame.decode_block_header(packed) == BLOCK._replace(header_crc=crc)
    assert frame.decode_block_header(b"xxx" + packed, 3) == BLOCK._replace(header_crc=crc)
    assert frame.decode_block_header(memoryview(packed)) == BLOCK._replace(header_crc=crc)


def test_no_prefix_of_a_block_header_is_one():
    packed = frame.encode_block_header(BLOCK)
    for length in range(len(packed)):
        assert frame.decode_block_header(packed[:length]) is None
        padded = packed[:length].ljust(len(packed), b"\0")
        assert padded == packed or frame.decode_block_header(padded) is None


def test_no_flipped_bit_in_a_block_header_is_overlooked():
    for _, changed in flips(frame.encode_block_header(BLOCK)):
        assert frame.decode_block_header(changed) is None


def test_zeros_are_no_block():
    assert frame.decode_block_header(bytes(4096)) is None


def test_a_newer_block_is_not_taken_for_damage():
    packed = bytearray(frame.encode_block_header(BLOCK))
    packed[4] = 2
    with pytest.raises(FormatNewer):
        frame.decode_block_header(with_crc(packed, 92))


def test_an_unknown_kind_of_block_is_none():
    packed = bytearray(frame.encode_block_header(BLOCK))
    packed[5] = 99
    assert frame.decode_block_header(with_crc(packed, 92)) is None


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(BLOCK._replace(segment=8), id="another segment"),
        pytest.param(BLOCK._replace(salt=1), id="another life of the file"),
        pytest.param(BLOCK._replace(offset=4096), id="another place"),
        pytest.param(BLOCK._replace(log_id=1), id="another log"),
        pytest.param(
            BLOCK._replace(payload_length=limits.SEGMENT_BYTES + 1), id="an impossible length"
        ),
    ],
)
def test_a_block_belongs_to_one_place_of_one_life_of_a_file(changed: BlockHeader):
    assert frame.belongs(BLOCK, SEGMENT, 8192)
    assert not frame.belongs(changed, SEGMENT, 8192)


def test_a_block_says_where_it_ends():
    assert BLOCK.last_lsn == 507
    assert BLOCK.end(4096) == 12_288
    assert BLOCK._replace(records=0).last_lsn == 500
    assert frame.block_bytes(4096 - 96, 4096) == 4096
    assert frame.block_bytes(4096 - 95, 4096) == 8192
    assert frame.block_bytes(0, 65_536) == 65_536


# --- sections -----------------------------------------------------------------------------------


def test_a_section_comes_back_as_it_was():
    control = frame.control_section(SectionKind.STREAM, {"stream": 1, "name": "x"})
    payload = frame.join_sections([SECTION, control, SECTION])
    assert len(payload) == 2 * frame.section_bytes(SECTION) + frame.section_bytes(control)
    assert list(frame.decode_sections(payload, 3)) == [SECTION, control, SECTION]
    assert control.statement() == {"stream": 1, "name": "x"}
    assert (SECTION.request_count, SECTION.last_sequence) == (2, 42)
    assert frame.request_entries(SECTION) == [RequestEntry(2, 2, 5, 1), RequestEntry(2, 1, 4, 2)]


def test_no_prefix_of_sections_is_read_past_its_end():
    payload = frame.join_sections([SECTION, SECTION])
    for length in range(len(payload)):
        with pytest.raises(FormatDamaged):
            list(frame.decode_sections(payload[:length], 2))


def test_a_flipped_bit_in_a_section_never_raises_anything_else():
    """The payload's CRC finds it; should the code that checks it err, nothing else may happen."""
    for _, changed in flips(frame.join_sections([SECTION])):
        try:
            for section in frame.decode_sections(changed, 1):
                frame.request_entries(section)
        except FormatDamaged:
            continue


def test_the_payload_checksum_finds_every_flipped_bit():
    payload = frame.join_sections([SECTION])
    crc = frame.crc32c(payload)
    assert all(frame.crc32c(changed) != crc for _, changed in flips(payload))


def test_the_checksum_is_castagnoli():
    assert frame.crc32c(b"123456789") == 0xE3069283  # RFC 3720


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\x01", b"\x93\x01\x02\x03", b"\x81\x01\x02", b"\x81\xa1a", b"\x91" * 3000],
)
def test_what_is_no_statement_is_damage(data: bytes):
    with pytest.raises(FormatDamaged):
        frame.unpack_statement(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 4))
def test_any_bytes_are_sections_or_damage(data: bytes, count: int):
    try:
        for section in frame.decode_sections(data, count):
            frame.request_entries(section)
    except FormatDamaged:
        return


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_none(data: bytes):
    assert frame.decode_block_header(data) is None
    with pytest.raises(FormatDamaged):
        frame.decode_segment_header(data)


def test_random_sections_come_back_as_they_were():
    chance = Random(11)
    for _ in range(200):
        count = chance.randrange(5)
        refusals = tuple(
            RefusedRecord(
                chance.randrange(9), chance.randrange(99), "r." + "x" * chance.randrange(20)
            )
            for _ in range(chance.randrange(3))
        )
        section = SECTION._replace(
            stream=chance.randrange(2**32),
            session=chance.randrange(2**64),
            first_sequence=chance.randrange(2**64),
            requests=chance.randbytes(frame.REQUEST_BYTES * count),
            refusals=refusals,
            bodies=chance.randbytes(chance.randrange(300)),
        )
        assert list(frame.decode_sections(frame.join_sections([section]), 1)) == [section]
