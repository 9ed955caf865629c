"""The way back: old, new and old again over one data directory under load, and mixed processes.

Skipped where there is no earlier release: until the first tag, ``WALD_PREVIOUS=REF`` names one.

    WALD_PREVIOUS=HEAD~40 pytest tests/integration/test_way_back.py
"""

import json
import shutil
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Self

import psutil
import pytest

import wald
from tests.commands import call
from tests.daemon import Daemon, wait_until
from tests.earlier import Installed, earlier_ref, wheel_of
from wald.errors import WaldError

STREAM = "orders"
CONFIG = """
[daemon]
segment_bytes = "16MiB"
repack = {{ after = "1s", max_bytes = "0B" }}
[sinks.db]
type = "sqlite"
path = "{directory}/events.db"
[sinks.picky]
type = "sqlite"
path = "{directory}/picky.db"
[routes.db]
stream = "orders"
sink = "db"
lanes = 2
batch = {{ max_records = 20, max_age = "10ms" }}
[routes.picky]
stream = "orders"
sink = "picky"
mode = "columns"
table = "picky"
batch = {{ max_records = 20, max_age = "10ms" }}
"""
PICKY = "CREATE TABLE picky (n INTEGER PRIMARY KEY CHECK (n % 50 <> 7))"


@pytest.fixture(scope="module")
def earlier() -> Iterator[Path]:
    ref = earlier_ref()
    if ref is None:
        pytest.skip("there is no release before this one; WALD_PREVIOUS names a git ref")
    with tempfile.TemporaryDirectory(prefix="we") as place:
        yield wheel_of(ref, Path(place))


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="wb"))
    with closing(sqlite3.connect(path / "picky.db")) as database:
        database.execute(PICKY)
        database.commit()
    yield path
    shutil.rmtree(path)


class Load:
    """A producer that appends through restarts, and knows what was acknowledged."""

    def __init__(self, socket: Path) -> None:
        self.acked: list[int] = []
        self.unknown: set[int] = set()
        self._socket = socket
        self._stop = threading.Event()
        self._next = 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def more(self, count: int) -> None:
        """Wait until so many more were acknowledged."""
        wanted = len(self.acked) + count
        wait_until(lambda: len(self.acked) >= wanted or not self._thread.is_alive(), "it appends")
        assert self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with wald.connect(str(self._socket), timeout=60.0) as producer:
                    while not self._stop.is_set():
                        self._append(producer)
            except WaldError:  # the daemon is away, or asks for another session
                self._stop.wait(0.05)

    def _append(self, producer: wald.Producer) -> None:
        number, self._next = self._next, self._next + 1
        self.unknown.add(number)
        producer.append(STREAM, {"n": number}, key=f"k{number % 5}")
        self.unknown.discard(number)
        self.acked.append(number)


def settle(daemon: Daemon, load: Load) -> None:
    """Deliver everything, and check it against what was acknowledged."""
    daemon.command("wait", "--all", "--timeout", "120s")
    with closing(sqlite3.connect(daemon.directory / "events.db")) as database:
        rows = database.execute(
            "SELECT lsn, key, json_extract(value, '$.n') FROM orders ORDER BY rowid"
        ).fetchall()
    numbers = [number for _, _, number in rows]
    assert len(set(numbers)) == len(numbers), "doubled"
    assert not set(load.acked) - set(numbers), "lost"
    assert not set(numbers) - set(load.acked) - load.unknown, "never sent"
    latest: dict[str, int] = {}
    for lsn, key, _ in rows:
        assert lsn > latest.get(key, 0), f"the order of {key}"
        latest[key] = lsn
    with closing(sqlite3.connect(daemon.directory / "picky.db")) as database:
        taken = {number for (number,) in database.execute("SELECT n FROM picky")}
    assert taken == {number for number in numbers if number % 50 != 7}
    routes = json.loads(daemon.command("status", "--json"))["routes"]
    for name, refused in (("db", 0), ("picky", len(numbers) - len(taken))):
        books = routes[name]
        assert books["accepted"] == len(numbers)
        assert (books["delivered"], books["dead_letters"]) == (len(numbers) - refused, refused)
    assert daemon.command("audit", "--route", "db")
    assert call("log", "verify", str(daemon.data_dir)).returncode == 0


def begin(directory: Path, installed: Installed) -> Daemon:
    return Daemon(
        directory,
        config=CONFIG.format(directory=directory),
        environment=installed.environment,
        launcher=(sys.executable, "-P", "-m", "wald"),  # not what lies in the working directory
    )


def begin_again(daemon: Daemon, role: str) -> None:
    """Kill a child, and wait until the supervisor has begun it with the code that is there now."""
    pid = daemon.pids()[role]
    psutil.Process(pid).kill()
    wait_until(lambda: daemon.pids().get(role, pid) != pid, f"{role} begins again")
    begun = psutil.Process(daemon.pids()[role])
    assert begun.environ()["PYTHONPATH"] == daemon.environment["PYTHONPATH"]


def test_old_then_new_then_old_again_loses_and_doubles_nothing(
    earlier: Path, directory: Path
) -> None:
    installed = Installed(directory, earlier)
    with begin(directory, installed) as daemon, Load(daemon.socket) as load:
        load.more(200)
        for code, by_force in ((None, False), (earlier, True), (None, True), (earlier, False)):
            installed.put(code)
            if by_force:
                assert daemon.process is not None
                daemon.process.kill()
                daemon.wait_dead()
            else:
                daemon.end()
            daemon.start()
            load.more(200)
        daemon.command("route", "pause", "db")
        load.more(200)  # held back by the old, delivered by the new
        installed.put(None)
        daemon.end()
        daemon.start()
        daemon.command("route", "resume", "db")
        load.__exit__()
        settle(daemon, load)


@pytest.mark.parametrize("first", ["old", "new"])
def test_processes_of_both_releases_beside_each_other_lose_and_double_nothing(
    earlier: Path, directory: Path, first: str
) -> None:
    """As when a package is exchanged under a daemon: a child that ends begins with the new code."""
    before, after = (earlier, None) if first == "old" else (None, earlier)
    installed = Installed(directory, before)
    with begin(directory, installed) as daemon, Load(daemon.socket) as load:
        load.more(200)
        for role, code in (("drain", after), ("ingest", after), ("drain", before)):
            installed.put(code)
            begin_again(daemon, role)
            load.more(200)
        load.__exit__()
        settle(daemon, load)
