"""A proxy between a sink and its server: cuts a connection where a test wants it, or holds it."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from enum import Enum
from types import TracebackType
from typing import Self, TypeAlias

Address: TypeAlias = "tuple[str, int] | str"  # (host, port) or the path of a Unix socket
_CHUNK_BYTES = 65_536


class Side(Enum):
    """On which side of its effect a chunk is lost."""

    BEFORE = "before the server had it"
    BEHIND = "behind its effect: the server answered, and nobody heard"


class CuttingProxy:
    """Passes bytes between clients and a server; a context manager, with threads of its own.

    What a client sends is counted in chunks, as they are received. ``cut`` says which of those to
    come is the last of its connection.

    Args:
        upstream: where the server listens; it may be down, then connections are closed at once.

    Attributes:
        address: where the proxy listens, on the loopback.
        was_cut: whether the cut that was asked for happened.
    """

    def __init__(self, upstream: Address) -> None:
        self._upstream = upstream
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listening.getsockname()[:2]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._left: int | None = None
        self._side = Side.BEFORE
        self.was_cut = False
        self._flows = threading.Event()
        self._flows.set()
        self._thread = threading.Thread(target=self._accept, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
        # close() alone does not wake a thread in accept()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.drop()
        self._thread.join()

    def cut(self, at: int, side: Side) -> None:
        """Cut a connection at a chunk that a client sends; 0 is the next one."""
        with self._lock:
            self._left, self._side, self.was_cut = at, side, False

    def hold(self) -> None:
        """Pass nothing on, either way, until ``release``; connections stay open."""
        self._flows.clear()

    def release(self) -> None:
        """Pass on what was held back."""
        self._flows.set()

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Hold back while a block lasts."""
        self.hold()
        try:
            yield
        finally:
            self.release()

    def drop(self) -> None:
        """Close all connections that are open."""
        with self._lock:
            ends = list(self._open)
        for end in ends:
            _shut(end)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                server = _connect(self._upstream)
            except OSError:
                client.close()
                continue
            _Connection(self, client, server).start()

    def _is_last(self) -> Side | None:
        """Count a chunk; return how it is lost, if it is the one to be lost."""
        with self._lock:
            if self._left is None:
                return None
            self._left -= 1
            if self._left >= 0:
                return None
            self._left, self.was_cut = None, True
            return self._side

    def _keep(self, *ends: socket.socket) -> None:
        with self._lock:
            self._open.update(ends)

    def _forget(self, *ends: socket.socket) -> None:
        with self._lock:
            self._open.difference_update(ends)


class _Connection:
    """One client's connection: two threads, one for each way."""

    def __init__(self, proxy: CuttingProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._deaf = False  # the server's next answer is lost, and with it the connection
        self._ways = 2
        self._lock = threading.Lock()

    def start(self) -> None:
        for end in (self._client, self._server):
            if end.family != socket.AF_UNIX:  # what came in two parts goes on without a wait
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._proxy._keep(self._client, self._server)  # noqa: SLF001 - two classes, one thing
        for way in (self._to_server, self._to_client):
            threading.Thread(target=self._run, args=(way,), name="proxy", daemon=True).start()

    def _run(self, way: "object") -> None:
        try:
            assert callable(way)
            with contextlib.suppress(OSError):
                way()
        finally:
            _shut(self._client)
            _shut(self._server)
            with self._lock:
                self._ways -= 1
                is_last = self._ways == 0
            if is_last:
                self._proxy._forget(self._client, self._server)  # noqa: SLF001
                self._client.close()
                self._server.close()

    def _to_server(self) -> None:
        proxy = self._proxy
        while data := self._client.recv(_CHUNK_BYTES):
            proxy._flows.wait()  # noqa: SLF001
            side = proxy._is_last()  # noqa: SLF001
            if side is Side.BEFORE:
                return
            if side is Side.BEHIND:
                self._deaf = True  # before the server can answer
            self._server.sendall(data)

    def _to_client(self) -> None:
        while data := self._server.recv(_CHUNK_BYTES):
            self._proxy._flows.wait()  # noqa: SLF001
            if self._deaf:
                return
            self._client.sendall(data)


def _connect(address: Address) -> socket.socket:
    if isinstance(address, str):
        server = socket.socket(socket.AF_UNIX)
        server.connect(address)
        return server
    return socket.create_connection(address)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
