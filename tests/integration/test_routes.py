"""``wald route`` against a real daemon, and against its data directory while none runs."""

import json
import os
import shutil
import signal
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

import wald
from tests.backlog import FS, Backlog, end, eventually
from tests.daemon import Daemon, wait_until
from wald.cli.notes import notes
from wald.config import SinkSettings
from wald.config.settings import WorkerSettings
from wald.core import state
from wald.core.delivery import Parked
from wald.drainer.released import ProgressPage
from wald.drainer.route_desk import RouteDesk
from wald.errors import Backpressure, InputError
from wald.ingest.figures import Progress
from wald.model import Systemic, SystemicKind
from wald.testing.recording_sink import RecordingSink, RecordingTarget

DOWN = Systemic(SystemicKind.UNREACHABLE, "it is down")


@pytest.fixture
def short():
    path = Path(tempfile.mkdtemp(prefix="w"))
    yield path
    shutil.rmtree(path)


def config(short, *routes):
    return "\n".join(
        [
            "[sinks.db]",
            'type = "sqlite"',
            f'path = "{short}/x.db"',
            *(
                f'[routes.{name}]\nstream = "{name}"\nsink = "db"\nbatch = {{ max_age = "10ms" }}'
                for name in routes
            ),
        ]
    )


def append(daemon, stream, count=1):
    with wald.connect(str(daemon.socket)) as producer:
        for number in range(count):
            producer.append(stream, {"n": number})


def routes_of(daemon):
    answer = daemon.ask(op="status") or {}
    return answer.get("routes", {})


def rows(short, table):
    with closing(sqlite3.connect(short / "x.db")) as database:
        try:
            return int(database.execute(f"select count(*) from {table}").fetchone()[0])
        except sqlite3.OperationalError:
            return 0  # not made yet


def test_a_pause_holds_what_is_accepted_through_a_crash_until_it_is_resumed(short):
    with Daemon(short, config=config(short, "one", "two")) as daemon:
        daemon.command("route", "pause", "one")
        append(daemon, "one", 3)
        append(daemon, "two", 2)
        wait_until(lambda: routes_of(daemon)["two"]["delivered"] == 2, "the other goes on")
        before = daemon.pids()["drain"]
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: daemon.pids().get("drain", before) != before, "drain is back")
        wait_until(lambda: routes_of(daemon)["one"]["state"] == "paused", "still paused")
        listed = json.loads(daemon.command("route", "list", "--json"))
        assert listed["routes"]["one"]["paused_ns"] > 0
        assert listed["routes"]["one"]["pending"] == 3
        assert listed["routes"]["two"]["paused_ns"] is None
        assert rows(short, "one") == 0
        said = daemon.command("route", "list", "--lanes")
        assert "wald route resume one" in said
        wait = daemon.command("wait", "one", "--timeout", "5s", expect=1)
        assert wait == ""
        answer = json.loads(daemon.command("route", "resume", "one", "--json"))
        assert (answer["resumed"], answer["still_paused"]) == (True, [])
        wait_until(lambda: rows(short, "one") == 3, "delivered")

        daemon.command("route", "pause", "--all")
        append(daemon, "two")
        wait_until(
            lambda: {each["state"] for each in routes_of(daemon).values()} == {"paused"}, "all"
        )
        assert rows(short, "two") == 2
        again = json.loads(daemon.command("route", "resume", "one", "--json"))
        assert again["resumed"] is False
        assert again["paused_all_ns"] > 0
        daemon.command("route", "resume", "--all")
        wait_until(lambda: rows(short, "two") == 3, "all go on")

        found = json.loads(daemon.command("route", "probe", "two", "--json"))
        assert found["error"] == ""
        assert found["row"]["batch_no"] >= 2
        assert found["after"]["pending"] == 0
        for wrong in (["pause"], ["pause", "one", "--all"], ["pause", "no"], ["probe", "no"]):
            daemon.command("route", *wrong, expect=2)
        daemon.command("route", "drop", "one", "--yes", expect=2)
        daemon.command("route", "takeover", "one", "--yes", expect=2)
        daemon.command("route", "pause", "--data-dir", str(daemon.data_dir), "one", expect=69)


def test_an_orphan_keeps_its_records_until_it_is_dropped_and_then_dies(short):
    with Daemon(short, config=config(short, "kept", "gone")) as daemon:
        daemon.command("route", "pause", "gone")
        append(daemon, "gone", 4)
        append(daemon, "kept")
    with Daemon(short, config=config(short, "kept")) as daemon:
        wait_until(lambda: routes_of(daemon)["gone"]["state"] == "orphan", "it is an orphan")
        assert routes_of(daemon)["gone"]["pending"] == 4
        assert "wald route drop gone" in daemon.command("route", "list")
        daemon.command("route", "drop", "gone", expect=2)  # nobody said yes
        assert "gone" in routes_of(daemon)
        answer = json.loads(daemon.command("route", "drop", "gone", "--yes", "--json"))
        assert answer["records"] == 4
        wait_until(lambda: "gone" not in routes_of(daemon), "its death is in the log")
        daemon.command("route", "drop", "gone", "--yes", expect=2)
    with Daemon(short, config=config(short, "kept")) as daemon:
        wait_until(lambda: "kept" in routes_of(daemon), "it is up")
        assert "gone" not in routes_of(daemon)
    assert rows(short, "gone") == 0


def test_with_no_daemon_the_data_directory_is_asked(short):
    with Daemon(short, config=config(short, "kept", "gone")) as daemon:
        append(daemon, "kept")
        append(daemon, "gone", 2)
        daemon.command("route", "pause", "gone")
        append(daemon, "gone", 3)
        wait_until(lambda: routes_of(daemon)["kept"]["delivered"] == 1, "delivered")
    at = ["--data-dir", str(daemon.data_dir)]
    listed = json.loads(daemon.command("route", "list", *at, "--json"))["routes"]
    assert (listed["gone"]["state"], listed["kept"]["state"]) == ("paused", "stopped")
    daemon.command("route", "resume", "gone", *at)
    daemon.command("route", "pause", "kept", *at)
    listed = json.loads(daemon.command("route", "list", *at, "--json"))["routes"]
    assert (listed["gone"]["state"], listed["kept"]["state"]) == ("stopped", "paused")
    daemon.command("route", "pause", "no", *at, expect=2)
    daemon.command(
        "route", "drop", "gone", "--yes", *at, expect=2
    )  # it is delivered, as far as is known
    with Daemon(short, config=config(short, "kept")) as daemon:
        wait_until(lambda: routes_of(daemon)["gone"]["state"] == "orphan", "it is an orphan")
        wait_until(lambda: routes_of(daemon)["kept"]["state"] == "paused", "it is paused")
        pending = routes_of(daemon)["gone"]["pending"]
    said = json.loads(daemon.command("route", "drop", "gone", "--yes", *at, "--json"))
    assert said["records"] == pending
    with Daemon(short, config=config(short, "kept", "gone").replace(
        'stream = "gone"', 'stream = "gone"\nstart = "now"'
    )) as daemon:  # fmt: skip
        wait_until(lambda: routes_of(daemon).get("gone", {}).get("state") == "idle", "born anew")
        assert routes_of(daemon)["gone"]["accepted"] == 0


# --- in one process -----------------------------------------------------------------------------


@pytest.fixture
def two(short):
    opened = Backlog(short, "one", "two")
    yield opened
    opened.close()


def test_a_resumed_route_tries_at_once_what_waits(two, monkeypatch):
    monkeypatch.setattr("wald.limits.RETRY_BASE_S", 1e6)
    two.chance.uniform = lambda _low, high: high
    target = RecordingTarget(down=DOWN)
    two.append(b"a", b"b")
    fleet = two.fleet(two.shared(lambda *_: RecordingSink(target)))
    try:
        eventually(lambda: fleet.figures()["one"]["state"] == "waiting", fleet.figures)
        target.down = None
        fleet.resume(1)
        eventually(lambda: len(target.records) == 2, fleet.figures)
    finally:
        end(fleet)


def test_a_pause_lets_an_attempt_under_way_end(two):
    target = RecordingTarget()
    two.append(*[b"%d" % number for number in range(50)])
    shared = two.shared(lambda *_: RecordingSink(target))
    fleet = two.fleet(shared)
    try:
        eventually(lambda: len(target.records) >= 10)
        fleet.pause(0)
        eventually(lambda: fleet.figures()["one"]["state"] == "paused", fleet.figures)
        held = len(target.records)
        assert fleet.figures()["one"]["delivered"] == held
        assert fleet.paused_all_ns is not None
        assert fleet.resume(0)
        eventually(lambda: len(target.records) == 50, fleet.figures)
    finally:
        end(fleet)


class Hanging(RecordingSink):
    def check(self):
        self.target.changed.acquire()
        self.target.changed.release()
        return super().check()


def test_a_target_that_hangs_holds_up_its_own_probe_and_no_answer(two, monkeypatch):
    target = RecordingTarget()
    fleet = two.fleet(two.shared(lambda *_: Hanging(target)))
    desk = RouteDesk(fleet)
    try:
        with target.changed:
            assert desk.operations["drain.probe"]({"route": "one"}) == {"begun": True}
            assert desk.operations["drain.probe"]({"route": "one"}) == {"begun": False}
            assert desk.operations["drain.probed"]({"route": "one"}) == {"found": None}
            monkeypatch.setattr("wald.limits.PROBES_MAX", 1)
            with pytest.raises(Backpressure):
                desk.operations["drain.probe"]({"route": "two"})
        eventually(lambda: desk.operations["drain.probed"]({"route": "one"})["found"] is not None)
        found = desk.operations["drain.probed"]({"route": "one"})["found"]
        assert [each["code"] for each in found["findings"]] == ["recording"]
    finally:
        end(fleet)


def test_a_probe_says_what_the_target_cannot_or_the_sink_raised(two):
    target = RecordingTarget(down=DOWN)
    broken = [False]

    def make(*_):
        if broken[0]:
            msg = "no such driver"
            raise RuntimeError(msg)
        return RecordingSink(target)

    fleet = two.fleet(two.shared(make))
    desk = RouteDesk(fleet)

    def found():
        desk.operations["drain.probe"]({"route": "one"})
        eventually(lambda: desk.operations["drain.probed"]({"route": "one"})["found"] is not None)
        return desk.operations["drain.probed"]({"route": "one"})["found"]

    try:
        assert found()["error"] == "it is down"
        broken[0] = True
        assert "no such driver" in found()["error"]
        with pytest.raises(InputError):
            fleet.drop(1, 0)
    finally:
        end(fleet)


def test_a_drop_told_offline_stands_beside_what_was_told_before(two):
    page = ProgressPage(FS, two.data_dir)
    page.write({"1": 7}, [1, 2])
    page.drop(2)
    page.drop(2)
    page.close()
    again = ProgressPage(FS, two.data_dir)
    assert again.released(1) == 7
    again.drop(1)
    again.close()
    progress = Progress(FS, two.data_dir)
    assert progress.dropped() == [1, 2]
    assert progress.read() == {1: 7}
    progress.close()


# --- one stream to several sinks ----------------------------------------------------------------


def born(backlog, number, name, birth_lsn, birth_records):
    """A further route of stream 1, to a sink of its own."""
    birth = state.RouteState(number, name, 1, name, "digest", birth_lsn, birth_records, 0)
    backlog.log.append_group([state.route_birth(birth)])
    first = backlog.settings.routes["one"]
    backlog.settings = replace(
        backlog.settings,
        routes={**backlog.settings.routes, name: replace(first, name=name, sink=name)},
        sinks={**backlog.settings.sinks, name: SinkSettings(name, "test")},
    )


def divide(backlog, lanes):
    workers = WorkerSettings(min=64)
    backlog.settings = replace(
        backlog.settings,
        routes={
            name: replace(route, lanes=lanes, workers=workers)
            for name, route in backlog.settings.routes.items()
        },
    )


@pytest.mark.parametrize("lanes", [1, 3])
def test_one_stream_goes_to_several_sinks_each_with_its_own_cursors(two, lanes):
    born(two, 3, "dead", 0, 0)
    born(two, 4, "also", 0, 0)
    divide(two, lanes)
    lsns = two.append(*[b"%d" % number for number in range(60)])
    targets = {name: RecordingTarget() for name in two.settings.routes}
    targets["dead"].down = DOWN
    shared = two.shared(lambda route, _: RecordingSink(targets[route.name]))
    figures = two.deliver_all(shared, "one", "also").figures()
    assert sorted(targets["one"].lsns) == sorted(targets["also"].lsns) == lsns
    assert figures["dead"]["delivered"] == 0
    assert figures["dead"]["last_error"] == "unreachable: it is down"
    later = two.shared(shared.make_sink, ledger=shared.ledger, dead_log=shared.dead_log)
    targets["dead"].down = None
    two.deliver_all(later)
    assert sorted(targets["dead"].lsns) == lsns
    assert len(targets["one"].records) == 60


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_new_route_begins_where_its_birth_says_in_every_lane(two, lanes):
    before = two.append(*[b"%d" % number for number in range(33)])
    born(two, 3, "now", before[-1], 33)
    born(two, 4, "oldest", 0, 0)
    divide(two, lanes)
    after = two.append(*[b"%d" % number for number in range(33)])
    targets = {name: RecordingTarget() for name in two.settings.routes}
    done = two.replay(lambda route, _: RecordingSink(targets[route.name]), patience_s=10.0)
    assert sorted(targets["now"].lsns) == after
    assert sorted(targets["oldest"].lsns) == before + after
    books = {name: (each["accepted"], each["delivered"]) for name, each in done["routes"].items()}
    assert books == {"one": (66, 66), "two": (0, 0), "now": (33, 33), "oldest": (66, 66)}
    assert done["pending"] == 0


# --- in words -----------------------------------------------------------------------------------

QUIET: dict[str, object] = {
    "faults": [],
    "guarded_batch": 0,
    "fallback": None,
    "paused_ns": None,
    "change": None,
    "state": "idle",
    "pending": 3,
    "parked": None,
    "last_error": "",
}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, []),
        ({"paused_ns": 1}, ["wald route resume r"]),
        ({"faults": ["game day: down, for 3 s more"]}, ["r: GAME DAY: down, for 3 s more; to end"]),
        (
            {"change": {"from": 2, "to": 4, "barrier": 48_211, "waits_for": [1], "blocked_by": []}},
            ["2 lanes become 4 behind LSN 48,211; waits for lane: 1"],
        ),
        (
            {"change": {"from": 2, "to": 1, "barrier": 9, "waits_for": [0], "blocked_by": [0]}},
            ["lane 0 is parked and blocks it"],
        ),
        (
            {"state": "orphan", "pinned_bytes": 5_000},
            ["3 records stay in the log (5,000 bytes)", "wald route drop r"],
        ),
        ({"state": "dropped"}, ["given up"]),
        (
            {"sink": "db", "fallback": {"sink": "spare", "after_lsn": 4_000, "own": "down"}},
            ["r: FALLBACK: db is down; spare takes what is behind LSN 4,000"],
        ),
        (
            {"sink": "db", "fallback": {"sink": "spare", "after_lsn": 4_000, "own": "well"}},
            ["db is well again, and takes over once it has been for 10 s; spare takes"],
        ),
        (
            {"sink": "db", "fallback": {"sink": "spare", "after_lsn": 4_000, "own": "parked"}},
            ["db waits for a person, see 'wald route list'; spare takes"],
        ),
        ({"parked": "target-behind"}, ["a newer copy of the target", "wald route takeover r"]),
        ({"parked": "target-went-back"}, ["wald route resume r"]),
        ({"parked": "diverged"}, ["wald route takeover r"]),
        ({"parked": "uncertain"}, ["wald batch list", "wald batch resolve"]),
        ({"last_error": "too-many-rejects: 2 of 2"}, ["wald dlq set-aside r"]),
    ],
)
def test_status_says_in_words_what_holds_a_route_back(said, words):
    lines = notes("r", {**QUIET, **said})
    assert len(lines) == bool(words)
    assert all(word in lines[0] for word in words)


def test_each_reason_to_park_says_what_to_do_there_or_in_its_error():
    told = {each.value for each in Parked if notes("r", {**QUIET, "parked": each.value})}
    assert {each.value for each in Parked} - told == {"halted", "dead-letter-quota"}


def test_what_the_switch_of_all_routes_holds_back_is_not_resumed_by_name():
    assert notes("r", {**QUIET, "paused_ns": 5}, paused_all_ns=5) == []
    assert "wald route resume r" in notes("r", {**QUIET, "paused_ns": 4}, paused_all_ns=5)[0]
