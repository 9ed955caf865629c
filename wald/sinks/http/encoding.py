"""Records as the body of a request, and the form in which it is kept.

| format | body |
|---|---|
| `array` | `[item,item]`; with `wrap = "rows"`: `{"rows":[item,item]}` |
| `object` | the item itself: a batch has one record |
| `ndjson` | an item a line |
| `bulk` | before each item a line `{"create":{"_id":"<log id>-<LSN>"}}` |

An item is the value as JSON, or an envelope around it: id, LSN, time, key, headers, value. What was
appended as JSON goes through undecoded; it is looked over, so that each record is one value: what
is not would break its neighbours, or pass for several of them.

A record that has no such form is named by its own code and words, and nothing is sent. What is
kept of a batch is therefore either a body or what is refused of it: see ``pack``. Whoever changes
what a body holds gives ``HttpSink.encoder`` another version.
"""

import gzip
import sys
from collections.abc import Callable, Sequence
from operator import attrgetter
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

import msgpack
import msgspec

from wald.model import Content, Record, RejectedRecord
from wald.sinks.http.options import NONE, Shape
from wald.sinks.values import BAD_VALUE, decode, refusal, time_text, to_json

if TYPE_CHECKING or sys.version_info < (3, 14):
    from backports import zstd
else:
    from compression import zstd

GZIP_LEVEL, ZSTD_LEVEL = 6, 3
_JSON_TYPE, _NDJSON_TYPE = "application/json", "application/x-ndjson"
_IN_LINES = frozenset({"ndjson", "bulk"})
_LENGTH = Struct("<I")
_CONTENT, _VALUE = attrgetter("content"), attrgetter("value")
# syntax alone, in C; raises ``msgspec.DecodeError``, and ``RecursionError`` where it is too deep
_look_over = msgspec.json.Decoder(msgspec.Raw).decode
_SURROGATE = "a text with half of a surrogate pair has no form in UTF-8"


class Encoded(NamedTuple):
    """A request's body; or, with an empty one, the records of which there can be none."""

    body: bytes
    refused: tuple[RejectedRecord, ...] = ()


def pack(encoded: Encoded) -> bytes:
    """Return the form that is kept: length of the refusals (u32 LE), refusals (msgpack), body."""
    refused = msgpack.packb([list(_fields(item)) for item in encoded.refused])
    said = refused if encoded.refused else b""
    return _LENGTH.pack(len(said)) + said + encoded.body


def unpack(kept: bytes) -> Encoded:
    """Return what ``pack`` packed; the drainer has checked that it is what was kept."""
    (length,) = _LENGTH.unpack_from(kept)
    end = _LENGTH.size + length
    said = msgpack.unpackb(kept[_LENGTH.size : end]) if length else []
    return Encoded(kept[end:], tuple(RejectedRecord(*item) for item in said))


def encode(shape: Shape, log_id: bytes, records: Sequence[Record]) -> Encoded:
    """Return the body of the request that sends records, compressed if so chosen."""
    to_item = _item_maker(shape, log_id)
    items = _passed_through(shape, to_item, records)
    if items is None:
        refused: list[RejectedRecord] = []
        items = []
        for record in records:
            try:
                items.append(to_item(record, _value(shape, record)))
            except BAD_VALUE as error:
                refused.append(refusal(record, error))
        if refused:
            return Encoded(b"", tuple(refused))
    return Encoded(_compressed(shape, _joined(shape, items)))


def content_type(shape: Shape) -> str:
    """Return the media type of the body."""
    return _NDJSON_TYPE if shape.format in _IN_LINES else _JSON_TYPE


def record_id(log_id: bytes, lsn: int) -> str:
    """Return what names a record at every target: the log's id and its LSN."""
    return f"{log_id.hex()}-{lsn}"


# --- values -------------------------------------------------------------------------------------


def _passed_through(
    shape: Shape, to_item: Callable[[Record, bytes], bytes], records: Sequence[Record]
) -> list[bytes] | None:
    """Return the items if all are JSON already and as they should be; None to look at each."""
    if shape.fields or set(map(_CONTENT, records)) != {Content.JSON}:
        return None
    found = list(map(_VALUE, records))
    try:
        for value in found:
            _look_over(value)
        whole = b",".join(found)
        if not whole.isascii():
            whole.decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if shape.objects and not all(value.lstrip()[:1] == b"{" for value in found):
        return None
    if shape.format in _IN_LINES and b"\n" in whole:
        found = [value.replace(b"\n", b" ") for value in found]  # between tokens: in texts none is
    return list(map(to_item, records, found))


def _value(shape: Shape, record: Record) -> bytes:
    """Return a record's value as JSON.

    Raises:
        ValueError, TypeError, ...: ``BAD_VALUE``: it has no such form.
    """
    if record.content == Content.JSON and not shape.fields:
        return _own_json(shape, record)
    decoded = decode(record)
    if shape.objects and not isinstance(decoded, dict):
        raise TypeError(_no_map(type(decoded).__name__))
    if shape.fields:
        decoded = {name: decoded[name] for name in shape.fields if name in decoded}  # type: ignore[index,operator]
    return to_json(decoded).encode()


def _own_json(shape: Shape, record: Record) -> bytes:
    try:
        _look_over(record.value)
        record.value.decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        decode(record)  # which says it better
        raise ValueError(_SURROGATE) from None
    if shape.objects and record.value.lstrip()[:1] != b"{":
        raise TypeError(_no_map(type(decode(record)).__name__))
    return record.value.replace(b"\n", b" ") if shape.format in _IN_LINES else record.value


def _no_map(name: str) -> str:
    return f"the value is {name}, not a map of fields"


# --- items and bodies ---------------------------------------------------------------------------


def _item_maker(shape: Shape, log_id: bytes) -> Callable[[Record, bytes], bytes]:
    named = log_id.hex()
    if shape.format == "bulk":
        return lambda record, value: b"%b\n%b" % (_create(named, record), value)
    if shape.records == "envelopes":
        return lambda record, value: _envelope(named, record, value)
    return lambda _, value: value


def _create(named: str, record: Record) -> bytes:
    return f'{{"create":{{"_id":"{named}-{record.lsn}"}}}}'.encode()


def _envelope(named: str, record: Record, value: bytes) -> bytes:
    head = f'{{"id":"{named}-{record.lsn}","lsn":{record.lsn},"time":"{time_text(record.time_ns)}"'
    if record.key is not None:
        head += f',"key":{to_json(record.key)}'
    if record.headers:
        head += f',"headers":{to_json(dict(record.headers))}'
    return b'%b,"value":%b}' % (head.encode(), value)


def _joined(shape: Shape, items: list[bytes]) -> bytes:
    if shape.format in _IN_LINES:
        return b"\n".join([*items, b""])
    if shape.format == "object":
        (only,) = items
        return only
    array = b"[%b]" % b",".join(items)
    return b"{%b:%b}" % (to_json(shape.wrap).encode(), array) if shape.wrap else array


def _compressed(shape: Shape, body: bytes) -> bytes:
    if shape.compression == NONE:
        return body
    if shape.compression == "gzip":
        return gzip.compress(body, GZIP_LEVEL, mtime=0)
    return zstd.compress(body, ZSTD_LEVEL)


def _fields(item: RejectedRecord) -> tuple[int, str, str]:
    return item.lsn, item.code, item.message
