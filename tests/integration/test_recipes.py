"""The recipes of docs/how-to as they stand there, on real servers, also where it goes wrong."""

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import wald
from tests.daemon import Daemon, wait_until
from tests.doorkeeper import short_directory
from tests.recipes import CONFIG, Server, running, serving, stopped, write_files
from tests.servers.redis import RedisServer
from wald import limits

pytest.importorskip("fastapi", reason="the extra 'recipes' is not installed")


@pytest.fixture
def place() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


@pytest.fixture
def daemon(place: Path) -> Iterator[Daemon]:
    with Daemon(place, config=CONFIG.format(place=place)) as running_daemon:
        yield running_daemon


def delivered(daemon: Daemon, place: Path, stream: str) -> list[str | None]:
    """The keys that arrived at the target, in order."""
    daemon.command("wait", "--all")
    with closing(sqlite3.connect(place / "target.db")) as target:
        return [key for (key,) in target.execute(f"SELECT key FROM {stream} ORDER BY lsn")]


def booking(number: int, seat: str = "12A") -> dict[str, str]:
    return {"booking_id": f"b-{number}", "seat": seat}


def meets_errors(server: Server, daemon: Daemon) -> list[str]:
    """Each row that a real daemon can be brought to: refused, no room, no answer.

    Returns the keys that were acknowledged on the way. (Near its quota a stream asks for pauses;
    what is sent at the end of its second may be answered too late: 202, stored or not, as what
    ingest does not answer at all.)
    """
    refused = server.post("/bookings", booking(900, "x" * (limits.RECORD_MAX_BYTES + 1)))
    assert (refused.status, refused.body["code"]) == (422, "record-refused")
    daemon.command("wait", "--all")
    daemon.command("route", "pause", "bookings")
    keys: list[str] = []
    number, answered = 100, server.post("/bookings", booking(100))
    while answered.status in {201, 202} and number < 160:
        keys += [f"b-{number}"] if answered.status == 201 else []
        number += 1
        answered = server.post("/bookings", booking(number))
    assert (answered.status, answered.body["code"]) == (429, "backpressure")
    assert int(answered.headers["Retry-After"]) >= 1
    daemon.command("route", "resume", "bookings")
    daemon.command("wait", "--all")
    with stopped(daemon.pids()["ingest"]):
        unknown = server.post("/bookings", booking(95))
        assert (unknown.status, unknown.body["code"]) == (202, "outcome-unknown")
    return keys


def acknowledged(daemon: Daemon, place: Path, met: list[str]) -> list[str]:
    """The keys of bookings that arrived, less those whose outcome nobody was told; each once."""
    keys = [key or "" for key in delivered(daemon, place, "bookings")]
    assert len(keys) == len(set(keys))
    return [
        key for key in keys if key in met or (int(key[2:]) < 100 and key not in {"b-95", "b-96"})
    ]


def test_fastapi(daemon: Daemon, place: Path):
    write_files("fastapi.md", place)
    with serving(place, daemon, "uvicorn", "shop:app", "--uds", "web.sock") as server:
        first = server.post("/bookings", booking(1))
        assert (first.status, first.body["duplicate"]) == (201, False)
        again = server.post("/bookings", booking(1))
        assert (again.body["lsn"], again.body["duplicate"]) == (first.body["lsn"], True)
        assert server.post("/bookings?delivered=1", booking(2)).status == 201
        assert [server.post("/visits", {"n": n}).status for n in range(3)] == [202] * 3
        daemon.command("route", "pause", "bookings")
        late = server.post("/bookings?delivered=1", booking(3))
        assert (late.status, late.body["code"]) in [
            (202, "delivery.timeout"),
            (202, "delivery.pending"),
        ]
        daemon.command("route", "resume", "bookings")
        met = meets_errors(server, daemon)
        daemon.end()
        gone = server.post("/bookings", booking(96))
        assert (gone.status, gone.body["code"]) == (503, "unavailable")
        assert gone.headers["retry-after"] == "1"
        daemon.start()
        assert server.post("/bookings", booking(97)).status == 201
    assert acknowledged(daemon, place, met) == ["b-1", "b-2", "b-3", *met, "b-97"]
    assert len(delivered(daemon, place, "visits")) == 3


def test_django(daemon: Daemon, place: Path):
    write_files("django.md", place)
    prepare = (
        "import site_of_a_shop as site; from django.db import connection;"
        "editor = connection.schema_editor(); editor.__enter__();"
        "editor.create_model(site.Booking); editor.__exit__(None, None, None);"
        "import logging; logging.getLogger('shop').info('prepared')"
    )
    with serving(
        place, daemon, "gunicorn", "--threads", "4", "--bind", "unix:web.sock",
        "site_of_a_shop:application",
    ) as server:  # fmt: skip
        environment = {"WALD_SOCKET": str(daemon.socket), "PATH": "/usr/bin:/bin"}
        subprocess.run([sys.executable, "-c", prepare], cwd=place, env=environment, check=True)
        assert server.post("/bookings", booking(1)).status == 201
        assert server.post("/bookings?fail=1", booking(2)).status == 500
        met = meets_errors(server, daemon)
        daemon.end()
        assert server.post("/bookings", booking(96)).status == 503
        daemon.start()
        assert server.post("/bookings", booking(97)).status == 201
    assert acknowledged(daemon, place, met) == ["b-1", *met, "b-97"]
    assert len(delivered(daemon, place, "visits")) == 1  # a log record


def test_gunicorn_threads(daemon: Daemon, place: Path):
    write_files("gunicorn.md", place)
    with serving(place, daemon, "gunicorn", "shop:application") as server:
        lsns: list[int] = []

        def book(number: int) -> None:
            answered = server.post("/visits", {"n": number})
            assert answered.status == 202

        threads = [threading.Thread(target=book, args=(number,)) for number in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        lsns = [server.post("/bookings", booking(n)).body["lsn"] for n in range(3)]
        assert lsns == sorted(set(lsns))
        met = meets_errors(server, daemon)
    assert len(delivered(daemon, place, "visits")) == 41  # that of the parent too
    assert acknowledged(daemon, place, met) == ["b-0", "b-1", "b-2", *met]


def test_celery_prefork(daemon: Daemon, place: Path):
    write_files("celery.md", place)
    broker = RedisServer(place / "redis").start()  # the page's files may be read half written
    try:
        _check_celery(daemon, place, f"redis+socket://{broker.socket}")
    finally:
        broker.kill()


def _check_celery(daemon: Daemon, place: Path, broker: str) -> None:
    worker = (
        "celery", "--app", "tasks", "worker", "--pool", "prefork", "--concurrency", "2",
        "--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "INFO",
    )  # fmt: skip

    def call(*numbers: int) -> None:
        code = (
            "import sys, tasks\n"
            "for n in sys.argv[1:]:\n"
            "    value = {'booking_id': 'b-' + n, 'seat': '1'}\n"
            "    tasks.book.apply_async((value,), task_id='t-' + n)\n"
        )
        command = [sys.executable, "-c", code, *map(str, numbers)]
        environment = {**os.environ, "BROKER": broker}
        subprocess.run(command, cwd=place, check=True, timeout=60, env=environment)

    with running(place, daemon, *worker, BROKER=broker), wald.connect(daemon.socket) as producer:
        call(1, 2, 2)  # the broker delivers one twice

        def stored(count: int) -> None:
            """Wait until as many bookings were delivered."""

            def there() -> bool:
                producer.append("visits", "look", ack="delivered")
                return len(delivered(daemon, place, "bookings")) >= count

            wait_until(there, f"{count} bookings")

        producer.append("bookings", {"booking_id": "b-0", "seat": "1"}, key="b-0")
        stored(3)
        daemon.end()
        call(3)  # comes back until the daemon does
        log = place / "server.log"
        wait_until(lambda: "Retry in" in log.read_text(), "it was tried, and comes back")
        daemon.start()
        stored(4)
    keys = delivered(daemon, place, "bookings")
    assert sorted(key or "" for key in keys) == ["b-0", "b-1", "b-2", "b-3"]
    assert "succeeded" in (place / "server.log").read_text()


def test_how_to_test_an_application(place: Path):
    write_files("test-your-application.md", place)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "."]
    done = subprocess.run(
        command, cwd=place, capture_output=True, text=True, timeout=120, check=False
    )
    assert "5 passed" in done.stdout, done.stdout + done.stderr
