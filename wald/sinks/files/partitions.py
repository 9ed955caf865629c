"""Which directories a record's file is in: ``date=2026-11-28/field=value/``, whatever the value.

Names are percent-encoded, so that a value leaves its directory by no path, and bounded, so that
the file system takes them: a long one is cut and its digest put behind. Days and hours are UTC.
"""

import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import quote

import msgpack

from wald import limits
from wald.model import Record
from wald.sinks.values import decode, plain, to_json

CLOCK_PARTS = ("date", "hour")
KEY_PART = "key"
FIELD_PREFIX = "field:"
NOTHING = "__null__"
_NAME_MAX_CHARS = 120  # 255 bytes are the bound of nearly every file system, "name=" in front
_DIGEST_CHARS = 16


def path_of(parts: Sequence[str]) -> Callable[[Record], str]:
    """Return what says in which directory a record belongs, with a slash behind; "" for none."""
    if not parts:
        return lambda _: ""
    makers = [(_named(part), _maker(part)) for part in parts]
    if all(part in CLOCK_PARTS for part in parts):
        timed = lru_cache(64)(lambda hour: _joined(makers, _at(hour * _HOUR_NS)))
        return lambda record: timed(record.time_ns // _HOUR_NS)
    return lambda record: _joined(makers, record)


def escaped(value: object) -> str:
    """Return a value as the name of a directory."""
    if value is None:
        return NOTHING
    if isinstance(value, bytes):
        text = quote(value, safe="")
    else:
        said = value if isinstance(value, str) else to_json(value)
        text = quote(said, safe="", errors="replace")
    if len(text) <= _NAME_MAX_CHARS:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARS]
    return f"{text[:_NAME_MAX_CHARS]}~{digest}"


_HOUR_NS = 3600 * limits.CLOCK_NS_PER_S
_Maker = Callable[[Record], str]


def _joined(makers: Sequence[tuple[str, _Maker]], record: Record) -> str:
    return "".join(f"{name}={make(record)}/" for name, make in makers)


def _at(time_ns: int) -> Record:
    return Record(0, time_ns, 0, b"")


def _named(part: str) -> str:
    return escaped(part.removeprefix(FIELD_PREFIX))


def _maker(part: str) -> _Maker:
    if part == "date":
        return lambda record: f"{_moment(record):%Y-%m-%d}"
    if part == "hour":
        return lambda record: f"{_moment(record):%H}"
    if part == KEY_PART:
        return lambda record: escaped(record.key)
    name = part.removeprefix(FIELD_PREFIX)
    return lambda record: escaped(_field(record, name))


def _moment(record: Record) -> datetime:
    return datetime.fromtimestamp(record.time_ns // limits.CLOCK_NS_PER_S, UTC)


def _field(record: Record, name: str) -> object:
    """Return a field of a record that has a form in a file; None where there is none."""
    fields = decode(record)
    found = fields.get(name) if isinstance(fields, dict) else None
    return plain(found) if isinstance(found, msgpack.Timestamp) else found
