"""Appends a second by how long a flush of the disk takes, and how many callers share one.

python -m benchmarks.compare.flush [TURNS]

Flushes of this disk, and of a slower one: each fdatasync of the daemon waits so much longer, by
``load/slow_flush.c``. The table is that of the README.
"""

import os
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import wald
from benchmarks.compare.client import append_us
from benchmarks.harness import LOAD, Comparison, build_load, report, run_load
from benchmarks.harness import short_directory as directory
from tests.daemon import Daemon

DELAYS_MS = (0, 1, 5, 20)
SHAPES = {
    "64 callers, one append each": (64, 1, 1),
    "one caller, append_many of 1,000": (1, 1, 1_000),
}
ALONE = "one caller, one append"
SHARED_GOAL = 20.0  # callers beside each other against one alone, on a disk of 5 ms


@contextmanager
def flushes_of(delay_ms: int, place: Path) -> Iterator[Daemon]:
    """A daemon whose flushes take so much longer."""
    library = LOAD.with_name("slow_flush.so")
    changed = {"LD_PRELOAD": str(library), "SLOW_FLUSH_US": str(delay_ms * 1_000)}
    os.environ.update(changed if delay_ms else {})
    try:
        (place / "absent").mkdir(parents=True)
        with Daemon(place, to=f"sqlite:{place}/absent/x.db") as daemon:
            yield daemon
    finally:
        for name in changed:
            os.environ.pop(name, None)


def measured(daemon: Daemon, turns: int) -> dict[str, list[float]]:
    """Records a second, of one caller and of each shape, in turn."""
    taken: dict[str, list[float]] = {ALONE: [], **{name: [] for name in SHAPES}}
    with wald.connect(str(daemon.socket)) as producer:
        producer.append("bench", b"first")
        for _ in range(turns):
            taken[ALONE].append(1e6 / append_us(producer))
            for name, shape in SHAPES.items():
                taken[name].append(run_load("wald", daemon.socket, shape)["records_per_s"])
    return taken


def main(turns: int) -> int:
    build_load()
    comparisons = []
    with directory() as base:
        for delay_ms in DELAYS_MS:
            with flushes_of(delay_ms, base / str(delay_ms)) as daemon:
                taken = measured(daemon, turns)
            for name, rates in taken.items():
                print(f"flush + {delay_ms:>2} ms  {name:<34} {statistics.median(rates):>10,.0f}/s")
            if delay_ms == 5:
                together = taken["64 callers, one append each"]
                comparisons.append(
                    Comparison(
                        "64 callers against one, flush of 5 ms",
                        "rec/s",
                        together,
                        taken[ALONE],
                        SHARED_GOAL,
                    )
                )
    return report(comparisons, "flush")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
