"""What the how-to of two targets shows: one append, two targets, one of them down."""

import json
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from shutil import rmtree

import pytest

import wald
from tests.daemon import Daemon

HOW_TO = (Path(__file__).parents[2] / "docs/how-to/two-targets.md").read_text()


@pytest.fixture
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="w"))
    yield path
    rmtree(path)


def shown(language: str) -> str:
    (block,) = re.findall(rf"```{language}\n(.*?)```", HOW_TO, re.DOTALL)
    return str(block)


def rows(path: Path, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as target:
        return target.execute(statement).fetchall()


def pending(daemon: Daemon, route: str) -> object:
    return json.loads(daemon.command("status", "--json"))["routes"][route]["pending"]


def test_the_shown_configuration_writes_a_booking_to_both_and_neither_waits_for_the_other(
    place: Path,
) -> None:
    desk, analytics = place / "bookings.db", place / "events.db"
    with closing(sqlite3.connect(desk)) as target:
        target.execute("CREATE TABLE bookings (ref TEXT PRIMARY KEY, seats INTEGER NOT NULL)")
    config = re.sub(r'"/srv/\w+/(\w+\.db)"', rf'"{place}/\1"', shown("toml"))
    analytics.mkdir()  # it is down
    with Daemon(place, config=config) as daemon, wald.connect(daemon.socket) as producer:
        exec(shown("python"), {"producer": producer})
        daemon.command("wait", "bookings-desk")
        assert rows(desk, "SELECT * FROM bookings") == [("b-77", 2)]
        assert pending(daemon, "bookings-analytics") == 1
        analytics.rmdir()  # it is back
        daemon.command("wait", "--all")
        assert rows(analytics, "SELECT key, value FROM bookings") == [
            ("b-77", '{"ref":"b-77","seats":2}')
        ]
        assert rows(desk, "SELECT * FROM bookings") == [("b-77", 2)]
