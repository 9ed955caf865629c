"""Lanes over a real log: order per key, books, and a change of their number cut at every step."""

import itertools
import os
import random
import shutil
import signal
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import wald
from tests.backlog import CLOCK, FS, Backlog, end, eventually
from tests.daemon import Daemon, wait_until
from wald import limits
from wald.config.settings import WorkerSettings
from wald.core.lanes import lane_of
from wald.core.told import Told, ToldRoute
from wald.drainer import process
from wald.drainer.figures import fitting_the_page
from wald.model import LaneKey, Systemic, SystemicKind
from wald.sinks.sqlite import make as make_sqlite
from wald.storage.progress import TwoSlotPage
from wald.storage.tickets import Ticket
from wald.testing.memory_ledger import MemoryLedger
from wald.testing.recording_sink import RecordingSink, RecordingTarget

DOWN = Systemic(SystemicKind.UNREACHABLE, "it is down")


class Keyed(Backlog):
    """A backlog whose records have keys, and how many were appended of each."""

    def __init__(self, place, lanes=1, **workers):
        super().__init__(place, "events", batch=7)
        self.sent = []
        self.draw = random.Random(5)
        self.divide(lanes, **workers)

    def divide(self, lanes, **workers):
        workers = workers or {"min": 64}
        route = self.settings.routes["events"]
        route = replace(route, lanes=lanes, workers=WorkerSettings(**workers))
        self.settings = replace(self.settings, routes={"events": route})

    def add(self, count, requests=1):
        for _ in range(requests):
            keys: list[str | bytes | None] = [
                self.draw.choice([None, *(f"key-{number}" for number in range(9))])
                for _ in range(count)
            ]
            values = [b"%d" % (len(self.sent) + number) for number in range(count)]
            lsns = self.append(*values, keys=keys)
            self.sent += zip(lsns, keys, values, strict=True)

    def check(self, target, dead=frozenset()):
        """Every record once, those of a key in their order, each in the lane that is its."""
        applied = [(record.lsn, record.key, record.value) for record in target.records]
        assert sorted(applied) == [each for each in self.sent if each[0] not in dead]
        for key in {key for _, key, _ in self.sent} - {None}:
            lsns = [lsn for lsn, its, _ in applied if its == key]
            assert lsns == sorted(lsns), key

    def resume(self, shared, make_sink=None):
        """Return what a drainer of a later life shares: ledger, dead log and targets stay."""
        made = make_sink or shared.make_sink
        return self.shared(made, ledger=shared.ledger, dead_log=shared.dead_log)


@pytest.fixture
def keyed(place):
    opened = Keyed(place)
    yield opened
    opened.close()


def sink_of(target):
    return lambda *_: RecordingSink(target)


def has_records(target):
    return bool(target.records)


def run_until(fleet, holds):
    """Let a fleet go on until something holds; the main thread does its rounds."""

    def turned():
        fleet.poll()
        return holds()

    try:
        eventually(turned, fleet.figures)
    finally:
        end(fleet)


def is_through(backlog, fleet):
    figures = fleet.figures()["events"]
    return "change" not in figures and figures["through_lsn"] >= backlog.log.frontier.lsn


def deliver(backlog, shared, *, more=0):
    """Deliver what is there; ``more`` requests of 10 come when the lanes have begun."""
    fleet = backlog.fleet(shared)
    backlog.add(10, requests=more)
    shared.board.pin(backlog.log.frontier)
    fleet.flush(backlog.log.frontier.lsn)
    run_until(fleet, lambda: is_through(backlog, fleet))
    return fleet.figures()["events"]


# --- several lanes ------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [2, 4, 7])
def test_several_lanes_deliver_once_and_each_key_in_order(keyed, lanes):
    keyed.divide(lanes)
    keyed.add(20, requests=10)
    target = RecordingTarget()
    figures = deliver(keyed, keyed.shared(sink_of(target)))
    keyed.check(target)
    assert figures["delivered"] == 200
    assert {key.lane for key in target.rows} == set(range(lanes))
    for attempt in target.attempts:
        owners = {lane_of(record.key, record.lsn, lanes) for record in attempt.records}
        assert owners == {attempt.key.lane}
    assert sum(line["delivered"] for line in figures["lanes"]) == 200
    assert len(figures["lanes"]) == lanes


def test_real_sqlite_gets_every_record_once_over_lanes_and_their_changes(keyed, place):
    path = str(place / "x.db")

    def make(route, _sink):
        return make_sqlite(route.name, route.stream, {"path": path, "busy_timeout": "10s"})

    shared, figures = keyed.shared(make), {}
    for lanes in (3, 1, 4):
        keyed.divide(lanes)
        keyed.add(10, requests=3)
        shared = keyed.resume(shared)
        figures = deliver(keyed, shared, more=3)
    assert figures["delivered"] == 180
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("select lsn, key from events order by rowid").fetchall()
        (layouts,) = database.execute("select max(layout) from wald_progress").fetchone()
    assert sorted(rows) == [(lsn, key) for lsn, key, _ in keyed.sent]
    for key in {key for _, key in rows} - {None}:
        lsns = [lsn for lsn, its in rows if its == key]
        assert lsns == sorted(lsns)
    assert layouts == 2


def test_replay_finishes_a_change_of_lanes_without_a_daemon(keyed):
    target, done = RecordingTarget(), {}
    for lanes in (1, 3, 2):
        keyed.divide(lanes)
        keyed.add(10, requests=3)
        done = keyed.replay(sink_of(target), patience_s=10.0)
        assert done["pending"] == 0
    keyed.check(target)
    route = done["routes"]["events"]
    assert (route["accepted"], route["delivered"]) == (90, 90)


def test_what_damage_took_is_told_by_one_lane(keyed):
    keyed.divide(3)
    keyed.add(10)
    segment = keyed.log.frontier.segment
    at = keyed.log.frontier.end_bytes
    keyed.add(10)
    lost = keyed.sent[-10:]
    keyed.add(10)
    path = Path(keyed.data_dir) / "log" / f"seg-{segment:010d}.wal"
    with path.open("r+b") as file:
        file.seek(at + 200)
        file.write(b"\xff" * 64)
    target = RecordingTarget()
    shared = keyed.shared(sink_of(target))
    figures = deliver(keyed, shared)
    keyed.check(target, {lsn for lsn, _, _ in lost})
    assert (figures["delivered"], figures["dead_letters"]) == (20, 10)
    (letter,) = shared.ledger.dead_letters(1)
    assert (letter.code, letter.records, letter.lane) == ("damaged", 10, 0)


# --- a change of their number -------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (3, 5)])
def test_a_change_with_a_backlog_keeps_the_order_of_every_key(keyed, before, after):
    keyed.divide(before)
    target = RecordingTarget()
    keyed.add(10, requests=4)
    shared = keyed.shared(sink_of(target))
    fleet = keyed.fleet(shared)
    run_until(fleet, lambda: len(target.records) >= 10)  # stopped in the middle
    keyed.divide(after)
    keyed.add(10, requests=2)
    barrier = keyed.log.frontier.lsn
    later = keyed.resume(shared)
    figures = deliver(keyed, later, more=2)
    keyed.check(target)
    assert figures["delivered"] == 80
    for attempt in target.attempts:
        lsns = [record.lsn for record in attempt.records]
        assert min(lsns) > barrier if attempt.key.layout else max(lsns) <= barrier
    seen = {(attempt.key.layout, attempt.key.lane) for attempt in target.attempts}
    assert seen == {
        (layout, lane_of(key, lsn, lanes))
        for lsn, key, _ in keyed.sent
        for layout, lanes in [(1, after) if lsn > barrier else (0, before)]
    }


class Fused(MemoryLedger):
    """A ledger whose n-th transaction fails, before or behind its effect, and all that follow."""

    is_usable = True

    def __init__(self, log_id, of=None):
        super().__init__(log_id)
        if of is not None:
            self.store = of.store
        self.real, self.store = self.store, self
        self.left, self.behind, self.writes = -1, False, 0
        self.lock = threading.RLock()

    def read(self, work):
        return self.real.read(work)

    def write(self, work):
        with self.lock:
            self.writes += 1
            if self.left >= 0:
                self.left -= 1
                if self.left < 0:
                    self.left = 0
                    if self.behind:
                        self.behind = False
                        self.real.write(work)
                    msg = "the power failed"
                    raise RuntimeError(msg)
            return self.real.write(work)

    def write_later(self, work):
        ticket = Ticket(work)
        try:
            ticket.settle(self.write(work))
        except RuntimeError as error:
            ticket.fail(error)
        return ticket


def change_lanes(keyed, target, ledger, fail_at, *, behind):
    """Change 2 lanes to 3 with an open batch; the ledger fails at its n-th write. True: it did."""
    shared = keyed.shared(sink_of(target), ledger=ledger)
    ledger.left, ledger.behind = fail_at, behind
    try:
        fleet = keyed.fleet(shared)
    except RuntimeError:
        return True
    failed = threading.Event()

    def over():
        try:
            fleet.poll()
        except RuntimeError:
            failed.set()
        if ledger.left == 0:
            failed.set()
        return failed.is_set() or is_through(keyed, fleet)

    try:
        eventually(over, fleet.figures)
    finally:
        end(fleet)
    return failed.is_set()


@pytest.mark.parametrize("behind", [False, True])
def test_a_change_of_lanes_that_is_cut_at_any_transaction_goes_on(place, monkeypatch, behind):
    monkeypatch.setattr("wald.limits.GUARDED_AFTER_CRASHES_COUNT", 99)  # no record is to blame
    cuts = 0
    for fail_at in itertools.count():
        (place / str(fail_at)).mkdir()
        keyed = Keyed(place / str(fail_at), 2)
        target = RecordingTarget()
        ledger = Fused(keyed.log.log_id)
        keyed.add(5, requests=3)
        target.lost_answers = 1  # its batch is open when the drainer ends
        fleet = keyed.fleet(keyed.shared(sink_of(target), ledger=ledger))
        run_until(fleet, partial(has_records, target))
        keyed.divide(3)
        keyed.add(5, requests=3)
        cut = change_lanes(keyed, target, ledger, fail_at, behind=behind)
        ledger.left = -1
        figures = deliver(keyed, keyed.shared(sink_of(target), ledger=ledger), more=1)
        keyed.check(target)
        assert figures["delivered"] == 40
        assert sum(row.batch_no for row in target.rows.values()) == figures["batch_no"]
        keyed.close()
        if not cut:
            break
        cuts += 1
    assert cuts >= 10, "the change takes so many transactions"


def test_an_open_batch_and_a_parked_lane_hold_a_change_up_and_status_says_so(keyed):
    keyed.divide(2)
    target = RecordingTarget()
    keyed.add(10, requests=3)
    shared = keyed.shared(sink_of(target))
    deliver(keyed, shared)
    theirs = LaneKey(keyed.log.log_id, 1, 0, 1)
    kept = target.rows[theirs]
    target.rows[theirs] = replace(kept, owner=1)
    keyed.divide(3)
    keyed.add(10, requests=3)
    shared = keyed.resume(shared)
    fleet = keyed.fleet(shared)

    def blocked():
        return fleet.figures()["events"].get("change", {}).get("blocked_by") == [1]

    def polled():
        fleet.poll()
        figures = fleet.figures()["events"]
        return blocked() and figures["delivered"] > 30

    try:
        eventually(polled, fleet.figures)
        figures = fleet.figures()["events"]
        assert (figures["state"], figures["parked"]) == ("parked", "diverged")
        assert figures["change"]["from"] == 2
        assert figures["change"]["to"] == 3
        assert figures["change"]["waits_for"] == [1]
        assert figures["change"]["barrier"] == keyed.log.frontier.lsn
        target.rows[theirs] = kept
        fleet.routes[1].hurry()
        eventually(lambda: fleet.poll() is None and is_through(keyed, fleet), fleet.figures)
        assert fleet.figures()["events"]["parked"] is None
    finally:
        end(fleet)
    keyed.check(target)


def test_a_change_is_called_off_by_the_settings_of_before(keyed):
    keyed.divide(2)
    target = RecordingTarget()
    keyed.add(10, requests=3)
    shared = keyed.shared(sink_of(target))
    deliver(keyed, shared)
    target.down = DOWN
    keyed.divide(5)
    keyed.add(10)
    shared = keyed.resume(shared)
    end(keyed.fleet(shared))
    target.down = None
    keyed.divide(2)
    keyed.add(10)
    shared = keyed.resume(shared)
    figures = deliver(keyed, shared)
    keyed.check(target)
    assert "change" not in figures
    assert {key.layout for key in target.rows} == {0}


def test_dead_letters_of_a_former_layout_are_sent_again_through_their_own_chain(keyed):
    keyed.divide(2)
    refused = {b"3", b"17", b"21"}
    target = RecordingTarget(refuses=lambda record: record.value in refused)
    keyed.add(10, requests=3)
    shared = keyed.shared(sink_of(target))
    assert deliver(keyed, shared)["dead_letters"] == 3
    keyed.divide(3)
    shared = keyed.resume(shared)
    figures = deliver(keyed, shared, more=1)
    assert (figures["delivered"], figures["dead_letters"]) == (37, 3)
    letters = shared.ledger.dead_letters(1)
    assert {letter.layout for letter in letters} == {0}
    refused.clear()
    target.attempts.clear()
    shared = keyed.resume(shared)
    fleet = keyed.fleet(shared)
    asked = shared.ledger.ask_redrive(1, [letter.lsn for letter in letters], "", 1)
    assert asked == 3
    for lane in fleet.lanes_of(1).values():
        lane.look_again()

    def sent():
        return fleet.figures()["events"]["dead_letters"] == 0

    run_until(fleet, sent)
    assert fleet.figures()["events"]["delivered"] == 40
    assert {attempt.key.layout for attempt in target.attempts} == {0}
    assert sorted(record.lsn for record in target.records) == [lsn for lsn, _, _ in keyed.sent]


def test_a_redrive_that_a_crash_cut_is_finished_by_the_former_lane(keyed):
    refused = {b"3"}
    target = RecordingTarget(refuses=lambda record: record.value in refused)
    keyed.add(10)
    shared = keyed.shared(sink_of(target))
    deliver(keyed, shared)
    keyed.divide(2)
    shared = keyed.resume(shared)
    deliver(keyed, shared, more=1)
    (letter,) = shared.ledger.dead_letters(1)
    shared.ledger.ask_redrive(1, [letter.lsn], "", 1)  # durable, and nobody was told
    refused.clear()
    shared = keyed.resume(shared)
    fleet = keyed.fleet(shared)
    run_until(fleet, lambda: fleet.figures()["events"]["dead_letters"] == 0)
    assert len(target.records) == 20


def test_a_target_that_went_back_behind_a_change_gets_everything_again(keyed):
    target = RecordingTarget()
    keyed.divide(2)
    keyed.add(10, requests=2)
    shared = keyed.shared(sink_of(target))
    deliver(keyed, shared)
    backup = list(target.records), dict(target.rows)
    keyed.add(10)
    shared = keyed.resume(shared)
    deliver(keyed, shared)
    keyed.divide(3)
    shared = keyed.resume(shared)
    deliver(keyed, shared, more=2)
    keyed.check(target)
    target.records[:], target.rows = backup[0], backup[1]
    shared = keyed.resume(shared)
    fleet = keyed.fleet(shared)
    run_until(fleet, lambda: len(target.records) >= 50)
    assert fleet.figures()["events"]["delivered"] == 50
    keyed.check(target)


class Slow(RecordingSink):
    """Keeps the former layout's attempts until it is let go."""

    def __init__(self, target, free):
        super().__init__(target)
        self.free = free

    def deliver(self, attempt):
        if attempt.key.layout == 0:
            self.free.wait()
        return super().deliver(attempt)


def test_what_follows_a_change_waits_for_former_lanes_whose_target_went_back(keyed):
    target, free = RecordingTarget(), threading.Event()
    keyed.add(10)
    shared = keyed.shared(sink_of(target))
    deliver(keyed, shared)
    keyed.divide(2)
    shared = keyed.resume(shared)
    deliver(keyed, shared, more=2)
    target.records.clear()
    target.rows.clear()
    shared = keyed.resume(shared, lambda *_: Slow(target, free))
    fleet = keyed.fleet(shared)
    later = fleet.routes[1].lanes
    try:
        eventually(
            lambda: (
                fleet.poll() is None
                and {lane.figures.policy.get("held") for lane in later} == {"former lanes"}
            ),
            fleet.figures,
        )
        assert target.records == []
        free.set()
        eventually(lambda: fleet.poll() is None and len(target.records) >= 30, fleet.figures)
    finally:
        free.set()
        end(fleet)
    keyed.check(target)
    assert sorted(target.lsns[:10]) == [lsn for lsn, _, _ in keyed.sent[:10]]


def test_a_former_lane_that_halts_at_a_target_that_went_back_holds_up_what_follows_its_change(
    keyed,
):
    """Also where a lost ledger was told that it had been through: it has something to do again."""
    target, bad = RecordingTarget(), set[int]()
    target.refuses = lambda record: record.lsn in bad
    route = keyed.settings.routes["events"]
    keyed.settings = replace(keyed.settings, routes={"events": replace(route, on_reject="halt")})
    keyed.add(10)
    shared = keyed.shared(sink_of(target))
    deliver(keyed, shared)
    keyed.divide(2)
    shared = keyed.resume(shared)
    deliver(keyed, shared, more=2)
    told = Told(1, keyed.log.frontier.lsn, {1: ToldRoute(keyed.log.frontier.lsn)})
    target.records.clear()
    target.rows.clear()
    bad.add(keyed.sent[5][0])
    shared = replace(keyed.resume(shared), told=told)
    fleet = keyed.fleet(shared)
    former = next(lane for lane in fleet.each_lane() if lane.route.layout == 0)
    try:
        eventually(
            lambda: fleet.poll() is None and former.figures.parked == "halted", fleet.figures
        )
        fleet.poll()
        assert former.route.key in fleet.routes[1]._unsure
        bad.clear()
        fleet.resume(1)
        eventually(lambda: fleet.poll() is None and len(target.records) >= 30, fleet.figures)
    finally:
        end(fleet)
    keyed.check(target)


def test_a_lost_ledger_behind_a_change_of_lanes_delivers_nothing_again(keyed, place):
    """What progress told of the layouts outlives the ledger; the target's rows say the rest."""
    path = str(place / "x.db")

    def make(route, _sink):
        return make_sqlite(route.name, route.stream, {"path": path, "busy_timeout": "10s"})

    for lanes in (1, 3, 2):
        keyed.divide(lanes)
        keyed.add(10, requests=3)
        assert keyed.replay(make, patience_s=10.0)["pending"] == 0
        keyed.add(10, requests=2)
        assert keyed.replay(make, patience_s=10.0)["pending"] == 0
    shutil.rmtree(Path(keyed.data_dir) / "ledger")
    keyed.add(10)
    done = keyed.replay(make, patience_s=10.0)
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("select lsn, key from events order by rowid").fetchall()
    for key in {key for _, key in rows} - {None}:
        lsns = [lsn for lsn, its in rows if its == key]
        assert lsns == sorted(lsns)
    assert sorted(rows) == [(lsn, key) for lsn, key, _ in keyed.sent]
    route = done["routes"]["events"]
    assert (route["accepted"], route["delivered"], route["lost"]) == (160, 160, 0)


def test_a_former_lane_with_nothing_to_do_leaves(keyed, monkeypatch):
    monkeypatch.setattr("wald.limits.FORMER_LANE_IDLE_S", 0.0)
    target = RecordingTarget()
    keyed.add(10)
    shared = keyed.shared(sink_of(target))
    deliver(keyed, shared)
    keyed.divide(2)
    shared = keyed.resume(shared)
    fleet = keyed.fleet(shared)
    run_until(fleet, lambda: is_through(keyed, fleet) and len(fleet.each_lane()) == 2)
    assert {lane.route.layout for lane in fleet.each_lane()} == {1}
    assert fleet.figures()["events"]["delivered"] == 10
    assert fleet.checkpoints() == {"1": keyed.log.frontier.lsn}


# --- how many are at work -----------------------------------------------------------------------


class Counting(RecordingSink):
    """Counts how many attempts are under way at a time."""

    now = 0
    most = 0
    lock = threading.Lock()

    def deliver(self, attempt):
        with self.lock:
            Counting.now += 1
            Counting.most = max(Counting.most, Counting.now)
        threading.Event().wait(0.002)  # what an attempt takes
        try:
            return super().deliver(attempt)
        finally:
            with self.lock:
                Counting.now -= 1


@pytest.mark.parametrize(("workers", "most"), [({"max": 1}, 1), ({"min": 2, "max": 2}, 2)])
def test_no_more_lanes_are_at_work_than_may_be(keyed, workers, most):
    Counting.now = Counting.most = 0
    keyed.divide(5, **workers)
    keyed.add(10, requests=15)
    target = RecordingTarget()
    deliver(keyed, keyed.shared(lambda *_: Counting(target)))
    keyed.check(target)
    assert Counting.most == most


def test_places_grow_while_the_route_lags(keyed, monkeypatch):
    monkeypatch.setattr("wald.limits.WORKERS_GROW_AFTER_S", 0.005)
    monkeypatch.setattr("wald.limits.WORKERS_GROW_LAG_S", 0.0)
    keyed.divide(4, min=1)
    keyed.add(10, requests=30)
    target = RecordingTarget()
    fleet = keyed.fleet(keyed.shared(lambda *_: Counting(target)))
    grown = []

    def over():
        grown.append(fleet.figures()["events"].get("workers", 1))
        return is_through(keyed, fleet)

    run_until(fleet, over)
    keyed.check(target)
    assert grown[0] < max(grown) <= 4


# --- one lane harms no other --------------------------------------------------------------------


class Hanging(RecordingSink):
    """Never comes back from an attempt of one lane, until it is let go."""

    def __init__(self, target, free, lane):
        super().__init__(target)
        self.free, self.lane = free, lane

    def deliver(self, attempt):
        if attempt.key.lane == self.lane:
            self.free.wait()
        return super().deliver(attempt)


def test_a_sink_that_hangs_in_one_lane_delays_no_other_and_no_stop(keyed):
    keyed.divide(3)
    keyed.add(20, requests=3)
    target, free = RecordingTarget(), threading.Event()
    fleet = keyed.fleet(keyed.shared(lambda *_: Hanging(target, free, 1)))
    others = [each for each in keyed.sent if lane_of(each[1], each[0], 3) != 1]
    try:
        eventually(lambda: len(target.records) == len(others), fleet.figures)
        figures = fleet.figures()["events"]
        assert figures["delivered"] == len(others)
        assert figures["through_lsn"] < keyed.log.frontier.lsn
        fleet.stop(0.0)
        assert fleet.join(0.5) == ["events/0.1"]
    finally:
        free.set()
        end(fleet)


def test_a_hanging_sink_holds_the_process_up_no_longer_than_its_bound(keyed, monkeypatch):
    monkeypatch.setattr("wald.drainer.process._JOIN_GRACE_S", 0.2)
    keyed.divide(2)
    keyed.settings = replace(keyed.settings, stop_deliver_for_s=0.2)
    keyed.add(20)
    target, free, stop = RecordingTarget(), threading.Event(), threading.Event()
    others = [each for each in keyed.sent if lane_of(each[1], each[0], 2) != 1]
    ended = []
    before = set(threading.enumerate())

    def run():
        process.run(
            keyed.settings,
            make_sink=lambda *_: Hanging(target, free, 1),
            fs=FS,
            clock=CLOCK,
            chance=keyed.chance,
            ready=lambda _: None,
            stop=stop,
        )
        ended.append(True)

    running = threading.Thread(target=run)
    running.start()
    try:
        eventually(lambda: len(target.records) == len(others))
        stop.set()
        running.join(60.0)
        assert ended
    finally:
        stop.set()
        free.set()
        running.join(60.0)
        for thread in set(threading.enumerate()) - before:
            thread.join(60.0)


def test_the_figures_of_many_lanes_fit_the_page(keyed, place):
    keyed.divide(64)
    keyed.add(1)
    fleet = keyed.fleet(keyed.shared(sink_of(RecordingTarget())))
    try:
        figures = fleet.figures()["events"]
    finally:
        end(fleet)
    assert len(figures["lanes"]) == 64
    worst = {
        key: 2**63 if type(value) is int else "\N{SNOWMAN}" * 80 if key == "last_error" else value
        for key, value in figures["lanes"][0].items()
    }
    routes = {
        f"{number:064d}": {**figures, "lanes": [worst] * 64} for number in range(limits.ROUTES_MAX)
    }
    page = TwoSlotPage.open(FS, f"{place}/p", slot_bytes=limits.FIGURES_SLOT_BYTES, write=True)
    with closing(page):
        said = fitting_the_page(routes)
        page.write({"pid": 2**31, "routes": said}, sync=False)
    shown = [len(each["lanes"]) for each in said.values()]
    assert shown[0] == 64
    assert shown[-1] == 0


# --- a real drainer, killed in the middle of it -------------------------------------------------


def settings_text(place, lanes):
    return f"""
[daemon]
stop_deliver_for = "0s"
[sinks.db]
type = "sqlite"
path = "{place}/x.db"
busy_timeout = "50ms"
[routes.events]
stream = "events"
sink = "db"
lanes = {lanes}
batch = {{ max_records = 40, max_age = "10ms" }}
workers = {{ min = 8 }}
"""


def kill_drain(daemon):
    """Kill the drainer, and wait until its successor serves."""
    before = daemon.pids()["drain"]
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: daemon.pids().get("drain", before) != before, "drain is back", 60.0)


def test_a_drainer_killed_while_lanes_change_delivers_once_and_in_order(place):
    keys = [f"key-{number}" for number in range(13)]
    chance = random.Random(3)

    def send(count):
        with wald.connect(str(daemon.socket)) as producer:
            for number in range(count):
                key = chance.choice(keys)
                sent.append((producer.append("events", {"n": number}, key=key).lsn, key))

    def route() -> Any:
        answer: Any = daemon.ask(op="status") or {"routes": {}}
        return answer["routes"]["events"]

    sent: list[tuple[int, str]] = []
    with Daemon(place, config=settings_text(place, 2)) as daemon:
        send(300)
        wait_until(lambda: route()["delivered"] == 300, "delivered")
        with closing(sqlite3.connect(place / "x.db", isolation_level=None)) as blocking:
            blocking.execute("begin immediate")  # batches are open, and not taken
            send(700)
            wait_until(lambda: route()["attempts"] > 0, "a batch is open")
            assert daemon.process is not None
            daemon.process.send_signal(signal.SIGTERM)
            daemon.process.wait(60)
            (place / "wald.toml").write_text(settings_text(place, 3))
            daemon.start()
            wait_until(lambda: route()["change"] is not None, "the change waits")
            kill_drain(daemon)
            wait_until(lambda: route()["change"] is not None, "the change goes on")
            send(200)
            blocking.execute("rollback")
        for part in (350, 800):
            wait_until(lambda: route()["delivered"] >= part, "it delivers", 60.0)  # noqa: B023 - now
            kill_drain(daemon)
        send(200)
        wait_until(lambda: route()["delivered"] == len(sent), "all is delivered", 60.0)
        assert route()["change"] is None
        assert (route()["lane_count"], route()["pending"]) == (3, 0)
        wait_until(lambda: route()["through_lsn"] >= sent[-1][0], "through")
    with closing(sqlite3.connect(place / "x.db")) as database:
        rows = database.execute("select lsn, key from events order by rowid").fetchall()
        layouts = database.execute("select layout, lane from wald_progress").fetchall()
    assert sorted(rows) == sent
    for key in keys:
        lsns = [lsn for lsn, its in rows if its == key]
        assert lsns == sorted(lsns), key
    assert sorted(layouts) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
