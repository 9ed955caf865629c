"""Records as rows of PostgreSQL: what each value becomes.

Rows go as text, which the server reads as the type of each column: so there is one rule for every
type, and what does not fit is refused in the server's own words. (Measured: the server takes text
faster than binary rows of four-byte integers, and the driver's binary form silently cuts integers.)

| value | its text |
|---|---|
| nil | NULL |
| bool, int, float, text | t or f, the digits, the text |
| bytes | of a column ``bytea``; elsewhere refused |
| list | of an array column its elements; elsewhere JSON |
| map | JSON |
| timestamp, ext 1 to 4 (datetime, date, Decimal, UUID) | ISO 8601, as ``str`` has it |
| anything, of a column ``json`` or ``jsonb`` | JSON; bytes inside are base64, NaN is null |
"""

from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol
from uuid import UUID

import msgpack
import psycopg
from psycopg.adapt import AdaptersMap, Dumper

from wald.model import Content, Lsn, Record, RejectedRecord
from wald.sinks import values
from wald.sinks.fields import DEFAULT, ByField, FieldRules
from wald.sinks.postgres.catalogue import Column
from wald.sinks.quick import NOT_QUICK, QuickRows
from wald.sinks.values import BAD_VALUE, Row, json_text, plain, time_text, to_json

Converter = Callable[[object], object]
WORDS: values.Words = (
    (psycopg.DataError, "PostgreSQL text fields cannot contain NUL", "a text with NUL in it"),
)
DOCUMENT_COLUMNS = ("log_id", "lsn", "key", "time", "headers", "value")
_JSON = frozenset({"json", "jsonb"})
_AT_ONCE_RECORDS = 64  # made by one call each, while the processor's cache still has them
_ESCAPED = str.maketrans({"\\": "\\\\", '"': '\\"'})


class _JsonDumper(Dumper):
    """A list or a map where no column asks for another form."""

    def dump(self, obj: object) -> bytes:
        return to_json(obj).encode()


class _TimeDumper(Dumper):
    """A timestamp of msgpack."""

    def dump(self, obj: object) -> bytes:
        return plain(obj).encode()


class _BytesDumper(Dumper):
    """Bytes where no column can hold them."""

    def dump(self, obj: object) -> bytes:
        del obj
        msg = "bytes have no form in a column that is not bytea or json"
        raise ValueError(msg)


def adapt(adapters: AdaptersMap) -> None:
    """Teach a connection the values that records have beside text and numbers."""
    for kind in (list, dict):
        adapters.register_dumper(kind, _JsonDumper)
    adapters.register_dumper(msgpack.Timestamp, _TimeDumper)
    adapters.register_dumper(bytes, _BytesDumper)


class RefusedRows(Exception):
    """Some records cannot become a row."""

    def __init__(self, records: tuple[RejectedRecord, ...]) -> None:
        super().__init__(records[0].message)
        self.records = records


class Making(Protocol):
    """One pass over some records: their rows, made while they are sent.

    Raises ``RefusedRows`` at the end of a pass in which records could not become a row: behind
    the first of them no row comes any more.
    """

    extra_fields: int

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows, in the order of the records."""
        ...


# --- documents ----------------------------------------------------------------------------------


class Documents:
    """Makes rows of ``DOCUMENT_COLUMNS``."""

    def __init__(self, log_id: bytes, records: Sequence[Record]) -> None:
        self._log_id = str(UUID(bytes=log_id))
        self._records = records
        self.extra_fields = 0

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows."""
        refused: list[RejectedRecord] = []
        for record in self._records:
            try:
                row = _document(self._log_id, record)
            except BAD_VALUE as error:
                refused.append(refusal(record, error))
            else:
                if not refused:
                    yield row
        if refused:
            raise RefusedRows(tuple(refused))


def _document(log_id: str, record: Record) -> Row:
    if record.content == Content.JSON:
        value = record.value.decode("utf-8")  # the server says whether it is JSON
    elif record.content == Content.BYTES:
        value = f'"{b64encode(record.value).decode("ascii")}"'
    else:
        value = json_text(record)
    headers = to_json(dict(record.headers)) if record.headers else None
    return log_id, record.lsn, key_text(record.key), time_text(record.time_ns), headers, value


def key_text(key: str | bytes | None) -> str | None:
    r"""Return a key as text: bytes as \x and their digits."""
    return f"\\x{key.hex()}" if isinstance(key, bytes) else key


# --- columns ------------------------------------------------------------------------------------


class Fields:
    """Makes rows of the fields of a map, for the columns of a table.

    Args:
        rules: with the columns that are filled, in order.
        columns: what the catalogue says of each of them.
        tagged: whether log id and LSN follow in each row.
        wanted: places of columns that must not be NULL.
    """

    def __init__(
        self, rules: FieldRules, columns: Sequence[Column], *, tagged: bool, wanted: Sequence[int]
    ) -> None:
        self.by_field = ByField(rules, _as_it_is, WORDS)
        self.quick = QuickRows(rules)
        self._special = [
            (place, converter)
            for place, column in enumerate(columns)
            if (converter := _converter(column)) is not None
        ]
        self._special += [(place, _key_of(columns[place].name)) for place in wanted]
        self._tagged = tagged
        self.changes = bool(self._special) or tagged

    def making(self, log_id: bytes, records: Sequence[Record]) -> Making:
        """Return a pass over some records."""
        return _FieldRows(self, str(UUID(bytes=log_id)), records)

    def changed(self, row: Row, tag: str, lsn: Lsn) -> Row:
        """Return a row with its values as their columns take them, and its record's name behind.

        Raises:
            ValueError, TypeError, ...: ``BAD_VALUE``: one has no form there.
        """
        made = list(row)
        for place, convert in self._special:
            if made[place] is not DEFAULT:
                made[place] = convert(made[place])
        if self._tagged:
            made += (tag, lsn)
        return tuple(made)


class _FieldRows:
    """The pass of ``Fields``."""

    def __init__(self, fields: Fields, tag: str, records: Sequence[Record]) -> None:
        self._fields = fields
        self._tag = tag
        self._records = records
        self.extra_fields = 0

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows; nearly all are made the quick way, the others with care."""
        refused: list[RejectedRecord] = []
        for start in range(0, len(self._records), _AT_ONCE_RECORDS):
            records = self._records[start : start + _AT_ONCE_RECORDS]
            made = None if self._fields.changes or refused else self._fields.quick.batch(records)
            if made is None:
                yield from self._one_by_one(records, refused)
            else:
                self.extra_fields += made.extra_fields
                yield from made.rows
        if refused:
            raise RefusedRows(tuple(refused))

    def _one_by_one(
        self, records: Sequence[Record], refused: list[RejectedRecord]
    ) -> Iterator[Row]:
        fields = self._fields
        changes, extra_fields = fields.changes, 0
        for index, quick, extra in fields.quick.rows(records):
            row = self._changed(quick, records[index]) if changes and quick is not None else quick
            if row is None:
                row, extra_fields = self._careful(records[index], refused, extra_fields)
            else:
                extra_fields += extra
            if row is not None and not refused:
                yield row
        self.extra_fields += extra_fields

    def _changed(self, row: Row, record: Record) -> Row | None:
        try:
            return self._fields.changed(row, self._tag, record.lsn)
        except NOT_QUICK:
            return None

    def _careful(
        self, record: Record, refused: list[RejectedRecord], extra_fields: int
    ) -> tuple[Row | None, int]:
        """Return the row of a record, if it can become one, and the sum of extra fields so far."""
        fields = self._fields
        try:
            row, extra = fields.by_field.row(record)
            return fields.changed(row, self._tag, record.lsn), extra_fields + extra
        except BAD_VALUE as error:
            refused.append(refusal(record, error))
            return None, extra_fields


def refusal(record: Record, error: Exception) -> RejectedRecord:
    """Return what is said of a record that cannot become a row, or that the driver refused."""
    return values.refusal(record, error, WORDS)


def _as_it_is(value: object) -> object:
    return value


def _key_of(column: str) -> Converter:
    def check(value: object) -> object:
        if value is None:
            msg = f"column {column!r} tells one row from another, and is null"
            raise ValueError(msg)
        return value

    return check


def _converter(column: Column) -> Converter | None:
    if column.base in _JSON:
        return _json
    if column.base == "bytea":
        return _bytea
    if column.element:
        return lambda value: _array(value, column.element) if isinstance(value, list) else value
    return None


def _json(value: object) -> object:
    return None if value is None else to_json(value)


def _bytea(value: object) -> object:
    return f"\\x{value.hex()}" if isinstance(value, bytes) else value


def _array(items: list[object], element: str) -> str:
    """Return a list as the text of an array."""
    return f"{{{','.join(_item(item, element) for item in items)}}}"


def _item(item: object, element: str) -> str:
    if item is None:
        return "NULL"
    if isinstance(item, list) and element not in _JSON:
        return _array(item, element)
    if element in _JSON or isinstance(item, dict):
        text = to_json(item)
    elif isinstance(item, bytes):
        if element != "bytea":
            msg = "bytes have no form in an array that is not of bytea or json"
            raise ValueError(msg)
        text = f"\\x{item.hex()}"
    elif isinstance(item, msgpack.Timestamp):
        text = plain(item)
    else:
        text = str(item)
    return f'"{text.translate(_ESCAPED)}"'
