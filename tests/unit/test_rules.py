"""What a stream asks of its records: what does not fit comes back by index, all else is kept."""

import datetime
import decimal
import json
import uuid
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.logtools import STREAM
from tests.model.log_reader import read_log
from tests.turns import OPTIONS, Client, Site
from wald.client.encoding import encode_value
from wald.core import body as bodies
from wald.core.body import Body
from wald.core.events import (
    Ack,
    Append,
    Capability,
    Duplicate,
    DuplicateRecords,
    Event,
    RefusedRecords,
)
from wald.core.examine import examine
from wald.core.ids import DedupPolicy
from wald.core.rules import FIELD_TYPES, StreamRules
from wald.errors import REFUSAL_HINTS

MSGPACK, JSON = 1, 2


def refused(rules: StreamRules, body: Body) -> list[tuple[int, str, str]]:
    found = examine(bodies.encode(body), rules)
    assert found.stored == len(body.values) - len(found.refusals)
    return [(each.record, each.code, each.message) for each in found.refusals]


def codes(rules: StreamRules, body: Body) -> dict[int, str]:
    return {index: code for index, code, _ in refused(rules, body)}


# --- row by row ---------------------------------------------------------------------------------


def test_a_value_above_the_bound_of_its_stream_is_refused_by_index():
    rules = StreamRules(max_record_bytes=4)
    found = refused(rules, Body(0, [b"four", b"fives", b"", b"12345"]))
    assert found == [
        (1, "record.too-large", "the value has 5 bytes, the stream takes 4"),
        (3, "record.too-large", "the value has 5 bytes, the stream takes 4"),
    ]


def test_a_content_that_the_stream_does_not_take_is_refused_by_index():
    rules = StreamRules(content=frozenset((1, 2)))
    assert codes(rules, Body(b"\0\1\2", [b"", b"\xc0", b"1"])) == {0: "record.content"}
    ((_, _, message),) = refused(rules, Body(0, [b""]))
    assert message == "the content is bytes, the stream takes msgpack or json"


def test_a_record_without_a_key_is_refused_where_keys_are_required():
    rules = StreamRules(key_required=True)
    assert codes(rules, Body(0, [b"a", b"b", b"c"], ["k", None, b""])) == {1: "record.key"}
    assert codes(rules, Body(0, [b"a", b"b"])) == {0: "record.key", 1: "record.key"}


VALUES: dict[str, list[object]] = {
    "text": ["", "déjà", "x" * 300],
    "bytes": [b"", b"x" * 300],
    "integer": [0, -1, 127, 128, -33, 2**63, -(2**63)],
    "number": [0, 1.5, -1, float("nan")],
    "boolean": [True, False],
    "list": [[], [1, [2]], list(range(20))],
    "map": [{}, {"a": {"b": 1}}, {str(at): at for at in range(20)}],
    "datetime": [datetime.datetime(2026, 11, 28, 10, 14, tzinfo=datetime.UTC)],
    "date": [datetime.date(2026, 11, 28)],
    "decimal": [decimal.Decimal("12.50"), decimal.Decimal(1)],
    "uuid": [uuid.UUID(int=7)],
    "any": [None],
}
ALSO = {("number", "integer")}  # what is the second is the first, too


@pytest.mark.parametrize("small_bytes", [65_536, 0], ids=["built", "passed over"])
@pytest.mark.parametrize("wanted", FIELD_TYPES)
@pytest.mark.parametrize("given_type", VALUES)
def test_a_field_fits_the_type_that_the_client_encodes_it_as(
    monkeypatch: pytest.MonkeyPatch, wanted: str, given_type: str, small_bytes: int
):
    monkeypatch.setattr("wald.core.rules._SMALL_BYTES", small_bytes)
    rules = StreamRules(fields={"f": wanted})
    for value in VALUES[given_type]:
        code, data = encode_value({"before": [1], "f": value, "behind": {"f": None}})
        found = codes(rules, Body(code, [data]))
        integer = wanted == "integer" and given_type == "number" and isinstance(value, int)
        fits = wanted in {"any", given_type} or (wanted, given_type) in ALSO or integer
        assert found == ({} if fits else {0: "record.fields"}), (wanted, value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"user": "ann", "age": 3}, ""),
        ({"user": "ann", "age": 3, "more": None}, ""),
        ({"user": "ann"}, "the stream wants a field 'age' of the type integer, and there is none"),
        ({"user": 1, "age": 3}, "the field 'user' is not of the type text"),
        ({"user": "ann", "age": True}, "the field 'age' is not of the type integer"),
        ({"user": "ann", "age": None}, "the field 'age' is not of the type integer"),
        ({}, "the stream wants a field 'user' of the type text, and there is none"),
        ([1], None),
        ("text", None),
        (None, None),
    ],
)
@pytest.mark.parametrize("small_bytes", [65_536, 0], ids=["built", "passed over"])
@pytest.mark.parametrize("content", [MSGPACK, JSON])
def test_what_is_wrong_with_fields_is_said(
    monkeypatch: pytest.MonkeyPatch,
    content: int,
    value: object,
    message: str | None,
    small_bytes: int,
):
    monkeypatch.setattr("wald.core.rules._SMALL_BYTES", small_bytes)
    rules = StreamRules(fields={"user": "text", "age": "integer"})
    data = msgpack.packb(value) if content == MSGPACK else json.dumps(value).encode()
    found = refused(rules, Body(content, [data]))
    assert [code for _, code, _ in found] == ["record.fields"] * (message != "")
    if message:
        assert found[0][2] == message


@pytest.mark.parametrize(
    ("content", "data"),
    [
        (0, b"{}"),
        (MSGPACK, b""),
        (MSGPACK, b"\x81"),
        (MSGPACK, b"\x81\xa1f"),
        (MSGPACK, b"\x81\xa1f\xc1"),
        (MSGPACK, b"\x81\xa1f\x01\x01"),
        (MSGPACK, b"\x81\xa1\xff\x01"),
        (MSGPACK, b"\xdf\xff\xff\xff\xff"),
        (MSGPACK, b"\x81\xa1f\xdd\xff\xff\xff\xff"),
        (MSGPACK, b"\x82\x91\x01\x01\xa1g\x01"),
        (MSGPACK, b"\x81\xa1f" + b"\x91" * 5_000 + b"\x01"),
        (JSON, b""),
        (JSON, b"{"),
        (JSON, b'{"f": \xff}'),
        (JSON, b'{"f": ' + b"[" * 100_000),
        (JSON, b'{"f": ' + b"1" * 5_000 + b"}"),
    ],
)
@pytest.mark.parametrize("small_bytes", [65_536, 0], ids=["built", "passed over"])
def test_a_value_that_is_not_what_it_says_is_refused(
    monkeypatch: pytest.MonkeyPatch, content: int, data: bytes, small_bytes: int
):
    monkeypatch.setattr("wald.core.rules._SMALL_BYTES", small_bytes)
    rules = StreamRules(fields={"f": "any"})
    assert codes(rules, Body(content, [data])) == {0: "record.fields"}


@given(st.binary(max_size=200), st.sampled_from([0, 1, 2]), st.sampled_from(FIELD_TYPES))
def test_any_value_fits_or_is_refused(data: bytes, content: int, wanted: str):
    refused(StreamRules(fields={"f": wanted, "g": "any"}), Body(content, [data]))


def test_what_is_wrong_in_itself_keeps_its_reason_and_indexes_stay_in_order():
    rules = StreamRules(max_record_bytes=2)
    body = Body(0, [b"xxx", "no bytes", b"x", b"xxx"])  # type: ignore[list-item]
    assert codes(rules, body) == {
        0: "record.too-large",
        1: "record.value",
        3: "record.too-large",
    }


def test_every_reason_to_refuse_has_a_hint():
    for code in ("too-large", "content", "key", "fields", "value", "headers", "dedup-id"):
        assert REFUSAL_HINTS[f"record.{code}"]
    for code in ("malformed", "refusals", "dedup"):
        assert REFUSAL_HINTS[f"request.{code}"]


# --- at the door --------------------------------------------------------------------------------


def site(rules: StreamRules, policy: DedupPolicy | None = None) -> Site:
    dedup = {} if policy is None else {"orders": policy}
    return Site(replace(OPTIONS, dedup=dedup), rules={"orders": rules})


def greeted(at: Site) -> Client:
    client = at.client()
    client.hello("", 0, Capability.DUPLICATES)
    return client


def told(client: Client) -> list[Event]:
    client.turn()
    return client.wire.events()


def test_of_fifty_records_with_a_bad_one_the_others_are_durable():
    at = site(StreamRules(fields={"n": "integer"}))
    client = greeted(at)
    values = [msgpack.packb({"n": str(n) if n == 46 else n}) for n in range(50)]
    client.send(Append(STREAM, 1, 1, bodies.encode(Body(1, values))).encode())
    said, ack = told(client)
    assert isinstance(said, RefusedRecords)
    assert [(each.record, each.code) for each in said.refusals] == [(46, "record.fields")]
    assert isinstance(ack, Ack)
    assert ack.durable_lsn - ack.first_lsn == 48
    (found,) = read_log(at.fs, "/var/wald", at.log.frontier).requests
    assert bodies.decode(found.body).values == values[:46] + values[47:]


def test_of_fifty_records_with_a_bad_one_and_duplicates_all_others_are_durable():
    at = site(StreamRules(fields={"n": "integer"}, compares_ids=True), DedupPolicy(3600.0, 1_000))
    client = greeted(at)

    def send(sequence: int, numbers: range, bad: int) -> list[Event]:
        values = [msgpack.packb({"n": str(n) if n == bad else n}) for n in numbers]
        body = Body(1, values, None, None, [f"id-{n}" for n in numbers])
        client.send(Append(STREAM, sequence, 1, bodies.encode(body)).encode())
        return told(client)

    (first,) = send(1, range(3), -1)
    assert isinstance(first, Ack)
    said, named, ack = send(2, range(50), 46)
    assert isinstance(said, RefusedRecords)
    assert [each.record for each in said.refusals] == [46]
    assert named == DuplicateRecords(2, tuple(Duplicate(n, first.first_lsn + n) for n in range(3)))
    assert isinstance(ack, Ack)
    assert ack.durable_lsn - ack.first_lsn == 45
    (ack,) = send(3, range(46, 47), -1)  # the id of what was refused was not used
    assert isinstance(ack, Ack)


@pytest.mark.parametrize("rules", [None, StreamRules(max_record_bytes=200)])
def test_plain_requests_of_every_shape_are_checked_too(rules: StreamRules | None):
    """The short cuts for plain requests are not taken where records are looked at."""
    at = Site(rules={} if rules is None else {"orders": rules})
    client = greeted(at)
    sizes = [128] * 20 + [300] + [128] * 20
    frames = [
        Append(STREAM, n, n, bodies.encode(Body(0, [b"x" * size]))).encode()
        for n, size in enumerate(sizes, 1)
    ]
    client.send(*frames)
    events = told(client)
    lone = Append(STREAM, len(sizes) + 1, 1, bodies.encode(Body(0, [b"x" * 300]))).encode()
    client.send(lone)
    events += told(client)
    wrong = [each.sequence for each in events if isinstance(each, RefusedRecords)]
    assert wrong == ([] if rules is None else [21, 42])
