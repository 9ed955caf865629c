"""Writes whole data directories of a release: `python -m tests.golden.generate_directories FOLDER`.

They are made once by real daemons, for each format (FOLDER is ``directories-1``), and are read for
ever. Each archive holds the data directory, the target as it was then, the configuration, and
``expected.json``: what the target must hold once everything is delivered, and what is dead.
"""

import json
import sqlite3
import sys
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import chdir, closing
from pathlib import Path

import wald
from tests.crash.power import kill_all
from tests.daemon import Daemon, wait_until

HERE = Path(__file__).parent
STREAM = "orders"
CONFIG = """
[daemon]
data_dir = "data"
segment_bytes = "16MiB"
repack = { after = "1s", max_bytes = "0B" }
retain = { after_delivery = "0s", max_bytes = "0B" }
[sinks.db]
type = "sqlite"
path = "orders.db"
[routes.db]
stream = "orders"
sink = "db"
mode = "columns"
table = "picky"
batch = { max_records = 10, max_age = "20ms" }
"""
SCHEMA = "CREATE TABLE picky (n INTEGER PRIMARY KEY CHECK (n % 17 <> 5), pad BLOB)"


class Making:
    """A directory in the making."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.sent: list[int] = []
        with closing(sqlite3.connect(place / "orders.db")) as database:
            database.execute(SCHEMA)
        self.daemon = Daemon(place, config=CONFIG)

    def append(self, count: int, pad_bytes: int = 20) -> None:
        """Append so many records from one named producer."""
        with wald.connect(str(self.daemon.socket), name="golden") as producer:
            for _ in range(count):
                number = len(self.sent)
                value = {"n": number, "pad": bytes([number % 256]) * pad_bytes}
                producer.append(STREAM, value, key=f"k{number % 3}")
                self.sent.append(number)

    def drained(self) -> None:
        """Wait until all is delivered or dead."""
        self.daemon.command("wait", "--all")


def clean(making: Making) -> None:
    """All delivered but for some dead letters; stopped in order."""
    with making.daemon:
        making.append(40)
        making.drained()


def backlog(making: Making) -> None:
    """A route held back with everything still to deliver, then a kill."""
    with making.daemon:
        making.append(15)
        making.drained()
        making.daemon.command("route", "pause", "db")
        making.append(120)
        kill_all(making.daemon)


def torn(making: Making) -> None:
    """A kill, and a tail that was torn: a group that nobody was answered for."""
    backlog(making)
    segments = sorted((making.place / "data" / "log").glob("seg-*.wal"))
    segment = [path for path in segments if any(path.read_bytes()[4096:8192])][-1]
    end = len(segment.read_bytes().rstrip(b"\0"))
    with segment.open("r+b") as file:
        file.seek(-(-end // 4096) * 4096)
        file.write(b"a group that was torn" * 10)


def packed(making: Making) -> None:
    """Records of a route held back in packed files, the log used again."""
    with making.daemon:
        making.daemon.command("route", "pause", "db")
        making.append(40, 450_000)
        files = making.place / "data" / "packed"
        wait_until(lambda: any(files.glob("pack-*")), "it packs")
        kill_all(making.daemon)


def redriven(making: Making) -> None:
    """Dead letters, some sent again and taken, some purged."""
    with making.daemon:
        making.append(80)
        making.drained()
        with closing(sqlite3.connect(making.place / "orders.db", timeout=30)) as database:
            database.execute("ALTER TABLE picky RENAME TO old")
            database.execute("CREATE TABLE picky (n INTEGER PRIMARY KEY CHECK (n <> 5), pad BLOB)")
            database.execute("INSERT INTO picky SELECT * FROM old")
            database.execute("DROP TABLE old")
            database.commit()
        command = ("dlq", "redrive", "--route", "db", "--wait", "30s")
        making.daemon.command(*command, expect=1)  # one is refused again
        making.drained()
        making.append(10)
        kill_all(making.daemon)


CASES: dict[str, Callable[[Making], None]] = {
    "clean": clean,
    "backlog": backlog,
    "torn": torn,
    "packed": packed,
    "redriven": redriven,
}


def make(name: str, archive: Path) -> None:
    """Make one directory and pack it; sockets and logs of the processes stay out."""
    with tempfile.TemporaryDirectory(prefix="wg") as directory, chdir(directory):
        making = Making(Path(directory))
        CASES[name](making)
        refused = {5} if name == "redriven" else {n for n in making.sent if n % 17 == 5}
        expected = {
            "target": sorted(set(making.sent) - refused),
            "dead": sorted(refused),
        }
        (making.place / "expected.json").write_text(json.dumps(expected))
        with tarfile.open(archive, "x:xz") as packed:
            for path in ("data", "orders.db", "orders.db-wal", "wald.toml", "expected.json"):
                if (making.place / path).exists():
                    packed.add(making.place / path, path)


def main() -> None:
    """Make every archive that is not there; never over another."""
    folder = HERE / sys.argv[1]
    folder.mkdir(exist_ok=True)
    for name in CASES:
        if not (folder / f"{name}.tar.xz").exists():
            make(name, folder / f"{name}.tar.xz")


if __name__ == "__main__":
    main()
