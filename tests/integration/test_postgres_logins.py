"""PostgreSQL: who is let in; why not, in any language; and in which time that is known."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import pytest

from wald.model import Secret, Severity, Systemic, SystemicKind

psycopg = pytest.importorskip("psycopg")
from tests.servers.postgres_place import KEY, attempt, record  # noqa: E402
from wald.sinks.postgres import logins, make  # noqa: E402
from wald.sinks.postgres.options import read_options  # noqa: E402
from wald.testing.proxy import CuttingProxy  # noqa: E402

K = SystemicKind
_SSL_REQUEST = 80_877_103


@contextmanager
def answering(*fields: str | None) -> Iterator[tuple[int, list[bytes]]]:
    """A server that meets each login with an error of these fields, or with nothing at all."""
    packed = b"".join(field.encode() + b"\0" for field in fields if field)
    error = b"E" + struct.pack("!i", len(packed) + 5) + packed + b"\0"
    asked: list[bytes] = []
    ends = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection:
                        asked.append(_startup(connection))
                        if packed:
                            connection.sendall(error)
                        else:
                            ends.wait(60)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1], asked
        finally:
            ends.set()
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def _startup(connection: socket.socket) -> bytes:
    while True:
        size, code = struct.unpack("!ii", connection.recv(8, socket.MSG_WAITALL))
        if code != _SSL_REQUEST:
            return connection.recv(size - 8, socket.MSG_WAITALL)
        connection.sendall(b"N")


@pytest.mark.parametrize(
    ("code", "meant"),
    [
        ("28P01", K.AUTHENTICATION),
        ("28000", K.AUTHENTICATION),
        ("3D000", K.CONFIGURATION),
        ("42501", K.CONFIGURATION),
        ("53300", K.UNREACHABLE),
        ("57P03", K.UNREACHABLE),
    ],
)
def test_a_refused_login_is_told_by_its_code_in_any_language(code, meant):
    with answering("S致命的エラー", "VFATAL", f"C{code}", 'Mユーザー "C "28P01""') as (port, asked):
        sink = make("r", "events", {"url": f"postgresql://wald@127.0.0.1:{port}/app"})
        with closing(sink):
            for seen in (2, 3, 4):  # a text that is new is looked at a second time
                told = sink.read_row(KEY)
                assert isinstance(told, Systemic)
                assert (told.kind, "ユーザー" in told.message) == (meant, True)
                assert len(asked) == seen


def test_where_libpq_shows_no_code_its_english_words_tell(monkeypatch):
    """Before libpq 17, where the trace begins behind the login."""
    monkeypatch.setattr(logins, "_TRACES_CONNECTING", 10**9)
    for words, meant in [
        ('password authentication failed for user "wald"', K.AUTHENTICATION),
        ('no pg_hba.conf entry for host "db", user "wald"', K.AUTHENTICATION),
        ('database "app" does not exist', K.CONFIGURATION),
        ("the database system is starting up", K.UNREACHABLE),
    ]:
        with answering("SFATAL", "VFATAL", "C99999", f"M{words}") as (port, asked):
            sink = make("r", "events", {"url": f"postgresql://wald@127.0.0.1:{port}/app"})
            with closing(sink):
                told = sink.read_row(KEY)
            assert isinstance(told, Systemic)
            assert (told.kind, len(asked)) == (meant, 1)


def test_a_login_that_hangs_ends_in_the_time_of_its_attempt():
    """Not in ``connect_timeout``; the driver's least is two seconds."""
    with answering() as (port, _):
        url = f"postgresql://wald@127.0.0.1:{port}/app"
        sink = make("r", "events", {"url": url, "connect_timeout": "60s"})
        began_s = time.monotonic()
        with closing(sink):
            told = sink.deliver(attempt(record(1, 1), timeout_s=0.5))
        assert isinstance(told, Systemic)
        assert (told.kind, "timeout" in told.message) == (K.UNREACHABLE, True)
        assert 1.0 < time.monotonic() - began_s < 20.0


def test_a_question_that_hangs_ends_in_its_time(postgres, at):
    with CuttingProxy(("127.0.0.1", postgres.port)) as proxy:
        port = proxy.address[1]
        url = f"postgresql://postgres@127.0.0.1:{port}/app"
        sink = at.sink(url=url, transaction_timeout="300ms", connect_timeout="60s")
        assert sink.read_row(KEY) is None
        began_s = time.monotonic()
        with proxy.holding():
            told = sink.read_row(KEY)
        assert isinstance(told, Systemic)
        assert (told.kind, "no answer within" in told.message) == (K.UNREACHABLE, True)
        assert time.monotonic() - began_s < 20.0


@pytest.mark.parametrize(
    ("hosts", "timeout_s", "each_s"),
    [
        ("db", 30.0, 10),
        ("db", 5.5, 5),
        ("db,other", 8.0, 4),
        ("a,b,c", 60.0, 10),
        ("a,b,c", 1.0, 2),
    ],
)
def test_each_host_gets_its_share_of_the_time(hosts, timeout_s, each_s):
    options = read_options("r", "events", {"url": f"postgresql://wald@{hosts}/app"})
    said = psycopg.conninfo.conninfo_to_dict(logins.conninfo_of(options, timeout_s))
    assert said["connect_timeout"] == str(each_s)
    assert said["host"] == hosts


def test_logins_that_fail_are_told_apart(postgres, at):
    postgres.role("limited", "right")
    postgres.role("outside", "right")
    at.sql("ALTER ROLE limited CONNECTION LIMIT 0")
    postgres.fresh_database("closed")
    postgres.sql("REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
    tcp = f"127.0.0.1:{postgres.port}"
    for url, password, kind, words in [
        (
            f"postgresql://limited@{tcp}/app",
            "wrong-1c3f",
            K.AUTHENTICATION,
            "authentication failed",
        ),
        (f"postgresql://nobody@{tcp}/app", "wrong-1c3f", K.AUTHENTICATION, "authentication failed"),
        (f"postgresql://limited@{tcp}/app", "right", K.UNREACHABLE, "too many connections"),
        (f"postgresql://postgres@{tcp}/nowhere", None, K.CONFIGURATION, "does not exist"),
        ("postgresql://postgres@127.0.0.1:1/app", None, K.UNREACHABLE, "refused"),
        ("postgresql://postgres@nohost.invalid/app", None, K.UNREACHABLE, "resolve"),
        (f"postgresql://outside@{tcp}/closed", "right", K.CONFIGURATION, "permission denied"),
        (f"postgresql://postgres@{tcp}/app?sslmode=nonsense", None, K.CONFIGURATION, "sslmode"),
        (f"postgresql://postgres@{tcp}/app?nonsense=1", None, K.CONFIGURATION, "nonsense"),
    ]:
        secret = {"password": Secret(password)} if password else {}
        sink = at.sink(url=url, **secret)
        for told in (sink.read_row(KEY), sink.deliver(attempt(record(1, 1)))):
            assert isinstance(told, Systemic), url
            assert (told.kind, words in told.message) == (kind, True), (url, told)
            assert "wrong-1c3f" not in repr(told)
        (found,) = sink.check()
        assert (found.severity, found.code) == (Severity.ERROR, f"postgres.{kind.value}")
