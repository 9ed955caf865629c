"""Values, keys and headers of the application, cut into request bodies within the limits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

from wald import limits
from wald.client.encoding import BAD_VALUE, encode_value, encode_values, too_large
from wald.core import body as bodies
from wald.core.body import Body, Headers, Text
from wald.core.gathering import PREFIX_BYTES, Entry, new_entry
from wald.model import Refused

_T = TypeVar("_T")
Key: TypeAlias = "Text | Callable[[object], Text | None] | None"

_BODY_BYTES = limits.MIB  # of one request: several of them are under way at once
_BODY_RECORDS = 8_192
_SHORT_CHARS = 1 << 10  # a key of so many never makes a record too large


class Outgoing(NamedTuple):
    """A request body, and which of the application's values it holds."""

    body: bytes
    indexes: Sequence[int]


class Columns(NamedTuple):
    """What stands beside the values: one entry per value, or no column at all."""

    keys: Sequence[Text | None] | None = None
    headers: Sequence[Headers | None] | None = None
    dedup_ids: Sequence[Text | None] | None = None

    def check(self, count: int) -> None:
        """Raise ``ValueError`` if a column does not fit the values."""
        for column in self:
            if column is not None and len(column) != count:
                msg = f"{len(column)} keys, headers or ids for {count} values"
                raise ValueError(msg)


NO_COLUMNS = Columns()


def with_urgent(headers: Headers | None) -> Headers:
    """Return headers that say that a record waits for no others."""
    return {limits.URGENT_HEADER_NAME: "", **(headers or {})}


def columns_of_one(key: Text | None, headers: Headers | None, dedup_id: Text | None) -> Columns:
    """Return the columns of one record."""
    if key is None and headers is None and dedup_id is None:
        return NO_COLUMNS
    return Columns(
        None if key is None else [key],
        None if headers is None else [headers],
        None if dedup_id is None else [dedup_id],
    )


def columns_for(
    values: Sequence[object],
    key: Key,
    keys: Sequence[Text | None] | None,
    headers: Headers | None,
    dedup_ids: Sequence[Text | None] | None,
) -> Columns:
    """Return the columns that the options of ``append_many`` ask for."""
    if key is not None and keys is not None:
        msg = "give either key or keys"
        raise ValueError(msg)
    if callable(key):
        keys = [key(value) for value in values]
    elif key is not None:
        keys = [key] * len(values)
    columns = Columns(keys, None if headers is None else [headers] * len(values), dedup_ids)
    columns.check(len(values))
    return columns


class Many(NamedTuple):
    """What ``append_many`` sends, and what it cannot send."""

    values: int
    ready: list[Outgoing]
    refused: list[Refused]


def many(
    values: Sequence[object],
    *,
    key: Key,
    keys: Sequence[Text | None] | None,
    headers: Headers | None,
    dedup_ids: Sequence[Text | None] | None,
    urgent: bool,
) -> Many:
    """Return the requests for values with the options of ``append_many``.

    Raises:
        TypeError: it is one value, not a sequence of them.
        ValueError: options that contradict each other, or do not fit the values.
    """
    if isinstance(values, str | bytes | bytearray | memoryview | Mapping):
        msg = f"append_many takes a sequence of values, not one {type(values).__name__}"
        raise TypeError(msg)
    values = values if isinstance(values, list | tuple) else list(values)
    headers = with_urgent(headers) if urgent else headers
    ready, refused = outgoing(values, columns_for(values, key, keys, headers, dedup_ids))
    return Many(len(values), ready, refused)


def body_of_one(value: object, columns: Columns = NO_COLUMNS) -> bytes | Refused:
    """Return the request body for one value, or why it cannot be sent: as ``outgoing`` does."""
    if columns is not NO_COLUMNS:
        ready, refused = outgoing([value], columns)
        return ready[0].body if ready else refused[0]
    if type(value) is bytes:
        content, data = 0, value
    else:
        try:
            content, data = encode_value(value)
        except BAD_VALUE as error:
            return Refused(0, "record.value", str(error))
    if len(data) > limits.RECORD_MAX_BYTES:
        return too_large(0, data)
    return bodies.encode_one(content, data)


def entry_of(
    value: object,
    key: Text | None = None,
    headers: Headers | None = None,
    dedup_id: Text | None = None,
    *,
    urgent: bool = False,
) -> Entry | Refused:
    """Return one value ready to be gathered, or why it cannot be sent: as ``outgoing`` does."""
    if type(value) is bytes:
        content, data = 0, value
    else:
        try:
            content, data = encode_value(value)
        except BAD_VALUE as error:
            return Refused(0, "record.value", str(error))
    if len(data) > limits.RECORD_MAX_BYTES:
        return too_large(0, data)
    beside: int | str = 0
    if key is not None or headers is not None or dedup_id is not None:
        beside = _beside(content, data, key, headers, dedup_id)
        if isinstance(beside, str):
            return Refused(0, "record.value", beside)
    return new_entry((content, data, key, headers, dedup_id, beside, urgent))


def _beside(
    content: int, data: bytes, key: Text | None, headers: Headers | None, dedup_id: Text | None
) -> int | str:
    """Return how many bytes key, headers and id take at most, or why they cannot be sent."""
    if (
        headers is None
        and dedup_id is None
        and type(key) is str
        and len(key) <= _SHORT_CHARS
        and key.isascii()
    ):
        return len(key) + PREFIX_BYTES  # it has a form: nothing needs to be tried
    keys, all_headers, ids = columns_of_one(key, headers, dedup_id)
    body = _encoded(Body(content, [data], _all(keys), _all(all_headers), _all(ids)))
    return body if isinstance(body, str) else len(body) - len(data)


def outgoing(values: Sequence[object], columns: Columns) -> tuple[list[Outgoing], list[Refused]]:
    """Return the request bodies for values, and the values that cannot be sent."""
    content, encoded, refused = encode_values(values)
    indexes: Sequence[int] = range(len(values))
    if refused:
        gone = {each.index for each in refused}
        indexes = [index for index in indexes if index not in gone]
        columns = Columns(
            _pick(columns.keys, indexes),
            _pick(columns.headers, indexes),
            _pick(columns.dedup_ids, indexes),
        )
    sent = []
    for start, end in _cuts(encoded, columns):
        part = Body(
            content if isinstance(content, int) else content[start:end],
            encoded[start:end],
            _slice(columns.keys, start, end),
            _slice(columns.headers, start, end),
            _slice(columns.dedup_ids, start, end),
        )
        body = _encoded(part)
        if isinstance(body, str):
            refused += [Refused(index, "record.value", body) for index in indexes[start:end]]
        else:
            sent.append(Outgoing(body, indexes[start:end]))
    return sent, refused


def _encoded(part: Body) -> bytes | str:
    """Return the packed body, or why it cannot be sent."""
    try:
        body = bodies.encode(part)
    except (TypeError, ValueError, OverflowError) as error:
        return f"a key, header or id: {error}"
    if len(body) > limits.REQUEST_MAX_BYTES:
        return (
            f"with key and headers {len(body):,} bytes, the limit is {limits.REQUEST_MAX_BYTES:,}"
        )
    return body


def _all(column: Sequence[_T] | None) -> list[_T] | None:
    return None if column is None else list(column)


def _pick(column: Sequence[_T] | None, indexes: Sequence[int]) -> list[_T] | None:
    return None if column is None else [column[index] for index in indexes]


def _slice(column: Sequence[_T] | None, start: int, end: int) -> list[_T] | None:
    return None if column is None else list(column[start:end])


def _cuts(encoded: list[bytes], columns: Columns) -> Iterator[tuple[int, int]]:
    """Yield where each request begins and ends."""
    plain = all(column is None for column in columns)
    total = sum(map(len, encoded)) + PREFIX_BYTES * len(encoded)
    if plain and total <= _BODY_BYTES and 0 < len(encoded) <= _BODY_RECORDS:
        yield 0, len(encoded)
        return
    start = size = 0
    for index, value in enumerate(encoded):
        more = len(value) + PREFIX_BYTES
        if not plain:
            more += sum(_size(column[index]) for column in columns if column is not None)
        if index > start and (size + more > _BODY_BYTES or index - start >= _BODY_RECORDS):
            yield start, index
            start, size = index, 0
        size += more
    if start < len(encoded):
        yield start, len(encoded)


def _size(text: Text | Headers | None) -> int:
    """Return at most how many bytes a key, headers or an id take."""
    if isinstance(text, bytes):
        return len(text) + PREFIX_BYTES
    if isinstance(text, str):
        return len(text) * 4 + PREFIX_BYTES
    if isinstance(text, Mapping):
        return sum(_size(name) + _size(value) for name, value in text.items()) + PREFIX_BYTES
    return 1
