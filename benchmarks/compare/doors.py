"""What each switch at the door costs ingest, by processor time: the real door without its sockets.

    python -m benchmarks.compare.doors [ALTERNATIONS]

Frames go through a real connection, committer and log, whose files are in memory: what is measured
is what Python does for a request from the read to its answer. Each row compares a switch that is
on with the same requests and the switch off, in turn. Then how long an urgent record waits for its
answer in a flood, with a real daemon and its disk.
"""

import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, cast

import msgpack

import wald
from benchmarks.harness import Comparison, alternate, report, short_directory
from tests.daemon import Daemon
from tests.turns import OPTIONS, Client, Site
from wald.core import body as bodies
from wald.core.body import Body, Text
from wald.core.events import Append, AppendFlag, Capability
from wald.core.ids import DedupPolicy
from wald.core.rules import StreamRules
from wald.system import PosixFileSystem, SystemClock

STREAM = 1
IDS = StreamRules(compares_ids=True)
FIELDS = {f"field-{at}": "text" if at % 2 else "integer" for at in range(4)}
CAPABILITIES = Capability.DUPLICATES | Capability.RECEIVED
MEMORY = "/dev/shm"  # a directory of its own is made in it
URGENT_APPENDS = 400


class Shape(NamedTuple):
    """Requests, how many records each has, and how many stand in a read."""

    requests: int
    records: int
    in_a_read: int


SINGLE = Shape(20_000, 1, 64)
MANY = Shape(200, 500, 1)


def flat(shape: Shape, *, ids: bool = False, flags: int = 0) -> list[bytes]:
    """Reads of requests with values of 128 bytes; with ids: of 36 characters, all different."""
    chance = Random(1)
    values = [b"x" * 128] * shape.records

    def body() -> bytes:
        column: list[Text | None] | None = None
        if ids:
            column = [str(uuid.UUID(bytes=chance.randbytes(16))) for _ in values]
        return bodies.encode(Body(0, values, None, None, column))

    return reads(shape, [body() for _ in range(shape.requests)] if ids else [body()], flags)


def rows(shape: Shape) -> list[bytes]:
    """Reads of requests of msgpack maps with 19 fields."""
    value = {f"field-{at}": "text" if at % 2 else at for at in range(19)}
    data = msgpack.packb(value)
    keys: list[Text | None] = ["key"] * shape.records
    return reads(shape, [bodies.encode(Body(1, [data] * shape.records, keys))], 0)


def reads(shape: Shape, bodies_: Sequence[bytes], flags: int) -> list[bytes]:
    frames = [
        Append(STREAM, n + 1, 1, bodies_[n % len(bodies_)], flags).encode()
        for n in range(shape.requests)
    ]
    size = shape.in_a_read
    return [b"".join(frames[at : at + size]) for at in range(0, len(frames), size)]


def cost_ns(shape: Shape, data: Sequence[bytes], rules: Mapping[str, StreamRules]) -> float:
    """Return the processor time for each record, in nanoseconds."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as place:
        compares = any(each.compares_ids for each in rules.values())
        dedup = {"orders": DedupPolicy(3600.0, 1_000_000)} if compares else {}
        site = _site(Path(place), rules, dedup)
        client = Client(site)
        client.hello("", 0, CAPABILITIES)
        began = time.process_time()
        for read in data:
            client.send(read)
            site.loop.turn()
        took_s = time.process_time() - began
        site.log.close()
    return took_s / (shape.requests * shape.records) * 1e9


def _site(place: Path, rules: Mapping[str, StreamRules], dedup: Mapping[str, DedupPolicy]) -> Site:
    options = replace(OPTIONS, segment_bytes=64 << 20, dedup=dedup)
    fs, clock = cast("Any", PosixFileSystem()), cast("Any", SystemClock())
    return Site(options, fs, clock, rules=rules, data_dir=f"{place}/data")


def switches(times: int) -> list[Comparison]:
    """Return the cost of each switch beside the same without it."""
    off: Mapping[str, StreamRules] = {}
    found = []
    for shape, what in ((SINGLE, "one record"), (MANY, "500 records")):
        plain, with_ids, maps = flat(shape), flat(shape, ids=True), rows(shape)
        early = flat(shape, flags=AppendFlag.RECEIVED)
        on: list[tuple[str, list[bytes], list[bytes], StreamRules | None, float]] = [
            ("ids compared, records without", plain, plain, IDS, 1.1),
            ("ids compared, records with", with_ids, with_ids, IDS, 2.5),
            ("received", early, plain, None, 1.5),
            ("max_record_bytes", plain, plain, StreamRules(max_record_bytes=4_096), 8.0),
            ("key", maps, maps, StreamRules(key_required=True), 3.0),
            ("four fields of 19", maps, maps, StreamRules(fields=FIELDS), 30.0),
        ]
        for name, ours, theirs, rules, goal in on:
            asked = off if rules is None else {"orders": rules}

            def with_it(
                data: list[bytes] = ours, asked: Mapping[str, StreamRules] = asked
            ) -> float:
                return cost_ns(shape, data, asked)  # noqa: B023 - used at once

            def without(data: list[bytes] = theirs) -> float:
                return cost_ns(shape, data, off)  # noqa: B023 - used at once

            with_it()
            series = alternate(with_it, without, times)
            title = f"{what}: {name}"
            found.append(Comparison(title, "ns/rec", *series, goal, smaller_is_better=True))
            print(found[-1].row(), flush=True)
    return found


class Flood:
    """Producers in threads that append without a pause, while it is on."""

    def __init__(self, path: Path) -> None:
        self.on, self._stop = threading.Event(), threading.Event()
        self._path = path
        self._threads = [threading.Thread(target=self._append) for _ in range(2)]
        for thread in self._threads:
            thread.start()

    def _append(self) -> None:
        with wald.connect(self._path) as producer:
            values: list[object] = [b"x" * 128] * 1_000
            while not self._stop.is_set():
                if self.on.wait(0.1):
                    producer.append_many("flood", values)

    def end(self) -> None:
        self._stop.set()
        self.on.set()
        for thread in self._threads:
            thread.join()


def urgent(times: int) -> Comparison:
    """Return how long urgent records wait for their answer, in a flood and alone."""
    with short_directory() as place, Daemon(place, to=f"sqlite:{place}/absent/x.db") as daemon:
        flood = Flood(daemon.socket)
        with wald.connect(daemon.socket) as producer:

            def wait_us() -> float:
                waits = []
                for _ in range(URGENT_APPENDS):
                    began = time.perf_counter()
                    producer.append("calls", b"now", urgent=True)
                    waits.append(time.perf_counter() - began)
                return statistics.quantiles(waits, n=100)[98] * 1e6

            def in_flood() -> float:
                flood.on.set()
                return wait_us()

            def alone() -> float:
                flood.on.clear()
                return wait_us()

            series = alternate(in_flood, alone, times)
        flood.end()
    name = "urgent, p99, in a flood of 2 x append_many"
    return Comparison(name, "us", *series, 3.0, smaller_is_better=True)


def main(times: int) -> int:
    return report([*switches(times), urgent(times)], "doors")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 11))
