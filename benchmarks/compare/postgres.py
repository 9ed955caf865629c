"""Draining the flights (19 columns) into PostgreSQL, against a plain loop, and against Redis.

    python -m benchmarks.compare.postgres [ALTERNATIONS]

One server, which flushes. In turn, each in a process of its own, its start not counted: `wald
replay` over a log of the flights in mode columns, reading, ledger and checkpoints included; a plain
loop of msgpack decode and `copy.write_row` (binary), 2,000 rows a transaction, over the same values
in memory; and a consumer group of Redis Streams, written by hand, that copies the same batches
and acknowledges them, with Redis flushing every second, as it comes. Then ours and the plain loop
in this process, by its processor time: steadier where disk and cores are shared.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from random import Random

import msgpack
import psycopg

import wald
from benchmarks import flights
from benchmarks.compare.cost import default_garbage_collector
from benchmarks.compare.policy import BATCH, fill
from benchmarks.harness import Comparison, alternate, redis, report, wald_command
from benchmarks.harness import short_directory as directory
from tests.backlog import CLOCK, FS, Backlog
from tests.daemon import Daemon
from tests.servers.postgres import Postgres, need_postgres
from wald.app import calm_garbage_collector
from wald.config import RouteSettings
from wald.drainer.replay import replay
from wald.sinks.postgres import make

GOAL, REDIS_GOAL = 1.0, 1.7
ROWS, MANY_ROWS = 2_000, 10_000
REQUEST = 500
COLUMNS = ", ".join(flights.COLUMNS)
TYPES = " ".join("int4" if name in flights.NUMBERS else "text" for name in flights.COLUMNS)

PLAIN = """
import sys, time
import msgpack, psycopg
source, url, names, types = sys.argv[1], sys.argv[2], sys.argv[3].split(", "), sys.argv[4].split()
with open(source, "rb") as file:
    values = msgpack.unpackb(file.read(), max_bin_len=1 << 20)
database = psycopg.connect(url)
statement = f"COPY flights ({', '.join(names)}) FROM STDIN (FORMAT binary)"
began = time.perf_counter()
for start in range(0, len(values), 2000):
    with database.cursor().copy(statement) as copy:
        copy.set_types(types)
        for value in values[start : start + 2000]:
            flight = msgpack.unpackb(value)
            copy.write_row([flight.get(name) for name in names])
    database.commit()
print(time.perf_counter() - began)
"""

GROUP = """
import sys, time
import msgpack, psycopg, redis
source, url, names, types = sys.argv[1], sys.argv[2], sys.argv[3].split(", "), sys.argv[4].split()
stream = redis.Redis(unix_socket_path=sys.argv[5])
with open(source, "rb") as file:
    values = msgpack.unpackb(file.read(), max_bin_len=1 << 20)
for start in range(0, len(values), 2000):
    pipe = stream.pipeline(transaction=False)
    for value in values[start : start + 2000]:
        pipe.xadd("flights", {"v": value})
    pipe.execute()
stream.xgroup_create("flights", "copy", "0")
database = psycopg.connect(url)
statement = f"COPY flights ({', '.join(names)}) FROM STDIN (FORMAT binary)"
began = time.perf_counter()
done = 0
while done < len(values):
    ((_, entries),) = stream.xreadgroup("copy", "one", {"flights": ">"}, count=2000)
    with database.cursor().copy(statement) as copy:
        copy.set_types(types)
        for _, fields in entries:
            flight = msgpack.unpackb(fields[b"v"])
            copy.write_row([flight.get(name) for name in names])
    database.commit()
    stream.xack("flights", "copy", *(number for number, _ in entries))
    done += len(entries)
print(time.perf_counter() - began)
"""


class Target:
    """The server, with an empty table for each turn."""

    def __init__(self, server: Postgres) -> None:
        self.server = server

    def empty(self) -> None:
        self.server.sql("DROP TABLE IF EXISTS flights")
        self.server.sql("DROP SCHEMA IF EXISTS wald CASCADE")
        self.server.sql(flights.TABLE)
        self.server.sql("CHECKPOINT")

    def check(self, records: Sequence[object]) -> None:
        assert self.server.sql("SELECT count(*) FROM flights") == [(len(records),)]


def config(place: Path, url: str, rows: int) -> str:
    return f"""
[daemon]
data_dir = "{place}/data"
socket = "{place}/w.sock"
stop_deliver_for = "0s"
[sinks.db]
type = "postgres"
url = "{url}"
[routes.flights]
stream = "flights"
sink = "db"
mode = "columns"
table = "flights"
batch = {{ max_records = {rows}, max_bytes = "8MiB" }}
"""


def ours(target: Target, records: Sequence[object], rows: int = ROWS) -> float:
    """Append the flights while the table is absent, then time the replay; rows a second."""
    with directory() as place:
        target.server.sql("DROP TABLE IF EXISTS flights")
        with (
            Daemon(place, config=config(place, target.server.url(), rows)) as daemon,
            wald.connect(str(daemon.socket)) as producer,
        ):
            for start in range(0, len(records), REQUEST):
                producer.append_many("flights", records[start : start + REQUEST])
        target.empty()
        command = wald_command("replay", "--config", str(place / "wald.toml"), "--json")
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        took = float(json.loads(done.stdout)["seconds"])
        target.check(records)
        return len(records) / took


def theirs(target: Target, records: Sequence[object], program: str, *more: str) -> float:
    with directory() as place:
        target.empty()
        source = place / "flights.msgpack"
        source.write_bytes(msgpack.packb([msgpack.packb(record) for record in records]))
        command = [
            sys.executable,
            "-c",
            program,
            str(source),
            target.server.url(),
            COLUMNS,
            TYPES,
            *more,
        ]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        target.check(records)
        return len(records) / float(done.stdout)


def group(target: Target, records: Sequence[object]) -> float:
    with directory() as place, redis(place, "everysec") as socket:
        return theirs(target, records, GROUP, str(socket))


def cost_ours(target: Target, values: Sequence[bytes]) -> float:
    """Drain a log of the flights in this process; nanoseconds of its processor time a row."""
    options = {"url": target.server.url(), "mode": "columns", "table": "flights"}
    with directory() as place:
        backlog = Backlog(place, "one")
        fill(backlog, 1, values)
        target.empty()
        routes = {"one": RouteSettings("one", "one", "one", batch=BATCH)}
        settings = replace(backlog.settings, routes=routes)
        began_ns = time.process_time_ns()
        replay(
            settings,
            backlog.log,
            make_sink=lambda *_: make("one", "one", options),
            fs=FS,
            clock=CLOCK,
            chance=Random(1),
        )
        took_ns = time.process_time_ns() - began_ns
        backlog.close()
    target.check(values)
    return took_ns / len(values)


def cost_theirs(target: Target, values: Sequence[bytes]) -> float:
    target.empty()
    with default_garbage_collector():
        began_ns = time.process_time_ns()
        with psycopg.connect(target.server.url()) as database:
            statement = f"COPY flights ({COLUMNS}) FROM STDIN (FORMAT binary)"
            for start in range(0, len(values), ROWS):
                with database.cursor().copy(statement.encode()) as copy:
                    copy.set_types(TYPES.split())
                    for value in values[start : start + ROWS]:
                        flight = msgpack.unpackb(value)
                        copy.write_row([flight.get(name) for name in flights.COLUMNS])
                database.commit()
        took_ns = time.process_time_ns() - began_ns
    target.check(values)
    return took_ns / len(values)


def main(times: int) -> int:
    records = flights.read()
    first, larger, second, third = list[float](), list[float](), list[float](), list[float]()
    with ExitStack() as stack:
        place = stack.enter_context(directory())
        server = Postgres(place / "pg", need_postgres())
        server.place.mkdir()
        place.chmod(0o755)
        server.make()
        server.configure("fsync = on", "shared_buffers = 128MB")
        server.start()
        stack.callback(lambda: server.kill() if server.is_running else None)
        target = Target(server)
        for _ in range(times):
            first.append(ours(target, records))
            larger.append(ours(target, records, MANY_ROWS))
            second.append(theirs(target, records, PLAIN))
            third.append(group(target, records))
        calm_garbage_collector()  # as every process of wald that delivers does
        values = [msgpack.packb(record) for record in records]
        cost, plain_cost = alternate(
            lambda: cost_ours(target, values), lambda: cost_theirs(target, values), times
        )
    return report(
        [
            Comparison("drain to PostgreSQL against a plain loop", "rows/s", first, second, GOAL),
            Comparison("the same, 10,000 rows a batch", "rows/s", larger, second, GOAL),
            Comparison("2,000 a batch against a Redis group", "rows/s", first, third, REDIS_GOAL),
            Comparison("a Redis group against a plain loop", "rows/s", third, second, 0.0),
            Comparison(
                "processor time a row, one lane to PostgreSQL",
                "ns",
                cost,
                plain_cost,
                1 / GOAL,
                smaller_is_better=True,
            ),
        ],
        "postgres",
    )


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
