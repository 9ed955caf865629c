"""Values of the application as bytes with a content code: the table of docs/protocol.md."""

import json
import sys
from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import NamedTuple, cast
from uuid import UUID

import msgpack

from wald import limits
from wald.model import Content, Refused

EXT_DATETIME = 1
EXT_DATE = 2
EXT_DECIMAL = 3
EXT_UUID = 4

_BYTES = {bytes}
_BUFFERS = (bytes, bytearray, memoryview)
BAD_VALUE = (TypeError, ValueError, OverflowError, RecursionError)


class Encoded(NamedTuple):
    """Values ready to be sent, and those that cannot be."""

    content: int | bytes
    values: list[bytes]
    refused: list[Refused]  # by index in the values given


def _fields(value: object) -> object:
    """Return a dataclass, msgspec.Struct or pydantic model as what it is of; else None.

    Nothing is imported for it: who has such a value has the library. Its fields may be such values.
    """
    kind = type(value)
    if hasattr(kind, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in kind.__dataclass_fields__}
    if hasattr(kind, "__struct_fields__"):
        builtin_types = (bytes, bytearray, memoryview, datetime, date, Decimal, UUID)
        return sys.modules["msgspec"].to_builtins(value, builtin_types=builtin_types)
    if hasattr(kind, "__pydantic_fields__") and hasattr(value, "model_dump"):
        return value.model_dump()
    return None


def _extension(value: object) -> object:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            msg = "a datetime without an offset says no instant; give it a tzinfo"
            raise ValueError(msg)
        return msgpack.ExtType(EXT_DATETIME, value.isoformat().encode())
    if isinstance(value, date):
        return msgpack.ExtType(EXT_DATE, value.isoformat().encode())
    if isinstance(value, Decimal):
        if not value.is_finite():
            msg = f"the Decimal {value} is not a number"
            raise ValueError(msg)
        return msgpack.ExtType(EXT_DECIMAL, str(value).encode())
    if isinstance(value, UUID):
        return msgpack.ExtType(EXT_UUID, value.bytes)
    fields = _fields(value)
    if fields is not None:
        return fields
    of = (
        "an integer beyond 64 bits"
        if isinstance(value, int)
        else f"a value of type {type(value).__name__}"
    )
    msg = f"{of} has no form in msgpack"
    raise TypeError(msg)


def encode_value(value: object) -> tuple[int, bytes]:
    """Return the content code and the bytes of one value.

    Raises:
        TypeError, ValueError, OverflowError, RecursionError: it has no form.
    """
    if isinstance(value, _BUFFERS):
        return Content.BYTES, bytes(value)
    packed = cast("bytes", msgpack.packb(value, default=_extension, use_bin_type=True))
    return Content.MSGPACK, packed


def decode_value(content: int, data: bytes) -> object:
    """Return the value that was encoded; the inverse of ``encode_value``, but tuples are lists.

    Raises:
        ValueError: the bytes are not what the content code says.
    """
    if content == Content.BYTES:
        return data
    try:
        if content == Content.JSON:
            return json.loads(data)
        return msgpack.unpackb(data, ext_hook=_of_extension, strict_map_key=False)
    except (TypeError, ArithmeticError, RecursionError) as error:
        msg = f"the value cannot be read: {error}"
        raise ValueError(msg) from error


def _of_extension(code: int, data: bytes) -> object:
    if code == EXT_UUID:
        return UUID(bytes=data)
    read = _READ.get(code)
    return msgpack.ExtType(code, data) if read is None else read(data.decode())


_READ: dict[int, Callable[[str], object]] = {
    EXT_DATETIME: datetime.fromisoformat,
    EXT_DATE: date.fromisoformat,
    EXT_DECIMAL: Decimal,
}


def too_large(index: int, data: bytes) -> Refused:
    """Return the refusal of an encoded value that is over the limit."""
    message = f"{len(data):,} bytes, the limit is {limits.RECORD_MAX_BYTES:,}"
    return Refused(index, "record.too-large", message)


def encode_values(values: Sequence[object]) -> Encoded:
    """Encode all that can be; say of the others why not."""
    if set(map(type, values)) == _BYTES:
        plain = cast("list[bytes]", list(values))
        if max(map(len, plain)) <= limits.RECORD_MAX_BYTES:
            return Encoded(Content.BYTES, plain, [])
    codes = bytearray()
    encoded: list[bytes] = []
    refused: list[Refused] = []
    for index, value in enumerate(values):
        try:
            code, data = encode_value(value)
        except BAD_VALUE as error:
            refused.append(Refused(index, "record.value", str(error)))
            continue
        if len(data) > limits.RECORD_MAX_BYTES:
            refused.append(too_large(index, data))
            continue
        codes.append(code)
        encoded.append(data)
    one = codes[0] if codes and len(set(codes)) == 1 else None
    return Encoded(bytes(codes) if one is None else one, encoded, refused)
