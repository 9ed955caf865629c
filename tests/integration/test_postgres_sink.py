"""The PostgreSQL sink at a real server: the row, documents, settings, what check and holds say."""

import json
import subprocess
import sys
import threading
from uuid import UUID

import msgpack
import pytest

from tests import commands
from wald.errors import ConfigError, UnknownSetting, WrongSetting
from wald.model import Content, Delivered, LaneKey, ReplayClass, RowMoved, Secret

pytest.importorskip("psycopg")
from tests.servers.postgres_place import KEY, LOG_ID, A, B, C, attempt, record
from wald.sinks.postgres import make
from wald.sinks.postgres.options import read_options

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


def test_lanes_that_begin_together_make_the_tables_together(at):
    """Of two CREATE IF NOT EXISTS at the same time one fails, if nobody lets them take turns."""
    sinks = [at.sink() for _ in range(8)]
    barrier, outcomes = threading.Barrier(len(sinks)), []

    def begin(lane, sink):
        barrier.wait(60)
        made = attempt(record(1 + lane, lane), key=KEY._replace(lane=lane))
        outcomes.append((sink.read_row(made.key), sink.deliver(made)))

    threads = [threading.Thread(target=begin, args=each) for each in enumerate(sinks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [(None, Delivered())] * len(sinks)


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


# --- settings -----------------------------------------------------------------------------------

URL = "postgresql://wald@db/app"


@pytest.mark.parametrize(
    ("settings", "error", "words", "hint"),
    [
        ({}, ConfigError, "needs a 'url'", "postgresql://"),
        ({"url": "sqlite:x"}, WrongSetting, "does not begin with postgresql://", ""),
        ({"url": "postgres:x"}, WrongSetting, "does not begin with postgresql://", ""),
        ({"url": "postgresql://[db/app"}, WrongSetting, "is not a URL", ""),
        ({"url": "postgresql://u:hush@db/app"}, WrongSetting, "password does not", "password ="),
        ({"url": f"{URL}?password=hush"}, WrongSetting, "password does not", "password ="),
        ({"url": URL, "password": "hush"}, WrongSetting, "a secret does not belong", "file"),
        ({"url": URL, "urll": 1}, UnknownSetting, "unknown setting 'urll'", "did you mean 'url'"),
        ({"url": URL, "mode": "upsrt"}, WrongSetting, "mode is 'upsrt'", "'upsert'"),
        ({"url": URL, "mode": "upsert"}, WrongSetting, "'conflict' names", 'conflict = ["'),
        ({"url": URL, "conflict": ["a"]}, WrongSetting, "'conflict' names", 'conflict = ["'),
        ({"url": URL, "columns": {"a": "a"}}, WrongSetting, "the mode is 'document'", "mode ="),
        (
            {"url": URL, "mode": "upsert", "conflict": ["a"], "columns": {"b": "b"}},
            WrongSetting,
            "a column that no field fills",
            "columns",
        ),
        ({"url": URL, "table": "a.b.c"}, WrongSetting, "table is 'a.b.c'", ""),
        ({"url": URL, "table": "x.wald_progress"}, WrongSetting, "not reserved", ""),
        ({"url": URL, "table": "wald_batch"}, WrongSetting, "not reserved", ""),
        ({"url": URL, "lock_timeout": "2h"}, WrongSetting, "lock_timeout", ""),
    ],
)
def test_wrong_settings_say_what_to_do_and_no_secret(settings, error, words, hint):
    with pytest.raises(error) as raised:
        read_options("route", "events", settings)
    assert words in raised.value.message
    assert hint in raised.value.hint
    assert "hush" not in f"{raised.value.message} {raised.value.hint}"


def test_names_become_identifiers():
    options = read_options("route", "my.stream", {"url": URL})
    assert options.table.quoted == '"my_stream"'
    options = read_options("route", "events", {"url": URL, "table": 'app.we"ird'})
    assert options.table.quoted == '"app"."we""ird"'
    assert options.progress.quoted == '"wald"."wald_progress"'
    password = read_options("route", "events", {"url": URL, "password": Secret("hush")})
    assert "hush" not in repr(password)


def test_settings_are_checked_without_the_driver_but_not_without_having_it(monkeypatch):
    code = (
        "import sys; from wald.sinks.postgres import make;"
        "make('r', 'e', {'url': 'postgresql://u@h/d'}).close();"
        "sys.exit('psycopg' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="needs psycopg") as raised:
        make("r", "e", {"url": URL})
    assert raised.value.hint == "pip install 'wald[postgres]'"


HOSTILE = ["select", 'a"b', "x, line 7", "'; DROP TABLE t; --", "ümläut €", "per%cent %s"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_names(at, name):
    quoted = '"' + name.replace('"', '""') + '"'
    at.connection.execute(f"CREATE TABLE {quoted} ({quoted} int CHECK ({quoted} > 0))".encode())
    sink = at.sink(mode="columns", table=name, columns={name: name}, progress_schema=name)
    outcome = at.deliver(sink, {name: 1}, {name: 2}, {name: -1})
    assert [each.lsn for each in outcome.records] == [3]
    assert at.deliver(sink, {name: 1}, {name: 2}) == Delivered()


def test_a_url_is_all_that_run_needs(at, tmp_path):
    code = "import wald; print(wald.connect().append('signups', {'user': 'ann'}, key='ann').lsn)"
    said = commands.run(
        "run", "--to", at.url(), "--data-dir", str(tmp_path / "d"), "--", sys.executable, "-c", code
    )
    assert said.returncode == 0, said.stderr
    assert "1 accepted = 1 delivered" in said.stderr
    assert at.sql("SELECT key, value FROM signups") == [("ann", {"user": "ann"})]
