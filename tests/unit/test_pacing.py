"""Rates, shares, hours of the day, timeouts, figures, workers."""

import math
from datetime import UTC, datetime
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wald import limits
from wald.core import pacing
from wald.core.pacing import (
    Patience,
    Rate,
    Schedule,
    Workers,
    bucket,
    drawn_age_s,
    eta_s,
    faded,
    is_live,
    lag_s,
    largest_batch,
    pause_for_others_s,
    schedule,
    turn,
    workers_at_work,
)

NS = limits.CLOCK_NS_PER_S


# --- the bucket ---------------------------------------------------------------------------------


@given(st.floats(1, 1e6), st.lists(st.integers(1, 5_000), min_size=1, max_size=200))
def test_a_rate_is_never_exceeded_by_more_than_a_burst_and_a_batch(per_s, batches):
    value, now_ns, sent = bucket(per_s, 0), 0, 0
    for records in batches:
        now_ns += math.ceil(value.wait_s(now_ns) * NS)
        allowed = per_s * (now_ns / NS + limits.RATE_BURST_S)
        assert sent <= allowed * (1 + 1e-9) + 1e-6
        value = value.taken(records, now_ns)
        sent += records


def test_a_rate_is_reached():
    value, now_ns, sent = bucket(1_000, 0), 0, 0
    for _ in range(100):
        now_ns += math.ceil(value.wait_s(now_ns) * NS)
        value = value.taken(300, now_ns)
        sent += 300
    assert sent / (now_ns / NS) == pytest.approx(1_000, rel=0.02)


def test_an_idle_bucket_saves_no_more_than_a_burst():
    value = bucket(100, 0).taken(100, 3_600 * NS)
    assert value.wait_s(3_600 * NS) == 0
    assert value.taken(50, 3_600 * NS).wait_s(3_600 * NS) == pytest.approx(0.5)


def test_the_largest_batch_is_what_the_rate_gives_in_a_burst():
    assert largest_batch(500) == 500 * limits.RATE_BURST_S
    assert largest_batch(0.1) == 1


# --- room for others ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("oldest_s", "goal_s", "live"),
    [
        (None, None, True),
        (1.0, None, True),
        (6.0, None, False),
        (6.0, 10.0, True),
        (2.0, 1.0, False),
    ],
)
def test_a_route_is_live_while_it_keeps_up(oldest_s, goal_s, live):
    assert is_live(oldest_s, goal_s) is live


@pytest.mark.parametrize(
    ("share", "pause_s"), [(0.0, 0.0), (0.2, 0.25), (0.5, 1.0), (0.9, 5.0), (1.0, 5.0)]
)
def test_a_backlog_leaves_the_share_of_the_time_to_live_routes(share, pause_s):
    assert pause_for_others_s(1.0, share) == pytest.approx(pause_s)


# --- hours --------------------------------------------------------------------------------------


def at(text, offset_s=0):
    """Return the wall clock at a local time."""
    local = datetime.fromisoformat(text).replace(tzinfo=UTC)
    return round((local.timestamp() - offset_s) * NS)


NIGHT = schedule("22:00-06:00", None)
DAY = schedule("09:30-17:00", None)


@pytest.mark.parametrize(
    ("hours", "text", "is_open"),
    [
        (NIGHT, "2026-03-01T21:59:59", False),
        (NIGHT, "2026-03-01T22:00:00", True),
        (NIGHT, "2026-03-02T05:59:59", True),
        (NIGHT, "2026-03-02T06:00:00", False),
        (DAY, "2026-03-02T09:29:59", False),
        (DAY, "2026-03-02T09:30:00", True),
        (DAY, "2026-03-02T16:59:59", True),
        (DAY, "2026-03-02T17:00:00", False),
        (schedule("06:00-06:00", None), "2026-03-02T05:00:00", True),
        (Schedule(), "2026-03-02T05:00:00", True),
    ],
)
@pytest.mark.parametrize("offset_s", [0, 3_600, -18_000, 20_700])
def test_a_window_is_of_local_time_and_may_pass_midnight(hours, text, is_open, offset_s):
    assert (turn(hours, at(text, offset_s), offset_s).number is not None) is is_open


def test_a_night_is_one_turn_and_the_next_another():
    evening, morning, next_evening = (
        turn(NIGHT, at(text), 0).number
        for text in ("2026-03-01T23:00:00", "2026-03-02T05:00:00", "2026-03-02T22:30:00")
    )
    assert evening == morning != next_evening


def test_a_closed_window_is_looked_at_again_soon_and_at_its_opening():
    assert turn(NIGHT, at("2026-03-01T12:00:00"), 0).wait_s == limits.SCHEDULE_LOOK_S
    assert turn(NIGHT, at("2026-03-01T21:59:50"), 0).wait_s == pytest.approx(10)


def test_every_hour_is_a_turn_counted_from_the_opening():
    hours = schedule("22:30-06:00", 3_600.0)
    numbers = [
        turn(hours, at(text), 0).number
        for text in ("2026-03-01T22:30:00", "2026-03-01T23:29:59", "2026-03-01T23:30:00")
    ]
    assert numbers[0] == numbers[1] != numbers[2]
    assert turn(hours, at("2026-03-01T23:29:50"), 0).wait_s == pytest.approx(10)


def test_every_without_a_window_counts_from_midnight():
    hours = schedule(None, 900.0)
    first = turn(hours, at("2026-03-01T00:00:00"), 0).number
    assert turn(hours, at("2026-03-01T00:14:59"), 0).number == first
    assert turn(hours, at("2026-03-01T00:15:00"), 0).number != first
    assert turn(hours, at("2026-03-02T00:00:00"), 0).number != first


@given(
    st.integers(0, 4_000_000_000 * NS),
    st.integers(-14 * 3_600, 14 * 3_600),
    st.sampled_from([NIGHT, DAY, schedule(None, 777.0), schedule("01:00-02:00", 60.0)]),
)
def test_whatever_clock_and_offset_say_the_next_look_is_soon(wall_ns, offset_s, hours):
    assert 0 <= turn(hours, wall_ns, offset_s).wait_s <= limits.SCHEDULE_LOOK_S


def test_summer_time_moves_the_window_with_the_offset():
    before, after = at("2026-03-29T01:59:00", 3_600), at("2026-03-29T03:01:00", 7_200)
    assert after - before == 2 * 60 * NS  # two minutes pass, local time jumps an hour
    hours = schedule("02:30-03:30", None)
    assert turn(hours, before, 3_600).number is None
    assert turn(hours, after, 7_200).number is not None


# --- age and timeouts ---------------------------------------------------------------------------


def test_ages_are_drawn_and_without_jitter_they_are_not():
    assert drawn_age_s(1.0, 0.0, Random(1)) == 1.0
    drawn = {drawn_age_s(1.0, 0.5, Random(seed)) for seed in range(20)}
    assert len(drawn) == 20
    assert min(drawn) >= 1.0
    assert max(drawn) <= 1.5


def test_the_first_attempt_has_the_whole_time():
    assert Patience().timeout_s(60.0) == 60.0


def test_timeouts_follow_what_attempts_took_within_bounds():
    quick, slow = Patience(), Patience()
    for _ in range(50):
        quick, slow = quick.after(0.01), slow.after(5.0)
    assert quick.timeout_s(60.0) == limits.ATTEMPT_TIMEOUT_FLOOR_S
    assert slow.timeout_s(60.0) == pytest.approx(limits.ATTEMPT_TIMES_COUNT * 5.0, rel=0.05)
    assert slow.timeout_s(8.0) == 8.0


def test_varying_attempts_get_more_time():
    even, uneven = Patience(), Patience()
    for number in range(100):
        even, uneven = even.after(4.0), uneven.after(2.0 if number % 2 else 6.0)
    assert uneven.timeout_s(1_000.0) > 2 * even.timeout_s(1_000.0)


def test_silence_doubles_the_time_up_to_the_cap_and_an_answer_ends_it():
    value = Patience(4.0, 0.0)
    timeouts = []
    for _ in range(6):
        timeouts.append(value.timeout_s(60.0))
        value = value.after_silence()
    assert timeouts == [16.0, 32.0, 60.0, 60.0, 60.0, 60.0]
    assert value.after(4.0).timeout_s(60.0) < 60.0


# --- figures ------------------------------------------------------------------------------------


def test_a_rate_is_a_mean_that_fades():
    value = Rate()
    for second in range(60):
        value = value.after(500, second * NS)
    assert value.per_s(59 * NS) == pytest.approx(500, rel=0.1)
    assert value.per_s(120 * NS) < 2
    assert Rate().per_s(5 * NS) == 0


def test_a_young_rate_counts_the_time_that_there_was():
    value = Rate()
    for tenth in range(21):
        value = value.after(100, tenth * NS // 10)
    assert value.per_s(2 * NS) == pytest.approx(1_000, rel=0.2)


def test_a_rate_fades_by_the_time_without_events():
    assert faded(100.0, limits.RATE_MEMORY_S) == pytest.approx(100 / math.e)
    assert faded(100.0, -5.0) == 100.0


@pytest.mark.parametrize(
    ("pending", "per_s", "seconds"),
    [(0, 0.0, 0.0), (100, 50.0, 2.0), (100, 0.0, None), (10**9, 1e-3, None)],
)
def test_the_estimate_is_what_is_pending_at_the_present_rate(pending, per_s, seconds):
    assert eta_s(pending, per_s) == seconds


# --- workers ------------------------------------------------------------------------------------


def follow(lags_s, *, lowest=1, highest=4, step_s=0.5):
    value, seen = Workers(lowest, 0, 0), []
    for number, lag in enumerate(lags_s, 1):
        now_ns = round(number * step_s * NS)
        value = workers_at_work(value, lag, lowest=lowest, highest=highest, now_ns=now_ns)
        seen.append(value.number)
    return seen


def test_workers_come_one_at_a_time_while_the_lag_lasts():
    seen = follow([10.0] * 20)
    assert seen[:7] == [1, 2, 2, 3, 3, 4, 4]
    assert set(seen[7:]) == {4}


def test_workers_leave_late_and_one_at_a_time():
    seen = follow([10.0] * 8 + [0.0] * 80)
    assert seen[8:24] == [4] * 16
    assert seen[-1] == 1
    assert all(before - after in {0, 1} for before, after in pairwise(seen[7:]))


def test_between_the_bounds_of_the_lag_nothing_changes():
    assert set(follow([1.0] * 100)) == {1}


def test_a_lag_that_flutters_does_not_make_workers_flutter():
    seen = follow([10.0, 0.0] * 50)
    assert seen == sorted(seen)


def test_other_bounds_hold_at_once():
    assert workers_at_work(Workers(8, 0, 0), 1.0, lowest=1, highest=4, now_ns=1).number == 4
    assert workers_at_work(Workers(1, 0, 0), 1.0, lowest=3, highest=4, now_ns=1).number == 3


def test_a_backlog_without_a_rate_lags_without_end():
    assert lag_s(5, 0.0) == math.inf
    assert lag_s(0, 0.0) == 0
    assert lag_s(10, 5.0) == 2.0
    assert pacing.lag_s(0, 10.0) == 0.0
