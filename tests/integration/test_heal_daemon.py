"""A real daemon whose SQLite file goes back in time, is deleted, or is another owner's."""

import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import wald
from tests.daemon import Daemon, wait_until
from tests.doorkeeper import short_directory

CONFIG = """
[sinks.db]
type = "sqlite"
path = "{directory}/x.db"
[routes.things-db]
stream = "things"
sink = "db"
batch = {{ max_age = "20ms" }}
"""


@pytest.fixture
def directory():
    with short_directory() as made:
        yield made


@pytest.fixture
def daemon(directory):
    with Daemon(directory, config=CONFIG.format(directory=directory)) as made:
        yield made


def append(daemon, count):
    with wald.connect(str(daemon.socket)) as producer:
        producer.append_many("things", [{"n": n} for n in range(count)])


def held(daemon):
    path = daemon.directory / "x.db"
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as reading:
            return reading.execute("SELECT lsn FROM things ORDER BY rowid").fetchall()
    except sqlite3.OperationalError:
        return []  # it is not there yet


def files(daemon):
    return [path for path in daemon.directory.glob("x.db*") if not path.name.endswith("-shm")]


def restore(daemon, copy):
    for path in daemon.directory.glob("x.db*"):
        path.unlink()
    for path in copy:
        shutil.copy(path, daemon.directory)


def status_of(daemon):
    return daemon.ask(op="status")["routes"]["things-db"]


def drained(daemon, records):
    daemon.command("wait", "--all", "--timeout", "30s")
    wait_until(lambda: len(held(daemon)) == records, f"{records} records")
    route = status_of(daemon)
    books = [route[name] for name in ("accepted", "delivered", "pending", "dead_letters", "lost")]
    assert books == [records, records, 0, 0, 0]


def test_a_target_that_goes_back_under_a_running_daemon_is_healed_and_status_says_so(daemon):
    append(daemon, 40)
    drained(daemon, 40)
    backup = daemon.directory / "backup"
    backup.mkdir()
    copy = [Path(shutil.copy(path, backup)) for path in files(daemon)]
    append(daemon, 60)
    drained(daemon, 100)
    restore(daemon, copy)
    append(daemon, 1)
    wait_until(lambda: len(held(daemon)) == 101, "everything is there again")
    drained(daemon, 101)
    said = daemon.command("status")
    assert re.search(
        r"things-db: target went back in time at \d\d:\d\d:\d\d: it held batch \d+, we had "
        r"delivered up to batch \d+\. Redelivered 60 records, done \d\d:\d\d:\d\d",
        said,
    ), said
    restore(daemon, [])
    append(daemon, 1)
    wait_until(lambda: len(held(daemon)) == 102, "everything is there again")
    assert "it held nothing of the route" in daemon.command("status")


def test_takeover_goes_on_with_a_route_that_another_owner_moved(daemon):
    append(daemon, 5)
    drained(daemon, 5)
    with closing(sqlite3.connect(daemon.directory / "x.db", isolation_level=None)) as database:
        database.execute("UPDATE wald_progress SET owner = zeroblob(8)")
    append(daemon, 5)
    wait_until(lambda: status_of(daemon)["parked"] == "diverged", "the route is parked")
    assert "wald route takeover things-db" in daemon.command("status")
    daemon.command("route", "takeover", "things-db", "--yes")
    drained(daemon, 10)
    assert re.search(r"taken over at [\d:]+: this directory goes on", daemon.command("status"))


def test_a_moved_directory_is_taken_over_before_its_daemon_is_started(directory):
    daemon = Daemon(directory, config=CONFIG.format(directory=directory))
    with daemon:
        append(daemon, 5)
        drained(daemon, 5)
    moved = directory / "moved"
    shutil.copytree(daemon.data_dir, moved)
    shutil.rmtree(daemon.data_dir)
    shutil.move(moved, daemon.data_dir)
    asked = ("takeover", "things-db", "--data-dir", str(daemon.data_dir))
    daemon.command("route", *asked, expect=2)  # nobody said yes
    daemon.command("route", *asked, "--yes")
    with daemon:
        append(daemon, 5)
        drained(daemon, 10)
