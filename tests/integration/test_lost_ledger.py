"""A ledger that is lost or older, at targets without a row: what is known is not sent again.

Real logs, ledgers and pages; ``tests/model/test_delivery_simulation.py`` plays the schedules.
"""

import json
import os
import random
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import wald
from tests.backlog import CLOCK, FS, Backlog
from tests.commands import call
from tests.daemon import Daemon, wait_until
from tests.logtools import SMALL
from wald import limits
from wald.config import RouteSettings
from wald.drainer.batch_desk import BatchDesk
from wald.drainer.frontier import FrontierBoard
from wald.drainer.opening import Doors, open_shared
from wald.drainer.process import run
from wald.drainer.released import ProgressPage
from wald.drainer.route_offline import OfflineRoutes
from wald.drainer.stands import StandsPage
from wald.model import Decision, ReplayClass, Systemic, SystemicKind
from wald.offline import dead_letter_desk
from wald.storage.ledger import StoreLedger
from wald.storage.lmdb_store import open_ledger
from wald.storage.progress import TwoSlotPage
from wald.testing.clock import ManualClock
from wald.testing.recording_sink import RecordingSink, RecordingTarget

ROOT = Path(__file__).parents[2]
WITHOUT_ROW = [
    (ReplayClass.MONOTONE, "hold"),
    (ReplayClass.KEYED, "hold"),
    (ReplayClass.WINDOW, "hold"),
    (ReplayClass.NONE, "hold"),
    (ReplayClass.NONE, "resend"),
]


class Site:
    """One route to a target of some class; a drainer is a call of ``deliver``."""

    def __init__(self, place: Path, replay: ReplayClass, on_unknown: str, lanes: int = 1) -> None:
        self.backlog = Backlog(place, "events", batch=4, options=SMALL)
        self.target = RecordingTarget(names=True, per_record=replay is not ReplayClass.WINDOW)
        self.target.refuses = lambda record: b"bad" in record.value
        self.replay = replay
        self.on_unknown = on_unknown
        self.lsns: list[int] = []
        self.bad: list[int] = []
        self.options(on_unknown=on_unknown, lanes=lanes)

    def options(self, **options: Any) -> None:
        settings = self.backlog.settings
        route: RouteSettings = replace(settings.routes["events"], **options)
        self.backlog.settings = replace(settings, routes={"events": route})

    def append(self, count: int, *, bad: tuple[int, ...] = ()) -> None:
        for number in range(count):
            lsns = self.backlog.append(b"bad" if number in bad else b"good")
            self.lsns += lsns
            self.bad += lsns if number in bad else []

    def deliver(self, patience_s: float = 20.0) -> dict[str, Any]:
        window_s = 3_600.0 if self.replay is ReplayClass.WINDOW else None
        make = lambda *_: RecordingSink(self.target, replay=self.replay, window_s=window_s)  # noqa: E731
        figures: dict[str, Any] = self.backlog.replay(make, patience_s=patience_s)["routes"][
            "events"
        ]
        return figures

    def deliver_in_vain(self) -> dict[str, Any]:
        """Make an attempt that does not end well."""
        made = len(self.target.attempts)
        while True:
            figures = self.deliver(patience_s=0.1)
            if len(self.target.attempts) > made:
                return figures

    def deliver_untold(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """Deliver, and end before it was told beside the ledger."""
        with monkeypatch.context() as killed:
            killed.setattr(StandsPage, "write", lambda *_: None)
            killed.setattr("wald.drainer.released.ProgressPage.write", lambda *_: None)
            return self.deliver()

    def put_back(self, copy: Path) -> None:
        shutil.rmtree(self.ledger_directory)
        shutil.copytree(copy, self.ledger_directory)

    @property
    def ledger_directory(self) -> Path:
        return Path(self.backlog.data_dir) / "ledger"

    def ledger(self) -> StoreLedger:
        return open_ledger(FS, self.backlog.data_dir, self.backlog.log.log_id)

    def purge(self, *lsns: int) -> int:
        with dead_letter_desk(self.backlog.data_dir) as desk:
            said = desk.ask("drain.dlq.purge", route="events", lsns=list(lsns))
        return int(said["letters"])

    def resolve(self, decision: Decision) -> None:
        ledger = self.ledger()
        desk = BatchDesk(ledger, ledger.births)
        for batch in desk.ask("drain.batch.list")["batches"]:
            desk.ask("drain.batch.resolve", batch=batch["batch"], decision=decision.value)
        ledger.close()


@pytest.fixture
def site(place: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    made = Site(place, *request.param)
    yield made
    made.backlog.close()


@pytest.mark.parametrize("site", WITHOUT_ROW, indirect=True)
@pytest.mark.parametrize("ledger", ["lost", "older"])
def test_what_was_delivered_is_not_sent_again_and_dead_letters_are_known(
    site: Site, ledger: str, tmp_path: Path
) -> None:
    site.append(20, bad=(5, 9))
    site.deliver()
    shutil.copytree(site.ledger_directory, tmp_path / "copy")
    site.append(20, bad=(3,))
    before = site.deliver()
    assert (before["delivered"], before["dead_letters"]) == (37, 3)
    shutil.rmtree(site.ledger_directory)
    if ledger == "older":
        shutil.copytree(tmp_path / "copy", site.ledger_directory)
    attempts = len(site.target.attempts)
    after = site.deliver()
    assert len(site.target.attempts) == attempts
    assert (after["delivered"], after["dead_letters"], after["parked"]) == (37, 3, None)
    held = site.ledger()
    assert [letter.lsn for letter in held.dead_letters(1)] == site.bad
    held.close()
    site.append(5)
    assert site.deliver()["delivered"] == 42
    assert sorted(site.target.lsns) == [lsn for lsn in site.lsns if lsn not in site.bad]


@pytest.mark.parametrize("site", [*WITHOUT_ROW, (ReplayClass.TRANSACTIONAL, "hold")], indirect=True)
@pytest.mark.parametrize("ledger", ["lost", "older"])
def test_what_was_purged_stays_purged_and_what_is_dead_again_does_not(
    site: Site, ledger: str, tmp_path: Path
) -> None:
    site.append(20, bad=(5, 9))
    site.deliver()
    shutil.copytree(site.ledger_directory, tmp_path / "copy")
    site.append(20, bad=(3,))
    site.deliver()
    gone = [site.bad[0], site.bad[2]]
    assert site.purge(*gone) == 2
    before = site.deliver()
    assert (before["delivered"], before["dead_letters"], before["purged"]) == (37, 1, 2)
    for _ in range(2):
        shutil.rmtree(site.ledger_directory)
        if ledger == "older":
            shutil.copytree(tmp_path / "copy", site.ledger_directory)
        after = site.deliver()
        assert (after["delivered"], after["dead_letters"], after["purged"]) == (37, 1, 2)
        held = site.ledger()
        assert [letter.lsn for letter in held.dead_letters(1)] == [site.bad[1]]
        held.close()
    site.append(5, bad=(2,))
    after = site.deliver()
    assert (after["delivered"], after["dead_letters"], after["purged"]) == (41, 2, 2)


@pytest.mark.parametrize(
    "site",
    [(ReplayClass.KEYED, "hold"), (ReplayClass.TRANSACTIONAL, "hold")],
    indirect=True,
    ids=["keyed", "transactional"],
)
def test_what_was_purged_by_a_clock_that_was_set_back_stays_purged(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.append(20, bad=(5, 9))
    site.deliver()
    shutil.copytree(site.ledger_directory, tmp_path / "copy")
    with monkeypatch.context() as set_back:
        set_back.setattr("wald.offline.SystemClock", partial(ManualClock, 1))
        assert site.purge(site.bad[0]) == 1
    site.deliver()
    site.put_back(tmp_path / "copy")
    after = site.deliver()
    assert (after["delivered"], after["dead_letters"], after["purged"]) == (18, 1, 1)


@pytest.mark.parametrize("site", WITHOUT_ROW, indirect=True)
def test_what_nobody_knows_is_held_where_it_may_double_and_sent_where_it_does_not(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.append(8)
    site.deliver()
    site.append(6)
    site.deliver_untold(monkeypatch)
    shutil.rmtree(site.ledger_directory)
    after = site.deliver()
    if site.replay in {ReplayClass.MONOTONE, ReplayClass.KEYED}:
        assert (after["delivered"], after["parked"]) == (14, None)
        assert site.target.lsns == site.lsns
    elif site.backlog.settings.routes["events"].on_unknown == "resend":
        assert site.target.lsns == [*site.lsns, *site.lsns[8:]]
    else:
        assert after["parked"] == "uncertain"
        assert after["last_error"].startswith("ledger-lost: ")
        assert site.target.lsns == site.lsns
        site.append(3)
        for _ in range(2):  # batches of four
            site.resolve(Decision.DELIVERED)
            after = site.deliver()
        assert (after["delivered"], after["parked"]) == (17, None)
        assert site.target.lsns == site.lsns


@pytest.mark.parametrize("site", WITHOUT_ROW[1:], indirect=True)
@pytest.mark.parametrize("ledger", ["lost", "older", "older, and asked"])
@pytest.mark.parametrize("took", [True, False])
def test_a_dead_letter_that_was_being_sent_again_is_sent_or_held(
    site: Site, ledger: str, tmp_path: Path, *, took: bool
) -> None:
    site.append(6, bad=(1, 4))
    site.deliver()
    good = [lsn for lsn in site.lsns if lsn not in site.bad]
    if ledger == "older":
        shutil.copytree(site.ledger_directory, tmp_path / "copy")
    held = site.ledger()
    assert held.ask_redrive(1, site.bad, "", CLOCK.wall_ns()) == 2
    held.close()
    if ledger == "older, and asked":
        shutil.copytree(site.ledger_directory, tmp_path / "copy")
    site.target.refuses = lambda _: False
    if took:
        site.target.lost_answers = 1_000
    else:
        site.target.down = Systemic(SystemicKind.UNREACHABLE, "away")
    assert site.deliver_in_vain()["dead_letters"] == 2
    sent = len(site.target.lsns) - len(good)
    assert bool(sent) is took
    site.target.lost_answers, site.target.down = 0, None
    shutil.rmtree(site.ledger_directory)
    if ledger != "lost":
        shutil.copytree(tmp_path / "copy", site.ledger_directory)
    after = site.deliver()
    if site.replay is ReplayClass.KEYED or site.on_unknown == "resend":
        assert set(site.target.lsns) == set(site.lsns)
        assert len(site.target.lsns) == 6 or site.replay is ReplayClass.NONE
    else:
        for _ in range(2):
            assert after["parked"] == "uncertain"
            assert after["last_error"].startswith("ledger-lost: ")
            assert len(site.target.lsns) == len(good) + sent
            after = site.deliver()
        site.resolve(Decision.DELIVERED if took else Decision.NOT_DELIVERED)
        after = site.deliver()
        assert sorted(site.target.lsns) == site.lsns
    assert (after["delivered"], after["dead_letters"], after["parked"]) == (6, 0, None)
    held = site.ledger()
    assert not held.dead_letters(1)
    held.close()


@pytest.mark.parametrize("site", [(ReplayClass.NONE, "hold", 3)], indirect=True)
def test_each_lane_goes_on_where_it_was_also_behind_a_change_of_lanes(site: Site) -> None:
    site.append(30)
    site.deliver()
    site.options(lanes=2)
    site.append(10)
    site.deliver()
    shutil.rmtree(site.ledger_directory)
    after = site.deliver()
    assert (after["delivered"], after["parked"]) == (40, None)
    site.append(4)
    assert site.deliver()["delivered"] == 44
    assert sorted(site.target.lsns) == site.lsns


@pytest.mark.parametrize("site", [(ReplayClass.TRANSACTIONAL, "hold", 4)], indirect=True)
def test_each_lane_goes_on_behind_its_row_without_ledger_and_progress(site: Site) -> None:
    """What is told of no route says nothing of how many lanes there were: the settings do."""
    site.append(40, bad=(3,))
    site.deliver()
    shutil.rmtree(site.ledger_directory)
    (Path(site.backlog.data_dir) / "progress").unlink()
    site.append(40)
    assert site.deliver()["delivered"] == 79
    assert sorted(site.target.lsns) == [lsn for lsn in site.lsns if lsn not in site.bad]


@pytest.mark.parametrize("site", [*WITHOUT_ROW, (ReplayClass.TRANSACTIONAL, "hold")], indirect=True)
@pytest.mark.parametrize("ledger", ["lost", "older"])
def test_a_change_of_lanes_begins_behind_all_that_was_sent_by_a_ledger_that_is_lost(
    site: Site, ledger: str, tmp_path: Path
) -> None:
    site.append(4)
    site.deliver()
    shutil.copytree(site.ledger_directory, tmp_path / "copy")
    site.append(16)
    site.deliver()
    shutil.rmtree(site.ledger_directory)
    if ledger == "older":
        shutil.copytree(tmp_path / "copy", site.ledger_directory)
    site.options(lanes=3)
    for lanes in (1, 3):  # the change ends while nobody waits for it, at the latest in the next
        after = site.deliver()
        assert (after["delivered"], after["parked"]) == (20, None), lanes
    site.append(6)
    assert site.deliver()["delivered"] == 26
    assert sorted(site.target.lsns) == site.lsns


@pytest.mark.parametrize("site", [(ReplayClass.KEYED, "hold")], indirect=True)
def test_the_counts_of_the_log_are_those_of_a_lane_that_has_all_since_the_birth_of_its_route(
    site: Site, tmp_path: Path
) -> None:
    site.append(5)
    site.deliver()
    shutil.copytree(site.ledger_directory, tmp_path / "copy")
    site.append(5)
    for lanes in (2, 2, 1, 1):
        site.options(lanes=lanes)
        site.deliver()
        site.append(30)
    before = site.deliver()["delivered"]
    for path in sorted((Path(site.backlog.data_dir) / "log").glob("seg-*.wal"))[:2]:
        path.unlink()  # as retirement does
    site.put_back(tmp_path / "copy")
    for _ in range(2):
        after = site.deliver(patience_s=2.0)
        assert (after["parked"], after["pending"]) == (None, 0)
        assert 5 < after["delivered"] <= before == len(site.lsns)
    site.append(3)
    site.deliver()
    assert sorted(site.target.lsns) == site.lsns


def in_doubt(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Append, and lose the answer of what was sent; nothing of it is told but the bound."""
    site.append(8)
    site.deliver()
    site.append(4)
    site.target.lost_answers = 1
    assert site.deliver_untold(monkeypatch)["parked"] == "uncertain"


HELD = [(ReplayClass.WINDOW, "hold"), (ReplayClass.NONE, "hold")]


@pytest.mark.parametrize("site", HELD, indirect=True)
def test_a_batch_that_an_older_ledger_has_open_is_held_though_that_one_has_no_doubt_of_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    site.append(8)
    site.deliver()
    site.append(4)
    site.target.down = Systemic(SystemicKind.UNREACHABLE, "away")
    assert site.deliver_in_vain()["delivered"] == 8
    shutil.copytree(site.ledger_directory, tmp_path / "copy")
    site.target.down = None
    assert site.deliver_untold(monkeypatch)["delivered"] == 12
    site.put_back(tmp_path / "copy")
    for _ in range(2):
        after = site.deliver()
        assert (after["delivered"], after["parked"]) == (8, "uncertain")
        assert after["last_error"].startswith("ledger-lost: ")
    site.resolve(Decision.DELIVERED)
    after = site.deliver()
    assert (after["delivered"], after["parked"]) == (12, None)
    assert site.target.lsns == site.lsns


@pytest.mark.parametrize("site", HELD[1:], indirect=True)
def test_a_person_is_asked_once_about_a_batch_that_an_older_ledger_held(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_doubt(site, monkeypatch)
    shutil.copytree(site.ledger_directory, tmp_path / "copy")
    site.resolve(Decision.DELIVERED)
    assert site.deliver_untold(monkeypatch)["delivered"] == 12
    site.put_back(tmp_path / "copy")
    assert site.deliver()["parked"] == "uncertain"
    del site.target.records[8:]
    site.resolve(Decision.NOT_DELIVERED)
    after = site.deliver()
    assert (after["delivered"], after["parked"]) == (12, None)
    assert site.target.lsns == site.lsns


@pytest.mark.parametrize("site", [(ReplayClass.NONE, "hold")], indirect=True)
def test_a_drainer_that_ends_before_it_knows_the_routes_forgets_nothing_that_was_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_doubt(site, monkeypatch)
    stop = threading.Event()
    stop.set()
    make = lambda *_: RecordingSink(site.target, replay=site.replay)  # noqa: E731
    chance = random.Random(1)
    settings = site.backlog.settings
    run(settings, make_sink=make, fs=FS, clock=CLOCK, chance=chance, ready=print, stop=stop)
    shutil.rmtree(site.ledger_directory)
    assert site.deliver()["parked"] == "uncertain"
    assert site.target.lsns == site.lsns


@pytest.mark.parametrize("site", [(ReplayClass.NONE, "hold")], indirect=True)
def test_what_may_have_been_sent_ends_where_the_log_does_and_not_where_a_hint_does(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_doubt(site, monkeypatch)
    shutil.rmtree(site.ledger_directory)
    (Path(site.backlog.data_dir) / "ingest.page").unlink()  # it was not flushed
    make = lambda *_: RecordingSink(site.target, replay=site.replay)  # noqa: E731
    doors = Doors(site.backlog.settings, make, FS, CLOCK, random.Random(1))
    with ExitStack() as stack:  # as a drainer does that begins before ingest, behind a power cut
        progress = ProgressPage(FS, site.backlog.data_dir)
        stack.callback(progress.close)
        shared = open_shared(
            doors, site.backlog.log.log_id, FrontierBoard(), lambda: 1, progress, stack
        )
        assert shared.told is not None
        assert shared.told.unsure_through(1, limits.LSN_MAX) == site.lsns[-1]


@pytest.mark.parametrize("site", [(ReplayClass.KEYED, "hold")], indirect=True)
@pytest.mark.parametrize("ledger", ["lost", "older"])
def test_a_route_that_was_held_back_stays_so_without_its_ledger(
    site: Site, ledger: str, tmp_path: Path
) -> None:
    site.append(4)
    site.deliver()
    shutil.copytree(site.ledger_directory, tmp_path / "copy")
    offline(site, "drain.pause")
    site.append(4)
    site.deliver()
    for _ in range(2):  # the second time nothing runs in between
        shutil.rmtree(site.ledger_directory)
        if ledger == "older":
            shutil.copytree(tmp_path / "copy", site.ledger_directory)
        assert site.deliver()["state"] == "paused"
        assert site.target.lsns == site.lsns[:4]
    shutil.copytree(site.ledger_directory, tmp_path / "held")
    offline(site, "drain.resume")
    if ledger == "older":  # than the resumption
        site.deliver()
        site.append(4)
    shutil.rmtree(site.ledger_directory)
    if ledger == "older":
        shutil.copytree(tmp_path / "held", site.ledger_directory)
    site.deliver()
    assert site.target.lsns == site.lsns


@pytest.mark.parametrize("site", WITHOUT_ROW[2:4], indirect=True)
def test_what_came_behind_the_loss_is_not_unsure_though_a_lane_was_held_back_over_a_restart(
    site: Site,
) -> None:
    site.append(4)
    site.deliver()
    offline(site, "drain.pause")
    shutil.rmtree(site.ledger_directory)
    assert site.deliver()["state"] == "paused"  # the loss is noticed; the lane is where it was
    site.append(4)
    assert site.deliver()["state"] == "paused"
    offline(site, "drain.resume")
    after = site.deliver()
    assert (after["delivered"], after["parked"]) == (8, None)
    assert site.target.lsns == site.lsns


def offline(site: Site, op: str) -> None:
    held = site.ledger()
    desk = OfflineRoutes(FS, site.backlog.data_dir, held, CLOCK, dict, random.Random(1))
    desk.ask(op, route="events")
    held.close()


CONFIGURATION = """
[daemon]
data_dir = "{directory}/data"
[sinks.lines]
type = "lines"
path = "{directory}/out"
[routes.things]
stream = "things"
sink = "lines"
on_unknown = "hold"
batch = {{ max_records = 10, max_age = "10ms" }}
"""


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="wl"))
    info = path / "site" / "lines-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lines\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[wald.sinks]\nlines = tests.line_sink:make\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(path / "site"), str(ROOT)]))
    yield path
    shutil.rmtree(path)


def told(daemon: Daemon) -> int:
    """Return up to where the page beside the ledger says that the lane is finished."""
    page = TwoSlotPage.open(
        FS,
        str(daemon.data_dir / "progress"),
        offset=2 * limits.PROGRESS_SLOT_BYTES,
        slot_bytes=limits.PROGRESS_SLOT_BYTES,
        write=False,
    )
    said: Any = page.read() or {}
    page.close()
    rows = said["stands"].get("1", [])
    return int(rows[0][2]) if rows else 0


def test_a_daemon_without_its_ledger_asks_a_person_for_what_it_cannot_know(directory: Path) -> None:
    def written() -> list[int]:
        return [int(line) for line in (directory / "out").read_text().split()]

    def route() -> dict[str, Any]:
        status: Any = daemon.ask(op="status") or {}
        return dict(status["routes"]["things"])

    with Daemon(directory, config=CONFIGURATION.format(directory=directory)) as daemon:
        with wald.connect(str(daemon.socket)) as producer:
            first = producer.append_many("things", [*range(50), "refused", *range(50)])
            daemon.command("wait", "things", "--timeout", "30s")
            wait_until(lambda: told(daemon) == first.accepted[-1].lsn, "it was told")
            assert "asked for anew" not in call("status", socket=daemon.socket).stderr
            (directory / "out.dies").touch()
            last = producer.append_many("things", list(range(5)))
        wait_until(lambda: len(written()) == 105, "the process died behind an attempt")
    (directory / "out.dies").unlink()
    shutil.rmtree(daemon.data_dir / "ledger")
    with daemon:
        wait_until(lambda: route()["parked"] == "uncertain", "what nobody knows is held")
        figures = route()
        assert (figures["delivered"], figures["dead_letters"]) == (100, 1)
        assert "ledger-lost" in daemon.command("batch", "list")
        said = call("status", socket=daemon.socket).stderr
        assert "asked for anew: wald dlq redrive, wald replay" in said
        (letter,) = json.loads(daemon.command("dlq", "list", "--json"))["dead_letters"]
        assert letter["lsn"] == first.accepted[50].lsn
        (held,) = json.loads(daemon.command("batch", "list", "--json"))["batches"]
        daemon.command("batch", "resolve", held["batch"], "--delivered")
        with wald.connect(str(daemon.socket)) as producer:
            more = producer.append_many("things", list(range(5)))
        daemon.command("wait", "things", "--timeout", "30s")
        assert route()["delivered"] == 110
    sent = [receipt.lsn for one in (first, last, more) for receipt in one.accepted]
    assert written() == [lsn for lsn in sent if lsn != letter["lsn"]]
