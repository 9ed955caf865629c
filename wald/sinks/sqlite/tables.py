"""The table of a route: how records become its rows, and the statement that writes one."""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wald.model import Record
from wald.sinks.fields import ByField
from wald.sinks.sqlite.options import Options, quote
from wald.sinks.sqlite.values import WORDS, Documents, bind, spelt_out
from wald.sinks.values import Rows


@dataclass(frozen=True, slots=True)
class Table:
    """A statement that writes one row, and what makes its parameters.

    Attributes:
        write: the statement.
        shape: makes the rows.
        defaulted: the places of columns whose own default stands in for a missing field: of them
            the statement takes two parameters, whether there is a value, and the value.
    """

    write: str
    shape: Documents | ByField
    defaulted: frozenset[int] = frozenset()

    def rows(self, log_id: bytes, records: Sequence[Record], *, careful: bool) -> Rows:
        """Return records as parameters of the statement, or those that cannot become some."""
        if isinstance(self.shape, Documents):
            return self.shape.rows(log_id, records)
        made = self.shape.rows(records, careful=careful)
        if self.shape.rules.on_missing != "default":
            return made
        return made._replace(rows=spelt_out(made.rows, self.defaulted))


def open_table(database: sqlite3.Connection, options: Options) -> Table:
    """Return the table of a route; of documents it is made if it is absent.

    Raises:
        sqlite3.Error: there is none, or it lacks a column.
    """
    name = quote(options.table)
    if options.mode == "document":
        database.execute(
            f"CREATE TABLE IF NOT EXISTS {name} (log_id BLOB NOT NULL, lsn INTEGER NOT NULL, "
            "key, time TEXT NOT NULL, headers TEXT, value, PRIMARY KEY (log_id, lsn))"
        )
        documents = Documents()
        return Table(_insert(name, documents.columns, {}), documents)
    present = table_columns(database, options.table)
    rules = options.fields.of(mapping(present, options))
    shape = ByField(rules, bind, WORDS)
    defaults = {
        place: default
        for place, column in enumerate(shape.columns)
        if rules.on_missing == "default" and (default := present[column]) is not None
    }
    return Table(_insert(name, shape.columns, defaults), shape, frozenset(defaults))


def mapping(present: Mapping[str, str | None], options: Options) -> Mapping[str, str]:
    """Return which field fills which column of a table.

    Raises:
        sqlite3.OperationalError: there is no such table, or no such column.
    """
    if not present:
        msg = f"no such table: {options.table}"
        raise sqlite3.OperationalError(msg)
    columns = options.fields.columns or {name: name for name in present}
    absent = sorted(set(columns) - set(present))
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
    return f"INSERT INTO {table} ({names}) VALUES ({', '.join(marks)})"
