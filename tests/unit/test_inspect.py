from dataclasses import replace
from random import Random

import pytest

from tests.logtools import DATA, SMALL, append, first_group, new_fs, open_log
from wald.core import frame
from wald.errors import DataDirectoryForeign, DataDirectoryUnusable, FormatNewer
from wald.storage import identity as identities
from wald.storage import segment as segments
from wald.storage.inspect import inspect_log
from wald.testing.simfs import SimFileSystem


def filled(groups: int = 4) -> SimFileSystem:
    """A closed log: segment 1 with a stream and ``groups`` groups of two records."""
    fs = new_fs()
    log = open_log(fs)
    log.append_group(first_group())
    for sequence in range(1, groups + 1):
        log.append_group([append(sequence, b"a%d" % sequence, b"b" * 100)])
    log.close()
    return fs


def block_offset(fs: SimFileSystem, number: int, lsn: int) -> int:
    file = fs.open(segments.segment_path(DATA, number))
    try:
        header = segments.read_header(file).header
        assert header is not None
        for block in segments.BlockReader(file, number, header.log_id, header):
            if block.header.records and block.header.first_lsn <= lsn <= block.header.last_lsn:
                return block.header.offset
    finally:
        file.close()
    raise AssertionError


def flip(fs: SimFileSystem, path: str, offset: int) -> None:
    file = fs.open(path)
    byte = file.pread(1, offset)
    file.close()
    fs.damage(path, offset, bytes([byte[0] ^ 1]))


def test_a_whole_log_is_reported_with_its_streams_and_counts():
    fs = filled()
    report = inspect_log(fs, DATA)
    assert report.exit_code == 0
    assert report.damages == ()
    assert report.streams == {1: "orders"}
    assert [route.name for route in report.routes] == ["orders"]
    assert report.end_lsn == 8
    (segment,) = report.segments
    assert (segment.kind, segment.ends_with) == ("fresh", "idle-close")
    assert (segment.first_lsn, segment.last_lsn) == (1, 8)
    assert (segment.groups, segment.records) == (5, 8)
    assert segment.streams == {"orders": 8}


def test_looking_changes_nothing():
    fs = filled()
    before = fs.clone()
    operations = len(fs.list_directory(f"{DATA}/log"))
    inspect_log(fs, DATA)
    for name in fs.list_directory(f"{DATA}/log"):
        if name != "pool":
            path = f"{DATA}/log/{name}"
            one, two = fs.open(path), before.open(path)
            assert one.pread(1 << 20, 0) == two.pread(1 << 20, 0)
    assert len(fs.list_directory(f"{DATA}/log")) == operations


def test_a_running_log_can_be_looked_at():
    fs = new_fs()
    log = open_log(fs)
    log.append_group(first_group())
    log.append_group([append(1, b"x")])
    log.preallocator.step()
    report = inspect_log(fs, DATA)
    assert report.exit_code == 0
    assert report.end_lsn == report.hint_lsn == 1
    log.close()


def test_a_flipped_bit_in_a_payload_names_the_records_and_their_stream():
    fs = filled()
    offset = block_offset(fs, 1, 5)
    flip(fs, segments.segment_path(DATA, 1), offset + frame.BLOCK_HEADER_BYTES + 100)
    report = inspect_log(fs, DATA)
    assert report.exit_code == 1
    (damage,) = report.damages
    assert damage.file == "seg-0000000001.wal"
    assert damage.offset_bytes == offset
    assert damage.reason == "payload checksum does not match"
    assert (damage.first_lsn, damage.last_lsn, damage.records) == (5, 6, 2)
    assert damage.streams == ("orders",)


def test_a_flipped_bit_in_a_block_header_names_the_lsns():
    fs = filled()
    offset = block_offset(fs, 1, 3)
    flip(fs, segments.segment_path(DATA, 1), offset)
    (damage,) = inspect_log(fs, DATA).damages
    assert (damage.first_lsn, damage.last_lsn) == (3, 4)
    assert damage.reason == "block cannot be read"
    assert damage.streams == ()


def test_a_flipped_bit_in_a_segment_header_is_found():
    fs = filled()
    flip(fs, segments.segment_path(DATA, 1), 40)
    (damage,) = inspect_log(fs, DATA).damages
    assert damage.reason == "segment header checksum does not match"


def test_a_tail_below_the_hint_is_damage_and_one_above_is_not():
    fs = new_fs()
    log = open_log(fs)
    log.append_group(first_group())
    log.append_group([append(1, b"one")])
    offset = log.frontier.end_bytes
    log.append_group([append(2, b"two")])
    fs.kill()
    flip(fs, segments.segment_path(DATA, 1), offset + frame.BLOCK_HEADER_BYTES)
    report = inspect_log(fs, DATA)
    (damage,) = report.damages
    assert (damage.first_lsn, damage.last_lsn) == (2, 2)
    assert report.torn_bytes == offset
    fs.unlink(f"{DATA}/ingest.page")
    report = inspect_log(fs, DATA)
    assert report.damages == ()
    assert report.torn_bytes == offset


def lost_segments(fs: SimFileSystem) -> list[int]:
    """Make some segments and return their numbers."""
    log = open_log(fs, options=replace(SMALL, retain_after_delivery_s=1e9))
    log.append_group(first_group())
    for sequence in range(1, 9):
        log.append_group([append(sequence, b"x" * 20_000)])
    log.close()
    names = fs.list_directory(f"{DATA}/log")
    return [number for number in map(segments.segment_number, names) if number is not None]


def test_a_missing_segment_in_the_middle_is_found():
    fs = new_fs()
    numbers = lost_segments(fs)
    fs.unlink(segments.segment_path(DATA, numbers[1]))
    damages = inspect_log(fs, DATA).damages
    assert [(damage.segment, damage.reason) for damage in damages] == [
        (numbers[1], "the segment is missing")
    ]


def test_a_missing_last_segment_is_found_by_the_seal():
    fs = new_fs()
    numbers = lost_segments(fs)
    fs.unlink(segments.segment_path(DATA, numbers[-1]))
    damages = inspect_log(fs, DATA).damages
    assert [(damage.segment, damage.reason) for damage in damages] == [
        (numbers[-1], "the segment that a seal names is missing")
    ]
    assert damages[0].records > 0


def test_a_missing_fresh_segment_is_found_by_identity():
    fs = filled()
    open_log(fs).close()
    fs.unlink(segments.segment_path(DATA, 2))
    damages = inspect_log(fs, DATA).damages
    assert [damage.reason for damage in damages] == ["the segment that identity names is missing"]


def test_a_file_without_anything_to_read_is_found():
    fs = new_fs()
    numbers = lost_segments(fs)
    path = segments.segment_path(DATA, numbers[0])
    found = fs.stat(path)
    assert found is not None
    fs.damage(path, 0, bytes(found.size_bytes))
    damages = inspect_log(fs, DATA).damages
    assert {damage.segment for damage in damages} == {numbers[0]}
    assert "neither its header nor any block can be read" in {item.reason for item in damages}


def test_a_damaged_identity_is_found_and_the_rest_is_read():
    fs = filled()
    flip(fs, f"{DATA}/identity", 20)
    report = inspect_log(fs, DATA)
    assert report.exit_code == 1
    assert report.damages[0].file == "identity"
    assert report.end_lsn == 8


def test_a_directory_without_identity_is_no_data_directory():
    fs = new_fs()
    fs.make_directory(DATA)
    with pytest.raises(DataDirectoryForeign):
        inspect_log(fs, DATA)


def test_a_directory_that_was_only_made_holds_nothing():
    fs = new_fs()
    fs.make_directory(DATA)
    identities.write(fs, DATA, identities.Identity(bytes(16), 0, "", 0))
    report = inspect_log(fs, DATA)
    assert report.segments == ()
    assert report.exit_code == 0


def test_a_disk_that_does_not_answer_is_a_typed_error():
    fs = filled()
    fs.fail(1, for_ever=True)
    with pytest.raises(DataDirectoryUnusable):
        inspect_log(fs, DATA)


def test_a_newer_format_is_not_damage():
    fs = filled()
    path = segments.segment_path(DATA, 1)
    page = bytearray(fs.open(path).pread(4096, 0))
    page[8:12] = b"\x02\0\x02\0"
    page[96:100] = frame.crc32c(bytes(page[:96])).to_bytes(4, "little")
    fs.damage(path, 0, bytes(page))
    with pytest.raises(FormatNewer):
        inspect_log(fs, DATA)


def test_no_flipped_bit_is_overlooked_in_what_is_proven():
    """Every byte of headers and payloads of a log whose end is known by its hint."""
    fs = filled(2)
    path = segments.segment_path(DATA, 1)
    end = inspect_log(fs, DATA).segments[0].end_bytes
    chance = Random(3)
    file = fs.open(path)
    whole = file.pread(end, 0)
    file.close()
    meaningful = [at for at in range(end - 4096) if whole[at]]  # not padding, not the idle-close
    for at in chance.sample(meaningful, 200):
        fs.damage(path, at, bytes([whole[at] ^ (1 << chance.randrange(8))]))
        assert inspect_log(fs, DATA).exit_code == 1, f"byte {at}"
        fs.damage(path, at, whole[at : at + 1])
