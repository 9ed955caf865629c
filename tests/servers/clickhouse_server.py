"""ClickHouse's engine behind its HTTP interface, as a process that tests kill.

As a program: clickhouse_server.py PORT DIRECTORY, by a Python that finds the module ``chdb`` (see
get-clickhouse). The engine runs inside this process; what it wrote lies in the directory.
"""

import gzip
import http.server
import re
import signal
import sys
import threading
from typing import Any
from urllib.parse import parse_qsl, urlsplit

_STATUSES = {60: 404, 81: 404, 516: 403, 241: 500}
_CODE = re.compile(r"Code: (\d+)\.")
_OF_HTTP = {"query", "wait_end_of_query", "database", "user", "password"}


class _Asked(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body of an answer are two writes
    session: Any = None
    lock = threading.Lock()

    def do_POST(self) -> None:
        said = dict(parse_qsl(urlsplit(self.path).query))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        query = said["query"]
        settings = ", ".join(
            f"{name} = '{value}'" for name, value in said.items() if name not in _OF_HTTP
        )
        if query.startswith("INSERT"):
            head, _, form = query.rpartition(" FORMAT ")
            query = f"{head} SETTINGS {settings} FORMAT {form}\n{_plain(self.headers, body)}"
        try:
            with self.lock:
                answer = str(self.session.query(query, "TabSeparated"))
        except Exception as error:  # noqa: BLE001 - the engine's own kind
            found = _CODE.search(str(error))
            code = int(found[1]) if found else 0
            self._answer(_STATUSES.get(code, 400), str(error), code)
        else:
            self._answer(200, answer)

    do_GET = do_POST  # noqa: N815 - the base's

    def _answer(self, status: int, text: str, code: int = 0) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=UTF-8")
        if code:
            self.send_header("X-ClickHouse-Exception-Code", str(code))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base's
        """Say nothing."""


def _plain(headers: Any, body: bytes) -> str:
    return (gzip.decompress(body) if headers.get("Content-Encoding") == "gzip" else body).decode()


def main(port: str, directory: str) -> int:
    from chdb.session import Session  # type: ignore[import-not-found,unused-ignore]

    _Asked.session = Session(directory)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), _Asked).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
