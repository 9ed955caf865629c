"""Delivery to SQLite by the standard library's driver.

The progress row moves in the data's own transaction: WAL, ``synchronous=FULL``, ``BEGIN
IMMEDIATE``. Driver errors become outcomes here and nowhere else, by the primary code: a name is
"unknown" for the codes that are newer than the driver.
"""

import contextlib
import os
import shlex
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from operator import length_hint
from pathlib import Path
from struct import Struct

from wald import limits
from wald.model import (
    Anchor,
    Attempt,
    Capabilities,
    Delivered,
    Finding,
    LaneKey,
    Lsn,
    Outcome,
    ProgressRow,
    Record,
    Rejected,
    RejectedRecord,
    ReplayClass,
    RowMoved,
    Severity,
    Systemic,
    SystemicKind,
    Unknown,
)
from wald.sinks.sqlite.options import PROGRESS_TABLE, Options, quote, read_options
from wald.sinks.sqlite.tables import Table, look, open_table
from wald.sinks.sqlite.values import describe
from wald.sinks.values import Row, Rows

FIXED_VERSION = (3, 51, 3)  # up to 3.51.2 a WAL reset may damage a database with two connections
_ANCHOR = Struct("<IQ")
_OWNER = Struct("<Q")

_CREATE_PROGRESS = f"""
CREATE TABLE IF NOT EXISTS {PROGRESS_TABLE} (
  log_id BLOB NOT NULL, route_id INTEGER NOT NULL, layout INTEGER NOT NULL, lane INTEGER NOT NULL,
  batch_no INTEGER NOT NULL, rev_id BLOB NOT NULL, hi_lsn INTEGER NOT NULL, anchor BLOB NOT NULL,
  owner BLOB NOT NULL, dead_rev BLOB NOT NULL, applied INTEGER NOT NULL, updated_at TEXT NOT NULL,
  PRIMARY KEY (log_id, route_id, layout, lane)) WITHOUT ROWID
"""
_KEY = "log_id = ? AND route_id = ? AND layout = ? AND lane = ?"
_NOW = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
_SELECT_ROW = (
    f"SELECT batch_no, rev_id, hi_lsn, anchor, owner, dead_rev FROM {PROGRESS_TABLE} WHERE {_KEY}"
)
_INSERT_ROW = (
    f"INSERT INTO {PROGRESS_TABLE} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, {_NOW}) "
    "ON CONFLICT DO NOTHING"
)
_UPDATE_ROW = (
    f"UPDATE {PROGRESS_TABLE} SET batch_no = ?, rev_id = ?, hi_lsn = ?, anchor = ?, owner = ?, "
    f"dead_rev = ?, applied = ?, updated_at = {_NOW} "
    f"WHERE {_KEY} AND batch_no = ? AND rev_id = ? AND owner = ?"
)

_SYSTEMIC = {
    sqlite3.SQLITE_BUSY: SystemicKind.BUSY,
    sqlite3.SQLITE_LOCKED: SystemicKind.BUSY,
    sqlite3.SQLITE_PROTOCOL: SystemicKind.BUSY,
    sqlite3.SQLITE_INTERRUPT: SystemicKind.BUSY,  # by us, when an attempt has had its time
    sqlite3.SQLITE_FULL: SystemicKind.FULL,
    sqlite3.SQLITE_IOERR: SystemicKind.UNREACHABLE,
    sqlite3.SQLITE_CANTOPEN: SystemicKind.UNREACHABLE,
    sqlite3.SQLITE_NOMEM: SystemicKind.UNREACHABLE,
    sqlite3.SQLITE_READONLY: SystemicKind.CONFIGURATION,
    sqlite3.SQLITE_PERM: SystemicKind.AUTHENTICATION,
    sqlite3.SQLITE_AUTH: SystemicKind.AUTHENTICATION,
    sqlite3.SQLITE_CORRUPT: SystemicKind.DAMAGED,
    sqlite3.SQLITE_NOTADB: SystemicKind.DAMAGED,
}
_OF_A_RECORD = {
    sqlite3.SQLITE_CONSTRAINT: "SQLITE_CONSTRAINT",
    sqlite3.SQLITE_MISMATCH: "SQLITE_MISMATCH",
    sqlite3.SQLITE_TOOBIG: "SQLITE_TOOBIG",
}
_STEPS_BETWEEN_LOOKS = 20_000  # of SQLite's machine: some hundred microseconds
_LATER_NAMES = {3091: "SQLITE_CONSTRAINT_DATATYPE"}  # of a STRICT table; Python 3.11 has none
_UNBINDABLE = (sqlite3.ProgrammingError, sqlite3.InterfaceError, OverflowError, ValueError)
_ROW_ERRORS = (sqlite3.Error, OverflowError, ValueError)


def make(route: str, stream: str, settings: Mapping[str, object]) -> "SqliteSink":
    """Make the sink of a route; connects lazily.

    Raises:
        ConfigError: a setting is unknown, missing or wrong.
    """
    return SqliteSink(read_options(route, stream, settings))


class SqliteSink:
    """The ``Sink`` of one lane."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._database: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._table: Table | None = None
        self._careful = False

    @property
    def capabilities(self) -> Capabilities:
        """Exactly once for ever: the row moves with the data."""
        return Capabilities(ReplayClass.TRANSACTIONAL, 100_000, 256 * limits.MIB, awaits_seal=True)

    def close(self) -> None:
        """Close the connection; harmless to repeat."""
        if self._database is not None:
            self._database.close()
            self._database = None

    # --- delivering -----------------------------------------------------------------------------

    def read_row(self, key: LaneKey) -> ProgressRow | Outcome | None:
        """Return the lane's row; connects if need be."""
        try:
            return _row(self._connected(), key)
        except sqlite3.Error as error:
            return self._failed(error)

    def deliver(self, attempt: Attempt) -> Outcome:
        """Move the row and insert the records in one transaction."""
        try:
            database = self._connected()
            rows = self._rows(attempt, attempt.records)
            if rows.refused:
                return Rejected(rows.refused, rows.refused[0].message)
            with self._within(database, attempt):
                outcome = self._transact(database, attempt, rows)
            if outcome is None:  # a value that SQLite cannot take: convert each with care
                self._careful = True
                return self.deliver(attempt)
        except sqlite3.Error as error:
            return self._failed(error)
        return outcome

    def probe(
        self, attempt: Attempt, records: Sequence[Record]
    ) -> Sequence[RejectedRecord] | Outcome:
        """Insert records and roll back; one pass names every refused one."""
        self._careful = True
        try:
            database = self._connected()
            rows = self._rows(attempt, records)
            if rows.refused:
                return rows.refused
            with self._within(database, attempt), _transaction(database):
                return self._refused_rows(database, rows.rows, records)
        except sqlite3.Error as error:
            return self._failed(error)

    @contextlib.contextmanager
    def _within(self, database: sqlite3.Connection, attempt: Attempt) -> Iterator[None]:
        """Bound by the attempt's time how long it waits for other writers, and how long it works.

        What is interrupted is rolled back, so that its outcome is known.
        """
        if attempt.timeout_s is None:
            yield
            return
        now_s = time.monotonic  # noqa: TID251 - the driver's time: a factory gets no clock
        end_s = now_s() + attempt.timeout_s
        busy_s = min(self._options.busy_timeout_s, attempt.timeout_s)
        database.execute(f"PRAGMA busy_timeout = {ceil(busy_s * 1_000)}").fetchall()
        database.set_progress_handler(lambda: now_s() > end_s, _STEPS_BETWEEN_LOOKS)
        try:
            yield
        finally:
            with contextlib.suppress(sqlite3.ProgrammingError):  # it was closed inside
                database.set_progress_handler(None, 0)

    def _rows(self, attempt: Attempt, records: Sequence[Record]) -> Rows:
        return self._written.rows(attempt.key.log_id, records, careful=self._careful)

    @property
    def _written(self) -> Table:
        assert self._table is not None  # of the connection that is open
        return self._table

    def _transact(
        self, database: sqlite3.Connection, attempt: Attempt, rows: Rows
    ) -> Outcome | None:
        with _transaction(database):
            if not _move_row(database, attempt):
                return RowMoved(_row(database, attempt.key))
            left = iter(rows.rows)
            try:
                database.executemany(self._written.write, left)
            except _ROW_ERRORS as error:
                if isinstance(error, _UNBINDABLE) and not self._careful:
                    return None
                record = attempt.records[_failed_index(rows.rows, left)]
                return self._row_failed(error, record)
            attempt.await_seal()
            return self._commit(database, rows)

    def _commit(self, database: sqlite3.Connection, rows: Rows) -> Outcome:
        try:
            database.execute("COMMIT")  # COMMIT POINT: row and records
        except sqlite3.Error as error:
            code = _primary_code(error)
            if code in _OF_A_RECORD:
                return Rejected((), describe(error))  # a deferred constraint names no row
            if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL}:
                return self._failed(error)
            self.close()
            return Unknown(describe(error))
        return Delivered({"extra-fields": rows.extra_fields} if rows.extra_fields else {})

    def _refused_rows(
        self, database: sqlite3.Connection, rows: list[Row], records: Sequence[Record]
    ) -> Sequence[RejectedRecord] | Outcome:
        refused: list[RejectedRecord] = []
        left = iter(rows)
        while length_hint(left):
            try:
                database.executemany(self._written.write, left)
            except _ROW_ERRORS as error:
                outcome = self._row_failed(error, records[_failed_index(rows, left)])
                if not isinstance(outcome, Rejected):
                    return outcome
                refused += outcome.records
                if not database.in_transaction:
                    break  # a constraint that rolls back: the rest is probed again
        return refused

    def _row_failed(self, error: Exception, record: Record) -> Outcome:
        """Return whose fault an error of an insert is: the record's, or the target's."""
        if isinstance(error, _UNBINDABLE) or _primary_code(error) in _OF_A_RECORD:
            refused = RejectedRecord(record.lsn, _refusal_code(error), describe(error))
            return Rejected((refused,), refused.message)
        return self._failed(error)

    def _failed(self, error: Exception) -> Systemic:
        kind = _SYSTEMIC.get(_primary_code(error), SystemicKind.CONFIGURATION)
        if kind is not SystemicKind.BUSY:
            self.close()  # the file or its schema may be another one: look anew
        return Systemic(kind, f"{self._options.path}: {describe(error)}", _HINTS.get(kind, ""))

    # --- audits ---------------------------------------------------------------------------------

    def holds(self, log_id: bytes, lsns: Sequence[Lsn]) -> Mapping[Lsn, int] | Outcome | None:
        """Return which records the table has, if its rows hold log id and LSN."""
        table = quote(self._options.table)
        wanted = frozenset(lsns)
        try:
            database = self._connected()
            if self._written.holds is None:
                return None
            log, lsn = map(quote, self._written.holds)
            found = database.execute(
                f"SELECT {lsn}, count(*) FROM {table} "
                f"WHERE {log} = ? AND {lsn} BETWEEN ? AND ? GROUP BY 1",
                (log_id, min(wanted), max(wanted)),
            )
            return {lsn: number for lsn, number in found if lsn in wanted}
        except sqlite3.Error as error:
            return self._failed(error)

    # --- the connection -------------------------------------------------------------------------

    def _connected(self) -> sqlite3.Connection:
        """Return the connection to the file that now has the name; it may have been restored."""
        if self._database is not None and _identity(self._options.path) != self._file:
            self.close()
        if self._database is None:
            database = sqlite3.connect(
                self._options.path,
                timeout=self._options.busy_timeout_s,
                isolation_level=None,
                check_same_thread=False,  # one thread at a time, but not always the same
            )
            try:
                self._prepare(database)
            except BaseException:
                database.close()
                raise
            self._database = database
            self._file = _identity(self._options.path)
            self._careful = False
        return self._database

    def _prepare(self, database: sqlite3.Connection) -> None:
        database.execute("PRAGMA journal_mode = WAL").fetchall()
        database.execute("PRAGMA synchronous = FULL")
        database.execute(_CREATE_PROGRESS)
        self._table = open_table(database, self._options)

    # --- check ----------------------------------------------------------------------------------

    def grants(self) -> Sequence[str]:
        """Return what gives the user wald the directory, where SQLite keeps its own files too."""
        return [f"install -d -o wald {shlex.quote(str(Path(self._options.path).parent))}"]

    def check(self) -> Sequence[Finding]:
        """Look at the file without writing; what is absent in document mode is made later."""
        findings = [*self._check_file()]
        if sqlite3.sqlite_version_info < FIXED_VERSION:
            findings.append(
                Finding(
                    Severity.WARNING,
                    "sqlite.wal-reset",
                    f"SQLite {sqlite3.sqlite_version}: before 3.51.3 a write-ahead log that is "
                    "reset while another connection writes may damage the database",
                    "keep other writers off this file, or run Python with a newer SQLite",
                )
            )
        return findings

    def _check_file(self) -> Iterator[Finding]:
        path = Path(self._options.path)
        if not path.exists():
            yield _check_absent(path, self._options)
            return
        try:
            uri = f"{path.absolute().as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
                if self._options.mode != "document":
                    found = len(look(database, self._options).shape.columns)
                    message = f"table found, {found} columns"
                else:
                    database.execute("SELECT count(*) FROM sqlite_master").fetchone()
                    message = "database found"
            yield _check_writable(path) or Finding(Severity.OK, "sqlite.found", message)
        except sqlite3.Error as error:
            systemic = self._failed(error)
            hint = systemic.hint
            yield Finding(Severity.ERROR, f"sqlite.{systemic.kind.value}", systemic.message, hint)


_HINTS = {
    SystemicKind.CONFIGURATION: "make the table, its columns and index, or correct the settings",
    SystemicKind.UNREACHABLE: "the directory of the file must exist and be writable for wald",
    SystemicKind.FULL: "free space on the file system of the database",
    SystemicKind.DAMAGED: "the file is not a whole SQLite database: restore it",
}


def _check_absent(path: Path, options: Options) -> Finding:
    if not path.parent.is_dir():
        msg = f"{path.parent}: no such directory"
        return Finding(Severity.ERROR, "sqlite.unreachable", msg, _HINTS[SystemicKind.UNREACHABLE])
    if options.mode != "document":
        msg = f"{path}: there is no database, and mode {options.mode!r} makes no table"
        hint = _HINTS[SystemicKind.CONFIGURATION]
        return Finding(Severity.ERROR, "sqlite.configuration", msg, hint)
    denied = _check_writable(path)
    return denied or Finding(Severity.OK, "sqlite.found", "the database will be made")


def _check_writable(path: Path) -> Finding | None:
    """Find what this user may not write: the file, or its directory, where SQLite keeps its WAL."""
    for place in (path, path.parent):
        if place.exists() and not os.access(place, os.W_OK):
            msg = f"{place}: this user may not write it"
            hint = "check as the user of the daemon: sudo -u USER wald check"
            return Finding(Severity.ERROR, "sqlite.authentication", msg, hint)
    return None


def _identity(path: str) -> tuple[int, int] | None:
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Begin for writing; whatever is not committed inside is rolled back.

    A connection that was closed inside, or cannot roll back, leaves it to the next that opens the
    file; that must not hide what the inside came to.
    """
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        with contextlib.suppress(sqlite3.Error):
            if database.in_transaction:
                database.execute("ROLLBACK")


def _move_row(database: sqlite3.Connection, attempt: Attempt) -> bool:
    """Move the lane's row from (n, prev, owner) to n + 1; False if it is another one."""
    row = attempt.row
    values = (
        row.batch_no,
        row.rev_id,
        row.hi_lsn,
        _ANCHOR.pack(*row.anchor),
        _OWNER.pack(row.owner),
        row.dead_rev,
        len(attempt.records),
    )
    if row.batch_no == 1:
        return database.execute(_INSERT_ROW, (*attempt.key, *values)).rowcount == 1
    number, prev_rev, owner = attempt.stands_on
    before = (number, prev_rev, _OWNER.pack(owner))
    return database.execute(_UPDATE_ROW, (*values, *attempt.key, *before)).rowcount == 1


def _row(database: sqlite3.Connection, key: LaneKey) -> ProgressRow | None:
    found = database.execute(_SELECT_ROW, tuple(key)).fetchone()
    if found is None:
        return None
    batch_no, rev_id, hi_lsn, anchor, owner, dead_rev = found
    crc, time_ns = _ANCHOR.unpack(anchor)
    return ProgressRow(
        batch_no, rev_id, hi_lsn, Anchor(crc, time_ns), _OWNER.unpack(owner)[0], dead_rev
    )


def _failed_index(rows: Sequence[Row], left: Iterator[Row]) -> int:
    """Return which row an ``executemany`` failed at: the last that it took of the iterator."""
    return len(rows) - length_hint(left) - 1


def _primary_code(error: Exception) -> int:
    """Return the primary code of an error: BUSY of SQLITE_BUSY_SNAPSHOT; -1 if it has none."""
    code = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else -1


def _refusal_code(error: Exception) -> str:
    """Return the name of a refusal, as exact as driver and SQLite have one."""
    code = getattr(error, "sqlite_errorcode", None)
    if not isinstance(code, int):
        return "record.value"
    name = str(getattr(error, "sqlite_errorname", "unknown"))
    exact = _LATER_NAMES.get(code) if name == "unknown" else name
    return exact or _OF_A_RECORD.get(code & 0xFF, f"SQLITE_{code}")
