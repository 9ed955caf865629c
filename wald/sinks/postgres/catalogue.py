"""What the server's catalogue says of a table, and which columns a route fills of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import psycopg

from wald.sinks.postgres.options import LOG_ID_COLUMN, LSN_COLUMN, Options, quote
from wald.sinks.postgres.session import Session

_QUERY = """
WITH RECURSIVE found AS (
  SELECT a.attnum, a.attname, a.attidentity <> '' AS identity, a.attgenerated <> '' AS generated,
         pg_catalog.format_type(a.atttypid, a.atttypmod) AS declared, a.atttypid AS base,
         coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid), '') AS made
  FROM pg_catalog.pg_attribute a
  LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
  WHERE a.attrelid = %s::pg_catalog.regclass AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
  SELECT attnum, attname, identity, generated, declared, t.typbasetype, made
  FROM found JOIN pg_catalog.pg_type t ON t.oid = base WHERE t.typtype = 'd')
SELECT attname, declared, t.typname, coalesce(e.typname, ''), identity, generated, made
FROM found JOIN pg_catalog.pg_type t ON t.oid = base
LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
WHERE t.typtype <> 'd' ORDER BY attnum
"""


class Unfit(psycopg.ProgrammingError):
    """The table is not one that the route can fill; ``advice`` says what to do."""

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        name: its name.
        declared: its type, as it is declared.
        base: the name of the type below all domains.
        element: of an array, the name of its elements' type; else empty.
        is_identity, is_generated: whether the table makes its values.
        default: the expression of its default; empty if it has none. That of a generated one too.
    """

    name: str
    declared: str
    base: str
    element: str
    is_identity: bool
    is_generated: bool
    default: str

    @property
    def numbers_itself(self) -> bool:
        """Whether the table numbers its rows by it: an identity, or a serial."""
        return self.is_identity or self.default.startswith("nextval(")


def read_columns(session: Session, table: str) -> list[Column]:
    """Return the columns of a table.

    Raises:
        psycopg.Error: there is no such table (42P01), or anything else.
    """
    return [Column(*cast("tuple[str, str, str, str, bool, bool, str]", row))
            for row in session.rows(_QUERY, (table,))]  # fmt: skip


def qualified(session: Session, table: str) -> str:
    """Return a table's name with the schema where the search path finds it, quoted.

    A pooled connection may hold a temporary table of somebody else under any name.

    Raises:
        psycopg.Error: there is no such table (42P01), or anything else.
    """
    ((schema, name, is_temporary),) = session.rows(
        "SELECT n.nspname, c.relname, c.relpersistence = 't' FROM pg_catalog.pg_class c"
        " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.oid = %s::pg_catalog.regclass",
        (table,),
    )
    if is_temporary:
        msg = f"{table} is a temporary table"
        raise Unfit(msg, 'name the schema: table = "schema.table"')
    return f"{quote(str(schema))}.{quote(str(name))}"


def choose(columns: Sequence[Column], options: Options) -> Mapping[str, str]:
    """Return which field fills which column: as told, or by its own name what can be filled.

    Raises:
        Unfit: a column is not there, or cannot be filled.
    """
    known = {column.name: column for column in columns}
    wanted = options.fields.columns or {
        column.name: column.name
        for column in columns
        if not (column.numbers_itself or column.is_generated)
        and column.name not in {LOG_ID_COLUMN, LSN_COLUMN}
    }
    table = options.table.bare
    for name in (*wanted, *options.conflict):
        if name not in known:
            msg = f"table {table} has no column {name!r}"
            raise Unfit(msg, "add the column, or correct 'columns' and 'conflict'")
        if known[name].is_generated:
            msg = f"column {name!r} of table {table} is generated: no field can fill it"
            raise Unfit(msg, "leave it out of 'columns'")
    if options.mode == "upsert" and not {LOG_ID_COLUMN, LSN_COLUMN} <= known.keys():
        msg = f"mode 'upsert' needs the columns {LOG_ID_COLUMN} and {LSN_COLUMN}: which is newer"
        added = f"ADD COLUMN {LOG_ID_COLUMN} uuid, ADD COLUMN {LSN_COLUMN} bigint"
        raise Unfit(msg, f"ALTER TABLE {options.table.quoted} {added}")
    if not wanted:
        msg = f"table {table} has no column that a field could fill"
        raise Unfit(msg)
    return wanted


def keeps_lsns(columns: Sequence[Column]) -> bool:
    """Tell whether a table has the columns that name each row's record."""
    return {LOG_ID_COLUMN, LSN_COLUMN} <= {column.name for column in columns}
