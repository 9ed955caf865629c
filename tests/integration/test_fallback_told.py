"""Records that went to a fallback: told where they are, and audited at the target that has them."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

import wald
from tests.daemon import Daemon, wait_until

CONFIG = """
[sinks.own]
type = "sqlite"
path = "{place}/own.db"
[sinks.spare]
type = "sqlite"
path = "{place}/spare.db"
[routes.events]
stream = "events"
sink = "own"
fallback = "spare"
fallback_after = "1s"
batch = {{ max_age = "20ms" }}
"""


@pytest.fixture
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="w"))
    yield path
    rmtree(path)


def route_of(daemon: Daemon, lsn: int) -> dict[str, Any]:
    said = json.loads(daemon.command("status", "--lsn", str(lsn), "--json"))
    route: dict[str, Any] = said["routes"]["events"]
    return route


def test_what_a_fallback_took_is_told_and_audited_there(place: Path) -> None:
    own, away = place / "own.db", place / "away.db"
    config = CONFIG.format(place=place)
    with Daemon(place, config=config) as daemon, wald.connect(daemon.socket) as producer:
        first = producer.append("events", "first", ack="delivered", timeout=20).lsn
        own.rename(away)
        own.mkdir()
        stuck = producer.append("events", "stuck").lsn  # its batch may have reached the own target

        def has_turned() -> bool:
            route = json.loads(daemon.command("status", "--json"))["routes"]["events"]
            return bool(route["fallback"])

        wait_until(has_turned, "the fallback at work", 20)
        spared = producer.append("events", "spared", ack="delivered", timeout=20).lsn
        own.rmdir()
        away.rename(own)
        producer.wait(wald.Receipt("events", stuck, "durable", stuck), timeout=40)

        at_own, at_spare = route_of(daemon, first), route_of(daemon, spared)
        assert (at_own["fate"], at_own["sink"], at_own["is_fallback"]) == (
            "delivered",
            "own",
            False,
        )
        assert (at_spare["fate"], at_spare["sink"]) == ("delivered", "spare")
        assert "at the fallback spare" in daemon.command("status", "--lsn", str(spared))

        (books,) = json.loads(daemon.command("audit", "--json"))["routes"]
        assert [books[name] for name in ("accepted", "delivered", "compared")] == [3, 3, 3]
        assert (books["balanced"], books["cannot_tell"], books["missing"]) == (True, "", 0)
