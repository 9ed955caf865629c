import pytest

from wald import limits
from wald.core.retention import (
    FinishedSegment,
    RetentionPolicy,
    floor_lsn,
    is_drained,
    retirable,
)
from wald.core.state import RouteState

AT_ONCE = RetentionPolicy(0.0, 0)


def route(route_id: int, birth_lsn: int = 0) -> RouteState:
    return RouteState(route_id, f"r{route_id}", 1, "sink", "digest", birth_lsn, 0, 0)


def three() -> list[FinishedSegment]:
    return [
        FinishedSegment(1, 0, 10, 100, 50.0),
        FinishedSegment(2, 10, 20, 100, 60.0),
        FinishedSegment(3, 20, 30, 100, 70.0),
    ]


@pytest.mark.parametrize(
    ("routes", "through", "floor"),
    [
        pytest.param([], {}, limits.LSN_MAX, id="without a route nothing is needed"),
        pytest.param([route(1)], {1: 7}, 7, id="its checkpoint"),
        pytest.param([route(1, 5)], {}, 5, id="nothing heard: its birth"),
        pytest.param([route(1), route(2, 3)], {1: 7}, 3, id="the slowest"),
        pytest.param([route(1)], {1: 7, 2: 1}, 7, id="a dead route pins nothing"),
    ],
)
def test_the_floor_is_the_slowest_route(routes, through, floor):
    assert floor_lsn(routes, through) == floor


@pytest.mark.parametrize(
    ("floor", "gone"),
    [
        pytest.param(0, [], id="nothing delivered"),
        pytest.param(10, [], id="the block of a checkpoint stays, for its anchor"),
        pytest.param(11, [1], id="one behind"),
        pytest.param(25, [1, 2], id="two behind"),
        pytest.param(31, [1, 2, 3], id="all behind"),
    ],
)
def test_what_is_drained_goes_oldest_first(floor: int, gone: list[int]):
    assert retirable(three(), floor, 1000.0, AT_ONCE) == gone


def test_a_segment_without_records_is_needed_by_nobody_but_waits_for_older_ones():
    empty = FinishedSegment(2, 10, 10, 100)
    assert is_drained(empty, 0)
    older = FinishedSegment(1, 0, 10, 100)
    assert retirable([older, empty], 5, 0.0, AT_ONCE) == []
    assert retirable([empty], 5, 0.0, AT_ONCE) == [2]


@pytest.mark.parametrize(
    ("age_s", "kept_bytes", "now_s", "gone"),
    [
        pytest.param(100.0, 1000, 100.0, [], id="young and few"),
        pytest.param(100.0, 1000, 155.0, [1], id="the oldest is old"),
        pytest.param(100.0, 1000, 500.0, [1, 2, 3], id="all are old"),
        pytest.param(1e9, 200, 100.0, [1], id="too many bytes"),
        pytest.param(1e9, 0, 100.0, [1, 2, 3], id="no bytes are kept"),
    ],
)
def test_what_is_delivered_stays_until_either_bound(
    age_s: float, kept_bytes: int, now_s: float, gone: list[int]
):
    assert retirable(three(), 99, now_s, RetentionPolicy(age_s, kept_bytes)) == gone


def test_a_segment_never_seen_drained_is_as_young_as_can_be():
    segment = FinishedSegment(1, 0, 10, 100)
    assert retirable([segment], 99, 1000.0, RetentionPolicy(1.0, 1000)) == []


@pytest.mark.parametrize(
    ("floor", "at_least", "gone"),
    [
        pytest.param(99, 1, [1], id="for want of room the oldest goes before its time"),
        pytest.param(99, 2, [1, 2], id="or two"),
        pytest.param(99, 9, [1, 2, 3], id="no more than there are"),
        pytest.param(11, 9, [1], id="never what a route needs"),
        pytest.param(0, 9, [], id="where all is needed, none"),
    ],
)
def test_for_want_of_room_what_is_only_kept_for_later_goes(
    floor: int, at_least: int, gone: list[int]
):
    policy = RetentionPolicy(1e9, 1000)
    assert retirable(three(), floor, 100.0, policy, at_least=at_least) == gone
