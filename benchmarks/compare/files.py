"""Draining the flights (19 columns) into files of NDJSON, against a bare loop that does only that.

    python -m benchmarks.compare.files [ALTERNATIONS]

Each in a process of its own, its start not counted: `wald replay` over a log of the flights, log,
ledger, progress row and checkpoints included, and a loop of msgpack decode, JSON encode and write
over the same values in memory. Both write a file for 20,000 rows and flush it. Then the same in one
process by the processor time of all threads, which is steadier where disk and cores are shared.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import msgpack

import wald
from benchmarks import flights
from benchmarks.compare.cost import default_garbage_collector
from benchmarks.compare.policy import fill
from benchmarks.harness import Comparison, alternate, report, wald_command
from benchmarks.harness import short_directory as directory
from tests.backlog import CLOCK, FS, Backlog
from tests.daemon import Daemon
from wald.app import calm_garbage_collector
from wald.config import BatchSettings, RouteSettings
from wald.drainer.replay import replay
from wald.sinks.files import make as make_files

GOAL = 0.8
ROWS = 20_000
REQUEST = 500

BARE = """
import json, os, sys, time
import msgpack
source, target, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
with open(source, "rb") as file:
    values = msgpack.unpackb(file.read(), max_bin_len=1 << 20)
encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
began = time.perf_counter()
for start in range(0, len(values), rows):
    with open(f"{target}/{start}.ndjson", "w") as file:
        for value in values[start : start + rows]:
            file.write(encode(msgpack.unpackb(value)) + "\\n")
        file.flush()
        os.fsync(file.fileno())
print(time.perf_counter() - began)
"""


def count(place: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in place.glob("*.ndjson"))


def config(place: Path) -> str:
    return f"""
[daemon]
data_dir = "{place}/data"
socket = "{place}/w.sock"
stop_deliver_for = "0s"
[sinks.files]
type = "files"
path = "{place}/later/out"
mode = "columns"
[routes.flights]
stream = "flights"
sink = "files"
batch = {{ max_records = {ROWS}, max_bytes = "32MiB", adaptive = false }}
"""


def ours(records: Sequence[object]) -> float:
    """Append the flights while the target is absent, then time the replay; rows a second."""
    with directory() as place:
        with (
            Daemon(place, config=config(place)) as daemon,
            wald.connect(str(daemon.socket)) as producer,
        ):
            for start in range(0, len(records), REQUEST):
                producer.append_many("flights", records[start : start + REQUEST])
        (place / "later").mkdir()
        command = wald_command("replay", "--config", str(place / "wald.toml"), "--json")
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        took = float(json.loads(done.stdout)["seconds"])
        assert count(place / "later" / "out") == len(records)
        return len(records) / took


def theirs(records: Sequence[object]) -> float:
    with directory() as place:
        target, source = place / "out", place / "flights.msgpack"
        target.mkdir()
        source.write_bytes(msgpack.packb([msgpack.packb(record) for record in records]))
        command = [sys.executable, "-c", BARE, str(source), str(target), str(ROWS)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        took = float(done.stdout)
        assert count(target) == len(records)
        return len(records) / took


def our_cost(values: Sequence[bytes]) -> float:
    """Drain a log of the flights; returns nanoseconds of processor time a row."""
    with directory() as place:
        backlog, target = Backlog(place, "one"), place / "out"
        fill(backlog, 1, values)
        batch = BatchSettings(ROWS, 32 << 20, adaptive=False)
        routes = {"one": RouteSettings("one", "one", "one", batch=batch)}
        options = {"path": str(target), "mode": "columns"}
        began_ns = time.process_time_ns()
        replay(
            replace(backlog.settings, routes=routes),
            backlog.log,
            make_sink=lambda *_: make_files("one", "one", options),
            fs=FS,
            clock=CLOCK,
            chance=Random(1),
        )
        took_ns = time.process_time_ns() - began_ns
        backlog.close()
        assert count(target) == len(values)
    return took_ns / len(values)


def their_cost(values: Sequence[bytes]) -> float:
    encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
    with directory() as place, default_garbage_collector():
        began_ns = time.process_time_ns()
        for start in range(0, len(values), ROWS):
            with (place / f"{start}.ndjson").open("w") as file:
                for value in values[start : start + ROWS]:
                    file.write(encode(msgpack.unpackb(value)) + "\n")
                file.flush()
                os.fsync(file.fileno())
        took_ns = time.process_time_ns() - began_ns
    return took_ns / len(values)


def main(times: int) -> int:
    records = flights.read()
    values = [msgpack.packb(record) for record in records]
    first, second = alternate(lambda: ours(records), lambda: theirs(records), times)
    calm_garbage_collector()  # as every process of wald that delivers does
    our_ns, their_ns = alternate(lambda: our_cost(values), lambda: their_cost(values), times)
    rows = [
        Comparison("drain to files of NDJSON against a bare loop", "rows/s", first, second, GOAL),
        Comparison(
            "the same by processor time a row", "ns", our_ns, their_ns, 1 / GOAL,
            smaller_is_better=True,
        ),
    ]  # fmt: skip
    return report(rows, "files")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
