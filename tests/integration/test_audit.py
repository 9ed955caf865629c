"""The books proven: balanced beside running lanes, and each planted difference named."""

import json
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

import wald
from tests.commands import call
from tests.daemon import Daemon

CONFIG = """
[sinks.a]
type = "sqlite"
path = "{place}/a.db"
[routes.events]
stream = "events"
sink = "a"
batch = {{ max_age = "20ms", max_records = 100 }}
[routes.lanes]
stream = "others"
sink = "a"
lanes = 3
batch = {{ max_age = "20ms" }}
"""


@pytest.fixture
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="w"))
    yield path
    rmtree(path)


def daemon_in(place: Path) -> Daemon:
    return Daemon(place, config=CONFIG.format(place=place))


def audit(daemon: Daemon, *arguments: str, expect: int = 0) -> dict[str, dict[str, Any]]:
    said = json.loads(daemon.command("audit", *arguments, "--json", expect=expect))
    assert said["balanced"] == (expect == 0)
    return {each["route"]: each for each in said["routes"]}


def change(place: Path, *statements: str) -> None:
    with closing(sqlite3.connect(place / "a.db", timeout=20)) as target, target:
        for statement in statements:
            target.execute(statement)


def refuse_bad(place: Path) -> None:
    change(
        place,
        "CREATE TABLE events (log_id BLOB NOT NULL, lsn INTEGER NOT NULL, key, time TEXT NOT NULL,"
        " headers TEXT, value, PRIMARY KEY (log_id, lsn))",
        "CREATE TRIGGER no_bad BEFORE INSERT ON events WHEN new.key = 'bad' "
        "BEGIN SELECT RAISE(ABORT, 'no'); END",
    )


def test_the_books_balance_for_all_time_and_record_by_record(place: Path) -> None:
    refuse_bad(place)
    with daemon_in(place) as daemon, wald.connect(daemon.socket) as producer:
        keys: list[str | bytes | None] = ["bad" if number % 50 == 7 else "good"
                                          for number in range(300)]  # fmt: skip
        producer.append_many("events", list(range(300)), keys=keys)
        producer.append_many("others", list(range(90)), key=str)
        daemon.command("wait", "--all")
        found = audit(daemon)
        events = found["events"]
        books = ("accepted", "delivered", "dead_letters", "purged", "pending", "lost")
        assert [events[name] for name in books] == [300, 294, 6, 0, 0, 0]
        assert (events["examined"], events["compared"]) == (300, 300)
        assert found["lanes"]["delivered"] == found["lanes"]["compared"] == 90
        daemon.command("dlq", "purge", "--route", "events", "--yes")
        events = audit(daemon, "--route", "events")["events"]
        assert [events[name] for name in books] == [300, 294, 0, 6, 0, 0]
        text = daemon.command("audit", "--route", "events")
        assert "300 accepted = 294 delivered + 0 pending + 0 dead letters + 6 purged" in text
        assert "balanced" in text
        assert "audit: there is no" not in daemon.command("audit", "--route", "x", expect=2)


def test_what_is_pending_is_counted_in_the_log(place: Path) -> None:
    (place / "a.db").mkdir()
    with daemon_in(place) as daemon, wald.connect(daemon.socket) as producer:
        producer.append_many("others", list(range(40)), key=str)
        (place / "a.db").rmdir()
        daemon.command("wait", "--all")
        (place / "a.db").rename(place / "away.db")
        (place / "a.db").mkdir()
        producer.append_many("others", list(range(25)), key=str)
        # the target cannot be asked: that is said, and no verdict is given
        assert "sink.failed" in daemon_error(daemon, "audit")
        (place / "a.db").rmdir()
        (place / "away.db").rename(place / "a.db")
        daemon.command("wait", "--all")
        assert audit(daemon)["lanes"]["delivered"] == 65


def daemon_error(daemon: Daemon, *arguments: str) -> str:
    done = call(*arguments, socket=daemon.socket)
    assert done.returncode != 0
    return done.stderr


DIFFERENCES: list[tuple[str, Callable[[Path, list[int]], None], str, int]] = [
    (
        "missing",
        lambda place, lsns: change(place, f"DELETE FROM events WHERE lsn = {lsns[5]}"),
        "missing",
        5,
    ),
    (
        "extra",
        lambda place, lsns: change(
            place,
            "DROP TRIGGER no_bad",
            f"INSERT INTO events SELECT log_id, {lsns[7]}, key, time, headers, value FROM events"
            f" WHERE lsn = {lsns[0]}",
        ),
        "extra",
        7,
    ),
    (
        "doubled",
        lambda place, lsns: change(
            place,
            "ALTER TABLE events RENAME TO before",
            "CREATE TABLE events (log_id BLOB, lsn INTEGER, key, time TEXT, headers, value)",
            "INSERT INTO events SELECT * FROM before",
            f"INSERT INTO events SELECT * FROM before WHERE lsn = {lsns[9]}",
        ),
        "doubled",
        9,
    ),
]


@pytest.mark.parametrize(
    ("plant", "kind", "index"), [row[1:] for row in DIFFERENCES], ids=[r[0] for r in DIFFERENCES]
)
def test_each_difference_at_the_target_is_named(
    place: Path, plant: Callable[[Path, list[int]], None], kind: str, index: int
) -> None:
    refuse_bad(place)
    with daemon_in(place) as daemon, wald.connect(daemon.socket) as producer:
        keys: list[str | bytes | None] = ["bad" if number == 7 else "good" for number in range(30)]
        results = producer.append_many("events", list(range(30)), keys=keys)
        lsns = [each.lsn for each in results.accepted]
        daemon.command("wait", "--all")
        plant(place, lsns)
        events = audit(daemon, expect=1)["events"]
        assert [events[each] for each in ("missing", "extra", "doubled")] == [
            int(each == kind) for each in ("missing", "extra", "doubled")
        ]
        (named,) = events["named"]
        assert (named["kind"], named["lsn"]) == (kind, lsns[index])
        text = daemon.command("audit", expect=1)
        assert "DOES NOT BALANCE" in text
        assert f"{kind}: LSN {lsns[index]}" in text


def test_an_audit_beside_running_lanes_finds_nothing(place: Path) -> None:
    with daemon_in(place) as daemon, wald.connect(daemon.socket) as producer:
        producer.append_many("events", list(range(2_000)))
        daemon.command("wait", "--all")
        ended = threading.Event()

        def append() -> None:
            with wald.connect(daemon.socket) as other:
                for _ in range(200):
                    other.append_many("events", list(range(20)), ack="delivered")
                    if ended.is_set():
                        return

        appending = threading.Thread(target=append)
        appending.start()
        try:
            for _ in range(3):
                assert audit(daemon)["events"]["examined"] >= 2_000
        finally:
            ended.set()
            appending.join()
        daemon.command("wait", "--all")
        events = audit(daemon)["events"]
        assert events["accepted"] == events["delivered"] == events["compared"]


class Nameless:
    """A sink that can be asked, of a target whose rows name no record."""

    def holds(self, log_id: bytes, lsns: object) -> None:
        """Tell nothing."""


@pytest.mark.parametrize(
    ("sink", "why"), [(object(), "of this type"), (Nameless(), "columns wald_log_id and wald_lsn")]
)
def test_why_a_target_is_not_compared_is_said(sink: Any, why: str) -> None:
    from wald.drainer.auditing import RouteAudit, _Target

    found = RouteAudit("r")
    assert _Target(found, bytes(16), sink).holds([1]) is None
    assert why in found.cannot_tell


def test_a_ledger_that_counts_wrong_is_found(place: Path) -> None:
    from wald.drainer.auditing import RouteAudit

    short = RouteAudit("r", accepted=10, delivered=8, lost=2)
    short.conclude()
    assert short.problems == ["2 accepted records are nowhere: lost"]
    much = RouteAudit("r", accepted=10, delivered=11, surplus=1, dead_letters=2, letters=1)
    much.conclude()
    assert len(much.problems) == 2
    assert not much.balanced
    assert place.is_dir()
