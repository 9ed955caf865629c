"""PostgreSQL, mode upsert: the newest row of each key, whatever comes late or from elsewhere."""

import pytest

from wald.model import Delivered, Rejected, Severity, Systemic, SystemicKind

pytest.importorskip("psycopg")
from tests.servers.postgres_place import KEY, attempt, named, record

DDL = (
    "CREATE TABLE t (id int PRIMARY KEY, seat text CHECK (seat <> 'none'), paid int DEFAULT 7,"
    " wald_log_id uuid, wald_lsn bigint)"
)
ROWS = "SELECT id, seat, paid, wald_lsn FROM t ORDER BY id"
UPSERT = {"mode": "upsert", "conflict": ["id"]}


def test_a_row_of_the_same_key_is_replaced(at):
    sink = at.into(DDL, **UPSERT)
    assert (
        at.deliver(sink, {"id": 1, "seat": "a", "paid": 1}, {"id": 2, "seat": "b"}) == Delivered()
    )
    assert at.sql(ROWS) == [(1, "a", 1, 1), (2, "b", None, 2)]
    assert at.deliver(sink, {"id": 2, "seat": "c", "paid": 5}, lsn=3) == Delivered()
    assert at.sql(ROWS) == [(1, "a", 1, 1), (2, "c", 5, 3)]


def test_of_several_records_of_a_key_in_a_batch_the_newest_counts(at):
    sink = at.into(DDL, **UPSERT)
    values = [{"id": n % 3, "seat": str(n)} for n in range(10)]
    assert at.deliver(sink, *values) == Delivered()
    assert at.sql(ROWS) == [(0, "9", None, 10), (1, "7", None, 8), (2, "8", None, 9)]


def test_what_is_older_than_the_row_changes_nothing(at):
    """A late attempt, or a dead letter that is sent again behind newer records of its key."""
    sink = at.into(DDL, **UPSERT)
    at.deliver(sink, {"id": 1, "seat": "new"}, lsn=10)
    assert at.deliver(sink, {"id": 1, "seat": "old"}, lsn=4) == Delivered()
    assert at.deliver(sink, {"id": 1, "seat": "same"}, lsn=10) == Delivered()
    assert at.sql(ROWS) == [(1, "new", None, 10)]


def test_a_row_of_nobody_or_of_another_log_is_replaced(at):
    """LSNs of two logs cannot be compared: a new host must not be silent below the old one's."""
    sink = at.into(DDL, **UPSERT)
    at.sql("INSERT INTO t VALUES (1, 'the application', 1)")
    assert at.deliver(sink, {"id": 1, "seat": "ours"}, lsn=900) == Delivered()
    assert at.sql(ROWS) == [(1, "ours", None, 900)]
    other = KEY._replace(log_id=bytes(16))
    assert sink.deliver(attempt(record(3, {"id": 1, "seat": "next"}), key=other)) == Delivered()
    assert at.sql(ROWS) == [(1, "next", None, 3)]


def test_a_record_without_its_key_is_refused(at):
    sink = at.into(DDL, **UPSERT)
    values = [{"id": 1}, {"seat": "x"}, {"id": None}]
    assert named(at.deliver(sink, *values)) == [(2, "record.value"), (3, "record.value")]


def test_what_the_copy_refuses_is_named_and_what_the_table_refuses_is_searched(at):
    sink = at.into(DDL, **UPSERT)
    values = [{"id": 1}, {"id": "x"}, {"id": 3}]
    assert named(at.deliver(sink, *values)) == [(2, "22P02")]
    assert named(at.probe(sink, *values)) == [(2, "22P02")]
    values = [{"id": 1}, {"id": 2, "seat": "none"}, {"id": 3}]
    for outcome in (at.deliver(sink, *values), at.probe(sink, *values)):
        assert isinstance(outcome, Rejected)
        assert (outcome.records, outcome.code) == ((), "23514")
    assert at.probe(sink, values[0], values[2]) == []
    assert at.sql(ROWS) == []


def test_defaults_are_those_of_the_table(at):
    sink = at.into(DDL, **UPSERT, on_missing_field="default")
    values = [{"id": 1, "seat": "a"}, {"id": 2, "paid": 1}, {"id": 3, "paid": None}]
    assert at.deliver(sink, *values) == Delivered()
    assert at.sql(ROWS) == [(1, "a", 7, 1), (2, None, 1, 2), (3, None, None, 3)]


def test_a_key_may_be_the_tables_own(at):
    sink = at.into(
        DDL.replace("(id int", "(id int DEFAULT 5"), **UPSERT, on_missing_field="default"
    )
    assert at.deliver(sink, {}, {"seat": "a"}) == Delivered()
    assert at.sql(ROWS) == [(5, "a", 7, 2)]


def test_types_and_keys_of_several_columns(at):
    at.sql("CREATE DOMAIN code AS text; CREATE TYPE mood AS ENUM ('sad', 'ok')")
    sink = at.into(
        'CREATE TABLE t ("Shop" code, no numeric(10,0), mood mood, tags text[], rest jsonb,'
        ' wald_lsn bigint, wald_log_id uuid, UNIQUE (no, "Shop"))',
        mode="upsert",
        conflict=["Shop", "no"],
        columns={"Shop": "shop", "no": "no", "mood": "mood", "tags": "tags", "rest": "*"},
    )
    value = {"shop": "s", "no": 1, "mood": "sad", "tags": ["a"], "more": [1]}
    assert at.deliver(sink, value, {**value, "mood": "ok", "no": "1.0"}) == Delivered()
    assert at.sql('SELECT "Shop", mood, tags, rest FROM t') == [("s", "ok", ["a"], {"more": [1]})]
    assert [found.severity for found in sink.check()] == [Severity.OK] * 3
    assert sink.holds(KEY.log_id, [1]) is None


@pytest.mark.parametrize(
    ("ddl", "words"),
    [
        ("CREATE TABLE t (id int PRIMARY KEY)", "needs the columns wald_log_id and wald_lsn"),
        ("CREATE TABLE t (x int, wald_log_id uuid, wald_lsn bigint)", "no column 'id'"),
        (
            "CREATE TABLE t (id int, wald_log_id uuid, wald_lsn bigint)",
            "no unique or exclusion constraint",
        ),
    ],
)
def test_a_table_that_cannot_be_upserted_is_a_matter_of_configuration(at, ddl, words):
    sink = at.into(ddl, **UPSERT)
    told = at.deliver(sink, {"id": 1})
    assert isinstance(told, Systemic)
    assert told.kind is SystemicKind.CONFIGURATION
    assert words in told.message
    errors = [found for found in sink.check() if found.severity is Severity.ERROR]
    assert [found.code for found in errors] in (["postgres.table"], ["postgres.conflict"])
    assert errors[0].hint
    if "needs the columns" in words:
        at.sql(told.hint)  # it can be run as it is
        assert at.deliver(sink, {"id": 1}) == Delivered()


def test_lanes_upsert_side_by_side(at):
    """Each batch has a temporary table of its own, in one session or in two."""
    first, second = at.into(DDL, **UPSERT), at.sink(table="t", **UPSERT)
    for n in range(4):
        assert at.deliver(first, {"id": n}, lsn=n + 1) == Delivered()
        assert at.deliver(second, {"id": n + 100}, lsn=n + 1) == Delivered()
    assert at.sql("SELECT count(*) FROM t") == [(8,)]
    left = "SELECT count(*) FROM pg_class WHERE relname = 'wald_batch'"
    assert at.sql(left) == [(0,)]
