"""The quick way from a record to a row: msgpack decoded into a struct of just the fields wanted.

A map is never made: 0.4 us for 19 fields, where decoding into a map and picking takes 1.5. What
does not go this way raises one of ``NOT_QUICK``, and is looked at with care by
``wald.sinks.fields.ByField``, which alone says what is refused, and why.
"""

import re
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import astuple

from wald.model import Content, Record
from wald.sinks.fields import DEFAULT, REST, FieldRules
from wald.sinks.values import BAD_VALUE, Row, extension

NOT_QUICK = (msgspec.MsgspecError, *BAD_VALUE)
_FIXMAP, _FIXMAP_END, _MAP16 = 0x80, 0x90, 0xDE
_SIZE = slice(1, 3)
_UNNAMEABLE = re.compile(r'[\\"\x00-\x1f]')  # msgspec has no field of such a name


class _NotQuickError(ValueError):
    """A record that has to be looked at with care."""


def quick_rows(rules: FieldRules) -> Callable[[Record], tuple[Row, int]]:
    """Return what makes the row of a record, and says how many fields no column takes.

    It raises ``NOT_QUICK``. Fields that are missing are None, or ``DEFAULT``, by the rules.
    """
    fields = tuple(rules.columns.values())
    if REST in fields or len(set(fields)) < len(fields) or any(map(_UNNAMEABLE.search, fields)):
        return _never
    whole = _decoder(fields, forbids=rules.on_extra == "reject")
    sparse = None
    if rules.on_missing != "reject":
        absent = DEFAULT if rules.on_missing == "default" else None
        sparse = _decoder(fields, absent, forbids=True)
    count = len(fields)

    def row(record: Record) -> tuple[Row, int]:
        value = record.value
        if record.content != Content.MSGPACK:
            raise _NotQuickError
        try:
            found = astuple(whole(value))
        except msgspec.ValidationError:
            if sparse is None:
                raise
            return astuple(sparse(value)), 0
        return found, _fields_in(value) - count

    return row


def _never(_: Record) -> tuple[Row, int]:
    raise _NotQuickError


def _decoder(
    fields: tuple[str, ...], *absent: object, forbids: bool
) -> Callable[[bytes], msgspec.Struct]:
    names = [f"field_{place}" for place in range(len(fields))]
    members: list[Any] = [(name, Any, *absent) for name in names]
    kind = msgspec.defstruct(
        "Fields",
        members,
        rename=dict(zip(names, fields, strict=True)),
        forbid_unknown_fields=forbids,
        gc=False,
    )
    return msgspec.msgpack.Decoder(kind, ext_hook=_extension).decode


def _extension(code: int, data: memoryview) -> str:
    return extension(code, bytes(data))


def _fields_in(value: bytes) -> int:
    """Return how many fields a map of msgpack has, by its head."""
    head = value[0]
    if _FIXMAP <= head < _FIXMAP_END:
        return head - _FIXMAP
    return int.from_bytes(value[_SIZE] if head == _MAP16 else value[1:5], "big")
