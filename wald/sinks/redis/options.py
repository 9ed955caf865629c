"""The settings of the Redis sink, checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

from wald.model import Secret
from wald.sinks.reading import OptionReader
from wald.sinks.redis.scripts import key_beside

KIND: Final = "redis"
KEYS: Final = (
    "url", "username", "password", "stream_key", "maxlen", "wait_aof", "wait_replicas",
    "connect_timeout", "tls_ca", "tls_cert", "tls_key",
)  # fmt: skip
CONNECT_TIMEOUT: Final = "5s"
CONNECT_TIMEOUT_MAX_S: Final = 600.0
MAXLEN_MAX_RECORDS: Final = (1 << 63) - 1
REPLICAS_MAX_COUNT: Final = 64
DATABASES_MAX_COUNT: Final = 1 << 16
PORT: Final = 6379
PORT_MAX: Final = 65_535
_SUCH_AS = '"redis://db.example:6379/0"'
_SCHEMES = ("redis", "rediss", "unix")


@dataclass(frozen=True, slots=True)
class Options:
    """What a route of this sink is told.

    Attributes:
        where: host and port, or the path of a Unix socket, for messages.
        host, port: of a server reached by TCP.
        socket: the path of a Unix socket; empty for TCP.
        database: the number of the database.
        tls: whether the connection is encrypted, and the server's name verified.
        stream_key: the key of the stream.
        maxlen: older entries are trimmed beyond about so many; None for never.
        wait_aof: whether a batch waits for the server's disk, where the server can say so.
        wait_replicas: for so many replicas too.
    """

    where: str
    host: str
    port: int
    socket: str
    database: int
    tls: bool
    username: str | None
    password: Secret | None
    stream_key: str
    maxlen: int | None
    wait_aof: bool
    wait_replicas: int
    connect_timeout_s: float
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None


def read_options(route: str, stream: str, settings: Mapping[str, object]) -> Options:
    """Check the merged tables of sink and route.

    Raises:
        ConfigError: a setting is unknown, missing or wrong.
    """
    options = OptionReader(KIND, route, settings, KEYS)
    stream_key = options.text("stream_key", stream, such_as='"bookings"')
    if key_beside(stream_key) is None:
        wanted = "a name whose braces, if it has any, hold a hash tag: '{shop}bookings'"
        options.refuse("stream_key", wanted)
    return Options(
        **_place(options),
        password=options.secret("password"),
        stream_key=stream_key,
        maxlen=_maxlen(options),
        wait_aof=options.switch("wait_aof", default=True),
        wait_replicas=options.count("wait_replicas", 0, high=REPLICAS_MAX_COUNT),
        connect_timeout_s=options.duration_s(
            "connect_timeout", CONNECT_TIMEOUT, low_s=0.01, high_s=CONNECT_TIMEOUT_MAX_S
        ),
    )


def _maxlen(options: OptionReader) -> int | None:
    if "maxlen" not in options:
        return None
    return options.count("maxlen", 0, low=1, high=MAXLEN_MAX_RECORDS)


def _place(options: OptionReader) -> dict[str, Any]:
    """Read where the server is; nothing of a URL that may hold a password is shown."""
    parts = _split(options, options.text("url", such_as=_SUCH_AS))
    is_socket = parts.scheme == "unix"
    tls = parts.scheme == "rediss"
    files = {name: _file(options, name, tls=tls) for name in ("tls_ca", "tls_cert", "tls_key")}
    if files["tls_key"] is not None and files["tls_cert"] is None:
        options.contradict("tls_key without tls_cert", "name the certificate that the key is of")
    host, port = parts.hostname or "", parts.port or PORT
    username = options.text("username") if "username" in options else parts.username
    return {
        "where": unquote(parts.path) if is_socket else f"{host}:{port}",
        "host": host,
        "port": port,
        "socket": unquote(parts.path) if is_socket else "",
        "database": _database(options, parts),
        "tls": tls,
        "username": unquote(username) if username else None,
        **files,
    }


def _split(options: OptionReader, url: str) -> SplitResult:
    wanted = f"a URL such as {_SUCH_AS}, rediss:// for TLS, or unix:///run/redis.sock"
    try:
        parts = urlsplit(url)
        valid = parts.port is None or 0 < parts.port <= PORT_MAX
    except ValueError:
        options.contradict(f"the url is not {wanted}")
    if parts.password is not None:
        hint = 'password = { file = "..." }, { env = "..." } or { credential = "..." }'
        options.contradict("a password does not belong into a URL", hint)
    named = parts.path if parts.scheme == "unix" else parts.hostname
    if parts.scheme not in _SCHEMES or not named or not valid or parts.fragment:
        options.contradict(f"the url is not {wanted}")
    return parts


def _database(options: OptionReader, parts: SplitResult) -> int:
    """Read the database's number: of a path, or of ``?db=`` behind the path of a socket."""
    text = parts.path.strip("/")
    if parts.scheme == "unix":
        text = parts.query.removeprefix("db=")
    elif parts.query:
        text = "?"
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or int(text) >= DATABASES_MAX_COUNT:
        options.contradict("the url names no database", "redis://host:6379/0, unix:///path?db=0")
    return int(text)


def _file(options: OptionReader, name: str, *, tls: bool) -> str | None:
    if name not in options:
        return None
    if not tls:
        options.contradict(f"{name} without TLS", 'TLS is asked for by url = "rediss://..."')
    return options.text(name)
