"""The table of a route: its statements, by mode, and the sending of rows to it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import psycopg

from wald.model import Record
from wald.sinks.fields import DEFAULT
from wald.sinks.postgres import catalogue, values
from wald.sinks.postgres.errors import is_of_driver, line_of
from wald.sinks.postgres.options import BATCH_TABLE, LOG_ID_COLUMN, LSN_COLUMN, Options, quote
from wald.sinks.postgres.session import Session
from wald.sinks.values import Row

_BATCH = f"pg_temp.{BATCH_TABLE}"


@dataclass(frozen=True, slots=True)
class Table:
    """How rows get into a table.

    Attributes:
        columns: the columns of a row, in order.
        into: what COPY writes to, quoted; ``named`` is how errors call it.
        making: makes a pass over records that yields their rows.
        before: statements of a transaction before the rows.
        after: the statement behind them; empty if there is none.
        holds: the columns that keep each record's log id and LSN, if there are any.
        defaults: whether rows may leave columns to the table's own default.
    """

    columns: tuple[str, ...]
    into: str
    named: str
    making: Callable[[bytes, Sequence[Record]], values.Making]
    before: tuple[str, ...] = ()
    after: str = ""
    holds: tuple[str, str] | None = None
    defaults: bool = False


def create_documents(table: str) -> str:
    """Return the statement that makes the table of mode ``document``."""
    return f"""CREATE TABLE IF NOT EXISTS {table} (
  log_id uuid NOT NULL, lsn bigint NOT NULL, key text, time timestamptz NOT NULL, headers jsonb,
  value jsonb, PRIMARY KEY (log_id, lsn))"""


def look(session: Session, options: Options) -> Table:
    """Look at the table of a route.

    Raises:
        psycopg.Error: it is not there, or not as it must be.
    """
    bare, quoted = options.table.bare, catalogue.qualified(session, options.table.quoted)
    columns = catalogue.read_columns(session, quoted)
    if options.mode == "document":
        return Table(
            values.DOCUMENT_COLUMNS,
            quoted,
            bare,
            values.Documents,
            holds=("log_id", "lsn"),
        )
    mapping = catalogue.choose(columns, options)
    known = {column.name: column for column in columns}
    tagged = catalogue.keeps_lsns(columns)
    filled = [known[name] for name in mapping]
    wanted = [list(mapping).index(name) for name in options.conflict]
    fields = values.Fields(options.fields.of(mapping), filled, tagged=tagged, wanted=wanted)
    tags = (LOG_ID_COLUMN, LSN_COLUMN)
    names = (*mapping, *(tags if tagged else ()))
    defaults = options.fields.on_missing == "default"
    if options.mode == "columns":
        held = tags if tagged else None
        return Table(names, quoted, bare, fields.making, holds=held, defaults=defaults)
    return Table(
        names,
        _BATCH,
        BATCH_TABLE,
        fields.making,
        before=(_create_batch([known[name] for name in names], options),),
        after=_merge(names, quoted, options.conflict),
        defaults=defaults,
    )


def _create_batch(columns: Sequence[catalogue.Column], options: Options) -> str:
    """Return the statement that makes the temporary table of mode ``upsert``."""
    defaults = options.fields.on_missing == "default"
    parts = [
        f"{quote(column.name)} {column.declared}"
        + (f" DEFAULT {column.default}" if defaults and column.default else "")
        for column in columns
    ]
    return f"CREATE TEMPORARY TABLE {BATCH_TABLE} ({', '.join(parts)}) ON COMMIT DROP"


def _merge(names: Sequence[str], table: str, conflict: Sequence[str]) -> str:
    """Return the statement that takes the newest row of each key, if newer than what is there.

    LSNs of one log are compared; a row of another log, or of none, is replaced.
    """
    key, listed = _listed(conflict), _listed(names)
    changed = ", ".join(
        f"{quote(name)} = EXCLUDED.{quote(name)}" for name in names if name not in conflict
    )
    return f"""INSERT INTO {table} AS wald_target ({listed})
SELECT DISTINCT ON ({key}) {listed} FROM {_BATCH} ORDER BY {key}, {LSN_COLUMN} DESC
ON CONFLICT ({key}) DO UPDATE SET {changed}
WHERE wald_target.{LOG_ID_COLUMN} IS DISTINCT FROM EXCLUDED.{LOG_ID_COLUMN}
OR wald_target.{LSN_COLUMN} IS NULL OR wald_target.{LSN_COLUMN} < EXCLUDED.{LSN_COLUMN}"""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(quote, names))


class Sending:
    """One COPY of records into a table, or several where rows leave out different columns.

    Attributes:
        taken: how many records the driver took, one at which it failed among them.
        begun_at: how many before the COPY under way: an error's line counts from there.
        extra_fields: how many fields went into no column.
    """

    def __init__(self, session: Session, table: Table) -> None:
        self._session = session
        self._table = table
        self.taken = 0
        self.begun_at = 0
        self.extra_fields = 0

    def send(self, log_id: bytes, records: Sequence[Record]) -> None:
        """Send records, in their order.

        Raises:
            RefusedRows: these cannot become a row.
            psycopg.Error, ValueError, ...: of one that ``index_of`` tells.
        """
        self.taken = self.begun_at = 0
        making = self._table.making(log_id, records)
        runs = groupby(making, _left_out) if self._table.defaults else [((), making)]
        with self._session.connection.cursor() as cursor:
            for left_out, rows in runs:
                self.begun_at = self.taken
                if len(left_out) == len(self._table.columns):
                    self._insert_defaults(rows)  # a COPY of no columns is none
                    continue
                with cursor.copy(self._statement(left_out)) as copy:
                    self._write(copy, rows, defaults=bool(left_out))
        self.extra_fields = making.extra_fields

    def index_of(self, error: Exception) -> int | None:
        """Return which record an error of ``send`` is for: the server's line, or the driver's."""
        if not isinstance(error, psycopg.Error) or is_of_driver(error):
            return self.taken - 1
        line = line_of(error, self._table.named)
        return None if line is None else self.begun_at + line - 1

    def _write(self, copy: psycopg.Copy, rows: Iterable[Row], *, defaults: bool) -> None:
        taken, write = self.taken, copy.write_row
        try:
            for row in rows:
                taken += 1
                write(tuple(_said(row)) if defaults else row)
        finally:
            self.taken = taken

    def _insert_defaults(self, rows: Iterable[Row]) -> None:
        for _ in rows:
            self.taken += 1
            self._session.run(f"INSERT INTO {self._table.into} DEFAULT VALUES")

    def _statement(self, left_out: tuple[int, ...]) -> bytes:
        names = [name for place, name in enumerate(self._table.columns) if place not in left_out]
        return f"COPY {self._table.into} ({_listed(names)}) FROM STDIN".encode()


def _left_out(row: Row) -> tuple[int, ...]:
    """Return the places of a row that are left to the table's own default."""
    return tuple(place for place, value in enumerate(row) if value is DEFAULT)


def _said(row: Row) -> Iterator[object]:
    return (value for value in row if value is not DEFAULT)
