"""PostgreSQL: SQLSTATEs, locks and bounds, logins, poolers, TLS, failover, rights."""

import contextlib
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import commands
from tests.backlog import eventually
from wald.model import Delivered, Secret, Severity, Systemic, SystemicKind, Unknown

psycopg = pytest.importorskip("psycopg")
from tests.contract.postgres_bench import PostgresDocuments  # noqa: E402
from tests.servers.need import absent  # noqa: E402
from tests.servers.pgbouncer import pooling  # noqa: E402
from tests.servers.postgres import Postgres, hand_over, installs  # noqa: E402
from tests.servers.postgres_place import KEY, A, B, attempt, record  # noqa: E402
from wald.sinks.postgres import checking, errors, make  # noqa: E402
from wald.sinks.postgres.logins import Refusals  # noqa: E402
from wald.sinks.postgres.options import read_options  # noqa: E402
from wald.sinks.postgres.session import Session  # noqa: E402
from wald.testing.sink_contract.host import Host, numbers  # noqa: E402

K = SystemicKind
RECORD, UNKNOWN = "record", "unknown"


def session_of(route, stream, settings):
    return Session(read_options(route, stream, settings), 10.0, Refusals())


# --- SQLSTATEs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "meant"),
    [
        *[(code, K.UNREACHABLE) for code in ("08000", "08006", "57P01", "57P03", "25006", "53300")],
        *[(code, K.BUSY) for code in ("40001", "40P01", "55P03", "57014", "53200", "25P03")],
        *[(code, RECORD) for code in ("22P02", "23502", "23P01", "P0001", "54000", "44000")],
        *[(code, K.CONFIGURATION) for code in ("42P01", "42501", "3D000", "3F000", "0A000")],
        *[(code, K.FULL) for code in ("53100", "53400")],
        *[(code, K.AUTHENTICATION) for code in ("28P01", "28000")],
        *[(code, K.DAMAGED) for code in ("XX001", "XX002")],
    ],
)
def test_a_sqlstate_says_whose_fault_it_is(code, meant):
    error = psycopg.errors.lookup(code)("told")
    if meant is RECORD:
        assert errors.of_a_record(error)
    else:
        assert not errors.of_a_record(error)
        assert errors.systemic(error, "db").kind is meant


@pytest.mark.parametrize(
    ("context", "line"),
    [
        ("COPY t, line 12", 12),
        ('PL/pgSQL function f() line 3 at RAISE\nCOPY t, line 5, column a: "COPY t, line 9"', 5),
        ("COPY t, Zeile 7", 7),
        ("COPY t, 行 7", 7),
        ("COPY other, line 7", None),
        ("SQL statement", None),
        (None, None),
    ],
)
def test_an_error_names_its_line_in_any_language(context, line):
    told: Any = SimpleNamespace(diag=SimpleNamespace(context=context))
    assert errors.line_of(told, "t") == line


@contextlib.contextmanager
def closing_transaction(at):
    """A transaction of the application, which is rolled back."""
    with contextlib.closing(at.server.connect(at.name)) as other:
        other.execute("BEGIN")
        yield other


# --- locks and bounds ---------------------------------------------------------------------------


def test_a_lock_of_the_application_delays_a_batch_and_no_more(at):
    sink = at.into("CREATE TABLE t (a int)", lock_timeout="50ms")
    with closing_transaction(at) as other:
        other.execute("LOCK TABLE t IN SHARE MODE")
        told = at.deliver(sink, {"a": 1})
        assert (told.kind, "lock timeout" in told.message) == (K.BUSY, True)
        assert at.sql("SELECT count(*) FROM t") == [(0,)], "a reader is not blocked"
    assert at.deliver(sink, {"a": 1}) == Delivered()


def test_a_batch_under_way_blocks_no_reader_and_is_not_seen(at):
    at.sql("CREATE TABLE t (a int)")
    session = session_of("r", "t", {"url": at.url(), "mode": "columns"})
    with contextlib.closing(session), session.within(30.0):
        session.begin("INSERT INTO t VALUES (1)")
        assert at.sql("SELECT count(*) FROM t") == [(0,)]
        at.sql("INSERT INTO t VALUES (2)")


def test_a_deadlock_is_busy(at):
    sink = at.into(
        "CREATE TABLE t (id int PRIMARY KEY, wald_log_id uuid, wald_lsn bigint);"
        " INSERT INTO t VALUES (1), (2)",
        mode="upsert",
        conflict=["id"],
        lock_timeout="30s",
    )
    outcomes = []
    with closing_transaction(at) as other:
        other.execute("SET LOCAL deadlock_timeout = '60s'")  # the other one finds it
        other.execute("UPDATE t SET wald_lsn = 1 WHERE id = 2")
        delivering = threading.Thread(
            target=lambda: outcomes.append(at.deliver(sink, {"id": 2}, {"id": 1}))
        )
        delivering.start()
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        eventually(lambda: at.sql(waits) == [(1,)])
        other.execute("UPDATE t SET wald_lsn = 1 WHERE id = 1")
        delivering.join()
    assert outcomes[0].kind is K.BUSY
    assert "deadlock" in outcomes[0].message


def test_our_transactions_are_bounded_whatever_the_server_says(postgres, at):
    at.sql('ALTER DATABASE app SET default_transaction_isolation = "serializable"')
    at.sql("ALTER DATABASE app SET synchronous_commit = off")
    at.sql("ALTER DATABASE app SET TimeZone = 'Asia/Kolkata'")
    bounds = {"lock_timeout": "1s", "statement_timeout": "2s", "transaction_timeout": "3s"}
    session = session_of("r", "t", {"url": at.url(), **bounds})
    names = ["transaction_isolation", "synchronous_commit", "TimeZone", *bounds]
    names.append("idle_in_transaction_session_timeout")
    if postgres.install.version < 17:
        names.remove("transaction_timeout")
    with contextlib.closing(session):
        for timeout_s, wanted in ((30.0, ["1s", "2s", "3s", "3s"]), (0.5, None)):
            with session.within(timeout_s):
                session.begin()
                found = [session.rows(f"SHOW {name}")[0][0] for name in names]
                session.rollback()
            assert found[:3] == ["read committed", "on", "UTC"]
            if wanted:
                assert found[3:] == wanted[: len(found) - 3]
            else:
                assert all(0 < int(str(text).removesuffix("ms")) <= 500 for text in found[3:])
        assert session.rows("SHOW lock_timeout") == [("0",)], "it ends with the transaction"


def test_a_transaction_that_is_forgotten_is_ended_by_the_server(at):
    at.sql("CREATE TABLE t (a int)")
    options = {"url": at.url(), "mode": "columns", "transaction_timeout": "100ms"}
    session = session_of("r", "t", options)
    with contextlib.closing(session):
        session.begin("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        assert at.sql("SELECT count(*) FROM t") == [(0,)]  # waits until it is over
        with pytest.raises(psycopg.Error) as raised:
            session.rows("SELECT 1")
        assert errors.is_broken(raised.value)


def test_a_statement_that_takes_too_long_is_busy(at):
    sink = at.into(
        "CREATE FUNCTION slow() RETURNS int LANGUAGE sql AS 'SELECT 1 FROM pg_sleep(60)';"
        "CREATE TABLE t (a int, b int DEFAULT slow())",
        columns={"a": "a"},
        statement_timeout="50ms",
    )
    told = at.deliver(sink, {"a": 1})
    assert told.kind is K.BUSY
    assert "statement timeout" in told.message


RAISES = """
CREATE FUNCTION raising() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'told' USING ERRCODE = '{code}'; END $$;
CREATE CONSTRAINT TRIGGER x AFTER INSERT ON t INITIALLY {when}
  FOR EACH ROW EXECUTE FUNCTION raising()
"""


@pytest.mark.parametrize(
    ("code", "when", "wanted"),
    [
        ("40001", "DEFERRED", K.BUSY),
        ("53100", "DEFERRED", K.FULL),
        ("42P01", "DEFERRED", K.CONFIGURATION),
        ("08007", "DEFERRED", None),
        ("57P03", "DEFERRED", None),
        ("08007", "IMMEDIATE", None),
        ("42703", "IMMEDIATE", K.CONFIGURATION),
    ],
)
def test_what_a_commit_is_answered_decides_what_is_known(at, code, when, wanted):
    sink = at.into(f"CREATE TABLE t (a int); {RAISES.format(code=code, when=when)}")
    told = at.deliver(sink, {"a": 1})
    if wanted is None:
        assert isinstance(told, Unknown)
    else:
        assert isinstance(told, Systemic)
        assert told.kind is wanted
    assert "told" in told.message
    assert at.sql("SELECT count(*) FROM t") == [(0,)]


def test_a_progress_table_that_is_another_one_is_a_matter_of_configuration(at):
    at.sql("CREATE SCHEMA wald; CREATE TABLE wald.wald_progress (LIKE pg_class)")
    sink = at.into("CREATE TABLE t (a int)")
    for told in (sink.read_row(KEY), at.deliver(sink, {"a": 1})):
        assert isinstance(told, Systemic)
        assert told.kind is K.CONFIGURATION


# --- connections --------------------------------------------------------------------------------


def test_a_connection_that_was_lost_meanwhile_is_made_anew(at):
    sink = at.into("CREATE TABLE t (a int)")
    assert at.deliver(sink, {"a": 1}) == Delivered()
    at.sql("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
           " WHERE application_name = 'wald'")  # fmt: skip
    assert at.deliver(sink, {"a": 2}) == Delivered()
    assert at.sql("SELECT a FROM t ORDER BY a") == [(1,), (2,)]


def test_a_server_that_only_reads_is_out_of_reach(at):
    at.sql("ALTER DATABASE app SET default_transaction_read_only = on")
    sink = at.into("SET default_transaction_read_only = off; CREATE TABLE t (a int)")
    told = at.deliver(sink, {"a": 1})
    assert (told.kind, "read-only" in told.message) == (K.UNREACHABLE, True)


@pytest.fixture
def near(postgres):
    """An empty place beside the server."""
    place = Path(tempfile.mkdtemp(prefix="wpg"))
    yield place
    shutil.rmtree(place, ignore_errors=True)


def test_a_promoted_standby_takes_over(postgres, at, near):
    """Both hosts stand in the URL; the one that takes writes is found."""
    sink = at.into("CREATE TABLE t (a int)")
    first = attempt(record(1, {"a": 1}))
    second = attempt(record(2, {"a": 2}), number=2, rev_id=B, prev=A)
    assert sink.deliver(first) == Delivered()
    standby = postgres.copy_to(near)
    standby.start()
    hosts = f"127.0.0.1:{standby.port},127.0.0.1:{postgres.port}"
    sink = at.sink(url=f"postgresql://postgres@{hosts}/app", mode="columns", table="t")
    assert sink.read_row(KEY) == first.row
    postgres.kill()
    try:
        told = sink.read_row(KEY)
        assert isinstance(told, Systemic)
        assert told.kind is K.UNREACHABLE
        standby.sql("SELECT pg_promote()")
        assert sink.read_row(KEY) == first.row
        assert sink.deliver(second) == Delivered()
        assert standby.sql("SELECT a FROM t", database="app") == [(1,), (2,)]
    finally:
        standby.kill()
        postgres.start()


def test_a_pooler_in_transaction_mode_will_do(postgres, at):
    """One connection to the server for all lanes; whatever a session kept would be another's."""
    with pooling(postgres) as port:
        url = f"postgresql://postgres@127.0.0.1:{port}/app"
        at.sql("CREATE TABLE t (id int PRIMARY KEY, wald_log_id uuid, wald_lsn bigint)")
        sinks = [
            at.sink(url=url),
            at.sink(url=url, mode="upsert", table="t", conflict=["id"]),
            at.sink(url=url, mode="columns", table="t"),
        ]
        for turn in range(1, 4):
            for n, sink in enumerate(sinks):
                value = {"id": 10 * n + turn}
                assert at.deliver(sink, value, lsn=turn) == Delivered()
        assert at.sql("SELECT count(*) FROM t") == [(6,)]
        assert at.sql("SELECT count(*) FROM events") == [(3,)]
        assert sinks[0].read_row(KEY) is None
        assert {found.severity for found in sinks[1].check()} == {Severity.OK}


def test_a_temporary_table_of_somebody_else_takes_nothing(postgres, at):
    """It lies in the pooled connection, before every schema of the search path."""
    at.sql("CREATE TABLE t (a int)")
    with pooling(postgres) as port:
        url = f"postgresql://postgres@127.0.0.1:{port}/app"
        sink = at.sink(url=url, mode="columns", table="t")
        assert at.deliver(sink, {"a": 1}) == Delivered()
        with psycopg.connect(url, autocommit=True, prepare_threshold=None) as other:
            other.execute("CREATE TEMPORARY TABLE t (a int)")
        assert at.deliver(sink, {"a": 2}) == Delivered()
        assert at.sql("SELECT a FROM t ORDER BY a") == [(1,), (2,)]
        told = at.deliver(at.sink(url=url, mode="columns", table="t"), {"a": 3})
        assert isinstance(told, Systemic)
        assert (told.kind, "temporary" in told.message) == (K.CONFIGURATION, True)
        assert (
            at.deliver(at.sink(url=url, mode="columns", table="public.t"), {"a": 3}) == Delivered()
        )


# --- rights, TLS, passwords ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["document", "columns", "upsert"])
def test_the_printed_grants_are_enough(postgres, at, tmp_path, mode):
    """The role owns nothing and may create nothing."""
    postgres.role("meek", "meek-5a1b")
    at.sql("REVOKE ALL ON SCHEMA public FROM PUBLIC; REVOKE ALL ON DATABASE app FROM PUBLIC")
    at.sql("GRANT CONNECT ON DATABASE app TO meek; CREATE SCHEMA shop")
    table = "shop.documents" if mode == "document" else "shop.t"
    at.sql("CREATE TABLE shop.t (id int PRIMARY KEY, wald_log_id uuid, wald_lsn bigint)")
    more = 'conflict = ["id"]' if mode == "upsert" else ""
    (tmp_path / "password").write_text("meek-5a1b\n")
    file = tmp_path / "wald.toml"
    file.write_text(f"""
[sinks.pg]
type = "postgres"
url = "{at.url("meek")}"
password = {{ file = "{tmp_path}/password" }}
[routes.events]
stream = "events"
sink = "pg"
mode = "{mode}"
table = "{table}"
{more}
""")
    before = commands.call("check", "--config", str(file))
    assert before.returncode == 1
    printed = commands.call("check", "--print-grants", "--config", str(file))
    assert printed.returncode == 0
    assert "GRANT" in printed.stdout
    at.sql(printed.stdout)
    after = commands.call("check", "--config", str(file))
    assert after.returncode == 0, after.stdout
    assert "progress table writable" in after.stdout
    upsert = {"conflict": ["id"]} if mode == "upsert" else {}
    secret = Secret("meek-5a1b")
    sink = at.sink(url=at.url("meek"), password=secret, mode=mode, table=table, **upsert)
    assert at.deliver(sink, {"id": 1}, {"id": 2}) == Delivered()
    assert isinstance(at.probe(sink, {"id": 3}), list)
    if mode == "document":
        assert sink.holds(KEY._replace(lane=1).log_id, [1]) == {1: 1}
    for said in (before, printed, after):
        assert "meek-5a1b" not in said.stdout + said.stderr


def test_check_says_which_rights_a_role_lacks(postgres, at):
    postgres.role("poor", "poor-5a1b")
    at.sql("CREATE TABLE t (id int PRIMARY KEY, wald_log_id uuid, wald_lsn bigint)")
    at.deliver(at.sink(mode="columns", table="t"), {"id": 1})
    at.sql("REVOKE ALL ON DATABASE app FROM PUBLIC; GRANT CONNECT ON DATABASE app TO PUBLIC")
    at.sql("GRANT USAGE ON SCHEMA wald TO poor")
    poor = {"url": at.url("poor"), "password": Secret("poor-5a1b")}
    upsert = {"mode": "upsert", "table": "t", "conflict": ["id"]}
    told = [found.message for found in at.sink(**poor, **upsert).check()[1:]]
    assert "may not read and write it" in told[0]
    assert told[1] == 'this role lacks SELECT or INSERT or UPDATE on "t"'
    assert "temporary tables" in told[2]
    hints = {found.hint for found in at.sink(**poor, **upsert).check()[1:]}
    assert hints == {"wald check --print-grants says what the owner of the database must run"}
    (found,) = at.sink(**poor, mode="columns", table="nowhere").check()[2:]
    assert (found.severity, "does not exist" in found.message) == (Severity.ERROR, True)


def test_check_says_what_it_verified(at):
    sink = at.into("CREATE TABLE t (a int, b text)")
    assert [found.message for found in sink.check()][1:] == [
        "progress table will be made",
        "table found, 2 columns",
    ]
    at.deliver(sink, {"a": 1})
    server, progress, table = sink.check()
    assert server.message.startswith("PostgreSQL 1")
    assert (progress.message, table.message) == (
        "progress table writable",
        "table found, 2 columns",
    )
    documents = at.sink("more").check()
    assert documents[-1].message == 'table "more" will be made'


TLS = Path(__file__).parents[1] / "servers" / "tls"


@pytest.fixture
def with_tls(near):
    """A server that takes nothing but TLS on its port, as "localhost"."""
    able = [install for install in installs() if install.has_tls]
    if not able:
        absent("a PostgreSQL with TLS", "apt install postgresql")
    server = Postgres(near, able[-1])
    server.make()
    shutil.copy(TLS / "server.pem", server.data)
    (server.data / "server.pem").chmod(0o600)
    hand_over(server.data / "server.pem")
    server.configure("ssl = on", "ssl_cert_file = 'server.pem'", "ssl_key_file = 'server.pem'")
    server.admit("local all postgres trust", "hostssl all all 127.0.0.1/32 trust")
    server.start()
    yield server
    server.kill()


def test_a_server_is_verified_by_its_certificate(with_tls, tmp_path):
    address = f"localhost:{with_tls.port}"
    verified = f"postgresql://postgres@{address}/postgres?sslmode=verify-full&sslrootcert="
    sink = make("r", "events", {"url": f"{verified}{TLS}/ca.pem"})
    with contextlib.closing(sink):
        assert sink.deliver(attempt(record(1, 1))) == Delivered()
        assert [found.severity for found in sink.check()] == [Severity.OK] * 3
    with_tls.sql("CREATE TABLE t (id int PRIMARY KEY, wald_log_id uuid, wald_lsn bigint)")
    modes: list[dict[str, Any]] = [{"mode": "columns"}, {"mode": "upsert", "conflict": ["id"]}]
    for lane, rest in enumerate(modes, 1):
        older = make("r", "events", {"url": f"{verified}{TLS}/ca.pem", "table": "t", **rest})
        with contextlib.closing(older):  # it is the oldest server here, too
            made = attempt(record(1, {"id": lane}), key=KEY._replace(lane=lane))
            assert older.deliver(made) == Delivered()
    strange = verified.replace("localhost", "127.0.0.1")
    for url, words in (
        (f"{verified}{TLS}/client.pem", "certificate verify failed"),
        (f"{strange}{TLS}/ca.pem", "does not match host name"),
        (f"{verified}{tmp_path}/nothing.pem", "root certificate file"),
        (f"postgresql://postgres@{address}/postgres?sslmode=disable", "no pg_hba.conf entry"),
    ):
        sink = make("r", "events", {"url": url})
        with contextlib.closing(sink):
            told = sink.read_row(KEY)
        assert isinstance(told, Systemic)
        assert (told.kind, words in told.message) == (K.AUTHENTICATION, True), told


@pytest.mark.parametrize(
    ("url", "verified"),
    [
        ("postgresql://u@db/app", False),
        ("postgresql://u@db/app?sslmode=require", False),
        ("postgresql://u@db/app?sslmode=verify-full", True),
        ("postgresql://u@localhost/app", True),
        ("postgresql://u@127.0.0.1:5433,db:1/app", False),
        ("postgresql://u@127.0.0.1:5433,[::1]:1/app", True),
        ("postgresql://u@/app?host=/run/postgresql", True),
        ("postgresql://u@/app?host=db", False),
    ],
)
def test_check_warns_of_a_server_that_nobody_verifies(url, verified):
    assert checking.is_verified(url) is verified


def test_a_restore_while_an_attempt_is_on_its_way(postgres, database, tmp_path):
    """The attempt lands behind the restore: on the chain that the row then names, or not at all."""
    bench = PostgresDocuments(postgres, database)
    host = Host(tmp_path / "host", bench)
    host.append(10)
    host.through()
    backup = bench.backup()
    host.append(10)
    host.through()
    host.late_attempts = 1
    host.append(10)
    host.run(lambda: bool(host.late))
    bench.restore(backup)
    host.land()
    host.append(5)
    host.through()
    host.run(lambda: len(bench.held()) == len(host.sent))
    assert numbers(bench.held()) == numbers(host.sent)
    host.close()


def test_a_file_level_backup_that_was_put_back(postgres, database, tmp_path):
    """The whole cluster goes back in time; the lane finds out by its row."""
    bench = PostgresDocuments(postgres, database)
    host = Host(tmp_path / "host", bench)
    host.append(10)
    host.through()
    postgres.stop()
    backup = postgres.data.with_name("backup")
    subprocess.run(["cp", "-a", postgres.data, backup], check=True)
    postgres.start()
    host.append(10)
    host.through()
    postgres.kill()
    shutil.rmtree(postgres.data)
    backup.rename(postgres.data)
    postgres.start()
    assert len(bench.held()) == 10
    host.append(5)
    host.through()
    host.run(lambda: len(bench.held()) == len(host.sent))
    assert numbers(bench.held()) == numbers(host.sent)
    assert not host.dead
    host.close()
