"""A quota with a real drainer: what it delivers makes room, whoever was killed meanwhile."""

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import wald
from tests.daemon import Daemon, wait_until

CONFIG = """
[streams.s]
quota_records = 400
[sinks.db]
type = "sqlite"
path = "{place}/x.db"
[sinks.other]
type = "sqlite"
path = "{place}/y.db"
[routes.fast]
stream = "s"
sink = "db"
batch = {{ max_age = "20ms" }}
[routes.slow]
stream = "s"
sink = "other"
batch = {{ max_age = "20ms" }}
[routes.beside]
stream = "beside"
sink = "db"
"""


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    path = Path(tempfile.mkdtemp(prefix="w"))
    try:
        with Daemon(path, config=CONFIG.format(place=path)) as running:
            yield running
    finally:
        shutil.rmtree(path)


def fill(producer: wald.Producer, stored: list[int] | None = None) -> None:
    """Append until there is no room."""
    while True:
        try:
            results = producer.append_many("s", [b"v"] * 50, timeout=3)
        except wald.OutcomeUnknown as slow:  # the machine is
            settled = producer.settle(slow, timeout=60)
            assert isinstance(settled, wald.Results)
            results = settled
        count = len(results.accepted)
        if stored is not None:
            stored.append(count)


def is_back(daemon: Daemon, role: str, before: int) -> Callable[[], bool]:
    return lambda: daemon.pids().get(role) not in (None, before)


def quota(daemon: Daemon) -> dict[str, Any]:
    answer: Any = daemon.ask(op="status")
    found: dict[str, Any] = answer["quotas"].get("s", {})
    return found


def test_the_slowest_route_fills_the_quota_and_what_it_delivers_makes_room(daemon: Daemon) -> None:
    with wald.connect(str(daemon.socket), timeout=60) as producer:
        for _ in range(10):
            producer.append_many("s", [b"v"] * 100)  # 1,000: delivery makes room meanwhile
        daemon.command("wait", "--all", "--timeout", "60s")
        daemon.command("route", "pause", "slow")
        with pytest.raises(wald.Backpressure, match=r"at the route 'slow'|asks for a pause"):
            fill(producer)
        assert producer.append("beside", b"v", timeout=5).lsn > 0
        wait_until(lambda: quota(daemon).get("full") is True, "status says that it is full")
        told = daemon.command("status")
        assert "s: quota 1" in told
        assert "FULL: producers are refused until that route delivers" in told
        assert "door: " in daemon.command("status", "-v")
        # neither a new drainer nor a new ingest forgets it
        for role in ("drain", "ingest"):
            before = daemon.pids()
            os.kill(before[role], signal.SIGKILL)
            wait_until(is_back(daemon, role, before[role]), f"there is a new {role}")
            with (
                wald.connect(str(daemon.socket), timeout=4) as other,
                pytest.raises(wald.Backpressure),
            ):
                other.append("s", b"v")
        daemon.command("route", "resume", "slow")
        lsn = producer.append("s", b"v").lsn  # by itself, once there is room
        daemon.command("wait", "--all", "--timeout", "60s")
    said = json.loads(daemon.command("status", "--json"))
    assert {route["pending"] for route in said["routes"].values()} == {0}
    assert said["frontier_lsn"] >= lsn


def test_a_dead_drainer_makes_nothing_unbounded(daemon: Daemon) -> None:
    with wald.connect(str(daemon.socket), timeout=5) as producer:
        producer.append_many("s", [b"v"] * 100)
        daemon.command("wait", "--all", "--timeout", "60s")
        os.kill(daemon.pids()["drain"], signal.SIGSTOP)
        try:
            stored: list[int] = []
            with pytest.raises(wald.Backpressure):
                fill(producer, stored)
            assert 300 <= sum(stored) <= 450
        finally:
            for child in daemon.family:
                if child.is_running() and child.status() == "stopped":
                    child.send_signal(signal.SIGCONT)
        assert producer.append("s", b"v", timeout=60).lsn > 0


def test_a_file_is_stored_whole_and_once_through_a_quota(daemon: Daemon, tmp_path: Path) -> None:
    """A request of ``--once`` that finds no room keeps its sequence: its lines have their place."""
    lines = tmp_path / "lines.txt"
    lines.write_text("".join(f"line {number}\n" for number in range(3_000)))
    arguments = ["s", str(lines), "--format", "lines", "--once", "job", "--json"]
    said = json.loads(daemon.command("append", *arguments))
    assert (said["accepted"], said["refused"]) == (3_000, [])
    again = json.loads(daemon.command("append", *arguments))
    assert again["accepted"] == 3_000  # of both runs together: nothing was stored twice
    daemon.command("wait", "--all", "--timeout", "60s")
    answer: Any = daemon.ask(op="status")
    assert answer["streams"]["s"]["records"] == 3_000
    assert answer["refused"].get("backpressure", 0) >= 1
