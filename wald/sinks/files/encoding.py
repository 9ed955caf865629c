"""Records as the bytes of a file: NDJSON and CSV. Parquet has a module of its own.

| format | mode ``document`` | mode ``columns`` |
|---|---|---|
| NDJSON | log_id, lsn, key, time, headers, value | the value as it is; with ``columns`` those |
| CSV | the same six columns; headers and value as JSON | the columns, named in the first line |
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import NamedTuple, Protocol, cast

import msgpack
import msgspec

from wald.model import Content, Record, RejectedRecord
from wald.sinks.fields import ByField
from wald.sinks.files.options import Options
from wald.sinks.values import (
    BAD_VALUE,
    Row,
    extension,
    json_text,
    one_by_one,
    plain,
    time_text,
    to_json,
)

DOCUMENT_COLUMNS = ("log_id", "lsn", "key", "time", "headers", "value")
_CONTENT, _VALUE = attrgetter("content"), attrgetter("value")


class Made(NamedTuple):
    """One part of a file for each record, in order, or the records that can have none."""

    parts: Sequence[object]
    refused: tuple[RejectedRecord, ...] = ()
    extra_fields: int = 0


class Encoder(Protocol):
    """Makes files of one format."""

    suffix: str

    def make(self, log_id: bytes, records: Sequence[Record]) -> Made:
        """Return what each record is in a file."""
        ...

    def join(self, parts: Sequence[object]) -> bytes:
        """Return the content of a file of some parts."""
        ...


class Ndjson:
    """A line of JSON for each record."""

    suffix = ".ndjson"

    def __init__(self, options: Options) -> None:
        self._shape = ByField(options.fields, lambda value: value)
        self._line: Callable[[bytes, Record], tuple[Row, int]] = self._fields
        self._quick = False
        if options.mode == "document":
            self._line = self._document
        elif not options.fields.columns:
            self._line = self._value
            self._quick = True

    def make(self, log_id: bytes, records: Sequence[Record]) -> Made:
        """Return a line for each record, without its end."""
        quick = self._quickly(records) if self._quick else None
        if quick is not None:
            return quick
        made = one_by_one(records, lambda record: self._line(log_id, record))
        lines = [str(line).encode() for (line,) in made.rows]
        return Made(lines, made.refused, made.extra_fields)

    def join(self, parts: Sequence[object]) -> bytes:
        """Return the lines, each with its end."""
        return b"\n".join([*cast("Sequence[bytes]", parts), b""])

    @staticmethod
    def _quickly(records: Sequence[Record]) -> Made | None:
        """Return the lines of values that are all msgpack; None if each must be looked at."""
        if set(map(_CONTENT, records)) != {Content.MSGPACK}:
            return None
        encode, unpackb, hook = _QUICK.encode, msgpack.unpackb, extension
        try:
            return Made(
                [
                    encode(unpackb(value, ext_hook=hook, strict_map_key=False))
                    for value in map(_VALUE, records)
                ]
            )
        except (msgspec.MsgspecError, *BAD_VALUE):
            return None

    @staticmethod
    def _value(_: bytes, record: Record) -> tuple[Row, int]:
        return (_checked(_text(record)),), 0

    @staticmethod
    def _document(log_id: bytes, record: Record) -> tuple[Row, int]:
        headers = to_json(dict(record.headers)) if record.headers else "null"
        line = (
            f'{{"log_id":"{log_id.hex()}","lsn":{record.lsn},"key":{to_json(record.key)},'
            f'"time":"{time_text(record.time_ns)}","headers":{headers},"value":{_text(record)}}}'
        )
        return (_checked(line),), 0

    def _fields(self, _: bytes, record: Record) -> tuple[Row, int]:
        row, extra = self._shape.row(record)
        named = dict(zip(self._shape.columns, row, strict=True))
        return (_checked(to_json(named)),), extra


_QUICK = msgspec.json.Encoder(enc_hook=plain)  # NaN is null, bytes are base64, as elsewhere


def _text(record: Record) -> str:
    """Return a value as JSON on one line."""
    if record.content == Content.BYTES:
        return to_json(record.value)
    text = json_text(record)
    return to_json(json.loads(text)) if "\n" in text or "\r" in text else text


def _checked(text: str) -> str:
    """Return a text that has a form in UTF-8.

    Raises:
        UnicodeEncodeError: it has not.
    """
    if not text.isascii():
        text.encode()
    return text


class Csv:
    """Comma-separated values as RFC 4180 has them, with LF; null is nothing, a map is JSON."""

    suffix = ".csv"

    def __init__(self, options: Options) -> None:
        self._by_field = options.mode == "columns"
        self._shape = ByField(options.fields, csv_value)
        self._columns = self._shape.columns if self._by_field else DOCUMENT_COLUMNS

    def make(self, log_id: bytes, records: Sequence[Record]) -> Made:
        """Return a row for each record."""
        if self._by_field:
            made = self._shape.rows(records)
        else:
            made = one_by_one(records, lambda record: (document_row(log_id, record), 0))
        return Made(made.rows, made.refused, made.extra_fields)

    def join(self, parts: Sequence[object]) -> bytes:
        """Return the rows behind a line of their names."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self._columns)
        writer.writerows(parts)  # type: ignore[arg-type]
        return text.getvalue().encode()


def document_row(log_id: bytes, record: Record) -> Row:
    """Return the values of ``DOCUMENT_COLUMNS`` as text and numbers.

    Raises:
        ValueError, TypeError, ...: ``BAD_VALUE``.
    """
    key = record.key if isinstance(record.key, str | None) else plain(record.key)
    headers = _checked(to_json(dict(record.headers))) if record.headers else None
    value = _checked(_text(record))
    return (log_id.hex(), record.lsn, key, time_text(record.time_ns), headers, value)


def csv_value(value: object) -> object:
    """Return a decoded value as it stands in a cell."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _checked(value)
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, bytes | msgpack.Timestamp):
        return plain(value)
    return _checked(to_json(value))
