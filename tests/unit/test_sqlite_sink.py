"""The SQLite sink: exactly once by the row, values, refusals by name, errors by their own names."""

import json
import os
import sqlite3
import uuid
from contextlib import closing
from dataclasses import replace

import msgpack
import pytest

from wald.errors import ConfigError, UnknownSetting, WrongSetting
from wald.model import (
    NO_REVISION,
    Anchor,
    Attempt,
    Content,
    Delivered,
    LaneKey,
    ProgressRow,
    Record,
    Rejected,
    ReplayClass,
    RowMoved,
    Severity,
    Systemic,
    SystemicKind,
    Unknown,
)
from wald.sinks.sqlite import make
from wald.sinks.sqlite.options import read_options

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


def attempt(*records, number=1, rev_id=A, prev=NO_REVISION, key=KEY, owner=OWNER):
    hi = records[-1].lsn if records else 0
    row = ProgressRow(number, rev_id, hi, Anchor(2**32 - 1, TIME_NS), owner, NO_REVISION)
    return Attempt(key, "events", prev, row, records)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.db"


@pytest.fixture
def open_sink(path):
    sinks = []

    def opened(stream="events", **settings):
        sink = make("route", stream, {"path": str(path), "busy_timeout": "0s", **settings})
        sinks.append(sink)
        return sink

    yield opened
    for sink in sinks:
        sink.close()


def query(path, sql, *values):
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        return database.execute(sql, values).fetchall()


def columns_sink(path, open_sink, ddl="CREATE TABLE t (a INTEGER, b TEXT)", **settings):
    query(path, ddl)
    return open_sink(**{"mode": "columns", "table": "t", **settings})


# --- once ---------------------------------------------------------------------------------------


def test_the_row_and_the_records_stand_together(path, open_sink):
    sink = open_sink()
    assert sink.read_row(KEY) is None
    sent = attempt(record(7, {"user": "ann"}, key="ann"), record(9, [1, 2]))
    assert sink.deliver(sent) == Delivered()
    assert sink.read_row(KEY) == sent.row
    assert query(path, "SELECT lsn, key, value FROM events") == [
        (7, "ann", '{"user":"ann"}'),
        (9, None, "[1,2]"),
    ]
    assert query(path, "SELECT applied, typeof(updated_at) FROM wald_progress") == [(2, "text")]
    assert sink.capabilities.replay is ReplayClass.TRANSACTIONAL


def test_the_same_attempt_again_finds_the_row_moved_and_applies_nothing(path, open_sink):
    sink, sent = open_sink(), attempt(record(7, {"a": 1}))
    sink.deliver(sent)
    assert sink.deliver(sent) == RowMoved(sent.row)
    assert open_sink().deliver(sent) == RowMoved(sent.row)
    assert query(path, "SELECT count(*) FROM events") == [(1,)]


@pytest.mark.parametrize(
    "other",
    [
        attempt(record(8, 1), number=2, rev_id=B, prev=C),
        attempt(record(8, 1), number=3, rev_id=B, prev=A),
        attempt(record(8, 1), number=2, rev_id=B, prev=A, owner=1),
    ],
)
def test_another_chain_or_owner_moves_nothing(path, open_sink, other):
    sink, sent = open_sink(), attempt(record(7, 1))
    sink.deliver(sent)
    assert sink.deliver(other) == RowMoved(sent.row)
    assert query(path, "SELECT lsn FROM events") == [(7,)]


def test_the_chain_goes_on_and_an_empty_batch_still_moves_the_row(open_sink):
    sink = open_sink()
    sink.deliver(attempt(record(7, 1)))
    empty = attempt(number=2, rev_id=B, prev=A)
    assert sink.deliver(empty) == Delivered()
    assert sink.read_row(KEY) == empty.row


def test_lanes_and_logs_have_rows_of_their_own(open_sink):
    sink = open_sink()
    keys = (KEY, KEY._replace(route_id=5), KEY._replace(log_id=bytes(16)))
    for lsn, key in enumerate(keys, 1):
        assert sink.deliver(attempt(record(lsn, 1), key=key)) == Delivered()
        assert sink.deliver(attempt(record(9, 1), key=key)) != Delivered()


def test_a_restored_file_is_noticed_by_its_inode(path, open_sink):
    sink = open_sink()
    sink.deliver(attempt(record(7, 1)))
    sink.close()
    backup = path.read_bytes()
    sink.deliver(attempt(record(8, 1), number=2, rev_id=B, prev=A))
    beside = path.with_name("restored.db")
    beside.write_bytes(backup)
    beside.replace(path)
    for name in ("events.db-wal", "events.db-shm"):
        path.with_name(name).unlink(missing_ok=True)
    outcome = sink.deliver(attempt(record(9, 1), number=3, rev_id=C, prev=B))
    assert isinstance(outcome, RowMoved)
    assert outcome.row is not None
    assert outcome.row.batch_no == 1


# --- values -------------------------------------------------------------------------------------

UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")


@pytest.mark.parametrize(
    ("value", "content", "stored"),
    [
        (b"\x00\xff", Content.BYTES, b"\x00\xff"),
        (b'{"a": 1}', Content.JSON, '{"a": 1}'),
        ({"a": [1, None, True, "é"]}, Content.MSGPACK, '{"a":[1,null,true,"é"]}'),
        ({"n": float("nan"), "i": [float("inf")]}, Content.MSGPACK, '{"n":null,"i":[null]}'),
        ({1: "x"}, Content.MSGPACK, '{"1":"x"}'),
        ({"raw": b"\x01"}, Content.MSGPACK, '{"raw":"AQ=="}'),
        (
            [
                msgpack.ExtType(1, b"2026-11-22T10:14:03.120000+01:00"),
                msgpack.ExtType(2, b"2026-11-22"),
                msgpack.ExtType(3, b"12.50"),
                msgpack.ExtType(4, UUID.bytes),
            ],
            Content.MSGPACK,
            f'["2026-11-22T10:14:03.120000+01:00","2026-11-22","12.50","{UUID}"]',
        ),
        (msgpack.Timestamp(0), Content.MSGPACK, '"1970-01-01T00:00:00+00:00"'),
    ],
)
def test_what_a_document_holds(path, open_sink, value, content, stored):
    assert open_sink().deliver(attempt(record(1, value, content))) == Delivered()
    assert query(path, "SELECT value FROM events") == [(stored,)]


def test_key_time_headers_and_log_id_of_a_document(path, open_sink):
    sent = record(1, b"x", Content.BYTES, key=b"\x01", headers={"a": "b", "c": b"\x01"})
    open_sink().deliver(attempt(sent))
    ((log_id, key, time, headers),) = query(path, "SELECT log_id, key, time, headers FROM events")
    assert (log_id, key, time) == (LOG_ID, b"\x01", "2025-11-22T10:14:03.120456Z")
    assert json.loads(headers) == {"a": "b", "c": "AQ=="}


BAD_VALUES = [
    (b"\xc1", Content.MSGPACK),
    (b"\x01\x01", Content.MSGPACK),
    (b"\x91" * 2_000, Content.MSGPACK),
    (b"\xa1\xff", Content.MSGPACK),
    (b"\xd4\x63\x00", Content.MSGPACK),
    (b"\x81\xc4\x01a\x01", Content.MSGPACK),
    (b"{", Content.JSON),
    (b"NaN", Content.JSON),
    (b"[" * 100_000, Content.JSON),
    (b"\xff", Content.JSON),
]


@pytest.mark.parametrize(("data", "content"), BAD_VALUES)
def test_a_value_that_cannot_be_converted_is_refused_by_name(path, open_sink, data, content):
    sink = open_sink()
    bad = Record(2, TIME_NS, int(content), data)
    outcome = sink.deliver(attempt(record(1, 1), bad, record(3, 1)))
    assert isinstance(outcome, Rejected)
    assert [(item.lsn, item.code) for item in outcome.records] == [(2, "record.value")]
    assert sink.read_row(KEY) is None
    assert query(path, "SELECT count(*) FROM events") == [(0,)]


@pytest.mark.parametrize("data", [b"\xc1", pack([1]), pack(7), b""])
def test_in_columns_mode_only_a_map_is_a_row(path, open_sink, data):
    sink = columns_sink(path, open_sink)
    outcome = sink.deliver(attempt(record(1, {"a": 1, "b": "x"}), Record(2, TIME_NS, 1, data)))
    assert isinstance(outcome, Rejected)
    assert [item.lsn for item in outcome.records] == [2]


@pytest.mark.parametrize("content", [Content.MSGPACK, Content.JSON])
def test_columns_take_fields_by_name_missing_is_null_extra_is_counted(path, open_sink, content):
    sink = columns_sink(path, open_sink)
    values: list[object] = [{"a": 1, "b": "x"}, {"b": "y", "more": 1, "even": 2}]
    if content is Content.JSON:
        values = [json.dumps(value).encode() for value in values]
    sent = [record(lsn, value, content) for lsn, value in enumerate(values, 1)]
    assert sink.deliver(attempt(*sent)) == Delivered({"extra-fields": 2})
    assert query(path, "SELECT a, b FROM t") == [(1, "x"), (None, "y")]


def test_extra_fields_are_counted_on_the_quick_way_too(path, open_sink):
    sink = columns_sink(path, open_sink)
    outcome = sink.deliver(attempt(record(1, {"a": 1, "b": 2, "c": 3})))
    assert outcome == Delivered({"extra-fields": 1})


def test_columns_may_be_filled_from_fields_of_other_names(path, open_sink):
    sink = columns_sink(path, open_sink, columns={"b": "name"})
    assert sink.deliver(attempt(record(1, {"name": "x"}))) == Delivered()
    assert query(path, "SELECT a, b FROM t") == [(None, "x")]


def test_a_missing_field_takes_the_default_of_its_column(path, open_sink):
    ddl = "CREATE TABLE t (a INTEGER DEFAULT 7, b TEXT DEFAULT 'x' NOT NULL, c, d DEFAULT (2 * 3))"
    sink = columns_sink(path, open_sink, ddl, on_missing_field="default")
    fields = [{"a": 1}, {"b": "y", "d": None}, {"a": 1, "b": "z", "c": 2, "d": 3}]
    sent = attempt(*(record(lsn, value) for lsn, value in enumerate(fields, 1)))
    assert sink.deliver(sent) == Delivered()
    expected = [(1, "x", None, 6), (7, "y", None, None), (1, "z", 2, 3)]
    assert query(path, "SELECT a, b, c, d FROM t") == expected


def test_a_column_may_take_everything_else_as_json(path, open_sink):
    sink = columns_sink(path, open_sink, columns={"a": "a", "b": "*"})
    assert sink.deliver(attempt(record(1, {"a": 1, "x": [2], "y": b"\x01"}))) == Delivered()
    assert query(path, "SELECT a, b FROM t") == [(1, '{"x":[2],"y":"AQ=="}')]


def test_missing_and_extra_fields_are_refused_where_the_route_says_so(path, open_sink):
    strict = {"on_missing_field": "reject", "on_extra_field": "reject"}
    sink = columns_sink(path, open_sink, **strict)
    fields = [{"a": 1, "b": "x"}, {"a": 1}, {"a": 1, "b": "x", "c": 1}]
    sent = attempt(*(record(lsn, value) for lsn, value in enumerate(fields, 1)))
    outcome = sink.deliver(sent)
    assert isinstance(outcome, Rejected)
    assert [(each.lsn, each.code) for each in outcome.records] == [
        (2, "field.missing"),
        (3, "field.extra"),
    ]


UPSERT = "CREATE TABLE t (a PRIMARY KEY, b DEFAULT 'x', wald_log_id BLOB, wald_lsn INTEGER)"


def test_a_row_is_replaced_only_by_a_newer_record_of_its_log(path, open_sink):
    sink = columns_sink(path, open_sink, UPSERT, mode="upsert", conflict=["a"])
    first = attempt(
        record(7, {"a": 1, "b": "old"}), record(8, {"a": 1, "b": "new"}), record(9, {"a": 2})
    )
    assert sink.deliver(first) == Delivered()
    late = attempt(record(5, {"a": 1, "b": "late"}), number=2, rev_id=B, prev=A)
    assert sink.deliver(late) == Delivered()
    rows = [(1, "new", LOG_ID, 8), (2, None, LOG_ID, 9)]
    assert query(path, "SELECT * FROM t ORDER BY a") == rows
    other = KEY._replace(log_id=bytes(16))
    assert sink.deliver(attempt(record(3, {"a": 1, "b": "other"}), key=other)) == Delivered()
    query(path, "INSERT INTO t VALUES (3, 'by hand', NULL, NULL)")
    assert sink.deliver(attempt(record(4, {"a": 3}), number=2, rev_id=B, prev=A, key=other)) == (
        Delivered()
    )
    rows = [(1, "other", bytes(16), 3), (2, None, LOG_ID, 9), (3, None, bytes(16), 4)]
    assert query(path, "SELECT * FROM t ORDER BY a") == rows


def test_an_upsert_takes_defaults_and_refuses_a_record_without_its_key(path, open_sink):
    sink = columns_sink(
        path, open_sink, UPSERT, mode="upsert", conflict=["a"], on_missing_field="default"
    )
    assert sink.deliver(attempt(record(1, {"a": 1}))) == Delivered()
    assert query(path, "SELECT a, b FROM t") == [(1, "x")]
    for value in ({"b": 1}, {"a": None}):
        outcome = sink.deliver(attempt(record(2, value), number=2, rev_id=B, prev=A))
        assert isinstance(outcome, Rejected)
        assert outcome.records[0].message == "column 'a' tells one row from another, and is null"


@pytest.mark.parametrize(
    "ddl",
    [
        "CREATE TABLE t (a, b, wald_log_id, wald_lsn)",
        "CREATE TABLE t (a PRIMARY KEY, b)",
        "CREATE TABLE t (b PRIMARY KEY, wald_log_id, wald_lsn)",
    ],
)
def test_a_table_that_cannot_be_upserted_is_the_configuration_s_fault(path, open_sink, ddl):
    sink = columns_sink(path, open_sink, ddl, mode="upsert", conflict=["a"])
    outcome = sink.deliver(attempt(record(1, {"a": 1})))
    assert isinstance(outcome, Systemic)
    assert outcome.kind is SystemicKind.CONFIGURATION
    assert findings(sink) == {"sqlite.configuration": Severity.ERROR}


def test_columns_for_log_and_lsn_are_filled_and_audited(path, open_sink):
    sink = columns_sink(path, open_sink, "CREATE TABLE t (a, wald_log_id, wald_lsn)")
    sink.deliver(attempt(record(4, {"a": 1}), record(6, {"a": 2})))
    assert query(path, "SELECT * FROM t") == [(1, LOG_ID, 4), (2, LOG_ID, 6)]
    assert sink.holds(LOG_ID, [4, 5, 6]) == {4: 1, 6: 1}
    query(path, "CREATE TABLE u (a)")
    assert open_sink(mode="columns", table="u").holds(LOG_ID, [4]) is None


def test_what_sqlite_cannot_bind_becomes_text_and_a_too_large_integer_is_refused(path, open_sink):
    sink = columns_sink(path, open_sink, "CREATE TABLE t (a, b, c, d)")
    fields = {"a": [1, {"x": None}], "b": msgpack.Timestamp(0), "c": b"\x01", "d": float("inf")}
    assert sink.deliver(attempt(record(1, fields))) == Delivered()
    expected = ('[1,{"x":null}]', "1970-01-01T00:00:00+00:00", b"\x01", float("inf"))
    assert query(path, "SELECT a, b, c, d FROM t") == [expected]
    outcome = open_sink(mode="columns", table="t").deliver(
        attempt(record(2, {"a": 1}), record(3, {"a": 2**63}), number=2, rev_id=B, prev=A)
    )
    assert isinstance(outcome, Rejected)
    assert [item.lsn for item in outcome.records] == [3]


@pytest.mark.parametrize("seconds", [0, 1 << 33, 1 << 35])
def test_a_timestamp_is_the_same_text_by_the_quick_way_and_by_the_careful_one(
    path, open_sink, seconds
):
    sink = columns_sink(path, open_sink, "CREATE TABLE t (a)")
    value = {"a": msgpack.Timestamp(seconds, 120_456_000)}
    assert sink.deliver(attempt(record(1, value))) == Delivered()
    sink._careful = True
    assert sink.deliver(attempt(record(2, value), number=2, rev_id=B, prev=A)) == Delivered()
    expected = value["a"].to_datetime().isoformat()
    assert query(path, "SELECT a FROM t") == [(expected,), (expected,)]


def test_nan_is_null_in_a_column(path, open_sink):
    sink = columns_sink(path, open_sink)
    sink.deliver(attempt(record(1, {"a": float("nan"), "b": "x"})))
    assert query(path, "SELECT a FROM t") == [(None,)]


def test_generated_columns_are_left_to_the_table(path, open_sink):
    sink = columns_sink(path, open_sink, "CREATE TABLE t (a, b AS (a + 1))")
    assert sink.deliver(attempt(record(1, {"a": 1}))) == Delivered()
    assert query(path, "SELECT b FROM t") == [(2,)]


# --- refusals -----------------------------------------------------------------------------------


def test_a_constraint_names_the_row_and_a_probe_names_all_of_them(path, open_sink):
    sink = columns_sink(path, open_sink, "CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT NOT NULL)")
    fields = [{"a": 1, "b": "x"}, {"a": 2}, {"a": 1, "b": "y"}, {"a": 4, "b": "z"}, {"b": None}]
    sent = attempt(*(record(lsn, value) for lsn, value in enumerate(fields, 11)))
    outcome = sink.deliver(sent)
    assert isinstance(outcome, Rejected)
    assert [item.lsn for item in outcome.records] == [12]
    named = sink.probe(sent, sent.records)
    assert [(item.lsn, item.code) for item in named] == [
        (12, "SQLITE_CONSTRAINT_NOTNULL"),
        (13, "SQLITE_CONSTRAINT_PRIMARYKEY"),
        (15, "SQLITE_CONSTRAINT_NOTNULL"),
    ]
    good = [item for item in sent.records if item.lsn in {11, 14}]
    assert sink.probe(sent, good) == []
    assert query(path, "SELECT count(*) FROM t") == [(0,)]
    assert sink.read_row(KEY) is None


def test_a_wrong_type_for_a_strict_table_is_the_record_s_fault(path, open_sink):
    sink = columns_sink(path, open_sink, "CREATE TABLE t (a INTEGER, b TEXT) STRICT")
    sent = attempt(record(1, {"a": 1}), record(2, {"a": "no number"}), record(3, {"a": 3}))
    outcome = sink.deliver(sent)
    assert isinstance(outcome, Rejected)
    named = sink.probe(sent, sent.records)
    assert [(item.lsn, item.code) for item in named] == [(2, "SQLITE_CONSTRAINT_DATATYPE")]
    assert "cannot store TEXT value in INTEGER column" in named[0].message


def test_a_constraint_that_the_driver_has_no_name_for_is_still_one(path, open_sink):
    class Newer(sqlite3.Connection):
        def executemany(self, _sql, rows):
            next(rows)
            error = sqlite3.IntegrityError("a constraint of the future")
            error.sqlite_errorname, error.sqlite_errorcode = "unknown", 19 | 99 << 8
            raise error

    sink = open_sink()
    sink.read_row(KEY)
    sink._database.close()
    sink._database = sqlite3.connect(path, isolation_level=None, factory=Newer)
    outcome = sink.deliver(attempt(record(1, 1)))
    assert isinstance(outcome, Rejected)
    assert [(item.lsn, item.code) for item in outcome.records] == [(1, "SQLITE_CONSTRAINT")]


def test_a_probe_names_what_cannot_be_converted(path, open_sink):
    sink = columns_sink(path, open_sink)
    sent = attempt(record(1, 7), record(2, {"a": 1}))
    assert [item.lsn for item in sink.probe(sent, sent.records)] == [1]


def test_a_constraint_that_rolls_the_transaction_back_is_still_a_refusal(path, open_sink):
    sink = columns_sink(path, open_sink, "CREATE TABLE t (a UNIQUE ON CONFLICT ROLLBACK, b)")
    sent = attempt(record(1, {"a": 1}), record(2, {"a": 1}), record(3, {"a": 3}))
    assert isinstance(sink.deliver(sent), Rejected)
    assert [item.lsn for item in sink.probe(sent, sent.records)] == [2]
    assert query(path, "SELECT count(*) FROM t") == [(0,)]


def test_a_constraint_checked_at_the_commit_names_nobody(path, open_sink):
    sink = columns_sink(
        path,
        open_sink,
        "CREATE TABLE t (a REFERENCES t (b) DEFERRABLE INITIALLY DEFERRED, b UNIQUE)",
    )
    sink.read_row(KEY)
    sink._database.execute("PRAGMA foreign_keys = on")
    outcome = sink.deliver(attempt(record(1, {"a": 5, "b": 6})))
    assert isinstance(outcome, Rejected)
    assert outcome.records == ()
    assert sink.read_row(KEY) is None


# --- the target as a whole ----------------------------------------------------------------------


def test_a_locked_database_is_busy(path, open_sink):
    sink = open_sink()
    sink.read_row(KEY)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        outcome = sink.deliver(attempt(record(1, 1)))
        assert isinstance(outcome, Systemic)
        assert outcome.kind is SystemicKind.BUSY
        assert isinstance(sink.probe(attempt(record(1, 1)), [record(1, 1)]), Systemic)
    assert sink.deliver(attempt(record(1, 1))) == Delivered()


def test_another_writer_is_waited_for_no_longer_than_the_attempt_may_take(path, open_sink):
    sink = open_sink(busy_timeout="10min")
    sink.read_row(KEY)
    short = replace(attempt(record(1, 1)), timeout_s=0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        outcome = sink.deliver(short)
        assert isinstance(outcome, Systemic)
        assert outcome.kind is SystemicKind.BUSY
    assert sink.deliver(short) == Delivered()


def test_an_attempt_that_works_beyond_its_time_is_interrupted_and_takes_no_effect(path, open_sink):
    sink = open_sink()
    sink.read_row(KEY)
    query(
        path,
        "CREATE VIEW endless AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
        " SELECT x FROM n",
    )
    query(
        path,
        "CREATE TRIGGER slow BEFORE INSERT ON events BEGIN SELECT max(x) FROM endless; END",
    )
    short = replace(attempt(record(1, 1)), timeout_s=0.05)
    for outcome in (sink.deliver(short), sink.probe(short, short.records)):
        assert isinstance(outcome, Systemic)
        assert outcome.kind is SystemicKind.BUSY
        assert "interrupted" in outcome.message
    assert sink.read_row(KEY) is None
    query(path, "DROP TRIGGER slow")
    assert sink.deliver(short) == Delivered()
    assert sink.deliver(replace(short, timeout_s=None)) != Delivered()  # it has it already


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda path: path.mkdir(), SystemicKind.UNREACHABLE),
        (lambda path: path.write_bytes(b"not a database" * 100), SystemicKind.DAMAGED),
    ],
)
def test_a_file_that_is_no_database_is_systemic(path, open_sink, spoil, kind):
    spoil(path)
    outcome = open_sink().read_row(KEY)
    assert isinstance(outcome, Systemic)
    assert outcome.kind is kind
    assert str(path) in outcome.message


def test_a_directory_that_appears_later_is_found(path, open_sink, tmp_path):
    sink = open_sink(path=str(tmp_path / "later" / "x.db"))
    assert isinstance(sink.deliver(attempt(record(1, 1))), Systemic)
    (tmp_path / "later").mkdir()
    assert sink.deliver(attempt(record(1, 1))) == Delivered()


@pytest.mark.parametrize("settings", [{"table": "absent"}, {"table": "t", "columns": {"c": "a"}}])
def test_a_missing_table_or_column_is_the_configuration_s_fault(path, open_sink, settings):
    query(path, "CREATE TABLE t (a, b)")
    outcome = open_sink(mode="columns", **settings).deliver(attempt(record(1, {"a": 1})))
    assert isinstance(outcome, Systemic)
    assert outcome.kind is SystemicKind.CONFIGURATION
    assert outcome.hint


def test_a_table_of_another_shape_is_the_configuration_s_fault(path, open_sink):
    sink = columns_sink(path, open_sink)
    sink.deliver(attempt(record(1, {"a": 1})))
    query(path, "DROP TABLE t")
    outcome = sink.probe(attempt(record(2, {"a": 1})), [record(2, {"a": 1})])
    assert isinstance(outcome, Systemic)
    assert outcome.kind is SystemicKind.CONFIGURATION


@pytest.mark.parametrize(
    ("name", "outcome"),
    [("SQLITE_IOERR_FSYNC", Unknown), ("SQLITE_FULL", Systemic), ("SQLITE_BUSY", Systemic)],
)
def test_an_error_at_the_commit_is_unknown_unless_it_says_that_nothing_was_written(
    path, open_sink, name, outcome
):
    class Failing(sqlite3.Connection):
        def execute(self, sql, *rest):
            if sql == "COMMIT":
                error = sqlite3.OperationalError("at the commit")
                error.sqlite_errorname = name
                error.sqlite_errorcode = getattr(sqlite3, name)
                raise error
            return super().execute(sql, *rest)

    sink = open_sink()
    sink.read_row(KEY)
    sink._database.close()
    sink._database = sqlite3.connect(path, isolation_level=None, factory=Failing)
    assert isinstance(sink.deliver(attempt(record(1, 1))), outcome)
    assert open_sink().read_row(KEY) is None


# --- names --------------------------------------------------------------------------------------

HOSTILE = ['a"b', "a'b", "a; DROP TABLE t; --", "select", "a.b", "ä ö", "[x]", "`x`", "a\nb", "-1"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_table_name_is_only_a_name(path, open_sink, name):
    assert open_sink(table=name).deliver(attempt(record(1, 5))) == Delivered()
    (found,) = query(path, "SELECT name FROM sqlite_master WHERE name = ? AND type = 'table'", name)
    assert found == (name,)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_column_name_is_only_a_name(path, open_sink, name):
    quoted = '"' + name.replace('"', '""') + '"'
    sink = columns_sink(path, open_sink, f"CREATE TABLE t ({quoted})")
    assert sink.deliver(attempt(record(1, {name: "x"}))) == Delivered()
    assert query(path, f"SELECT {quoted} FROM t") == [("x",)]


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({}, ConfigError),
        ({"path": ""}, WrongSetting),
        ({"path": 5}, WrongSetting),
        ({"path": ":memory:"}, WrongSetting),
        ({"path": "x", "tabel": "t"}, UnknownSetting),
        ({"path": "x", "wholly": "t"}, UnknownSetting),
        ({"path": "x", "mode": "rows"}, WrongSetting),
        ({"path": "x", "table": ""}, WrongSetting),
        ({"path": "x", "table": "Wald_Progress"}, WrongSetting),
        ({"path": "x", "table": "sqlite_x"}, WrongSetting),
        ({"path": "x", "table": "a\0b"}, WrongSetting),
        ({"path": "x", "columns": {"a": "b"}}, WrongSetting),
        ({"path": "x", "on_extra_field": "reject"}, WrongSetting),
        ({"path": "x", "mode": "upsert"}, WrongSetting),
        ({"path": "x", "conflict": ["a"]}, WrongSetting),
        ({"path": "x", "mode": "upsert", "conflict": ["a"], "columns": {"b": "b"}}, WrongSetting),
        ({"path": "x", "mode": "columns", "columns": {"wald_lsn": "b"}}, WrongSetting),
        ({"path": "x", "mode": "columns", "on_missing_field": "drop"}, WrongSetting),
        ({"path": "x", "mode": "columns", "columns": ["a"]}, WrongSetting),
        ({"path": "x", "mode": "columns", "columns": {"a": 1}}, WrongSetting),
        ({"path": "x", "busy_timeout": True}, WrongSetting),
        ({"path": "x", "busy_timeout": "soon"}, WrongSetting),
        ({"path": "x", "busy_timeout": "11min"}, WrongSetting),
        ({"path": "x", "busy_timeout": "1m"}, WrongSetting),
        ({"path": "x", "busy_timeout": 2}, WrongSetting),
    ],
)
def test_a_wrong_setting_is_refused_with_the_route_s_name(settings, error):
    with pytest.raises(error, match="route 'r'"):
        make("r", "events", settings)


def test_the_hint_of_a_misspelt_setting_is_the_right_one():
    with pytest.raises(UnknownSetting) as caught:
        make("r", "events", {"path": "x", "tabel": "t"})
    assert caught.value.hint == "did you mean 'table'?"


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("5s", 5.0), ("1min", 60.0), ("10min", 600.0)]
)
def test_durations_have_units(text, seconds):
    options = read_options("r", "events", {"path": "x", "busy_timeout": text})
    assert options.busy_timeout_s == seconds


# --- check --------------------------------------------------------------------------------------


def findings(sink):
    return {item.code: item.severity for item in sink.check() if item.code != "sqlite.wal-reset"}


def test_check_makes_no_file(path, open_sink):
    assert findings(open_sink()) == {"sqlite.found": Severity.OK}
    assert not path.exists()
    assert findings(open_sink(mode="columns")) == {"sqlite.configuration": Severity.ERROR}
    assert findings(open_sink(path=str(path.parent / "no" / "x"))) == {
        "sqlite.unreachable": Severity.ERROR
    }


def test_check_looks_at_tables_and_columns(path, open_sink):
    query(path, "CREATE TABLE t (a, b)")
    assert findings(open_sink()) == {"sqlite.found": Severity.OK}
    assert findings(open_sink(mode="columns", table="t")) == {"sqlite.found": Severity.OK}
    assert findings(open_sink(mode="columns", table="u")) == {
        "sqlite.configuration": Severity.ERROR
    }
    path.write_bytes(b"not a database" * 100)
    assert findings(open_sink()) == {"sqlite.damaged": Severity.ERROR}


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("denied", ["file", "directory"])
def test_check_finds_what_may_not_be_written(path, open_sink, monkeypatch, exists, denied):
    if exists:
        query(path, "CREATE TABLE t (a)")
    place = path if denied == "file" else path.parent
    monkeypatch.setattr(os, "access", lambda asked, _: asked != place)
    wrong = exists or denied == "directory"
    assert findings(open_sink()) == (
        {"sqlite.authentication": Severity.ERROR} if wrong else {"sqlite.found": Severity.OK}
    )


@pytest.mark.parametrize(("version", "warns"), [((3, 51, 2), True), ((3, 51, 3), False)])
def test_check_warns_of_the_releases_that_may_damage_a_database(
    open_sink, monkeypatch, version, warns
):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    found = [item for item in open_sink().check() if item.code == "sqlite.wal-reset"]
    assert bool(found) is warns
    assert all(item.severity is Severity.WARNING for item in found)
