"""From the tables of a TOML document to ``Settings``: pure, no file is touched.

Every error names the place (file and line where it can be found), the table and the key.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, cast

from wald import limits
from wald.config import schema
from wald.config.places import Places
from wald.config.schema import Setting
from wald.config.settings import (
    ROUTE_TABLES,
    AccessSettings,
    ClientLimits,
    DedupSettings,
    RouteSettings,
    Settings,
    SinkSettings,
    StreamAccess,
    StreamSettings,
    WorkerSettings,
)
from wald.errors import ConfigError, UnknownSetting, WrongSetting

KeyPath: TypeAlias = tuple[str, ...]
Where: TypeAlias = Callable[[KeyPath], str]

_TABLES = ("daemon", "access", "trace", "streams", "sinks", "routes")


def parse(document: Mapping[str, object], places: Places, where: Where) -> Settings:
    """Return the settings of a document.

    Args:
        document: what ``tomllib`` made of the file, or of several merged.
        places: the data directory and socket where the document names none.
        where: says in which file and line a key stands.

    Raises:
        UnknownSetting: a key that no setting has.
        WrongSetting: a value of a wrong type or outside its range.
        ConfigError: settings that contradict each other.
    """
    reader = _Reader(where)
    reader.no_others((), document, _TABLES, {})
    daemon = reader.table((), document, "daemon")
    nested = {"retain": schema.RETAIN, "repack": schema.REPACK, "clients": schema.CLIENTS}
    reader.no_others(("daemon",), daemon, [*schema.DAEMON, *nested], nested)
    trace = reader.table((), document, "trace")
    reader.no_others(("trace",), trace, schema.TRACE, {})
    fields: dict[str, Any] = places._asdict()
    fields |= reader.fields(("daemon",), daemon, schema.DAEMON)
    inner = {key: reader.inner(("daemon",), daemon, key, known) for key, known in nested.items()}
    fields |= {**inner["retain"], **inner["repack"], "clients": ClientLimits(**inner["clients"])}
    fields |= reader.fields(("trace",), trace, schema.TRACE)
    if "access" in document:
        fields["access"] = reader.access(reader.table((), document, "access"))
    streams = {name: reader.stream(name, each) for name, each in reader.named(document, "streams")}
    sinks = {name: reader.sink(name, table) for name, table in reader.named(document, "sinks")}
    routes = {name: reader.route(name, table) for name, table in reader.named(document, "routes")}
    for route in routes.values():
        reader.known_sink(route, sinks)
    reader.known_streams(streams, routes)
    return Settings(streams=streams, sinks=sinks, routes=routes, **fields)


class _Reader:
    """Reads tables; knows where keys stand, for the messages."""

    def __init__(self, where: Where) -> None:
        self._where = where

    def table(self, path: KeyPath, parent: Mapping[str, object], key: str) -> Mapping[str, object]:
        """Return a table, empty if it is absent."""
        value = parent.get(key, {})
        if not isinstance(value, Mapping):
            msg = f"{self._at((*path, key))}: {key!r} must be a table"
            raise WrongSetting(msg, hint=f"write [{'.'.join((*path, key))}]")
        return cast("Mapping[str, object]", value)

    def named(
        self, document: Mapping[str, object], kind: str
    ) -> Iterable[tuple[str, Mapping[str, object]]]:
        """Yield the tables ``[kind.NAME]``."""
        tables = self.table((), document, kind)
        if len(tables) > limits.ROUTES_MAX:
            msg = f"{len(tables):,} {kind}; at most {limits.ROUTES_MAX:,}"
            raise ConfigError(msg)
        for name in tables:
            self._named((kind, name), name)
            yield name, self.table((kind,), tables, name)

    def _named(self, path: KeyPath, name: str) -> None:
        try:
            schema.name(name)
        except ValueError as error:
            msg = f"{self._at(path)}: {error}"
            raise WrongSetting(msg) from error

    def fields(
        self, path: KeyPath, table: Mapping[str, object], settings: Mapping[str, Setting]
    ) -> dict[str, Any]:
        """Return the fields of those settings that the table has."""
        found = {}
        for key, setting in settings.items():
            if key in table:
                try:
                    found[setting.field] = setting.read(table[key])
                except ValueError as error:
                    msg = f"{self._at((*path, key))}.{key}: {error}"
                    raise WrongSetting(msg, hint=f"{key}: {setting.meaning}") from error
        return found

    def no_others(
        self,
        path: KeyPath,
        table: Mapping[str, object],
        known: Iterable[str],
        nested: Mapping[str, Iterable[str]],
    ) -> None:
        """Refuse keys that are not known; names in nested tables are suggested too."""
        allowed = set(known)
        for key in table:
            if key not in allowed:
                raise self._unknown((*path, key), [*allowed, *_dotted(nested)])

    def inner(
        self, outer: KeyPath, table: Mapping[str, object], key: str, known: Mapping[str, Setting]
    ) -> dict[str, Any]:
        """Return the fields of a table within a table that has no others."""
        path = (*outer, key)
        said = self.table(outer, table, key)
        self.no_others(path, said, known, {})
        return self.fields(path, said, known)

    def access(self, table: Mapping[str, object]) -> AccessSettings:
        """Return the table ``[access]``."""
        self.no_others(("access",), table, [*schema.ACCESS, "streams"], {})
        streams = self.table(("access",), table, "streams")
        for name in streams:
            self._named(("access", "streams", name), name)
        known = schema.STREAM_ACCESS
        own = {
            name: StreamAccess(**self.inner(("access", "streams"), streams, name, known))
            for name in streams
        }
        return AccessSettings(**self.fields(("access",), table, schema.ACCESS), streams=own)

    def stream(self, name: str, table: Mapping[str, object]) -> StreamSettings:
        """Return a table ``[streams.NAME]``."""
        path = ("streams", name)
        known = [*schema.STREAM, "dedup"]
        self.no_others(path, table, known, {"dedup": schema.STREAM_DEDUP})
        dedup = DedupSettings(**self.inner(path, table, "dedup", schema.STREAM_DEDUP))
        fields = self.fields(path, table, schema.STREAM)
        return StreamSettings(name, **fields, dedup=dedup)

    def known_streams(
        self, streams: Mapping[str, StreamSettings], routes: Mapping[str, RouteSettings]
    ) -> None:
        """Refuse settings of a stream that no route takes: a slip in its name."""
        taken = {route.stream: route.stream for route in routes.values()}
        for name in streams:
            if name not in taken:
                msg = f"{self._at(('streams', name))}: no route takes the stream {name!r}"
                hint = _suggestion(name, taken) or f'add a route with stream = "{name}"'
                raise ConfigError(msg, hint=hint)

    def sink(self, name: str, table: Mapping[str, object]) -> SinkSettings:
        """Return a table ``[sinks.NAME]``."""
        kind = table.get("type")
        if not isinstance(kind, str) or not kind:
            msg = f"{self._at(('sinks', name))}: a sink needs a type"
            raise WrongSetting(msg, hint='for example: type = "sqlite"')
        path = ("sinks", name)
        for key in table.keys() & {*schema.ROUTE, *schema.ROUTE_TABLES}:
            raise self._misplaced((*path, key), "a route: [routes.NAME]")
        cost = self.table(path, table, "cost")
        self.no_others((*path, "cost"), cost, schema.COST, {})
        prices = self.fields((*path, "cost"), cost, schema.COST)
        options = {key: table[key] for key in table if key not in {"type", "cost"}}
        return SinkSettings(name, kind, options, **prices)

    def route(self, name: str, table: Mapping[str, object]) -> RouteSettings:
        """Return a table ``[routes.NAME]``; keys that are not ours are the sink's to check."""
        path = ("routes", name)
        nested = {}
        for key, known in schema.ROUTE_TABLES.items():
            inner = self.table(path, table, key)
            self.no_others((*path, key), inner, known, {})
            nested[key] = ROUTE_TABLES[key](**self.fields((*path, key), inner, known))
        self._workers_fit(path, nested["workers"])
        options = {
            key: table[key] for key in table if key not in schema.ROUTE and key not in nested
        }
        ours = {**{key: key for key in schema.ROUTE}, **_dotted(schema.ROUTE_TABLES)}
        for key in options.keys() & {"cost", "type"}:
            raise self._misplaced((*path, key), f"the sink: [sinks.{table.get('sink', 'NAME')}]")
        for key in options:
            # a slip in a name of ours would otherwise be blamed on the sink
            if difflib.get_close_matches(key, ours, n=1, cutoff=0.8):
                raise self._unknown((*path, key), ours)
        fields = self.fields(path, table, schema.ROUTE)
        for key in ("stream", "sink"):
            if key not in fields:
                msg = f"{self._at(path)}: a route needs a {key}"
                raise WrongSetting(msg, hint=f"{key}: {schema.ROUTE[key].meaning}")
        return RouteSettings(name=name, options=options, **nested, **fields)

    def known_sink(self, route: RouteSettings, sinks: Mapping[str, SinkSettings]) -> None:
        """Refuse a route to a sink that no table describes."""
        if route.sink not in sinks:
            msg = f"{self._at(('routes', route.name, 'sink'))}: there is no sink {route.sink!r}"
            raise ConfigError(msg, hint=_suggestion(route.sink, sinks) or "add [sinks.NAME]")
        fallback = route.fallback
        if fallback is None:
            return
        place = self._at(("routes", route.name, "fallback"))
        if fallback == route.sink:
            msg = f"{place}: the fallback {fallback!r} is the sink of the route itself"
            raise ConfigError(msg, hint="name another one of [sinks], or leave fallback out")
        if fallback not in sinks:
            msg = f"{place}: there is no sink {fallback!r} to fall back to"
            raise ConfigError(msg, hint=_suggestion(fallback, sinks) or f"add [sinks.{fallback}]")

    def _workers_fit(self, path: KeyPath, workers: WorkerSettings) -> None:
        """Refuse bounds that exclude each other; a ``max`` of 0 is all lanes."""
        if workers.max and workers.min > workers.max:
            place = self._at((*path, "workers", "min"))
            msg = f"{place}.min: {workers.min} is more than max, {workers.max}"
            raise WrongSetting(msg, hint="so many lanes are always at work, and at most max")

    def _misplaced(self, path: KeyPath, where: str) -> UnknownSetting:
        msg = f"{self._at(path)}: {path[-1]!r} is a setting of {where}"
        return UnknownSetting(msg, hint="put it there", key=".".join(path))

    def _unknown(self, path: KeyPath, known: Iterable[str] | Mapping[str, str]) -> UnknownSetting:
        names = known if isinstance(known, Mapping) else {k.rpartition(".")[2]: k for k in known}
        msg = f"{self._at(path)}: unknown key {path[-1]!r}"
        hint = _suggestion(path[-1], names) or f"known here: {', '.join(sorted(names.values()))}"
        return UnknownSetting(msg, hint=hint, key=".".join(path))

    def _at(self, path: KeyPath) -> str:
        place, table = self._where(path), ".".join(path[:-1])
        return f"{place}: {table}" if table else place


def _dotted(nested: Mapping[str, Iterable[str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for table, keys in nested.items():
        for key in keys:
            found.setdefault(key, f"{table}.{key}")
    return found


def _suggestion(wrong: str, known: Mapping[str, object] | Iterable[str]) -> str:
    names = known if isinstance(known, Mapping) else {key: key for key in known}
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.6)
    if not close:
        return ""
    found = names[close[0]]
    return f"did you mean {found if isinstance(found, str) else close[0]}?"
