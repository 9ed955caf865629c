"""The PostgreSQL sink at a real server: values, refusals by name, the row, what stands in a way."""

import json
from uuid import UUID

import msgpack
import pytest

from wald.model import (
    NO_REVISION,
    Anchor,
    Attempt,
    Content,
    Delivered,
    LaneKey,
    ProgressRow,
    Record,
    ReplayClass,
    RowMoved,
)

psycopg = pytest.importorskip("psycopg")
from wald.sinks.postgres import make  # noqa: E402

LOG_ID = bytes(range(16))
KEY = LaneKey(LOG_ID, 4, 0, 0)
OWNER = 2**64 - 5
TIME_NS = 1_763_806_443_120_456_789
A, B, C = (bytes([n]) * 16 for n in (1, 2, 3))


def pack(value):
    return msgpack.packb(value, datetime=True)


def record(lsn, value, content=Content.MSGPACK, **rest):
    data = pack(value) if content is Content.MSGPACK else value
    return Record(lsn, TIME_NS, int(content), data, **rest)


def attempt(*records, number=1, rev_id=A, prev=NO_REVISION, key=KEY, owner=OWNER, **rest):
    hi = records[-1].lsn if records else 0
    row = ProgressRow(number, rev_id, hi, Anchor(2**32 - 1, TIME_NS), owner, NO_REVISION)
    return Attempt(key, "events", prev, row, records, **rest)


class Place:
    """A database, and sinks into it."""

    def __init__(self, server, name):
        self.server, self.name = server, name
        self.sinks = []
        self.connection = server.connect(name)

    def url(self, **parameters):
        return self.server.url(database=self.name, **parameters)

    def sink(self, stream="events", **settings):
        made = make("route", stream, {"url": self.url(), **settings})
        self.sinks.append(made)
        return made

    def into(self, ddl, mode="columns", **settings):
        """A sink into the table ``t``, which is made."""
        self.sql(ddl)
        return self.sink(mode=mode, table="t", **settings)

    def sql(self, statement, *values):
        cursor = self.connection.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []

    def close(self):
        for sink in self.sinks:
            sink.close()
        self.connection.close()


@pytest.fixture
def at(postgres, database):
    place = Place(postgres, database)
    yield place
    place.close()


# --- the row ------------------------------------------------------------------------------------


def test_the_row_moves_with_the_records(at):
    sink = at.sink()
    assert sink.capabilities.replay is ReplayClass.TRANSACTIONAL
    assert sink.read_row(KEY) is None
    first = attempt(record(1, {"a": 1}), record(2, {"a": 2}))
    assert sink.deliver(first) == Delivered()
    assert sink.read_row(KEY) == first.row
    second = attempt(record(3, {"a": 3}), number=2, rev_id=B, prev=A)
    assert sink.deliver(second) == Delivered()
    assert sink.read_row(KEY) == second.row
    assert at.sql("SELECT lsn FROM events ORDER BY lsn") == [(1,), (2,), (3,)]
    assert sink.holds(LOG_ID, [1, 2, 3, 4]) == {1: 1, 2: 1, 3: 1}
    assert sink.holds(bytes(16), [1]) == {}


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"number": 1}, id="the same batch again"),
        pytest.param({"number": 2, "rev_id": C, "prev": B}, id="another revision stands there"),
        pytest.param({"number": 3, "rev_id": C, "prev": A}, id="a number further"),
        pytest.param({"number": 2, "rev_id": C, "prev": A, "owner": 9}, id="another owner's"),
    ],
)
def test_another_row_than_expected_lets_nothing_in(at, other):
    sink = at.sink()
    first = attempt(record(1, {"a": 1}))
    sink.deliver(first)
    assert sink.deliver(attempt(record(2, {"a": 2}), **other)) == RowMoved(first.row)
    assert at.sql("SELECT lsn FROM events") == [(1,)]


def test_a_batch_without_records_moves_the_row_alone(at):
    sink = at.sink()
    assert sink.deliver(attempt()) == Delivered()
    assert sink.read_row(KEY) == attempt().row
    assert at.sql("SELECT count(*) FROM events") == [(0,)]


def test_rows_of_lanes_and_logs_stand_beside_each_other(at):
    sink, other = at.sink(), LaneKey(bytes(16), 4, 0, 0)
    assert sink.deliver(attempt(record(1, 1))) == Delivered()
    assert sink.deliver(attempt(record(1, 2), key=other)) == Delivered()
    assert sink.deliver(attempt(key=KEY._replace(lane=1))) == Delivered()
    assert at.sql("SELECT log_id, value FROM events ORDER BY 1 DESC") == [
        (UUID(bytes=LOG_ID), 1),
        (UUID(int=0), 2),
    ]


def test_the_progress_table_goes_into_a_schema_of_its_own(at):
    assert at.sink(progress_schema="Of wald").deliver(attempt(record(1, 1))) == Delivered()
    assert at.sql('SELECT count(*) FROM "Of wald".wald_progress') == [(1,)]
    assert at.sql("SELECT to_regclass('wald.wald_progress')") == [(None,)]


# --- documents ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "value", "stored"),
    [
        (Content.MSGPACK, [1, None, True, 1.5, "ü\\\n\t"], [1, None, True, 1.5, "ü\\\n\t"]),
        (Content.MSGPACK, None, None),
        (Content.MSGPACK, float("nan"), None),
        (Content.MSGPACK, {"a": float("inf")}, {"a": None}),
        (Content.MSGPACK, {"raw": b"\x00\xff"}, {"raw": "AP8="}),
        (Content.MSGPACK, msgpack.ExtType(3, b"1.50"), "1.50"),
        (Content.MSGPACK, {1: 2}, {"1": 2}),
        (Content.MSGPACK, 2**63, 2**63),
        (Content.JSON, b'{"a": 1, "a": 2}', {"a": 2}),
        (Content.JSON, b"[1e400]", [10**400]),
        (Content.BYTES, b"\x00raw", "AHJhdw=="),
    ],
)  # fmt: skip
def test_a_document_holds_any_value(at, content, value, stored):
    sink = at.sink()
    assert sink.deliver(attempt(record(1, value, content))) == Delivered()
    ((text,),) = at.sql("SELECT value::text FROM events")
    assert json.loads(text) == stored


def test_a_document_keeps_key_time_and_headers(at):
    sink = at.sink()
    records = [
        record(1, 1, key="kö\\", headers={"trace": "t", "raw": b"\xff"}),
        record(2, 1, key=b"\x00\xff"),
        record(3, 1),
    ]
    assert sink.deliver(attempt(*records)) == Delivered()
    assert at.sql("SELECT key, headers FROM events ORDER BY lsn") == [
        ("kö\\", {"trace": "t", "raw": "/w=="}),
        ("\\x00ff", None),
        (None, None),
    ]
    when = "SELECT to_char(time AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') FROM events"
    assert at.sql(when)[0] == ("2025-11-22 10:14:03.120456",)
