"""Packing as it is carried out: directory and ledger agree, a pace is kept, segments are told."""

import logging
from collections.abc import Callable

import pytest

from tests.logtools import DATA
from tests.packtools import ROUTES, PackedLog
from wald import limits
from wald.core.packing import RepackPolicy
from wald.core.retention import RetentionPolicy
from wald.core.state import RouteState
from wald.drainer.fill import payload_share
from wald.drainer.packed_files import PackedFiles
from wald.drainer.packing import Packing, PackingDoors, resting
from wald.model import Lsn, PackedRange, RouteId
from wald.storage.finished import FinishedSegments
from wald.storage.packed import list_packed, packed_path
from wald.storage.packed_index import PackedIndex
from wald.testing import ManualClock
from wald.testing.memory_ledger import MemoryStore

LATER = RepackPolicy(after_s=3600.0)
AT_ONCE = RetentionPolicy(0.0, 0)


@pytest.fixture
def held() -> PackedLog:
    made = PackedLog()
    made.fill(3)
    return made


def settled(made: PackedLog, named: list[PackedRange]) -> PackedFiles:
    index = PackedIndex(MemoryStore())
    index.replace([], named)
    files = PackedFiles(index)
    files.settle(made.fs, DATA, made.log.log_id)
    assert sorted(map(str, files.all)) == sorted(map(str, index.rows()))
    return files


# --- directory and ledger -----------------------------------------------------------------------


def test_what_the_ledger_names_and_is_there_stays(held):
    packed = held.pack(1, held.segments()[0])
    assert settled(held, [packed]).all == (packed,)
    assert list_packed(held.fs, DATA) == [packed]


def test_what_the_ledger_does_not_name_is_taken_in(held):
    packed = held.pack(1, held.segments()[0])
    assert settled(held, []).all == (packed,)


def test_what_others_hold_too_is_deleted(held):
    first, second = held.segments()[:2]
    parts = [held.pack(1, first), held.pack(1, second)]
    held.pack(1, second, lo=0)  # the ledger was not told of it: they are still there
    assert settled(held, parts).all == tuple(parts)
    assert list_packed(held.fs, DATA) == parts


def test_an_older_ledger_forgets_what_was_merged_since(held):
    first, second = held.segments()[:2]
    parts = [held.pack(1, first), held.pack(1, second)]
    merged = held.pack(1, second, lo=0)
    for part in parts:
        held.fs.unlink(packed_path(DATA, part))
    assert settled(held, parts).all == (merged,)
    held.files[:] = [merged]
    assert held.read(1) == (held.expected(1), [])


def test_an_archive_and_a_packed_file_of_one_range_are_two(held):
    first = held.segments()[0]
    packed, archived = held.pack(1, first), held.pack(1, first, archive=True)
    assert set(settled(held, [packed]).all) == {packed, archived}


def test_a_file_of_another_log_is_left_alone_and_said(held, caplog):
    first = held.segments()[0]
    held.pack(1, first)
    files = PackedFiles(PackedIndex(MemoryStore()))
    files.settle(held.fs, DATA, b"x" * 16)
    assert files.all == ()
    assert len(held.fs.list_directory(f"{DATA}/packed")) == 1
    assert "of another log" in caplog.text


def test_a_file_that_is_gone_stays_named_and_is_said(held, caplog):
    packed = held.pack(1, held.segments()[0])
    held.fs.unlink(packed_path(DATA, packed))
    with caplog.at_level(logging.ERROR):
        assert settled(held, [packed]).all == (packed,)
    assert "dead letters" in caplog.text
    held.files[:] = [packed]
    held.retire(packed.hi + 1)
    _, lost = held.read(1)
    assert [item.records for item in lost] == [packed.records]


# --- the pace -----------------------------------------------------------------------------------


def packing(
    made: PackedLog,
    clock: ManualClock,
    policy: RepackPolicy,
    *,
    released: Callable[[RouteId], Lsn] = lambda _: limits.LSN_MAX,
    **about,
) -> Packing:
    files = PackedFiles(PackedIndex(MemoryStore()))
    doors = PackingDoors(made.fs, DATA, made.log.log_id, clock, files, released)
    return Packing(doors, policy, AT_ONCE, **about)


def step(made: PackedLog, one: Packing, checkpoint: int = 0, rest: tuple[int, ...] = ()) -> None:
    checkpoints = dict.fromkeys(ROUTES.values(), checkpoint)
    one.step(made.frontier, made.log.state.routes, checkpoints, rest)


def test_no_more_is_read_in_a_second_than_the_pace_allows(held, monkeypatch):
    monkeypatch.setattr(limits, "PACK_BYTES_PER_S", 16 * limits.KIB)
    clock = ManualClock()
    one = packing(held, clock, RepackPolicy(0.0, 0))
    seconds = 0
    while one.made < 2 and seconds < 100:
        step(held, one)
        clock.advance(1.0)
        seconds += 1
    assert one.made == 2
    log_bytes = 2 * sum(each.size_bytes for each in held.segments()[:1])
    assert seconds >= log_bytes / (16 * limits.KIB) / 2


def test_without_time_nothing_is_read(held):
    one = packing(held, ManualClock(), RepackPolicy(0.0, 0))
    for _ in range(10):
        step(held, one)
    assert one.made == 0
    one.close()
    assert held.fs.list_directory(f"{DATA}/packed") == []


def test_a_poorly_filled_segment_is_packed_early_and_a_full_one_is_not(monkeypatch):
    for share, made_any in ((0.0, False), (1.1, True)):
        monkeypatch.setattr(limits, "PACK_POOR_SHARE", share)
        held, clock = PackedLog(), ManualClock()
        held.fill(2)
        one = packing(held, clock, LATER)
        for _ in range(6):
            clock.advance(limits.PACK_POOR_AFTER_S / 3)
            step(held, one)
        assert bool(one.made) is made_any


def test_who_rests_is_packed_at_once_and_who_moves_is_waited_for(held):
    clock = ManualClock()
    one = packing(held, clock, LATER)
    for _ in range(10):
        clock.advance(limits.PACK_EVERY_S)
        step(held, one, rest=(ROUTES[1],))
    assert one.made == 0, "the other route needs the log too"
    for _ in range(20):
        clock.advance(limits.PACK_EVERY_S)
        step(held, one, rest=tuple(ROUTES.values()))
    assert one.made > 0


def test_what_every_route_has_passed_is_deleted_only_once_that_is_told(held):
    clock, told = ManualClock(), dict.fromkeys(ROUTES.values(), 0)
    one = packing(held, clock, LATER, released=lambda route: told[route])
    for _ in range(20):
        clock.advance(limits.PACK_EVERY_S)
        step(held, one, rest=tuple(ROUTES.values()))
    made = list_packed(held.fs, DATA)
    assert made
    for _ in range(3):
        clock.advance(limits.PACK_EVERY_S)
        step(held, one, checkpoint=held.frontier.lsn)
    assert list_packed(held.fs, DATA) == made
    told.update(dict.fromkeys(told, held.frontier.lsn))
    clock.advance(limits.PACK_EVERY_S)
    step(held, one, checkpoint=held.frontier.lsn)
    assert list_packed(held.fs, DATA) == []


def test_what_is_archived_is_deleted_beyond_its_bound(held):
    clock = ManualClock()

    def archive_bytes(route: RouteState) -> int:
        return 1 if route.stream_id == 1 else 0

    one = packing(held, clock, LATER, archive_bytes=archive_bytes)
    for _ in range(10):
        clock.advance(limits.PACK_EVERY_S)
        step(held, one, checkpoint=0)
    assert one.figures()["archive_bytes"] > 0
    told = one.floors({})
    assert told[str(ROUTES[1])] == held.segments()[-1].last_lsn + 1
    assert told[str(ROUTES[2])] == 0
    for _ in range(5):
        clock.advance(limits.PACK_EVERY_S)
        step(held, one, checkpoint=held.frontier.lsn)
    assert one.figures()["archive_bytes"] == 0


def test_an_error_of_ours_is_said_and_ends_nothing(held, monkeypatch, caplog):
    def broken(*_):
        msg = "a bug"
        raise ZeroDivisionError(msg)

    clock = ManualClock()
    one = packing(held, clock, RepackPolicy(0.0, 0))
    with monkeypatch.context() as patch:
        patch.setattr(FinishedSegments, "find", broken)
        step(held, one)
    assert one.trouble == "ZeroDivisionError('a bug')"
    assert "a bug" in caplog.text
    assert not one.is_due
    clock.advance(limits.RETRY_CAP_S)
    assert one.will_look
    for _ in range(4):
        step(held, one)
        clock.advance(limits.PACK_EVERY_S)
    assert (one.trouble, one.made > 0) == ("", True)


def test_before_the_first_look_nothing_is_told(held):
    one = packing(held, ManualClock(), LATER)
    assert one.floors({str(ROUTES[1]): 5}) == {}
    assert one.figures()["pinned"] == {}


def test_who_rests_is_told_by_what_routes_publish():
    figures = {
        "a": {"route_id": 1, "state": "idle", "parked": None},
        "b": {"route_id": 2, "state": "parked", "parked": "diverged"},
        "c": {"route_id": 3, "state": "orphan", "parked": None},
        "d": {"route_id": 4, "state": "waiting", "parked": None},
        "e": {"route_id": 5, "state": "paused", "parked": None},
    }
    assert resting(figures) == {2, 3, 5}


# --- segments -----------------------------------------------------------------------------------


def test_the_share_of_payload_of_a_segment_is_measured_at_its_head(held):
    share = payload_share(held.fs, DATA, held.log.log_id, 1)
    assert 0.02 < share < 0.1  # records of a few bytes, each group in a page
    large = PackedLog()
    while len(large.segments()) < 1:
        large.add(1, b"x" * 3900)
    assert payload_share(large.fs, DATA, large.log.log_id, 1) > 0.9
    assert payload_share(held.fs, DATA, held.log.log_id, 99) == 1.0


def test_closed_segments_are_found_by_their_headers_and_remembered(held):
    finder = FinishedSegments(held.fs, DATA, held.log.log_id)
    first = finder.find(held.frontier)
    assert first.complete
    assert [segment.number for segment in first.segments] == [1, 2, 3]
    assert first.segments[0].before_lsn == 0
    assert first.log_bytes >= sum(segment.size_bytes for segment in first.segments)
    before = held.fs.operations
    assert finder.find(held.frontier) == first
    assert not [line for line in list(held.fs.log)[before - held.fs.operations :] if "open" in line]


def test_where_a_header_cannot_be_read_nothing_is_concluded(held):
    held.fs.damage(f"{DATA}/log/seg-0000000002.wal", 0, b"\xff" * 200)
    found = FinishedSegments(held.fs, DATA, held.log.log_id).find(held.frontier)
    assert not found.complete
    clock = ManualClock()
    one = packing(held, clock, RepackPolicy(0.0, 0))
    for _ in range(5):
        clock.advance(limits.PACK_EVERY_S)
        step(held, one)
    assert one.made == 0


def test_of_another_log_no_segment_is_known(held):
    found = FinishedSegments(held.fs, DATA, b"x" * 16).find(held.frontier)
    assert (list(found.segments), found.complete) == ([], False)
