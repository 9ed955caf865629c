"""Records as items: what each value becomes, how large that is, and which cannot become one.

| value | attribute |
|---|---|
| nil, NaN, infinities | NULL |
| bool, text, list, map | BOOL, S, L, M; keys of maps are text |
| int, float, Decimal (msgpack ext 3) | N: at most 38 digits, 1e-130 to 9.99e125; else refused |
| bytes | B |
| datetime, date, UUID, timestamp | S, ISO 8601, or as ``str`` has it |
| JSON (content 2) | the same; numbers keep all their digits |
| bytes as a record's value | refused: not a map of fields |

An item is a map as the service's API has it: ``{"name": {"S": "text"}}``. Its size is counted as
the service documents it: names and texts in UTF-8, a number about half its digits.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Context, Decimal
from typing import Any, Final, NamedTuple, TypeAlias

import msgpack

from wald.model import Content, Lsn, Record, RejectedRecord
from wald.sinks.dynamodb.options import Options
from wald.sinks.fields import DEFAULT, ByField
from wald.sinks.values import BAD_VALUE, RefusedValue, Words, extension, plain, refusal

AttributeValue: TypeAlias = dict[str, Any]
Item: TypeAlias = dict[str, AttributeValue]

ITEM_MAX_BYTES: Final = 400 * 1024  # of the service
TOO_LARGE, NO_KEY, NOT_ALONE = "item.too-large", "key.missing", "key.not-alone"  # dead letters
LSN_ATTRIBUTE, LOG_ATTRIBUTE = "wald_lsn", "wald_log"
_DECIMAL_EXTENSION: Final = 3
_DIGITS_MAX: Final = 38
_EXPONENT_MIN, _EXPONENT_MAX = -130, 125
_EXACT: Final = Context(prec=_DIGITS_MAX)
_NESTED_BYTES: Final = 3  # of a list or a map; 1 more for each of its members
_WORDS: Words = ((OverflowError, "", "a number beyond 38 digits, or 1e-130 to 9.99e125"),)


class Put(NamedTuple):
    """One record as an item: its key tells which others write the same item."""

    lsn: Lsn
    key: tuple[str, ...]
    item: Item
    size_bytes: int


def puts_of(
    options: Options, log_id: bytes, records: Sequence[Record]
) -> tuple[list[Put], tuple[RejectedRecord, ...], int]:
    """Return records as items, those that cannot become one, and how many fields were left out."""
    make = _Maker(options, log_id)
    puts: list[Put] = []
    refused: list[RejectedRecord] = []
    extra_fields = 0
    once = options.key_from == "record-id"
    keys: set[tuple[str, ...]] = set()
    for record in records:
        try:
            put, extra = make.put(record)
            if once and put.key in keys:  # a transform made both of one: one would hide the other
                raise RefusedValue(NOT_ALONE, "several records of one LSN, which is their key")
        except BAD_VALUE as error:
            refused.append(refusal(record, error, _WORDS))
        else:
            puts.append(put)
            keys.add(put.key)
            extra_fields += extra
    return puts, tuple(refused), extra_fields


class _Maker:
    def __init__(self, options: Options, log_id: bytes) -> None:
        self._options = options
        self._log = log_id.hex()
        self._picks = ByField(options.fields, lambda value: value)

    def put(self, record: Record) -> tuple[Put, int]:
        """Return the item of a record.

        Raises:
            RefusedValue, ValueError, TypeError, ...: ``BAD_VALUE``: it cannot become one.
        """
        fields, extra = self._fields(record)
        item = {name: attribute(value) for name, value in fields.items()}
        if self._options.key_from != "field":
            item[self._options.partition_key] = self._partition(record)
        if self._options.mode == "put-if-newer":
            item[LSN_ATTRIBUTE] = {"N": str(record.lsn)}
            item[LOG_ATTRIBUTE] = {"S": self._log}
        size = sum(len(name.encode()) + size_bytes(value) for name, value in item.items())
        if size > ITEM_MAX_BYTES:
            msg = f"the item takes {size:,} bytes, and DynamoDB takes {ITEM_MAX_BYTES:,}"
            raise RefusedValue(TOO_LARGE, msg)
        return Put(record.lsn, key_of(self._options, item), item, size), extra

    def _fields(self, record: Record) -> tuple[Mapping[str, object], int]:
        decoded = decode(record)
        if not isinstance(decoded, dict):
            msg = f"the value is {type(decoded).__name__}, not a map of fields"
            raise TypeError(msg)
        if not self._options.fields.columns:
            return {_name(name): value for name, value in decoded.items()}, 0
        row, extra = self._picks.pick(decoded)
        named = zip(self._picks.columns, row, strict=True)
        return {name: value for name, value in named if value is not DEFAULT}, extra

    def _partition(self, record: Record) -> AttributeValue:
        if self._options.key_from == "record-id":
            return {"S": f"{self._log}-{record.lsn}"}
        if record.key is None:
            msg = "the record has no key to make the item's of"
            raise RefusedValue(NO_KEY, msg)
        return attribute(record.key)


def key_of(options: Options, item: Item) -> tuple[str, ...]:
    """Return what tells an item from others; the service compares numbers by value.

    Raises:
        RefusedValue: a part of the key is missing.
    """
    words: list[str] = []
    for name in (options.partition_key, options.sort_key):
        if name is None:
            continue
        if name not in item:
            msg = f"field {name!r} is missing, and it is of the table's key"
            raise RefusedValue(NO_KEY, msg)
        ((kind, value),) = item[name].items()
        words += (kind, _same_text(Decimal(value)) if kind == "N" else repr(value))
    return tuple(words)


def _same_text(number: Decimal) -> str:
    """Return one text for all forms of a number: all its digits, and zero has no sign."""
    return str(number.normalize(_EXACT) or 0)


# --- values -------------------------------------------------------------------------------------


def decode(record: Record) -> object:
    """Decode a record; a Decimal stays a number, and so do all digits of JSON.

    Raises:
        ValueError, TypeError, ...: ``BAD_VALUE``.
    """
    if record.content == Content.MSGPACK:
        return msgpack.unpackb(record.value, ext_hook=_extension, strict_map_key=False)
    if record.content == Content.JSON:
        text = record.value.decode("utf-8")
        return json.loads(text, parse_float=_decimal, parse_int=_decimal, parse_constant=_refuse)
    return record.value


def _extension(code: int, data: bytes) -> object:
    if code != _DECIMAL_EXTENSION:
        return extension(code, data)
    return _decimal(data.decode("ascii"))


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except ArithmeticError as error:  # also of an exponent beyond all bounds
        msg = "a Decimal that is no number"
        raise ValueError(msg) from error


def _refuse(name: str) -> object:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


def attribute(value: object) -> AttributeValue:
    """Return a decoded value as the API has it.

    Raises:
        OverflowError: a number beyond what the service holds.
        TypeError: a value, or the key of a map, that has no form there.
    """
    make = _MAKES.get(type(value))
    return {"S": plain(value)} if make is None else make(value)


def _text(value: str) -> AttributeValue:
    value.encode()  # half of a surrogate pair has no form
    return {"S": value}


def _map(value: Mapping[object, object]) -> AttributeValue:
    return {"M": {_name(name): attribute(item) for name, item in value.items()}}


def _name(name: object) -> str:
    if not isinstance(name, str):
        msg = f"a map has a key of {type(name).__name__}, and an attribute's name is text"
        raise TypeError(msg)
    name.encode()
    return name


def _number(value: float | Decimal) -> AttributeValue:
    if isinstance(value, float) and not math.isfinite(value):
        return {"NULL": True}
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    if not number.is_finite():
        return {"NULL": True}
    digits = len("".join(map(str, number.as_tuple().digits)).strip("0"))
    if digits > _DIGITS_MAX or (number and not _EXPONENT_MIN <= number.adjusted() <= _EXPONENT_MAX):
        msg = "a number that the service does not hold"
        raise OverflowError(msg)
    return {"N": str(number)}


_MAKES: Mapping[type, Callable[[Any], AttributeValue]] = {
    type(None): lambda _: {"NULL": True},
    bool: lambda value: {"BOOL": value},
    str: _text,
    bytes: lambda value: {"B": value},
    int: _number,
    float: _number,
    Decimal: _number,
    dict: _map,
    list: lambda value: {"L": [attribute(item) for item in value]},
}


def size_bytes(value: AttributeValue) -> int:
    """Return about how much of an item's 400 KiB a value takes."""
    ((kind, held),) = value.items()
    return _SIZES[kind](held)


_SIZES: Mapping[str, Callable[[Any], int]] = {
    "NULL": lambda _: 1,
    "BOOL": lambda _: 1,
    "S": lambda text: len(text.encode()),
    "B": len,
    "N": lambda digits: len(digits.strip("-0.")) // 2 + 2,
    "L": lambda items: _NESTED_BYTES + sum(1 + size_bytes(item) for item in items),
    "M": lambda items: (
        _NESTED_BYTES
        + sum(1 + len(name.encode()) + size_bytes(item) for name, item in items.items())
    ),
}
