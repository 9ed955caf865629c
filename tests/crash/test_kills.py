"""Real kills of real processes under load: every acknowledged record once, and in order.

SIGKILL shows safety against the crash of a process only: the page cache survives it. What a power
cut takes is the business of tests/model.
"""

import csv
import json
import lzma
import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import lmdb
import msgpack
import psutil
import pytest

from tests.daemon import Daemon, wait_until
from wald.storage.ledger_rows import lane_of

PRODUCERS = 4
RECORDS_PER_REQUEST = 20
KILLS_EACH = 10
ROLES = ("ingest", "drain", "supervisor")
SETTLED_S = 0.6  # who lived as long is started again with the shortest pause
AHEAD_MIN = 20  # requests of each producer beyond what was answered when the killer looked last
NO_LIMIT = (1 << 64) - 1
VALUE_CRC_BYTES = 4  # behind each value of the ledger
HERE = Path(__file__).parent


def real_records() -> tuple[str, Iterator[dict[str, object]]]:
    """The flights if they are there, else the airports twelve times over: never nothing."""
    places = [os.environ.get("WALD_TEST_DATA"), HERE.parents[2] / "shared" / "data"]
    for place in places:
        if place and (path := Path(place) / "flights.csv.xz").exists():
            return "flights", read_flights(path)
    import airportsdata

    airports = list(airportsdata.load().values())
    return "airports x 12", (dict(row) for _ in range(12) for row in airports)


def read_flights(path: Path) -> Iterator[dict[str, object]]:
    with lzma.open(path, "rt", newline="") as lines:
        for row in csv.DictReader(lines):
            yield {name: None if text == "NA" else text for name, text in row.items()}


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="wk"))
    yield path
    shutil.rmtree(path)


class Producers:
    """Four producer processes, and what each has sent and got answered."""

    def __init__(
        self, directory: Path, socket: Path, records: Path, count: int, stack: ExitStack
    ) -> None:
        self.requests = count // RECORDS_PER_REQUEST
        self.states = [directory / f"state-{n}" for n in range(PRODUCERS)]
        self.receipts = [directory / f"receipts-{n}" for n in range(PRODUCERS)]
        self.children = []
        for n in range(PRODUCERS):
            self.states[n].write_bytes(bytes(24))
            arguments = [socket, records, n, PRODUCERS, RECORDS_PER_REQUEST]
            command = [sys.executable, str(HERE / "producer.py"), *map(str, arguments)]
            child = subprocess.Popen([*command, str(self.states[n]), str(self.receipts[n])])
            stack.callback(child.wait)
            stack.callback(child.kill)
            self.children.append(child)

    def unanswered(self) -> int:
        """How many producers wait for an answer at this instant."""
        return sum(sent > answered for sent, answered, _ in self._read())

    def answered(self) -> int:
        return sum(answered for _, answered, _ in self._read())

    def _read(self) -> list[tuple[int, int, int]]:
        return [struct.unpack("<QQQ", path.read_bytes()) for path in self.states]

    def allow(self, ahead: int | None) -> None:
        """Let each producer send so many requests more than it has answers; None: all."""
        for path, (_, answered, _) in zip(self.states, self._read(), strict=True):
            with path.open("r+b") as state:
                state.seek(16)
                state.write(struct.pack("<Q", NO_LIMIT if ahead is None else answered + ahead))

    def running(self) -> bool:
        return any(child.poll() is None for child in self.children)

    def finish(self) -> None:
        self.allow(None)
        for child in self.children:
            assert child.wait(120) == 0

    def acknowledged(self) -> dict[int, tuple[int, int]]:
        """Every acknowledged record: LSN to (producer, index)."""
        found: dict[int, tuple[int, int]] = {}
        for number, path in enumerate(self.receipts):
            for line in path.read_text().splitlines():
                index, lsn = map(int, line.split())
                assert lsn not in found, "one LSN for two records"
                found[lsn] = (number, index)
        return found


class Killer:
    """Kills a process at an instant at which something is in flight, or does not count it."""

    def __init__(self, daemon: Daemon, producers: Producers, chance: random.Random) -> None:
        self.daemon = daemon
        self.producers = producers
        self.chance = chance
        self.counted: Counter[str] = Counter()
        self.tried: Counter[str] = Counter()
        self.back_s = dict.fromkeys(ROLES, -SETTLED_S)

    def in_flight(self, role: str) -> bool:
        if role == "drain":
            return manifest_is_open(self.daemon.data_dir)
        return self.producers.unanswered() > 0

    def strike(self, role: str) -> None:
        """Stop the process, look whether something is in flight, and only then kill it."""
        pid = self.daemon.pids().get(role)
        if pid is None:
            return
        self.tried[role] += 1
        try:
            process = psutil.Process(pid)
            process.suspend()
        except psutil.NoSuchProcess:
            return
        if self.in_flight(role):
            process.send_signal(signal.SIGKILL)
            self.counted[role] += 1
            self.recover(role, pid)
        else:
            process.resume()

    def recover(self, role: str, pid: int) -> None:
        if role == "supervisor":
            self.daemon.wait_dead()
            self.daemon.start()
        else:
            wait_until(lambda: self.daemon.pids().get(role) not in (None, pid), f"{role} is back")
        for started in ROLES if role == "supervisor" else [role]:
            self.back_s[started] = time.monotonic()

    def choose(self, wanted: list[str]) -> str:
        """Choose one at random; rather one that the supervisor lets wait little for its start."""
        settled_s = time.monotonic() - SETTLED_S
        return self.chance.choice([r for r in wanted if self.back_s[r] < settled_s] or wanted)

    def let_answer(self, more: int) -> None:
        """Wait until so many more requests are answered, or there is nothing left to ask."""
        goal = self.producers.answered() + more

        kills = max(1, 3 * KILLS_EACH - self.counted.total())
        left = self.producers.requests - self.producers.answered()
        # half of what a kill may have: the other half is for tries that find nothing in flight
        ahead = max(AHEAD_MIN, left // (2 * kills * PRODUCERS))

        def reached() -> bool:
            self.producers.allow(ahead)
            return self.producers.answered() >= goal or not self.producers.running()

        wait_until(reached, "some more answers", 120.0)

    def run(self) -> None:
        while self.producers.running():
            wanted = [role for role in ROLES if self.counted[role] < KILLS_EACH]
            if not wanted:
                return
            role = self.choose(wanted)
            self.let_answer(self.chance.randint(1, 60))
            self.strike(role)


def manifest_is_open(data_dir: Path) -> bool:
    """Look into the ledger of a stopped drainer, read-only and without its lock file."""
    try:
        environment = lmdb.open(
            str(data_dir / "ledger"), readonly=True, lock=False, max_dbs=16, create=False
        )
    except lmdb.Error:
        return False
    try:
        table = environment.open_db(b"lanes", create=False)
        with environment.begin(table) as transaction:
            values = (value[:-VALUE_CRC_BYTES] for _, value in transaction.cursor())
            return any(lane_of(value).manifest is not None for value in values)
    except lmdb.Error:
        return False
    finally:
        environment.close()


def test_every_acknowledged_record_arrives_once_and_in_order_through_random_kills(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("WALD_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
    source, records = real_records()
    packed = directory / "records.msgpack"
    count = 0
    with packed.open("wb") as out:
        for record in records:
            out.write(msgpack.packb(record))
            count += 1
    target = directory / "flights.db"
    started = time.monotonic()
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon(directory, to=f"sqlite:{target}"))
        producers = Producers(directory, daemon.socket, packed, count, stack)
        killer = Killer(daemon, producers, random.Random(seed))
        with capsys.disabled():
            print(f"\nkill test: {count:,} records ({source}), WALD_TEST_SEED={seed}", flush=True)
        killer.run()
        producers.finish()
        daemon.command("wait", "--all", "--timeout", "120s")
        status = json.loads(daemon.command("status", "--json"))
    with capsys.disabled():
        print(
            f"kill test: killed with something in flight {dict(killer.counted)}"
            f" of {dict(killer.tried)} tries, {time.monotonic() - started:.1f} s",
            flush=True,
        )
    check_target(target, producers.acknowledged(), count)
    route = status["routes"]["flights"]
    assert (route["accepted"], route["delivered"], route["pending"]) == (count, count, 0)
    assert all(killer.counted[role] >= KILLS_EACH for role in ROLES)


def check_target(target: Path, acknowledged: dict[int, tuple[int, int]], count: int) -> None:
    """SQLite holds exactly the acknowledged records, once each, in order per producer."""
    assert len(acknowledged) == count
    database = sqlite3.connect(target)
    try:
        rows = database.execute(
            "select lsn, value ->> 'producer', value ->> 'index' from flights order by lsn"
        ).fetchall()
    finally:
        database.close()
    assert {lsn: (producer, index) for lsn, producer, index in rows} == acknowledged
    assert len(rows) == count
    for number in range(PRODUCERS):
        indexes = [index for _, producer, index in rows if producer == number]
        assert indexes == list(range(len(indexes)))
