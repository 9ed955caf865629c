"""When a batch is sealed, and how much goes into it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wald.core.batching import Bounds, SealReason, Waiting, due_in_s, fitting, is_full, why_seal

BOUNDS = Bounds(max_records=10, max_bytes=1_000, max_age_s=2.0)
SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("waiting", "now_ns", "flush", "reason"),
    [
        (Waiting(0, 0, 0), 100 * SECOND, True, None),
        (Waiting(1, 10, 0), SECOND, False, None),
        (Waiting(10, 10, 0), 0, False, SealReason.RECORDS),
        (Waiting(11, 10, 0), 0, False, SealReason.RECORDS),
        (Waiting(1, 1_000, 0), 0, False, SealReason.BYTES),
        (Waiting(1, 10, 0), 2 * SECOND, False, SealReason.AGE),
        (Waiting(1, 10, 0), 0, True, SealReason.FLUSH),
        (Waiting(1, 10, 0, is_urgent=True), 0, False, SealReason.URGENT),
        (Waiting(10, 10, 0, is_urgent=True), 0, False, SealReason.RECORDS),
        (Waiting(9, 999, 5 * SECOND), 7 * SECOND - 1, False, None),
    ],
)
def test_a_batch_is_sealed_by_count_bytes_age_or_a_flush(waiting, now_ns, flush, reason):
    assert why_seal(waiting, BOUNDS, now_ns, flush=flush) is reason


def test_what_is_urgent_is_due_at_once():
    assert due_in_s(Waiting(1, 1, 5 * SECOND, is_urgent=True), BOUNDS, 5 * SECOND) == 0


def test_age_is_measured_from_when_the_oldest_was_seen():
    assert due_in_s(Waiting(1, 1, 4 * SECOND), BOUNDS, 5 * SECOND) == 1.0
    assert due_in_s(Waiting(1, 1, 0), BOUNDS, 5 * SECOND) == -3.0


def test_reading_stops_when_the_next_batch_is_full():
    assert not is_full(Waiting(9, 999, 0), BOUNDS)
    assert is_full(Waiting(10, 0, 0), BOUNDS)
    assert is_full(Waiting(1, 1_000, 0), BOUNDS)


def test_nothing_waiting_makes_no_batch():
    assert fitting([], BOUNDS) == 0


def test_a_record_over_the_bound_of_bytes_is_a_batch_of_its_own():
    assert fitting([5_000, 1], BOUNDS) == 1
    assert fitting([1, 5_000], BOUNDS) == 1


@given(st.lists(st.integers(0, 2_000), min_size=1, max_size=30))
def test_a_batch_takes_as_many_in_order_as_fit(sizes):
    count = fitting(sizes, BOUNDS)
    assert 1 <= count <= BOUNDS.max_records
    if count > 1:
        assert sum(sizes[:count]) <= BOUNDS.max_bytes
    if count < min(len(sizes), BOUNDS.max_records):
        assert sum(sizes[: count + 1]) > BOUNDS.max_bytes
