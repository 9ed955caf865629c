"""Memory and start-up with a backlog of two million records.

python -m benchmarks.compare.size [ALTERNATIONS]
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

import wald
from benchmarks.harness import Comparison, report, wald_command
from benchmarks.harness import short_directory as directory
from tests.daemon import Daemon

BACKLOG = 2_000_000
REQUEST = 1_000
RESIDENT_GOAL_BYTES = 160 << 20
START_GOAL_S = 1.0
START_RATIO_GOAL = 1.2


def fill(daemon: Daemon) -> None:
    with wald.connect(str(daemon.socket)) as producer:
        values = [b"v" * 128] * REQUEST
        for _ in range(BACKLOG // REQUEST):
            producer.append_many("bench", values)


def resident_bytes(daemon: Daemon) -> int:
    return sum(psutil.Process(pid).memory_info().rss for pid in daemon.pids().values())


def first_ack_s(place: Path, how: signal.Signals) -> float:
    """Start a daemon over a directory, time until the first acknowledgement, end it by ``how``."""
    socket = place / "w.sock"
    command = wald_command(
        "serve", "--to", f"sqlite:{place}/absent/x.db", "--data-dir", str(place / "data"),
        "--socket", str(socket),
    )  # fmt: skip
    with (place / "serve.log").open("ab") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log)
        with wald.connect(str(socket), wait_for_daemon=True) as producer:
            producer.append("bench", b"first")
            took = time.perf_counter() - start
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
        if how is signal.SIGKILL:
            for one in family:
                one.kill()
        else:
            process.send_signal(how)
        psutil.wait_procs(family, timeout=30)
        process.wait(30)
    return took


def main(times: int) -> int:
    with directory() as place, directory() as empty:
        target = f"sqlite:{place}/absent/x.db"
        with Daemon(place, to=target) as daemon:
            fill(daemon)
            status = daemon.command("status", "--json")
            assert f"{BACKLOG}" in status, status
            resident = resident_bytes(daemon)
        with Daemon(empty, to=f"sqlite:{empty}/absent/x.db"):
            pass
        rows = [
            Comparison(
                "resident with a backlog of 2 million, MiB", "MiB",
                [resident / (1 << 20)], [RESIDENT_GOAL_BYTES / (1 << 20)], 1.0,
                smaller_is_better=True,
            )
        ]  # fmt: skip
        for how in (signal.SIGTERM, signal.SIGKILL):
            first_ack_s(place, how)  # the start that is timed follows an end of this kind
            first_ack_s(empty, how)
            ours, theirs = [], []
            for _ in range(times):
                ours.append(first_ack_s(place, how) * 1e3)
                theirs.append(first_ack_s(empty, how) * 1e3)
            name = f"start to first ack after {how.name}, against an empty start"
            rows.append(
                Comparison(name, "ms", ours, theirs, START_RATIO_GOAL, smaller_is_better=True)
            )
            rows.append(
                Comparison(
                    f"start to first ack after {how.name}, against 1 s", "ms",
                    ours, [START_GOAL_S * 1e3] * times, 1.0, smaller_is_better=True,
                )
            )  # fmt: skip
    return report(rows, "size")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
