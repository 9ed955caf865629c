"""What a dead letter of SQLite says: the target's words or ours, never those of a driver."""

import json
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing

import msgpack
import pytest

from wald.model import (
    NO_ANCHOR,
    NO_REVISION,
    Attempt,
    Content,
    LaneKey,
    ProgressRow,
    Record,
    Rejected,
)
from wald.sinks.sqlite import make
from wald.sinks.sqlite.values import describe

JSON, MSGPACK, BYTES = Content.JSON, Content.MSGPACK, Content.BYTES
FOREIGN = re.compile(r"Error\b|binding|codec|unhashable|Python|object|NoneType|parameter \d")
ROWS = [
    (JSON, b"{", "not JSON: Expecting property name"),
    (JSON, b"\xff", "not UTF-8"),
    (JSON, b"NaN", "NaN is not JSON"),
    (JSON, b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
    (JSON, b"[" * 100_000, "nested too deeply"),
    (MSGPACK, b"\xc1", "not msgpack"),
    (MSGPACK, b"\x91", "cut short"),
    (MSGPACK, b"", "cut short"),
    (MSGPACK, b"\x01\x02", "bytes follow it"),
    (MSGPACK, b"\x91" * 5000, "nested too deeply"),
    (MSGPACK, b"\xa2\xff\xff", "not UTF-8"),
    (MSGPACK, b"\x81\x91\x01\x01", "a map has a list or a map as a key"),
    (MSGPACK, msgpack.packb(msgpack.ExtType(99, b"x")), "unknown msgpack extension 99"),
    (MSGPACK, msgpack.packb(msgpack.ExtType(4, b"x")), "extension 4 of 1 bytes"),
]
COLUMNS_ROWS = [
    *ROWS,
    (JSON, b'{"a": "\\ud800"}', "surrogate"),
    (BYTES, b"x", "not a map of fields"),
    (JSON, b"[1]", "not a map of fields"),
    (MSGPACK, msgpack.packb({"a": 2**64 - 1}), "an integer beyond 64 bits"),
    (MSGPACK, msgpack.packb({"a": {"b": msgpack.ExtType(99, b"")}}), "extension 99"),
    (MSGPACK, msgpack.packb({"a": -1}), "CHECK constraint failed"),
    (JSON, json.dumps({"a": None}).encode(), "NOT NULL constraint failed: t.a"),
]


def refusal(path, content, value, **settings):
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE t (a NOT NULL CHECK (a > 0))")
    sink = make("r", "t", {"path": str(path), **settings})
    row = ProgressRow(1, b"r" * 16, 5, NO_ANCHOR, 7, NO_REVISION)
    key = LaneKey(bytes(16), 1, 0, 0)
    with closing(sink):
        attempt = Attempt(key, "t", NO_REVISION, row, [Record(5, 1, content, value)])
        outcome = sink.deliver(attempt)
        named = sink.probe(attempt, attempt.records)
    assert isinstance(outcome, Rejected)
    assert isinstance(named, Sequence)
    (refused,) = named
    return outcome.message, refused.message


@pytest.mark.parametrize(("content", "value", "words"), COLUMNS_ROWS)
def test_a_record_that_cannot_become_a_row_is_told_in_words_of_sqlite_or_ours(
    tmp_path, content, value, words
):
    for said in refusal(tmp_path / "x.db", content, value, mode="columns", table="t"):
        assert words in said
        assert not FOREIGN.search(said), said


@pytest.mark.parametrize(("content", "value", "words"), ROWS)
def test_so_is_a_document(tmp_path, content, value, words):
    for said in refusal(tmp_path / "x.db", content, value, table="documents"):
        assert words in said
        assert not FOREIGN.search(said), said


@pytest.mark.parametrize("value", [object(), "\ud800", 2**70])
def test_what_the_driver_says_of_a_value_is_said_in_our_words(value):
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE TABLE t (a)")
        with pytest.raises((sqlite3.Error, OverflowError, ValueError)) as caught:
            database.execute("INSERT INTO t VALUES (?)", (value,))
    assert not FOREIGN.search(describe(caught.value)), describe(caught.value)


def test_no_words_at_all_are_words_of_ours():
    assert describe(ValueError()) == "the value cannot be read"
