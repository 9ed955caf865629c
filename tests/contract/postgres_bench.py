"""PostgreSQL as the contract's target: killed, locked, filled, damaged, dumped and restored."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from tests.servers import small_disk
from tests.servers.postgres import Postgres, hand_over
from wald.model import Secret, SystemicKind
from wald.sinks.values import VALUE_REFUSED
from wald.testing.proxy import Address
from wald.testing.sink_contract import DOCUMENT_INPUT, NO_MAP, Held, Trouble, Workbench

CANARY = "canary-7d1f"
SMALL = "8m"
NO_MOUNT = "filling a disk of its own needs root, and the right to mount"


class PostgresDocuments(Workbench):
    """Mode ``document``."""

    factory = "wald.sinks.postgres:make"
    poison: object = {"host": "poison", "n": -1}
    secret = CANARY
    options: Mapping[str, object] = {}
    ddl = (
        "CREATE TABLE events (seq serial, log_id uuid NOT NULL, lsn bigint NOT NULL, key text,"
        " time timestamptz NOT NULL, headers jsonb, value jsonb"
        " CHECK (jsonb_typeof(value -> 'n') <> 'number' OR (value ->> 'n')::numeric >= 0),"
        " PRIMARY KEY (log_id, lsn))"
    )
    rows = (
        "SELECT log_id, lsn, key, value FROM events"
        " WHERE jsonb_typeof(value) = 'object' AND value ? 'host' ORDER BY seq"
    )
    filler = (
        "INSERT INTO events SELECT 0, gen_random_uuid(), n, '', now(), null,"
        """ '{"host": "filler", "n": 0}' FROM generate_series(1, 1000000) n"""
    )

    def __init__(self, server: Postgres, database: str) -> None:
        self.server, self.database = server, database
        server.role("wald", CANARY)
        self.settings = {
            "url": server.url("wald", database),
            "password": Secret(CANARY),
            "lock_timeout": "100ms",
            **self.options,
        }
        self.sql(f"{self.ddl}; ALTER TABLE events OWNER TO wald")

    def sql(self, statement: str) -> list[Any]:
        return self.server.sql(statement, database=self.database)

    @property
    def absent(self) -> Mapping[str, str]:
        return {} if can_mount() else {"trouble.full": NO_MOUNT}

    @property
    def bad_input(self) -> Mapping[str, str]:
        return {
            **DOCUMENT_INPUT,
            "no JSON": "22P02",
            "NaN in JSON": "22P02",
            "half of a surrogate pair in JSON": "22P02",
            "NUL in a text": "22P05",
            "NUL in JSON": "22P05",
            "a key: NUL": VALUE_REFUSED,
        }

    def held(self) -> Sequence[Held]:
        return [
            Held(log_id and log_id.bytes, lsn, key, value)
            for log_id, lsn, key, value in self.sql(self.rows)
        ]

    def backup(self) -> str:
        return self.server.dump(self.database)

    def restore(self, backup: object) -> None:
        assert isinstance(backup, str)
        self.server.restore(self.database, backup)

    def kill(self) -> None:
        self.server.kill()

    def start(self) -> None:
        self.server.start()

    def address(self) -> Address:
        return ("127.0.0.1", self.server.port)

    def settings_through(self, address: Address) -> Mapping[str, object]:
        assert not isinstance(address, str)
        host, port = address
        url = f"postgresql://wald@{host}:{port}/{self.database}"
        return {**self.settings, "url": url}

    # --- trouble --------------------------------------------------------------------------------

    @property
    def troubles(self) -> Mapping[SystemicKind, Trouble]:
        return {
            **super().troubles,
            SystemicKind.BUSY: self.locked,
            SystemicKind.AUTHENTICATION: self.let_nobody_in,
            SystemicKind.CONFIGURATION: self.without_its_table,
            SystemicKind.DAMAGED: self.overwritten,
            SystemicKind.FULL: self.full,
        }

    @contextmanager
    def locked(self) -> Iterator[None]:
        with closing(self.server.connect(self.database)) as other, other.transaction():
            other.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
            yield

    @contextmanager
    def let_nobody_in(self) -> Iterator[None]:
        self.sql("ALTER ROLE wald NOLOGIN")
        self.hang_up()
        yield
        self.sql("ALTER ROLE wald LOGIN")

    @contextmanager
    def without_its_table(self) -> Iterator[None]:
        self.sql("ALTER TABLE events RENAME TO away; CREATE TABLE events (strange int)")
        yield
        self.sql("DROP TABLE events; ALTER TABLE away RENAME TO events")

    @contextmanager
    def overwritten(self) -> Iterator[None]:
        ((name,),) = self.sql("SELECT pg_relation_filepath('events')")
        path = self.server.data / name
        self.server.stop()
        before = path.read_bytes()
        path.write_bytes(b"\xff" * len(before))
        self.server.start()
        yield
        self.server.stop()
        path.write_bytes(before)
        self.server.start()

    @contextmanager
    def full(self) -> Iterator[None]:
        with disk() as place:
            self.server.sql(f"CREATE TABLESPACE small LOCATION '{place}'")
            self.sql("ALTER TABLE events SET TABLESPACE small")
            try:
                with closing(self.server.connect(self.database)) as other:
                    fill(other, self.filler)
                yield
            finally:
                self.sql("ALTER TABLE events SET TABLESPACE pg_default")
                self.sql("VACUUM FULL events")
                self.server.sql("DROP TABLESPACE small")

    def hang_up(self) -> None:
        """End the sessions of wald."""
        self.sql(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = 'wald'"
        )


class PostgresColumns(PostgresDocuments):
    """Mode ``columns``."""

    options: Mapping[str, object] = {
        "mode": "columns",
        "columns": {"host": "host", "n": "n", "text": "text"},
    }
    ddl = (
        "CREATE TABLE events (seq serial, host text NOT NULL, n int NOT NULL CHECK (n >= 0),"
        " text text, UNIQUE (host, n))"
    )
    rows = (
        "SELECT null, null, null, jsonb_strip_nulls(to_jsonb(events) - 'seq')"
        " FROM events ORDER BY seq"
    )
    null_key = "23502"  # what is told of a record without its key

    @property
    def bad_input(self) -> Mapping[str, str]:
        no_number = (
            "a text for a number",
            "a map for a number",
            "a fraction for a whole number",
            "NaN",
            "infinity",
        )
        unwritten = ("NUL in a text", "NUL in JSON", "half of a surrogate pair in JSON")
        too_large = ("a number of 64 bits without a sign", "a number of 400 digits")
        return {
            **DOCUMENT_INPUT,
            **dict.fromkeys((*NO_MAP, *unwritten), VALUE_REFUSED),
            **dict.fromkeys(("a field is missing", "nil for a number"), self.null_key),
            **dict.fromkeys(no_number, "22P02"),
            **dict.fromkeys(too_large, "22003"),
        }

    filler = (
        "INSERT INTO events (host, n, text)"
        " SELECT 'filler', n, '' FROM generate_series(1, 1000000) n"
    )


class PostgresUpsert(PostgresColumns):
    """Mode ``upsert``."""

    options: Mapping[str, object] = {
        **PostgresColumns.options,
        "mode": "upsert",
        "conflict": ["host", "n"],
    }
    poison_is_named = False
    null_key = VALUE_REFUSED
    ddl = (
        "CREATE TABLE events (host text, n int CHECK (n >= 0), text text,"
        " wald_log_id uuid, wald_lsn bigint, PRIMARY KEY (host, n))"
    )
    rows = (
        "SELECT wald_log_id, wald_lsn, null, jsonb_strip_nulls("
        "jsonb_build_object('host', host, 'n', n, 'text', text)) FROM events ORDER BY wald_lsn"
    )

    @property
    def absent(self) -> Mapping[str, str]:
        return {**super().absent, "order": "rows are states: they are told by their keys"}


def fill(connection: Any, statement: str) -> None:
    """Insert until nothing more fits: what was inserted stays as dead rows."""
    import psycopg

    try:
        connection.execute(statement)
    except psycopg.errors.DiskFull:
        return
    msg = "the disk is not full"
    raise AssertionError(msg)


@cache
def can_mount() -> bool:
    with disk() as place:
        return place is not None


@contextmanager
def disk() -> Iterator[Path | None]:
    """A small file system of the server's own, or None where this user cannot mount one."""
    place = Path(tempfile.mkdtemp(prefix="wsmall"))
    try:
        if not small_disk.mount(place, SMALL):
            yield None
            return
        try:
            hand_over(place)
            yield place
        finally:
            small_disk.unmount(place)
    finally:
        place.rmdir()
