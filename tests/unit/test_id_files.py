"""Files of dedup ids: their bytes, and what a disk that fails, or is full, makes of them."""

import errno
from contextlib import closing

import pytest

from tests.logtools import STREAM, first_group, new_fs
from wald import limits
from wald.core.ids import DedupPolicy, IdTable, NewIds
from wald.core.state import LogState, stream_opened
from wald.errors import DiskFull
from wald.model import LostRange
from wald.storage.ids import IdStore, _packed, _Timed
from wald.testing.simfs import SimFileSystem

GOLDEN_IDS = "57494453010000001400000099c3220e9401cf17979cfe362a000092050992a161c40162"


def store_of(fs: SimFileSystem, *, load: bool = False) -> IdStore:
    table = IdTable({"orders": DedupPolicy(3600.0, 1_000)})
    table.of(STREAM, "orders")
    store = IdStore(fs, "/var/wald", table)
    if load:
        state = LogState()
        for section in first_group():
            state.apply(section, 1, 1)
        store.load(state)
    return store


def remembered(store: IdStore) -> list[str]:
    ids = store.table.known(STREAM)
    assert ids is not None
    return [str(each) for each in ids.all()[1]]


def new_ids(first: int, count: int = 2) -> list[NewIds]:
    lsns = list(range(first, first + count))
    return [NewIds(STREAM, lsns, [f"id-{lsn}" for lsn in lsns])]


@pytest.fixture
def fs() -> SimFileSystem:
    made = new_fs()
    made.make_directory("/var/wald")
    made.settle()
    return made


@pytest.mark.parametrize("kind", ["sync", "pwritev"])
def test_ids_that_could_not_be_written_go_to_another_file(fs: SimFileSystem, kind: str):
    store = store_of(fs)
    store.add(new_ids(1), 1)
    store.persist()
    store.add(new_ids(3), 2)
    fs.fail(1, kind=kind)
    store.persist()
    store.persist()  # nothing is left to write
    assert len(fs.list_directory("/var/wald/ids")) == 2
    fs.crash()
    again = store_of(fs, load=True)
    assert remembered(again) == ["id-1", "id-2", "id-3", "id-4"]


@pytest.mark.parametrize("at", [1, 2])
def test_a_directory_whose_name_could_not_be_made_durable_is_tried_again(
    fs: SimFileSystem, at: int
):
    store = store_of(fs)
    store.add(new_ids(1), 1)
    fs.fail(at, kind="sync_directory")
    store.persist()
    fs.crash()
    assert remembered(store_of(fs, load=True)) == ["id-1", "id-2"]


def test_a_disk_without_room_refuses_and_keeps_what_is_to_be_written(fs: SimFileSystem):
    store = store_of(fs)
    store.add(new_ids(1), 1)
    fs.fail(1, errno.ENOSPC, kind="pwritev", for_ever=True)
    with pytest.raises(DiskFull):
        store.persist()
    fs.heal()
    store.persist()
    fs.crash()
    assert remembered(store_of(fs, load=True)) == ["id-1", "id-2"]


def test_a_full_disk_gets_no_fuller_by_what_is_tried_again(fs: SimFileSystem):
    store = store_of(fs)
    store.add(new_ids(1), 1)
    store.persist()
    store.add(new_ids(3), 2)
    fs.fail(1, errno.ENOSPC, kind="pwritev", for_ever=True)
    for _ in range(10):  # with every group
        with pytest.raises(DiskFull):
            store.persist()
    assert len(fs.list_directory("/var/wald/ids")) == 1
    fs.heal()
    store.persist()
    assert len(fs.list_directory("/var/wald/ids")) == 2
    fs.crash()
    assert remembered(store_of(fs, load=True)) == ["id-1", "id-2", "id-3", "id-4"]


def test_a_failed_file_that_cannot_be_removed_is_removed_later(fs: SimFileSystem):
    store = store_of(fs)
    store.add(new_ids(1), 1)
    fs.fail(1, errno.ENOSPC, kind="pwritev")
    fs.fail(1, kind="unlink")
    with pytest.raises(DiskFull):
        store.persist()
    assert len(fs.list_directory("/var/wald/ids")) == 1
    store.persist()
    assert fs.list_directory("/var/wald/ids") == ["ids-0000000002.log"]
    fs.crash()
    assert remembered(store_of(fs, load=True)) == ["id-1", "id-2"]


def test_a_disk_that_fails_for_ever_is_told(fs: SimFileSystem):
    store = store_of(fs)
    store.add(new_ids(1), 1)
    fs.fail(1, kind="sync", for_ever=True)
    with pytest.raises(OSError, match=r".*"):
        store.persist()


def test_a_file_that_cannot_be_removed_is_removed_later(fs: SimFileSystem):
    store = store_of(fs)
    ids = store.table.known(STREAM)
    assert ids is not None
    store.add(new_ids(1), 1)
    store.persist()
    store.close()  # the next write begins another file
    store.add(new_ids(3), 2)
    ids.forget_lost(LostRange(1, 2, 1, 0, "gone"))
    fs.fail(1, kind="unlink")
    store.persist()
    assert len(fs.list_directory("/var/wald/ids")) == 2
    store.add(new_ids(5), 3)
    store.persist()
    assert len(fs.list_directory("/var/wald/ids")) == 1


def test_a_file_that_the_disk_cannot_give_is_told_of(fs: SimFileSystem):
    store = store_of(fs)
    store.add(new_ids(1), 1)
    store.persist()
    store.close()
    store.add(new_ids(3), 2)
    store.persist()
    fs.spoil_sectors("/var/wald/ids/ids-0000000001.log", 0, 10)
    again = store_of(fs, load=True)
    assert remembered(again) == ["id-3", "id-4"]
    assert again.notes == ["ids-0000000001.log cannot be read at byte 0"]


def test_files_stay_in_proportion_to_what_is_remembered_though_another_stream_remembers_for_long(
    fs: SimFileSystem,
):
    hour_ns, settings = 3600 * 10**9, {"orders": DedupPolicy(1e9), "clicks": DedupPolicy(3600.0)}
    state, lsn = LogState(), 3
    for section in [*first_group(), stream_opened(2, "clicks")]:
        state.apply(section, 1, 1)
    store = IdStore(fs, "/var/wald", IdTable(settings))
    store.load(state)
    for stream, name in ((STREAM, "orders"), (2, "clicks")):
        store.table.of(stream, name)
    store.add([NewIds(STREAM, [1, 2], ["kept", "too"])], 5)
    for hour in range(1, 40):
        clicks = list(range(lsn, lsn + 100))
        store.add([NewIds(2, clicks, [f"click-{each}" for each in clicks])], hour * hour_ns)
        store.persist()
        store.close()  # as if the file were full
        now_ns = (hour + 1) * hour_ns + 1
        store.table.forget_old(now_ns, now_ns)
        lsn += 100
        assert len(fs.list_directory("/var/wald/ids")) <= limits.DEDUP_FILES_COUNT
    fs.crash()
    again = IdStore(fs, "/var/wald", IdTable(settings))
    again.load(state)
    assert remembered(again) == ["kept", "too"]
    orders = again.table.known(STREAM)
    assert orders is not None
    assert (orders.all()[0], orders.oldest_ns) == ([1, 2], 5)
    assert again.notes == []


@pytest.mark.parametrize("kind", ["pread", "pwritev", "sync", "unlink"])
def test_what_is_carried_over_is_known_though_the_disk_fails_in_it(fs: SimFileSystem, kind: str):
    store = store_of(fs)
    other = store.table.of(2, "orders")
    assert other is not None
    store.add([*new_ids(1), NewIds(2, [3, 4, 5, 6], list("abcd"))], 1)
    for lsn in (7, 8, 9):
        store.persist()
        store.close()
        store.add([NewIds(2, [lsn], [str(lsn)])], lsn)
    other.forget_lost(LostRange(3, 9, 1, 0, "as if their time had passed"))
    fs.fail(1 if kind in {"pread", "unlink"} else 2, kind=kind)  # the first is not of it
    store.persist()
    assert "ids-0000000001.log" in fs.list_directory("/var/wald/ids")
    store.add(new_ids(10), 10)
    store.persist()
    assert "ids-0000000001.log" not in fs.list_directory("/var/wald/ids")
    fs.crash()
    assert remembered(store_of(fs, load=True)) == ["id-1", "id-2", "id-10", "id-11"]


def test_what_a_crash_cut_out_of_a_write_is_taken_from_the_groups(fs: SimFileSystem):
    store = store_of(fs)
    first = NewIds(STREAM, list(range(1, 21)), [f"{n:0198d}" for n in range(19)] + ["x" * 249])
    assert len(_packed(_Timed(first, 5))) == limits.ALIGNMENT_MIN_BYTES  # the next begins a page
    groups = [(first, 5), *((new, 6) for new in new_ids(21))]
    for new, time_ns in groups:
        store.add([new], time_ns)
    store.persist()
    with closing(fs.open("/var/wald/ids/ids-0000000001.log", write=True)) as file:
        file.pwritev([bytes(512)], 0)  # a sector that did not get there
    again = store_of(fs)
    state = LogState()
    for section in first_group():
        state.apply(section, 1, 1)
    again.load(state, groups)
    for new, time_ns in groups:  # as a start does
        again.add([new], time_ns)
    assert remembered(again) == [*map(str, first.ids), "id-21", "id-22"]


def test_strange_names_and_ids_of_other_streams_are_left_alone(fs: SimFileSystem):
    store = store_of(fs)
    store.table.of(99, "orders")
    store.add([NewIds(99, [7], ["x"]), *new_ids(8)], 1)
    store.persist()
    fs.create("/var/wald/ids/notes.txt").close()
    assert remembered(store_of(fs, load=True)) == ["id-8", "id-9"]


def test_the_bytes_of_a_file_of_ids_are_format_and_do_not_change():
    fs = new_fs()
    fs.make_directory("/var/wald")
    table = IdTable({"orders": DedupPolicy(3600.0, 10)})
    table.of(STREAM, "orders")
    store = IdStore(fs, "/var/wald", table)
    store.add([NewIds(STREAM, [5, 9], ["a", b"b"])], 1_700_000_000_000_000_000)
    store.persist()
    file = fs.open("/var/wald/ids/ids-0000000001.log")
    data = file.pread(file.size(), 0)
    assert data.rstrip(b"\0").hex() == GOLDEN_IDS
    assert len(data) == 4_096
