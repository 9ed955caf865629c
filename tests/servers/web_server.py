"""A server behind HTTP, as a process of its own that tests script, cut off and kill.

As a program: web_server.py PORT DATABASE [SEED DEATHS]. It serves on that loopback port. What it
holds, what it was sent and what it is to do next lie in tables of a SQLite file, which outlives it:

  records   what it took, in order; a record with an id is taken once
  batches   Idempotency-Key and digest of what it took under it: the same again changes nothing
  requests  what arrived: method, path, headers, body
  script    what the next requests meet, one each: see ``Act``
  rules     what every request meets: status, token, max_bytes, poison (a text), hang

At a path that ends with /_bulk it plays Elasticsearch; with /items it answers for each record.
With SEED and DEATHS each request may be met by SIGKILL, before or behind the commit, until that
happened DEATHS times: a worker dies, and the master, who holds the socket, begins another one.
"""

import contextlib
import gzip
import http.server
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DEATH_SHARE = 0.25
_SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (id TEXT PRIMARY KEY, digest TEXT);
CREATE TABLE IF NOT EXISTS records (id TEXT UNIQUE, name TEXT, key TEXT, value TEXT);
CREATE TABLE IF NOT EXISTS requests (method TEXT, path TEXT, headers TEXT, body BLOB);
CREATE TABLE IF NOT EXISTS script (act TEXT);
CREATE TABLE IF NOT EXISTS rules (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS deaths (moment TEXT);
"""


# --- what tests hold ----------------------------------------------------------------------------


class WebServer:
    """The server of a test: ``url``, what it holds, and what it is told to do."""

    def __init__(self, directory: Path, *chance: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.database = directory / "web.db"
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/in"
        self._chance = [str(each) for each in chance]
        self._process: subprocess.Popen[bytes] | None = None
        self._ask("PRAGMA journal_mode = WAL")
        for statement in _SCHEMA.split(";"):
            self._ask(statement)

    def start(self) -> "WebServer":
        command = [sys.executable, __file__, str(self.port), str(self.database), *self._chance]
        self._process = subprocess.Popen(command)
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            assert self._process.poll() is None, "the server ended"
            assert time.monotonic() < end, "the server does not listen"
            time.sleep(0.01)

    def kill(self) -> None:
        """End it as a power cut would, its memory gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(60)

    def next(self, *acts: dict[str, Any]) -> None:
        """Let the next requests meet this, one each."""
        for act in acts:
            self._ask("INSERT INTO script VALUES (?)", json.dumps(act))

    def rule(self, **rules: object) -> None:
        """Let every request meet this from now on; None for not any more."""
        for name, value in rules.items():
            self._ask("INSERT OR REPLACE INTO rules VALUES (?, ?)", name, json.dumps(value))

    @property
    def left(self) -> int:
        """How many acts of the script were not met yet."""
        return int(self._ask("SELECT count(*) FROM script")[0][0])

    @property
    def values(self) -> list[Any]:
        """The values that it took, in order."""
        return [json.loads(value) for (value,) in self._ask("SELECT value FROM records")]

    @property
    def rows(self) -> list[tuple[str | None, str | None, Any]]:
        """What names a record, its key, and the value of what it took, in order."""
        found = self._ask("SELECT name, key, value FROM records ORDER BY rowid")
        return [(name, key, json.loads(value)) for name, key, value in found]

    @property
    def requests(self) -> list[tuple[str, str, dict[str, str], bytes]]:
        """Method, path, headers (names in lower case) and body of what arrived."""
        found = self._ask("SELECT * FROM requests ORDER BY rowid")
        return [(method, path, json.loads(said), body) for method, path, said, body in found]

    @property
    def deaths(self) -> int:
        return int(self._ask("SELECT count(*) FROM deaths")[0][0])

    def clear(self) -> None:
        for table in ("batches", "records", "requests", "script", "rules"):
            self._ask(f"DELETE FROM {table}")

    def _ask(self, statement: str, *values: object) -> list[Any]:
        with contextlib.closing(_open(self.database)) as database:
            return database.execute(statement, values).fetchall()


@contextlib.contextmanager
def serving(directory: Path, *chance: int) -> Iterator[WebServer]:
    server = WebServer(directory, *chance).start()
    try:
        yield server
    finally:
        server.stop()


def _open(database: str | Path) -> sqlite3.Connection:
    found = sqlite3.connect(database, timeout=60, isolation_level=None)
    found.execute("PRAGMA synchronous = OFF")  # what the process wrote outlives it: it is killed
    return found


# --- the server itself --------------------------------------------------------------------------

# What a request may meet, as JSON: {"status": 503, "headers": {...}, "body": "...", "takes": true}
# answers that; "takes" says whether it has its effect first. {"drop": true, "takes": ...} cuts the
# connection off, {"die": true, ...} the process. {"drip_s": 0.1} sends the answer byte by byte,
# {"wait_s": 1} sleeps first.
Act = dict[str, Any]


class _Taker(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body of an answer are two writes

    def do_POST(self) -> None:
        body, server = self._body(), self.server
        if body is None:
            return
        assert isinstance(server, _Server)
        with contextlib.closing(_open(server.database)) as database:
            said = {name.lower(): value for name, value in self.headers.items()}
            row = (self.command, self.path, json.dumps(said), body)
            database.execute("INSERT INTO requests VALUES (?, ?, ?, ?)", row)
            rules = _rules(database)
            act = _next_act(database) or server.draw(database)
            if rules.get("hang"):
                _hang(database)
                act = {"drop": True, "takes": False}
            time.sleep(act.get("wait_s", 0))
            answer = None if "status" in act else _refusal(rules, self.path, said, body)
            if answer is None and act.get("takes", "status" not in act):
                with server.lock:
                    answer = _take(database, rules, self.path, said, body)
            if act.get("die"):
                os.kill(os.getpid(), signal.SIGKILL)
        if act.get("drop"):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._answer({**(answer or {}), **act})

    do_PUT = do_PATCH = do_POST  # noqa: N815 - the base's

    def do_OPTIONS(self) -> None:
        self._answer({"status": 204})

    def do_GET(self) -> None:
        self._answer({"status": 200})

    def _body(self) -> bytes | None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) == length:
            return body
        self.close_connection = True  # who sent it died in the middle
        return None

    def _answer(self, act: Act) -> None:
        body = act.get("body", '{"ok":true}').encode() if act.get("status") != 204 else b""
        self.send_response(act.get("status", 200))
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, value in {**headers, **act.get("headers", {})}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            for at in range(len(body)) if "drip_s" in act else ():
                self.wfile.write(body[at : at + 1])
                time.sleep(act["drip_s"])
            if "drip_s" not in act:
                self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base's
        """Say nothing."""


class _Server(http.server.ThreadingHTTPServer):
    """One worker's: on the master's listening socket."""

    daemon_threads = True

    def __init__(self, listening: socket.socket, database: str, seed: int, deaths: int) -> None:
        super().__init__(listening.getsockname()[:2], _Taker, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.database = database
        self.lock = threading.Lock()
        self._deaths, self._chance = deaths, random.Random(seed + os.getpid())

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""

    def draw(self, database: sqlite3.Connection) -> Act:
        if self._deaths == 0 or self._chance.random() >= DEATH_SHARE:
            return {}
        (died,) = database.execute("SELECT count(*) FROM deaths").fetchone()
        if died >= self._deaths:
            return {}
        moment = self._chance.choice(["before", "behind"])
        database.execute("INSERT INTO deaths VALUES (?)", (moment,))
        return {"die": True, "takes": moment == "behind"}


def _next_act(database: sqlite3.Connection) -> Act | None:
    found = database.execute("SELECT rowid, act FROM script ORDER BY rowid LIMIT 1").fetchone()
    if found is None:
        return None
    database.execute("DELETE FROM script WHERE rowid = ?", found[:1])
    act: Act = json.loads(found[1])
    return act


def _rules(database: sqlite3.Connection) -> dict[str, Any]:
    rows = database.execute("SELECT * FROM rules").fetchall()
    return {name: json.loads(value) for name, value in rows}


def _hang(database: sqlite3.Connection) -> None:
    while _rules(database).get("hang"):
        time.sleep(0.02)


def _refusal(rules: dict[str, Any], path: str, said: dict[str, str], body: bytes) -> Act | None:
    """Return the answer to a request that the rules do not let pass."""
    if rules.get("status"):
        return {"status": rules["status"]}
    token = rules.get("token")
    if token and said.get("authorization") != f"Bearer {token}":
        return {"status": 401, "body": json.dumps({"error": f"not {said.get('authorization')}"})}
    if rules.get("max_bytes") and len(body) > rules["max_bytes"]:
        return {"status": 413, "body": ""}
    poison = rules.get("poison")
    if poison and not path.endswith(_PER_RECORD) and poison.encode() in _plain(said, body):
        return {"status": 400, "body": json.dumps({"message": f"no {poison} here"})}
    return None


def _plain(said: dict[str, str], body: bytes) -> bytes:
    kind = said.get("content-encoding")
    if kind == "gzip":
        return gzip.decompress(body)
    if kind == "zstd":
        from backports import zstd

        return zstd.decompress(body)
    assert kind is None
    return body


def _take(
    database: sqlite3.Connection,
    rules: dict[str, Any],
    path: str,
    said: dict[str, str],
    body: bytes,
) -> Act:
    """Take a batch; what is known by its id changes nothing."""
    items = _items(path, said, _plain(said, body))
    name, digest = said.get("idempotency-key"), said["content-digest"]
    database.execute("BEGIN IMMEDIATE")
    try:
        if name is not None:
            row = database.execute("SELECT digest FROM batches WHERE id = ?", (name,)).fetchone()
            if row is not None:
                return {} if row == (digest,) else {"status": 422, "body": '{"error":"another"}'}
            database.execute("INSERT INTO batches VALUES (?, ?)", (name, digest))
        statuses = [_insert(database, rules, path, item) for item in items]
    finally:
        database.execute("COMMIT")
    return {"body": _said_of(path, items, statuses)} if path.endswith(_PER_RECORD) else {}


def _insert(database: sqlite3.Connection, rules: dict[str, Any], path: str, item: Any) -> int:
    row = (*item[:3], json.dumps(item[3], separators=(",", ":")))
    if path.endswith(_PER_RECORD) and rules.get("poison") and rules["poison"] in row[3]:
        return 400
    statement = "INSERT OR IGNORE INTO records VALUES (?, ?, ?, ?)"
    return 201 if database.execute(statement, row).rowcount else 409


def _said_of(path: str, items: list[tuple[Any, ...]], statuses: list[int]) -> str:
    why = {400: {"error": {"reason": "no"}}}
    pairs: list[dict[str, Any]] = [{"status": n, **why.get(n, {})} for n in statuses]
    if path.endswith("/_bulk"):
        named = zip(items, pairs, strict=True)
        pairs = [{"create": {"_id": item[0], **pair}} for item, pair in named]
    return json.dumps({"errors": 400 in statuses, "items": pairs})


_PER_RECORD = ("/_bulk", "/items")


def _items(path: str, said: dict[str, str], body: bytes) -> list[tuple[Any, ...]]:
    """Return id, name, key and value of each record of a request; an id is taken once."""
    if path.endswith("/_bulk"):
        lines = [json.loads(line) for line in body.splitlines()]
        names = [line["create"]["_id"] for line in lines[::2]]
        return [(n, n, None, value) for n, value in zip(names, lines[1::2], strict=True)]
    if said["content-type"] == "application/x-ndjson":
        found = [json.loads(line) for line in body.splitlines()]
    else:
        found = json.loads(body)
        found = found.get("rows", [found]) if isinstance(found, dict) else found
    return [_item(each) for each in found]


def _item(item: Any) -> tuple[Any, ...]:
    if isinstance(item, dict) and item.keys() >= {"id", "lsn", "value"}:
        return (None, item["id"], item.get("key"), item["value"])
    return (None, None, None, item)


def main(port: str, database: str, seed: str = "0", deaths: str = "0") -> int:
    listening = socket.create_server(("127.0.0.1", int(port)), backlog=64)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if deaths == "0":
        _Server(listening, database, int(seed), 0).serve_forever()
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
