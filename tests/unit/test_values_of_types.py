"""Dataclasses, msgspec.Structs and pydantic models are stored as the map of their fields."""

from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgpack
import msgspec
import pydantic
import pytest

from wald.client.encoding import decode_value, encode_value, encode_values
from wald.model import Content

AT = datetime(2026, 11, 22, 10, 14, tzinfo=UTC)
PARTS: dict[str, Any] = {
    "at": AT,
    "paid": Decimal("12.50"),
    "id": UUID(int=7),
    "day": date(2026, 11, 22),
}


class Struct(msgspec.Struct, rename="camel", omit_defaults=True):
    user_name: str
    at: datetime
    paid: Decimal
    id: UUID
    day: date
    raw: bytes = b""


class Model(pydantic.BaseModel):
    user_name: str
    at: datetime
    paid: Decimal
    id: UUID
    day: date
    tags: list[str] = pydantic.Field(default_factory=list)


@dataclass
class Inner:
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outer:
    inner: Inner
    struct: Struct
    model: Model
    by_name: dict[str, Inner] = field(default_factory=dict)


STRUCT = Struct(user_name="ann", raw=b"\xff", **PARTS)
MODEL = Model(user_name="ann", **PARTS)
AS_STRUCT = {"userName": "ann", **PARTS, "raw": b"\xff"}
AS_MODEL = {"user_name": "ann", **PARTS, "tags": []}


def back(value: object) -> object:
    return decode_value(*encode_value(value))


def test_each_is_the_map_of_its_fields_as_its_library_names_them():
    assert back(STRUCT) == AS_STRUCT
    assert back(Struct(user_name="ann", **PARTS)) == {"userName": "ann", **PARTS}
    assert back(MODEL) == AS_MODEL


def test_they_may_stand_in_each_other():
    outer = Outer(Inner(("a", "b")), STRUCT, MODEL, {"x": Inner(())})
    assert back([outer]) == [
        {
            "inner": {"tags": ["a", "b"]},
            "struct": AS_STRUCT,
            "model": AS_MODEL,
            "by_name": {"x": {"tags": []}},
        }
    ]


def test_what_has_no_form_in_one_is_refused_by_its_index():
    encoded = encode_values([MODEL, Inner({1}), Outer])  # type: ignore[arg-type]
    assert [each.index for each in encoded.refused] == [1, 2]


def test_a_class_itself_is_not_a_value():
    for kind in (Outer, Struct, Model):
        with pytest.raises((TypeError, ValueError)):
            encode_value(kind)


@pytest.mark.parametrize(
    ("content", "data"),
    [
        (Content.JSON, b"nul"),
        (Content.JSON, b"[" * 100_000),
        (Content.MSGPACK, b""),
        (Content.MSGPACK, b"\x81\x91\x01\x01"),  # a list is a key of the map
        (Content.MSGPACK, msgpack.packb(msgpack.ExtType(3, b"many"))),
        (Content.MSGPACK, msgpack.packb(msgpack.ExtType(1, b"soon"))),
    ],
)
def test_bytes_that_are_no_value_are_told_as_one_kind_of_error(content, data):
    with pytest.raises(ValueError, match=r"."):
        decode_value(content, data)
