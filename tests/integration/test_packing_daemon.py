"""A real daemon whose route is held back: the log is used again, its records wait, packed."""

import json
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import wald
from tests.daemon import Daemon, wait_until
from wald import limits
from wald.core.frame import BLOCK_HEADER_BYTES
from wald.drainer.frontier import read_hint
from wald.storage.tail import segment_path
from wald.system import PosixFileSystem

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
NUMBERED = [b"%06d" % number for number in range(40)]
LARGE = b"x" * 1_000_000


def disk(daemon: Daemon) -> dict[str, int]:
    said: dict[str, int] = json.loads(daemon.command("status", "--json"))["disk"]
    return said


def ready_pid(daemon: Daemon) -> int | None:
    """The process that delivers, once it does."""
    said: dict[str, Any] = json.loads(daemon.command("status", "--json"))["processes"]["drain"]
    return said["pid"] if said["ready"] else None


def held_back(daemon: Daemon) -> None:
    """Let the records of a paused route be packed, and the log go that held them."""
    with wald.connect(daemon.socket) as producer:
        producer.append("small", b"before")
        daemon.command("wait", "small")
        daemon.command("route", "pause", "small")
        for value in NUMBERED:
            producer.append("small", value)
            producer.append("large", LARGE)
    daemon.command("wait", "large")
    segments = Path(daemon.data_dir, "log")
    wait_until(lambda: disk(daemon)["packed_files"] > 0, "the paused route is packed", 60.0)
    # the frontier's own, the one that is prepared, and at most one that just went
    wait_until(lambda: len(list(segments.glob("*.wal"))) <= 3, "the log retires", 60.0)


def damage_snapshot(daemon: Daemon) -> None:
    """Flip a bit of what stands at the head of the newest segment, and tells of all before."""
    hint = read_hint(PosixFileSystem(), str(daemon.data_dir))
    assert hint is not None
    with Path(segment_path(str(daemon.data_dir), hint.segment)).open("r+b") as file:
        at = limits.ALIGNMENT_MIN_BYTES + BLOCK_HEADER_BYTES + 8
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def delivered(place: Path) -> list[bytes]:
    with closing(sqlite3.connect(place / "x.db")) as target:
        rows = target.execute("SELECT value FROM small ORDER BY lsn").fetchall()
    return [row[0] for row in rows]


def test_a_paused_route_pins_only_its_own_records(place: Path) -> None:
    with Daemon(place, config=CONFIG.format(path=place / "x.db")) as daemon:
        held_back(daemon)
        said = disk(daemon)
        assert said["packed_bytes"] < 100_000
        assert "packed" in daemon.command("status", "-v")
        daemon.command("log", "scrub", "--max-rate", "1GiB")
        daemon.command("route", "resume", "small")
        daemon.command("wait", "small")
        assert delivered(place) == [b"before", *NUMBERED]


def test_packed_records_outlive_a_damaged_list_of_the_routes_that_need_them(place: Path) -> None:
    """A bit flips in what tells of all routes, and the drainer begins anew: none seems to be."""
    with Daemon(place, config=CONFIG.format(path=place / "x.db")) as daemon:
        held_back(daemon)
        damage_snapshot(daemon)
        before = ready_pid(daemon)
        assert before is not None
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: ready_pid(daemon) not in {None, before}, "it is back", 60.0)
        daemon.command("route", "resume", "small")
        daemon.command("wait", "small")
        assert delivered(place) == [b"before", *NUMBERED]
        wait_until(lambda: disk(daemon)["packed_files"] == 0, "what was delivered goes", 60.0)
