"""What lanes of a target share, with many of them at the same time."""

import threading
from random import Random

from wald import limits
from wald.config import RouteSettings
from wald.core.breaker import PERMIT, PROBE, BreakerState, Permit, Scope
from wald.drainer.targets import Guard, Pace, Target, Targets
from wald.model import Capabilities, Delivered, ReplayClass, Systemic, SystemicKind

NS = limits.CLOCK_NS_PER_S
ROUTE = RouteSettings("bookings", "bookings", "db")
FULL = Systemic(SystemicKind.FULL, "no space left")
LANES = 8


def at_once(call):
    """Call from many threads at the same time; return what came of it."""
    barrier, found = threading.Barrier(LANES), []

    def run():
        barrier.wait(60)
        found.append(call())

    threads = [threading.Thread(target=run) for _ in range(LANES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == LANES
    return found


def many(call, now_ns):
    for _ in range(100):
        call(10, now_ns)


def test_of_many_lanes_that_ask_at_the_same_time_one_gets_the_probe():
    guard, chance, now_ns = Guard(Scope.TARGET, "db"), Random(3), NS
    for _ in range(50):
        permits = at_once(lambda at_ns=now_ns: guard.admit(at_ns))
        if guard.breaker.state is BreakerState.CLOSED:
            assert permits == [PERMIT] * LANES
        else:
            assert permits.count(PROBE) == 1
            assert permits.count(None) == LANES - 1
        guard.ended(Permit(PROBE in permits), FULL, now_ns, chance)
        now_ns = guard.breaker.due_ns
    assert guard.breaker.openings == 50


def test_failures_of_many_lanes_at_the_same_time_open_a_breaker_once():
    guard, chance = Guard(Scope.TARGET, "db"), Random(4)
    at_once(lambda: guard.ended(PERMIT, FULL, NS, chance))
    assert guard.breaker.openings == 1


def test_who_ends_the_probe_learns_that_the_breaker_closed():
    guard, chance = Guard(Scope.TARGET, "db"), Random(5)
    assert guard.ended(PERMIT, Delivered(), NS, chance) is False
    guard.ended(PERMIT, FULL, NS, chance)
    permit = guard.admit(guard.breaker.due_ns)
    assert permit is PROBE
    assert guard.ended(permit, Delivered(), 9 * NS, chance) is True


def test_records_of_many_lanes_are_all_counted_against_the_rate():
    pace = Pace("r", 1_000, 0)
    at_once(lambda: many(pace.begins, 0))
    assert pace.bucket is not None
    assert pace.bucket.tokens == -10 * 100 * LANES
    at_once(lambda: many(pace.delivered, NS))
    assert round(pace.rate.weighed * limits.RATE_MEMORY_S) == 10 * 100 * LANES


def test_without_a_rate_there_is_no_bucket():
    pace = Pace("r", None, 0)
    pace.begins(10, 0)
    assert pace.bucket is None


def test_a_route_is_live_for_its_neighbours_as_long_as_it_works_and_keeps_up():
    target = Target("db")
    target.worked(1, NS, live=True)
    assert target.has_live(2, 2 * NS)
    assert not target.has_live(1, 2 * NS)
    assert not target.has_live(2, NS + round((limits.LIVE_AGE_S + 1) * NS))
    target.worked(1, 2 * NS, live=False)
    assert not target.has_live(2, 2 * NS)


def test_lanes_of_a_sink_share_a_target_and_those_of_a_route_its_pace():
    targets = Targets()
    assert targets.target("db") is targets.target("db")
    assert targets.target("db") is not targets.target("bi")
    assert targets.pace(1, ROUTE, 0) is targets.pace(1, ROUTE, 0)
    assert targets.pace(1, ROUTE, 0) is not targets.pace(2, ROUTE, 0)


def test_an_outage_is_logged_once_at_its_beginning_and_once_at_its_end(caplog):
    caplog.set_level("INFO", "wald.drain")
    guard, chance, now_ns = Guard(Scope.TARGET, "db"), Random(6), NS
    guard.ended(PERMIT, FULL, now_ns, chance)
    for _ in range(5):
        now_ns = guard.breaker.due_ns
        permit = guard.admit(now_ns)
        assert permit is not None
        guard.ended(permit, FULL, now_ns, chance)
    permit = guard.admit(guard.breaker.due_ns)
    assert permit is not None
    guard.ended(permit, Delivered(), 61 * NS, chance)
    began, ended = (record.getMessage() for record in caplog.records)
    assert began.startswith("target db: full: 'no space left': nothing is sent until it is over; ")
    assert began.endswith("make room at the target")
    assert ended == "target db works again, after 60.0 s"


def test_what_a_target_takes_at_most_is_shared_by_all_who_deliver_to_it():
    targets = Targets()
    one, other = targets.target("bi"), targets.target("bi")
    able = Capabilities(ReplayClass.NONE, 10, 10, max_requests_per_s=2, max_records_per_s=100)
    one.bound(able, 0)
    other.bound(able, 0)  # another lane of another route says the same
    assert one.wait_s(0) == other.wait_s(0) == 0
    one.begins(10, 0)
    assert other.wait_s(0) == 0.5
    other.begins(200, 0)
    assert one.wait_s(0) == 2.1
    assert one.wait_s(2_100_000_000) == 0
    one.bound(Capabilities(ReplayClass.NONE, 10, 10), 0)
    assert other.wait_s(0) == 0
