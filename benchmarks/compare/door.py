"""The door under pressure: idle connections, misbehaving ones, a flood.

    python -m benchmarks.compare.door [ALTERNATIONS] [SECONDS]

SECONDS is how long the flood lasts in all, in as many parts as there are alternations.
"""

import contextlib
import multiprocessing
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from typing import Any

import psutil

import wald
from benchmarks.harness import Comparison, alternate, build_load, report, run_load
from benchmarks.harness import short_directory as directory
from tests.daemon import Daemon
from wald.core.events import Hello, Ping

ALTERNATIONS = 11
MIB = 1 << 20
IDLE = 1_000
IDLE_GOAL_MIB = 32.0
ACTIVE, BAD = 990, 10
ACTIVE_GOAL = 1.2
RUNS = 5  # of two seconds, a turn
FLOOD_S = 120.0
TARGET_PER_S = 2_000
FLOOD_PER_S = 10 * TARGET_PER_S
FLOOD_GOAL = 3.0
FLAT_GOAL = 1.15  # of the memory behind the first ten seconds
URGENT_APPENDS = 300

CONFIG = """
[daemon.clients]
connections = 1100
hello_timeout = "2s"
frame_timeout = "5s"
[sinks.slow]
type = "sqlite"
path = "{place}/x.db"
[routes.bulk]
stream = "bulk"
sink = "slow"
max_records_per_s = {per_s}
[routes.urgent]
stream = "urgent"
sink = "slow"
[routes.bench]
stream = "bench"
sink = "slow"
"""


@contextmanager
def daemon() -> Iterator[Daemon]:
    with directory() as place:
        config = CONFIG.format(place=place, per_s=TARGET_PER_S)
        with Daemon(place, config=config) as running:
            yield running


# --- idle ---------------------------------------------------------------------------------------


def idle_mib(running: Daemon) -> float:
    """What ingest has in use with so many connections that said HELLO, beyond what it had."""
    ingest = psutil.Process(running.pids()["ingest"])
    before = ingest.memory_info().rss
    with contextlib.ExitStack() as stack:
        for _ in range(IDLE):
            one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.connect(str(running.socket))
            greet(one)
        return (ingest.memory_info().rss - before) / MIB


# --- misbehaving --------------------------------------------------------------------------------


def misbehave(path: str, stop: Event) -> None:
    """Ten clients, each in its own way, until told to stop."""
    ways = [byte_by_byte, never_reading, reading_slowly, garbage, coming_and_going]
    threads = [
        threading.Thread(target=ways[number % len(ways)], args=(path, stop))
        for number in range(BAD)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def connected(path: str) -> socket.socket:
    one = socket.socket(socket.AF_UNIX)
    one.settimeout(0.5)
    one.connect(path)
    return one


def greet(one: socket.socket) -> None:
    one.sendall(Hello(1).encode())
    assert one.recv(200), "no WELCOME"


def byte_by_byte(path: str, stop: Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(OSError), connected(path) as one:
            for at in range(24):
                one.sendall(Hello(1).encode()[at : at + 1])
                if stop.wait(0.2):
                    return


def never_reading(path: str, stop: Event) -> None:
    pings = Ping(1, bytes(64)).encode() * 1_000
    while not stop.is_set():
        with contextlib.suppress(OSError), connected(path) as one:
            greet(one)
            while not stop.is_set():
                one.sendall(pings)
        stop.wait(0.1)


def reading_slowly(path: str, stop: Event) -> None:
    pings = Ping(1, bytes(64)).encode() * 1_000
    while not stop.is_set():
        with contextlib.suppress(OSError), connected(path) as one:
            greet(one)
            while not stop.wait(0.02):
                with contextlib.suppress(TimeoutError):
                    one.settimeout(0.01)
                    one.sendall(pings)
                one.recv(1)


def garbage(path: str, stop: Event) -> None:
    while not stop.wait(0.05):
        with contextlib.suppress(OSError), connected(path) as one:
            one.sendall(b"\xff" * 1_000)
            one.recv(100)


def coming_and_going(path: str, stop: Event) -> None:
    while not stop.wait(0.02):
        with contextlib.suppress(OSError), connected(path) as one:
            one.sendall(Hello(1).encode()[:20])


def behave(path: str, stop: Event) -> None:
    """Ten clients that append one by one."""

    def append() -> None:
        with wald.connect(path) as producer:
            while not stop.wait(0.02):
                producer.append("bench", b"v" * 128)

    threads = [threading.Thread(target=append) for _ in range(BAD)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def beside(target: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Run something in a process of its own meanwhile."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    process = context.Process(target=target, args=(*arguments, stop))
    process.start()
    try:
        time.sleep(1.0)  # it is at it
        yield
    finally:
        stop.set()
        process.join(30)


def p99_us(running: Daemon, others: Callable[..., None]) -> float:
    """The median of several runs: one slow flush is the p99 of a run as short as these."""
    with beside(others, str(running.socket)):
        runs = [run_load("wald", running.socket, (ACTIVE, 1, 1)) for _ in range(RUNS)]
        return statistics.median(run["p99_us"] for run in runs)


# --- a flood ------------------------------------------------------------------------------------


def flood(path: str, flooding: Event, accepted: Any, stop: Event) -> None:
    """Append at ten times the target's pace while told to."""
    values = [b"v" * 128] * 500
    with wald.connect(path, timeout=60) as producer:
        due = time.monotonic()
        while not stop.is_set():
            if not flooding.wait(0.1):
                due = time.monotonic()
                continue
            accepted.value += len(producer.append_many("bulk", values).accepted)
            due += len(values) / FLOOD_PER_S
            time.sleep(max(0.0, due - time.monotonic()))


def urgent_p99_us(producer: wald.Producer) -> float:
    took = []
    for _ in range(URGENT_APPENDS):
        start = time.perf_counter_ns()
        producer.append("urgent", b"v" * 128, urgent=True)
        took.append((time.perf_counter_ns() - start) / 1_000)
        time.sleep(0.002)
    return statistics.quantiles(took, n=100)[98]


def under_flood(times: int, seconds: float) -> list[Comparison]:
    context = multiprocessing.get_context("spawn")
    flooding, accepted = context.Event(), context.Value("q", 0)
    with daemon() as running, wald.connect(str(running.socket), timeout=60) as producer:
        pids = running.pids()
        urgent_p99_us(producer)
        memory: dict[str, list[float]] = {role: [] for role in pids}
        first: dict[str, float] = {}

        def quiet() -> float:
            flooding.clear()
            time.sleep(1.0)
            return urgent_p99_us(producer)

        def loud() -> float:
            flooding.set()
            end = time.monotonic() + seconds / times
            figure = urgent_p99_us(producer)
            time.sleep(max(0.0, end - time.monotonic()))
            for role, pid in pids.items():
                resident = psutil.Process(pid).memory_info().rss / MIB
                first.setdefault(role, resident)  # behind the first part: some ten seconds
                memory[role].append(resident)
            return figure

        with beside(flood, str(running.socket), flooding, accepted):
            urgent = Comparison(
                "urgent append under a flood, p99",
                "us",
                *alternate(loud, quiet, times),
                FLOOD_GOAL,
                smaller_is_better=True,
            )
        check_books(running, int(accepted.value))
        flat = [
            Comparison(
                f"memory under a flood, {role}",
                "MiB",
                memory[role],
                [first[role]] * times,
                FLAT_GOAL,
                smaller_is_better=True,
            )
            for role in pids
        ]
    return [urgent, *flat]


def check_books(running: Daemon, accepted: int) -> None:
    """What producers were told is what the books say."""
    answer: Any = running.ask(op="status")
    while answer["figures_lsn"] < answer["frontier_lsn"]:
        answer = running.ask(op="status")
    route = answer["routes"]["bulk"]
    parts = [route[name] for name in ("delivered", "pending", "dead_letters", "purged")]
    assert route["accepted"] == accepted == sum(parts), (accepted, route["accepted"], parts)
    print(f"books: {accepted:,} = {parts[0]:,} delivered + {parts[1]:,} pending", flush=True)


def main(times: int, seconds: float = FLOOD_S) -> int:
    build_load()
    with daemon() as running:
        grown = [idle_mib(running) for _ in range(times)]
        idle = Comparison(
            f"{IDLE:,} idle connections",
            "MiB",
            grown,
            [IDLE_GOAL_MIB] * times,
            1.0,
            smaller_is_better=True,
        )
    with daemon() as running:
        active = Comparison(
            f"{ACTIVE} beside {BAD} that misbehave, p99",
            "us",
            *alternate(lambda: p99_us(running, misbehave), lambda: p99_us(running, behave), times),
            ACTIVE_GOAL,
            smaller_is_better=True,
        )
    rows = [idle, active, *under_flood(times, seconds)]
    return report(rows, "door")


if __name__ == "__main__":
    sys.exit(
        main(
            int(sys.argv[1]) if len(sys.argv) > 1 else ALTERNATIONS,
            float(sys.argv[2]) if len(sys.argv) > 2 else FLOOD_S,
        )
    )
