"""Two-slot pages: a torn write never costs the statement before it."""

import errno
import random

import pytest

from wald import limits
from wald.storage import progress
from wald.storage.progress import TwoSlotPage
from wald.testing import SimFileSystem

PATH = "/d/page"
SLOT = limits.PAGE_SLOT_BYTES


def make(seed: int = 0, *, write_back: float = 0.0) -> SimFileSystem:
    return SimFileSystem(random.Random(seed), directories=["/d"], write_back=write_back)


def writer(fs: SimFileSystem, *, offset: int = 0) -> TwoSlotPage:
    return TwoSlotPage.open(fs, PATH, offset=offset, slot_bytes=SLOT, write=True)


def reader(fs: SimFileSystem, *, offset: int = 0) -> TwoSlotPage:
    return TwoSlotPage.open(fs, PATH, offset=offset, slot_bytes=SLOT, write=False)


def read(fs: SimFileSystem) -> dict[str, object] | None:
    page = reader(fs)
    said = page.read()
    page.close()
    return said


def test_the_newest_statement_is_read():
    fs = make()
    page = writer(fs)
    assert page.read() is None
    assert read(fs) is None
    for number in range(5):
        page.write({"number": number, "text": "x" * number}, sync=False)
        assert page.read() == read(fs) == {"number": number, "text": "x" * number}
    page.close()


def test_a_writer_that_starts_again_goes_on_counting():
    fs = make()
    for number in range(5):
        page = writer(fs)
        page.write({"number": number}, sync=True)
        page.close()
        assert read(fs) == {"number": number}


def test_a_reader_needs_a_file():
    with pytest.raises(FileNotFoundError):
        reader(make())


def test_two_pages_stand_in_one_file():
    fs = make()
    first, second = writer(fs), writer(fs, offset=2 * SLOT)
    first.write({"a": 1}, sync=False)
    second.write({"b": 2}, sync=False)
    first.write({"a": 3}, sync=False)
    assert (first.read(), second.read()) == ({"a": 3}, {"b": 2})
    first.close()
    second.close()


@pytest.mark.parametrize("seed", range(30))
def test_a_power_cut_leaves_the_last_synced_statement_or_a_later_one(seed: int):
    fs = make(seed, write_back=0.2)
    page = writer(fs)
    page.write({"n": 1, "fill": "a" * 3000}, sync=True)
    page.write({"n": 2, "fill": "b" * 3000}, sync=False)
    fs.crash()
    said = read(fs)
    assert said is not None
    assert said["n"] in (1, 2)
    assert said["fill"] == {1: "a", 2: "b"}[int(str(said["n"]))] * 3000


def test_every_cut_of_a_write_leaves_the_statement_before_it():
    fs = make()
    page = writer(fs)
    page.write({"n": 1}, sync=True)
    page.write({"n": 2}, sync=True)
    page.write({"n": 3}, sync=True)  # in slot 1: the first write stood there
    page.close()
    file = fs.open(PATH)
    whole = file.pread(2 * SLOT, 0)
    file.close()
    length = progress.SLOT_HEADER_BYTES + 3
    for cut in range(length):
        fs.damage(PATH, SLOT, whole[SLOT : SLOT + cut] + bytes(length - cut))
        assert read(fs) == {"n": 2}


def test_no_flipped_bit_yields_a_wrong_statement():
    fs = make()
    page = writer(fs)
    page.write({"n": 201}, sync=True)
    page.write({"n": 202}, sync=True)
    page.close()
    file = fs.open(PATH)
    whole = file.pread(2 * SLOT, 0)
    file.close()
    length = progress.SLOT_HEADER_BYTES + 5
    for at in [*range(length), *range(SLOT, SLOT + length)]:
        for bit in range(8):
            fs.damage(PATH, at, bytes([whole[at] ^ 1 << bit]))
            assert read(fs) in ({"n": 201}, {"n": 202})
            fs.damage(PATH, at, whole[at : at + 1])


def test_a_statement_that_is_too_long_is_refused_and_the_last_one_stays():
    fs = make()
    page = writer(fs)
    page.write({"n": 1}, sync=True)
    with pytest.raises(ValueError, match="does not fit"):
        page.write({"n": "x" * SLOT}, sync=True)
    page.write({"n": "x" * (SLOT - progress.SLOT_HEADER_BYTES - 6)}, sync=True)
    assert page.read() != {"n": 1}
    page.close()


def test_after_a_failed_sync_the_page_is_written_no_more():
    fs = make()
    page = writer(fs)
    fs.fail(1, errno.EIO, kind="sync")
    with pytest.raises(OSError, match="Input/output"):
        page.write({"n": 1}, sync=True)
    with pytest.raises(OSError, match="failed before"):
        page.write({"n": 2}, sync=True)
    page.close()


def test_a_failed_write_leaves_the_last_statement_and_the_next_goes_on():
    for seed in range(20):
        fs = make(seed)
        page = writer(fs)
        page.write({"n": 1}, sync=True)
        fs.fail(1, errno.ENOSPC, kind="pwritev")
        with pytest.raises(OSError, match="No space"):
            page.write({"n": 2}, sync=True)
        assert page.read() in ({"n": 1}, {"n": 2})
        page.write({"n": 3}, sync=True)
        assert page.read() == {"n": 3}
        page.close()


def test_files_are_closed_where_opening_fails():
    fs = make()
    fs.fail(1, errno.EIO, kind="sync_directory")
    with pytest.raises(OSError, match="Input/output"):
        writer(fs)
    fs.fail(1, errno.EIO, kind="pread")
    with pytest.raises(OSError, match="Input/output"):
        writer(fs)
    assert fs.open_files == 0


def test_a_length_beyond_the_slot_is_not_believed():
    fs = make()
    page = writer(fs)
    page.write({"n": 1}, sync=True)
    page.write({"n": 2}, sync=True)
    fs.damage(PATH, 16, b"\xff\xff\xff\xff")
    assert page.read() == {"n": 1}
    page.close()


def test_a_whole_slot_that_holds_no_map_is_no_statement(monkeypatch: pytest.MonkeyPatch):
    fs = make()
    page = writer(fs)
    page.write({"n": 1}, sync=True)
    with monkeypatch.context() as foreign:
        foreign.setattr("wald.core.frame.pack_statement", lambda _: b"\x01")
        page.write({}, sync=True)
    assert page.read() == {"n": 1}
    page.close()
