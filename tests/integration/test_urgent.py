"""A record that is urgent waits for no others, from the client to the target."""

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from shutil import rmtree

import pytest

import wald
from tests.daemon import Daemon

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
