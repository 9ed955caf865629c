"""Drainer and target killed with a batch in flight, two hundred times: the books balance.

Four routes of one stream: SQLite, with a progress row, and three servers behind HTTP that remember
batches by their id and kill themselves before or behind their commit.
"""

import json
import os
import random
import shutil
import signal
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import psutil
import pytest

import wald
from tests.crash.test_kills import manifest_is_open
from tests.daemon import Daemon, wait_until
from tests.servers.web_server import WebServer, serving

KEYS = 7
PENDING_MAX = 1_000
TARGETS = 3
TARGET_DEATHS = 55  # of each
DRAINER_KILLS = 40
CONFIGURATION = """
[daemon]
data_dir = "{directory}/data"
[sinks.db]
type = "sqlite"
path = "{directory}/readings.db"
[routes.db]
stream = "readings"
sink = "db"
batch = {{ max_records = 20 }}
"""
WEB = """
[sinks.{name}]
type = "http"
preset = "webhook"
url = "{url}"
idempotency = {{ window = "1h" }}
[routes.{name}]
stream = "readings"
sink = "{name}"
batch = {{ max_records = 20 }}
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="wd"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def seed() -> int:
    return int(os.environ.get("WALD_TEST_SEED", random.SystemRandom().randrange(1 << 32)))


@pytest.fixture
def targets(directory: Path, seed: int) -> Iterator[list[WebServer]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(serving(directory / f"web{n}", seed + 1_000 * n, TARGET_DEATHS))
            for n in range(TARGETS)
        ]


def strike(daemon: Daemon) -> bool:
    """Kill the drainer if, with the process stopped, a manifest is open."""
    pid = daemon.pids().get("drain")
    if pid is None:
        return False
    try:
        process = psutil.Process(pid)
        process.suspend()
    except psutil.NoSuchProcess:
        return False
    if not manifest_is_open(daemon.data_dir):
        process.resume()
        return False
    process.send_signal(signal.SIGKILL)
    wait_until(lambda: daemon.pids().get("drain") not in (None, pid), "drain is back")
    return True


def pending(daemon: Daemon) -> int:
    routes = (daemon.ask(op="status") or {}).get("routes")
    assert isinstance(routes, dict)
    return max(int(route["pending"]) for route in routes.values())


def test_two_hundred_crashes_with_a_batch_in_flight_lose_and_double_nothing(
    directory: Path, targets: list[WebServer], seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(seed)
    started = time.monotonic()
    kills = sent = 0
    lsns: list[tuple[int, str]] = []
    configuration = CONFIGURATION.format(directory=directory)
    webs = enumerate(web.url for web in targets)
    configuration += "".join(WEB.format(name=f"web{n}", url=url) for n, url in webs)
    with Daemon(directory, config=configuration) as daemon:
        with wald.connect(str(daemon.socket), timeout=60.0) as producer:
            while kills < DRAINER_KILLS or min(web.deaths for web in targets) < TARGET_DEATHS:
                for key in (f"k{chance.randrange(KEYS)}" for _ in range(10)):
                    values = [f"{key}-{sent + n}" for n in range(20)]
                    results = producer.append_many("readings", values, key=key)
                    lsns += [(receipt.lsn, key) for receipt in results.accepted]
                    sent += len(values)
                if kills < DRAINER_KILLS:
                    kills += strike(daemon)
                wait_until(lambda: pending(daemon) < PENDING_MAX, "the routes keep up", 60.0)
        daemon.command("wait", "--all", "--timeout", "90s")
        routes = json.loads(daemon.command("status", "--json"))["routes"]
    deaths = sum(web.deaths for web in targets)
    with capsys.disabled():
        print(
            f"\ndelivery kill test: {sent:,} records, {kills} kills of the drainer with a manifest "
            f"open, {deaths} deaths of a target in a request, WALD_TEST_SEED={seed}, "
            f"{time.monotonic() - started:.1f} s",
            flush=True,
        )
    assert kills + deaths >= 200
    for route in routes.values():
        books = [route[name] for name in ("accepted", "delivered", "pending", "dead_letters")]
        assert books == [sent, sent, 0, 0]
    check(sqlite_rows(directory / "readings.db"), lsns)
    for web in targets:
        check([(int(name.split("-")[1]), str(key)) for name, key, _ in web.rows if name], lsns)


def sqlite_rows(database: Path) -> list[tuple[int, str]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute("SELECT lsn, key FROM readings ORDER BY rowid").fetchall()


def check(rows: list[tuple[int, str]], accepted: list[tuple[int, str]]) -> None:
    """A target holds every record once, each key in order."""
    assert sorted(rows) == accepted
    for key in {key for _, key in accepted}:
        assert [lsn for lsn, its in rows if its == key] == [
            lsn for lsn, its in accepted if its == key
        ]
