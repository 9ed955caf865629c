"""The delivery policy, with real lanes over a real log and clocks that the test moves."""

import json
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import pairwise
from random import Random

import pytest

from tests.backlog import CLOCK, Backlog
from tests.daemon import Daemon, wait_until
from wald import limits
from wald.config import BatchSettings, RouteSettings, SinkSettings
from wald.config.settings import DeliverSettings
from wald.core import body, frame
from wald.core.breaker import PERMIT, PROBE, TRIPS, BreakerState
from wald.drainer.lane import Lane
from wald.drainer.route import Route, Shared
from wald.model import Content, Delivered, ReplayClass, RouteBirth, Systemic, SystemicKind
from wald.testing.clock import ManualClock
from wald.testing.recording_sink import RecordingSink, RecordingTarget

NS = limits.CLOCK_NS_PER_S
DOWN = Systemic(SystemicKind.UNREACHABLE, "connection refused")
FULL = Systemic(SystemicKind.FULL, "no space left on device")
BUSY = Systemic(SystemicKind.BUSY, "lock wait timeout")
NO_TABLE = Systemic(SystemicKind.CONFIGURATION, "no such table: events", "create it")


class TimedSink(RecordingSink):
    """Takes its time by the lane's own clock, and remembers who asked when."""

    def __init__(self, target, clock, asks, name, seconds):
        super().__init__(target)
        self._clock, self._asks, self._name, self._seconds = clock, asks, name, seconds

    def read_row(self, key):
        self._asks.append((self._clock.monotonic_ns() / NS, self._name))
        return super().read_row(key)

    def deliver(self, attempt):
        self._clock.advance(self._seconds(len(attempt.records)))
        return super().deliver(attempt)


@dataclass
class Runner:
    """A lane, its own clock, and when it goes on."""

    lane: Lane
    clock: ManualClock
    at_s: float

    @property
    def now_s(self) -> float:
        return self.clock.monotonic_ns() / NS


@dataclass
class Field:
    """Lanes of a log, one after the other by their clocks: as if each had a processor."""

    backlog: Backlog
    seed: int = 5
    wall_ns: int = field(default_factory=CLOCK.wall_ns)
    runners: dict[str, Runner] = field(default_factory=dict)
    asks: list[tuple[float, str]] = field(default_factory=list)
    shared: Shared = field(init=False)

    def __post_init__(self) -> None:
        print(f"seed {self.seed}")
        self.shared = replace(self.backlog.shared(lambda *_: None), chance=Random(self.seed))

    def add(
        self,
        name: str,
        target: RecordingTarget,
        *,
        sink: str = "db",
        seconds: Callable[[int], float] = lambda _: 0.01,
        from_s: float = 1.0,
        **settings,
    ) -> Lane:
        clock = ManualClock(self.wall_ns)
        clock.advance(from_s - 1.0)  # it begins at 1 s

        def make(*_):
            return TimedSink(target, clock, self.asks, name, seconds)

        shared = replace(self.shared, clock=clock, make_sink=make)
        number = next(
            route.route_id for route in self.backlog.log.state.routes.values() if route.name == name
        )
        birth = shared.ledger.birth(
            RouteBirth(number, name, number, name, "digest", 0, shared.owner)
        )
        batch = settings.pop("batch", BatchSettings(2_000, 1 << 20, 0.05))
        route = Route(
            shared,
            birth,
            RouteSettings(name, name, sink, batch=batch, **settings),
            SinkSettings(sink, "test"),
        )
        lane = Lane(route)
        self.runners[name] = Runner(lane, clock, from_s)
        return lane

    def run(self, until_s: float, stop: Callable[[], bool] = lambda: False) -> None:
        while not stop():
            runner = min(self.runners.values(), key=lambda one: one.at_s)
            if runner.at_s > until_s:
                return
            runner.clock.advance(max(0.0, runner.at_s - runner.now_s))
            turn = self.shared.board.turn()
            rest_s = runner.lane.step()
            runner.at_s = runner.now_s + (max(rest_s, 1e-6) if rest_s > 0 else 0.0)
            if self.shared.board.turn() != turn:
                self.wake(runner.now_s)

    def wake(self, now_s: float) -> None:
        for runner in self.runners.values():
            runner.at_s = min(runner.at_s, max(now_s, runner.now_s))

    def came(self, now_s: float) -> None:
        """Let the lanes see what was appended."""
        self.shared.board.pin(self.backlog.log.frontier)
        self.wake(now_s)

    def close(self) -> None:
        for runner in self.runners.values():
            runner.lane._steps.let_go()
        self.shared.dead_log.close()


@pytest.fixture
def yard(two):
    made = Field(two)
    yield made
    made.close()


def fill(yard, stream, count, value=b"v"):
    for start in range(0, count, 1_000):
        yard.backlog.append(*[value] * min(1_000, count - start), stream=stream)
    yard.shared.board.pin(yard.backlog.log.frontier)


def sizes(target):
    return [len(attempt.records) for attempt in target.attempts]


def state(yard: Field) -> BreakerState:
    return yard.shared.targets.target("db").guard.breaker.state


def times(yard, name):
    return [at for at, who in yard.asks if who == name]


# --- the breaker --------------------------------------------------------------------------------


def test_one_breaker_stands_before_two_routes_of_a_target_and_lets_one_probe_through(yard):
    fill(yard, 1, 100)
    fill(yard, 2, 100)
    target = RecordingTarget(down=DOWN)
    yard.add("one", target)
    yard.add("two", target)
    guard = yard.shared.targets.target("db").guard
    yard.run(120.0)
    breaker = guard.breaker
    assert breaker.state is BreakerState.OPEN
    assert breaker.kind is SystemicKind.UNREACHABLE
    # each ask behind the first failures was the one probe of an opening
    assert len(yard.asks) == limits.BREAKER_FAILURES_COUNT + breaker.openings - 1
    probes = sorted(at for at, _ in yard.asks)[limits.BREAKER_FAILURES_COUNT :]
    assert all(later - before >= 0.02 for before, later in pairwise(probes))
    assert len(yard.asks) < 40


def test_when_the_target_is_back_both_routes_begin_small_and_grow(yard):
    fill(yard, 1, 4_000)
    fill(yard, 2, 4_000)
    target = RecordingTarget(down=DOWN)
    yard.add("one", target)
    yard.add("two", target)
    yard.run(60.0)
    target.down = None
    yard.run(200.0)
    assert len(target.records) == 8_000
    for number in (1, 2):
        of_route = [len(a.records) for a in target.attempts if a.key.route_id == number]
        assert of_route[:5] == [32, 64, 128, 256, 512]
    starts = [times(yard, name)[-1] for name in ("one", "two")]
    assert starts[0] != starts[1]


def test_a_probe_is_the_batch_that_was_sealed_and_what_follows_is_small(yard):
    fill(yard, 1, 8_000)
    target = RecordingTarget()
    lane = yard.add("one", target)
    yard.run(100.0, lambda: len(target.attempts) >= 4)
    target.script.extend([FULL] * 4)
    yard.run(300.0)
    assert sizes(target)[:4] == [256, 512, 1_024, 2_000]
    assert sizes(target)[4:9] == [2_000] * 5  # the same batch, until it is taken
    assert sizes(target)[9:12] == [32, 64, 128]
    assert lane.figures.delivered == 8_000


def test_while_a_target_is_down_nothing_becomes_a_dead_letter(yard):
    lsns = yard.backlog.append(*[b"v"] * 50, stream=1)
    yard.came(1.0)
    target = RecordingTarget(refuses=lambda record: record.lsn == lsns[7])
    target.down = DOWN
    lane = yard.add("one", target)
    yard.run(600.0)
    assert lane.figures.dead_letters == 0
    assert lane.figures.state == "waiting"
    target.down = None
    yard.run(700.0)
    assert lane.figures.dead_letters == 1
    assert lane.figures.delivered == 49


def test_an_outage_in_the_middle_of_a_search_makes_no_dead_letter(yard):
    yard.backlog.append(*[b"v"] * 50, stream=1)
    yard.came(1.0)
    target = RecordingTarget(refuses=lambda record: record.lsn % 25 == 0, names=False)

    class Failing(TimedSink):
        def probe(self, attempt, records):
            if target.probes == 2:
                target.down = DOWN
            return super().probe(attempt, records)

    lane = yard.add("one", target)
    runner = yard.runners["one"]
    make = replace(
        lane.route.shared,
        make_sink=lambda *_: Failing(target, runner.clock, yard.asks, "one", lambda _: 0.01),
    )
    runner.lane = lane = Lane(replace(lane.route, shared=make))
    yard.run(120.0)
    assert target.down
    assert lane.figures.dead_letters == 0
    assert state(yard) is not BreakerState.CLOSED


def test_a_wrong_route_is_named_with_what_to_do_and_its_neighbour_goes_on(yard):
    fill(yard, 1, 100)
    fill(yard, 2, 100)
    wrong, right = RecordingTarget(), RecordingTarget()
    wrong.script.extend([NO_TABLE] * 1_000)
    lane = yard.add("one", wrong)
    yard.add("two", right)
    yard.run(60.0)
    assert len(right.records) == 100
    said = lane.figures.policy["breaker"]
    assert (said["state"], said["scope"], said["kind"]) == ("open", "route", "configuration")
    assert (said["message"], said["hint"]) == (NO_TABLE.message, NO_TABLE.hint)
    assert len(wrong.attempts) < 30


def test_a_target_that_lets_nobody_in_says_so_by_another_name(yard):
    fill(yard, 1, 10)
    target = RecordingTarget(down=Systemic(SystemicKind.AUTHENTICATION, "password expired"))
    lane = yard.add("one", target)
    yard.run(1.02)
    said = lane.figures.policy["breaker"]
    assert (said["scope"], said["kind"]) == ("target", "authentication")
    assert said["hint"] == TRIPS[SystemicKind.AUTHENTICATION].hint
    assert said["due_ns"] >= said["since_ns"]


def test_an_idle_lane_finds_out_that_a_target_is_back(yard):
    target = RecordingTarget(down=DOWN)
    lane = yard.add("one", target)
    yard.run(30.0)
    assert state(yard) is BreakerState.OPEN
    target.down = None
    yard.run(90.0)
    assert state(yard) is BreakerState.CLOSED
    assert lane.figures.state == "idle"
    assert "breaker" not in lane.figures.policy


def test_a_lane_that_leaves_gives_its_probe_to_another(yard):
    fill(yard, 1, 10)
    target = RecordingTarget(down=FULL)
    lane = yard.add("one", target)
    yard.run(1.02)
    assert lane._steps.gate.is_shut
    yard.runners["one"].clock.advance(60.0)
    assert lane._steps.gate.wait_s() == 0  # it has the probe
    lane.stop(0.0)
    lane._steps.let_go()
    target.down = None
    yard.runners.clear()
    yard.add("two", target, from_s=70.0)
    fill(yard, 2, 10)
    yard.run(80.0)
    assert len(target.records) == 10


def test_who_waits_for_a_route_has_its_target_asked_at_once(yard):
    fill(yard, 1, 10)
    target = RecordingTarget(down=DOWN)
    lane = yard.add("one", target)
    yard.run(120.0)
    breaker = yard.shared.targets.target("db").guard.breaker
    assert breaker.due_ns > 121 * NS
    target.down = None
    lane.flush(yard.backlog.log.frontier.lsn)
    yard.wake(120.0)
    yard.run(120.1)
    assert len(target.records) == 10


def test_a_success_that_comes_late_does_not_leave_a_lane_shut(yard):
    fill(yard, 1, 10)
    target = RecordingTarget()
    lane = yard.add("one", target)
    yard.run(2.0, lambda: len(target.records) == 10)
    guard = yard.shared.targets.target("db").guard
    guard.ended(PERMIT, FULL, NS, yard.shared.chance)  # another lane's attempt
    lane._steps.gate.ended(Delivered(), 10, 0.01)
    assert lane._steps.gate.is_shut
    permit = guard.admit(guard.breaker.due_ns)
    assert permit is PROBE
    guard.ended(permit, Delivered(), 9 * NS, yard.shared.chance)
    assert not lane._steps.gate.is_shut


def test_stopping_does_not_wait_for_a_target_that_is_down(yard):
    fill(yard, 1, 10)
    lane = yard.add("one", RecordingTarget(down=DOWN))
    yard.run(30.0)
    lane.stop(3_600.0)
    assert lane.must_leave()


def test_the_time_that_a_target_asks_for_is_kept(yard):
    fill(yard, 1, 10)
    target = RecordingTarget(down=Systemic(SystemicKind.FULL, "later", retry_after_s=90.0))
    yard.add("one", target)
    yard.run(300.0)
    asked = times(yard, "one")
    assert len(asked) == 4
    assert all(later - before >= 90.0 for before, later in pairwise(asked))


def test_the_number_of_attempts_survives_a_restart(yard):
    fill(yard, 1, 10)
    target = RecordingTarget()
    target.script.extend([FULL] * 5)
    lane = yard.add("one", target)
    yard.run(600.0, lambda: len(target.attempts) == 3)
    lane._steps.let_go()
    yard.runners.clear()
    yard.add("one", target, from_s=700.0)  # another process: it knows the ledger only
    yard.run(900.0)
    assert [attempt.number for attempt in target.attempts] == [1, 2, 3, 4, 5, 6]
    assert len(target.records) == 10


# --- how much at a time -------------------------------------------------------------------------


def test_a_busy_target_gets_smaller_batches(yard):
    fill(yard, 1, 6_000)
    target = RecordingTarget()
    lane = yard.add("one", target)
    yard.run(100.0, lambda: len(target.attempts) == 4)
    target.script.extend([BUSY] * 3)
    yard.run(200.0, lambda: len(target.attempts) == 8)
    assert lane.figures.policy["batch_reason"] in {"the target is busy", "grown"}
    yard.run(300.0)
    assert sizes(target)[4:8] == [2_000] * 4  # sealed before; the target takes it at last
    assert max(sizes(target)[8:10]) <= 300
    assert yard.shared.targets.target("db").guard.breaker.openings == 0


def test_a_slow_target_gets_batches_that_it_manages_in_the_goal(yard):
    fill(yard, 1, 20_000)
    target = RecordingTarget()
    lane = yard.add("one", target, seconds=lambda records: 0.002 * records)
    yard.run(60.0)
    assert all(100 <= size <= 320 for size in sizes(target)[2:-1])
    assert lane.figures.policy["batch_size"] <= 320


def test_what_is_fixed_by_the_user_stays(yard):
    fill(yard, 1, 5_000)
    target = RecordingTarget()
    fixed = BatchSettings(1_000, 1 << 20, 0.05, adaptive=False)
    yard.add("one", target, seconds=lambda _: 5.0, batch=fixed)
    yard.run(60.0)
    assert sizes(target) == [1_000] * 5


def test_light_traffic_makes_small_batches_by_age(yard):
    target = RecordingTarget()
    yard.add("one", target, batch=BatchSettings(2_000, 1 << 20, 0.2))
    for second in range(2, 12):
        yard.run(float(second))
        yard.backlog.append(b"a", b"b", stream=1)
        yard.came(float(second))
    yard.run(20.0)
    assert sizes(target) == [2] * 10


def append_urgent(backlog, value):
    data = body.encode(body.Body(Content.BYTES, [value], None, [{limits.URGENT_HEADER_NAME: "y"}]))
    plain = backlog.section(value)
    table = frame._REQUEST.pack(1, 1, len(data), frame.crc32c(data))
    backlog.log.append_group([plain._replace(requests=table, bodies=data)])


def test_an_urgent_record_waits_for_no_others_and_takes_what_waits_with_it(yard):
    target = RecordingTarget()
    yard.add("one", target, batch=BatchSettings(2_000, 1 << 20, 100.0))
    yard.run(2.0)
    yard.backlog.append(b"a", b"b", stream=1)
    yard.came(2.0)
    yard.run(10.0)
    assert target.records == []
    append_urgent(yard.backlog, b"now")
    yard.came(10.0)
    yard.run(10.1)
    assert [record.value for record in target.records] == [b"a", b"b", b"now"]
    yard.backlog.append(b"c", stream=1)
    yard.came(11.0)
    yard.run(50.0)
    assert len(target.records) == 3


def test_attempts_get_a_timeout_by_what_attempts_took(yard):
    fill(yard, 1, 20_000)
    target = RecordingTarget()
    yard.add("one", target, seconds=lambda _: 4.0, attempt_timeout_s=60.0)
    yard.run(600.0)
    given = [attempt.timeout_s for attempt in target.attempts]
    assert given[0] == 60.0
    assert given[-1] is not None
    assert limits.ATTEMPT_TIMEOUT_FLOOR_S <= given[-1] < 30.0


# --- how fast, and when -------------------------------------------------------------------------


def test_a_rate_is_kept_over_a_backlog(yard):
    fill(yard, 1, 3_000)
    target = RecordingTarget()
    yard.add("one", target, max_records_per_s=100)
    for until_s in range(2, 40):
        yard.run(float(until_s))
        assert len(target.records) <= 100 * (until_s - 1 + limits.RATE_BURST_S) + 100
    assert len(target.records) == 3_000


def at_local(hour: int, minute: int = 0) -> int:
    """Return the wall clock of a day at a local time."""
    noon_s = 1_800_000_000
    offset_s = time.localtime(noon_s).tm_gmtoff
    midnight_s = (noon_s + offset_s) // 86_400 * 86_400 - offset_s
    return (midnight_s + hour * 3_600 + minute * 60) * NS


def test_outside_its_hours_a_route_rests_and_a_flush_does_not_change_that(two):
    yard = Field(two, wall_ns=at_local(21))
    fill(yard, 1, 100)
    target = RecordingTarget()
    lane = yard.add("one", target, deliver=DeliverSettings("22:00-06:00"))
    yard.run(1_800.0)
    lane.flush(yard.backlog.log.frontier.lsn)
    yard.wake(1_800.0)
    yard.run(3_590.0)
    assert target.records == []
    assert (lane.figures.state, lane.figures.policy["held"]) == ("waiting", "hours")
    assert lane.figures.checkpoint_lsn == 0
    yard.run(3_640.0)
    assert len(target.records) == 100
    yard.close()


def test_a_clock_that_jumps_neither_holds_a_route_for_ever_nor_doubles_anything(two):
    yard = Field(two, wall_ns=at_local(23))
    target = RecordingTarget()
    yard.add("one", target, deliver=DeliverSettings("22:00-06:00", 3_600.0))
    now_s = 1.0
    for jump_s in (-86_400, 7_200, -3_600, 40 * 86_400):
        fill(yard, 1, 10)
        yard.came(now_s)
        clock = yard.runners["one"].clock
        clock.set_wall(clock.wall_ns() + jump_s * NS)
        now_s += 3_700
        yard.run(now_s)
    assert len(target.records) == 40
    yard.close()


def test_every_hour_delivers_once_an_hour(two):
    yard = Field(two, wall_ns=at_local(8, 1))
    target = RecordingTarget()
    lane = yard.add("one", target, deliver=DeliverSettings(every_s=3_600.0))
    began: list[float] = []
    for minute in range(0, 300, 10):
        fill(yard, 1, 5)
        yard.came(minute * 60.0 + 1)
        before = len(target.records)
        yard.run(minute * 60.0 + 600)
        if len(target.records) > before:
            began.append(minute)
    assert len(began) == 6  # at the start, and in each of five hours
    lane.flush(yard.backlog.log.frontier.lsn)
    yard.wake(18_001.0)
    yard.run(18_002.0)
    assert len(target.records) == 150
    yard.close()


def test_jitter_seals_later_by_a_drawn_time(yard):
    target = RecordingTarget()
    yard.add("one", target, batch=BatchSettings(2_000, 1 << 20, 1.0, jitter_s=0.5))
    waited = []
    for number in range(12):
        at_s = 2.0 + 3 * number
        yard.run(at_s)
        yard.backlog.append(b"a", stream=1)
        yard.came(at_s)
        yard.run(at_s + 2.9, lambda wanted=number + 1: len(target.records) == wanted)
        waited.append(yard.runners["one"].now_s - 0.01 - at_s)
    assert all(1.0 <= seconds <= 1.52 for seconds in waited)
    assert max(waited) - min(waited) > 0.1


# --- others -------------------------------------------------------------------------------------


def drained_in(yard, name, target, count):
    yard.run(100_000.0, lambda: len(target.records) >= count)
    assert len(target.records) == count
    return yard.runners[name].now_s


def test_a_backlog_leaves_a_share_of_the_time_to_a_live_route(yard):
    fill(yard, 1, 100_000)
    backlog, live = RecordingTarget(), RecordingTarget()
    yard.add(
        "one", backlog, seconds=lambda records: records * 0.0002, live_share=0.25, goal_age_s=0.0
    )
    yard.add("two", live, goal_age_s=60.0)
    yard.runners["one"].clock.set_wall(yard.wall_ns + 3_600 * NS)  # its records are old
    for second in range(2, 22):
        yard.backlog.append(b"now", stream=2)
        yard.came(float(second))
        yard.run(float(second + 1))
    busy_s = len(backlog.records) * 0.0002
    assert len(live.records) == 20
    assert 0.6 * 20 <= busy_s <= 0.8 * 21


def test_a_backlog_with_nobody_beside_it_takes_all_the_time(yard):
    fill(yard, 1, 20_000)
    target = RecordingTarget()
    yard.add(
        "one", target, seconds=lambda records: records * 0.0002, live_share=0.5, goal_age_s=0.0
    )
    yard.runners["one"].clock.set_wall(yard.wall_ns + 3_600 * NS)
    assert drained_in(yard, "one", target, 20_000) < 1.1 * 20_000 * 0.0002 + 1


def test_a_dead_target_and_a_slow_one_take_nothing_from_a_third(place):
    def run(*, with_others):
        backlog = Backlog(place / str(with_others), "one", "two", "three")
        yard = Field(backlog)
        for stream in (1, 2, 3):
            fill(yard, stream, 20_000)
        third = RecordingTarget()
        if with_others:
            yard.add("one", RecordingTarget(down=DOWN), sink="dead")
            yard.add("two", RecordingTarget(), sink="slow", seconds=lambda n: 0.02 * n)
        yard.add("three", third, sink="third", seconds=lambda n: 0.0002 * n)
        took_s = drained_in(yard, "three", third, 20_000)
        yard.close()
        backlog.close()
        return took_s

    (place / "True").mkdir()
    (place / "False").mkdir()
    assert run(with_others=True) == pytest.approx(run(with_others=False), rel=0.01)


def test_new_records_wake_no_lane_that_waits_for_its_target_and_has_records_at_hand(yard):
    well = yard.add("one", RecordingTarget())
    target = RecordingTarget(down=DOWN)
    down = yard.add("two", target, sink="other")
    yard.run(2.0)
    assert well.follows
    assert down.follows  # it has to say since when records wait
    fill(yard, 2, 10)
    yard.wake(2.0)
    yard.run(10.0)
    assert down.figures.oldest_pending_ns is not None
    assert well.follows
    assert not down.follows
    down.route.crew.hold(1)  # nor while a person holds it back
    yard.run(20.0)
    assert not down.follows
    down.route.crew.hold(None)
    target.down = None
    yard.wake(20.0)
    yard.run(120.0, lambda: len(target.lsns) == 10)
    assert down.follows


def test_the_class_of_the_target_makes_no_difference_to_the_probe(yard):
    """A target without a row is not asked: its probe is a batch."""
    fill(yard, 1, 300)
    target = RecordingTarget(down=DOWN)
    lane = yard.add("one", target)
    runner = yard.runners["one"]

    def make(*_):
        return RecordingSink(target, replay=ReplayClass.KEYED)

    runner.lane = lane = Lane(
        replace(lane.route, shared=replace(lane.route.shared, make_sink=make))
    )
    yard.run(60.0)
    assert 4 <= len(target.attempts) <= 30
    assert len({attempt.row.rev_id for attempt in target.attempts}) == 1
    target.down = None
    yard.run(120.0)
    assert lane.figures.delivered == 300


# --- a real daemon ------------------------------------------------------------------------------


def test_status_names_a_wrong_route_while_its_neighbour_at_the_same_target_delivers(place):
    config = f"""
[daemon]
data_dir = "{place}/data"
socket = "{place}/w.sock"
[sinks.db]
type = "sqlite"
path = "{place}/events.db"
[routes.right]
stream = "events"
sink = "db"
goal_age = "1h"
[routes.wrong]
stream = "events"
sink = "db"
mode = "columns"
table = "absent"
batch = {{ max_age = "10ms" }}
"""
    with Daemon(place, config=config) as daemon:
        (place / "in.ndjson").write_text('{"a": 1}\n' * 20)
        daemon.command("append", "events", str(place / "in.ndjson"), "--format", "ndjson")
        daemon.command("wait", "right", "--timeout", "30s")

        def routes():
            return json.loads(daemon.command("status", "--json"))["routes"]

        wait_until(lambda: routes()["wrong"]["breaker"]["state"] != "closed", "the breaker opens")
        said = routes()
        assert said["wrong"]["breaker"]["kind"] == "configuration"
        assert said["wrong"]["breaker"]["scope"] == "route"
        assert said["wrong"]["dead_letters"] == 0
        assert said["right"]["breaker"] == {"state": "closed"}
        assert (said["right"]["pending"], said["right"]["goal_age_s"]) == (0, 3_600.0)
        shown = daemon.command("status", "--verbose")
        assert "wrong: configuration (this route, for " in shown
        assert re.search(r"right: batches of up to \d+ records \(.+\), an attempt may take", shown)
        with closing(sqlite3.connect(place / "events.db")) as database:
            database.execute("create table absent (a)")
        daemon.command("wait", "wrong", "--timeout", "60s")
        with closing(sqlite3.connect(place / "events.db")) as database:
            assert database.execute("select count(*) from absent").fetchone() == (20,)
