"""What is packed and when, what the log may let go for it, which packed files may go."""

import time
from dataclasses import replace

import pytest

from wald import limits
from wald.core.packing import (
    Needed,
    PackJob,
    Passed,
    RepackPolicy,
    RouteStanding,
    Standing,
    archived_through,
    beyond_the_archive,
    covered_through,
    deletable,
    floors,
    held_through,
    is_passed,
    next_job,
    pinned_bytes,
)
from wald.core.retention import FinishedSegment
from wald.model import PackedRange

SEGMENT_BYTES = 1000
POLICY = RepackPolicy(after_s=600.0, after_bytes=1 << 40)
# LSNs: 1..100 in segment 1, 101..200 in 2, 201..300 in 3, 301..350 in the frontier's own
SEGMENTS = tuple(FinishedSegment(n, 100 * n - 100, 100 * n, SEGMENT_BYTES) for n in (1, 2, 3))


def packed(lo, hi, *, stream=1, size=50, archive=False):
    return PackedRange(stream, lo, hi, hi // 100, size, size * 4, 10, archive=archive)


def route(checkpoint, *, number=1, stream=1, **about):
    return RouteStanding(number, stream, checkpoint, **about)


def stuck(checkpoint, **about):
    return route(checkpoint, resting=True, **about)


def standing(*routes, files=(), segments=SEGMENTS, **about):
    return Standing(segments, routes, files, 350, **about)


@pytest.mark.parametrize(
    ("lsn", "through"),
    [
        pytest.param(0, 200, id="from the start"),
        pytest.param(150, 200, id="from the middle"),
        pytest.param(200, 200, id="at the end nothing follows"),
        pytest.param(250, 250, id="in a gap"),
        pytest.param(300, 400, id="behind the gap"),
    ],
)
def test_files_that_follow_on_each_other_answer_for_all_up_to_the_first_gap(lsn, through):
    assert covered_through(lsn, [packed(0, 100), packed(100, 200), packed(300, 400)]) == through


@pytest.mark.parametrize(
    ("checkpoint", "files", "held"),
    [
        pytest.param(50, [], None, id="nothing is packed"),
        pytest.param(50, [packed(49, 100)], 100, id="from its block on"),
        pytest.param(50, [packed(49, 100), packed(100, 200)], 200, id="two files in a row"),
        pytest.param(50, [packed(49, 100), packed(200, 300)], 100, id="up to a gap"),
        pytest.param(100, [packed(49, 100)], 100, id="its block is the last of a file"),
        pytest.param(
            100, [packed(100, 200)], None, id="its block, its anchor, is in the log alone"
        ),
        pytest.param(50, [packed(100, 200)], None, id="records of the log lie between"),
        pytest.param(0, [packed(0, 100)], 100, id="from the first record on"),
        pytest.param(150, [packed(49, 100)], None, id="it has passed the file"),
    ],
)
def test_what_a_route_needs_is_held_from_the_block_of_its_checkpoint_on(checkpoint, files, held):
    assert held_through(checkpoint, files, standing()) == held


def test_where_the_log_has_nothing_left_in_front_of_a_file_it_is_held_from_there():
    later = [packed(100, 200)]
    assert held_through(50, later, standing(segments=SEGMENTS[1:])) == 200
    assert held_through(50, later, standing(segments=SEGMENTS[1:], complete=False)) is None
    assert held_through(150, later, standing(segments=(), complete=False)) == 200


@pytest.mark.parametrize(
    ("routes", "files", "told"),
    [
        pytest.param([stuck(50)], [], {1: 50}, id="its checkpoint"),
        pytest.param([stuck(50)], [packed(49, 100)], {1: 101}, id="what follows its files"),
        pytest.param(
            [stuck(50)],
            [packed(49, 100), packed(100, 350)],
            {1: 350},
            id="never above the frontier, which a start takes for the end of the log",
        ),
        pytest.param(
            [stuck(50), route(250, number=2)],
            [packed(49, 100)],
            {1: 101, 2: 250},
            id="each route by itself",
        ),
        pytest.param(
            [stuck(50), stuck(50, number=2, stream=2)],
            [packed(49, 100)],
            {1: 101, 2: 50},
            id="the files of another stream are of no use",
        ),
        pytest.param(
            [route(250, archive_bytes=1)], [], {1: 1}, id="what is to be archived stays first"
        ),
        pytest.param(
            [route(250, archive_bytes=1)],
            [packed(0, 100, archive=True)],
            {1: 101},
            id="what is archived may go",
        ),
        pytest.param(
            [stuck(50, archive_bytes=1)],
            [packed(0, 200, archive=True)],
            {1: 201},
            id="an archive serves a stuck route as well",
        ),
    ],
)
def test_what_ingest_is_told_of_a_route(routes, files, told):
    assert floors(standing(*routes, files=files)) == told


@pytest.mark.parametrize(
    ("now", "job"),
    [
        pytest.param(standing(route(50)), None, id="a route that moves is waited for"),
        pytest.param(
            standing(stuck(50)), PackJob(1, 49, 100, 1), id="the oldest first, from its checkpoint"
        ),
        pytest.param(standing(stuck(0)), PackJob(1, 0, 100, 1), id="from the beginning"),
        pytest.param(
            standing(stuck(50), files=[packed(49, 100)]),
            PackJob(1, 100, 200, 2),
            id="then the next",
        ),
        pytest.param(
            standing(stuck(50), files=[packed(49, 100), packed(100, 300)]),
            None,
            id="the frontier's own segment never",
        ),
        pytest.param(standing(stuck(320)), None, id="nothing is pinned"),
        pytest.param(
            replace(
                standing(
                    stuck(50),
                    stuck(50, number=2, stream=2),
                    files=[packed(49, 300), packed(49, 300, stream=2)],
                ),
                frontier_lsn=300,
            ),
            None,
            id="all is held, and only the frontier keeps the last segment",
        ),
        pytest.param(
            standing(stuck(50, stream=2), stuck(20, number=2), stuck(60, number=3, stream=2)),
            PackJob(1, 19, 100, 1),
            id="streams in order, each with its own routes",
        ),
        pytest.param(standing(), None, id="without a route nothing is needed"),
        pytest.param(
            standing(stuck(50), route(80, number=2)),
            None,
            id="a route that moves needs the segment too",
        ),
        pytest.param(
            standing(stuck(50), route(150, number=2)),
            PackJob(1, 49, 100, 1),
            id="only stuck ones need it",
        ),
        pytest.param(
            standing(stuck(50), stuck(20, number=2)),
            PackJob(1, 19, 100, 1),
            id="one file for all routes of a stream",
        ),
        pytest.param(
            standing(stuck(50), stuck(20, number=2, stream=2), files=[packed(49, 100)]),
            PackJob(2, 19, 100, 1),
            id="then the other stream",
        ),
        pytest.param(
            standing(stuck(50), route(120, number=2), files=[packed(49, 100)]),
            None,
            id="a younger segment waits for a route that moves",
        ),
        pytest.param(
            standing(route(50, pinning_s=600.0)), PackJob(1, 49, 100, 1), id="stuck by its age"
        ),
        pytest.param(
            standing(route(50, pinning_s=599.0), fills={1: 0.9}), None, id="not yet by its age"
        ),
        pytest.param(
            standing(route(50, pinning_s=limits.PACK_POOR_AFTER_S), fills={1: 0.1}),
            PackJob(1, 49, 100, 1),
            id="a poorly filled segment is packed early",
        ),
        pytest.param(
            standing(stuck(50), complete=False), None, id="nothing new while segments are unknown"
        ),
        pytest.param(
            standing(
                stuck(50, stream=3),
                segments=(FinishedSegment(9, 0, 0, 10), *SEGMENTS),
            ),
            PackJob(3, 49, 100, 1),
            id="a segment without records is nothing to pack",
        ),
        pytest.param(
            standing(route(330, archive_bytes=1)),
            PackJob(1, 0, 100, 1, archive=True),
            id="an archive takes what was delivered too",
        ),
        pytest.param(
            standing(route(50, archive_bytes=1), files=[packed(0, 100, archive=True)]),
            PackJob(1, 100, 200, 2, archive=True),
            id="an archive waits for nobody",
        ),
        pytest.param(
            standing(
                route(50, archive_bytes=1),
                route(50, number=2, stream=2),
                files=[packed(0, 100, archive=True)],
            ),
            PackJob(1, 100, 200, 2, archive=True),
            id="nor for a route that moves, of another stream",
        ),
        pytest.param(
            standing(
                stuck(50, archive_bytes=1),
                stuck(20, number=2, stream=2),
                files=[packed(0, 300, archive=True)],
            ),
            PackJob(2, 19, 100, 1),
            id="what is archived is not packed again",
        ),
    ],
)
def test_the_next_file_to_make(now, job):
    assert next_job(now, POLICY) == job


def test_a_route_is_stuck_too_when_it_pins_too_much():
    lagging = standing(route(50))
    assert next_job(lagging, replace(POLICY, after_bytes=3 * SEGMENT_BYTES)) is not None
    assert next_job(lagging, replace(POLICY, after_bytes=3 * SEGMENT_BYTES + 1)) is None


def test_small_files_in_front_are_taken_in_and_large_ones_are_not():
    large, small = packed(0, 50, size=100_000), packed(50, 100, size=1)
    now = standing(stuck(0), files=[large, small], segments=SEGMENTS)
    job = next_job(now, POLICY)
    assert job == PackJob(1, 50, 200, 2, takes_in=(small,))


def test_no_file_grows_by_taking_in_beyond_its_bound():
    full = packed(0, 100, size=limits.PACKED_MERGED_MAX_BYTES)
    segments = (FinishedSegment(2, 100, 200, 64 * limits.PACKED_MERGED_MAX_BYTES),)
    job = next_job(standing(stuck(0), files=[full], segments=segments), POLICY)
    assert job == PackJob(1, 100, 200, 2)


def test_a_stream_with_little_in_each_segment_keeps_few_files_and_is_rewritten_seldom():
    segment_bytes, each = 64 * limits.MIB, 10_000
    files: list[PackedRange] = []
    written = 0
    for number in range(1, 2001):
        segment = FinishedSegment(number, number * 10 - 10, number * 10, segment_bytes)
        now = Standing([segment], [stuck(0)], files, number * 10 + 5)
        job = next_job(now, POLICY)
        assert job is not None
        raw = each + sum(file.raw_bytes for file in job.takes_in)
        files = [file for file in files if file not in job.takes_in]
        files.append(PackedRange(1, job.lo, job.hi, number, raw // 4, raw, 1))
        written += raw
    assert covered_through(0, files) == 20_000
    assert len(files) <= 10
    assert written <= 100 * 2000 * each, written / (2000 * each)


# --- what may go --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("routes", "passed"),
    [
        pytest.param([], True, id="nobody is left"),
        pytest.param([route(101)], True, id="passed"),
        pytest.param([route(100)], False, id="the block of a checkpoint stays, for its anchor"),
        pytest.param([route(101), route(50, number=2)], False, id="the slowest decides"),
        pytest.param([route(101), route(50, number=2, stream=2)], True, id="of its stream"),
    ],
)
def test_a_file_is_passed_by_every_route_of_its_stream(routes, passed):
    assert is_passed(packed(0, 100), routes) is passed


@pytest.mark.parametrize(
    ("now_s", "after_bytes", "gone"),
    [
        pytest.param(10.0, 1000, 0, id="kept for a while"),
        pytest.param(115.0, 1000, 1, id="as long as was asked"),
        pytest.param(500.0, 1000, 2, id="no longer"),
        pytest.param(10.0, 60, 1, id="and no more than so many bytes"),
    ],
)
def test_passed_files_are_kept_for_targets_that_go_back(now_s, after_bytes, gone):
    rows = [Passed(packed(100, 200), 20.0), Passed(packed(0, 100), 10.0)]
    kept = deletable(rows, now_s, after_s=100.0, after_bytes=after_bytes)
    assert kept == [packed(0, 100), packed(100, 200)][:gone]
    archived = [Passed(packed(0, 100, archive=True), 0.0)]
    assert deletable(archived, 1e9, after_s=0.0, after_bytes=0) == []


@pytest.mark.parametrize(
    ("bound", "passed", "gone"),
    [
        pytest.param(150, 3, 0, id="all fit"),
        pytest.param(100, 3, 1, id="the oldest goes"),
        pytest.param(10, 3, 3, id="all are too much"),
        pytest.param(10, 1, 1, id="not what a route still needs"),
    ],
)
def test_an_archive_keeps_so_many_bytes_of_what_was_delivered(bound, passed, gone):
    files = [packed(lo, lo + 100, archive=True) for lo in (0, 100, 200)]
    rows = [Passed(file, 0.0) for file in files[:passed]]
    archived = [route(150, archive_bytes=bound), route(150, number=2)]
    assert beyond_the_archive(rows, files, archived) == files[:gone]
    assert beyond_the_archive(rows, files, [route(150)]) == [], "archived no more: a person's"


def test_an_archive_goes_on_where_it_ends():
    files = [packed(0, 100, archive=True), packed(100, 150), packed(0, 300, stream=2, archive=True)]
    assert archived_through(1, files) == 100
    assert archived_through(3, files) == 0


def test_what_a_route_pins_is_counted_in_log_and_packed_files():
    files = [packed(49, 100, size=7), packed(0, 300, stream=2, size=999)]
    now = standing(stuck(50), stuck(310, number=2), files=files)
    assert pinned_bytes(now) == {1: 2 * SEGMENT_BYTES + 7, 2: 0}
    archived = packed(49, 100, size=9, archive=True)
    kept = standing(stuck(50), files=[archived])
    assert pinned_bytes(kept) == {1: 2 * SEGMENT_BYTES}, "an archive is kept on purpose"


@pytest.mark.parametrize(
    ("floor", "size_bytes", "first"),
    [(0, 3, 1), (100, 3, 1), (101, 2, 2), (300, 1, 3), (301, 0, None)],
)
def test_the_log_that_is_needed_from_an_lsn_on(floor, size_bytes, first):
    empty = FinishedSegment(9, 100, 100, 77)
    needed = Needed([SEGMENTS[0], empty, *SEGMENTS[1:]])
    assert needed.bytes_from(floor) == size_bytes * SEGMENT_BYTES
    found = needed.first(floor)
    assert (found.number if found else None) == first


def test_a_thousand_routes_and_thousands_of_segments_are_decided_on_in_no_time():
    segments = [FinishedSegment(n, 10 * n - 10, 10 * n, 1) for n in range(1, 2001)]
    routes = [route(n, number=n, stream=n) for n in range(1, 1001)]
    files = [packed(0, 10 * n, stream=n) for n in range(1, 1001)]
    now = Standing(segments, routes, files, 20_005)
    begun = time.process_time()
    assert len(floors(now)) == len(pinned_bytes(now)) == 1000
    assert next_job(now, replace(POLICY, after_bytes=1)) is not None
    assert time.process_time() - begun < 2.0
