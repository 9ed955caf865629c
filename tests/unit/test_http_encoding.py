"""Records as the body of a request: formats, what passes through, what has no form."""

import datetime
import gzip
import json
import uuid

import msgpack
import pytest
from backports import zstd

from tests.httptools import LOG_ID, options, record
from wald.model import Content, Record, RejectedRecord
from wald.sinks.http import encoding
from wald.sinks.http.encoding import Encoded

JSON, BYTES = Content.JSON, Content.BYTES
NAME = LOG_ID.hex()
TIME = '"time":"2025-11-22T10:14:03.120456Z"'
FIRST = f'"id":"{NAME}-7","lsn":7,{TIME},"value":{{"a":1}}'
SECOND = f'"id":"{NAME}-9","lsn":9,{TIME},"key":"k","value":{{"a":"é\\n"}}'


def encoded(*records, **settings):
    return encoding.encode(options(**settings).shape, LOG_ID, records)


def body(*records, **settings):
    found = encoded(*records, **settings)
    assert found.refused == ()
    return found.body


# --- formats ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, '[{"a":1},{"a":"é\\n"}]'),
        ({"wrap": "rows"}, '{"rows":[{"a":1},{"a":"é\\n"}]}'),
        ({"format": "ndjson"}, '{"a":1}\n{"a":"é\\n"}\n'),
        (
            {"format": "bulk"},
            "".join(
                f'{{"create":{{"_id":"{NAME}-{lsn}"}}}}\n{{"a":{value}}}\n'
                for lsn, value in ((7, "1"), (9, '"é\\n"'))
            ),
        ),
        (
            {"records": "envelopes"},
            f"[{{{FIRST}}},{{{SECOND}}}]",
        ),
        ({"fields": ["b"]}, "[{},{}]"),
    ],
)
@pytest.mark.parametrize("content", [Content.MSGPACK, JSON])
def test_a_batch_in_each_format(settings, expected, content):
    two = [record(7, {"a": 1}, content), record(9, {"a": "é\n"}, content, key="k")]
    sent = body(*two, **settings).decode()
    lines = settings.get("format") in {"ndjson", "bulk"}
    parts = [each.splitlines() if lines else [each] for each in (sent, expected)]
    ours, wanted = ([json.loads(line) for line in part] for part in parts)
    assert ours == wanted
    assert content is JSON or sent == expected  # JSON keeps its own spelling


def test_an_object_is_a_record_alone():
    assert body(record(7, b'{"a": 1}\n', JSON), format="object") == b'{"a": 1}\n'
    assert json.loads(body(record(7, {"a": 1}), format="object", records="envelopes"))["lsn"] == 7
    assert encoding.content_type(options(format="object").shape) == "application/json"


def test_an_envelope_holds_key_and_headers_whatever_is_in_them():
    hostile = 'k"\\\n\x00]},{"'
    sent = record(1, 1, key=hostile, headers={hostile: b"\x00\xff"})
    (found,) = json.loads(body(sent, records="envelopes"))
    assert (found["key"], found["headers"]) == (hostile, {hostile: "AP8="})
    (found,) = json.loads(body(record(1, 1, key=b"\xff"), records="envelopes"))
    assert found["key"] == "/w=="


def test_some_fields_are_selected_and_others_left_out():
    sent = (record(1, {"a": 1, "b": 2, "c": 3}), record(2, {"b": None}, JSON))
    assert json.loads(body(*sent, fields=["a", "b"])) == [{"a": 1, "b": 2}, {"b": None}]


@pytest.mark.parametrize(
    ("name", "unpack"), [("gzip", gzip.decompress), ("zstd", zstd.decompress), ("none", bytes)]
)
def test_compression_is_the_same_for_the_same(name, unpack):
    sent = [record(n, {"n": n}) for n in range(100)]
    first = body(*sent, compression=name)
    assert first == body(*sent, compression=name)
    assert json.loads(unpack(first)) == [{"n": n} for n in range(100)]
    assert name == "none" or len(first) < 600
    assert name != "gzip" or first[4:8] == bytes(4)  # the time of compression is not in it


# --- values -------------------------------------------------------------------------------------

MOMENT = datetime.datetime(2026, 11, 28, 12, tzinfo=datetime.UTC)
UUID = uuid.UUID(int=7)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (-(2**63), -(2**63)),
        (2**64 - 1, 2**64 - 1),
        (1.5, 1.5),
        (float("nan"), None),
        (float("-inf"), None),
        ("NUL\x00", "NUL\x00"),
        (b"\x00\xff", "AP8="),
        ([1, {"a": [b"x"]}], [1, {"a": ["eA=="]}]),
        (MOMENT, "2026-11-28T12:00:00+00:00"),
        (msgpack.ExtType(3, b"1.10"), "1.10"),
        (msgpack.ExtType(4, UUID.bytes), str(UUID)),
        ({1: "one"}, {"1": "one"}),
    ],
)
def test_a_value_has_one_form(value, expected):
    assert json.loads(body(record(1, value))) == [expected]


def test_bytes_are_base64_text():
    assert json.loads(body(Record(1, 0, BYTES, b"\xff"))) == ["/w=="]


# --- what passes through ------------------------------------------------------------------------


def test_json_passes_through_as_it_came():
    values = [b' {"a" : 1.10, "a": 2}\n', b'"x"', b"1e999", b"[ ]", '{"é":"\\u00e9"}'.encode()]
    sent = [record(n, value, JSON) for n, value in enumerate(values)]
    assert body(*sent) == b"[" + b",".join(values) + b"]"
    lines = body(*sent, format="ndjson")
    assert lines.splitlines() == [value.replace(b"\n", b" ") for value in values]


def test_json_beside_other_contents_passes_through_too():
    sent = (record(1, b'{"a":1.10}', JSON), record(2, {"b": 2}))
    assert body(*sent) == b'[{"a":1.10},{"b":2}]'


NOT_JSON = {
    "nothing": b"",
    "two values": b"1,2",
    "two lines": b"1\n2",
    "half a list": b"[1",
    "the other half": b"2]",
    "an escape from the array": b'1],"admin":[2',
    "no value": b'{"a":}',
    "a comma too many": b"[1,]",
    "NaN": b"NaN",
    "NaN inside": b'{"a":NaN}',
    "infinity": b"-Infinity",
    "a leading zero": b"01",
    "a bare word": b"nul",
    "a raw newline in a text": b'"a\nb"',
    "a raw NUL in a text": b'"a\x00b"',
    "not UTF-8": b'"\xff"',
    "half of UTF-8": b'"\xc3"',
    "half of a surrogate pair": b'"\\ud800"',
    "a byte order mark": b"\xef\xbb\xbf1",
    "nested too deeply": b"[" * 50_000 + b"]" * 50_000,
    "too deep and cut short": b"[" * 50_000,
    "a comment": b"1 /* one */",
}


@pytest.mark.parametrize("bad", NOT_JSON.values(), ids=NOT_JSON)
@pytest.mark.parametrize("settings", [{}, {"format": "ndjson"}, {"records": "envelopes"}])
def test_what_is_not_one_json_value_is_named_and_harms_no_neighbour(bad, settings):
    sent = [record(n, {"n": n}, JSON) for n in range(1, 1_001)]
    sent[421] = record(422, bad, JSON)
    found = encoded(*sent, **settings)
    assert [each.lsn for each in found.refused] == [422]
    assert found.refused[0].code == "record.value"
    assert 0 < len(found.refused[0].message) < 500
    assert found.body == b""
    del sent[421]
    assert encoded(*sent, **settings).refused == ()


def test_halves_that_make_a_value_together_are_refused_each():
    values = [b"[1", b"2]", b"3", b"", b"4"]
    found = encoded(*(record(n, value, JSON) for n, value in enumerate(values)))
    assert [each.lsn for each in found.refused] == [0, 1, 3]


# --- bad input of other contents ----------------------------------------------------------------

UNREADABLE = {
    "not msgpack": b"\xc1",
    "cut short": msgpack.packb({"a": "long"})[:-1],
    "bytes behind it": b"\x01\x02",
    "half of a surrogate pair": b"\xa3\xed\xa0\x80",
    "not UTF-8": b"\xa1\xff",
    "an extension of nobody's": msgpack.packb(msgpack.ExtType(99, b"x")),
    "a UUID of 3 bytes": msgpack.packb(msgpack.ExtType(4, b"xxx")),
    "a map with a list as a key": b"\x81\x91\x01\x01",
    "a map with bytes as a key": msgpack.packb({b"x": 1}),
    "nested too deeply": b"\x91" * 100_000 + b"\x01",
    "nothing": b"",
}


@pytest.mark.parametrize("bad", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_named_and_harms_no_neighbour(bad):
    sent = [record(n, {"n": n}) for n in range(1, 1_001)]
    sent[7] = Record(8, 0, Content.MSGPACK, bad)
    found = encoded(*sent)
    assert [(each.lsn, each.code) for each in found.refused] == [(8, "record.value")]
    assert found.refused[0].message


@pytest.mark.parametrize("settings", [{"fields": ["a"]}, {"preset": "powerbi"}])
@pytest.mark.parametrize(
    ("value", "content"),
    [(7, Content.MSGPACK), ([1], JSON), (b'"{"', JSON), (b" 1", JSON), (None, JSON)],
)
def test_where_fields_are_wanted_a_value_that_is_no_map_is_refused(settings, value, content):
    sent = [record(1, {"a": 1}, content), record(2, value, content)]
    found = encoded(*sent, **settings)
    assert [each.lsn for each in found.refused] == [2]
    assert "not a map of fields" in found.refused[0].message


def test_a_map_with_keys_that_are_no_text_has_text_in_json_or_is_refused():
    assert json.loads(body(record(1, {1: 2, None: 3}))) == [{"1": 2, "null": 3}]


# --- what is kept -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kept",
    [
        Encoded(b""),
        Encoded(b"\x00body"),
        Encoded(b"", (RejectedRecord(7, "record.value", "é"), RejectedRecord(2**63 - 1, "", ""))),
    ],
)
def test_what_is_kept_is_read_again(kept):
    assert encoding.unpack(encoding.pack(kept)) == kept
