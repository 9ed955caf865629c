"""A proxy before a service that speaks HTTP: some requests it answers itself, as a test says."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# (operation, request) -> None to pass the request on, or (status, answer)
Forgery = Callable[[str, dict[str, Any]], tuple[int, dict[str, Any]] | None]


def error(code: str, message: str = "forged", status: int = 400) -> tuple[int, dict[str, Any]]:
    """Return what the service says of an error."""
    return status, {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": message}


class ForgingProxy:
    """Before DynamoDB: the operation is in a header, everything is JSON."""

    def __init__(self, upstream: int, port: int = 0) -> None:
        self.upstream = upstream
        self.forgery: Forgery | None = None
        self.seen: list[str] = []  # operations that were passed on
        self.open: set[socket.socket] = set()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # head and body of an answer are two writes

            def setup(self) -> None:
                super().setup()
                proxy.open.add(self.connection)

            def finish(self) -> None:
                proxy.open.discard(self.connection)
                super().finish()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = proxy.answer(dict(self.headers), body)
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.0")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        operation = headers["X-Amz-Target"].rpartition(".")[2]
        request = json.loads(body)
        if self.forgery is not None:
            forged = self.forgery(operation, request)
            if forged is not None:
                return forged[0], json.dumps(forged[1]).encode()
            body = json.dumps(request).encode()  # it may have been changed
        self.seen.append(operation)
        headers["Content-Length"] = str(len(body))
        upstream = HTTPConnection("127.0.0.1", self.upstream, timeout=30)
        try:
            upstream.request("POST", "/", body, headers)
            answered = upstream.getresponse()
            return answered.status, answered.read()
        except OSError:
            return 500, b"{}"  # it was killed
        finally:
            upstream.close()

    @contextmanager
    def forging(self, forgery: Forgery) -> Iterator[None]:
        self.forgery = forgery
        try:
            yield
        finally:
            self.forgery = None

    def close(self) -> None:
        """Stop listening, and cut what is open."""
        self._server.shutdown()
        for each in list(self.open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._thread.join()
