"""A past range delivered again: by LSN, time, key and sink; refused, interrupted, resumed."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

import wald
from tests.backlog import CLOCK, FS, Backlog
from tests.daemon import Daemon, wait_until
from wald.cli.replay import _print_range
from wald.config import SinkSettings
from wald.drainer.fleet import Fleet
from wald.drainer.range_count import KeyShare
from wald.drainer.range_replay import Asked, Point, replay_range
from wald.drainer.views import views_of_ledger
from wald.drainer.where import Sources, Where
from wald.errors import InputError, RangeGone, ReplayRefused, WaldError
from wald.model import Attempt, DeadLetter, LaneKey, Outcome, ReplayClass, Systemic, SystemicKind
from wald.ports import Sink, Transaction
from wald.storage.ledger_rows import bury, get_lane, put_lane
from wald.storage.lmdb_store import open_ledger
from wald.storage.log import Log, LogOptions
from wald.storage.replays import RESERVED_ROUTES, Replay, Replays
from wald.testing.memory_ledger import MemoryLedger
from wald.testing.recording_sink import RecordingSink, RecordingTarget

CONFIG = """
[sinks.first]
type = "sqlite"
path = "{place}/first.db"
[sinks.again]
type = "sqlite"
path = "{place}/again.db"
[routes.events]
stream = "events"
sink = "first"
batch = {{ max_age = "20ms", max_records = 50 }}
"""


def keys(count: int) -> list[str | bytes | None]:
    return [f"k{index % 3}" for index in range(count)]


UNTIRED = 1 << 30


@pytest.fixture
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="w"))
    yield path
    rmtree(path)


class Tiring(RecordingSink):
    """Its target is down from some attempt on."""

    def __init__(self, target: RecordingTarget, replay: ReplayClass, lasts: int) -> None:
        super().__init__(target, replay=replay)
        self.lasts = lasts

    def deliver(self, attempt: Attempt) -> Outcome:
        if len(self.target.attempts) >= self.lasts:
            return Systemic(SystemicKind.UNREACHABLE, "it is down")
        return super().deliver(attempt)


class Case:
    """A delivered backlog with keys, and targets by sink."""

    replay_class = ReplayClass.TRANSACTIONAL
    lasts = UNTIRED  # attempts at the second target

    def __init__(self, place: Path, **target: Any) -> None:
        self.backlog = Backlog(place, "events")
        self.targets = {"events": RecordingTarget(), "again": RecordingTarget(**target)}
        self.settings = replace(
            self.backlog.settings,
            sinks={name: SinkSettings(name, "test") for name in self.targets},
        )

    def sink(self, _: object, sink: SinkSettings) -> Sink:
        if sink.name == "again":
            return Tiring(self.targets[sink.name], self.replay_class, self.lasts)
        return RecordingSink(self.targets[sink.name])

    def append(self, count: int = 30) -> list[int]:
        data = [f"{index:05}".encode() for index in range(count)]
        lsns = self.backlog.append(*data, keys=keys(count))
        self.backlog.replay(self.sink, settings=self.settings)
        return lsns

    def replay(
        self,
        patience_s: float | None = None,
        on_progress: Callable[[str, int, int], None] = lambda *_: None,
        **asked: Any,
    ) -> dict[str, Any]:
        return replay_range(
            self.settings,
            self.backlog.log,
            Asked(**asked),
            make_sink=self.sink,
            fs=FS,
            clock=CLOCK,
            chance=self.backlog.chance,
            patience_s=patience_s or (0.3 if self.lasts < UNTIRED else 20.0),
            on_progress=on_progress,
        )

    def ledger(self) -> Any:
        return open_ledger(FS, self.backlog.data_dir, self.backlog.log.log_id)


@pytest.fixture
def case(place: Path) -> Iterator[Case]:
    opened = Case(place)
    yield opened
    opened.backlog.close()


# --- what is delivered --------------------------------------------------------------------------


def test_a_range_goes_to_another_sink_once_under_a_row_of_its_own(case: Case) -> None:
    lsns = case.append(30)
    before = dict(case.targets["events"].rows)
    said = case.replay(route="events", begin=Point(lsns[5]), end=Point(lsns[24]), sink="again")
    assert (said["complete"], said["delivered"], said["refused"]) == (True, 20, 0)
    assert case.targets["again"].lsns == lsns[5:25]
    assert case.targets["events"].rows == before  # the route's own cursors stay
    assert len(case.targets["events"].lsns) == 30
    ((key, row),) = case.targets["again"].rows.items()
    assert key.route_id >= RESERVED_ROUTES
    assert row.hi_lsn == lsns[24]
    with closing(case.ledger()) as ledger:
        assert not Replays(ledger.store, case.backlog.log.log_id).all()
        assert not ledger.lanes(key.route_id)
    report = json.loads(Path(said["report"]).read_text())
    assert (report["complete"], report["refused"]) == (True, [])


def test_only_the_records_of_a_key(case: Case) -> None:
    lsns = case.append(30)
    said = case.replay(route="events", begin=Point(1), sink="again", key="k1")
    assert said["delivered"] == said["records"] == 10
    assert case.targets["again"].lsns == lsns[1::3]


def test_by_time(case: Case) -> None:
    first = case.append(10)
    middle_ns = CLOCK.wall_ns()
    second = case.append(10)
    case.replay(route="events", begin=Point(time_ns=middle_ns), sink="again")
    assert case.targets["again"].lsns == second
    end = Point(time_ns=middle_ns)
    said = case.replay(route="events", begin=Point(1), end=end, sink="again", dry_run=True)
    assert (said["records"], said["last_lsn"]) == (10, first[-1])


def test_a_dry_run_changes_nothing(case: Case) -> None:
    lsns = case.append(30)
    said = case.replay(route="events", begin=Point(1), sink="again", dry_run=True)
    assert (said["dry_run"], said["records"], said["bytes"]) == (True, 30, 150)
    assert (said["first_lsn"], said["last_lsn"]) == (lsns[0], lsns[-1])
    assert not case.targets["again"].rows
    with closing(case.ledger()) as ledger:
        assert not Replays(ledger.store, case.backlog.log.log_id).all()


def test_what_the_target_refuses_goes_to_a_report_and_not_to_the_dead_letters(place: Path) -> None:
    case = Case(place, refuses=lambda record: record.value in {b"00003", b"00017"})
    try:
        lsns = case.append(30)
        said = case.replay(route="events", begin=Point(1), sink="again")
        assert (said["complete"], said["delivered"], said["refused"]) == (True, 28, 2)
        report = json.loads(Path(said["report"]).read_text())
        assert [each["lsn"] for each in report["refused"]] == [lsns[3], lsns[17]]
        with closing(case.ledger()) as ledger:
            assert not ledger.dead_letters(1)
    finally:
        case.backlog.close()


def test_a_class_that_cannot_tell_a_record_again_is_told_beforehand(place: Path) -> None:
    case = Case(place)
    case.replay_class = ReplayClass.NONE
    try:
        case.append(10)
        said = case.replay(route="events", begin=Point(1), sink="again", dry_run=True)
        assert "there twice" in said["notes"][0]
    finally:
        case.backlog.close()


# --- interrupted --------------------------------------------------------------------------------


def test_an_interrupted_replay_pins_its_range_and_goes_on_exactly_once(place: Path) -> None:
    case = Case(place)
    try:
        lsns = case.append(40)
        target = case.targets["again"]
        case.lasts = 2
        said = case.replay(route="events", begin=Point(1), sink="again")
        assert not said["complete"]
        assert "it is down" in said["last_error"]
        assert 0 < said["delivered"] < 40
        with closing(case.ledger()) as ledger:
            (left,) = Replays(ledger.store, case.backlog.log.log_id).all()
            assert left.uuid.hex() == said["replay"]
            pins = Replays(ledger.store, case.backlog.log.log_id).pins()
            assert pins == {1: said["through_lsn"]}
            shared = replace(case.backlog.shared(case.sink), ledger=ledger)
            fleet = Fleet(case.settings, shared, str)
            assert fleet._pinned(ledger.births()[0], lsns[-1]) == said["through_lsn"]
            shared.dead_log.close()
        case.lasts = UNTIRED
        assert case.replay(resume=said["replay"][:8])["complete"]
        assert target.lsns == lsns
        with closing(case.ledger()) as ledger:
            assert not Replays(ledger.store, case.backlog.log.log_id).pins()
    finally:
        case.backlog.close()


def test_a_person_who_interrupts_a_replay_is_told_how_it_goes_on(case: Case) -> None:
    lsns = case.append(40)
    case.lasts = 1

    def interrupt(what: str, done: int, _: int) -> None:
        if what == "delivering" and done:
            raise KeyboardInterrupt

    said = case.replay(60.0, interrupt, route="events", begin=Point(1), sink="again")
    assert (said["complete"], said["delivered"]) == (False, 10)
    case.lasts = UNTIRED
    assert case.replay(resume=said["replay"])["complete"]
    assert case.targets["again"].lsns == lsns


def test_an_interrupted_replay_may_be_forgotten(case: Case) -> None:
    case.append(10)
    case.lasts = 0
    said = case.replay(route="events", begin=Point(1), sink="again")
    assert case.replay(forget=said["replay"])["forgotten"]
    with pytest.raises(InputError, match="no unfinished replay"):
        case.replay(resume=said["replay"])


# --- bad input ----------------------------------------------------------------------------------

BAD_INPUT: list[tuple[str, dict[str, Any], type[WaldError], str]] = [
    ("unknown route", {"route": "x", "begin": Point(1)}, InputError, "there is no route 'x'"),
    ("unknown sink", {"begin": Point(1), "sink": "x"}, InputError, "there is no sink 'x'"),
    ("in the future", {"begin": Point(1), "end": Point(99)}, InputError, "not used yet"),
    ("begins in the future", {"begin": Point(99)}, InputError, "ends before it begins"),
    ("backwards", {"begin": Point(8), "end": Point(3)}, InputError, "ends before it begins"),
    ("a later time", {"begin": Point(time_ns=1 << 62)}, InputError, "ends before it begins"),
    ("nothing to resume", {"route": "", "resume": "abc"}, InputError, "no unfinished replay"),
    ("nothing at all", {"route": "", "resume": "-"}, InputError, "no unfinished replay"),
]


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [row[1:] for row in BAD_INPUT],
    ids=[row[0] for row in BAD_INPUT],
)
def test_bad_input_is_refused(
    case: Case, asked: dict[str, Any], error: type[WaldError], words: str
) -> None:
    case.append(10)
    with pytest.raises(error, match=words):
        case.replay(**{"route": "events", "sink": "again", **asked})


def without_the_first_segment(case: Case) -> tuple[list[int], list[int]]:
    """Deliver ten records, and ten in another segment; the first segment is gone."""
    backlog = case.backlog
    first = case.append(10)
    backlog.log.close()
    (number,) = [each.stem for each in Path(backlog.data_dir, "log").glob("seg-*.wal")]
    backlog.log = Log.open(FS, backlog.data_dir, CLOCK, backlog.chance, LogOptions())
    second = case.append(10)
    Path(backlog.data_dir, "log", f"{number}.wal").unlink()
    return first, second


def test_a_range_that_left_the_log_is_refused_with_where_it_could_begin(case: Case) -> None:
    first, second = without_the_first_segment(case)
    with pytest.raises(RangeGone) as gone:
        case.replay(route="events", begin=Point(first[0]), sink="again")
    assert f"LSN {first[0]:,} to" in gone.value.message
    assert f"--from {second[0]}" in gone.value.hint
    assert case.replay(route="events", begin=Point(second[0]), sink="again")["delivered"] == 10
    assert case.targets["again"].lsns == second


def test_a_range_that_begins_before_what_is_kept_says_so(case: Case) -> None:
    first, second = without_the_first_segment(case)
    asked: dict[str, Any] = {"route": "events", "sink": "again", "dry_run": True}
    now = Point(time_ns=CLOCK.wall_ns())
    said = case.replay(**asked, begin=Point(time_ns=1), end=now)
    assert (said["records"], said["first_lsn"]) == (10, second[0])
    assert f"does not hold LSN 1 to {second[0] - 1:,} any more" in said["notes"][0]
    assert first[-1] < second[0]
    case.append(1)
    assert case.replay(**asked, begin=now)["notes"] == []


def test_a_record_that_left_the_log_is_told_as_far_as_the_ledger_tells(case: Case) -> None:
    first, second = without_the_first_segment(case)
    log_id = case.backlog.log.log_id
    with closing(case.ledger()) as ledger:
        where = Where(
            Sources(
                FS, case.backlog.data_dir, log_id, CLOCK, ledger,
                lambda: views_of_ledger(ledger, log_id),
                lambda: {1: "events"},
                lambda _: case.backlog.log.frontier,
            )
        )  # fmt: skip
        said = where.where({"lsn": first[3]})
        assert "does not hold it any more" in said["why"]
        assert (said["stream"], said["key"], said["durable_ns"]) == ("events", None, None)
        route = said["routes"]["events"]
        assert (route["fate"], route["case"], route["batch"]) == ("delivered", "in-history", 1)
        ledger.store.write(
            lambda txn: [txn.delete("history", at) for at, _ in list(txn.scan("history"))]
        )
        route = where.where({"lsn": second[3]})["routes"]["events"]
        assert (route["fate"], route["case"]) == ("delivered", "longer-ago")
        assert "batch" not in route
        answer = where.delivered({"stream": "events", "lsns": [*first, *second, 99]})
        assert (answer["delivered"], answer["next"]["verdict"]) == (20, "pending")
        for wrong in ({}, {"stream": "events"}, {"stream": 1, "lsns": [1]}, {"lsns": [1]}):
            with pytest.raises(InputError):
                where.delivered(wrong)


def test_a_record_that_damage_took_is_never_called_delivered(case: Case) -> None:
    lsns = case.append(10)
    log_id = case.backlog.log.log_id
    key = LaneKey(log_id, 1, 0, 0)
    hole = DeadLetter(
        "events", lsns[2], "damaged", "a hole", 1, bytes(16), 0, 0, through_lsn=lsns[4], records=3
    )
    with closing(case.ledger()) as ledger:
        where = Where(
            Sources(
                FS, case.backlog.data_dir, log_id, CLOCK, ledger,
                lambda: views_of_ledger(ledger, log_id),
                lambda: {1: "events"},
                lambda _: case.backlog.log.frontier,
            )
        )  # fmt: skip
        asked = {"stream": "events", "lsns": lsns[3:]}
        assert where.delivered(asked)["delivered"] == 7

        def damage(txn: Transaction) -> None:
            held = get_lane(txn, key)
            counted = replace(held.checkpoint, dead_letters=3)
            put_lane(txn, key, held._replace(checkpoint=counted))
            bury(txn, 1, [hole])

        ledger.store.write(damage)
        answer = where.delivered(asked)
        assert (answer["delivered"], answer["next"]["verdict"]) == (0, "refused")
        assert answer["next"]["routes"]["events"]["fate"] == "lost"
        assert where.delivered({"stream": "events", "lsns": lsns[5:]})["delivered"] == 5


def test_so_many_may_be_unfinished(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = MemoryLedger()
    replays = Replays(ledger.store, bytes(16))
    replay = Replay(bytes(16), "r", 1, "s", "a", 0, 9, None, 7, 0, 9)
    replays.begin(replay)
    with pytest.raises(ReplayRefused, match="taken"):
        replays.begin(replay)
    monkeypatch.setattr("wald.limits.REPLAYS_MAX", 1)
    with pytest.raises(ReplayRefused, match="unfinished"):
        replays.begin(replace(replay, uuid=bytes([9] * 16)))


def test_a_share_of_one_key() -> None:
    share = KeyShare(until=9, key="a")
    assert list(share.picks(5, 4, ["a", "b", b"a", None])) == [0, 2]
    assert list(share.picks(5, 4, None)) == []
    assert share.tells_losses
    assert not share.is_whole


# --- the command, over a daemon's directory -----------------------------------------------------


def values_in(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as database:
        return [lsn for (lsn,) in database.execute("SELECT lsn FROM events ORDER BY lsn")]


def run(place: Path, *arguments: str, expect: int = 0) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "wald", "replay", *arguments, "--json"],
        env={**os.environ, "WALD_CONFIG": str(place / "wald.toml")},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == expect, done.stderr
    return dict(json.loads(done.stdout)) if done.stdout else {"stderr": done.stderr}


@pytest.mark.parametrize(
    ("said", "lines", "talk"),
    [
        (
            {"dry_run": True, "records": 3, "bytes": 1500, "class": "none", "notes": ["twice"]},
            ["LSN 1 to 9 of s -> a: 3 records, 1,500 bytes, none"],
            ["note: twice"],
        ),
        (
            {
                "complete": False, "delivered": 2, "refused": 1, "lost": 1, "report": "R.json",
                "refusals": [{"lsn": 4, "code": "X", "message": "no"}], "parked": None,
                "last_error": "down", "through_lsn": 5,
            },
            ["LSN 1 to 9 of s -> a: 2 delivered, 1 refused, 1 lost", "  LSN 4: X: no"],
            [
                "all of them: R.json",
                "not finished, up to LSN 5: down",
                "go on with: wald replay --resume ab",
                "its range stays in the log until then, or until it is given up: --forget",
            ],
        ),
    ],
    ids=["dry run", "interrupted"],
)  # fmt: skip
def test_what_the_command_prints(
    said: dict[str, Any], lines: list[str], talk: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    _print_range({"replay": "ab", "after": 0, "until": 9, "stream": "s", "sink": "a", **said})
    printed = capsys.readouterr()
    assert printed.out.splitlines() == lines
    assert printed.err.splitlines() == talk


def test_the_command_replays_what_a_daemon_delivered(place: Path) -> None:
    daemon = Daemon(place, config=CONFIG.format(place=place))
    options = ("--data-dir", str(daemon.data_dir))
    with daemon, wald.connect(daemon.socket) as producer:
        lsns = [each.lsn for each in producer.append_many("events", list(range(200))).accepted]
        producer.append_many("events", [1], ack="delivered")
        refused = run(place, *options, "--route", "events", "--from", "1", expect=69)
        assert "data.held" in refused["stderr"]
    said = run(place, *options, "--route", "events", "--from", "1h", "--dry-run")
    assert (said["records"], said["already_there"]) == (201, 201)
    assert "would refuse" in said["notes"][0]
    all_there = run(place, *options, "--route", "events", "--from", "1", expect=1)
    assert "replay.refused" in all_there["stderr"]
    wrong = run(place, *options, "--route", "events", "--from", "soon", expect=2)
    assert "is no time" in wrong["stderr"]
    assert "go with --route" in run(place, *options, "--from", "1", expect=2)["stderr"]
    end = f"{lsns[99]}"
    said = run(
        place, *options, "--route", "events", "--from", "1", "--until", end, "--sink", "again"
    )
    assert (said["delivered"], said["complete"]) == (100, True)
    assert values_in(place / "again.db") == lsns[:100]
    until = datetime.now().astimezone().isoformat()
    said = run(
        place, *options, "--route", "events", "--from", "2020-01-01", "--until", until,
        "--sink", "again", expect=1,
    )  # fmt: skip
    # what is there already would be refused as a duplicate: that is said before anything is sent
    assert "100 of 201 records are at the target already" in said["stderr"]
    assert f"has LSN {lsns[100]}" in said["stderr"]
    begin = str(lsns[100])
    run(place, *options, "--route", "events", "--from", begin, "--sink", "again")
    assert values_in(place / "again.db") == [*lsns, lsns[-1] + 1]


def test_killed_in_the_middle_it_goes_on_exactly_once(place: Path) -> None:
    daemon = Daemon(place, config=CONFIG.format(place=place))
    with daemon, wald.connect(daemon.socket) as producer:
        producer.append_many("events", list(range(20_000)), ack="delivered")
    arguments = ["--data-dir", str(daemon.data_dir), "--config", str(place / "wald.toml")]
    with subprocess.Popen(
        [
            sys.executable, "-m", "wald", "replay", *arguments,
            "--route", "events", "--from", "1", "--sink", "again",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        wait_until(lambda: _has_rows(place / "again.db"), "a batch is there")
        running.send_signal(signal.SIGKILL)
        running.communicate()
    with closing(open_ledger(FS, str(daemon.data_dir), _log_id(daemon))) as ledger:
        left = Replays(ledger.store, _log_id(daemon)).all()
    there = len(values_in(place / "again.db"))
    if not left:  # it was through before the signal came
        assert there == 20_000
        return
    assert there < 20_000
    # a daemon in between keeps the range
    with daemon, wald.connect(daemon.socket) as producer:
        producer.append("events", 1, ack="delivered")
    said = run(place, *arguments[:2], "--resume", left[0].uuid.hex())
    assert (said["complete"], said["delivered"]) == (True, 20_000)
    assert len(values_in(place / "again.db")) == 20_000


def _has_rows(path: Path) -> bool:
    try:
        return path.exists() and bool(values_in(path))
    except sqlite3.OperationalError:
        return False


def _log_id(daemon: Daemon) -> bytes:
    from wald.storage import identity

    known = identity.read(FS, str(daemon.data_dir))
    assert known is not None
    return known.log_id
