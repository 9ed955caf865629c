"""PostgreSQL, mode columns: types of columns, rules of fields, triggers, a table that changes."""

import datetime
import uuid
from decimal import Decimal

import msgpack
import pytest

from wald.model import Content, Delivered, Rejected, Systemic, SystemicKind

pytest.importorskip("psycopg")
from tests.servers.postgres_place import KEY, attempt, named, record

UTC = datetime.UTC
NOON = datetime.datetime(2026, 1, 31, 12, 0, 0, 123456, UTC)
ID = uuid.UUID("0f8fad5b-d9cb-469f-a165-70867728950e")


def ext(code, text):
    return msgpack.ExtType(code, text if isinstance(text, bytes) else text.encode())


TYPES = (
    "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN odd AS int CHECK (VALUE % 2 = 1);"
    "CREATE DOMAIN odder AS odd CHECK (VALUE > 1); CREATE DOMAIN doc AS jsonb;"
    "CREATE TYPE pair AS (x int, y text)"
)

LANDS = [
    ("smallint", -32768, "-32768"),
    ("bigint", 2**63 - 1, str(2**63 - 1)),
    ("real", 1.5, "1.5"),
    ("double precision", 0.1, "0.1"),
    ("double precision", float("-inf"), "-Infinity"),
    ("double precision", float("nan"), "NaN"),
    ("double precision", 3, "3"),
    ("numeric", 2**64 - 1, str(2**64 - 1)),
    ("numeric(6,2)", 1.005, "1.01"),
    ("numeric", ext(3, "12345678901234567890.123456789"), "12345678901234567890.123456789"),
    ("numeric", "1e3", "1000"),
    ("boolean", True, "true"),
    ("boolean", "yes", "true"),
    ("boolean", 0, "false"),
    ("text", "a\tb\\n\n\r\\.", "a\tb\\n\n\r\\."),
    ("text", "\\N", "\\N"),
    ("text", "", ""),
    ("text", 5, "5"),
    ("text", {"a": [1]}, '{"a":[1]}'),
    ("varchar(3)", "abc", "abc"),
    ("char(3)", "ab", "ab"),
    ("bytea", b"\x00\xff\\", "\\x00ff5c"),
    ("bytea", "plain", "\\x706c61696e"),
    ("timestamptz", NOON, "2026-01-31 12:00:00.123456+00"),
    ("timestamptz", ext(1, "2026-01-31T13:00:00+01:00"), "2026-01-31 12:00:00+00"),
    ("timestamptz", "2026-01-31 12:00", "2026-01-31 12:00:00+00"),
    ("timestamptz", "infinity", "infinity"),
    ("timestamp", "2026-01-31T12:00:00", "2026-01-31 12:00:00"),
    ("date", ext(2, "2026-01-31"), "2026-01-31"),
    ("time", "12:34:56", "12:34:56"),
    ("interval", "1 day 02:00", "1 day 02:00:00"),
    ("uuid", ext(4, ID.bytes), str(ID)),
    ("uuid", ID.hex, str(ID)),
    ("inet", "10.0.0.1/8", "10.0.0.1/8"),
    ("macaddr", "08:00:2b:01:02:03", "08:00:2b:01:02:03"),
    ("json", {"b": 1, "a": [None, 1.5]}, '{"b":1,"a":[null,1.5]}'),
    ("jsonb", {"a": b"\x01"}, '{"a": "AQ=="}'),
    ("jsonb", "text", '"text"'),
    ("jsonb", [1, {"a": 'q"\\'}], '[1, {"a": "q\\"\\\\"}]'),
    ("jsonb", float("nan"), "null"),
    ("jsonb", NOON, '"2026-01-31T12:00:00.123456+00:00"'),
    ("doc", {"a": 1}, '{"a": 1}'),
    ("int[]", [1, None, 3], "{1,NULL,3}"),
    ("int[]", [[1, 2], [3, 4]], "{{1,2},{3,4}}"),
    ("int[]", [], "{}"),
    ("int[]", "{7,8}", "{7,8}"),
    ("text[]", ["a,b", 'q"\\', "NULL", "", None], '{"a,b","q\\"\\\\","NULL","",NULL}'),
    ("jsonb[]", [{"a": 1}, [2], None], '{"{\\"a\\": 1}",[2],NULL}'),
    ("timestamptz[]", [NOON], '{"2026-01-31 12:00:00.123456+00"}'),
    ("bytea[]", [b"\x01"], '{"\\\\x01"}'),
    ("int4range", "[1,5)", "[1,5)"),
    ("mood", "ok", "ok"),
    ("mood[]", ["ok", "sad"], "{ok,sad}"),
    ("odder", 3, "3"),
    ("pair", "(1,x)", "(1,x)"),
    ("point", "(1,2)", "(1,2)"),
    ("bit(3)", "101", "101"),
    ("money", "1.5", "$1.50"),
    ("int", None, None),
]


@pytest.fixture
def types(at):
    at.sql(TYPES)
    return at


def test_every_type_of_column_takes_what_belongs_into_it(types):
    at = types
    columns = ", ".join(f"c{n} {kind}" for n, (kind, _, _) in enumerate(LANDS))
    sink = at.into(f"CREATE TABLE t ({columns})")
    value = {f"c{n}": value for n, (_, value, _) in enumerate(LANDS)}
    assert at.deliver(sink, value) == Delivered()
    at.sql("SET TimeZone = 'UTC'")
    names = ", ".join(f"c{n}::text" for n in range(len(LANDS)))
    (row,) = at.sql(f"SELECT {names} FROM t")
    found = [(*case[:2], text) for case, text in zip(LANDS, row, strict=True)]
    assert found == LANDS


@pytest.mark.parametrize(
    ("kind", "value", "code", "words"),
    [
        ("int", True, "22P02", 'invalid input syntax for type integer: "t"'),
        ("int", 2**31, "22003", "out of range for type integer"),
        ("smallint", 40_000, "22003", "out of range for type smallint"),
        ("real", 1e300, "22003", "out of range for type real"),
        ("numeric(3,1)", 1000, "22003", "numeric field overflow"),
        ("varchar(3)", "abcd", "22001", "value too long for type character varying(3)"),
        ("boolean", 2, "22P02", 'invalid input syntax for type boolean: "2"'),
        ("date", "2026-02-30", "22008", "date/time field value out of range"),
        ("timestamptz", "soon", "22007", 'invalid input syntax for type timestamp'),
        ("uuid", "x", "22P02", 'invalid input syntax for type uuid: "x"'),
        ("inet", "300.1.1.1", "22P02", "invalid input syntax for type inet"),
        ("mood", "bad", "22P02", 'invalid input value for enum mood: "bad"'),
        ("odd", 2, "23514", 'value for domain odd violates check constraint "odd_check"'),
        ("int[]", [1, [2]], "22P02", "malformed array literal"),
        ("int[]", 5, "22P02", 'malformed array literal: "5"'),
        ("jsonb", {"a": "\0"}, "22P05", "\\u0000 cannot be converted to text"),
        ("text", b"raw", "record.value", "bytes have no form in a column"),
        ("text[]", [b"raw"], "record.value", "bytes have no form in an array"),
        ("text", "\0", "record.value", "a text with NUL in it"),
        ("int NOT NULL", None, "23502", 'null value in column "c"'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_in_the_servers_words(types, kind, value, code, words):
    at = types
    sink = at.into(f"CREATE TABLE t (c {kind})")
    good = {"c": None} if "NOT NULL" not in kind else {"c": 1}
    outcome = at.deliver(sink, good, {"c": value}, good)
    assert named(outcome) == [(2, code)]
    assert words in outcome.records[0].message
    assert "Failing row" not in outcome.message
    assert named(at.probe(sink, good, {"c": value}, good)) == [(2, code)]
    assert at.sql("SELECT count(*) FROM t") == [(0,)]


def test_quick_and_careful_ways_make_the_same_rows(types):
    """A field too many keeps a record from the quick way; the JSON content too."""
    at = types
    kinds = [(kind, value) for kind, value, _ in LANDS]
    columns = ", ".join(f"c{n} {kind}" for n, (kind, _) in enumerate(kinds))
    sink = at.into(f"CREATE TABLE t ({columns})")
    value = {f"c{n}": value for n, (_, value) in enumerate(kinds)}
    missing = {name: each for name, each in value.items() if each is not None}
    strange = {**missing, "more": 1}  # one missing, one more: neither quick way takes it
    assert at.deliver(sink, value, missing, {**value, "more": 1}, strange) == Delivered(
        {"extra-fields": 2}
    )
    assert at.sql("SELECT count(*), count(DISTINCT t::text) FROM t") == [(4, 1)]


@pytest.mark.parametrize(
    ("rule", "value", "stored"),
    [
        ({}, {"a": 1}, (1, None, None)),
        ({"on_missing_field": "default"}, {"a": 1}, (1, "x", 7)),
        ({"on_missing_field": "default"}, {"a": 1, "b": None}, (1, None, 7)),
        ({"on_missing_field": "default"}, {}, (None, "x", 7)),
        ({}, {}, (None, None, None)),
        ({"on_missing_field": "reject"}, {"a": 1, "b": "y"}, [(2, "field.missing")]),
        ({"on_extra_field": "reject"}, {"a": 1, "z": 2}, [(2, "field.extra")]),
        ({"columns": {"a": "a", "b": "*"}}, {"a": 1, "z": [2]}, (1, '{"z":[2]}', 7)),
        ({"columns": {"a": "x", "c": "x"}}, {"x": 5}, (5, "x", 5)),
        ({"columns": {"a": "é .\\"}}, {"é .\\": 5}, (5, "x", 7)),
    ],
)
def test_rules_say_what_becomes_of_fields(at, rule, value, stored):
    sink = at.into("CREATE TABLE t (a int, b text DEFAULT 'x', c int DEFAULT 7)", **rule)
    first = {name: 1 if name != "b" else "1" for name in ("a", "b", "c")}
    if "columns" in rule:
        first = dict.fromkeys(rule["columns"].values(), 1)
    outcome = at.deliver(sink, first, value)
    if isinstance(stored, list):
        assert named(outcome) == stored
    else:
        assert isinstance(outcome, Delivered)
        assert at.sql("SELECT a, b, c FROM t OFFSET 1") == [stored]


def test_defaults_are_taken_record_by_record_and_errors_named_behind_them(at):
    ddl = "CREATE TABLE t (n int CHECK (n <> 13), b text DEFAULT 'x', c int DEFAULT 7)"
    sink = at.into(ddl, on_missing_field="default")
    values = [{"n": n, **({"b": "y"} if n % 3 else {}), **({"c": 1} if n % 2 else {})}
              for n in range(20)]  # fmt: skip
    assert named(at.deliver(sink, *values, lsn=0)) == [(13, "23514")]
    del values[13]
    assert at.deliver(sink, *values) == Delivered()
    wanted = [(v["n"], v.get("b", "x"), v.get("c", 7)) for v in values]
    assert at.sql("SELECT n, b, c FROM t") == wanted


def test_what_the_table_makes_itself_is_left_to_it(at):
    sink = at.into(
        "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, no serial,"
        " by_default int GENERATED BY DEFAULT AS IDENTITY, a int,"
        " twice int GENERATED ALWAYS AS (a * 2) STORED, at timestamptz DEFAULT now())"
    )
    assert at.deliver(sink, {"a": 1, "twice": 9, "id": 9}, {"a": 2}) == Delivered(
        {"extra-fields": 2}
    )
    assert at.sql("SELECT id, no, by_default, a, twice FROM t") == [
        (1, 1, 1, 1, 2),
        (2, 2, 2, 2, 4),
    ]
    named_one = at.sink(mode="columns", table="t", columns={"by_default": "a", "id": "id"})
    assert at.deliver(named_one, {"a": 77, "id": 78}) == Delivered()
    wrong = at.sink(mode="columns", table="t", columns={"twice": "a"})
    told = at.deliver(wrong, {"a": 1})
    assert isinstance(told, Systemic)
    assert "'twice' of table t is generated" in told.message


def test_log_id_and_lsn_are_kept_where_the_table_has_a_place(at):
    sink = at.into("CREATE TABLE t (a int, wald_log_id uuid, wald_lsn bigint)")
    first = attempt(record(5, {"a": 1}), record(9, {"a": 2}))
    assert sink.deliver(first) == Delivered()
    assert sink.holds(KEY.log_id, [5, 6, 9]) == {5: 1, 9: 1}
    at.sql("ALTER TABLE t DROP COLUMN wald_lsn")
    other = at.sink(mode="columns", table="t", columns={"a": "a"})
    assert other.holds(KEY.log_id, [5]) is None


def test_partitions_take_their_rows_and_what_fits_none_is_named(at):
    sink = at.into(
        "CREATE TABLE t (a int, b text) PARTITION BY RANGE (a);"
        "CREATE TABLE t_low PARTITION OF t FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE t_high PARTITION OF t FOR VALUES FROM (10) TO (20)"
    )
    outcome = at.deliver(sink, {"a": 1}, {"a": 11}, {"a": 30}, {"a": 2})
    assert named(outcome) == [(3, "23514")]
    assert 'no partition of relation "t" found' in outcome.message
    assert at.deliver(sink, {"a": 1}, {"a": 11}) == Delivered()
    assert at.sql("SELECT tableoid::regclass::text, a FROM t ORDER BY 2") == [
        ("t_low", 1),
        ("t_high", 11),
    ]


RAISING = """
CREATE FUNCTION raising() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.a = 13 THEN RAISE EXCEPTION 'unlucky: %', NEW.a; END IF;
  NEW.b := 'touched';
  RETURN NEW;
END $$;
"""
DEFERRED = (
    "CREATE CONSTRAINT TRIGGER x AFTER INSERT ON t INITIALLY DEFERRED"
    " FOR EACH ROW EXECUTE FUNCTION raising()"
)


@pytest.mark.parametrize(
    ("trigger", "is_named"),
    [
        ("CREATE TRIGGER x BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION raising()", True),
        ("CREATE TRIGGER x AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION raising()", False),
        (DEFERRED, False),
    ],
    ids=["before each row", "behind the statement", "deferred to the commit"],
)  # fmt: skip
def test_a_trigger_that_raises_refuses_the_record(at, trigger, is_named):
    sink = at.into(f"CREATE TABLE t (a int, b text); {RAISING} {trigger}")
    values = [{"a": n} for n in range(20)]
    outcome = at.deliver(sink, *values, lsn=0)
    assert isinstance(outcome, Rejected)
    assert outcome.code == "P0001"
    assert "unlucky: 13" in outcome.message
    assert named(outcome) == ([(13, "P0001")] if is_named else [])
    good, bad = at.probe(sink, *values[:13]), at.probe(sink, *values[10:15])
    assert good == []
    assert named(bad) == ([(4, "P0001")] if is_named else [])
    assert isinstance(bad, Rejected) is not is_named
    assert at.sql("SELECT count(*) FROM t") == [(0,)]


def test_a_foreign_key_and_a_deferred_unique_key_refuse_without_a_name(at):
    ddl = (
        "CREATE TABLE parent (id int PRIMARY KEY); INSERT INTO parent VALUES (1);"
        "CREATE TABLE t (a int REFERENCES parent, b int UNIQUE DEFERRABLE INITIALLY DEFERRED)"
    )
    sink = at.into(ddl)
    outcome = at.deliver(sink, {"a": 1, "b": 1}, {"a": 2, "b": 2})
    assert (outcome.records, outcome.code) == ((), "23503")
    outcome = at.deliver(sink, {"a": 1, "b": 1}, {"a": 1, "b": 1})
    assert (outcome.records, outcome.code) == ((), "23505")
    told = at.probe(sink, {"a": 1, "b": 1}, {"a": 1, "b": 1})
    assert isinstance(told, Rejected)
    assert at.deliver(sink, {"a": 1, "b": 1}) == Delivered()


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE t ALTER COLUMN a TYPE bigint",
        "ALTER TABLE t RENAME COLUMN b TO c",
        "ALTER TABLE t DROP COLUMN b",
        "DROP TABLE t; CREATE TABLE t (b text, a numeric)",
        "ALTER TABLE t ALTER COLUMN a TYPE text, ADD COLUMN more int DEFAULT 1",
        "ALTER TABLE t ALTER COLUMN b SET DATA TYPE varchar(5)",
    ],
)
def test_a_table_that_changed_is_looked_at_again(at, change):
    sink = at.into("CREATE TABLE t (a int, b text)")
    assert at.deliver(sink, {"a": 1, "b": "x"}) == Delivered()
    at.sql(change)
    assert isinstance(at.deliver(sink, {"a": 2, "b": "x"}), Delivered)
    assert at.sql("SELECT count(*) FROM t WHERE a::text = '2'") == [(1,)]


def test_a_table_that_is_gone_or_too_narrow_is_a_matter_of_configuration(at):
    sink = at.into("CREATE TABLE t (a int, b text)", columns={"a": "a", "b": "b"})
    assert at.deliver(sink, {"a": 1}) == Delivered()
    for change, words in (
        ("ALTER TABLE t DROP COLUMN b", "table t has no column 'b'"),
        ("DROP TABLE t", 'relation "t" does not exist'),
    ):
        at.sql(change)
        told = at.deliver(sink, {"a": 1})
        assert isinstance(told, Systemic)
        assert told.kind is SystemicKind.CONFIGURATION
        assert words in told.message
        assert any(word in told.hint for word in ("add the column", "make the table"))
    at.sql("CREATE TABLE t (a int, b text)")
    assert at.deliver(sink, {"a": 1}) == Delivered()


def test_a_table_without_a_column_to_fill_is_a_matter_of_configuration(at):
    told = at.deliver(at.into("CREATE TABLE t (id serial)"), {"id": 1})
    assert isinstance(told, Systemic)
    assert "no column that a field could fill" in told.message


def test_a_probe_behind_rows_that_nobody_names_tells_what_it_found(at):
    """Before a named record stands one that a foreign key refuses without a name."""
    ddl = (
        "CREATE TABLE parent (id int PRIMARY KEY); INSERT INTO parent VALUES (1);"
        "CREATE TABLE t (a int REFERENCES parent)"
    )
    sink = at.into(ddl)
    assert named(at.probe(sink, {"a": 1}, {"a": 9}, {"a": "x"}, {"a": 1})) == [(3, "22P02")]
    told = at.probe(sink, {"a": 1}, {"a": 9}, {"a": 1})
    assert isinstance(told, Rejected)
    assert (told.records, told.code) == ((), "23503")


def test_json_records_fill_columns_too(at):
    sink = at.into("CREATE TABLE t (a numeric, b jsonb)")
    values = [record(1, b'{"a": 12345678901234567890123, "b": {"x": [1]}}', Content.JSON),
              record(2, b'{"b": null, "a": "3"}', Content.JSON)]  # fmt: skip
    assert sink.deliver(attempt(*values)) == Delivered()
    assert at.sql("SELECT a, b FROM t") == [
        (Decimal(12345678901234567890123), {"x": [1]}),
        (Decimal(3), None),
    ]


def test_a_database_of_another_encoding_refuses_what_it_cannot_hold(postgres, at):
    postgres.sql("DROP DATABASE IF EXISTS latin")
    postgres.sql(
        "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    sink = at.sink(url=postgres.url(database="latin"), mode="columns", table="t")
    postgres.sql("CREATE TABLE t (a text)", database="latin")
    assert named(at.deliver(sink, {"a": "ü"}, {"a": "€"})) == [(2, "22P05")]
    assert at.deliver(sink, {"a": "ü"}) == Delivered()
    assert [found.code for found in sink.check() if found.severity.value != "ok"] == [
        "postgres.encoding"
    ]
    sink.close()
    postgres.sql("DROP DATABASE latin")
