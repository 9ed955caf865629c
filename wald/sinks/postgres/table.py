"""The table of a route: its statements, by mode, and the sending of rows to it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from operator import length_hint

import psycopg

from wald.model import Record, RejectedRecord
from wald.sinks.fields import DEFAULT
from wald.sinks.postgres import catalogue, values
from wald.sinks.postgres.errors import is_of_driver, line_of
from wald.sinks.postgres.options import LOG_ID_COLUMN, LSN_COLUMN, Options, quote
from wald.sinks.postgres.session import Session
from wald.sinks.values import Row, Rows

_BATCH_TABLE = "wald_batch"  # of mode upsert: temporary, for one transaction
_BATCH = f"pg_temp.{_BATCH_TABLE}"
_CHUNK_RECORDS = 256  # the server works on one while the next is made


@dataclass(frozen=True, slots=True)
class Table:
    """How rows get into a table.

    Attributes:
        columns: the columns of a row, in order.
        into: what COPY writes to, quoted; ``named`` is how errors call it.
        make_rows: makes rows of records.
        before: statements of a transaction before the rows.
        after: the statement behind them; empty if there is none.
        holds: the columns that keep each record's log id and LSN, if there are any.
        defaults: whether rows may leave columns to the table's own default.
    """

    columns: tuple[str, ...]
    into: str
    named: str
    make_rows: Callable[[bytes, Sequence[Record]], Rows]
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
    table = options.table
    columns = catalogue.read_columns(session, table.quoted)
    if options.mode == "document":
        return Table(
            values.DOCUMENT_COLUMNS,
            table.quoted,
            table.bare,
            values.documents,
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
        return Table(names, table.quoted, table.bare, fields.rows, holds=held, defaults=defaults)
    return Table(
        names,
        _BATCH,
        _BATCH_TABLE,
        fields.rows,
        before=(_create_batch([known[name] for name in names], options),),
        after=_merge(names, options),
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
    return f"CREATE TEMPORARY TABLE {_BATCH_TABLE} ({', '.join(parts)}) ON COMMIT DROP"


def _merge(names: Sequence[str], options: Options) -> str:
    """Return the statement that takes the newest row of each key, if newer than what is there.

    LSNs of one log are compared; a row of another log, or of none, is replaced.
    """
    key, listed = _listed(options.conflict), _listed(names)
    changed = ", ".join(
        f"{quote(name)} = EXCLUDED.{quote(name)}" for name in names if name not in options.conflict
    )
    return f"""INSERT INTO {options.table.quoted} AS wald_target ({listed})
SELECT DISTINCT ON ({key}) {listed} FROM {_BATCH} ORDER BY {key}, {LSN_COLUMN} DESC
ON CONFLICT ({key}) DO UPDATE SET {changed}
WHERE wald_target.{LOG_ID_COLUMN} IS DISTINCT FROM EXCLUDED.{LOG_ID_COLUMN}
OR wald_target.{LSN_COLUMN} IS NULL OR wald_target.{LSN_COLUMN} < EXCLUDED.{LSN_COLUMN}"""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(quote, names))


class RefusedRows(Exception):
    """Some records cannot become a row."""

    def __init__(self, records: tuple[RejectedRecord, ...]) -> None:
        super().__init__(records[0].message)
        self.records = records


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
        self.taken = self.begun_at = self.extra_fields = 0
        layout: tuple[int, ...] | None = None
        copy: psycopg.Copy | None = None
        with ExitStack() as stack, self._session.connection.cursor() as cursor:
            for rows in self._made(log_id, records):
                for places, run in _runs(rows) if self._table.defaults else (((), rows),):
                    if copy is None or places != layout:
                        stack.close()  # its errors count from where it began
                        self.begun_at, layout = self.taken, places
                        copy = stack.enter_context(cursor.copy(self._statement(places)))
                    self._write(copy, run)

    def index_of(self, error: Exception) -> int | None:
        """Return which record an error of ``send`` is for: the server's line, or the driver's."""
        if not isinstance(error, psycopg.Error) or is_of_driver(error):
            return self.taken - 1
        line = line_of(error, self._table.named)
        return None if line is None else self.begun_at + line - 1

    def _write(self, copy: psycopg.Copy, rows: list[Row]) -> None:
        left, write = iter(rows), copy.write_row
        try:
            for row in left:
                write(row)
        finally:
            self.taken += len(rows) - length_hint(left)

    def _made(self, log_id: bytes, records: Sequence[Record]) -> Iterator[list[Row]]:
        refused: list[RejectedRecord] = []
        for start in range(0, len(records), _CHUNK_RECORDS):
            made = self._table.make_rows(log_id, records[start : start + _CHUNK_RECORDS])
            refused += made.refused
            self.extra_fields += made.extra_fields
            if not refused:
                yield made.rows
        if refused:
            raise RefusedRows(tuple(refused))

    def _statement(self, left_out: tuple[int, ...]) -> bytes:
        names = [name for place, name in enumerate(self._table.columns) if place not in left_out]
        return f"COPY {self._table.into} ({_listed(names)}) FROM STDIN".encode()


def _runs(rows: list[Row]) -> Iterator[tuple[tuple[int, ...], list[Row]]]:
    """Yield runs of rows with the places that they leave to the table's own default."""
    for places, run in groupby(rows, _left_out):
        yield places, [tuple(value for value in row if value is not DEFAULT) for row in run]


def _left_out(row: Row) -> tuple[int, ...]:
    return tuple(place for place, value in enumerate(row) if value is DEFAULT)
