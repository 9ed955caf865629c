"""A server of our own on a socket, for what no library answers: drips, floods, nonsense, TLS."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

TLS = Path(__file__).parent / "tls"  # "localhost" by an authority of our own, until 2126
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
Talk = Callable[[socket.socket, bytes], None]


class RawServer:
    """Reads a request by its Content-Length, then lets ``talk`` answer it; one at a time.

    ``requests`` has what arrived; ``connections`` counts.
    """

    def __init__(self, talk: Talk, context: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self._talk = talk
        self._context = context
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.url = f"http{'s' if context else ''}://localhost:{self.port}/in"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(60)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            connection.settimeout(60)
            with contextlib.suppress(OSError), self._secured(connection) as secured:
                while (request := self._read(secured)) is not None:
                    self.requests.append(request)
                    self._talk(secured, request)

    def _secured(self, connection: socket.socket) -> socket.socket:
        if self._context is None:
            return connection
        return self._context.wrap_socket(connection, server_side=True)

    def _read(self, connection: socket.socket) -> bytes | None:
        found = b""
        while b"\r\n\r\n" not in found:
            part = connection.recv(65_536)
            if not part:
                return None
            found += part
        head, _, body = found.partition(b"\r\n\r\n")
        lengths = [line for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")]
        length = int(lengths[0].partition(b":")[2]) if lengths else 0
        while len(body) < length:
            part = connection.recv(65_536)
            if not part:
                return None
            body += part
        return head + b"\r\n\r\n" + body


@contextlib.contextmanager
def raw(talk: Talk, context: ssl.SSLContext | None = None) -> Iterator[RawServer]:
    server = RawServer(talk, context)
    try:
        yield server
    finally:
        server.close()


def says(answer: bytes) -> Talk:
    """Answer every request with these bytes."""
    return lambda connection, _: connection.sendall(answer)


def secure(*, asks_client: bool = False) -> ssl.SSLContext:
    """Return the side of a server whose certificate is for ``localhost``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.pem")
    if asks_client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(TLS / "ca.pem")
    return context
