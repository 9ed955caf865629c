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

import json
import math
import sqlite3
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from operator import attrgetter, itemgetter
from typing import NamedTuple, cast
from uuid import UUID

import msgpack

from wald import limits
from wald.model import Content, Record, RejectedRecord

Row = tuple[object, ...]
_NS = limits.CLOCK_NS_PER_S
_TEXT_EXTENSIONS = frozenset({1, 2, 3})  # datetime, date, Decimal: text already
_UUID_EXTENSION = 4
_UUID_BYTES = 16
_BINDABLE = (str, int, float, bytes, type(None))
_CONTENT, _VALUE = attrgetter("content"), attrgetter("value")
_INTEGER_MAX = (1 << 63) - 1
_BAD_VALUE = (ValueError, TypeError, KeyError, RecursionError, OverflowError, MemoryError)


class Rows(NamedTuple):
    """Rows in the order of their records, or the records that cannot become one."""

    rows: list[Row]
    refused: tuple[RejectedRecord, ...]
    extra_fields: int = 0


def _extension(code: int, data: bytes) -> str:
    if code in _TEXT_EXTENSIONS:
        return data.decode("utf-8")
    if code == _UUID_EXTENSION and len(data) == _UUID_BYTES:
        return str(UUID(bytes=data))
    msg = f"unknown msgpack extension {code} of {len(data)} bytes"
    raise ValueError(msg)


# extensions become text, a timestamp stays msgpack.Timestamp; ValueError and its kind for bad bytes
unpack: Callable[[bytes], object] = partial(
    msgpack.unpackb, ext_hook=_extension, strict_map_key=False
)


def decode(record: Record) -> object:
    """Decode a record of any content to plain values; bytes stay bytes."""
    if record.content == Content.MSGPACK:
        return unpack(record.value)
    if record.content == Content.JSON:
        return json.loads(record.value.decode("utf-8"), parse_constant=_no_constant)
    return record.value


def _no_constant(name: str) -> object:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return b64encode(value).decode("ascii")
    if isinstance(value, msgpack.Timestamp):
        return value.to_datetime().isoformat()
    msg = f"{type(value).__name__} has no form in JSON"
    raise TypeError(msg)


_encode = json.JSONEncoder(
    separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain
).encode


def to_json(value: object) -> str:
    """Return compact JSON; NaN and infinities, which JSON has not, become null."""
    try:
        return _encode(value)
    except ValueError:
        return _encode(_without_nan(value))


def _without_nan(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return value


@lru_cache(maxsize=64)
def time_text(time_ns: int) -> str:
    """Return the commit time as ISO 8601 in UTC, to the microsecond."""
    whole, rest = divmod(time_ns, _NS)
    moment = datetime.fromtimestamp(whole, UTC).replace(microsecond=rest // 1000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Documents:
    """Document mode: one table of one shape for every record."""

    columns: tuple[str, ...] = ("log_id", "lsn", "key", "time", "headers", "value")

    def rows(self, log_id: bytes, records: Sequence[Record], *, careful: bool) -> Rows:
        """Return the records as rows; ``careful`` changes nothing here."""
        del careful
        return _one_by_one(records, lambda record: _document(log_id, record))


def _document(log_id: bytes, record: Record) -> tuple[Row, int]:
    value: object = record.value
    if record.content != Content.BYTES:
        decoded = decode(record)
        is_text = record.content == Content.JSON
        value = record.value.decode("utf-8") if is_text else to_json(decoded)
    headers = to_json(dict(record.headers)) if record.headers else None
    return (log_id, record.lsn, record.key, time_text(record.time_ns), headers, value), 0


class Columns:
    """Columns mode: fields of a map by name into a table of the user's."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = tuple(columns)
        self._fields = tuple(columns.values())
        self._take = cast("Callable[[object], Row]", itemgetter(*self._fields))
        if len(self._fields) == 1:
            only = self._fields[0]
            self._take = lambda fields: (cast("dict[str, object]", fields)[only],)

    def rows(self, log_id: bytes, records: Sequence[Record], *, careful: bool) -> Rows:
        """Return the records as rows.

        Unless ``careful``, values that SQLite cannot take may be in a row: tried first, since
        nearly every record has all fields and plain values.
        """
        del log_id
        quick = None if careful else self._quick(records)
        return quick or _one_by_one(records, self._row)

    def _quick(self, records: Sequence[Record]) -> Rows | None:
        if set(map(_CONTENT, records)) != {Content.MSGPACK}:
            return None
        rows: list[Row] = []
        fields, take, unpackb, extension = 0, self._take, msgpack.unpackb, _extension
        try:
            for value in map(_VALUE, records):
                # as ``unpack`` does, without a partial's dictionary for each call
                found = unpackb(value, ext_hook=extension, strict_map_key=False)
                # let go at once: its memory serves the next one
                rows.append(take(found))
                fields += len(found)
        except _BAD_VALUE:
            return None  # a field is missing, or it is no map: each is looked at
        return Rows(rows, (), fields - len(rows) * len(self._fields))

    def _row(self, record: Record) -> tuple[Row, int]:
        fields = decode(record)
        if not isinstance(fields, dict):
            msg = f"the value is {type(fields).__name__}, not a map of fields"
            raise TypeError(msg)
        named = sum(name in fields for name in self._fields)
        row = tuple(_bindable(fields.get(name)) for name in self._fields)
        return row, len(fields) - named


def _bindable(value: object) -> object:
    if isinstance(value, int) and not -_INTEGER_MAX - 1 <= value <= _INTEGER_MAX:
        msg = "an integer beyond 64 bits"
        raise OverflowError(msg)
    if isinstance(value, _BINDABLE):
        return value
    if isinstance(value, msgpack.Timestamp):
        return _plain(value)
    return to_json(value)


def _one_by_one(records: Sequence[Record], convert: Callable[[Record], tuple[Row, int]]) -> Rows:
    rows: list[Row] = []
    refused: list[RejectedRecord] = []
    extra_fields = 0
    for record in records:
        try:
            row, extra = convert(record)
        except _BAD_VALUE as error:
            refused.append(RejectedRecord(record.lsn, "record.value", describe(error)))
        else:
            rows.append(row)
            extra_fields += extra
    return Rows([] if refused else rows, tuple(refused), extra_fields)


def describe(error: Exception) -> str:
    """Return an error as one bounded line: SQLite's own words, or ours, never the driver's."""
    return _words(error)[: limits.ERROR_TEXT_MAX_CHARS]


def _words(error: Exception) -> str:
    text = str(error)
    if isinstance(error, json.JSONDecodeError):
        return f"the value is not JSON: {error.msg} at character {error.pos}"
    for kind, begins, words in _WORDS:
        if isinstance(error, kind) and text.startswith(begins):
            return words
    return text or "the value cannot be read"


# what the driver, or Python, says of a value that never reached SQLite
_WORDS: tuple[tuple[type[Exception], str, str], ...] = (
    (UnicodeEncodeError, "", "a text with half of a surrogate pair has no form in UTF-8"),
    (UnicodeDecodeError, "", "a text is not UTF-8"),
    (RecursionError, "", "the value is nested too deeply"),
    (MemoryError, "", "the value is too large"),
    (msgpack.ExtraData, "", "the value is not msgpack: bytes follow it"),
    (msgpack.FormatError, "", "the value is not msgpack"),
    (msgpack.StackError, "", "the value is nested too deeply"),
    (ValueError, "Unpack failed", "the value is not msgpack: it is cut short"),
    (ValueError, "Exceeds the limit", "a number with too many digits"),
    (TypeError, "unhashable", "a map has a list or a map as a key"),
    (OverflowError, "", "an integer beyond 64 bits"),
    (sqlite3.Error, "Error binding", "a value of a type that has no form in SQLite"),
)
