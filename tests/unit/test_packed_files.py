"""Packed files on disk: whole under their name or not there, damage confined, nothing in excess."""

import errno
from dataclasses import replace
from random import Random

import pytest

from tests.logtools import DATA
from tests.packtools import PackedLog
from wald import limits
from wald.core import packed as codec
from wald.core.packing import PackJob
from wald.errors import DataDirectoryForeign, DiskFull
from wald.model import LostRange
from wald.storage import packed as packs
from wald.storage.packed import OpenPack, delete_packed, list_packed, packed_path, remove_unfinished
from wald.storage.repack import Stale
from wald.testing.simfs import Stopped

NOISE = Random(4)


@pytest.fixture
def held() -> PackedLog:
    made = PackedLog()
    made.fill(3)
    return made


@pytest.fixture
def many(monkeypatch) -> PackedLog:
    """A packed file of many chunks: each block is one."""
    monkeypatch.setattr(limits, "PACKED_CHUNK_BYTES", 1)
    made = PackedLog()
    made.fill(3)
    made.pack(1, made.segments()[2], lo=0)
    return made


def everything(made: PackedLog, stream: int = 1):
    pack = OpenPack(made.fs, DATA, made.log.log_id, made.of(stream)[0])
    items, lsn = [], 0
    while (item := pack.next_after(lsn)) is not None:
        items.append(item)
        lsn = item.last_lsn if isinstance(item, LostRange) else item.header.last_lsn
    pack.close()
    return items


def test_a_packed_file_holds_what_the_log_held_of_the_stream_and_its_anchors(held):
    before = {stream: held.read(stream) for stream in (1, 2)}
    blocks = [item for item in held.reader(1).read(held.frontier) if item.sections]
    for stream in (1, 2):
        for segment in held.segments():
            held.pack(stream, segment)
    assert {stream: held.read(stream) for stream in (1, 2)} == before
    again = [item for item in held.reader(1).read(held.frontier) if item.sections]
    told = [(item.header.first_lsn, item.header.records, item.anchor) for item in blocks]
    assert [(item.header.first_lsn, item.header.records, item.anchor) for item in again] == told
    assert [item.sections for item in again] == [item.sections for item in blocks]
    assert list_packed(held.fs, DATA) == held.of(1) + held.of(2)


def test_the_last_block_of_a_range_is_there_for_its_anchor_without_records(held):
    segment = held.segments()[0]
    of_two = [lsn for lsn in held.values[2] if lsn <= segment.last_lsn]
    lo = max(lsn for lsn in held.values[1] if lsn < of_two[-1]) if of_two else 0
    packed = held.pack(1, segment, lo=lo, hi=of_two[-1])
    items = everything(held)
    assert packed.records == sum(lo < lsn <= of_two[-1] for lsn in held.values[1])
    assert items[-1].header.last_lsn == of_two[-1]
    assert items[-1].sections == ()


def test_a_stream_without_records_in_a_range_has_a_small_file_that_answers_for_it(held):
    segment = held.segments()[0]
    held.files.clear()
    packed = held.pack(9, segment)
    assert (packed.records, packed.hi) == (0, segment.last_lsn)
    assert [item.sections for item in everything(held, 9)] == [()]


def test_a_later_job_takes_older_files_in(held):
    first, second, third = held.segments()
    held.pack(1, first)
    old = held.pack(1, second)
    before = held.read(1)
    merged = held.pack(1, third, lo=0)
    assert (merged.lo, merged.hi) == (0, third.last_lsn)
    held.files.remove(old)
    held.files.remove(held.of(1)[0])
    held.files[:] = [merged]
    for packed in list_packed(held.fs, DATA):
        if packed != merged:
            delete_packed(held.fs, DATA, packed)
    assert held.read(1) == before
    assert held.retire(third.last_lsn + 1) == 3
    assert held.read(1) == before


@pytest.mark.parametrize("settle", [False, True], ids=["power cut", "kill"])
def test_wherever_the_machine_stops_the_file_is_whole_or_not_there(settle):
    base = PackedLog()
    base.fill(2)
    segment = base.segments()[0]
    base.fs.settle()
    for at in range(1, 200):
        fs = base.fs.clone()
        made = replace_fs(base, fs)
        fs.stop(at)
        try:
            made.pack(1, segment)
        except Stopped:
            finished = False
        else:
            finished = True
        fs.kill() if settle else fs.crash(Random(at))
        remove_unfinished(fs, DATA)
        names = fs.list_directory(f"{DATA}/packed") if fs.stat(f"{DATA}/packed") else []
        found = list_packed(fs, DATA)
        assert len(names) == len(found), "nothing but whole files is left"
        made.files = found
        if found:
            assert everything(made) == [
                item for item in everything(made) if not isinstance(item, LostRange)
            ]
            assert made.read(1) == (base.expected(1), [])
        if finished:
            assert found, "a file that was reported is there"
            return
    pytest.fail("the run never finished")


def replace_fs(base: PackedLog, fs) -> PackedLog:
    made = object.__new__(PackedLog)
    made.__dict__.update(base.__dict__)
    made.fs, made.files = fs, []
    return made


@pytest.mark.parametrize("kind", ["create", "pwritev", "sync", "rename", "sync_directory"])
def test_a_failure_of_the_disk_leaves_everything_as_it_was(held, kind):
    segment = held.segments()[0]
    held.fs.fail(1, errno.EIO, kind=kind, for_ever=True)
    with pytest.raises(OSError, match="Input/output error"):
        held.pack(1, segment)
    held.fs.heal()
    assert held.read(1) == (held.expected(1), [])
    left = list_packed(held.fs, DATA)
    assert left == [] or kind == "sync_directory"  # it is whole: the next start takes it in
    for packed in left:
        delete_packed(held.fs, DATA, packed)
        delete_packed(held.fs, DATA, packed)
    held.pack(1, segment)
    assert held.read(1) == (held.expected(1), [])


def test_a_disk_that_runs_full_stops_the_packing_and_nothing_is_left(held):
    segment = held.segments()[0]
    open_files = held.fs.open_files
    run = held.run(PackJob(1, 0, segment.last_lsn, segment.number))
    assert run.step(1) is None
    held.fs.capacity_bytes = limits.PACK_SPARE_BYTES
    with pytest.raises(DiskFull):
        run.step(1)
    run.abandon()
    assert held.fs.list_directory(f"{DATA}/packed") == []
    assert held.fs.open_files == open_files


def test_a_job_whose_segment_was_passed_and_retired_is_stale(held):
    first = held.segments()[0]
    run = held.run(PackJob(1, 0, first.last_lsn, first.number))
    assert held.retire(first.last_lsn + 1) == 1
    with pytest.raises(Stale):
        run.step(1 << 20)
    run.abandon()
    run.abandon()


# --- damage -------------------------------------------------------------------------------------


def flip(made: PackedLog, at: int) -> None:
    path = packed_path(DATA, made.of(1)[0])
    file = made.fs.open(path)
    byte = file.pread(1, at)[0]
    file.close()
    made.fs.damage(path, at, bytes([byte ^ 16]))


def test_one_flipped_bit_costs_its_chunk_and_no_other(many):
    whole = everything(many)
    path = packed_path(DATA, many.of(1)[0])
    file = many.fs.open(path)
    size = file.size()
    tail = packs.read_tail(file)
    file.close()
    assert len(tail.chunks) > 5
    for at in NOISE.sample(range(size), 150):
        flip(many, at)
        found = everything(many)
        hit = [
            (number, chunk)
            for number, chunk in enumerate(tail.chunks)
            if chunk.offset + codec.CHUNK_HEADER_BYTES <= at < chunk.end
        ]
        if hit:
            ((number, chunk),) = hit
            lost = found.pop(number)
            assert isinstance(lost, LostRange)
            assert (lost.first_lsn, lost.last_lsn) == (chunk.after + 1, chunk.through)
            assert lost.records == chunk.records
            assert "packed file pack-" in lost.reason
            assert found == whole[:number] + whole[number + 1 :]
        else:  # head, a chunk's header, tail: each stands there twice
            assert found == whole
        flip(many, at)


def test_of_a_file_cut_anywhere_its_beginning_is_kept_and_the_rest_is_named(many):
    packed = many.of(1)[0]
    whole = everything(many)
    path = packed_path(DATA, packed)
    file = many.fs.open(path, write=True)
    data = file.pread(1 << 20, 0)
    for cut in sorted(NOISE.sample(range(len(data)), 60), reverse=True):
        file.truncate(cut)
        found = everything(many)
        kept = [item for item in found if not isinstance(item, LostRange)]
        lost = [item for item in found if isinstance(item, LostRange)]
        assert kept == whole[: len(kept)]
        assert len(kept) == len(whole) or lost[-1].last_lsn == packed.hi
        covered = {lsn for item in lost for lsn in range(item.first_lsn, item.last_lsn + 1)}
        read = {lsn for item in kept for lsn, _ in item.sections}
        assert {lsn for item in whole for lsn, _ in item.sections} <= covered | read
    file.close()
    assert list_packed(many.fs, DATA) == [
        replace(packed, size_bytes=min(cut, len(data)), segment=0, raw_bytes=0, records=0)
    ]


def test_a_file_that_is_not_there_is_a_loss_that_is_counted(held):
    packed = held.pack(1, held.segments()[0])
    held.fs.unlink(packed_path(DATA, packed))
    held.retire(packed.hi + 1)
    values, lost = held.read(1)
    assert values == held.expected(1, packed.hi)
    assert [(item.first_lsn, item.last_lsn, item.records) for item in lost] == [
        (1, packed.hi, packed.records)
    ]
    assert "not there" in lost[0].reason


def test_who_stands_in_the_middle_of_a_lost_chunk_loses_the_rest_uncounted(held):
    packed = held.pack(1, held.segments()[0])
    held.fs.unlink(packed_path(DATA, packed))
    held.retire(packed.hi + 1)
    _, lost = held.read(1, after=5)
    assert [(item.first_lsn, item.last_lsn, item.records) for item in lost] == [
        (6, packed.hi, None)
    ]


def test_a_page_that_cannot_be_read_is_damage_like_any_other(many):
    path = packed_path(DATA, many.of(1)[0])
    many.fs.spoil_sectors(path, 0, 512)
    found = everything(many)
    assert any(isinstance(item, LostRange) for item in found)
    assert any(not isinstance(item, LostRange) for item in found)


def test_a_loss_in_the_log_is_packed_too(held):
    segment = held.segments()[0]
    block = next(item for item in held.reader(1).read(held.frontier) if item.sections)
    path = f"{DATA}/log/seg-{segment.number:010d}.wal"
    held.fs.damage(path, block.header.offset + 200, b"\xff" * 8)
    before = held.read(1)
    assert len(before[1]) == 1
    held.pack(1, segment)
    assert held.read(1) == before


def test_a_file_of_another_log_is_refused(held):
    packed = held.pack(1, held.segments()[0])
    with pytest.raises(DataDirectoryForeign):
        OpenPack(held.fs, DATA, b"x" * 16, packed)


def test_other_names_are_left_alone(held):
    held.pack(1, held.segments()[0])
    held.fs.create(f"{DATA}/packed/notes.txt").close()
    held.fs.create(f"{DATA}/packed/pack-9.wpk.tmp").close()
    held.fs.create(f"{DATA}/packed/{packs.packed_name(1, 5, 9)}.tmp").close()
    remove_unfinished(held.fs, DATA)
    assert len(list_packed(held.fs, DATA)) == 1
    assert len(held.fs.list_directory(f"{DATA}/packed")) == 3


def test_a_block_without_records_of_the_stream_stands_before_the_loss_behind_it(held):
    items = list(held.reader(1).read(held.frontier))
    others = [each for each in items if each.header.records and not each.sections]
    block, lo = others[-1], others[-1].header.first_lsn - 1
    last = block.header.last_lsn
    head = codec.PackedHead(held.log.log_id, 1, lo, last + 3, 1, 123)
    writer = packs.PackWriter(held.fs, DATA, head)
    writer.add(block)
    writer.add(LostRange(last + 1, last + 3, 1, 0, "blocks do not match"))
    held.files.append(writer.finish())
    anchor, lost = everything(held)
    assert (anchor.header.first_lsn, anchor.anchor) == (lo + 1, block.anchor)
    assert (lost.first_lsn, lost.last_lsn) == (last + 1, last + 3)
