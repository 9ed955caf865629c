"""What one lane to SQLite costs in processor time, beside the bare loop that does only that.

    python -m benchmarks.compare.cost [ALTERNATIONS]

The comparison of ``drain`` again, without the disk and the neighbours of a noisy machine: both
sides in this process, over the same flights, by the processor time of the process, all threads
included. Ours is a real log, a real ledger, checkpoints and all; theirs msgpack decode and
``executemany``, 2,000 rows a transaction.
"""

import cProfile
import gc
import pstats
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from unittest.mock import patch

import msgpack

from benchmarks import flights
from benchmarks.compare.drain import count, make_table
from benchmarks.compare.policy import BATCH, ROWS, fill
from benchmarks.harness import Comparison, report, short_directory
from tests.backlog import CLOCK, FS, Backlog
from wald.app import calm_garbage_collector
from wald.config import RouteSettings
from wald.drainer.lane import Lane
from wald.drainer.replay import replay
from wald.ports import Sink
from wald.sinks.sqlite import make as make_sqlite

GOAL = 1.0


def sink_to(target: Path) -> Sink:
    options = {"path": str(target), "mode": "columns", "table": "flights"}
    return make_sqlite("one", "one", options)


def ours(values: Sequence[bytes], profile: cProfile.Profile | None = None) -> float:
    """Drain a log of the flights; returns nanoseconds of processor time a row."""
    with short_directory() as place:
        backlog, target = Backlog(place, "one"), place / "flights.db"
        fill(backlog, 1, values)
        make_table(target)
        settings = replace(
            backlog.settings, routes={"one": RouteSettings("one", "one", "one", batch=BATCH)}
        )
        run = partial(
            replay,
            settings,
            backlog.log,
            make_sink=lambda *_: sink_to(target),
            fs=FS,
            clock=CLOCK,
            chance=Random(1),
        )
        began_ns = time.process_time_ns()
        _profiled(profile, run)
        took_ns = time.process_time_ns() - began_ns
        backlog.close()
        assert count(target) == len(values)
    return took_ns / len(values)


def _profiled(profile: cProfile.Profile | None, run: Callable[[], object]) -> None:
    """Run, with the lane's thread under a profile if there is one."""
    if profile is None:
        run()
        return
    inside = Lane._run  # noqa: SLF001 - a profile must begin in the thread

    def lane_run(self: Lane) -> None:
        profile.runcall(inside, self)

    with patch.object(Lane, "_run", lane_run):
        run()


def theirs(values: Sequence[bytes]) -> float:
    """Run the bare loop; returns nanoseconds of processor time a row."""
    with short_directory() as place:
        target = place / "flights.db"
        make_table(target)
        began_ns = time.process_time_ns()
        database = sqlite3.connect(target, isolation_level=None)
        database.execute("pragma journal_mode=wal")
        database.execute("pragma synchronous=full")
        insert = f"insert into flights values ({', '.join('?' * len(flights.COLUMNS))})"
        for start in range(0, len(values), ROWS):
            rows = []
            for value in values[start : start + ROWS]:
                flight = msgpack.unpackb(value)
                rows.append([flight.get(name) for name in flights.COLUMNS])
            database.execute("begin immediate")
            database.executemany(insert, rows)
            database.execute("commit")
        took_ns = time.process_time_ns() - began_ns
        database.close()
    return took_ns / len(values)


@contextmanager
def default_garbage_collector() -> Iterator[None]:
    """Let the bare loop run with the thresholds of a process that does not touch them."""
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def main(times: int) -> int:
    values = [msgpack.packb(record) for record in flights.read()]
    calm_garbage_collector()  # as every process of wald that delivers does
    if times == 0:  # where the time goes
        profile = cProfile.Profile(time.thread_time)
        ours(values, profile)
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
        return 0
    first, second = [], []
    for _ in range(times):
        first.append(ours(values))
        with default_garbage_collector():
            second.append(theirs(values))
    name = "processor time a row, one lane to SQLite"
    rows = [Comparison(name, "ns", first, second, GOAL, smaller_is_better=True)]
    return report(rows, "cost")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 7))
