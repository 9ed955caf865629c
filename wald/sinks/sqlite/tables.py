"""The table of a route: how records become its rows, and the statement that writes one.

In mode ``upsert`` a row of the same key is replaced, all of its columns, if what stands there is
older: its LSN is lower, or of another log, or it has none. LSNs of two logs cannot be compared.
"""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from wald.model import Record, RejectedRecord
from wald.sinks.fields import DEFAULT, ByField
from wald.sinks.quick import QuickRows
from wald.sinks.sqlite.options import LOG_ID_COLUMN, LSN_COLUMN, Options, quote
from wald.sinks.sqlite.values import WORDS, Documents, bind, spelt_out
from wald.sinks.values import VALUE_REFUSED, Rows

TAGS = (LOG_ID_COLUMN, LSN_COLUMN)


@dataclass(frozen=True, slots=True)
class Table:
    """A statement that writes one row, and what makes its parameters.

    Attributes:
        write: the statement.
        shape: makes the rows.
        defaulted: the places of columns whose own default stands in for a missing field: of them
            the statement takes two parameters, whether there is a value, and the value.
        tagged: whether log id and LSN of the record stand behind its values.
        wanted: the places of columns that tell one row from another.
        holds: the columns that keep log id and LSN, if there are any.
        quick: makes the rows of a batch in which nothing is out of the way, values not bound.
    """

    write: str
    shape: Documents | ByField
    defaulted: frozenset[int] = frozenset()
    tagged: bool = False
    wanted: tuple[int, ...] = ()
    holds: tuple[str, str] | None = None
    quick: Callable[[Sequence[Record]], Rows | None] = lambda _: None

    def rows(self, log_id: bytes, records: Sequence[Record], *, careful: bool) -> Rows:
        """Return records as parameters of the statement, or those that cannot become some."""
        if isinstance(self.shape, Documents):
            return self.shape.rows(log_id, records)
        made = None if careful else self.quick(records)
        if made is None:
            made = self.shape.rows(records)
        refused = self._without_key(made, records) if self.wanted else ()
        if refused or made.refused:
            return made._replace(rows=[], refused=(*made.refused, *refused))
        rows = made.rows
        if self.shape.rules.on_missing == "default":
            rows = spelt_out(rows, self.defaulted)
        if self.tagged:
            rows = [(*row, log_id, record.lsn) for row, record in zip(rows, records, strict=True)]
        return made._replace(rows=rows)

    def _without_key(self, made: Rows, records: Sequence[Record]) -> tuple[RejectedRecord, ...]:
        """Return the records of which nothing would tell the row from another."""
        refused = []
        for row, record in zip(made.rows, records, strict=False):
            absent = [place for place in self.wanted if row[place] in (None, DEFAULT)]
            if absent:
                name = self.shape.columns[absent[0]]
                words = f"column {name!r} tells one row from another, and is null"
                refused.append(RejectedRecord(record.lsn, VALUE_REFUSED, words))
        return tuple(refused)


def open_table(database: sqlite3.Connection, options: Options) -> Table:
    """Return the table of a route; of documents it is made if it is absent.

    Raises:
        sqlite3.Error: there is none, or it lacks a column.
    """
    if options.mode != "document":
        return look(database, options)
    name, documents = quote(options.table), Documents()
    database.execute(
        f"CREATE TABLE IF NOT EXISTS {name} (log_id BLOB NOT NULL, lsn INTEGER NOT NULL, "
        "key, time TEXT NOT NULL, headers TEXT, value, PRIMARY KEY (log_id, lsn))"
    )
    return Table(_insert(name, documents.columns, {}), documents, holds=("log_id", "lsn"))


def look(database: sqlite3.Connection, options: Options) -> Table:
    """Return a table of columns, which changes nothing.

    Raises:
        sqlite3.Error: there is none, it lacks a column, or nothing tells its rows apart.
    """
    present = table_columns(database, options.table)
    rules = options.fields.of(mapping(present, options))
    shape = ByField(rules, bind, WORDS)
    defaults = {
        place: default
        for place, column in enumerate(shape.columns)
        if rules.on_missing == "default" and (default := present[column]) is not None
    }
    tagged = set(TAGS) <= present.keys() and not set(TAGS) & set(shape.columns)
    quick = QuickRows(rules).batch
    columns = (*shape.columns, *(TAGS if tagged else ()))
    write = _insert(quote(options.table), columns, defaults)
    if options.mode == "columns":
        holds = TAGS if tagged else None
        return Table(write, shape, frozenset(defaults), tagged, holds=holds, quick=quick)
    write += _unless_newer(shape.columns, options.conflict)
    nothing = (None,) * (len(columns) + len(defaults))
    database.execute(f"EXPLAIN {write}", nothing).fetchall()  # is there such an index?
    wanted = tuple(map(shape.columns.index, options.conflict))
    return Table(write, shape, frozenset(defaults), tagged, wanted, quick=quick)


def mapping(present: Mapping[str, str | None], options: Options) -> Mapping[str, str]:
    """Return which field fills which column of a table.

    Raises:
        sqlite3.OperationalError: there is no such table, or no such column.
    """
    if not present:
        msg = f"no such table: {options.table}"
        raise sqlite3.OperationalError(msg)
    columns = options.fields.columns or {name: name for name in present if name not in TAGS}
    wanted = {*columns, *options.conflict}
    if options.mode == "upsert":
        wanted |= set(TAGS)
    absent = sorted(wanted - set(present))
    if absent:
        msg = f"table {options.table} has no column named {absent[0]}"
        raise sqlite3.OperationalError(msg)
    return columns


def table_columns(database: sqlite3.Connection, table: str) -> dict[str, str | None]:
    """Return a table's columns that can be written, each with its default as SQL, or None."""
    rows = database.execute(f"PRAGMA table_xinfo({quote(table)})").fetchall()
    return {row[1]: row[4] for row in rows if row[6] == 0}  # hidden and generated have no 0


def _insert(table: str, columns: Sequence[str], defaults: Mapping[int, str]) -> str:
    names = ", ".join(map(quote, columns))
    marks = (
        f"CASE WHEN ? THEN ? ELSE ({defaults[place]}) END" if place in defaults else "?"
        for place in range(len(columns))
    )
    return f"INSERT INTO {table} AS wald_target ({names}) VALUES ({', '.join(marks)})"


def _unless_newer(columns: Sequence[str], conflict: Sequence[str]) -> str:
    changed = ", ".join(
        f"{quote(name)} = excluded.{quote(name)}"
        for name in (*columns, *TAGS)
        if name not in conflict
    )
    return (
        f" ON CONFLICT ({', '.join(map(quote, conflict))}) DO UPDATE SET {changed}"
        f" WHERE wald_target.{LOG_ID_COLUMN} IS NOT excluded.{LOG_ID_COLUMN}"
        f" OR wald_target.{LSN_COLUMN} IS NULL"
        f" OR wald_target.{LSN_COLUMN} < excluded.{LSN_COLUMN}"
    )
