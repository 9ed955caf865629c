"""A target of any class, as a program: lines of JSON over a loopback port, its state in a file.

    python toy_target.py DATABASE PORT_FILE [PORT]

It keeps what its class promises, told by each request; a test kills it, fills it, locks others
out. What it committed survives SIGKILL.
"""

import json
import socketserver
import sqlite3
import sys
import threading
from pathlib import Path
from typing import Any

TAKES_MAX = 40
TOKEN = "canary-7c1f-open-sesame"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS lanes (lane TEXT PRIMARY KEY, line TEXT);
CREATE TABLE IF NOT EXISTS records (number INTEGER PRIMARY KEY, log TEXT, lsn, key, value TEXT);
CREATE TABLE IF NOT EXISTS batches (id TEXT PRIMARY KEY, answer TEXT);
"""
_TABLES = ("lanes", "records", "batches")


class Store:
    """What the target holds; one request at a time."""

    def __init__(self, path: Path) -> None:
        self.database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.database.execute("PRAGMA synchronous = OFF")
        self.database.executescript(_SCHEMA)
        self.lock = threading.Lock()
        self.trouble = ""

    def answer(self, asked: dict[str, Any]) -> object:
        if asked["op"] in {"trouble", "held", "backup", "restore"}:
            return getattr(self, f"{asked['op']}_")(asked)
        if self.trouble or asked.get("token") != TOKEN:
            return {"trouble": self.trouble or "authentication"}
        if asked["op"] in {"row", "move"}:
            return getattr(self, f"{asked['op']}_")(asked)
        self.database.execute("BEGIN IMMEDIATE")
        answer = getattr(self, asked["class"])(asked)
        self.database.execute("ROLLBACK" if asked["op"] == "probe" else "COMMIT")
        return answer

    def row_(self, asked: dict[str, Any]) -> object:
        if asked.get("class") == "monotone":
            return {"trouble": "owned"} if self.is_strange(asked) else None
        return self.line(asked["lane"])

    def move_(self, asked: dict[str, Any]) -> object:
        self.set_line(asked["lane"], asked["row"])
        return {"delivered": True}

    def is_strange(self, asked: dict[str, Any]) -> bool:
        return self.line("owner") not in (None, owner_of(asked))

    def line(self, lane: str) -> Any:
        found = self.database.execute("SELECT line FROM lanes WHERE lane = ?", (lane,)).fetchone()
        return json.loads(found[0]) if found else None

    def set_line(self, lane: str, line: object) -> None:
        self.database.execute("REPLACE INTO lanes VALUES (?, ?)", (lane, json.dumps(line)))

    def insert(self, records: list[list[Any]]) -> None:
        self.database.executemany(
            "INSERT INTO records (log, lsn, key, value) VALUES (?, ?, ?, ?)", records
        )

    # --- classes --------------------------------------------------------------------------------

    def transactional(self, asked: dict[str, Any]) -> object:
        row = self.line(asked["lane"])
        if asked["op"] == "deliver":
            number, rev, owner, *_ = row or (0, "00" * 16, asked["stands"][2])
            if [number, rev, owner] != asked["stands"]:
                return {"moved": row}
        refused = refused_of(asked["records"])
        if refused:
            return {"refused": refused}
        if len(asked["records"]) > TAKES_MAX:
            return {"too_large": True}
        self.insert(asked["records"])
        if asked["op"] == "deliver":
            self.set_line(asked["lane"], asked["row"])
        return {"delivered": True}

    def monotone(self, asked: dict[str, Any]) -> object:
        if self.is_strange(asked):
            return {"trouble": "owned"}
        self.set_line("owner", owner_of(asked))
        highest = self.line(asked["lane"]) or 0
        records = [record for record in asked["records"] if record[1] > highest]
        refused = refused_of(records)
        if refused:
            return {"refused": refused}
        self.insert(records)
        if records:
            self.set_line(asked["lane"], records[-1][1])
        return {"delivered": True}

    def keyed(self, asked: dict[str, Any]) -> object:
        refused = refused_of(asked["records"])
        bad = {lsn for lsn, _, _ in refused}
        for record in asked["records"]:
            there = self.database.execute(
                "SELECT 1 FROM records WHERE log = ? AND lsn = ?", record[:2]
            ).fetchone()
            if record[1] not in bad and not there:
                self.insert([record])
        return {"partial": refused} if refused else {"delivered": True}

    def window(self, asked: dict[str, Any]) -> object:
        known = self.database.execute(
            "SELECT answer FROM batches WHERE id = ?", (asked["batch"],)
        ).fetchone()
        if known:
            return json.loads(known[0])
        refused = refused_of(asked["records"])
        answer: dict[str, Any] = {"partial": refused} if refused else {"delivered": True}
        bad = {lsn for lsn, _, _ in refused}
        self.insert([record for record in asked["records"] if record[1] not in bad])
        self.database.execute(
            "INSERT INTO batches VALUES (?, ?)", (asked["batch"], json.dumps(answer))
        )
        return answer

    def none(self, asked: dict[str, Any]) -> object:
        if refused_of(asked["records"]):
            return {"refused": []}
        self.insert(asked["records"])
        return {"delivered": True}

    # --- for tests ------------------------------------------------------------------------------

    def trouble_(self, asked: dict[str, Any]) -> object:
        self.trouble = asked["kind"]
        return "ok"

    def held_(self, _: dict[str, Any]) -> object:
        return self.database.execute(
            "SELECT log, lsn, key, value FROM records ORDER BY number"
        ).fetchall()

    def backup_(self, _: dict[str, Any]) -> object:
        return {name: self.database.execute(f"SELECT * FROM {name}").fetchall() for name in _TABLES}

    def restore_(self, asked: dict[str, Any]) -> object:
        for name in _TABLES:
            self.database.execute(f"DELETE FROM {name}")
            for row in asked["tables"][name]:
                marks = ", ".join("?" * len(row))
                self.database.execute(f"INSERT INTO {name} VALUES ({marks})", row)
        return "ok"


def owner_of(asked: dict[str, Any]) -> str:
    return str(asked["lane"]).split(" ", maxsplit=1)[0]


def refused_of(records: list[list[Any]]) -> list[list[Any]]:
    said = "this target takes no negative number"
    return [
        [lsn, "negative", said] for _, lsn, _, value in records if is_negative(json.loads(value))
    ]


def is_negative(value: object) -> bool:
    number = value.get("n") if isinstance(value, dict) else None
    return isinstance(number, int | float) and number < 0


class Taker(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        for line in self.rfile:
            with server.store.lock:
                answer = server.store.answer(json.loads(line))
            self.wfile.write(json.dumps(answer).encode() + b"\n")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int, store: Store) -> None:
        super().__init__(("127.0.0.1", port), Taker)
        self.store = store

    def handle_error(self, *_: object) -> None:
        """Say nothing of a client that went away."""


if __name__ == "__main__":
    serving = Server(int(sys.argv[3]) if len(sys.argv) > 3 else 0, Store(Path(sys.argv[1])))
    written = Path(f"{sys.argv[2]}.new")
    written.write_text(str(serving.server_address[1]))
    written.replace(sys.argv[2])
    serving.serve_forever()
