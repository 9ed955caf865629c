"""Everything at rest is read and checked: packed files, the archive, the dead log."""

from random import Random

import pytest

from tests.logtools import DATA
from tests.packtools import PackedLog
from wald import limits
from wald.core import packed as codec
from wald.errors import DataDirectoryUnusable
from wald.model import NO_REVISION, Record
from wald.storage.deadlog import DEAD_ALIGNMENT_BYTES, DeadEntry, DeadLog, encode_entry
from wald.storage.packed import packed_path, read_tail
from wald.storage.scrub import inspect_rest

ENTRY = DeadEntry(b"a" * 16, NO_REVISION, (Record(7, 99, 0, b"value"),))


@pytest.fixture
def held(monkeypatch) -> PackedLog:
    monkeypatch.setattr(limits, "PACKED_CHUNK_BYTES", 1)
    made = PackedLog()
    made.fill(3)
    first, second = made.segments()[:2]
    made.pack(1, first)
    made.pack(2, second, archive=True)
    dead = DeadLog(made.fs, DATA)
    dead.append(ENTRY)
    dead.append(ENTRY)
    dead.close()
    return made


def look(made: PackedLog):
    return inspect_rest(made.fs, DATA, made.log.log_id)


def flip(made: PackedLog, path: str, at: int) -> None:
    file = made.fs.open(path)
    byte = file.pread(1, at)[0]
    file.close()
    made.fs.damage(path, at, bytes([byte ^ 1]))


def test_what_is_whole_is_counted(held):
    report = look(held)
    assert report.damages == ()
    packed = [(file.file.split("/")[0], file.count, file.hi) for file in report.packed]
    assert packed == [
        ("packed", held.of(1)[0].records, held.of(1)[0].hi),
        ("archive", held.of(2)[0].records, held.of(2)[0].hi),
    ]
    assert [(file.file, file.count) for file in report.dead] == [("dead/dead-0000000001.log", 2)]


def test_every_flipped_bit_of_a_packed_file_is_found_and_named(held):
    packed = held.of(1)[0]
    path = packed_path(DATA, packed)
    file = held.fs.open(path)
    size, chunks = file.size(), read_tail(file).chunks
    file.close()
    for at in Random(3).sample(range(size), 120):
        flip(held, path, at)
        (damage,) = look(held).damages
        hit = [
            chunk for chunk in chunks if chunk.offset + codec.CHUNK_HEADER_BYTES <= at < chunk.end
        ]
        lsns = (damage.first_lsn, damage.last_lsn, damage.records)
        if hit:
            assert lsns == (hit[0].after + 1, hit[0].through, hit[0].records)
            assert damage.offset_bytes == hit[0].offset
        else:
            assert lsns == (1, 0, None), "all of it can still be read"
        assert damage.file.startswith("packed/pack-")
        flip(held, path, at)


def test_a_packed_file_cut_short_names_what_is_gone(held):
    packed = held.of(1)[0]
    file = held.fs.open(packed_path(DATA, packed), write=True)
    file.truncate(file.size() // 2)
    file.close()
    damages = look(held).damages
    assert len(damages) == 2, "the tail, and the rest of the range"
    assert damages[-1].last_lsn == packed.hi


def test_every_flipped_bit_of_the_dead_log_is_found(held):
    path = f"{DATA}/dead/dead-0000000001.log"
    length = len(encode_entry(ENTRY))
    page = DEAD_ALIGNMENT_BYTES
    for at in Random(5).sample([*range(length), *range(page, page + length)], 60):
        flip(held, path, at)
        report = look(held)
        if report.damages:
            assert report.damages[0].file == "dead/dead-0000000001.log"
            assert report.damages[0].offset_bytes == at // page * page
        else:  # a length that points behind the end looks like an entry that was being written
            assert at % page in range(8, 12)
        flip(held, path, at)


def test_an_entry_that_was_being_written_is_no_damage(held):
    path = f"{DATA}/dead/dead-0000000001.log"
    file = held.fs.open(path, write=True)
    end = file.size()
    for cut in (1, 10, 40):
        file.truncate(end)
        file.pwritev([encode_entry(ENTRY)[:cut]], end)
        report = look(held)
        assert report.damages == ()
        assert report.dead[0].count == 2
    file.close()


def test_a_packed_file_of_another_log_is_named(held):
    report = inspect_rest(held.fs, DATA, b"x" * 16)
    assert {damage.reason for damage in report.damages} == {
        "it is of another log, or not what its name says"
    }


def test_damage_that_was_packed_as_a_loss_is_no_new_damage(held):
    third = held.segments()[2]
    block = next(
        item
        for item in held.reader(1, third.before_lsn).read(held.frontier)
        if item.sections and item.header.last_lsn <= third.last_lsn
    )
    path = f"{DATA}/log/seg-{third.number:010d}.wal"
    held.fs.damage(path, block.header.offset + 150, b"\xff" * 4)
    held.pack(1, third)
    assert held.read(1)[1] != []
    assert look(held).damages == ()


def test_a_directory_that_cannot_be_read_is_said(held):
    held.fs.fail(1, for_ever=True)
    with pytest.raises(DataDirectoryUnusable):
        look(held)
