"""Frozen batches on disk: durable before they are named, checked before they are believed."""

import errno
import random

import pytest

from wald.errors import DiskFull, FormatDamaged, FormatNewer, LedgerFailed
from wald.model import Checkpoint, LaneKey, Manifest, Revision, RouteBirth
from wald.storage.batches import HEADER_BYTES, FrozenFiles, open_revisions
from wald.testing.memory_ledger import MemoryLedger
from wald.testing.simfs import SimFileSystem, Stopped

KEY, OTHER_LANE = LaneKey(bytes(16), 1, 0, 0), LaneKey(bytes(16), 1, 0, 10)
REV, OTHER = b"r" * 16, b"o" * 16
CONTENT = b"what is sent" * 100


@pytest.fixture
def fs():
    return SimFileSystem(random.Random(5), directories=["/data"])


def files(fs):
    return FrozenFiles(fs, "/data")


def names(fs):
    return fs.list_directory("/data/batches")


def test_what_is_written_is_read_again(fs):
    digest = files(fs).write(KEY, REV, CONTENT)
    assert files(fs).read(KEY, REV, digest) == CONTENT
    assert files(fs).read(KEY, OTHER, files(fs).write(KEY, OTHER, b"")) == b""


def test_a_content_that_was_returned_as_kept_survives_a_power_cut_at_any_time(fs):
    digest = files(fs).write(KEY, REV, CONTENT)
    for _ in range(10):
        fs.crash()
        assert files(fs).read(KEY, REV, digest) == CONTENT


def test_a_crash_inside_leaves_a_whole_content_or_none_and_the_rest_is_swept():
    for at in range(1, 40):
        fs = SimFileSystem(random.Random(at), directories=["/data"])
        fs.stop(at)
        try:
            files(fs).write(KEY, REV, CONTENT)
        except Stopped:
            fs.heal()
            fs.crash()
            files(fs).sweep([])
            assert fs.stat("/data/batches") is None or names(fs) == []
            digest = files(fs).write(KEY, REV, CONTENT)
            assert files(fs).read(KEY, REV, digest) == CONTENT
        else:
            assert at > 6
            return
    pytest.fail("never got through")


def flipped(fs, offset):
    path = f"/data/batches/{names(fs)[0]}"
    file = fs.open(path, write=True)
    byte = file.pread(1, offset)[0]
    file.pwritev([bytes([byte ^ 4])], offset)
    file.close()


@pytest.mark.parametrize("offset", [0, 4, 9, 17, HEADER_BYTES, HEADER_BYTES + 50])
def test_a_flipped_bit_anywhere_is_seen(fs, offset):
    digest = files(fs).write(KEY, REV, CONTENT)
    flipped(fs, offset)
    with pytest.raises((FormatDamaged, FormatNewer)):
        files(fs).read(KEY, REV, digest)


def test_a_file_that_is_missing_cut_short_or_another_is_damaged(fs):
    digest = files(fs).write(KEY, REV, CONTENT)
    with pytest.raises(FormatDamaged, match="No such file"):
        files(fs).read(KEY, OTHER, digest)
    with pytest.raises(FormatDamaged, match="not the one that the ledger names"):
        files(fs).read(KEY, REV, bytes(32))
    file = fs.open(f"/data/batches/{names(fs)[0]}", write=True)
    for length in (HEADER_BYTES + 5, HEADER_BYTES - 1, 0):
        file.truncate(length)
        with pytest.raises(FormatDamaged):
            files(fs).read(KEY, REV, digest)
    file.close()


def test_a_full_disk_is_told_and_leaves_nothing(fs):
    fs.fail(1, errno.ENOSPC, kind="pwritev")
    with pytest.raises(DiskFull):
        files(fs).write(KEY, REV, CONTENT)
    fs.fail(1, errno.EIO, kind="sync")
    with pytest.raises(LedgerFailed):
        files(fs).write(KEY, REV, CONTENT)
    assert names(fs) == []
    files(fs).write(KEY, REV, CONTENT)


def test_a_sweep_keeps_what_is_named_and_other_lanes(fs):
    for key, rev_id in ((KEY, REV), (KEY, OTHER), (OTHER_LANE, OTHER)):
        files(fs).write(key, rev_id, CONTENT)
    files(fs).begin(KEY, [REV], "boot")
    assert len(names(fs)) == 2
    assert files(fs).sweep([REV]) == 1
    assert [name.split("-")[-1] for name in names(fs)] == [f"{REV.hex()}.frozen"]
    files(fs).remove(KEY, REV)
    files(fs).remove(KEY, REV)
    assert names(fs) == []


def test_who_died_in_the_making_of_a_batch_is_told_once_and_in_the_same_boot_alone(fs):
    kept = files(fs)
    with kept.making(KEY, 7, "boot"):
        assert kept.begin(OTHER_LANE, [], "boot") == 0
        kept.sweep([])
        assert (kept.begin(KEY, [], "boot"), kept.begin(KEY, [], "boot")) == (7, 0)
    with kept.making(KEY, 7, "boot"):
        assert kept.begin(KEY, [], "later") == 0
    with kept.making(KEY, 7, "boot"):
        pass
    assert kept.begin(KEY, [], "boot") == 0
    with kept.making(KEY, 7, ""):
        assert kept.begin(KEY, [], "") == 0  # of a boot without a name, or another one
    fs.create("/data/batches/1-0-0-making").close()  # it died before it had said which
    assert kept.begin(KEY, [], "boot") == 0


def test_a_word_that_cannot_be_taken_back_lets_nothing_be_sent(fs, monkeypatch):
    def fail(_: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(LedgerFailed, match="making"), files(fs).making(KEY, 7, "boot"):
        monkeypatch.setattr(fs, "unlink", fail)


def test_without_a_directory_there_is_nothing_to_sweep(fs):
    assert files(fs).sweep([]) == 0


def test_all_revisions_of_all_open_manifests_are_named():
    ledger = MemoryLedger()
    assert open_revisions(ledger) == set()
    ledger.birth(RouteBirth(1, "r", 1, "s", "sink", 0, 7))
    assert open_revisions(ledger) == set()
    revisions = (Revision(REV, 5), Revision(OTHER, 5))
    assert ledger.seal(KEY, Manifest(1, 1, Checkpoint().rev_id, 1, revisions, 5, 0))
    assert open_revisions(ledger) == {REV, OTHER}
