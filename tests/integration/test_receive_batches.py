"""docs/how-to/receive-batches.md, followed as a reader would: the service of the page, killed."""

import contextlib
import http.client
import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from wald.app import check_sinks
from wald.config.load import load_text
from wald.config.places import Places
from wald.testing.sink_contract import Host, Workbench

PAGE = (Path(__file__).parents[2] / "docs/how-to/receive-batches.md").read_text()


class Service:
    """The program of the page, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        found = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
        assert found
        directory.mkdir()
        self.directory = directory
        (directory / "service.py").write_text(found[1])
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "service.py", str(self.port)]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, cwd=self.directory, stderr=quiet)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            time.sleep(0.01)
        msg = "the service does not listen"
        raise AssertionError(msg)

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(60)

    def ask(self, question: str) -> list[tuple[str, str]]:
        with contextlib.closing(sqlite3.connect(self.directory / "shop.db")) as database:
            return database.execute(question).fetchall()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    found = Service(tmp_path / "service")
    found.start()
    yield found
    found.kill()


def settings_of_the_page() -> str:
    lines = [line[4:] for line in PAGE.splitlines() if line.startswith("    ")]
    return "\n".join(lines[: lines.index('guarantee = "exactly-once"') + 1])


def strike(service: Service, host: Host) -> None:
    """Kill the service behind its commit, once, before its answer is known."""
    service.kill()
    service.start()
    host.behind_attempt = lambda: None


def test_the_configuration_of_the_page_is_right() -> None:
    loaded = load_text([("page", settings_of_the_page())], Places("data", "socket"), {})
    check_sinks(loaded.settings)  # which would refuse a guarantee that the sink cannot give


def test_the_service_of_the_page_takes_every_record_once(service: Service, tmp_path: Path) -> None:
    loaded = load_text([("page", settings_of_the_page())], Places("data", "socket"), {})
    bench = Workbench()
    bench.factory = "wald.sinks.http:make"
    url = f"http://127.0.0.1:{service.port}/signups"
    bench.settings = {**loaded.settings.sinks["shop"].options, "url": url}
    host = Host(tmp_path / "host", bench)
    try:
        for moment in ("", "lost", "late", "killed"):
            host.lost_answers = int(moment == "lost")
            host.late_attempts = int(moment == "late")
            if moment == "killed":
                host.behind_attempt = lambda: strike(service, host)
                host.lost_answers = 1
            host.append(30)
            host.through()
            host.land()
    finally:
        host.close()
    rows = service.ask("SELECT id, value FROM signups ORDER BY rowid")
    names = [f"{host.log.log_id.hex()}-{each.lsn}" for each in host.sent]
    assert [name for name, _ in rows] == names
    assert [json.loads(value) for _, value in rows] == [each.value for each in host.sent]
    batches = service.ask("SELECT id, digest FROM batches")
    assert len(batches) == len({name for name, _ in batches}) == 4


def test_the_service_of_the_page_refuses_another_content_under_the_same_id(
    service: Service,
) -> None:
    statuses = []
    for digest in ("one", "one", "two"):
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
        headers = {"Idempotency-Key": "b", "Content-Digest": digest}
        connection.request("POST", "/signups", b'[{"id": "a", "value": 1}]', headers)
        statuses.append(connection.getresponse().status)
        connection.close()
    assert statuses == [204, 204, 422]
    assert service.ask("SELECT id, value FROM signups") == [("a", "1")]
