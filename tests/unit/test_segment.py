from random import Random

import pytest

from tests.logtools import append, first_group, new_fs
from wald import limits
from wald.core import frame
from wald.core.frame import BlockKind, SegmentHeader, SegmentKind
from wald.errors import FormatNewer
from wald.ports import File
from wald.storage import segment as segments
from wald.storage.segment import BlockReader, Draft, SegmentWriter, read_around
from wald.testing.simfs import SimFileSystem

LOG_ID = bytes(range(16))
PATH = "/var/seg"


def header(alignment: int = 4096, number: int = 3) -> SegmentHeader:
    return SegmentHeader(SegmentKind.FRESH, alignment, LOG_ID, number, 99, 11, 2, 8192, 10, 5)


def records(*sections, first_lsn: int, time_ns: int = 7) -> Draft:
    return Draft(
        BlockKind.RECORDS,
        frame.join_sections(sections),
        len(sections),
        time_ns,
        first_lsn,
        sum(section.records for section in sections),
    )


def written(*drafts: Draft, alignment: int = 4096, path: str = PATH) -> tuple[File, SegmentWriter]:
    """A file with a snapshot and some blocks, and two alignments of stale bytes behind them."""
    fs = new_fs()
    file = fs.create(path)
    file.pwritev([Random(1).randbytes(1 << 20)], 0)
    writer = SegmentWriter(header(alignment))
    writer.attach(file, 1 << 20)
    writer.stage_snapshot(first_group(), 1)
    for draft in drafts:
        writer.stage(draft)
    writer.flush()
    return file, writer


def read_back(file: File, **changes) -> list[segments.SeenBlock]:
    page = segments.read_header(file)
    return list(BlockReader(file, 3, LOG_ID, changes.get("header", page.header)))


def test_names_sort_by_number():
    assert segments.segment_name(42) == "seg-0000000042.wal"
    assert segments.segment_number("seg-0000000042.wal") == 42
    for name in ("seg-42.wal", "seg-0000000042.tmp", "xseg-0000000042.wal", "pool"):
        assert segments.segment_number(name) is None


@pytest.mark.parametrize("alignment", [4096, 8192, 65_536])
def test_blocks_are_read_as_they_were_written(alignment: int):
    one = records(append(1, b"a", b"b"), first_lsn=11)
    two = records(append(2, b"c" * 5000), append(3, b"d"), first_lsn=13)
    file, writer = written(one, two, alignment=alignment)
    blocks = read_back(file)
    assert [block.header.kind for block in blocks] == [
        BlockKind.SNAPSHOT,
        BlockKind.RECORDS,
        BlockKind.RECORDS,
    ]
    assert [block.payload for block in blocks[1:]] == [one.payload, two.payload]
    assert blocks[1].header.prev_header_crc == blocks[0].header.header_crc
    assert blocks[0].header.prev_header_crc == segments.read_header(file).crc
    assert [block.header.prev_lsn for block in blocks] == [10, 10, 12]
    assert writer.last_lsn == 14
    assert writer.end_bytes == blocks[-1].header.end(alignment)
    assert all(block.header.offset % alignment == 0 for block in blocks)


def test_a_block_larger_than_the_chunk_of_a_read_is_read_whole():
    file, _ = written(records(append(1, b"x" * (3 * limits.MIB)), first_lsn=11))
    blocks = read_back(file)
    assert blocks[-1].payload is not None
    assert len(blocks[-1].payload) > 3 * limits.MIB


def test_behind_an_unreadable_header_the_first_whole_block_gives_the_salt():
    file, _ = written(records(append(1, b"a"), first_lsn=11))
    file.pwritev([b"\xff" * 100], 0)
    assert segments.read_header(file).header is None
    assert [block.header.kind for block in read_back(file)] == [
        BlockKind.SNAPSHOT,
        BlockKind.RECORDS,
    ]
    assert list(BlockReader(file, 4, LOG_ID, None)) == []  # under another number
    assert list(BlockReader(file, 3, bytes(16), None)) == []  # of another log


def test_a_payload_that_holds_a_copied_block_is_not_taken_for_one():
    """At an aligned offset of the payload stands a whole block, with all but the salt right."""
    file, _ = written(records(append(1, b"secret"), first_lsn=11))
    stolen = file.pread(4096, 8192)
    fake = frame.decode_block_header(stolen)
    assert fake is not None
    packed = frame.encode_block_header(fake._replace(salt=98, offset=8192 + 4096))
    value = bytes(4096 - 96 - 48 - 16) + packed + stolen[96:]
    draft = records(append(1, value), first_lsn=11)
    shift = draft.payload.index(packed) + 96
    padding = -shift % 4096
    draft = records(append(1, bytes(padding) + value), first_lsn=11)
    file, writer = written(draft)
    at = writer.end_bytes - frame.block_bytes(len(draft.payload), 4096)
    # with the block's own header damaged, the reader looks at every aligned offset inside
    file.pwritev([b"\0\0\0\0"], at)
    assert [block.header.kind for block in read_back(file)] == [BlockKind.SNAPSHOT]


def test_a_damaged_payload_is_named_by_its_header():
    file, writer = written(records(append(1, b"a"), append(2, b"b"), first_lsn=11))
    file.pwritev([b"\xff"], writer.end_bytes - 4096 + 120)
    block = read_back(file)[-1]
    assert block.payload is None
    assert (block.header.first_lsn, block.header.last_lsn) == (11, 12)


def test_a_file_that_ends_inside_a_block_holds_it_no_more():
    file, writer = written(records(append(1, b"a" * 9000), first_lsn=11))
    file.truncate(writer.end_bytes - 4096)
    assert read_back(file)[-1].payload is None
    file.truncate(8192 + 50)
    assert [block.header.kind for block in read_back(file)] == [BlockKind.SNAPSHOT]
    file.truncate(50)
    assert segments.read_header(file).header is None
    assert list(BlockReader(file, 3, LOG_ID, None)) == []


def test_reading_ends_where_it_is_told():
    file, writer = written(records(append(1, b"a"), first_lsn=11))
    page = segments.read_header(file)
    blocks = list(BlockReader(file, 3, LOG_ID, page.header, writer.end_bytes - 4096))
    assert [block.header.kind for block in blocks] == [BlockKind.SNAPSHOT]


def test_a_newer_block_is_refused_by_type():
    file, writer = written(records(append(1, b"a"), first_lsn=11))
    at = writer.end_bytes - 4096
    packed = bytearray(file.pread(96, at))
    packed[4] = 7
    packed[92:] = frame.crc32c(bytes(packed[:92])).to_bytes(4, "little")
    file.pwritev([bytes(packed)], at)
    with pytest.raises(FormatNewer):
        read_back(file)


def test_room_for_a_seal_is_always_kept():
    writer = SegmentWriter(header())
    fs = new_fs()
    writer.attach(fs.create(PATH), 4 * 4096)
    assert writer.has_room(2 * 4096 - 96)
    assert not writer.has_room(2 * 4096 - 95)
    assert writer.need_bytes == 2 * 4096


def test_an_empty_group_of_records_gets_the_lsn_that_follows_and_uses_none():
    file, _ = written(Draft(BlockKind.CONTROL, b"", 0, 5, first_lsn=999))
    assert read_back(file)[-1].header.first_lsn == 11
    assert read_back(file)[-1].header.last_lsn == 10


def test_a_large_snapshot_is_split_and_marked():
    fs = new_fs()
    file = fs.create(PATH)
    writer = SegmentWriter(header())
    writer.attach(file, 1 << 23)
    big = frame.control_section(frame.SectionKind.SNAPSHOT, {"x": b"y" * (700 * 1024)})
    writer.stage_snapshot([big, big, big], 1)
    writer.flush()
    flags = [block.header.flags for block in read_back(file)]
    assert flags == [frame.BlockFlag.SNAPSHOT_FIRST, 0, frame.BlockFlag.SNAPSHOT_LAST]


def test_after_a_failed_sync_a_segment_is_never_written_again():
    fs = new_fs()
    file = fs.create(PATH)
    writer = SegmentWriter(header())
    writer.attach(file, 1 << 20)
    writer.stage_snapshot(first_group(), 1)
    fs.fail(1, kind="sync")
    with pytest.raises(OSError, match="Input/output"):
        writer.flush()
    writer.stage(records(append(1, b"a"), first_lsn=11))
    with pytest.raises(AssertionError):
        writer.flush()


@pytest.mark.parametrize(
    ("block_size", "page", "alignment"),
    [
        (512, 4096, 4096),
        (4096, 4096, 4096),
        (4096, 16_384, 16_384),
        (10_000, 4096, 16_384),
        (1 << 20, 4096, 65_536),
    ],
)
def test_alignment_is_a_power_of_two_within_bounds(block_size: int, page: int, alignment: int):
    assert segments.alignment_of(block_size, page) == alignment


def test_alignment_comes_from_the_directory():
    assert segments.alignment_for(new_fs(), "/var") >= 4096
    assert segments.alignment_for(new_fs(), "/nowhere") >= 4096


def test_a_disk_that_gives_no_page_at_all_is_no_damage():
    fs = SimFileSystem(Random(1))
    file = fs.create("/f")
    file.pwritev([bytes(range(256)) * 64], 0)
    fs.spoil_sectors("/f", 0, 4_096)
    assert read_around(file, 16_384, 0) == bytes(4_096) + bytes(range(256)) * 48
    fs.spoil_sectors("/f", 4_096, 16_384 - 4_096)
    with pytest.raises(OSError, match="not one page"):
        read_around(file, 16_384, 0)
    file.close()
