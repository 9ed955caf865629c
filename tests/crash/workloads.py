"""Real daemons at work under the recorder: what crash images are made of.

Each workload is a configuration and something to do. Every record is ``{"n": number, "key": text,
"pad": bytes}`` with a number of its own, so that a target tells which records it holds.
"""

import contextlib
import errno
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

import wald
from tests.crash.journal import Entry, Kind, durable_lsns, read_journal
from tests.daemon import Daemon, wait_until
from tests.servers import small_disk
from wald.errors import DiskFull, WaldError
from wald.model import Lsn

_TRIES = 5
_ROUTE = """
[sinks.db]
type = "sqlite"
path = "{root}/events.db"
[routes.db]
stream = "readings"
sink = "db"
batch = {{ max_records = 20, max_age = "20ms" }}
"""


@dataclass(frozen=True, slots=True)
class Workload:
    """Something to record.

    Attributes:
        work: what is done with a running daemon.
        tables: what is behind ``[daemon]`` of the configuration; ``{root}`` is the directory.
        daemon: more lines of ``[daemon]``.
        schema: statements for ``events.db`` before the daemon starts.
        targets: of each route its table and its column or expression of a record's number.
        disk: the size of a file system of its own, such as ``96m``; else it is that of the machine.
    """

    work: "Callable[[Bench], None]"
    tables: str = _ROUTE
    daemon: str = ""
    schema: str = ""
    targets: tuple[tuple[str, str, str], ...] = (("db", "readings", "json_extract(value, '$.n')"),)
    disk: str = ""


@dataclass(slots=True)
class Recorded:
    """A recorded run.

    Attributes:
        root: the directory that was recorded; images are put there.
        config: the configuration file of the run.
        entries: the journal.
        durable: for each entry, what ingest had called durable.
        acked: the numbers of records by LSN, as producers were told.
        sent: the key of each number that was ever sent.
    """

    root: Path
    config: Path
    workload: Workload
    entries: list[Entry]
    durable: list[Lsn]
    acked: dict[Lsn, int]
    sent: dict[int, str]


@dataclass(slots=True)
class Bench:
    """What a workload works with."""

    daemon: Daemon
    chance: random.Random
    acked: dict[Lsn, int] = field(default_factory=dict)
    sent: dict[int, str] = field(default_factory=dict)

    def append(self, producer: wald.Producer, count: int, pad: int = 100) -> None:
        """Append some records as one request, and keep what was answered."""
        self.send(producer, [self.make(pad) for _ in range(count)])

    def make(self, pad: int = 100) -> dict[str, Any]:
        """Return another record; from now on it counts as sent."""
        number, key = len(self.sent), f"k{self.chance.randrange(5)}"
        self.sent[number] = key
        return {"n": number, "key": key, "pad": self.chance.randbytes(pad)}

    def send(self, producer: wald.Producer, values: list[dict[str, Any]]) -> None:
        """Append records as one request, and keep what was answered."""
        keys = [value["key"] for value in values]
        for receipt, value in zip(
            producer.append_many("readings", values, keys=keys), values, strict=True
        ):
            assert isinstance(receipt, wald.Receipt), receipt
            self.acked[receipt.lsn] = value["n"]

    def connect(self) -> wald.Producer:
        """Return a producer."""
        return wald.connect(str(self.daemon.socket), timeout=60.0)

    def kill(self, role: str) -> None:
        """Kill a process, and wait until there is another one."""
        pid = self.daemon.pids().get(role)
        if pid is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).send_signal(signal.SIGKILL)
        wait_until(lambda: self.daemon.pids().get(role) not in {None, pid}, f"{role} is back")

    def drained(self) -> None:
        """Wait until everything is delivered or set aside."""
        self.daemon.command("wait", "--all", "--timeout", "60s")


@contextlib.contextmanager
def record(workload: Workload, recorder: Path, seed: int) -> Iterator[Recorded]:
    """Run a workload under the recorder; the directory is there until the block ends.

    A run in which a process was killed inside the recorder is not used: it is done again.

    Raises:
        PermissionError: a file system of its own is needed, and this user may not mount one.
    """
    for tries_left in reversed(range(_TRIES)):
        with _directory("/dev/shm", workload.disk) as root, _directory(None) as beside:
            run = _record(workload, recorder, seed, root, beside)
            if not any(entry.kind is Kind.BROKEN for entry in run.entries):
                yield run
                return
        assert tries_left, "each time a process was killed inside the recorder"


@contextlib.contextmanager
def _directory(base: str | None, disk: str = "") -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="wd", dir=base if base and Path(base).is_dir() else None))
    try:
        if disk and not small_disk.mount(path, disk):
            raise PermissionError(errno.EPERM, "a file system of its own needs root", str(path))
        yield path
    finally:
        if path.is_mount():
            small_disk.unmount(path)
        shutil.rmtree(path, ignore_errors=True)


def _record(workload: Workload, recorder: Path, seed: int, root: Path, beside: Path) -> Recorded:
    journal = beside / "journal"
    recorded = {
        "LD_PRELOAD": str(recorder),
        "RECORDER_ROOT": str(root),
        "RECORDER_JOURNAL": str(journal),
    }
    if workload.schema:
        _make_schema(root / "events.db", workload.schema, recorded)
    head = f'[daemon]\ndata_dir = "{root}/data"\nsegment_bytes = "16MiB"\n'
    config = head + workload.daemon + workload.tables.format(root=root)
    daemon = Daemon(beside, config=config, data_dir=root / "data", environment=recorded)
    bench = Bench(daemon, random.Random(seed))
    with daemon:
        workload.work(bench)
        bench.drained()
    entries = read_journal(journal)
    return Recorded(
        root,
        beside / "wald.toml",
        workload,
        entries,
        list(durable_lsns(entries)),
        bench.acked,
        bench.sent,
    )


def _make_schema(path: Path, schema: str, environment: dict[str, str]) -> None:
    program = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript(sys.argv[2])"
    subprocess.run(
        [sys.executable, "-c", program, str(path), schema],
        env={**os.environ, **environment},
        check=True,
    )


def numbers(path: Path, table: str, number: str) -> list[int]:
    """Return the numbers of the records that a table holds, in the order they were applied."""
    with closing(sqlite3.connect(path)) as database:
        try:
            rows = database.execute(f"SELECT {number} FROM {table} ORDER BY rowid").fetchall()
        except sqlite3.OperationalError:  # the table is not made yet
            return []
    return [row[0] for row in rows]


# --- the workloads ------------------------------------------------------------------------------


def _steady(bench: Bench) -> None:
    with bench.connect() as producer:
        for _ in range(40):
            bench.append(producer, bench.chance.randint(1, 12))


def _many(bench: Bench) -> None:
    producers = [bench.connect() for _ in range(6)]
    for _ in range(20):
        for producer in producers:
            bench.append(producer, bench.chance.randint(1, 6))
    for producer in producers:
        producer.close()


def _rotating(bench: Bench) -> None:
    with bench.connect() as producer:
        for _ in range(45):
            bench.append(producer, 2, 500_000)


def _killed(bench: Bench) -> None:
    with bench.connect() as producer:
        for _ in range(4):
            for role in ("drain", "ingest"):
                for _ in range(5):
                    bench.append(producer, bench.chance.randint(1, 12))
                bench.kill(role)


def _restarted(bench: Bench) -> None:
    for _ in range(3):
        with bench.connect() as producer:
            for _ in range(8):
                bench.append(producer, bench.chance.randint(1, 12))
        bench.daemon.end()
        bench.daemon.start()


def _redriven(bench: Bench) -> None:
    with bench.connect() as producer:
        for _ in range(15):
            bench.append(producer, bench.chance.randint(1, 12))
        bench.drained()
        bench.daemon.command("dlq", "redrive", "--route", "db")
        for _ in range(10):
            bench.append(producer, bench.chance.randint(1, 12))


def _paused(bench: Bench) -> None:
    with bench.connect() as producer:
        bench.daemon.command("route", "pause", "db")
        for _ in range(25):
            bench.append(producer, 2, 500_000)
        wait_until(lambda: any((bench.daemon.data_dir / "packed").glob("*.*")), "it packs")
        for _ in range(18):  # another segment, so that what is packed is needed no more
            bench.append(producer, 2, 500_000)
        pool = bench.daemon.data_dir / "log" / "pool"
        wait_until(lambda: any(pool.glob("*")), "a packed segment retires")
        bench.daemon.command("route", "resume", "db")
        bench.drained()
        for _ in range(5):
            bench.append(producer, 3)


def _slow(bench: Bench) -> None:
    bench.daemon.command("route", "fault", "db", "--slow", "30ms", "--for", "60s")
    with bench.connect() as producer:
        for _ in range(30):
            bench.append(producer, bench.chance.randint(1, 12))


def _lost_answers(bench: Bench) -> None:
    bench.daemon.command("route", "fault", "db", "--lose-answers", "30%", "--for", "60s")
    with bench.connect() as producer:
        for _ in range(25):
            bench.append(producer, bench.chance.randint(1, 12))


def _relaned(bench: Bench) -> None:
    with bench.connect() as producer:
        for lanes in (3, 2):
            for _ in range(10):
                bench.append(producer, bench.chance.randint(1, 12))
            config = bench.daemon.directory / "wald.toml"
            text = config.read_text().replace("lanes = 1", f"lanes = {lanes}")
            config.write_text(text.replace("lanes = 3", f"lanes = {lanes}"))
            bench.daemon.end()
            bench.daemon.start()
        for _ in range(10):
            bench.append(producer, bench.chance.randint(1, 12))


def is_refused(number: int) -> bool:
    """Tell whether ``PICKY`` refuses a record of that number."""
    return number % 17 == 5


def _full(bench: Bench) -> None:
    disk = bench.daemon.data_dir.parent
    for _ in range(2):
        with bench.connect() as producer:
            for _ in range(10):
                bench.append(producer, 2, 100_000)
        with small_disk.filled(disk):
            refused = 0
            while refused < 3:  # what was prepared before is used up first
                with wald.connect(str(bench.daemon.socket), timeout=0.9) as producer:
                    try:
                        bench.append(producer, 2, 400_000)
                    except DiskFull:
                        refused += 1
                    except WaldError:
                        pass  # too slow an answer: it may be stored, and was never acknowledged
    with bench.connect() as producer:
        for _ in range(10):
            bench.append(producer, bench.chance.randint(1, 12))


def _down_now_and_then(bench: Bench) -> None:
    with bench.connect() as producer:
        for number in range(30):
            if number % 6 == 0:
                bench.daemon.command("route", "fault", "db", "--down", "150ms")
            bench.append(producer, bench.chance.randint(1, 12))


_COLUMNS = _ROUTE.replace('sink = "db"', 'sink = "db"\nmode = "columns"\ntable = "picky"')
PICKY = "CREATE TABLE picky (n INTEGER PRIMARY KEY CHECK (n % 17 <> 5), key TEXT, pad BLOB);"
_TWO = (
    _ROUTE
    + """
[sinks.other]
type = "sqlite"
path = "{root}/other.db"
[routes.other]
stream = "readings"
sink = "other"
batch = {{ max_records = 7, max_age = "10ms" }}
"""
)
_ONE = ("db", "picky", "n")
_JSON = "json_extract(value, '$.n')"

WORKLOADS: dict[str, Workload] = {
    "one producer, small requests": Workload(_steady),
    "six producers at once": Workload(_many),
    "segments that roll": Workload(_rotating),
    "segments that retire and are used again": Workload(
        _rotating, daemon='retain = { after_delivery = "0s", max_bytes = "0B" }\n'
    ),
    "ingest and drainer killed in the middle": Workload(_killed),
    "a daemon that is stopped and started": Workload(_restarted),
    "a target that refuses every seventeenth record": Workload(
        _steady, _COLUMNS, schema=PICKY, targets=(_ONE,)
    ),
    "dead letters that are redriven, and refused again": Workload(
        _redriven, _COLUMNS, schema=PICKY, targets=(_ONE,)
    ),
    "refusals that are looked for while the target goes down": Workload(
        _down_now_and_then, _COLUMNS, schema=PICKY, targets=(_ONE,)
    ),
    "a full disk, twice": Workload(
        _full,
        daemon='reserve = "8MiB"\nretain = { after_delivery = "0s", max_bytes = "0B" }\n',
        disk="320m",
    ),
    "a route that is held back, and packed": Workload(
        _paused,
        daemon='repack = { after = "1s", max_bytes = "0B" }\n'
        'retain = { after_delivery = "0s", max_bytes = "0B" }\n',
    ),
    "a slow target": Workload(_slow),
    "answers of the target that get lost": Workload(_lost_answers),
    "lanes that change": Workload(
        _relaned, _ROUTE.replace('stream = "readings"', 'stream = "readings"\nlanes = 1')
    ),
    "two routes of one stream": Workload(
        _steady, _TWO, targets=(("db", "readings", _JSON), ("other", "readings", _JSON))
    ),
}
