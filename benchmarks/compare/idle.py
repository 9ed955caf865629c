"""What a daemon costs that has nothing to do, or may not do it: processor time, ledger writes.

    python -m benchmarks.compare.idle [SECONDS]

Four daemons, one after the other: everything delivered; the route held back by a person; the target
down; the lanes parked at a refused record. Each process for as many seconds, as parts of one core;
and whether the ledger was written meanwhile, by its meta pages.
"""

import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

import wald
from benchmarks.harness import Comparison, report, short_directory
from tests.daemon import Daemon, wait_until
from wald import limits

SECONDS = 10
GOAL_MS = 20.0  # of processor time a second, each process
RECORDS = 100
META_BYTES = 8192  # the two pages that every transaction of LMDB writes one of
SETTLE_S = limits.ADVANCE_EVERY_S + 2.0  # by then idle checkpoints have moved, once (T6)


def config(place: Path) -> str:
    return f"""
[daemon]
data_dir = "{place}/data"
socket = "{place}/w.sock"
stop_deliver_for = "0s"
[sinks.db]
type = "sqlite"
path = "{place}/target/x.db"
[routes.a]
stream = "a"
sink = "db"
mode = "columns"
table = "t"
on_reject = "halt"
lanes = 4
"""


def make_target(place: Path, check: str) -> None:
    (place / "target").mkdir()
    database = sqlite3.connect(place / "target" / "x.db")
    database.execute(f"create table t (n integer check ({check}))")
    database.close()


def delivered(daemon: Daemon) -> None:
    make_target(daemon.directory, "true")
    append(daemon)
    daemon.command("wait", "--all", "--timeout", "60s")


def held_back(daemon: Daemon) -> None:
    make_target(daemon.directory, "true")
    daemon.command("route", "pause", "--all")
    append(daemon)


def down(daemon: Daemon) -> None:
    append(daemon)


def parked(daemon: Daemon) -> None:
    make_target(daemon.directory, "n < 50")
    append(daemon)
    wait_until(lambda: '"halted"' in daemon.command("status", "--json"), "a lane halts")


STATES: dict[str, Callable[[Daemon], None]] = {
    "all delivered": delivered,
    "held back": held_back,
    "target down": down,
    "lanes parked": parked,
}
WRITES_NOTHING = frozenset({"all delivered", "held back"})


def append(daemon: Daemon) -> None:
    with wald.connect(str(daemon.socket)) as producer:
        for number in range(RECORDS):
            producer.append("a", {"n": number}, key=f"k{number}")


@contextmanager
def daemon_that_is(reach: Callable[[Daemon], None]) -> Iterator[Daemon]:
    with short_directory() as place, Daemon(place, config=config(place)) as daemon:
        reach(daemon)
        time.sleep(SETTLE_S)
        yield daemon


def busy_s(processes: dict[str, psutil.Process]) -> dict[str, float]:
    times = {role: process.cpu_times() for role, process in processes.items()}
    return {role: each.user + each.system for role, each in times.items()}


def meta(daemon: Daemon) -> bytes:
    with (daemon.data_dir / "ledger" / "data.mdb").open("rb") as file:
        return file.read(META_BYTES)


def measure(name: str, seconds: int) -> list[Comparison]:
    with daemon_that_is(STATES[name]) as daemon:
        processes = {role: psutil.Process(pid) for role, pid in daemon.pids().items()}
        before, written = busy_s(processes), meta(daemon)
        time.sleep(seconds)
        after, written_then = busy_s(processes), meta(daemon)
    if name in WRITES_NOTHING:
        assert written == written_then, f"{name}: the ledger was written"
    return [
        Comparison(
            f"{name}: {role}",
            "ms/s",
            [1e3 * (after[role] - before[role]) / seconds],
            [GOAL_MS],
            1.0,
            smaller_is_better=True,
        )
        for role in processes
    ]


def main(seconds: int) -> int:
    rows = [row for name in STATES for row in measure(name, seconds)]
    return report(rows, "idle")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else SECONDS))
