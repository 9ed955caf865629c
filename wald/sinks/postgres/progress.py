"""The progress row at PostgreSQL: its table, and the statements that read and move it.

The statements hold their values as literals: numbers and hexadecimal digits, nothing of a record.
"""

from collections.abc import Mapping, Sequence
from struct import Struct
from typing import cast
from uuid import UUID

from wald.model import Anchor, Attempt, LaneKey, Lsn, ProgressRow
from wald.sinks.postgres.options import quote
from wald.sinks.postgres.session import Session

_ANCHOR = Struct("<IQ")
_OWNER = Struct("<Q")
_COLUMNS = "batch_no, rev_id, hi_lsn, anchor, owner, dead_rev"


def create(table: str) -> str:
    """Return the statement that makes the table."""
    return f"""CREATE TABLE IF NOT EXISTS {table} (
  log_id uuid NOT NULL, route_id bigint NOT NULL, layout integer NOT NULL, lane integer NOT NULL,
  batch_no bigint NOT NULL, rev_id uuid NOT NULL, hi_lsn bigint NOT NULL, anchor bytea NOT NULL,
  owner bytea NOT NULL, dead_rev uuid NOT NULL, applied integer NOT NULL,
  updated_at timestamptz NOT NULL, PRIMARY KEY (log_id, route_id, layout, lane))"""


def read(table: str, key: LaneKey) -> str:
    """Return the query of a lane's row."""
    return f"SELECT {_COLUMNS} FROM {table} WHERE {_is(key)}"


def row_of(found: tuple[object, ...]) -> ProgressRow:
    """Return a row of that query."""
    batch_no, rev_id, hi_lsn, anchor, owner, dead_rev = found
    crc, time_ns = _ANCHOR.unpack(cast("bytes", anchor))
    return ProgressRow(
        cast("int", batch_no),
        cast("UUID", rev_id).bytes,
        cast("int", hi_lsn),
        Anchor(crc, time_ns),
        _OWNER.unpack(cast("bytes", owner))[0],
        cast("UUID", dead_rev).bytes,
    )


def move(table: str, attempt: Attempt) -> str:
    """Return the statement that moves a lane's row from (n, prev, owner) to n + 1.

    It touches one row, or none if the row is another one.
    """
    row = attempt.row
    values = (
        row.batch_no,
        _uuid(row.rev_id),
        row.hi_lsn,
        _bytea(_ANCHOR.pack(*row.anchor)),
        _bytea(_OWNER.pack(row.owner)),
        _uuid(row.dead_rev),
        len(attempt.records),
        "clock_timestamp()",
    )
    moved = ", ".join(map(str, values))
    columns = f"{_COLUMNS}, applied, updated_at"
    if row.batch_no == 1:
        log_id, route_id, layout, lane = attempt.key
        return (
            f"INSERT INTO {table} (log_id, route_id, layout, lane, {columns}) VALUES "
            f"({_uuid(log_id)}, {route_id}, {layout}, {lane}, {moved}) ON CONFLICT DO NOTHING"
        )
    number, prev_rev, owner = attempt.stands_on
    return (
        f"UPDATE {table} SET ({columns}) = ROW({moved}) WHERE {_is(attempt.key)} "
        f"AND batch_no = {number} AND rev_id = {_uuid(prev_rev)} "
        f"AND owner = {_bytea(_OWNER.pack(owner))}"
    )


def _is(key: LaneKey) -> str:
    return (
        f"log_id = {_uuid(key.log_id)} AND route_id = {key.route_id} "
        f"AND layout = {key.layout} AND lane = {key.lane}"
    )


def _uuid(value: bytes) -> str:
    return f"'{UUID(bytes=value)}'::uuid"


def _bytea(value: bytes) -> str:
    return f"decode('{value.hex()}', 'hex')"


def held(
    session: Session, table: str, columns: tuple[str, str], log_id: bytes, lsns: Sequence[Lsn]
) -> Mapping[Lsn, int]:
    """Return which records a table has, by the columns that keep log id and LSN."""
    of_log, lsn = map(quote, columns)
    found = session.rows(
        f"SELECT {lsn}, count(*) FROM {table} WHERE {of_log} = {_uuid(log_id)} "
        f"AND {lsn} BETWEEN {min(lsns)} AND {max(lsns)} GROUP BY {lsn}"
    )
    wanted = frozenset(lsns)
    counts = cast("list[tuple[int, int]]", found)
    return {each: count for each, count in counts if each in wanted}
