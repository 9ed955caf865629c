"""The body codec: what is refused record by record, with which code."""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wald import limits
from wald.core import body as bodies
from wald.core.body import BadRecord, Body
from wald.errors import FormatDamaged

GOOD = b"good"


def body(*columns: Any) -> Body:
    return Body(*columns)


HEADERS_FULL = {f"h{at}": b"" for at in range(limits.HEADERS_MAX_COUNT)}

# what a hostile client may send, so not of the types of a Body
BAD: dict[str, tuple[Any, str]] = {
    "an unknown content code": (body(3, [GOOD]), "record.content"),
    "a negative content code": (body(-1, [GOOD]), "record.content"),
    "a huge content code": (body(2**63, [GOOD]), "record.content"),
    "an unknown code among codes": (body(b"\x09", [GOOD]), "record.content"),
    "text for a value": (body(0, ["text"]), "record.value"),
    "nil for a value": (body(0, [None]), "record.value"),
    "a value above the limit": (body(0, [bytes(limits.RECORD_MAX_BYTES + 1)]), "record.too-large"),
    "a key that is a number": (body(0, [GOOD], [7]), "record.key"),
    "a key above the limit": (body(0, [GOOD], [bytes(limits.KEY_MAX_BYTES + 1)]), "record.key"),
    "a key whose UTF-8 is above it": (
        Body(0, [GOOD], ["ü" * (limits.KEY_MAX_BYTES // 2 + 1)]),
        "record.key",
    ),
    "a dedup id that is a map": (body(0, [GOOD], None, None, [{}]), "record.dedup-id"),
    "a long dedup id": (
        Body(0, [GOOD], None, None, ["i" * (limits.DEDUP_ID_MAX_BYTES + 1)]),
        "record.dedup-id",
    ),
    "headers that are text": (body(0, [GOOD], None, ["h"]), "record.headers"),
    "a header that is a number": (body(0, [GOOD], None, [{"h": 1}]), "record.headers"),
    "a header named by bytes": (body(0, [GOOD], None, [{b"h": "x"}]), "record.headers"),
    "too many headers": (body(0, [GOOD], None, [{**HEADERS_FULL, "x": b""}]), "record.headers"),
    "too long headers": (
        Body(0, [GOOD], None, [{"h": bytes(limits.HEADERS_MAX_BYTES)}]),
        "record.headers",
    ),
}
ALLOWED = {
    "no records": Body(0, []),
    "each content code": Body(b"\0\1\2", [GOOD] * 3),
    "a value at the limit": Body(2, [bytes(limits.RECORD_MAX_BYTES)]),
    "a key at the limit": Body(0, [GOOD], ["k" * limits.KEY_MAX_BYTES]),
    "keys of all kinds": Body(0, [GOOD] * 4, ["k", b"k", None, "ü" * 500]),
    "no keys in a column": Body(0, [GOOD], [None]),
    "an empty key": Body(0, [GOOD], [""]),
    "dedup ids": Body(0, [GOOD] * 3, None, None, ["i", b"i", None]),
    "the most headers": Body(0, [GOOD] * 2, None, [HEADERS_FULL, None]),
    "headers of text and bytes": Body(0, [GOOD], None, [{"a": "b", "c": b"d"}]),
}


def decoded(body: Body) -> Body:
    return bodies.decode(bodies.encode(body))


@pytest.mark.parametrize("what", BAD)
def test_a_bad_record_is_named_by_index_and_code(what):
    body, code = BAD[what]
    (found,) = bodies.find_bad_records(decoded(body))
    assert (found.index, found.code) == (0, code)
    assert found.message


@pytest.mark.parametrize("what", ALLOWED)
def test_what_the_page_allows_is_taken(what):
    body = ALLOWED[what]
    assert decoded(body) == body
    assert bodies.find_bad_records(decoded(body)) == []


def test_the_47th_of_50_is_found_alone():
    values: list[bytes] = [GOOD] * 50
    body = Body(0, values, [str(at) for at in range(50)])
    body.keys[46] = bytes(limits.KEY_MAX_BYTES + 1)  # type: ignore[index]
    found = bodies.find_bad_records(body)
    assert [(each.index, each.code) for each in found] == [(46, "record.key")]


def test_without_drops_a_record_from_every_column():
    body = Body(b"\0\1\2", [b"a", b"b", b"c"], ["x", None, "z"], [{"h": "1"}, None, {}], None)
    kept = bodies.without(body, [1])
    assert kept == Body(b"\0\2", [b"a", b"c"], ["x", "z"], [{"h": "1"}, {}], None)
    plain = bodies.without(Body(0, [b"a", b"b"]), [0])
    assert plain == Body(0, [b"b"])


def test_a_large_body_is_taken_with_all_its_columns():
    count = 2_000
    body = Body(0, [bytes(100)] * count, ["k"] * count, [{"h": "x"}] * count, ["i"] * count)
    assert len(bodies.encode(body)) > 64 * limits.KIB
    assert decoded(body) == body
    assert bodies.find_bad_records(decoded(body)) == []


def test_a_large_body_cannot_have_more_records_than_the_limit():
    body = Body(0, [b"x"] * (limits.REQUEST_MAX_RECORDS + 1))
    with pytest.raises(FormatDamaged):
        decoded(body)


texts = st.one_of(st.none(), st.text(max_size=8), st.binary(max_size=8))


@given(st.data(), st.lists(st.binary(max_size=20), max_size=6))
def test_a_body_comes_back_as_it_was(data, values):
    def column(each: st.SearchStrategy[object]) -> object:
        size = len(values)
        rows = st.lists(each, min_size=size, max_size=size)
        return data.draw(st.one_of(st.none(), rows))

    content = data.draw(st.sampled_from([0, 1, 2, bytes(len(values))]))
    headers = st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3)
    body = Body(content, values, column(texts), column(headers), column(texts))  # type: ignore[arg-type]
    assert decoded(body) == body
    assert bodies.find_bad_records(body) == []


@given(st.binary(max_size=60))
def test_any_bytes_are_a_body_or_damaged(data):
    try:
        body = bodies.decode(data)
    except FormatDamaged:
        return
    assert all(isinstance(each, BadRecord) for each in bodies.find_bad_records(body))


@given(st.recursive(st.none() | st.integers(-5, 5) | st.binary(max_size=3) | st.text(max_size=3),
                    lambda inner: st.lists(inner, max_size=5)
                    | st.dictionaries(st.text(max_size=2), inner, max_size=3)))  # fmt: skip
def test_any_msgpack_is_a_body_or_damaged(value):
    try:
        body = bodies.decode(msgpack.packb(value))
    except FormatDamaged:
        return
    bodies.find_bad_records(body)
