"""Draining the flights (19 columns) into SQLite, against a bare loop that does only that.

    python -m benchmarks.compare.drain [ALTERNATIONS]

Each in a process of its own, its start not counted: `wald replay` over a log of the flights,
reading, ledger and checkpoints included, and a loop of msgpack decode and executemany with 2,000
rows a transaction over the same values in memory.
"""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgpack

import wald
from benchmarks import flights
from benchmarks.harness import Comparison, report, wald_command
from benchmarks.harness import short_directory as directory
from tests.daemon import Daemon

GOAL = 1.0
ROWS = 2_000
REQUEST = 500

BARE = """
import sqlite3, sys, time
import msgpack
source, target, names = sys.argv[1], sys.argv[2], sys.argv[3].split()
with open(source, "rb") as file:
    values = msgpack.unpackb(file.read(), max_bin_len=1 << 20)
database = sqlite3.connect(target, isolation_level=None)
database.execute("pragma journal_mode=wal")
database.execute("pragma synchronous=full")
began = time.perf_counter()
insert = f"insert into flights values ({', '.join('?' * len(names))})"
for start in range(0, len(values), 2000):
    rows = []
    for value in values[start : start + 2000]:
        flight = msgpack.unpackb(value)
        rows.append([flight.get(name) for name in names])
    database.execute("begin immediate")
    database.executemany(insert, rows)
    database.execute("commit")
print(time.perf_counter() - began)
database.close()
"""


def make_table(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("pragma journal_mode=wal")
    database.execute(flights.TABLE)
    database.close()


def count(path: Path) -> int:
    database = sqlite3.connect(path)
    try:
        return int(database.execute("select count(*) from flights").fetchone()[0])
    finally:
        database.close()


def config(place: Path) -> str:
    return f"""
[daemon]
data_dir = "{place}/data"
socket = "{place}/w.sock"
stop_deliver_for = "0s"
[sinks.db]
type = "sqlite"
path = "{place}/later/flights.db"
[routes.flights]
stream = "flights"
sink = "db"
mode = "columns"
table = "flights"
batch = {{ max_records = {ROWS}, max_bytes = "4MiB" }}
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
        target = place / "later" / "flights.db"
        make_table(target)
        command = wald_command("replay", "--config", str(place / "wald.toml"), "--json")
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        took = float(json.loads(done.stdout)["seconds"])
        assert count(target) == len(records)
        return len(records) / took


def theirs(records: Sequence[object]) -> float:
    with directory() as place:
        target, source = place / "flights.db", place / "flights.msgpack"
        source.write_bytes(msgpack.packb([msgpack.packb(record) for record in records]))
        make_table(target)
        command = [sys.executable, "-c", BARE, str(source), str(target), " ".join(flights.COLUMNS)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        took = float(done.stdout)
        assert count(target) == len(records)
        return len(records) / took


def main(times: int) -> int:
    records = flights.read()
    first, second = [], []
    for _ in range(times):
        first.append(ours(records))
        second.append(theirs(records))
    return report(
        [Comparison("drain to SQLite against a bare loop", "rows/s", first, second, GOAL)], "drain"
    )


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
