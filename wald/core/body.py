"""The body of an append request: one versioned codec, shared by socket and disk.

Codec 1 is one msgpack array of five, column by column:

    [content, values, keys, headers, dedup_ids]

    content    int: one content code for all (0 bytes, 1 msgpack, 2 JSON), or
               bin: one code per record
    values     array of bin: the encoded values, in order; wald does not look into them
    keys       nil, or array of (nil | str | bin), one per record
    headers    nil, or array of (nil | map of str to (str | bin)), one per record
    dedup_ids  nil, or array of (nil | str | bin), one per record

Checking a body is one call into C plus a few passes in C over the columns, so that validation
before the acknowledgement costs about 25 ns a record.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple, TypeAlias, cast

import msgpack

from wald import limits
from wald.errors import FormatDamaged
from wald.model import Content, Lsn, Record

Text: TypeAlias = str | bytes
Headers: TypeAlias = Mapping[str, Text]

_CODES = frozenset(int(code) for code in Content)
_BYTES_ONLY = {bytes}
_new_record = partial(tuple.__new__, Record)  # no Python call per record


class Body(NamedTuple):
    """A decoded body; every column that is not None has one entry per value."""

    content: int | bytes
    values: list[bytes]
    keys: list[Text | None] | None = None
    headers: list[Headers | None] | None = None
    dedup_ids: list[Text | None] | None = None


@dataclass(frozen=True, slots=True)
class BadRecord:
    """Why the record at ``index`` of a request is refused."""

    index: int
    code: str
    message: str


def encode(body: Body) -> bytes:
    """Pack a body; the inverse of ``decode``."""
    return cast("bytes", msgpack.packb(tuple(body), use_bin_type=True))


def encode_one(content: int, value: bytes) -> bytes:
    """Pack a body of one value without key, headers and id: the bytes that ``encode`` gives.

    For the append of one record, whose caller waits: the packer's set-up takes five times as long.
    """
    assert 0 <= content < 1 << 7
    length = len(value)
    if length < 1 << 8:
        head = b"\x95%c\x91\xc4%c" % (content, length)
    elif length < 1 << 16:
        head = b"\x95%c\x91\xc5" % content + length.to_bytes(2, "big")
    else:
        head = b"\x95%c\x91\xc6" % content + length.to_bytes(4, "big")
    return head + value + b"\xc0\xc0\xc0"


def decode(data: bytes) -> Body:
    """Unpack a body and check its shape, not its records.

    Raises:
        FormatDamaged: the bytes are not a body of codec 1.
    """
    try:
        content, values, keys, headers, dedup_ids = (
            msgpack.unpackb(data) if len(data) <= _SMALL_BYTES else _unpack_large(data)
        )
        if type(values) is not list:
            msg = "values are not an array"
            raise FormatDamaged(msg)
        count = len(values)
        for column in (keys, headers, dedup_ids):
            if column is not None and (type(column) is not list or len(column) != count):
                msg = "a column does not have one entry per value"
                raise FormatDamaged(msg)
        if type(content) is bytes:
            if len(content) != count:
                msg = "content codes do not match the values"
                raise FormatDamaged(msg)
        elif type(content) is not int:
            msg = "content is neither a code nor codes"
            raise FormatDamaged(msg)
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        # msgpack raises ValueError and its subclasses, StackError included, for any bad input
        msg = f"not a request body: {type(error).__name__}"
        raise FormatDamaged(msg) from error
    return Body(content, values, keys, headers, dedup_ids)


def _unpack_large(data: bytes) -> tuple[Any, Any, Any, Any, Any]:
    """Unpack without letting a few bytes grow to much memory.

    A byte can stand for an empty map of 64 bytes: 4 MiB of them would take 300 MiB. A body has at
    most five arrays, and no map within a map.
    """
    arrays = 0

    def count_array(array: list[object]) -> list[object]:
        nonlocal arrays
        arrays += 1
        if arrays > _ARRAYS_MAX:
            msg = "too many arrays"
            raise ValueError(msg)
        return array

    def check_map(headers: dict[str, object]) -> dict[str, object]:
        if dict in map(type, headers.values()):
            msg = "a map within a map"
            raise ValueError(msg)
        return headers

    content, values, keys, headers, dedup_ids = msgpack.unpackb(
        data,
        list_hook=count_array,
        object_hook=check_map,
        max_array_len=limits.REQUEST_MAX_RECORDS,
    )
    return content, values, keys, headers, dedup_ids


_SMALL_BYTES = 64 * limits.KIB
assert _SMALL_BYTES < 2 * limits.REQUEST_MAX_RECORDS  # a value takes two bytes at least
_ARRAYS_MAX = 5  # the body and its columns


def records(time_ns: int, lsns: Sequence[Lsn], columns: Body) -> list[Record]:
    """Return the records of a decoded body.

    Args:
        time_ns: the commit time of their block.
        lsns: one for each.
        columns: as ``decode`` returned them, or ``only`` some.
    """
    content, values, keys, headers, dedup_ids = columns
    fields = zip(
        lsns,
        repeat(time_ns),
        repeat(content) if isinstance(content, int) else content,
        values,
        repeat(None) if keys is None else keys,
        repeat(None) if headers is None else headers,
        repeat(None) if dedup_ids is None else dedup_ids,
        strict=False,  # the repeats never end; the columns were checked to be as long as values
    )
    return list(map(_new_record, fields))


def find_bad_records(body: Body) -> list[BadRecord]:
    """Return why records of a well-shaped body are refused; empty for nearly every request."""
    if is_plain(body):
        return []
    bad = []
    for index in range(len(body.values)):
        found = _why_bad(body, index)
        if found is not None:
            bad.append(BadRecord(index, *found))
    return bad


def without(body: Body, indexes: Sequence[int]) -> Body:
    """Return the body without the records at ``indexes``."""
    gone = set(indexes)
    return only(body, [i for i in range(len(body.values)) if i not in gone])


def only(body: Body, indexes: Sequence[int]) -> Body:
    """Return the body with nothing but the records at ``indexes``, in their order."""

    def pick(column: list[Text | None] | None) -> list[Text | None] | None:
        return None if column is None else [column[i] for i in indexes]

    content = body.content
    return Body(
        bytes(content[i] for i in indexes) if isinstance(content, bytes) else content,
        [body.values[i] for i in indexes],
        pick(body.keys),
        None if body.headers is None else [body.headers[i] for i in indexes],
        pick(body.dedup_ids),
    )


def is_plain(body: Body) -> bool:
    """Tell whether nothing can be wrong with any record: the common case, in C speed."""
    content, values, keys, headers, dedup_ids = body
    if headers is not None or dedup_ids is not None:
        return False
    codes = (content,) if isinstance(content, int) else content
    if not _CODES.issuperset(codes):
        return False
    if values and (set(map(type, values)) != _BYTES_ONLY or _longest(values) > _RECORD_MAX):
        return False
    # four bytes per character is the most that UTF-8 takes
    return not keys or (
        {str, bytes}.issuperset(map(type, keys)) and _longest(keys) * 4 <= limits.KEY_MAX_BYTES
    )


_RECORD_MAX = limits.RECORD_MAX_BYTES


def _longest(column: Sequence[object]) -> int:
    return max(map(len, cast("Sequence[bytes]", column)))


def _why_bad(body: Body, index: int) -> tuple[str, str] | None:
    content = body.content if isinstance(body.content, int) else body.content[index]
    value = body.values[index]
    if content not in _CODES:
        return "record.content", f"unknown content code {content}"
    if type(value) is not bytes:
        return "record.value", "the encoded value is not a byte string"
    if len(value) > limits.RECORD_MAX_BYTES:
        return (
            "record.too-large",
            f"the value has {len(value):,} bytes, the limit is {limits.RECORD_MAX_BYTES:,}",
        )
    return (
        _why_bad_text("record.key", "key", body.keys, index, limits.KEY_MAX_BYTES)
        or _why_bad_text(
            "record.dedup-id", "dedup id", body.dedup_ids, index, limits.DEDUP_ID_MAX_BYTES
        )
        or _why_bad_headers(body.headers, index)
    )


def _why_bad_text(
    code: str, what: str, column: list[Text | None] | None, index: int, limit_bytes: int
) -> tuple[str, str] | None:
    if column is None or column[index] is None:
        return None
    size = _text_bytes(column[index])
    if size is None:
        return code, f"the {what} is neither text nor bytes"
    if size > limit_bytes:
        return code, f"the {what} has {size:,} bytes, the limit is {limit_bytes:,}"
    return None


def _text_bytes(text: object) -> int | None:
    if type(text) is bytes:
        return len(text)
    if type(text) is str:
        return len(text.encode())
    return None


def _why_bad_headers(column: list[Headers | None] | None, index: int) -> tuple[str, str] | None:
    if column is None or column[index] is None:
        return None
    headers = column[index]
    if type(headers) is not dict:
        return "record.headers", "the headers are not a map"
    sizes = [(_text_bytes(name), _text_bytes(text)) for name, text in headers.items()]
    if any(name is None or text is None for name, text in sizes) or not all(
        type(name) is str for name in headers
    ):
        return "record.headers", "a header is not text to text or bytes"
    total = sum((name or 0) + (text or 0) for name, text in sizes)
    if len(headers) > limits.HEADERS_MAX_COUNT or total > limits.HEADERS_MAX_BYTES:
        return (
            "record.headers",
            f"{len(headers)} headers of {total:,} bytes; at most {limits.HEADERS_MAX_COUNT}",
        )
    return None
