"""The adaptive batch size: rules one by one, then simulated targets, seeded."""

import math
from itertools import pairwise
from random import Random

import pytest

from wald import limits
from wald.core.adaptive import Adaptive, Sample, SizeReason, adaptive
from wald.model import (
    Delivered,
    Partial,
    Rejected,
    RejectedRecord,
    RowMoved,
    Systemic,
    SystemicKind,
    TooLarge,
    Unknown,
)

GOAL_S = limits.LATENCY_GOAL_S
WORKED = Delivered()
BUSY = Systemic(SystemicKind.BUSY, "lock wait timeout")


def sized(size, *, former=None, highest=2_000, **fields):
    return Adaptive(size, 1, highest, GOAL_S, former or size, **fields)


# --- one step -----------------------------------------------------------------------------------


def test_it_starts_small_and_doubles_while_doubling_is_safe():
    value = adaptive(2_000)
    sizes = []
    for _ in range(5):
        sizes.append(value.size)
        value = value.after(WORKED, GOAL_S / 10, value.size)
    assert sizes == [256, 512, 1024, 2000, 2000]
    assert value.reason is SizeReason.AT_MOST


def test_light_traffic_leaves_the_size_alone():
    value = sized(100).after(WORKED, 0.001, 3)
    assert (value.size, value.reason) == (100, SizeReason.LIGHT)


def test_growth_beyond_the_known_size_is_additive():
    value, sizes = sized(80), []
    for _ in range(4):
        value = value.after(WORKED, 0.3, value.size)
        sizes.append(value.size)
    assert sizes == [90, 100, 110, 120]
    assert value.reason is SizeReason.GROWN


def test_near_the_goal_the_size_rests():
    value = sized(100).after(WORKED, 0.9 * GOAL_S, 100).after(WORKED, 1.2 * GOAL_S, 100)
    assert (value.size, value.reason) == (100, SizeReason.AT_GOAL)


def test_one_slow_attempt_is_chance_and_two_contract():
    once = sized(100).after(WORKED, 2 * GOAL_S, 100)
    assert once.size == 100
    twice = once.after(WORKED, 2.5 * GOAL_S, 100)
    assert (twice.size, twice.reason) == (50, SizeReason.SLOW)


@pytest.mark.parametrize(
    ("outcome", "size", "reason"),
    [
        (BUSY, 50, SizeReason.BUSY),
        (Partial(retry=(RejectedRecord(1, "throttled", "later"),)), 50, SizeReason.BUSY),
        (Partial(rejected=(RejectedRecord(1, "bad", "never"),)), 112, SizeReason.GROWN),
        (Unknown("gone"), 50, SizeReason.NO_ANSWER),
        (TooLarge("413"), 30, SizeReason.TOO_LARGE),
        (Systemic(SystemicKind.UNREACHABLE, "refused"), 100, SizeReason.START),
        (Rejected((), "no"), 100, SizeReason.START),
        (RowMoved(None), 100, SizeReason.START),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else "",
)
def test_what_each_outcome_says_of_the_size(outcome, size, reason):
    records = 60 if isinstance(outcome, TooLarge) else 100
    value = sized(100).after(outcome, 0.01, records)
    assert (value.size, value.reason) == (size, reason)


def test_a_size_that_was_too_large_is_not_tried_again():
    value, sizes = sized(1_000).after(TooLarge("413"), 0.01, 1_000), []
    for _ in range(30):
        value = value.after(WORKED, 0.01, value.size)
        sizes.append(value.size)
    assert sizes[4] == 750
    assert 750 < max(sizes) < 1_000
    assert value.reason is SizeReason.TOO_LARGE
    smaller = value.after(TooLarge("413"), 0.01, 600)
    assert (smaller.size, smaller.refused_at) == (300, 600)
    assert smaller.after(TooLarge("413"), 0.01, 900).refused_at == 600


def test_what_was_too_large_is_tried_again_after_a_while():
    """It may have been a few large records; a target that means it says so now and then."""
    value, refusals = sized(1_000), 0
    for _ in range(1_000):
        outcome = TooLarge("413") if value.size >= 700 else WORKED
        refusals += outcome is not WORKED
        value = value.after(outcome, 0.01, value.size)
    assert 10 < refusals < 40
    for _ in range(500):
        value = value.after(WORKED, 0.01, value.size)
    assert value.size == 2_000


def test_a_record_that_is_too_large_alone_leaves_no_small_batches():
    value = sized(1_000)
    for records in (1_000, 500, 250, 125, 63, 32, 16, 8, 4, 2, 1):
        value = value.after(TooLarge("413"), 0.01, records)
    for _ in range(12):
        value = value.after(WORKED, 0.01, value.size)
    assert value.size == 2_000


def test_a_batch_without_records_says_nothing_of_the_size():
    assert sized(100).after(WORKED, 9.0, 0) == sized(100)


def test_a_lost_answer_is_grown_out_of_by_doubling_and_a_busy_target_is_not():
    assert sized(100).after(Unknown("gone"), 1.0, 100).former == 100
    assert sized(100).after(BUSY, 1.0, 100).former == 50


def test_it_never_leaves_its_bounds():
    assert sized(1).after(BUSY, 1.0, 1).size == 1
    assert sized(1_990, former=2_000).after(WORKED, 0.01, 1_990).size == 2_000
    assert adaptive(10).size == 10


def test_equal_bounds_switch_it_off():
    value = adaptive(500, lowest=500)
    for outcome in (BUSY, WORKED, WORKED, TooLarge("413")):
        value = value.after(outcome, 9.0, 500)
        assert value.size == 500


def test_behind_an_outage_it_starts_small_doubles_to_the_former_size_then_adds():
    value = sized(400).restarted()
    assert (value.size, value.reason) == (limits.SLOW_START_RECORDS, SizeReason.OUTAGE)
    sizes = []
    for _ in range(6):
        value = value.after(WORKED, 0.01, value.size)
        sizes.append(value.size)
    assert sizes == [64, 128, 256, 400, 450, 500]


def test_an_outage_within_a_slow_start_keeps_the_former_size():
    assert sized(400).restarted().restarted().former == 400


def test_an_outage_makes_a_small_size_no_larger():
    assert sized(5).restarted().size == 5


def test_other_bounds_of_the_sink_hold_at_once():
    value = sized(2_000).within(500)
    assert (value.size, value.former, value.highest) == (500, 500, 500)
    assert value.within(500) is value


def test_smaller_batches_that_save_no_time_raise_the_goal_instead():
    value = sized(400)
    for _ in range(2):
        value = value.after(WORKED, 2.4, 400)  # 2 s, and 1 ms a record
    assert value.size == 100
    for _ in range(2):
        value = value.after(WORKED, 2.1, 100)
    assert value.fixed_s == pytest.approx(2.0)
    assert value.effective_goal_s == pytest.approx(4.0)
    assert value.size == 200  # doubling back to what it was
    assert value.former == 400


def test_a_batch_of_one_that_is_too_slow_is_all_fixed_time():
    value = sized(1).after(WORKED, 3.0, 1).after(WORKED, 3.0, 1)
    assert value.fixed_s == 3.0
    assert value.size == 2


def test_the_goal_returns_when_the_fixed_time_is_gone():
    value = sized(100, fixed_s=2.0, last=Sample(100, 0.02)).after(WORKED, 0.01, 100)
    assert value.effective_goal_s == GOAL_S


# --- simulated targets --------------------------------------------------------------------------

BATCHES = 600
SETTLED = 200


def run(fixed_s, per_record_s, seed, *, noise=0.15, factor=lambda _: 1.0, batches=BATCHES):
    """Return the sizes of a run of full batches at a target with such costs."""
    print(f"seed {seed}")
    chance, value, sizes = Random(seed), adaptive(2_000), []
    for number in range(batches):
        sizes.append(value.size)
        seconds = (fixed_s + per_record_s * value.size) * factor(number)
        value = value.after(WORKED, seconds * math.exp(chance.gauss(0, noise)), value.size)
    return sizes


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("fixed_s", "per_record_s"),
    [(0.01, 0.001), (0.1, 0.004), (0.0, 0.01), (0.2, 0.0005), (0.02, 0.0003)],
)
def test_it_settles_in_a_band_around_the_goal_and_moves_little(fixed_s, per_record_s, seed):
    sizes = run(fixed_s, per_record_s, seed)[SETTLED:]
    for size in sizes:
        assert 0.5 * GOAL_S <= fixed_s + per_record_s * size <= 1.45 * GOAL_S
    assert sum(before != after for before, after in pairwise(sizes)) <= len(sizes) // 5


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_quick_target_gets_the_largest_batch_and_keeps_it(seed):
    sizes = run(0.005, 0.00001, seed)
    assert sizes[:4] == [256, 512, 1024, 2000]
    assert set(sizes[4:]) == {2000}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_target_ten_times_slower_contracts_the_size_and_it_comes_back(seed):
    slow = range(200, 400)
    sizes = run(0.01, 0.001, seed, factor=lambda n: 10.0 if n in slow else 1.0)
    assert 300 <= sizes[199] <= 700
    assert max(sizes[210:400]) <= 100  # ten batches later it has taken effect
    assert min(sizes[210:400]) >= 20
    assert min(sizes[460:]) >= 300
    assert max(sizes[460:]) <= 700


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
@pytest.mark.parametrize(("fixed_s", "per_record_s"), [(2.0, 0.001), (3.0, 0.1), (0.9, 0.002)])
def test_a_long_fixed_time_does_not_starve_the_route(fixed_s, per_record_s, seed):
    """At a size where half of the time is work a target gives half of what it can give."""
    sizes = run(fixed_s, per_record_s, seed, noise=0.1)[SETTLED:]
    rate = sum(sizes) / sum(fixed_s + per_record_s * size for size in sizes)
    assert rate >= 0.3 / per_record_s
