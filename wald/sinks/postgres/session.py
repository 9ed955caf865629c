"""One connection to PostgreSQL: how it is opened, bounded in time, and how a transaction begins.

Nothing of a session outlives a transaction: no prepared statements, ``SET LOCAL`` only, so that a
pooler may give each transaction another server connection. Statements are sent as simple queries.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

import psycopg
from psycopg.abc import PQGen

from wald.sinks.postgres.errors import Late
from wald.sinks.postgres.logins import Refusals, conninfo_of
from wald.sinks.postgres.options import Options

_T = TypeVar("_T")
_LOOK_S = 0.1
_TRANSACTION_TIMEOUT_SINCE = 170_000
_MS = 1_000
Row = tuple[object, ...]


class _Connection(psycopg.Connection[Row]):
    """A connection whose every wait ends at a deadline."""

    end_s: float | None = None

    def wait(self, gen: PQGen[_T], interval: float = _LOOK_S, timeout: float | None = None) -> _T:
        """Wait for the server, at most until the deadline."""
        if self.end_s is None:
            return super().wait(gen, interval, timeout)
        left_s = max(0.0, self.end_s - _now_s())
        return super().wait(gen, interval, left_s if timeout is None else min(left_s, timeout))


def _now_s() -> float:
    return time.monotonic()  # noqa: TID251 - the driver's time: a factory gets no clock


class Session:
    """An open connection, outside of a transaction.

    Args:
        options: of the sink.
        timeout_s: how long it may take to connect, to all hosts together.
        refusals: what is known of logins that were refused.

    Raises:
        psycopg.Error: of every method, for whatever the server or the network does.
    """

    def __init__(self, options: Options, timeout_s: float, refusals: Refusals) -> None:
        self._options = options
        conninfo = conninfo_of(options, timeout_s)
        ends_s = _now_s() + timeout_s
        try:
            self._connection = _Connection.connect(
                conninfo, autocommit=True, prepare_threshold=None
            )
        except psycopg.OperationalError as error:
            raise refusals.coded(error, conninfo, ends_s - _now_s()) from error
        try:
            with self.within(max(0.0, ends_s - _now_s())):
                self._greet()
        except BaseException:
            self.close()
            raise

    def _greet(self) -> None:
        self.version = self._connection.info.server_version
        ((said, encoding, commit),) = self.rows(
            "SELECT version(), current_setting('server_encoding'),"
            " current_setting('synchronous_commit')"
        )
        self.server = str(said).partition(",")[0].partition(" (")[0]
        self.encoding = str(encoding)
        self._flushes = commit != "off"

    @property
    def connection(self) -> psycopg.Connection[Row]:
        """The driver's connection."""
        return self._connection

    @property
    def is_open(self) -> bool:
        """Whether it can still be used."""
        return not self._connection.closed

    def close(self) -> None:
        """Close it; harmless to repeat."""
        self._connection.close()

    @contextlib.contextmanager
    def within(self, timeout_s: float | None) -> Iterator[None]:
        """Bound all that is done inside; what is not answered in time closes the connection."""
        bound_s = self._options.transaction_timeout_s if timeout_s is None else timeout_s
        self._connection.end_s = _now_s() + bound_s
        try:
            yield
        except psycopg.OperationalError as error:
            if error.sqlstate is not None:
                raise
            self.close()
            if self.left_s() > 0:
                raise
            msg = f"no answer within {bound_s:g} s"
            raise Late(msg) from error
        finally:
            self._connection.end_s = None

    def left_s(self) -> float:
        """Return what is left of the time of ``within``."""
        end_s = self._connection.end_s
        return self._options.transaction_timeout_s if end_s is None else end_s - _now_s()

    def rows(self, query: str, parameters: Sequence[object] | None = None) -> list[Row]:
        """Return the rows of a query; parameters are bound by the client, in the text."""
        with psycopg.ClientCursor(self._connection) as cursor:
            return cursor.execute(query.encode(), parameters).fetchall()

    def holds(self, query: str, parameters: Sequence[object] | None = None) -> bool:
        """Tell whether a query that returns one truth returns true."""
        ((found,),) = self.rows(query, parameters)
        return bool(found)

    def exists(self, table: str) -> bool:
        """Tell whether there is a table of a name, which is quoted."""
        return self.holds("SELECT to_regclass(%s) IS NOT NULL", (table,))

    def run(self, *statements: str) -> int:
        """Run statements in one round trip; returns how many rows the last one touched."""
        cursor = self._connection.execute("; ".join(statements).encode())
        while cursor.nextset():
            pass
        return cursor.rowcount

    def begin(self, *statements: str) -> int:
        """Begin a bounded transaction with some statements; see ``run``."""
        return self.run("BEGIN ISOLATION LEVEL READ COMMITTED", *self._bounds(), *statements)

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Look at something in a bounded transaction, which changes nothing."""
        self.begin()
        yield
        self.rollback()

    def commit(self) -> bool:
        """Commit; returns whether the server says that it did."""
        cursor = self._connection.execute("COMMIT")  # COMMIT POINT: row and records
        return cursor.statusmessage == "COMMIT"

    def rollback(self) -> None:
        """Roll back, if there is a transaction; a connection that cannot is closed."""
        if not self.is_open:
            return
        try:
            if self._connection.info.transaction_status:
                self._connection.execute("ROLLBACK")
        except psycopg.Error:
            self.close()

    def _bounds(self) -> Iterator[str]:
        """Yield what bounds a transaction: it must not block the application for long."""
        options, left_s = self._options, max(0.05, self.left_s())
        transaction_s = min(options.transaction_timeout_s, left_s)
        yield f"SET LOCAL lock_timeout = {_ms(min(options.lock_timeout_s, left_s))}"
        yield f"SET LOCAL statement_timeout = {_ms(min(options.statement_timeout_s, left_s))}"
        yield f"SET LOCAL idle_in_transaction_session_timeout = {_ms(transaction_s)}"
        if self.version >= _TRANSACTION_TIMEOUT_SINCE:
            yield f"SET LOCAL transaction_timeout = {_ms(transaction_s)}"
        yield "SET LOCAL TimeZone = 'UTC'"
        if not self._flushes:  # what is delivered must be durable
            yield "SET LOCAL synchronous_commit = on"


def _ms(seconds: float) -> int:
    return max(1, round(seconds * _MS))
