"""A record that is urgent waits for no others, from the client to the target."""

import json
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from shutil import rmtree

import pytest

import wald
from tests.daemon import Daemon, wait_until

CONFIG = """
[sinks.a]
type = "sqlite"
path = "{place}/a.db"
[routes.events]
stream = "events"
sink = "a"
batch = {{ max_age = "10min" }}
"""


@pytest.fixture
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="w"))
    yield path
    rmtree(path)


def test_an_urgent_record_takes_with_it_what_waits_for_a_full_batch(place: Path) -> None:
    with (
        Daemon(place, config=CONFIG.format(place=place)) as daemon,
        wald.connect(daemon.socket) as producer,
    ):
        waiting = producer.append("events", 1)
        with pytest.raises(wald.DeliveryTimeout):
            producer.wait(waiting, "delivered", timeout=0.5)
        producer.append("events", 2, urgent=True, ack="delivered", timeout=20)
        with closing(sqlite3.connect(place / "a.db")) as target:
            values = target.execute("SELECT value FROM events ORDER BY lsn").fetchall()
        assert values == [("1",), ("2",)]


SHARED = """
[sinks.a]
type = "sqlite"
path = "{place}/a.db"
[routes.old]
stream = "old"
sink = "a"
goal_age = "100ms"
live_share = "{share}"
batch = {{ max_records = 20, adaptive = false, max_age = "10ms" }}
[routes.live]
stream = "live"
sink = "a"
goal_age = "10min"
batch = {{ max_age = "10ms" }}
"""


def pending(daemon: Daemon) -> int:
    return int(json.loads(daemon.command("status", "--json"))["routes"]["old"]["pending"])


def drained_in_s(place: Path, share: str) -> float:
    """Let a backlog of 20 batches, 100 ms each, drain beside a live route; how long it took."""
    place.mkdir()
    with (
        Daemon(place, config=SHARED.format(place=place, share=share)) as daemon,
        wald.connect(daemon.socket) as producer,
    ):
        producer.append("live", 0, ack="delivered", timeout=30)
        daemon.command("route", "pause", "old")
        producer.append_many("old", list(range(400)))
        daemon.command("route", "fault", "old", "--slow", "100ms", "--for", "10min")
        producer.append("live", 1, ack="delivered", timeout=30)
        wait_until(lambda: pending(daemon) == 400, "figures tell all of the backlog")
        daemon.command("route", "resume", "old")
        began = time.monotonic()
        while pending(daemon):
            producer.append("live", 2, ack="delivered", timeout=30)
        return time.monotonic() - began


def test_a_backlog_rests_for_the_share_that_it_leaves_to_a_live_route(place: Path) -> None:
    # all of the time takes 2 s; a share of three quarters leaves it one quarter, less what it has
    # finished before the live one was seen
    took_s = drained_in_s(place / "shared", "75%")
    assert took_s > 5.0
