"""Delivery to PostgreSQL by psycopg.

The progress row moves in the data's own transaction, first; the records follow by COPY. Driver
errors become outcomes here and nowhere else (``wald.sinks.postgres.errors``).
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

import psycopg

from wald.model import (
    Attempt,
    Delivered,
    Finding,
    LaneKey,
    Lsn,
    Outcome,
    ProgressRow,
    Record,
    Rejected,
    RejectedRecord,
    RowMoved,
    Severity,
    Unknown,
)
from wald.sinks.postgres import checking, errors, progress, values
from wald.sinks.postgres.logins import Refusals
from wald.sinks.postgres.options import Options
from wald.sinks.postgres.session import Session
from wald.sinks.postgres.table import Sending, Table, create_documents, look
from wald.sinks.values import BAD_VALUE

ANSWER_TIMEOUT_S: Final = 10.0  # of what is not an attempt
_T = TypeVar("_T")
_REFUSED = (values.RefusedRows, psycopg.Error, *BAD_VALUE)


class Delivery:
    """What ``PostgresSink`` does, with the driver."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._refusals = Refusals()
        self._session: Session | None = None
        self._table: Table | None = None

    def close(self) -> None:
        """Close the connection; harmless to repeat."""
        session, self._session, self._table = self._session, None, None
        if session is not None:
            session.close()

    # --- delivering -----------------------------------------------------------------------------

    def read_row(self, key: LaneKey) -> ProgressRow | Outcome | None:
        """Return the lane's row; connects if need be."""
        return self._answer(self._answer_timeout_s, lambda session: self._row(session, key))

    def deliver(self, attempt: Attempt) -> Outcome:
        """Move the row and copy the records in one transaction."""
        return self._answer(attempt.timeout_s, lambda session: self._deliver(session, attempt))

    def probe(
        self, attempt: Attempt, records: Sequence[Record]
    ) -> Sequence[RejectedRecord] | Outcome:
        """Copy records and roll back; one pass names every one that an error names."""

        def refused(session: Session) -> Sequence[RejectedRecord] | Outcome:
            table = self._looked(session)
            session.begin(*table.before, "SELECT 1")
            return self._refused(session, table, attempt.key.log_id, records)

        return self._answer(attempt.timeout_s, refused)

    def _deliver(self, session: Session, attempt: Attempt) -> Outcome:
        known = self._table is not None
        try:
            return self._transact(session, attempt)
        except psycopg.Error as error:
            if not (known and errors.is_stale(error) and session.is_open):
                raise
        session.rollback()
        self._table = None  # it may have changed since: look at it again
        return self._transact(session, attempt)

    def _transact(self, session: Session, attempt: Attempt) -> Outcome:
        table = self._looked(session)
        move = progress.move(self._options.progress.quoted, attempt)
        if session.begin(*table.before, move) != 1:
            session.rollback()
            return RowMoved(self._row(session, attempt.key))
        sending = Sending(session, table)
        try:
            sending.send(attempt.key.log_id, attempt.records)
            if table.after and attempt.records:
                session.run(table.after)
        except _REFUSED as error:
            return _blame(error, sending, attempt.records)
        attempt.await_seal()
        return self._commit(session, sending)

    def _commit(self, session: Session, sending: Sending) -> Outcome:
        try:
            committed = session.commit()  # COMMIT POINT: row and records
        except psycopg.Error as error:
            if errors.of_a_record(error):  # a deferred constraint names no row
                return Rejected((), errors.describe(error), errors.sqlstate(error))
            if not errors.is_unanswered(error):
                raise
            self.close()
            return Unknown(f"{self._options.place}: {errors.describe(error)}")
        if not committed:
            self.close()
            return Unknown(f"{self._options.place}: a COMMIT was answered by something else")
        extra = sending.extra_fields
        return Delivered({"extra-fields": extra} if extra else {})

    def _refused(
        self, session: Session, table: Table, log_id: bytes, records: Sequence[Record]
    ) -> Sequence[RejectedRecord] | Outcome:
        """Return the refused ones of some records, inside a transaction."""
        refused: list[RejectedRecord] = []
        sending, rest = Sending(session, table), records
        while rest:
            session.run("SAVEPOINT wald_probe")
            try:
                sending.send(log_id, rest)
                # what waits for the COMMIT is checked now
                session.run(*filter(None, (table.after,)), "SET CONSTRAINTS ALL IMMEDIATE")
                break
            except _REFUSED as error:
                outcome = _blame(error, sending, rest)
                index = None if isinstance(error, values.RefusedRows) else sending.index_of(error)
            refused += outcome.records
            if index is None:  # those that cannot become a row, or one that is not named
                return refused or outcome
            session.run("ROLLBACK TO wald_probe")
            if index and not self._taken(sending, log_id, rest[:index]):
                return refused  # the next probe says the rest
            rest = rest[index + 1 :]
        return refused

    def _taken(self, sending: Sending, log_id: bytes, records: Sequence[Record]) -> bool:
        """Copy records before a refused one again, so that the rest is judged behind them."""
        try:
            sending.send(log_id, records)
        except _REFUSED as error:
            _blame(error, sending, records)
            return False
        return True

    def _failed(self, error: psycopg.Error) -> Outcome:
        """Return an error that is not for a record as an outcome; what was open is given up."""
        if errors.sqlstate(error) == "08007":
            self.close()
            return Unknown(f"{self._options.place}: {errors.describe(error)}")
        failed = errors.systemic(error, self._options.place)
        if errors.keeps_connection(error):
            self._table = None
        else:
            self.close()
        return failed

    # --- audits, check --------------------------------------------------------------------------

    def holds(self, log_id: bytes, lsns: Sequence[Lsn]) -> Mapping[Lsn, int] | Outcome | None:
        """Return which records the table has, where each row keeps log id and LSN."""

        def held(session: Session) -> Mapping[Lsn, int] | None:
            table = self._looked(session)
            if table.holds is None:
                return None
            with session.looking():
                return progress.held(session, table.into, table.holds, log_id, lsns)

        return self._answer(None, held)

    def check(self) -> Sequence[Finding]:
        """Look at server, progress table and table, without writing."""
        found: list[Finding] = []
        try:
            ends_s = _now_s() + self._answer_timeout_s
            session = self._connected(ends_s)
            with contextlib.closing(session), session.within(_left_s(ends_s)):
                session.begin()
                found.extend(checking.findings(session, self._options))
        except psycopg.Error as error:
            failed = errors.systemic(error, self._options.place)
            code = f"postgres.{failed.kind.value}"
            found.append(Finding(Severity.ERROR, code, failed.message, failed.hint))
        return found

    def grants(self) -> Sequence[str]:
        """Return what the owner of the database runs, so that the role may do what it must."""
        return [f"{statement};" for statement in checking.grants(self._options)]

    # --- the connection -------------------------------------------------------------------------

    @property
    def _answer_timeout_s(self) -> float:
        """How long may take what is not an attempt, and no more than one look."""
        return min(ANSWER_TIMEOUT_S, self._options.transaction_timeout_s)

    def _answer(self, timeout_s: float | None, work: Callable[[Session], _T]) -> _T | Outcome:
        """Do something over the connection, which is opened if need be; all of it in time.

        One that was lost since it was last used is opened anew, once: nothing took effect.
        """
        used = self._session is not None
        ends_s = _now_s() + (timeout_s or self._options.transaction_timeout_s)
        try:
            try:
                return self._within(ends_s, work)
            except psycopg.Error as error:
                if not (used and errors.is_broken(error)):
                    raise
            self.close()
            return self._within(ends_s, work)
        except psycopg.Error as error:
            return self._failed(error)

    def _within(self, ends_s: float, work: Callable[[Session], _T]) -> _T:
        """Do something in bounded time; nothing stays begun."""
        session = self._opened(ends_s)
        with session.within(_left_s(ends_s)):
            try:
                return work(session)
            finally:
                session.rollback()

    def _opened(self, ends_s: float) -> Session:
        if self._session is not None and not self._session.is_open:
            self.close()
        if self._session is None:
            session = self._connected(ends_s)
            try:
                values.adapt(session.connection.adapters)
                with session.within(_left_s(ends_s)):
                    self._prepare(session)
            except BaseException:
                session.close()
                raise
            self._session = session
        return self._session

    def _connected(self, ends_s: float) -> Session:
        return Session(self._options, _left_s(ends_s), self._refusals)

    def _prepare(self, session: Session) -> None:
        """Make the progress table, if it is not there; lanes that begin together do it in turn."""
        options = self._options
        if session.exists(options.progress.quoted):
            return
        schema = options.quoted_schema
        statements = [progress.create(options.progress.quoted)]
        if not session.holds("SELECT to_regnamespace(%s) IS NOT NULL", (schema,)):
            statements.insert(0, f"CREATE SCHEMA IF NOT EXISTS {schema}")
        _make(session, *statements)

    def _looked(self, session: Session) -> Table:
        """Return the table as it was looked at; of mode ``document`` it is made."""
        if self._table is None:
            name = self._options.table.quoted
            if self._options.mode == "document" and not session.exists(name):
                _make(session, create_documents(name))
            with session.looking():
                self._table = look(session, self._options)
        return self._table

    def _row(self, session: Session, key: LaneKey) -> ProgressRow | None:
        with session.looking():
            found = session.rows(progress.read(self._options.progress.quoted, key))
        return progress.row_of(found[0]) if found else None


def _now_s() -> float:
    return time.monotonic()  # noqa: TID251 - the driver's time: a factory gets no clock


def _left_s(ends_s: float) -> float:
    return max(0.0, ends_s - _now_s())


def _make(session: Session, *statements: str) -> None:
    session.begin("SELECT pg_advisory_xact_lock(hashtext('wald'))", *statements)
    session.commit()


def _blame(error: Exception, sending: Sending, records: Sequence[Record]) -> Rejected:
    """Return whose fault an error of sending is: some records'.

    Raises:
        psycopg.Error: it is none's; the error itself.
    """
    if isinstance(error, values.RefusedRows):
        return Rejected(error.records, str(error))
    if isinstance(error, psycopg.Error) and not errors.of_a_record(error):
        raise error
    index = sending.index_of(error)
    if not isinstance(error, psycopg.Error) or errors.is_of_driver(error):
        assert index is not None
        refused = values.refusal(records[index], error)
        return Rejected((refused,), refused.message)
    code, message = errors.sqlstate(error), errors.describe(error)
    if index is None or not 0 <= index < len(records):
        return Rejected((), message, code)
    return Rejected((RejectedRecord(records[index].lsn, code, message),), message, code)
