"""SQLite as the contract's target: a file, which a test damages, locks, copies and puts back."""

import json
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from tests.servers import small_disk
from wald.model import SystemicKind
from wald.testing.sink_contract import DOCUMENT_INPUT, NO_MAP, Held, Trouble, Workbench

ENDLESS = (
    "CREATE VIEW endless AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
    " SELECT x FROM n"
)


class SqliteDocuments(Workbench):
    """Mode ``document``."""

    factory = "wald.sinks.sqlite:make"
    poison: object = {"host": "poison", "n": -1}
    ddl = (
        "CREATE TABLE events (log_id BLOB NOT NULL, lsn INTEGER NOT NULL, key, time TEXT NOT NULL, "
        "headers TEXT, value CHECK (iif(json_valid(value), value ->> 'n' >= 0, TRUE)), "
        "PRIMARY KEY (log_id, lsn))"
    )
    rows = (
        "SELECT log_id, lsn, key, value FROM events WHERE json_valid(value) AND "
        "json_type(value, '$.n') IS NOT NULL ORDER BY rowid"
    )

    def __init__(self, place: Path) -> None:
        self.disk = place / "disk"
        self.disk.mkdir()
        self.is_small = small_disk.mount(self.disk, "64m")
        self.place = self.disk / "target"
        self.place.mkdir()
        self.path = self.place / "target.db"
        self.settings = {"path": str(self.path), "busy_timeout": "0s"}
        self.execute(self.ddl)

    @property
    def absent(self) -> Mapping[str, str]:
        return {
            "secret": "a path is all that it needs",
            "server": "SQLite runs in the drain process, and dies with it",
            "connection": "there is none: SQLite runs in the drain process",
            "trouble.authentication": "there is no login",
            **({} if self.is_small else {"trouble.full": "only root can mount a small disk"}),
        }

    def execute(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.path, isolation_level=None)) as database:
            for statement in statements:
                database.execute(statement)

    def held(self) -> Sequence[Held]:
        with closing(sqlite3.connect(self.path)) as database:
            return [
                Held(log_id, lsn, key, json.loads(value))
                for log_id, lsn, key, value in database.execute(self.rows)
            ]

    @property
    def bad_input(self) -> Mapping[str, str]:
        return DOCUMENT_INPUT

    def backup(self) -> Path:
        backup = self.disk / "backup"
        shutil.rmtree(backup, ignore_errors=True)
        shutil.copytree(self.place, backup, ignore=shutil.ignore_patterns("*-shm"))
        return backup

    def restore(self, backup: object) -> None:
        assert isinstance(backup, Path)
        shutil.rmtree(self.place)
        shutil.copytree(backup, self.place)

    @property
    def troubles(self) -> Mapping[SystemicKind, Trouble]:
        return {
            SystemicKind.UNREACHABLE: self.out_of_reach,
            SystemicKind.BUSY: self.locked,
            SystemicKind.CONFIGURATION: self.without_its_table,
            SystemicKind.DAMAGED: self.overwritten,
            SystemicKind.FULL: partial(small_disk.filled, self.disk),
        }

    def close(self) -> None:
        if self.is_small:
            small_disk.unmount(self.disk)

    @contextmanager
    def out_of_reach(self) -> Iterator[None]:
        away = self.place.with_name("away")
        self.place.rename(away)
        yield
        away.rename(self.place)

    @contextmanager
    def locked(self) -> Iterator[None]:
        with closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield

    @contextmanager
    def without_its_table(self) -> Iterator[None]:
        self.execute("ALTER TABLE events RENAME TO away", "CREATE TABLE events (strange)")
        yield
        self.execute("DROP TABLE events", "ALTER TABLE away RENAME TO events")

    @contextmanager
    def overwritten(self) -> Iterator[None]:
        away = self.place.with_name("away")
        self.place.rename(away)
        self.place.mkdir()
        self.path.write_bytes(b"not a database" * 100)
        yield
        shutil.rmtree(self.place)
        away.rename(self.place)

    @contextmanager
    def hangs(self) -> Iterator[None]:
        select = "BEGIN SELECT max(x) FROM endless; END"
        self.execute(ENDLESS, f"CREATE TRIGGER slow BEFORE INSERT ON events {select}")
        yield
        self.execute("DROP TRIGGER slow", "DROP VIEW endless")


class SqliteColumns(SqliteDocuments):
    """Mode ``columns``."""

    ddl = (
        "CREATE TABLE events (host TEXT NOT NULL, n INTEGER NOT NULL CHECK (n >= 0), text TEXT, "
        "UNIQUE (host, n))"
    )
    rows = "SELECT host, n, text FROM events ORDER BY rowid"

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        columns = {"host": "host", "n": "n", "text": "text"}
        self.settings = {**self.settings, "mode": "columns", "columns": columns}

    @property
    def bad_input(self) -> Mapping[str, str]:
        refused = dict.fromkeys(NO_MAP, "record.value")
        without_n = ("a field is missing", "nil for a number", "NaN")
        return {
            **DOCUMENT_INPUT,
            **refused,
            **dict.fromkeys(without_n, "SQLITE_CONSTRAINT_NOTNULL"),
            "a number of 64 bits without a sign": "record.value",
            "a number of 400 digits": "record.value",
            "half of a surrogate pair in JSON": "record.value",
        }

    def held(self) -> Sequence[Held]:
        with closing(sqlite3.connect(self.path)) as database:
            return [
                Held(None, None, None, {"host": host, "n": n} | ({"text": text} if text else {}))
                for host, n, text in database.execute(self.rows)
            ]


class SqliteUpsert(SqliteColumns):
    """Mode ``upsert``."""

    ddl = (
        "CREATE TABLE events (host TEXT NOT NULL, n INTEGER NOT NULL CHECK (n >= 0), text TEXT, "
        "wald_log_id BLOB, wald_lsn INTEGER, PRIMARY KEY (host, n))"
    )
    rows = "SELECT host, n, text, wald_log_id, wald_lsn FROM events ORDER BY rowid"

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.settings = {**self.settings, "mode": "upsert", "conflict": ["host", "n"]}

    @property
    def bad_input(self) -> Mapping[str, str]:
        without_key = ("a field is missing", "nil for a number")
        return {**super().bad_input, **dict.fromkeys(without_key, "record.value")}

    def held(self) -> Sequence[Held]:
        with closing(sqlite3.connect(self.path)) as database:
            return [
                Held(log, lsn, None, {"host": host, "n": n} | ({"text": text} if text else {}))
                for host, n, text, log, lsn in database.execute(self.rows)
            ]
