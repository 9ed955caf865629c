"""A real daemon whose route is held back: the log is used again, its records wait, packed."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import wald
from tests.daemon import Daemon, wait_until

CONFIG = """
[daemon]
segment_bytes = "16MiB"

[daemon.retain]
after_delivery = "0s"
max_bytes = "0B"

[sinks.db]
type = "sqlite"
path = "{path}"

[routes.small]
stream = "small"
sink = "db"

[routes.large]
stream = "large"
sink = "db"
"""
RECORDS = 40
LARGE = b"x" * 1_000_000


def disk(daemon: Daemon) -> dict[str, int]:
    said: dict[str, int] = json.loads(daemon.command("status", "--json"))["disk"]
    return said


def test_a_paused_route_pins_only_its_own_records(place: Path) -> None:
    with Daemon(place, config=CONFIG.format(path=place / "x.db")) as daemon:
        with wald.connect(daemon.socket) as producer:
            producer.append("small", b"before")
            daemon.command("wait", "small")
            daemon.command("route", "pause", "small")
            for number in range(RECORDS):
                producer.append("small", b"%06d" % number)
                producer.append("large", LARGE)
        daemon.command("wait", "large")
        segments = Path(daemon.data_dir, "log")
        wait_until(lambda: disk(daemon)["packed_files"] > 0, "the paused route is packed", 60.0)
        # the frontier's own, the one that is prepared, and at most one that just went
        wait_until(lambda: len(list(segments.glob("*.wal"))) <= 3, "the log retires", 60.0)
        said = disk(daemon)
        assert said["packed_bytes"] < 100_000
        assert "packed" in daemon.command("status", "-v")
        daemon.command("log", "scrub", "--max-rate", "1GiB")
        daemon.command("route", "resume", "small")
        daemon.command("wait", "small")
        with closing(sqlite3.connect(place / "x.db")) as target:
            rows = target.execute("SELECT value FROM small ORDER BY lsn").fetchall()
        found = [row[0] for row in rows]
        assert found == [b"before", *(b"%06d" % number for number in range(RECORDS))]
