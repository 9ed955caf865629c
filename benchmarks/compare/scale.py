"""Ten million records of backlog: appended while the route is held back, then drained; memory flat.

    python -m benchmarks.compare.scale [RECORDS]

A real daemon with the null sink, which only counts. The resident memory of the three processes is
looked at four times a second. Flat: over each of the two parts, behind its first tenth, none of
them is ever more than a fifth above its own mean.
"""

import json
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

import wald
from benchmarks.harness import Comparison, report, short_directory, wald_command
from tests.daemon import Daemon

RECORDS = 10_000_000
REQUEST = 10_000
VALUE = b"v" * 32
FLAT_GOAL = 1.2
LOOK_EVERY_S = 0.25
DISK_FREE_BYTES = 8 << 30  # so much must be there before


def config(place: Path) -> str:
    return f"""
[daemon]
data_dir = "{place}/data"
socket = "{place}/w.sock"
stop_deliver_for = "0s"
[sinks.out]
type = "null"
[routes.copy]
stream = "bench"
sink = "out"
"""


class Memory:
    """Looks at the resident memory of processes until it is stopped; by role, in MiB."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._processes = {role: psutil.Process(pid) for role, pid in pids.items()}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.series: dict[str, list[float]] = {role: [] for role in pids}

    @contextmanager
    def watching(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            self._thread.join()

    def _run(self) -> None:
        self._look()
        while not self._stopped.wait(LOOK_EVERY_S):
            self._look()
        self._look()

    def _look(self) -> None:
        for role, process in self._processes.items():
            self.series[role].append(process.memory_info().rss / (1 << 20))

    def rows(self, part: str) -> list[Comparison]:
        """Say for each process its highest figure behind the first tenth against its mean."""
        return [flatness(f"{part}: {role}", series) for role, series in self.series.items()]


def flatness(name: str, series: Sequence[float]) -> Comparison:
    later = series[len(series) // 10 :]
    slope = statistics.linear_regression(range(len(later)), later).slope / LOOK_EVERY_S
    name = f"{name}, {slope:+.2f} MiB/s"
    mean = statistics.mean(later)
    return Comparison(name, "MiB", [max(later)], [mean], FLAT_GOAL, smaller_is_better=True)


def append(daemon: Daemon, records: int) -> None:
    with wald.connect(str(daemon.socket)) as producer:
        values = [VALUE] * REQUEST
        for _ in range(records // REQUEST):
            producer.append_many("bench", values)


def pending(daemon: Daemon) -> int:
    return int(json.loads(daemon.command("status", "--json"))["routes"]["copy"]["pending"])


def wait_drained(daemon: Daemon, timeout_s: float = 900.0) -> None:
    deadline = time.monotonic() + timeout_s
    while pending(daemon):
        if time.monotonic() > deadline:
            msg = f"not drained within {timeout_s} s"
            raise TimeoutError(msg)
        time.sleep(1.0)


def command(daemon: Daemon, *words: str) -> None:
    said = wald_command(*words, "--socket", str(daemon.socket))
    subprocess.run(said, check=True, capture_output=True)


def main(records: int) -> int:
    with short_directory() as place:
        if shutil.disk_usage(place).free < DISK_FREE_BYTES:
            print(f"{place}: less than {DISK_FREE_BYTES >> 30} GiB are free", file=sys.stderr)
            return 1
        rows = []
        with Daemon(place, config=config(place)) as daemon:
            command(daemon, "route", "pause", "--all")
            filling = Memory(daemon.pids())
            began = time.monotonic()
            with filling.watching():
                append(daemon, records)
            took = time.monotonic() - began
            held = pending(daemon)
            assert held == records, held
            print(f"{records:,} records appended in {took:.0f} s", flush=True)
            rows += filling.rows("filling")
            draining = Memory(daemon.pids())
            began = time.monotonic()
            with draining.watching():
                command(daemon, "route", "resume", "--all")
                wait_drained(daemon)
            took = time.monotonic() - began
            print(f"drained in {took:.0f} s, {records / took:,.0f} records/s", flush=True)
            rows += draining.rows("draining")
    return report(rows, "scale")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else RECORDS))
