"""Values of records, for any target: decoding, JSON, and words for what cannot be read.

What a value is, whatever it was appended as:

| content | decoded |
|---|---|
| bytes (0) | the bytes |
| msgpack (1) | nil, bool, int, float, text, bytes, list, map; ``msgpack.Timestamp`` as it is |
| msgpack ext 1 to 4 (datetime, date, Decimal, UUID) | text, as ISO 8601, or as ``str`` has it |
| JSON (2) | what ``json.loads`` returns; NaN and infinities, which JSON has not, are refused |
| another ext, cut short, not UTF-8, nested too deeply | refused |

Of a key that stands twice in a map the last counts. In JSON text bytes are base64, and NaN and
infinities null. For sinks of other packages too.
"""

import json
import math
from base64 import b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import NamedTuple, TypeAlias
from uuid import UUID

import msgpack

from wald import limits
from wald.model import Content, Record, RejectedRecord

Row: TypeAlias = tuple[object, ...]
Words: TypeAlias = tuple[tuple[type[Exception], str, str], ...]

VALUE_REFUSED = "record.value"  # the code of a record that has no form at the target
BAD_VALUE = (ValueError, TypeError, KeyError, RecursionError, OverflowError, MemoryError)
_NS = limits.CLOCK_NS_PER_S
_TEXT_EXTENSIONS = frozenset({1, 2, 3})  # datetime, date, Decimal: text already
_UUID_EXTENSION = 4
_UUID_BYTES = 16


class RefusedValue(ValueError):
    """A record that a rule of the route refuses, with a code of its own."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Rows(NamedTuple):
    """Rows in the order of their records, or the records that cannot become one."""

    rows: list[Row]
    refused: tuple[RejectedRecord, ...]
    extra_fields: int = 0


# --- decoding -----------------------------------------------------------------------------------


def extension(code: int, data: bytes) -> str:
    """Return what one of our msgpack extensions says; the hook of ``unpack``.

    Raises:
        ValueError: an unknown one, or not what it should be.
    """
    if code in _TEXT_EXTENSIONS:
        return data.decode("utf-8")
    if code == _UUID_EXTENSION and len(data) == _UUID_BYTES:
        return str(UUID(bytes=data))
    msg = f"unknown msgpack extension {code} of {len(data)} bytes"
    raise ValueError(msg)


# raises what ``BAD_VALUE`` names
unpack: Callable[[bytes], object] = partial(
    msgpack.unpackb, ext_hook=extension, strict_map_key=False
)


def decode(record: Record) -> object:
    """Decode a record of any content to plain values; bytes stay bytes.

    Raises:
        ValueError, TypeError, RecursionError, MemoryError: ``BAD_VALUE``; see ``describe``.
    """
    if record.content == Content.MSGPACK:
        return unpack(record.value)
    if record.content == Content.JSON:
        return json.loads(record.value.decode("utf-8"), parse_constant=_no_constant)
    return record.value


def _no_constant(name: str) -> object:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


@lru_cache(maxsize=64)
def time_text(time_ns: int) -> str:
    """Return the commit time as ISO 8601 in UTC, to the microsecond."""
    whole, rest = divmod(time_ns, _NS)
    moment = datetime.fromtimestamp(whole, UTC).replace(microsecond=rest // 1000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


# --- JSON ---------------------------------------------------------------------------------------


def plain(value: object) -> str:
    """Return the text that stands in JSON for bytes and for a timestamp.

    Raises:
        TypeError: another kind of value.
    """
    if isinstance(value, bytes):
        return b64encode(value).decode("ascii")
    if isinstance(value, msgpack.Timestamp):
        return str(value.to_datetime().isoformat())
    msg = f"{type(value).__name__} has no form in JSON"
    raise TypeError(msg)


_encode = json.JSONEncoder(
    separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=plain
).encode


def to_json(value: object) -> str:
    """Return compact JSON; NaN and infinities, which JSON has not, become null.

    A text with half of a surrogate pair is in it as it came: it cannot be encoded as UTF-8.
    """
    try:
        return _encode(value)
    except ValueError:
        return _encode(_without_nan(value))


def json_text(record: Record) -> str:
    """Return a record's value as JSON text; what was appended as JSON stays as it is.

    Raises:
        ValueError, TypeError, RecursionError, MemoryError: ``BAD_VALUE``.
    """
    decoded = decode(record)
    if record.content == Content.JSON:
        return record.value.decode("utf-8")
    return to_json(decoded)


def _without_nan(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return value


# --- refusals -----------------------------------------------------------------------------------


def one_by_one(
    records: Sequence[Record], convert: Callable[[Record], tuple[Row, int]], words: Words = ()
) -> Rows:
    """Return records as rows, or every one of them that cannot become one.

    Args:
        records: the records.
        convert: makes the row of one, and says how many of its fields are in no column.
        words: more of what ``describe`` takes.
    """
    rows: list[Row] = []
    refused: list[RejectedRecord] = []
    extra_fields = 0
    for record in records:
        try:
            row, extra = convert(record)
        except BAD_VALUE as error:
            refused.append(refusal(record, error, words))
        else:
            rows.append(row)
            extra_fields += extra
    return Rows([] if refused else rows, tuple(refused), extra_fields)


def refusal(record: Record, error: Exception, words: Words = ()) -> RejectedRecord:
    """Return what is said of a record whose value raised one of ``BAD_VALUE``."""
    code = error.code if isinstance(error, RefusedValue) else VALUE_REFUSED
    return RejectedRecord(record.lsn, code, describe(error, words))


def describe(error: Exception, words: Words = ()) -> str:
    """Return an error as one bounded line: the target's own words, or ours, never the driver's.

    Args:
        error: what a codec or a driver raised.
        words: of a driver: kind of error, what its text begins with, what is said instead.
    """
    return _words(error, words)[: limits.ERROR_TEXT_MAX_CHARS]


def _words(error: Exception, words: Words) -> str:
    text = str(error)
    if isinstance(error, json.JSONDecodeError):
        return f"the value is not JSON: {error.msg} at character {error.pos}"
    if isinstance(error, RefusedValue):
        return text
    for kind, begins, instead in (*words, *_WORDS):
        if isinstance(error, kind) and text.startswith(begins):
            return instead
    return text or "the value cannot be read"


# what Python and msgpack say of a value that never reached a target
_WORDS: Words = (
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
)
