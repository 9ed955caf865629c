"""One connection to a server: requests and bounded answers, and whether a request had begun.

urllib3 connects, verifies and frames; nothing is retried or redirected, and no environment is
asked. Two things are ours: a deadline for the whole of an attempt, since a socket's timeout begins
anew with every byte that drips in, and the moment from which a request may have had an effect.
"""

import io
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from wald import limits
from wald.model import Systemic, SystemicKind, Unknown
from wald.sinks.http.answers import Answer
from wald.sinks.http.options import NONE, Options

_NO_SUCCESS = 300
_CERTIFICATE_HINT = "ca_file names who signs the server's certificate; it is always verified"


@dataclass(slots=True)
class _Request:
    """The request under way, as its connection sees it."""

    now_s: Callable[[], float]
    end_s: float = 0.0
    has_begun: bool = False

    def left_s(self) -> float:
        """Return how long it may still take.

        Raises:
            TimeoutError: no longer.
        """
        left_s = self.end_s - self.now_s()
        if left_s <= 0:
            msg = "the attempt has had its time"
            raise TimeoutError(msg)
        return left_s


class Transport:
    """The connection of one lane; one thread.

    Args:
        options: the route's.
        now_s: a monotonic clock.
    """

    def __init__(self, options: Options, now_s: Callable[[], float]) -> None:
        self.now_s = now_s
        self._options = options
        self._request = _Request(now_s)
        self._used_s = 0.0
        self._manager: urllib3.PoolManager | None = None

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float
    ) -> Answer | Systemic | Unknown:
        """Send a request and read its answer.

        Returns ``Systemic`` where no byte of it was sent, ``Unknown`` where that cannot be ruled
        out.
        """
        request = self._request
        now_s = request.now_s()
        if self._manager is not None and now_s - self._used_s > limits.HTTP_KEEP_ALIVE_S:
            self._manager.clear()  # the server may be closing it right now
        request.end_s, request.has_begun = now_s + timeout_s, False
        try:
            manager = self._connected(url)
        except OSError as error:
            return self._no_certificates(error)
        try:
            return self._exchange(manager, method, url, headers, body)
        except (HTTPError, OSError, ValueError) as error:
            self.close()
            return self._failed(error)
        finally:
            self._used_s = request.now_s()

    def close(self) -> None:
        """Close the connection; harmless to repeat."""
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.clear()

    def _exchange(
        self,
        manager: urllib3.PoolManager,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
    ) -> Answer:
        left_s = self._request.left_s()
        connect_s = min(self._options.connect_timeout_s, left_s)
        response = manager.urlopen(
            method,
            url,
            body=body,
            headers=headers,
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
            timeout=urllib3.Timeout(connect=connect_s, read=left_s),
        )
        try:
            return self._read(response)
        except BaseException:
            response.close()  # what was not read must not be taken for the next answer
            raise
        finally:
            response.release_conn()

    def _read(self, response: urllib3.BaseHTTPResponse) -> Answer:
        parts: list[bytes] = []
        size, is_whole = 0, False
        try:
            while size <= limits.HTTP_ANSWER_MAX_BYTES and not is_whole:
                part = response.read(limits.HTTP_READ_BYTES)
                parts.append(part)
                size += len(part)
                is_whole = not part
        except (HTTPError, OSError):
            if response.status < _NO_SUCCESS:
                raise  # what it says of the records is lost; a failure says enough by its status
        if not is_whole:
            response.close()
        return Answer(response.status, response.headers, b"".join(parts), is_whole)

    def _failed(self, error: Exception) -> Systemic | Unknown:
        text = f"{self._options.shown_url}: {_why(error)}"
        if self._request.has_begun:
            return Unknown(f"{text}: the request was sent, and not answered")
        if _is_certificate(error):
            return Systemic(SystemicKind.CONFIGURATION, text, _CERTIFICATE_HINT)
        return Systemic(SystemicKind.UNREACHABLE, text)

    def _no_certificates(self, error: OSError) -> Systemic:
        options = self._options
        named = (options.ca_file, options.client_cert, options.client_key)
        files = ", ".join(each for each in named if each)
        text = f"{options.shown_url}: {files}: {_why(error)}"
        return Systemic(SystemicKind.CONFIGURATION, text, "these are PEM files that wald may read")

    def _connected(self, url: str) -> urllib3.PoolManager:
        if self._manager is None:
            manager = self._new_manager(url)
            manager.pool_classes_by_scheme = {
                "http": _pool_of(urllib3.HTTPConnectionPool, HTTPConnection, self._request),
                "https": _pool_of(urllib3.HTTPSConnectionPool, HTTPSConnection, self._request),
            }
            self._manager = manager
        return self._manager

    def _new_manager(self, url: str) -> urllib3.PoolManager:
        options = self._options
        pool: dict[str, Any] = {"num_pools": 1, "maxsize": 1}
        if url.startswith("https:"):
            context = ssl.create_default_context(cafile=options.ca_file or None)
            if options.client_cert:
                context.load_cert_chain(options.client_cert, options.client_key or None)
            pool["ssl_context"] = context
        proxy = _proxy(options.proxy, url)
        return urllib3.ProxyManager(proxy, **pool) if proxy else urllib3.PoolManager(**pool)


def _proxy(said: str, url: str) -> str:
    """Return the address of the proxy to use; empty for none."""
    if said != "environment":
        return "" if said == NONE else said
    parts = urlsplit(url)
    if proxy_bypass(parts.netloc):
        return ""
    found = getproxies()
    return found.get(parts.scheme, found.get("all", ""))


def _is_certificate(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__ or _inner(error)
    return False


def _inner(error: BaseException) -> BaseException | None:
    return next((each for each in error.args if isinstance(each, BaseException)), None)


def _why(error: Exception) -> str:
    """Return the innermost reason in one line, without addresses of objects."""
    reason: BaseException = error
    while True:
        inner = _inner(reason) or reason.__cause__
        if inner is None:
            break
        reason = inner
    if isinstance(reason, TimeoutError) and not reason.args:
        return "timed out"
    text = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
    return (text.rpartition("object at ")[2] or type(reason).__name__)[
        : limits.ERROR_TEXT_MAX_CHARS
    ]


# --- the deadline -------------------------------------------------------------------------------


def _pool_of(pool: type[Any], connection: type[Any], request: _Request) -> type[Any]:
    """Return a kind of pool whose connections know the request under way."""

    class Bounded(connection):  # type: ignore[misc]
        def connect(self) -> None:
            super().connect()
            self.sock: Any = _BoundedSocket(self.sock, request)

    return cast("type[Any]", type(pool.__name__, (pool,), {"ConnectionCls": Bounded}))


class _BoundedSocket:
    """A socket whose every operation ends in time, and that notes that a request begins."""

    def __init__(self, inner: socket.socket, request: _Request) -> None:
        self._inner = inner
        self._request = request

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def sendall(self, content: bytes) -> None:
        self._request.has_begun = True
        view = memoryview(content)
        for at in range(0, len(view), limits.HTTP_SEND_BYTES):
            self._inner.settimeout(self._request.left_s())
            self._inner.sendall(view[at : at + limits.HTTP_SEND_BYTES])

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        raw = cast("io.RawIOBase", self._inner.makefile("rb", buffering=0))
        return io.BufferedReader(_BoundedReader(raw, self._inner, self._request))


class _BoundedReader(io.RawIOBase):
    """Reads from a socket within what is left of the time, however slowly bytes drip in."""

    def __init__(self, raw: io.RawIOBase, inner: socket.socket, request: _Request) -> None:
        self._raw = raw
        self._inner = inner
        self._request = request

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:  # noqa: ANN401 - as the base has it
        self._inner.settimeout(self._request.left_s())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
