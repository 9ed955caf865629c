"""Delivery from a real log: once, in order, through a failure at every commit point."""

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import socket
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.backlog import CLOCK, FS, OWNER, Backlog, end, eventually
from wald import limits
from wald.config import DeadLetterSettings
from wald.core import state
from wald.core.events import Failed, FrontierMoved, Welcome
from wald.drainer import process
from wald.drainer.figures import fitting_the_page, summed
from wald.drainer.fleet import Fleet
from wald.drainer.frontier import FrontierBoard, Subscription, read_hint
from wald.drainer.lane_figures import LaneFigures
from wald.errors import DataDirectoryHeld
from wald.model import (
    NO_ANCHOR,
    NO_REVISION,
    Frontier,
    LaneKey,
    ProgressRow,
    Rejected,
    RejectedRecord,
    ReplayClass,
    RouteBirth,
    RowMoved,
    Systemic,
    SystemicKind,
    Unknown,
)
from wald.sinks.sqlite import make as make_sqlite
from wald.storage.deadlog import DeadLog, DeadPlace
from wald.storage.ledger_rows import ROUTE
from wald.storage.lmdb_store import open_ledger
from wald.storage.owner import load_owner
from wald.storage.progress import TwoSlotPage
from wald.supervisor.control import ControlServer
from wald.testing.memory_ledger import MemoryLedger
from wald.testing.recording_sink import RecordingSink, RecordingTarget

DOWN = Systemic(SystemicKind.UNREACHABLE, "it is down")


def sink_of(target, **options):
    return lambda *_: RecordingSink(target, **options)


def values(count, start=0):
    return [b"%05d" % number for number in range(start, start + count)]


# --- once and in order --------------------------------------------------------------------------


def test_a_backlog_is_delivered_once_and_in_order(backlog):
    lsns = [lsn for start in range(0, 50, 5) for lsn in backlog.append(*values(5, start))]
    target = RecordingTarget()
    done = backlog.replay(sink_of(target))
    assert target.lsns == lsns
    assert [record.value for record in target.records] == values(50)
    assert done["pending"] == 0
    route = done["routes"]["events"]
    assert (route["accepted"], route["delivered"], route["dead_letters"]) == (50, 50, 0)
    assert [len(item.records) for item in target.attempts] == [10] * 5


def test_a_second_replay_delivers_only_what_came_since(backlog):
    target = RecordingTarget()
    backlog.append(*values(25))
    backlog.replay(sink_of(target))
    backlog.append(*values(3, 25))
    done = backlog.replay(sink_of(target))
    assert [record.value for record in target.records] == values(28)
    assert done["routes"]["events"]["delivered"] == 28


def test_a_request_larger_than_a_batch_is_cut_and_a_small_one_waits_for_no_other(backlog):
    backlog.append(*values(25))
    target = RecordingTarget()
    backlog.replay(sink_of(target))
    assert [len(item.records) for item in target.attempts] == [10, 10, 5]


def test_streams_do_not_mix_and_idle_checkpoints_move_over_foreign_lsns(two):
    ours = two.append(*values(3), stream=1)
    theirs = two.append(*values(4), stream=2)
    ours += two.append(*values(2), stream=1)
    targets = {"one": RecordingTarget(), "two": RecordingTarget()}
    two.replay(lambda route, _: RecordingSink(targets[route.name]))
    assert targets["one"].lsns == ours
    assert targets["two"].lsns == theirs
    page = TwoSlotPage.open(
        FS, f"{two.data_dir}/progress", slot_bytes=limits.PROGRESS_SLOT_BYTES, write=False
    )
    said = page.read()
    page.close()
    assert said is not None
    said_routes = dict(said["routes"])  # type: ignore[call-overload]
    assert said_routes["1"] == ours[-1]
    assert said_routes["2"] in {theirs[-1], ours[-1]}  # passed over, or not told yet


# --- failures between the commit points ---------------------------------------------------------


class Fuse:
    """Blows at the n-th call of anything it guards, before or behind the call's effect."""

    def __init__(self, at, *, behind):
        self.left = at
        self.behind = behind
        self.blown = False

    def guard(self, inner, names):
        return _Guarded(self, inner, frozenset(names))

    def call(self, method, *args, **kwargs):
        self.left -= 1
        if self.left == 0 and not self.behind:
            self.blown = True
            msg = "before"
            raise RuntimeError(msg)
        result = method(*args, **kwargs)
        if self.left == 0:
            self.blown = True
            msg = "behind"
            raise RuntimeError(msg)
        return result


class _Guarded:
    def __init__(self, fuse, inner, names):
        self._fuse, self._inner, self._names = fuse, inner, names

    def __getattr__(self, name):
        found = getattr(self._inner, name)
        if name not in self._names:
            return found
        return lambda *args, **kwargs: self._fuse.call(found, *args, **kwargs)


LEDGER = ("birth", "seal", "revise", "attempt", "finish", "advance")
SINK = ("read_row", "deliver", "probe")


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_a_failure_at_any_call_leaves_every_record_applied_once(place, behind, named):
    backlog = Backlog(place, "events")
    lsns = backlog.append(*values(30))
    bad = set(lsns[3:5]) | {lsns[25]}
    for at in itertools.count(2):  # the first call is the birth, which the caller makes
        fuse = Fuse(at, behind=behind)
        target = RecordingTarget(refuses=lambda record: record.lsn in bad, names=named)
        shared = backlog.shared(
            lambda *_: fuse.guard(RecordingSink(target), SINK),  # noqa: B023 - used in this round
            ledger=fuse.guard(MemoryLedger(backlog.log.log_id), LEDGER),
            dead_log=fuse.guard(DeadLog(FS, backlog.data_dir), ("append",)),
        )
        fleet = backlog.deliver_all(shared)
        shared.dead_log.close()
        assert target.lsns == [lsn for lsn in lsns if lsn not in bad], at
        figures = fleet.figures()["events"]
        assert (figures["delivered"], figures["dead_letters"]) == (27, 3), at
        letters = shared.ledger.dead_letters(1)
        assert [letter.lsn for letter in letters] == sorted(bad), at
        if not fuse.blown:
            break
    assert at > 12
    backlog.close()


def guarded_sqlite(fuse, path, *_):
    return fuse.guard(make_sqlite("events", "events", {"path": str(path)}), SINK)


@pytest.mark.parametrize("behind", [False, True])
def test_with_lmdb_and_sqlite_too_every_record_is_applied_once(place, behind):
    backlog = Backlog(place, "events")
    lsns = backlog.append(*values(20))
    for at in itertools.count(2):
        fuse = Fuse(at, behind=behind)
        path = place / f"{at}.db"
        home = place / str(at)
        home.mkdir()
        ledger = open_ledger(FS, str(home), backlog.log.log_id)
        shared = backlog.shared(
            partial(guarded_sqlite, fuse, path),
            ledger=fuse.guard(ledger, LEDGER),
        )
        with closing(sqlite3.connect(path)) as other:  # a reader beside us, as a user's is
            other.execute("PRAGMA journal_mode = WAL").fetchall()
            backlog.deliver_all(shared)
            assert other.execute("SELECT lsn FROM events ORDER BY rowid").fetchall() == [
                (lsn,) for lsn in lsns
            ], at
        assert shared.ledger.lane(LaneKey(backlog.log.log_id, 1, 0, 0)).checkpoint.delivered == 20
        ledger.close()
        if not fuse.blown:
            break
    assert at > 6
    backlog.close()


def test_a_lost_answer_is_settled_by_the_row(backlog):
    lsns = backlog.append(*values(20))
    target = RecordingTarget(lost_answers=2)
    done = backlog.replay(sink_of(target))
    assert target.lsns == lsns
    assert done["pending"] == 0


@pytest.mark.parametrize(
    "outcome",
    [Unknown("cut"), DOWN, RowMoved(None), RuntimeError("a bug of the sink"), Rejected((), "?")],
)
def test_an_attempt_that_took_no_effect_is_made_again(backlog, outcome):
    lsns = backlog.append(*values(12))
    target = RecordingTarget()
    target.script.append(outcome)
    done = backlog.replay(sink_of(target))
    assert target.lsns == lsns
    assert (done["pending"], done["routes"]["events"]["dead_letters"]) == (0, 0)


@pytest.mark.parametrize("replay", [ReplayClass.KEYED, ReplayClass.MONOTONE, ReplayClass.NONE])
def test_a_target_without_a_row_is_sent_to_again(backlog, replay):
    lsns = backlog.append(*values(5))
    target = RecordingTarget()
    target.script.append(Unknown("cut"))
    done = backlog.replay(sink_of(target, replay=replay))
    assert target.lsns == lsns
    assert done["routes"]["events"]["class"] == replay.value


def test_an_unknown_outcome_of_a_window_target_waits_for_a_person(backlog):
    backlog.append(*values(5))
    target = RecordingTarget(script=RecordingTarget().script)
    target.script.append(Unknown("cut"))
    done = backlog.replay(sink_of(target, replay=ReplayClass.WINDOW))
    assert (done["pending"], done["routes"]["events"]["parked"]) == (5, "uncertain")
    assert len(target.attempts) == 1


def test_a_sink_takes_no_more_than_it_is_able_to(backlog):
    backlog.append(*values(10))
    target = RecordingTarget()
    backlog.replay(sink_of(target, max_records=3))
    assert [len(item.records) for item in target.attempts] == [3, 3, 3, 1]


# --- poison -------------------------------------------------------------------------------------


def test_a_refused_record_is_set_aside_with_its_body_and_harms_no_other(backlog):
    lsns = backlog.append(*values(20))
    target = RecordingTarget(refuses=lambda record: record.value == b"00013", names=False)
    done = backlog.replay(sink_of(target))
    assert target.lsns == [lsn for lsn in lsns if lsn != lsns[13]]
    assert done["routes"]["events"]["dead_letters"] == 1
    ledger = open_ledger(FS, backlog.data_dir, backlog.log.log_id)
    (letter,) = ledger.dead_letters(1)
    ledger.close()
    entry = DeadLog(FS, backlog.data_dir).read(DeadPlace(letter.dead_file, letter.dead_offset))
    assert (letter.lsn, letter.code, letter.batch_no) == (lsns[13], "rejected", 2)
    assert [record.value for record in entry.excluded] == [b"00013"]
    row = target.rows[LaneKey(backlog.log.log_id, 1, 0, 0)]
    assert row.dead_rev == entry.rev_id


def test_a_batch_whose_every_record_is_refused_still_commits_on_the_row(backlog):
    backlog.append(*values(3))
    target = RecordingTarget(refuses=lambda _: True)
    done = backlog.replay(sink_of(target))
    assert target.records == []
    assert (done["pending"], done["routes"]["events"]["dead_letters"]) == (0, 3)
    assert target.rows[LaneKey(backlog.log.log_id, 1, 0, 0)].batch_no == 1


def test_a_target_that_goes_down_while_it_is_searched_makes_no_dead_letter(backlog):
    lsns = backlog.append(*values(10))
    target = RecordingTarget(refuses=lambda record: record.value == b"00004")

    class Falls(RecordingSink):
        def probe(self, attempt, records):
            if self.target.probes == 0:
                self.target.probes = 1
                return DOWN
            return super().probe(attempt, records)

    done = backlog.replay(lambda *_: Falls(target))
    assert target.lsns == [lsn for lsn in lsns if lsn != lsns[4]]
    assert done["routes"]["events"]["dead_letters"] == 1


def test_too_large_a_share_of_refusals_is_taken_for_an_outage(place):
    backlog = Backlog(place, "events", batch=200)
    lsns = backlog.append(*values(200))
    target = RecordingTarget(refuses=lambda record: record.value > b"00050")
    done = backlog.replay(sink_of(target), patience_s=0.3)
    route = done["routes"]["events"]
    assert (route["dead_letters"], route["pending"]) == (0, 200)
    assert route["last_error"].startswith("too-many-rejects: 149 of 200")
    target.refuses = lambda _: False  # the table was mended
    backlog.replay(sink_of(target))
    assert target.lsns == lsns
    backlog.close()


def test_a_full_quota_of_dead_letters_parks_the_lane_until_the_target_takes_the_batch(
    backlog, monkeypatch
):
    monkeypatch.setattr(limits, "PARKED_REREAD_S", 0.01)
    quota = replace(backlog.settings.routes["events"], dead_letters=DeadLetterSettings(3))
    backlog.settings = replace(backlog.settings, routes={"events": quota})
    lsns = backlog.append(*values(40))
    bad = {lsns[1], lsns[2], lsns[12], lsns[22]}

    def halted():
        figures = fleet.figures()["events"]
        reason = figures["last_error"].startswith("dead-letter-quota: with 1 more")
        said = (figures["state"], figures["parked"], figures["dead_letters"])
        return said == ("parked", "dead-letter-quota", 3) and reason

    target = RecordingTarget(refuses=lambda record: record.lsn in bad)
    shared = backlog.shared(sink_of(target))
    fleet = backlog.fleet(shared)
    try:
        eventually(halted, fleet.figures)
        assert target.lsns == [lsn for lsn in lsns[:20] if lsn not in bad]
        target.refuses = lambda _: False
        eventually(lambda: fleet.figures()["events"]["delivered"] == 37, fleet.figures)
        assert fleet.figures()["events"]["parked"] is None
    finally:
        end(fleet)
    assert len(shared.ledger.dead_letters(1)) == 3
    shared.dead_log.close()


def test_a_target_s_words_are_kept_within_bounds(backlog):
    class Wordy(RecordingSink):
        def _refused(self, records):
            return [RejectedRecord(item.lsn, "c" * 10_000, "w" * 10_000) for item in records][:1]

        def deliver(self, attempt):
            if len(attempt.records) < 2:
                return super().deliver(replace(attempt, records=()))
            return Rejected(tuple(self._refused(attempt.records)), "w")

        def probe(self, _attempt, records):
            return self._refused(records) if len(records) > 1 else ()

    backlog.append(*values(2))
    shared = backlog.shared(lambda *_: Wordy())
    backlog.deliver_all(shared)
    (letter,) = shared.ledger.dead_letters(1)
    assert len(letter.message) == len(letter.code) == limits.ERROR_TEXT_MAX_CHARS
    shared.dead_log.close()


# --- one target harms no other ------------------------------------------------------------------


def test_a_dead_target_does_not_delay_the_other_route(two):
    two.append(*values(30), stream=1)
    lsns = two.append(*values(30), stream=2)
    dead, good = RecordingTarget(down=DOWN), RecordingTarget()
    targets = {"one": dead, "two": good}
    shared = two.shared(lambda route, _: RecordingSink(targets[route.name]))
    figures = two.deliver_all(shared, "two").figures()
    assert good.lsns == lsns
    assert figures["two"]["delivered"] == 30
    assert figures["one"]["delivered"] == 0
    assert dead.lsns == []
    done = two.replay(lambda route, _: RecordingSink(targets[route.name]), patience_s=0.0)
    assert done["routes"]["one"]["pending"] == 30


def row_like(row, **changes):
    return replace(row, **changes)


FOREIGN = ProgressRow(9, b"x" * 16, 1, NO_ANCHOR, OWNER, NO_REVISION)


@pytest.mark.parametrize(
    ("spoil", "parked"),
    [
        (lambda row: row_like(row, batch_no=9, dead_rev=b"x" * 16), "diverged"),
        (lambda row: row_like(row, owner=1), "diverged"),
        (lambda row: row_like(row, batch_no=9, anchor=NO_ANCHOR), "diverged"),
        (lambda row: row_like(row, batch_no=9, hi_lsn=row.hi_lsn + 10**9), "diverged"),
    ],
)
def test_a_strange_row_parks_its_lane_alone_and_it_leaves_when_the_row_fits(
    two, monkeypatch, spoil, parked
):
    monkeypatch.setattr(limits, "PARKED_REREAD_S", 0.01)
    targets = {"one": RecordingTarget(), "two": RecordingTarget()}
    two.append(*values(20), stream=1)
    shared = two.shared(lambda route, _: RecordingSink(targets[route.name]))
    two.deliver_all(shared)
    key = LaneKey(two.log.log_id, 1, 0, 0)
    kept = targets["one"].rows.pop(key)
    spoiled = spoil(kept)
    if spoiled is not None:
        targets["one"].rows[key] = spoiled
    two.append(*values(5), stream=1)
    lsns = two.append(*values(5), stream=2)
    shared.board.pin(two.log.frontier)
    fleet = two.fleet(shared)
    try:
        eventually(lambda: fleet.figures()["one"]["parked"] == parked, fleet.figures)
        eventually(lambda: targets["two"].lsns == lsns)
        assert len(targets["one"].records) == 20
        assert fleet.figures()["one"]["last_error"]
        targets["one"].rows[key] = kept
        eventually(lambda: len(targets["one"].records) == 25, fleet.figures)
        eventually(lambda: fleet.figures()["one"]["parked"] is None)
    finally:
        end(fleet)


def test_a_copied_directory_parks_its_lanes_without_touching_a_row(backlog):
    backlog.append(*values(5))
    target = RecordingTarget()
    ledger = MemoryLedger(backlog.log.log_id)
    shared = backlog.shared(sink_of(target), ledger=ledger)
    backlog.deliver_all(shared)
    backlog.append(*values(5))
    moved = backlog.shared(sink_of(target), ledger=ledger, owner=OWNER + 1)
    fleet = backlog.fleet(moved)
    try:
        eventually(lambda: fleet.figures()["events"]["parked"] == "diverged")
    finally:
        end(fleet)
    assert len(target.attempts) == 1


def test_the_owner_is_drawn_anew_where_the_directory_is_another_one(place):
    chance = Backlog(place, "events")
    first = load_owner(FS, chance.data_dir, chance.chance)
    assert load_owner(FS, chance.data_dir, chance.chance) == first
    assert not first.moved
    shutil.copytree(chance.data_dir, place / "copy")
    copy = load_owner(FS, str(place / "copy"), chance.chance)
    assert copy.moved
    assert copy.value != first.value
    (Path(chance.data_dir) / "owner").write_bytes(b"damaged")
    assert load_owner(FS, chance.data_dir, chance.chance).moved
    chance.close()


# --- routes -------------------------------------------------------------------------------------


def test_a_route_without_settings_is_kept_and_pins_the_log(two):
    two.append(*values(3), stream=1)
    settings = replace(two.settings, routes={"two": two.settings.routes["two"]})
    done = two.replay(sink_of(RecordingTarget()), settings=settings)
    assert done["routes"]["one"]["state"] == "orphan"
    assert (done["routes"]["one"]["pending"], done["routes"]["one"]["through_lsn"]) == (3, 0)


def test_with_an_auto_sink_every_stream_has_a_route(backlog):
    backlog.append(*values(3))
    settings = replace(backlog.settings, routes={}, auto_sink="events")
    target = RecordingTarget()
    assert backlog.replay(sink_of(target), settings=settings)["pending"] == 0
    assert len(target.records) == 3


def test_a_dead_route_ends_its_lane(backlog):
    shared = backlog.shared(sink_of(RecordingTarget()))
    fleet = backlog.fleet(shared)
    lane = fleet.lane(1)
    backlog.log.append_group([state.route_death(1)])
    fleet.follow(backlog.log.state.routes)
    assert fleet.figures() == {}
    assert lane.join(60.0)


def test_a_route_that_cannot_be_begun_keeps_no_other_from_it(two):
    lsns = two.append(b"first"), two.append(b"second", stream=2)
    target = RecordingTarget()
    shared = two.shared(sink_of(target))
    shared.ledger.store.write(lambda txn: txn.put("layouts", ROUTE.pack(1), b"\x01"))  # its alone
    fleet = Fleet(two.settings, shared, str)
    try:
        for _ in range(2):
            with pytest.raises(TypeError, match="must be an iterable"):
                fleet.follow(two.log.state.routes)
        fleet.flush(two.log.frontier.lsn)
        assert target.wait_for(lambda: bool(target.records))
        assert [record.lsn for record in target.records] == lsns[1]
        shared.ledger.store.write(lambda txn: txn.delete("layouts", ROUTE.pack(1)))
        fleet.follow(two.log.state.routes)
        fleet.flush(two.log.frontier.lsn)
        assert target.wait_for(lambda: len(target.records) == 2)
    finally:
        end(fleet)


def test_a_batch_is_sealed_by_age_alone(backlog):
    backlog.append(*values(3))
    target = RecordingTarget()
    fleet = backlog.fleet(backlog.shared(sink_of(target)))
    try:
        assert target.wait_for(lambda: bool(target.attempts))
    finally:
        end(fleet)


def test_stopping_delivers_what_is_there_unless_the_target_is_down(place):
    backlog = Backlog(place, "events", batch=1_000)
    settings = backlog.settings.routes["events"]
    slow = replace(settings, batch=replace(settings.batch, max_age_s=3600.0))
    backlog.settings = replace(backlog.settings, routes={"events": slow})
    backlog.append(*values(3))
    target = RecordingTarget()
    shared = backlog.shared(sink_of(target))
    fleet = backlog.fleet(shared)
    fleet.stop(10.0)
    assert fleet.join(60.0) == []
    assert len(target.records) == 3
    target.down = DOWN
    backlog.append(*values(3))
    shared.board.pin(backlog.log.frontier)
    fleet = backlog.fleet(shared)
    fleet.stop(3600.0)
    assert fleet.join(60.0) == []
    backlog.close()


# --- the process --------------------------------------------------------------------------------


class Running:
    """The drain process's main thread, as a thread."""

    def __init__(self, backlog, make_sink):
        self.stop = threading.Event()
        self.ready = threading.Event()
        self.backlog = backlog
        self.thread = threading.Thread(target=self.run, args=(make_sink,))

    def run(self, make_sink):
        process.run(
            self.backlog.settings,
            make_sink=make_sink,
            fs=FS,
            clock=CLOCK,
            chance=self.backlog.chance,
            ready=lambda _: self.ready.set(),
            stop=self.stop,
        )

    def __enter__(self):
        self.thread.start()
        assert self.ready.wait(60.0)
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join(60.0)
        assert not self.thread.is_alive()

    def ask(self, line):
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(f"{self.backlog.data_dir}/drain.sock")
            asking.sendall((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n")
            with asking.makefile("rb") as answers:
                return json.loads(answers.readline())

    def page(self):
        page = TwoSlotPage.open(
            FS,
            f"{self.backlog.data_dir}/drain.page",
            slot_bytes=limits.FIGURES_SLOT_BYTES,
            write=False,
        )
        try:
            return page.read()
        finally:
            page.close()


def serve_frontier(backlog, *, stop):
    """Stand in for ingest: say the frontier to whoever subscribes, whenever it moves."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(backlog.settings.socket)
    listening.listen()
    listening.settimeout(0.05)

    def serve():
        while not stop.is_set():
            with contextlib.suppress(
                TimeoutError, ConnectionError
            ):  # who asks may go, and ask again
                connection, _ = listening.accept()
                with connection:
                    connection.recv(4096)
                    welcome = Welcome(1, 0, 0, backlog.log.log_id, 1)
                    connection.sendall(welcome.encode())
                    told = None
                    while not stop.is_set():
                        if backlog.log.frontier != told:
                            told = backlog.log.frontier
                            connection.sendall(FrontierMoved(told).encode())
                        stop.wait(0.005)
        listening.close()

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_the_process_delivers_publishes_answers_and_stops(backlog):
    lsns = backlog.append(*values(12))
    target = RecordingTarget(refuses=lambda record: record.value == b"00002")
    ended = threading.Event()
    with Running(backlog, sink_of(target)) as running:
        serving = serve_frontier(backlog, stop=ended)
        eventually(lambda: len(target.records) == 11)
        assert running.ask({"op": "drain.flush"})["through_lsn"] == lsns[-1]
        lsns += backlog.append(*values(3, 12))
        eventually(lambda: len(target.records) == 14)
        eventually(lambda: running.page()["routes"]["events"]["through_lsn"] == lsns[-1])
        said = running.page()
        assert said["pid"] == os.getpid()
        assert said["routes"]["events"]["delivered"] == 14
        assert said["routes"]["events"]["class"] == "transactional"
        (entry,) = running.ask({"op": "drain.dlq", "route": "events"})["entries"]
        assert (entry["lsn"], entry["code"]) == (lsns[2], "refused")
        assert running.ask({"op": "drain.dlq", "after": lsns[2]})["entries"] == []
        batches = running.ask({"op": "drain.batches"})["routes"]["events"]
        assert [line["number"] for line in batches["finished"]][:2] == [1, 2]
        wrong = [
            {"op": "drain.no"},
            {"op": "drain.dlq", "limit": -1},
            *({"op": "drain.dlq", "after": after} for after in (2**63 - 1, 2**64 - 1, 2**200)),
            {"op": "drain.batches", "limit": 2**64},
            {"op": "drain.dlq", "route": {}},
            {"op": "drain.flush", "through_lsn": 2**64},
            {"op": ["drain.flush"]},
        ]
        for bad in (b"{", b"[]", *(json.dumps(item).encode() for item in wrong)):
            assert running.ask(bad)["ok"] is False
        assert running.ask({"op": "drain.dlq", "route": "no"})["error"]["code"] == "input"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(limits, "LOCK_WAIT_S", 0.0)
            with pytest.raises(DataDirectoryHeld):
                backlog.replay(sink_of(target))
        lsns += backlog.append(*values(1, 15))
    ended.set()
    serving.join()
    assert target.lsns == [lsn for lsn in lsns if lsn != lsns[2]]
    assert not (Path(backlog.data_dir) / "drain.sock").exists()


def test_progress_is_told_also_where_the_figures_cannot_be_written(backlog, monkeypatch):
    monkeypatch.setattr(limits, "FIGURES_SLOT_BYTES", 256)  # without a route it fits
    lsns = backlog.append(*values(4))

    def told():
        with contextlib.suppress(FileNotFoundError):
            page = TwoSlotPage.open(
                FS,
                f"{backlog.data_dir}/progress",
                slot_bytes=limits.PROGRESS_SLOT_BYTES,
                write=False,
            )
            with closing(page):
                return (page.read() or {}).get("routes")

    with Running(backlog, sink_of(RecordingTarget())) as running:
        eventually(lambda: told() == {"1": lsns[-1]}, told)
        assert not running.page()["routes"]


def test_the_figures_of_all_routes_fit_the_page_whatever_their_targets_say(place):
    name, number = "n" * limits.STREAM_NAME_MAX_BYTES, 2**63
    figures = LaneFigures(
        state="dead-letter-quota",
        replay="transactional",
        through_lsn=number,
        delivered=number,
        dead_letters=number,
        batch_no=number,
        attempts=number,
        last_error="\N{SNOWMAN}" * limits.ERROR_TEXT_MAX_CHARS,
        oldest_pending_ns=number,
        parked="dead-letter-quota",
    )
    birth = RouteBirth(2**31, name, 1, name, name, 0, 0)
    routes = {
        f"{route_id:0{len(name)}}": summed(birth, [figures])
        for route_id in range(limits.ROUTES_MAX)
    }
    page = TwoSlotPage.open(FS, f"{place}/p", slot_bytes=limits.FIGURES_SLOT_BYTES, write=True)
    with closing(page):
        page.write({"pid": 2**31, "routes": fitting_the_page(routes)}, sync=False)
        assert page.read() is not None
    (alone,) = fitting_the_page({"one": summed(birth, [figures])}).values()
    assert alone["last_error"] == figures.last_error


def test_a_batch_in_flight_shows_in_the_batches(backlog):
    backlog.append(*values(4))
    with Running(backlog, sink_of(RecordingTarget())) as running:

        def finished():
            return running.ask({"op": "drain.batches"})["routes"].get("events", {})

        eventually(lambda: bool(finished().get("finished")))
        assert finished()["open"] is None


def test_before_the_first_start_of_ingest_the_drainer_waits(place):
    backlog = Backlog(place, "events")
    backlog.settings = replace(backlog.settings, data_dir=str(place / "empty"))
    (place / "empty").mkdir()
    stop = threading.Event()
    stop.set()
    done = process.run(
        backlog.settings,
        make_sink=sink_of(RecordingTarget()),
        fs=FS,
        clock=CLOCK,
        chance=backlog.chance,
        ready=lambda _: None,
        stop=stop,
    )
    assert done == 0
    backlog.close()


def test_a_long_path_still_has_its_socket(place):
    deep = place / ("d" * 100)
    deep.mkdir()
    backlog = Backlog(deep, "events")
    backlog.append(*values(1))
    target = RecordingTarget()
    with Running(backlog, sink_of(target)):
        eventually(lambda: len(target.records) == 1)
        address = f"{backlog.data_dir}/drain.sock"
        assert Path(address).is_socket()
        control = ControlServer({}, address)
        answer = json.loads(asyncio.run(control.answer(b'{"op": "drain.flush"}\n')))
        assert answer["ok"], answer
    backlog.close()


def test_dead_letters_are_answered_within_the_bound_of_a_line_page_by_page(backlog, monkeypatch):
    monkeypatch.setattr(limits, "CONTROL_LINE_MAX_BYTES", 2_000)
    lsns = backlog.append(*values(9))
    target = RecordingTarget(refuses=lambda _: True)
    found: list[int] = []
    pages = 0
    with Running(backlog, sink_of(target)) as running:
        eventually(lambda: running.ask({"op": "drain.dlq", "after": lsns[-2]}).get("entries"))
        while entries := running.ask({"op": "drain.dlq", "after": max(found, default=0)})[
            "entries"
        ]:
            found += [entry["lsn"] for entry in entries]
            pages += 1
    assert found == lsns
    assert pages > 2


# --- the frontier -------------------------------------------------------------------------------


def test_without_a_subscription_the_hint_is_followed(backlog):
    lsns = backlog.append(*values(2))
    target = RecordingTarget()
    with Running(backlog, sink_of(target)):  # nobody listens where ingest should
        eventually(lambda: target.lsns == lsns)
        lsns += backlog.append(*values(3, 2))
        eventually(lambda: target.lsns == lsns)


def test_an_older_frontier_changes_nothing():
    board = FrontierBoard()
    board.pin(Frontier(2, 100, 50))
    turn = board.turn()
    for older in (Frontier(1, 900, 50), Frontier(2, 100, 49), Frontier(2, 50, 50)):
        board.pin(older)
    assert (board.current(), board.turn()) == (Frontier(2, 100, 50), turn)


def test_who_does_not_follow_the_frontier_is_woken_by_a_wake_alone():
    board = FrontierBoard()
    turn = board.turn()
    board.pin(Frontier(2, 100, 50))
    assert board.wait(turn, 60.0)
    assert not board.wait(turn, 0.01, follows=False)
    board.wake()
    assert board.wait(turn, 60.0, follows=False)


def test_no_hint_is_no_frontier(place):
    assert read_hint(FS, str(place)) is None
    page = TwoSlotPage.open(
        FS, f"{place}/ingest.page", slot_bytes=limits.PAGE_SLOT_BYTES, write=True
    )
    page.write({"segment": 1}, sync=False)
    page.close()
    assert read_hint(FS, str(place)) is None


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage" * 10,
        Welcome(1, 0, 0, b"another log 1234", 1).encode()
        + FrontierMoved(Frontier(1, 2, 3)).encode(),
        Failed("protocol-mismatch", "no").encode(),
    ],
)
def test_a_subscription_believes_only_its_own_log_and_reconnects(backlog, answer):
    board = FrontierBoard()
    path = backlog.settings.socket
    said = [answer, Welcome(1, 0, 0, backlog.log.log_id, 1).encode()]
    said[1] += FrontierMoved(Frontier(5, 6, 7)).encode()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        source = Subscription(path, board, backlog.chance, lambda it: it == backlog.log.log_id)
        source.start()
        try:
            for part in said:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(part)
                    if part is said[1]:
                        eventually(lambda: board.current() == Frontier(5, 6, 7))
                    else:
                        assert board.current() is None
        finally:
            source.stop()
