"""Records as rows of SQLite: what each value becomes, and which records cannot become a row.

| value | document mode (JSON text) | columns mode |
|---|---|---|
| bytes (content 0) | a blob, as it is | refused: not a map |
| JSON (content 2) | the text as it is, if it is JSON | its fields |
| nil, bool, int, float, text | JSON | NULL, 0 or 1, INTEGER, REAL, TEXT |
| NaN | null | NULL (SQLite's own rule) |
| Infinity | null | REAL, kept |
| bytes inside msgpack | base64 text | BLOB |
| array, map | JSON | JSON text |
| timestamp, ext 1 to 4 (datetime, date, Decimal, UUID) | text, as ISO 8601 | the same TEXT |
| another ext, int beyond 64 bits in a column, anything undecodable | refused | refused |
"""

import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgpack

from wald.model import Content, Record
from wald.sinks import values
from wald.sinks.fields import DEFAULT
from wald.sinks.values import Row, Rows, json_text, one_by_one, plain, time_text, to_json

_BINDABLE = (str, int, float, bytes, type(None))
_INTEGER_MAX = (1 << 63) - 1
WORDS: values.Words = (
    (sqlite3.Error, "Error binding", "a value of a type that has no form in SQLite"),
)


# of timestamps that were decoded the quick way; the driver's own adapters are on their way out
sqlite3.register_adapter(datetime, datetime.isoformat)


@dataclass(frozen=True, slots=True)
class Documents:
    """Document mode: one table of one shape for every record."""

    columns: tuple[str, ...] = ("log_id", "lsn", "key", "time", "headers", "value")

    def rows(self, log_id: bytes, records: Sequence[Record]) -> Rows:
        """Return the records as rows."""
        return one_by_one(records, lambda record: _document(log_id, record), WORDS)


def _document(log_id: bytes, record: Record) -> tuple[Row, int]:
    is_bytes = record.content == Content.BYTES
    value: object = record.value if is_bytes else json_text(record)
    headers = to_json(dict(record.headers)) if record.headers else None
    return (log_id, record.lsn, record.key, time_text(record.time_ns), headers, value), 0


def bind(value: object) -> object:
    """Return a decoded value as SQLite takes it in a column.

    Raises:
        OverflowError: an integer beyond 64 bits.
    """
    if isinstance(value, int) and not -_INTEGER_MAX - 1 <= value <= _INTEGER_MAX:
        msg = "an integer beyond 64 bits"
        raise OverflowError(msg)
    if isinstance(value, _BINDABLE):
        return value
    if isinstance(value, msgpack.Timestamp):
        return plain(value)
    return to_json(value)


def spelt_out(rows: Sequence[Row], defaulted: Collection[int]) -> list[Row]:
    """Return rows with two values for each of these columns: whether it is there, and the value.

    Elsewhere a column without a value of its own is NULL.
    """
    made: list[Row] = []
    for row in rows:
        spelt: list[object] = []
        for place, value in enumerate(row):
            if place in defaulted:
                spelt.append(value is not DEFAULT)
            spelt.append(None if value is DEFAULT else value)
        made.append(tuple(spelt))
    return made


def describe(error: Exception) -> str:
    """Return an error as one bounded line: SQLite's own words, or ours, never the driver's."""
    return values.describe(error, WORDS)
