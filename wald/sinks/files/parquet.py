"""Records as Parquet files: the only importer of pyarrow (extra ``parquet``).

Each column has the type that the settings name, so that all files of a route have one schema: a
value of another type is refused, never bent. A text column takes any value, maps and lists as JSON.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

import msgpack
import pyarrow as pa
import pyarrow.parquet as pq

from wald.model import Record
from wald.sinks.fields import ByField
from wald.sinks.files.encoding import DOCUMENT_COLUMNS, Made, csv_value, document_row
from wald.sinks.files.options import Options
from wald.sinks.values import one_by_one

_INTEGER_MAX = (1 << 63) - 1
_TYPES: Mapping[str, Any] = {
    "text": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "date": pa.date32(),
    "bytes": pa.binary(),
}
_DOCUMENT = {**dict.fromkeys(DOCUMENT_COLUMNS, "text"), "lsn": "integer", "time": "timestamp"}


class Parquet:
    """One row group a file."""

    suffix = ".parquet"

    def __init__(self, options: Options) -> None:
        self._by_field = options.mode == "columns"
        self._shape = ByField(options.fields, lambda value: value)
        columns = self._shape.columns if self._by_field else DOCUMENT_COLUMNS
        types = options.types if self._by_field else _DOCUMENT
        self._casts = [_CASTS[types.get(name, "text")] for name in columns]
        self._schema = pa.schema([(name, _TYPES[types.get(name, "text")]) for name in columns])
        self._compression = options.compression

    def make(self, log_id: bytes, records: Sequence[Record]) -> Made:
        """Return a row for each record."""
        take = self._by_fields if self._by_field else lambda each: self._document(log_id, each)
        made = one_by_one(records, take)
        return Made(made.rows, made.refused, made.extra_fields)

    def join(self, parts: Sequence[object]) -> bytes:
        """Return the file."""
        columns = list(zip(*parts, strict=True))
        arrays = [
            pa.array(column, type=kind.type)
            for column, kind in zip(columns, self._schema, strict=True)
        ]
        sink = pa.BufferOutputStream()
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        pq.write_table(table, sink, compression=self._compression)
        return bytes(sink.getvalue().to_pybytes())

    def _by_fields(self, record: Record) -> tuple[tuple[object, ...], int]:
        row, extra = self._shape.row(record)
        return tuple(cast(value) for cast, value in zip(self._casts, row, strict=True)), extra

    def _document(self, log_id: bytes, record: Record) -> tuple[tuple[object, ...], int]:
        row = document_row(log_id, record)
        return tuple(cast(value) for cast, value in zip(self._casts, row, strict=True)), 0


def _text(value: object) -> object:
    found = csv_value(value)
    return found if found is None or isinstance(found, str) else str(found)


def _integer(value: object) -> object:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise _mismatch(value, "an integer")
    if not -_INTEGER_MAX - 1 <= value <= _INTEGER_MAX:
        msg = "an integer beyond 64 bits"
        raise OverflowError(msg)
    return value


def _number(value: object) -> object:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _mismatch(value, "a number")
    return float(value)


def _boolean(value: object) -> object:
    if value is None or isinstance(value, bool):
        return value
    raise _mismatch(value, "true or false")


def _timestamp(value: object) -> object:
    if value is None:
        return None
    if isinstance(value, msgpack.Timestamp):
        return value.to_datetime()
    if isinstance(value, str):
        moment = datetime.fromisoformat(value)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    raise _mismatch(value, "a time as ISO 8601")


def _date(value: object) -> object:
    if value is None:
        return None
    if isinstance(value, str):
        return date.fromisoformat(value)
    raise _mismatch(value, "a date as ISO 8601")


def _bytes(value: object) -> object:
    if value is None or isinstance(value, bytes):
        return value
    raise _mismatch(value, "bytes")


def _mismatch(value: object, wanted: str) -> TypeError:
    return TypeError(f"the value of a column is {type(value).__name__}, not {wanted}")


_CASTS: Mapping[str, Callable[[object], object]] = {
    "text": _text,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "timestamp": _timestamp,
    "date": _date,
    "bytes": _bytes,
}
