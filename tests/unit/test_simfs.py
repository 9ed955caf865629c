"""The simulated file system loses what a real one may lose, and nothing else."""

import errno
import random
from collections import Counter

import pytest

from wald.testing import ManualClock, Names, SimFileSystem, Stopped
from wald.testing.simdisk import PAGE_BYTES, SECTOR_BYTES

SEEDS = range(40)


def make(seed: int = 0, **options: object) -> SimFileSystem:
    return SimFileSystem(random.Random(seed), directories=["/d"], **options)  # type: ignore[arg-type]


def read(fs: SimFileSystem, path: str) -> bytes:
    file = fs.open(path)
    data = file.pread(1 << 24, 0)
    file.close()
    return data


def put(fs: SimFileSystem, path: str, data: bytes) -> None:
    """Write a file and make it and its name durable."""
    file = fs.create(path)
    file.pwritev((data,), 0)
    file.sync()
    file.close()
    fs.sync_directory("/d")


def test_what_is_synced_survives_every_power_cut():
    for seed in SEEDS:
        fs = make(seed, write_back=0.3)
        put(fs, "/d/a", b"x" * 9000)
        fs.crash()
        assert read(fs, "/d/a") == b"x" * 9000


def test_an_unsynced_write_may_be_whole_gone_torn_or_garbage():
    seen: Counter[str] = Counter()
    for seed in range(300):
        fs = make(seed)
        put(fs, "/d/a", b"o" * 4 * PAGE_BYTES)
        file = fs.open("/d/a", write=True)
        file.pwritev((b"n" * 2 * PAGE_BYTES,), PAGE_BYTES)
        fs.crash()
        data = read(fs, "/d/a")
        assert data[:PAGE_BYTES] == b"o" * PAGE_BYTES, "a clean page changed"
        assert data[3 * PAGE_BYTES :] == b"o" * PAGE_BYTES, "a clean page changed"
        middle = data[PAGE_BYTES : 3 * PAGE_BYTES]
        kinds = set(middle)
        seen["new" if kinds == {110} else "old" if kinds == {111} else "mixed"] += 1
        seen["garbage"] += not kinds <= {110, 111}
        seen["512 B grain"] += (
            len(set(middle[:PAGE_BYTES])) > 1 and len(set(middle[:SECTOR_BYTES])) == 1
        )
    assert all(seen[kind] > 5 for kind in ("new", "old", "mixed", "garbage", "512 B grain")), seen


def test_kill_keeps_the_cache_and_ends_descriptors_and_locks():
    fs = make()
    put(fs, "/d/a", b"old")
    file = fs.open("/d/a", write=True)
    assert file.lock()
    file.pwritev((b"new",), 0)
    fs.kill()
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.sync()
    assert read(fs, "/d/a") == b"new"
    again = fs.open("/d/a", write=True)
    assert again.lock()
    again.close()
    assert fs.open_files == 0


@pytest.mark.parametrize("survival", list(Names))
def test_a_name_is_safe_only_after_its_directory_was_synced(survival: Names):
    seen = Counter[bool]()
    for seed in SEEDS:
        fs = make(seed, names=survival)
        put(fs, "/d/a", b"1")
        file = fs.create("/d/b")
        file.sync()
        fs.crash()
        assert fs.stat("/d/a") is not None
        seen[fs.stat("/d/b") is not None] += 1
    assert min(seen[True], seen[False]) > 5


def test_of_unsynced_names_a_prefix_survives():
    seen = Counter[int]()
    for seed in range(100):
        fs = make(seed)
        for number in range(5):
            fs.create(f"/d/{number}")
        fs.crash()
        left = fs.list_directory("/d")
        assert left == [str(number) for number in range(len(left))]
        seen[len(left)] += 1
    assert set(seen) == set(range(6))


def test_in_the_harsher_mode_any_of_the_unsynced_names_survive():
    seen = set()
    for seed in range(200):
        fs = make(seed, names=Names.ANY)
        for number in range(3):
            fs.create(f"/d/{number}")
        fs.crash()
        seen.add(tuple(fs.list_directory("/d")))
    assert len(seen) == 8


def test_a_move_between_directories_survives_as_a_whole_or_not_at_all():
    for seed in SEEDS:
        fs = make(seed)
        fs.make_directory("/d/pool")
        put(fs, "/d/a", b"1")
        fs.sync_directory("/d")
        fs.rename("/d/a", "/d/pool/a")
        fs.crash()
        assert (fs.stat("/d/a") is None) != (fs.stat("/d/pool/a") is None)


def test_syncing_either_directory_of_a_move_makes_it_durable():
    for synced in ("/d", "/d/pool"):
        for seed in SEEDS:
            fs = make(seed)
            fs.make_directory("/d/pool")
            put(fs, "/d/a", b"1")
            fs.rename("/d/a", "/d/pool/a")
            fs.sync_directory(synced)
            fs.crash()
            assert fs.stat("/d/a") is None
            assert read(fs, "/d/pool/a") == b"1"


def test_a_directory_whose_own_name_was_not_synced_may_go_with_all_in_it():
    seen = Counter[bool]()
    for seed in SEEDS:
        fs = make(seed)
        fs.make_directory("/d/sub")
        fs.create("/d/sub/a").sync()
        fs.sync_directory("/d/sub")
        fs.crash()
        seen[fs.stat("/d/sub/a") is not None] += 1
    assert min(seen[True], seen[False]) > 5


def test_a_removed_name_may_come_back_until_its_directory_was_synced():
    seen = Counter[bool]()
    for seed in SEEDS:
        fs = make(seed)
        put(fs, "/d/a", b"1")
        fs.unlink("/d/a")
        fs.crash()
        seen[fs.stat("/d/a") is not None] += 1
        fs = make(seed)
        put(fs, "/d/a", b"1")
        fs.unlink("/d/a")
        fs.sync_directory("/d")
        fs.crash()
        assert fs.stat("/d/a") is None
    assert min(seen[True], seen[False]) > 5


def test_after_a_failed_sync_the_cache_lies_and_a_second_sync_helps_nothing():
    lost = 0
    for seed in SEEDS:
        fs = make(seed)
        put(fs, "/d/a", b"old")
        file = fs.open("/d/a", write=True)
        file.pwritev((b"new",), 0)
        fs.fail(1, kind="sync")
        with pytest.raises(OSError, match="Input/output") as caught:
            file.sync()
        assert caught.value.errno == errno.EIO
        file.sync()  # the lie: it "succeeds"
        assert file.pread(3, 0) == b"new"
        file.close()
        fs.crash()
        lost += read(fs, "/d/a") != b"new"
    assert lost > 10


def test_dropped_caches_show_what_a_failed_sync_left():
    for seed in SEEDS:
        fs = make(seed)
        put(fs, "/d/a", b"o" * 8192)
        file = fs.open("/d/a", write=True)
        file.pwritev((b"n" * 8192,), 0)
        fs.fail(1, kind="sync")
        with pytest.raises(OSError, match="Input/output"):
            file.sync()
        file.pwritev((b"d" * 512,), 512)  # dirty: stays in the cache
        fs.drop_caches()
        shown = file.pread(8192, 0)
        assert shown[512:1024] == b"d" * 512
        file.close()
        fs.crash()
        on_disk = read(fs, "/d/a")
        assert on_disk[:512] + on_disk[1024:] == shown[:512] + shown[1024:]


def test_a_change_of_size_is_durable_only_after_a_sync():
    sizes = set()
    for seed in SEEDS:
        fs = make(seed)
        put(fs, "/d/a", b"x" * 3000)
        file = fs.open("/d/a", write=True)
        file.truncate(1000)
        file.truncate(2000)
        fs.crash()
        data = read(fs, "/d/a")
        sizes.add(len(data))
        assert data[:1000] == b"x" * 1000
        if len(data) == 2000:
            assert data[1000:] == bytes(1000)
    assert sizes == {1000, 2000, 3000}


def test_early_write_back_makes_older_versions_durable():
    seen = set()
    for seed in range(100):
        fs = make(seed, write_back=0.5)
        put(fs, "/d/a", b"0" * 512)
        file = fs.open("/d/a", write=True)
        for version in (b"1", b"2", b"3"):
            file.pwritev((version * 512,), 0)
        fs.crash()
        seen.add(read(fs, "/d/a")[:1])
    assert {b"0", b"1", b"2", b"3"} <= seen


def test_the_nth_operation_fails_once_or_for_ever():
    fs = make()
    file = fs.create("/d/a")
    fs.fail(2, errno.ENOSPC, kind="pwritev")
    file.pwritev((b"1",), 0)
    with pytest.raises(OSError, match="No space"):
        file.pwritev((b"2",), 0)
    file.pwritev((b"3",), 0)
    fs.fail(3, for_ever=True)
    file.pread(1, 0)
    fs.stat("/d/a")
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output"):
            fs.stat("/d/a")
    fs.heal()
    file.sync()
    file.close()


def test_a_look_at_files_is_not_disturbed_by_faults_to_come():
    fs = make()
    put(fs, "/d/a", b"1")
    fs.fail(1)
    with fs.undisturbed():
        assert read(fs, "/d/a") == b"1"
    with pytest.raises(OSError, match="Input/output"):
        fs.stat("/d/a")


def test_a_failed_write_leaves_any_prefix():
    left = set()
    for seed in range(100):
        fs = make(seed)
        file = fs.create("/d/a")
        fs.fail(1, errno.EIO, kind="pwritev")
        with pytest.raises(OSError, match="Input/output"):
            file.pwritev((b"abcd",), 0)
        left.add(file.pread(10, 0))
        file.close()
    assert left == {b"", b"a", b"ab", b"abc", b"abcd"}


def test_a_full_disk_takes_what_fits_and_frees_what_is_removed():
    fs = make(capacity_bytes=4 * PAGE_BYTES)
    file = fs.create("/d/a")
    file.allocate(0, 3 * PAGE_BYTES)
    assert fs.free_bytes("/d") == PAGE_BYTES
    with pytest.raises(OSError, match="No space"):
        fs.create("/d/b").pwritev((b"x" * 2 * PAGE_BYTES,), 0)
    assert len(read(fs, "/d/b")) == PAGE_BYTES
    file.pwritev((b"y" * 100,), 0)  # has its room already
    with pytest.raises(OSError, match="No space"):
        file.allocate(0, 4 * PAGE_BYTES)
    fs.unlink("/d/a")
    assert fs.free_bytes("/d") == 0  # still open
    file.close()
    assert fs.free_bytes("/d") == 3 * PAGE_BYTES


def test_a_stopped_machine_answers_nothing_until_it_is_started_again():
    fs = make()
    file = fs.create("/d/a")
    fs.stop(2)
    file.pwritev((b"1",), 0)
    with pytest.raises(Stopped):
        file.sync()
    with pytest.raises(Stopped):
        fs.stat("/d/a")
    fs.kill()
    assert read(fs, "/d/a") == b"1"


def test_the_same_seed_gives_the_same_disk():
    def run() -> bytes:
        fs = make(7, write_back=0.3)
        put(fs, "/d/a", b"x" * 50_000)
        file = fs.open("/d/a", write=True)
        file.pwritev((b"y" * 40_000,), 300)
        fs.crash()
        return read(fs, "/d/a")

    assert run() == run()


def test_a_clone_goes_its_own_way():
    fs = make(3)
    put(fs, "/d/a", b"abc")
    other = fs.clone()
    other.damage("/d/a", 1, b"X")
    other.create("/d/b").close()
    other.kill()
    assert read(fs, "/d/a") == b"abc"
    assert fs.stat("/d/b") is None
    assert read(other, "/d/a") == b"aXc"


def test_a_damaged_byte_is_seen_at_once_and_after_a_crash():
    fs = make()
    put(fs, "/d/a", b"abc")
    fs.damage("/d/a", 1, b"X")
    assert read(fs, "/d/a") == b"aXc"
    fs.crash()
    assert read(fs, "/d/a") == b"aXc"


def test_a_manual_clock_goes_only_when_told():
    clock = ManualClock(wall_ns=1_000)
    before = clock.monotonic_ns()
    clock.sleep(2.5)
    assert clock.wall_ns() == 2_500_001_000
    assert clock.monotonic_ns() - before == 2_500_000_000
    clock.set_wall(5)
    assert (clock.wall_ns(), clock.monotonic_ns() - before) == (5, 2_500_000_000)
    name = clock.boot_id()
    clock.advance(1)
    clock.reboot()
    assert clock.boot_id() != name
    assert clock.boot_ns() < 2_500_000_000


def test_the_root_is_a_directory_that_cannot_be_made_again():
    fs = make()
    assert fs.list_directory("/") == ["d"]
    with pytest.raises(FileExistsError):
        fs.make_directory("/")


def test_a_name_that_moved_and_came_back_survives_like_any_other():
    for survival in Names:
        for seed in SEEDS:
            fs = make(seed, names=survival, write_back=0.2)
            put(fs, "/d/a", b"1")
            fs.rename("/d/a", "/d/b")
            fs.rename("/d/b", "/d/a")
            fs.sync_directory("/d")
            fs.crash()
            assert fs.list_directory("/d") == ["a"]


def test_the_lock_and_the_machine_can_fail_and_be_named():
    fs = make()
    file = fs.create("/d/lock")
    fs.fail(1, kind="lock")
    with pytest.raises(OSError, match="Input/output"):
        file.lock()
    assert file.lock()
    file.close()
    fs.machine = "m"
    assert fs.machine_id() == "m"
    fs.fail(1, kind="sync_directory")
    fs.create("/d/x").close()
    with pytest.raises(OSError, match="Input/output"):
        fs.sync_directory("/d")
    fs.sync_directory("/d")  # the journal keeps what is not durable yet: names do not lie
    fs.crash()
    assert fs.stat("/d/x") is not None
