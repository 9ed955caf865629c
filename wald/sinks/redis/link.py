"""The connection of one lane, and what its errors mean; the only importer of the driver.

One connection and no pool: no command is ever sent twice behind our back, and an answer that came
late cannot be taken for that of another command, because the connection is closed before.
"""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from redis import exceptions as driver
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.retry import Retry

from wald import limits
from wald.model import Systemic, SystemicKind, TooLarge, Unknown
from wald.sinks.redis.calls import ANSWER_TIMEOUT_S, CallFailed
from wald.sinks.redis.options import Options
from wald.sinks.secrets import renewed

REDIRECTS_MAX: Final = 4  # connections for one command, in a cluster that is being changed
_LEAST_S: Final = 0.01
_SAME_HOST: Final = frozenset({"", "?"})
_RESP: Final = 2  # every server speaks it, and the scripts answer in it

_K = SystemicKind
_KINDS: Mapping[str, SystemicKind] = {
    "LOADING": _K.BUSY,
    "BUSY": _K.BUSY,
    "TRYAGAIN": _K.BUSY,
    "CLUSTERDOWN": _K.UNREACHABLE,
    "MASTERDOWN": _K.UNREACHABLE,
    "NOREPLICAS": _K.UNREACHABLE,
    "READONLY": _K.UNREACHABLE,
    "OOM": _K.FULL,
    "MISCONF": _K.FULL,
    "NOAUTH": _K.AUTHENTICATION,
    "WRONGPASS": _K.AUTHENTICATION,
    "NOPERM": _K.AUTHENTICATION,
    "WRONGTYPE": _K.CONFIGURATION,
    "MOVED": _K.CONFIGURATION,
    "ASK": _K.BUSY,
    "CROSSSLOT": _K.CONFIGURATION,
}
_HINTS: Mapping[str, str] = {
    "READONLY": "this server is a replica now: the url should name the primary",
    "OOM": "raise maxmemory, trim the stream (maxlen), or remove what else is there",
    "MISCONF": "the server cannot write its own files: look at its disk and its log",
    "NOPERM": "the user needs the commands and keys of 'wald check --print-grants'",
    "WRONGTYPE": "the key holds something else than a stream: say another stream_key",
    "MOVED": "the stream's slot is at another node of the cluster: name a host and port in the url",
    "ASK": "the stream's slot is on its way to another node of the cluster",
}
_OF_OUR_SCRIPT = re.compile(r" ?script: (?:[0-9a-f]+, )?on \S*:\d+\.?")
_FULL_HOUSE: Final = "max number of clients"
_AUTHENTICATION_HINT = "look at username and password, and at the server's ACL"
# errors that the server answered: the command had no effect
_ANSWERED = (driver.ResponseError, driver.AuthenticationError, driver.BusyLoadingError)
_DROPS: Final = frozenset({"READONLY", "MOVED", "LOADING", "MASTERDOWN"})  # another server may come


class Link:
    """One connection, made when it is needed, made anew after it was cut."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._connection: Any = None
        self._node: tuple[str, int] | None = None  # of a cluster, as another one named it
        self.generation = 0  # counts connections: another may be to another server

    def call(self, *command: str | bytes | int, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:  # noqa: ANN401 - what the server says
        """Send a command, return its answer; a node that has not the slot says who has it.

        Raises:
            CallFailed: there is none, or it is an error.
        """
        now_s = time.monotonic  # noqa: TID251 - the driver's time: a factory gets no clock
        ends_s = now_s() + timeout_s
        for _ in range(REDIRECTS_MAX):
            try:
                return self._ask(command, max(ends_s - now_s(), _LEAST_S))
            except driver.MovedError as moved:  # nothing was carried out there
                self._go_to(moved)
        self.close()
        raise CallFailed(
            Systemic(_K.UNREACHABLE, f"{self._where}: the cluster sends on in circles")
        )

    def _ask(self, command: Sequence[str | bytes | int], timeout_s: float) -> Any:  # noqa: ANN401
        connection = self._connected()
        try:
            connection.send_command(*command)
            return connection.read_response(timeout=timeout_s)
        except _ANSWERED as error:
            if isinstance(error, driver.MovedError) and not self._options.socket:
                raise
            raise self._answered(error) from error
        except (driver.RedisError, OSError) as error:
            failed = CallFailed(Unknown(self._words(error)))
            if _FULL_HOUSE in str(error):  # which the driver takes for a lost connection
                failed = self._answered(error)
            self.close()
            raise failed from error

    def _go_to(self, moved: Any) -> None:  # noqa: ANN401 - the driver's, without types
        """Let the next connection be to the node that another one named."""
        host = moved.host if moved.host not in _SAME_HOST else (self._node or self._here)[0]
        self.close()
        self._node = host, moved.port

    @property
    def _here(self) -> tuple[str, int]:
        return self._options.host, self._options.port

    @property
    def _where(self) -> str:
        """Which server is meant, for messages."""
        return self._options.where if self._node is None else f"{self._node[0]}:{self._node[1]}"

    def close(self) -> None:
        """Close the connection; harmless to repeat. The next one begins where the url says."""
        connection, self._connection, self._node = self._connection, None, None
        if connection is not None:
            connection.disconnect()

    def _connected(self) -> Any:  # noqa: ANN401 - the driver's, of three classes
        if self._connection is None:
            connection = _connection(self._options, self._node or self._here)
            try:
                connection.connect()
            except _ANSWERED as error:
                raise self._answered(error, greeting=True) from error
            except (driver.RedisError, OSError) as error:
                connection.disconnect()
                failed = CallFailed(Systemic(_K.UNREACHABLE, self._words(error)))
                self.close()
                raise failed from error
            self._connection = connection
            self.generation += 1
        return self._connection

    def _answered(self, error: Exception, *, greeting: bool = False) -> CallFailed:
        """Return what an error that the server answered means."""
        code, text = _code_of(error)
        kind = _KINDS.get(code)
        if kind is None and _FULL_HOUSE in text:
            kind = _K.BUSY
        if kind is None:
            refused = greeting or isinstance(error, driver.AuthenticationError)
            refused = refused or "unauthenticated" in text
            kind = _K.AUTHENTICATION if refused else _K.CONFIGURATION
        where = self._where
        if code in _DROPS or kind is _K.AUTHENTICATION or text.startswith("Protocol error"):
            self.close()
        hint = _HINTS.get(code, _AUTHENTICATION_HINT if kind is _K.AUTHENTICATION else "")
        words = _OF_OUR_SCRIPT.sub("", text)
        said = f"{where}: {words}"[: limits.ERROR_TEXT_MAX_CHARS]
        if "invalid bulk length" in text:
            return CallFailed(TooLarge(said))
        is_missing = "unknown command" in text or "appendonly is disabled" in text
        return CallFailed(Systemic(kind, said, hint), is_missing=is_missing)

    def _words(self, error: Exception) -> str:
        """Return what the driver says of a connection; no settings are in it."""
        text = str(error)
        if isinstance(error, driver.TimeoutError):
            text = "no answer in time"
        elif not text:
            text = "the connection was closed"
        return f"{self._where}: {text}"[: limits.ERROR_TEXT_MAX_CHARS]


def _code_of(error: Exception) -> tuple[str, str]:
    """Return the first word of a server's error and all of it; the driver may have cut that off."""
    text = str(error)
    cut = getattr(error, "status_code", None)
    if isinstance(cut, str) and cut:
        return cut, f"{cut} {text}" if cut != "ERR" else text
    first = text.partition(" ")[0]
    return (first if first.isupper() else ""), text


def _connection(options: Options, node: tuple[str, int]) -> Any:  # noqa: ANN401 - the driver's
    make: Any = UnixDomainSocketConnection if options.socket else Connection
    place: dict[str, Any] = {"host": node[0], "port": node[1]}
    if options.socket:
        place = {"path": options.socket}
    elif options.tls:
        make = SSLConnection
        place |= {
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_ca_certs": options.tls_ca,
            "ssl_certfile": options.tls_cert,
            "ssl_keyfile": options.tls_key,
        }
    return make(
        **place,
        db=options.database,
        username=options.username,
        password=None if options.password is None else renewed(options.password),
        protocol=_RESP,
        driver_info=None,
        retry=Retry(NoBackoff(), 0),
        socket_connect_timeout=options.connect_timeout_s,
        socket_timeout=ANSWER_TIMEOUT_S,
    )
