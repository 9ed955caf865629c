"""What tells one target from another: the same file under two spellings is one target."""

import hashlib
import json
import os.path
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl, urlencode, urlsplit

from wald.config.settings import RouteSettings, SinkSettings

# what names a target, whichever sink: a change makes it another one, and so another route
_TARGET_KEYS = frozenset(
    {
        "brokers", "bucket", "database", "dbname", "endpoint", "endpoint_url", "host", "hosts",
        "path", "port", "project", "region", "schema", "servers", "socket", "stream_key", "table",
        "topic", "url",
    }
)  # fmt: skip
_OF_TABLES = frozenset({"postgres", "sqlite"})
_OF_LOGINS = frozenset({"postgres", "redis"})  # a URL that may hold who logs in
_DATABASE_KEYS = frozenset({"host", "hostaddr", "port", "dbname", "db"})  # in the query of a URL


def target_digest(sink: SinkSettings, route: RouteSettings) -> str:
    """Return what tells one target from another: of the type and of what names the target."""
    named = {"table": route.stream, **sink.options, **route.options}
    identity = {key: str(named[key]) for key in sorted(_TARGET_KEYS & named.keys())}
    if "path" in identity:
        identity["path"] = os.path.realpath(identity["path"])
    if sink.type in _OF_LOGINS and "url" in identity:
        identity["url"] = _database(identity["url"])
    text = json.dumps([sink.type, identity], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _database(url: str) -> str:
    """Return which database a URL leads to, whoever logs in, and however."""
    try:
        parts = urlsplit(url)
    except ValueError:  # it is refused by the sink
        return url
    named = [(key, value) for key, value in parse_qsl(parts.query) if key in _DATABASE_KEYS]
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}?{urlencode(sorted(named))}"


def automatic_digest(sink: SinkSettings) -> str:
    """Return the digest of a route made by ``--to``: its data directory belongs to the target."""
    return hashlib.sha256(f"automatic {sink.type}".encode()).hexdigest()


def find_shared_table(
    routes: Iterable[RouteSettings], sinks: Mapping[str, SinkSettings]
) -> tuple[RouteSettings, RouteSettings] | None:
    """Return two routes that write one stream's records to one table, if there are any."""
    seen: dict[tuple[str, str], RouteSettings] = {}
    for route in routes:
        sink = sinks[route.sink]
        if sink.type in _OF_TABLES:
            before = seen.setdefault((route.stream, target_digest(sink, route)), route)
            if before is not route:
                return before, route
    return None
