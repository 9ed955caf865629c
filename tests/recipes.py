"""The how-to pages whose code is run: its files, and the servers that they are run by."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple

from tests.daemon import Daemon, wait_until

HOW_TO = Path(__file__).parents[1] / "docs" / "how-to"
_FILE = re.compile(r"<!-- file: (\S+) -->\n```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)

CONFIG = """
[sinks.target]
type = "sqlite"
path = "{place}/target.db"
[routes.bookings]
stream = "bookings"
sink = "target"
batch = {{ max_age = "20ms" }}
[routes.visits]
stream = "visits"
sink = "target"
batch = {{ max_age = "20ms" }}
[streams.bookings]
quota_records = 20
[streams.bookings.dedup]
window = "1h"
"""


def files_of(page: str) -> dict[str, str]:
    """The files that a page shows, by name."""
    found = dict(_FILE.findall((HOW_TO / page).read_text()))
    assert found, page
    return found


def write_files(page: str, place: Path) -> None:
    """Write the files of a page."""
    for name, text in files_of(page).items():
        (place / name).write_text(text)


class Answered(NamedTuple):
    """What a server answered."""

    status: int
    headers: Message
    body: Any


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(self._path)


class Server:
    """A web server on a Unix socket."""

    def __init__(self, path: Path, process: "subprocess.Popen[bytes]") -> None:
        self.path = str(path)
        self.process = process

    def post(self, url: str, value: object) -> Answered:
        connection = _Connection(self.path)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", url, json.dumps(value), headers)
            answer = connection.getresponse()
            text = answer.read()
            is_json = answer.headers.get_content_type() == "application/json"
            body = json.loads(text or b"null") if is_json else text
            return Answered(answer.status, answer.headers, body)
        finally:
            connection.close()

    def is_up(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as trying:
                trying.connect(self.path)
        except OSError:
            return False
        return True


@contextmanager
def running(
    place: Path, daemon: Daemon, *command: str, **environment: str
) -> "Iterator[subprocess.Popen[bytes]]":
    """A program of a page for the length of a with block; ended by SIGTERM."""
    log = place / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=place,
            env={
                **os.environ,
                "WALD_SOCKET": str(daemon.socket),
                "HOME": str(place),
                "PYTHONDONTWRITEBYTECODE": "1",
                **environment,
            },
            stdout=output,
            stderr=output,
        )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    except BaseException:
        print(log.read_text()[-4_000:], file=sys.stderr)
        raise
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextmanager
def serving(place: Path, daemon: Daemon, *command: str, **environment: str) -> Iterator[Server]:
    """A web server of a page, which listens at ``web.sock`` in its directory."""
    with running(place, daemon, *command, **environment) as process:
        server = Server(place / "web.sock", process)

        def up() -> bool:
            assert process.poll() is None, (place / "server.log").read_text()
            return server.is_up()

        wait_until(up, "the server listens")
        yield server


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that stands still for the length of a with block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
