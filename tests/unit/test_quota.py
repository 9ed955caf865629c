"""Quotas of streams: marks, what is pending, when to pause, when it is full."""

import pytest

from wald import limits
from wald.core.events import WHOLE_REQUEST, Refusal, Throttle
from wald.core.outbox import Outbox, Request, refused_at_the_door
from wald.core.patience import Patience, again_s, first_without_room
from wald.core.quota import (
    GUARD_RECORDS,
    Mark,
    Marks,
    Pending,
    Quota,
    Reach,
    StreamQuota,
    pause_s,
    pending_of,
)
from wald.errors import AccessDenied, Backpressure, OutcomeUnknown, WaldError

S = limits.CLOCK_NS_PER_S
NOW = Mark(lsn=100, records=100, bytes=10_000, time_ns=50 * S)
MARKS = [Mark(0, 0, 0), Mark(50, 50, 1_000, 20 * S), Mark(80, 80, 9_000, 40 * S), NOW]
UNSAID = Reach("r", 0, 0, 0)

ROWS = {
    "nothing was said: all since the birth is pending": (
        [UNSAID],
        Pending(100, 10_000, 30.0, "r"),
    ),
    "at a mark bytes and time are exact": (
        [Reach("r", 0, 50, 50)],
        Pending(50, 9_000, 30.0, "r"),
    ),
    "between marks bytes go by proportion, and nothing seems younger than it is": (
        [Reach("r", 0, 65, 65)],
        Pending(35, 5_000, 30.0, "r"),
    ),
    "the drainer's word on the oldest counts": (
        [Reach("r", 0, 65, 65, 45 * S)],
        Pending(35, 5_000, 5.0, "r"),
    ),
    "the slowest route counts": (
        [Reach("fast", 0, 99, 99), Reach("slow", 0, 50, 50)],
        Pending(50, 9_000, 30.0, "slow"),
    ),
    "a route owes nothing of before its birth": (
        [Reach("late", 80, 10, 90)],
        Pending(10, 500, 10.0, "late"),
    ),
    "a route that is through owes nothing, whatever damage took": (
        [Reach("r", 0, 60, 100)],
        Pending(0, 0, 0.0, "r"),
    ),
    "what damage took below the LSNs it is through is not pending": (
        [Reach("r", 0, 60, 80)],
        Pending(20, 1_000, 10.0, "r"),
    ),
    "a stream without routes owes nobody": ([], Pending()),
}


@pytest.mark.parametrize("row", ROWS)
def test_what_is_pending(row: str) -> None:
    reaches, expected = ROWS[row]
    assert pending_of(NOW, reaches, Marks(MARKS)) == expected


def test_marks_are_bounded_and_keep_first_and_last() -> None:
    marks = Marks(Mark(n, n, 10 * n, n) for n in range(1, 5_001))
    kept = list(marks)
    assert len(kept) <= limits.QUOTA_MARKS_COUNT
    assert (kept[0].records, kept[-1].records) == (1, 5_000)
    assert marks.at(2_500).bytes == pytest.approx(25_000, rel=0.05)
    marks.forget(4_000)
    assert marks.at(4_000).bytes == pytest.approx(40_000, rel=0.05)
    assert len(list(marks)) < len(kept)


def test_marks_of_a_log_that_went_back_are_dropped() -> None:
    marks = Marks([Mark(10, 10, 100), Mark(20, 20, 200)])
    marks.note(Mark(15, 15, 150))
    assert list(marks) == [Mark(10, 10, 100), Mark(15, 15, 150)]
    marks.note(Mark(15, 15, 150, 7))
    assert len(list(marks)) == 2


def test_before_the_first_mark_and_behind_the_last_nothing_is_invented() -> None:
    assert Marks().at(5) == Mark(0, 5, 0)
    marks = Marks([Mark(10, 10, 100, 1), Mark(20, 20, 200, 2)])
    assert marks.at(5) == Mark(0, 5, 100)
    assert marks.at(25) == Mark(20, 25, 200, 2)
    assert marks.records_through(9) == 0


def test_pauses_grow_as_the_reserve_shrinks() -> None:
    pauses = [pause_s(used / 100, 0.8) for used in range(70, 121)]
    assert pauses[:10] == [0.0] * 10
    assert pauses[10] == limits.QUOTA_PAUSE_MIN_S
    assert pauses[10:31] == sorted(set(pauses[10:31]))
    assert pauses[30:] == [limits.QUOTA_PAUSE_MAX_S] * 21
    assert pause_s(1.0, 1.0) == limits.QUOTA_PAUSE_MAX_S
    assert pause_s(0.999, 1.0) == 0.0


BOUND = Quota(pending_bytes=100 << 20, records=1_000_000, age_s=60.0)

JUDGED = {
    "much room": (Pending(1, 1, 1.0), False, False, False),
    "the soft mark of bytes": (Pending(0, 80 << 20, 0.0), True, True, False),
    "the soft mark of records": (Pending(800_000, 0, 0.0), True, True, False),
    "the soft mark of the age": (Pending(1, 1, 48.0), True, True, False),
    "full of bytes": (Pending(0, 100 << 20, 0.0), True, True, True),
    "full of records": (Pending(1_000_000, 0, 0.0), True, True, True),
    "too old": (Pending(1, 1, 60.0), True, True, True),
}


@pytest.mark.parametrize("row", JUDGED)
def test_a_quota_is_judged_by_its_fullest_bound(row: str) -> None:
    pending, guarded, pauses, full = JUDGED[row]
    quota = StreamQuota(BOUND, Marks())
    quota.look(pending)
    assert (quota.guarded, quota.pause_s > 0, quota.is_full) == (guarded, pauses, full)


def test_near_a_bound_requests_are_looked_at_one_by_one() -> None:
    quota = StreamQuota(Quota(records=GUARD_RECORDS * 2, soft=1.0), Marks())
    assert not quota.guarded
    quota.charge(GUARD_RECORDS + 1, 0)
    assert (quota.guarded, quota.is_full) == (True, False)
    small = StreamQuota(Quota(pending_bytes=limits.MIB), Marks())
    assert small.guarded


def test_what_was_accepted_counts_until_the_next_look_and_not_twice() -> None:
    quota = StreamQuota(Quota(records=10), Marks())
    quota.charge(4, 40)
    quota.look(Pending(0, 0, 0.0, "r"))  # of what is durable: these four are not yet
    assert quota.pending == Pending(4, 40, 0.0, "r")
    quota.settle()
    quota.look(Pending(4, 40, 0.0, "r"))
    assert quota.pending == Pending(4, 40, 0.0, "r")
    quota.charge(6, 60)
    assert quota.is_full
    assert quota.says() == "10 of 10 records"


def test_a_quota_says_each_of_its_bounds() -> None:
    quota = StreamQuota(Quota(1_000, 10, 60.0), Marks())
    quota.look(Pending(5, 500, 6.0, "r"))
    assert quota.says() == "500 of 1,000 bytes, 5 of 10 records, 6 of 60 s"
    assert quota.used == 0.5


def test_no_bound_is_no_quota() -> None:
    assert not Quota().is_set
    assert Quota(age_s=1.0).is_set


def test_patience_ends_with_the_pause() -> None:
    outbox = Outbox()
    outbox.take(Throttle(7, 2_000, 950))
    patience = Patience(outbox)
    patience.hear(10 * S)
    assert patience.is_asked
    assert patience.pause_s("a", 7, 11 * S, 30.0) == 1.0
    assert patience.pause_s("b", 8, 11 * S, 30.0) == 0.0
    assert patience.pause_s("c", None, 11 * S, 30.0) == 0.0
    with pytest.raises(Backpressure) as caught:
        patience.pause_s("a", 7, 11 * S, 1.0)
    assert caught.value.retry_after_s == 1.0
    assert patience.pause_s("a", 7, 12 * S, 30.0) == 0.0
    assert not patience.is_asked


def test_only_what_found_no_room_is_sent_again_and_only_in_time() -> None:
    full = Backpressure("full", retry_after_s=2.0)
    assert again_s(full, 3.0) == 2.0
    assert again_s(full, 2.0) == 0.0
    assert again_s(Backpressure("full", retry_after_s=0.0), 3.0) == limits.QUOTA_PAUSE_MIN_S
    assert again_s(None, 3.0) == 0.0


DONE, FULL, LOST = None, Backpressure("full", retry_after_s=1.0), OutcomeUnknown("lost")
SENT_AGAIN: dict[str, tuple[list[WaldError | None], int | None]] = {
    "all stored": ([DONE, DONE], None),
    "from the first without room on": ([DONE, FULL, FULL], 1),
    "not past one that nobody knows of": ([DONE, FULL, LOST], None),
    "not past one that was stored": ([FULL, DONE], None),
    "nothing sent": ([], None),
}


@pytest.mark.parametrize("row", SENT_AGAIN)
def test_which_requests_are_sent_again(row: str) -> None:
    errors, expected = SENT_AGAIN[row]
    requests = []
    for error in errors:
        requests.append(Request(1, 1, b"", 1))
        requests[-1].done = True
        requests[-1].error = error
    assert first_without_room(requests) == expected


def test_a_request_refused_at_the_door_is_an_error_of_its_kind() -> None:
    whole = [Refusal(WHOLE_REQUEST, code) for code in ("backpressure", "access-denied", "record.x")]
    errors = [refused_at_the_door((each,), 0.5) for each in whole]
    assert [type(error) for error in errors] == [Backpressure, AccessDenied, type(None)]
    assert refused_at_the_door((Refusal(0, "backpressure"),), 0.5) is None
    assert refused_at_the_door((), 0.5) is None
