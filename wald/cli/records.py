"""Records from a file of NDJSON, CSV or plain lines: each parsed, or refused at its index.

An index counts the records of the input from 0; a message names the line. One bad line harms no
other one.
"""

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, NamedTuple, TypeAlias

import msgpack

from wald import limits
from wald.errors import InputError
from wald.model import Content

_CSV_FIELD_MAX_CHARACTERS = limits.RECORD_MAX_BYTES
_LINE_MAX_BYTES = 2 * limits.MIB  # of a longer line only the beginning is taken into memory


class Parsed(NamedTuple):
    """A record: its encoded value, its key and its dedup id."""

    content: Content
    value: bytes
    key: str | None = None
    dedup_id: str | None = None


class Fields(NamedTuple):
    """From which fields of a record its key and its dedup id are taken; None: it gets none."""

    key: str | None = None
    dedup_id: str | None = None


NO_FIELDS = Fields()


class Unparsed(NamedTuple):
    """Why what stands at an index is no record."""

    code: str
    message: str


Entry: TypeAlias = Parsed | Unparsed


def read_ndjson(source: BinaryIO, fields: Fields) -> Iterator[Entry]:
    """Yield a record per line that is not blank; the text of a value is kept as it stands."""
    for number, line in _lines(source):
        text = line.strip()
        if number == 1:
            text = text.removeprefix(codecs.BOM_UTF8)
        if text:
            yield _json_record(text, number, fields)


def read_lines(source: BinaryIO, fields: Fields) -> Iterator[Entry]:
    """Yield a record of bytes per line, without its end.

    Raises:
        InputError: a field is asked for; a line has none.
    """
    if fields != NO_FIELDS:
        msg = f"{'--key' if fields.key is not None else '--dedup'} needs fields; lines have none"
        raise InputError(msg, hint="use --format ndjson or csv")
    for number, line in _lines(source):
        value = line.removesuffix(b"\n").removesuffix(b"\r")
        yield _too_large(value, f"line {number}") or Parsed(Content.BYTES, value)


def read_csv(source: BinaryIO, fields: Fields) -> Iterator[Entry]:
    """Yield a record per row: a map of the header's names to the row's texts.

    Raises:
        InputError: there is no header, a name stands in it twice, or it lacks a field asked for.
    """
    csv.field_size_limit(_CSV_FIELD_MAX_CHARACTERS)
    # what is not UTF-8 becomes lone surrogates, which the row's own check finds
    text = io.TextIOWrapper(source, "utf-8-sig", errors="surrogateescape", newline="")
    rows = csv.reader(text, strict=True)
    try:
        header = next(rows, None)
    except csv.Error as error:
        msg = f"line 1: not a CSV header: {error}"
        raise InputError(msg) from error
    _check_header(header, fields)
    assert header is not None
    while True:
        began = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield Unparsed("csv.syntax", f"{_lines_read(began, rows.line_num)}: {error}")
            continue
        if row is None:
            break
        if row:
            yield _csv_record(header, row, rows.line_num, fields)
    text.detach()  # the file stays the caller's to close


Reader: TypeAlias = Callable[[BinaryIO, Fields], Iterator[Entry]]

READERS: Mapping[str, Reader] = {"ndjson": read_ndjson, "csv": read_csv, "lines": read_lines}


def _lines(source: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield numbered lines; of one that is too long only the beginning."""
    number = 0
    while line := source.readline(_LINE_MAX_BYTES):
        number += 1
        yield number, line
        while line and _is_cut(line):
            line = source.readline(_LINE_MAX_BYTES)


def _is_cut(line: bytes) -> bool:
    return len(line) == _LINE_MAX_BYTES and not line.endswith(b"\n")


def _too_large(value: bytes, place: str) -> Unparsed | None:
    """Refuse here what the daemon would refuse: then what a request stores is known beforehand."""
    if len(value) <= limits.RECORD_MAX_BYTES:
        return None
    return Unparsed(
        "record.too-large",
        f"{place}: {len(value):,} bytes or more, the limit is {limits.RECORD_MAX_BYTES:,}",
    )


def _json_record(text: bytes, number: int, fields: Fields) -> Entry:
    too_large = _too_large(text, f"line {number}")
    if too_large is not None:
        return too_large
    try:
        value = json.loads(text.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        return Unparsed("json.syntax", f"line {number}{_why_not_json(error)}")
    named = value if isinstance(value, dict) else {}
    return _named(Parsed(Content.JSON, text), named, f"line {number}", fields)


def _why_not_json(error: ValueError | RecursionError) -> str:
    match error:
        case UnicodeDecodeError():
            return f": not UTF-8 at byte {error.start}"
        case json.JSONDecodeError():
            return f", column {error.colno}: {error.msg}"
        case _NotJsonError():
            return f": {error}"
        case RecursionError():
            return ": nested too deeply"
        case _:
            return ": a number of too many digits"


class _NotJsonError(ValueError):
    pass


def _no_constant(name: str) -> float:
    msg = f"{name} is not JSON"
    raise _NotJsonError(msg)


def _csv_record(header: list[str], row: list[str], number: int, fields: Fields) -> Entry:
    if len(row) != len(header):
        return Unparsed(
            "csv.ragged", f"line {number}: {len(row)} fields, the header has {len(header)}"
        )
    record = dict(zip(header, row, strict=True))
    try:
        value = msgpack.packb(record)
    except UnicodeEncodeError:
        return Unparsed("csv.syntax", f"line {number}: not UTF-8")
    too_large = _too_large(value, f"line {number}")
    return too_large or _named(Parsed(Content.MSGPACK, value), record, f"line {number}", fields)


def _named(record: Parsed, named: Mapping[str, object], place: str, fields: Fields) -> Entry:
    """Return the record with its key and id, from the fields that are asked for."""
    if fields.key is not None:
        key = _text_of(named.get(fields.key), fields.key, "key", limits.KEY_MAX_BYTES)
        if key.why:
            return Unparsed("record.key", f"{place}: {key.why}")
        record = record._replace(key=key.text)
    if fields.dedup_id is not None:
        most = limits.DEDUP_ID_MAX_BYTES
        dedup_id = _text_of(named.get(fields.dedup_id), fields.dedup_id, "dedup id", most)
        if dedup_id.why:
            return Unparsed("record.dedup-id", f"{place}: {dedup_id.why}")
        record = record._replace(dedup_id=dedup_id.text)
    return record


class _Text(NamedTuple):
    text: str
    why: str = ""  # it is none


def _text_of(value: object, field: str, what: str, most_bytes: int) -> _Text:
    """Return the text of a field: as it is, a number or truth value as JSON writes it."""
    if isinstance(value, bool | int | float):
        value = json.dumps(value)
    if not isinstance(value, str) or not value:
        return _Text("", f"no {what} in field {field!r}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return _Text("", f"the {what} is not valid text")
    if size > most_bytes:
        return _Text("", f"the {what} has {size:,} bytes, at most {most_bytes:,}")
    return _Text(value)


def _lines_read(first: int, last: int) -> str:
    """Name what a row took: a quote that nobody closes swallows all lines behind it."""
    lines = last - first + 1
    return f"line {first}" if lines <= 1 else f"lines {first} to {last} ({lines:,} lines)"


def _check_header(header: list[str] | None, fields: Fields) -> None:
    if not header:
        msg = "the CSV has no header line"
        raise InputError(msg, hint="the first line names the fields")
    if len(set(header)) != len(header):
        msg = "a name stands twice in the CSV header"
        raise InputError(msg)
    if not all(name.isprintable() for name in header):
        msg = "a name in the CSV header is not printable text"
        raise InputError(msg)
    for field in fields:
        if field is not None and field not in header:
            msg = f"the CSV has no field {field!r}"
            raise InputError(msg, hint=f"its fields: {', '.join(header)}")
