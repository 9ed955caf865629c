"""A target behind HTTP that remembers batches by their id and dies now and then; and its sink.

As a program: web_target.py PORT_FILE DATABASE SEED DEATHS. It serves on a loopback port of its own
choice. Each request is taken by a worker that may kill itself before or behind the commit, until it
died DEATHS times; the master, who holds the listening socket, begins another one. Each death leaves
a line in table ``deaths``: a request was under way, so that a batch was in flight.
"""

import http.client
import http.server
import json
import os
import random
import signal
import socket
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from wald.model import (
    Attempt,
    Capabilities,
    Delivered,
    Finding,
    LaneKey,
    Outcome,
    ProgressRow,
    Record,
    RejectedRecord,
    ReplayClass,
    Severity,
    Systemic,
    SystemicKind,
    Unknown,
)

DEATH_SHARE = 0.25
_SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (id TEXT PRIMARY KEY, records INTEGER);
CREATE TABLE IF NOT EXISTS records (lsn INTEGER, key TEXT, value TEXT);
CREATE TABLE IF NOT EXISTS deaths (moment TEXT);
"""


class WebSink:
    """Sends a batch as one request under its id; see ``wald.ports.EncodingSink``."""

    capabilities = Capabilities(
        ReplayClass.WINDOW, max_records=1_000, max_bytes=1 << 20, window_s=3600.0, freezes=True
    )
    encoder = "json-lines/1"

    def __init__(self, port_file: str) -> None:
        self._port_file = Path(port_file)
        self._connection: http.client.HTTPConnection | None = None

    def encode(self, attempt: Attempt) -> bytes:
        return b"\n".join(
            json.dumps([record.lsn, record.key, record.value.hex()]).encode()
            for record in attempt.records
        )

    def read_row(self, key: LaneKey) -> ProgressRow | Outcome | None:
        del key
        return None

    def deliver(self, attempt: Attempt) -> Outcome:
        body = self.encode(attempt) if attempt.body is None else attempt.body
        try:
            connection = self._connected()
        except OSError as error:
            return Systemic(SystemicKind.UNREACHABLE, str(error))
        try:
            headers = {"Idempotency-Key": attempt.row.rev_id.hex()}
            connection.request("POST", "/", body, headers)
            answer = connection.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            return Unknown(repr(error))
        return Delivered() if answer.status == 200 else Unknown(f"{answer.status} {said!r}")

    def probe(
        self, attempt: Attempt, records: Sequence[Record]
    ) -> Sequence[RejectedRecord] | Outcome:
        del attempt, records
        return ()

    def check(self) -> Sequence[Finding]:
        return [Finding(Severity.OK, "web", "remembers batches for an hour")]

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is None:
            port = int(self._port_file.read_text())
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10.0)
            connection.connect()
            self._connection = connection
        return self._connection


def make(route: str, stream: str, settings: Mapping[str, object]) -> WebSink:
    del route, stream
    return WebSink(str(settings["port_file"]))


# --- the target ---------------------------------------------------------------------------------


class _Taker(http.server.BaseHTTPRequestHandler):
    """Takes one request at a time; ``server`` has the database and the dice."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) != length:  # who sent it died in the middle
            self.close_connection = True
            return
        moment = server.draw()
        if moment == "before":
            server.die(moment)
        server.take(self.headers["Idempotency-Key"], body.splitlines())
        if moment == "behind":
            server.die(moment)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base's
        """Say nothing."""


class _Server(http.server.HTTPServer):
    """One worker's: on the master's listening socket."""

    def __init__(self, listening: socket.socket, database: str, seed: int, deaths: int) -> None:
        super().__init__(listening.getsockname(), _Taker, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self._database = sqlite3.connect(database, isolation_level=None)
        (died,) = self._database.execute("SELECT count(*) FROM deaths").fetchone()
        self._left = deaths - died
        self._chance = random.Random(seed + died)

    def handle_error(self, request: object, client_address: object) -> None:
        """A drainer that was killed is no news."""

    def draw(self) -> str:
        if self._left <= 0 or self._chance.random() >= DEATH_SHARE:
            return ""
        return self._chance.choice(["before", "behind"])

    def die(self, moment: str) -> None:
        self._database.execute("INSERT INTO deaths VALUES (?)", (moment,))
        os.kill(os.getpid(), signal.SIGKILL)

    def take(self, batch: str, lines: list[bytes]) -> None:
        """Apply a batch whose id is not known yet; one that is known changes nothing."""
        self._database.execute("BEGIN IMMEDIATE")
        row = (batch, len(lines))
        new = self._database.execute("INSERT OR IGNORE INTO batches VALUES (?, ?)", row).rowcount
        if new:
            rows = [json.loads(line) for line in lines]
            self._database.executemany("INSERT INTO records VALUES (?, ?, ?)", rows)
        self._database.execute("COMMIT")


def main(port_file: str, database: str, seed: str, deaths: str) -> int:
    founding = sqlite3.connect(database)
    founding.execute("PRAGMA journal_mode = WAL").fetchall()
    founding.executescript(_SCHEMA)
    founding.close()
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    Path(port_file).write_text(str(listening.getsockname()[1]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        pid = os.fork()
        if pid == 0:
            _Server(listening, database, int(seed), int(deaths)).serve_forever()
        try:
            os.waitpid(pid, 0)
        except SystemExit:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
