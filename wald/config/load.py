"""Settings from files and from ``--to``: reading, merging, secrets, and where each value stands."""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from wald import limits
from wald.config.parse import KeyPath, Where, parse
from wald.config.places import Places, data_dir_beside, data_dir_for
from wald.config.settings import RouteSettings, Settings, SinkSettings
from wald.config.targets import find_shared_table, target_digest
from wald.errors import ConfigError, WrongSetting
from wald.model import Secret

AUTO_SINK = "to"
# what the scheme of a URL says of a sink
URL_TYPES = {
    "http": "http",
    "https": "http",
    "postgres": "postgres",
    "postgresql": "postgres",
    "redis": "redis",
    "rediss": "redis",
}
_SECRET_HINTS = {  # by where a secret comes from
    "file": "write it there, readable for the daemon's user alone",
    "env": "set it where the daemon and this command are started",
    "credential": "the unit names it, LoadCredential=NAME:FILE; a command by hand finds it with"
    " CREDENTIALS_DIRECTORY",
}
_UNREAD = {  # what to do about a file that cannot be read, by whether this user may not
    False: "name it with --config or WALD_CONFIG, or do without a file: --to sqlite:events.db",
    True: "run the command as a user who may read it, root or the daemon's: sudo -u USER wald ...",
}
_HEADER = re.compile(r"\s*\[([^\[\]]+)\]\s*(?:#.*)?")
_KEY = re.compile(r"\s*([A-Za-z0-9_.\"'-]+)\s*=(.*)")


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and where each setting that somebody made comes from, by dotted name."""

    settings: Settings
    origins: Mapping[str, str] = field(default_factory=dict)

    def origin(self, name: str) -> str:
        """Return the file and line, option or variable that set it, or ``default``."""
        return self.origins.get(name, "default")

    def describe(self) -> list[tuple[str, str, str]]:
        """Return (setting, value, where it comes from) of the daemon's settings and tables."""
        settings = self.settings
        values: dict[str, object] = {
            "daemon.data_dir": settings.data_dir,
            "daemon.socket": settings.socket,
            "daemon.segment_bytes": settings.segment_bytes,
            "daemon.stop_deliver_for": settings.stop_deliver_for_s,
            "daemon.retain.after_delivery": settings.retain_after_delivery_s,
            "daemon.retain.max_bytes": settings.retain_after_delivery_bytes,
            "daemon.reserve": settings.reserve_bytes,
            "daemon.socket_mode": f"{settings.socket_mode:04o}",
        }
        for sink in settings.sinks.values():
            values[f"sinks.{sink.name}"] = sink.type
        for route in settings.routes.values():
            values[f"routes.{route.name}"] = f"{route.stream} -> {route.sink}"
        return [(name, str(value), self.origin(name)) for name, value in values.items()]

    def override(self, option: str, **fields: str | None) -> "Loaded":
        """Return the same with fields that a command's option set; None leaves one as it is."""
        made = {name: value for name, value in fields.items() if value is not None}
        origins = {**self.origins, **{f"daemon.{name}": option for name in made}}
        return Loaded(replace(self.settings, **cast("Any", made)), origins)


def load_file(path: str, places: Places, environment: Mapping[str, str]) -> Loaded:
    """Read a file and ``conf.d/*.toml`` beside it; tables merge by name, the later file wins.

    Raises:
        ConfigError: a file cannot be read, or is not what it should be.
    """
    main = Path(path)
    files = [main, *sorted((main.parent / "conf.d").glob("*.toml"))]
    return load_text([(str(file), _read(file)) for file in files], places, environment)


def load_text(
    texts: Iterable[tuple[str, str]], places: Places, environment: Mapping[str, str]
) -> Loaded:
    """Return the settings of named texts of TOML, merged; see ``load_file``."""
    merged: dict[str, object] = {}
    origins: dict[KeyPath, str] = {}
    for name, text in texts:
        document = _document(name, text)
        _merge(merged, document)
        for key_path in _paths(document):
            line = find_line(text, key_path)
            origins[key_path] = f"{name}:{line}" if line else name

    def where(key_path: KeyPath) -> str:
        while key_path and key_path not in origins:
            key_path = key_path[:-1]
        return origins.get(key_path, "settings")

    settings = parse(merged, places, where)
    sinks = {
        name: replace(sink, options=_resolved(sink, environment, where))
        for name, sink in settings.sinks.items()
    }
    settings = replace(
        settings,
        sinks=sinks,
        data_dir=str(Path(settings.data_dir).absolute()),
        socket=str(Path(settings.socket).absolute()),
    )
    _refuse_shared_table(settings, where)
    return Loaded(settings, {".".join(key_path): place for key_path, place in origins.items()})


def load_target(target: str, places: Places, data_dir: str | None) -> Loaded:
    """Return the settings of ``--to TYPE:TARGET``, or of a URL: every stream goes to that one sink.

    Raises:
        WrongSetting: not of that form.
    """
    kind, colon, rest = target.partition(":")
    if not colon or not kind or not rest:
        msg = f"--to {target!r}: expected TYPE:TARGET"
        raise WrongSetting(
            msg, hint="for example: --to sqlite:events.db, --to postgresql://me@db/app"
        )
    if kind in URL_TYPES and rest.startswith("//"):
        sink = SinkSettings(AUTO_SINK, URL_TYPES[kind], {"url": target})
        place = data_dir_for(target_digest(sink, RouteSettings("", "", AUTO_SINK)), places)
    else:
        path = str(Path(rest).absolute())
        sink, place = SinkSettings(AUTO_SINK, kind, {"path": path}), data_dir_beside(path)
    settings = Settings(
        data_dir=str(Path(data_dir).absolute()) if data_dir else place,
        socket=str(Path(places.socket).absolute()),
        sinks={AUTO_SINK: sink},
        auto_sink=AUTO_SINK,
    )
    return Loaded(settings, {f"sinks.{AUTO_SINK}": "--to", "daemon.data_dir": "--to"})


def _refuse_shared_table(settings: Settings, where: Where) -> None:
    shared = find_shared_table(settings.routes.values(), settings.sinks)
    if shared is not None:
        first, second = shared
        place = where(("routes", second.name))
        msg = (
            f"{place}: the routes {first.name!r} and {second.name!r} write the records of the "
            f"stream {second.stream!r} to the same table"
        )
        raise ConfigError(msg, hint=f"give [routes.{second.name}] another 'table', or remove it")


def find_line(text: str, key_path: KeyPath) -> int | None:
    """Return the line of a key in a TOML text, counted from 1; None where it cannot be told.

    ``tomllib`` keeps no positions; this knows table headers, dotted keys and inline tables, which
    is how such files are written.
    """
    table: KeyPath = ()
    for number, line in enumerate(text.splitlines(), start=1):
        header = _HEADER.fullmatch(line)
        if header:
            table = _parts(header[1])
            if table == key_path:
                return number
            continue
        pair = _KEY.fullmatch(line)
        if pair is None:
            continue
        here = (*table, *_parts(pair[1]))
        inline = here == key_path[: len(here)] and len(here) == len(key_path) - 1
        if here == key_path or (inline and _names_key(pair[2], key_path[-1])):
            return number
    return None


def _names_key(text: str, key: str) -> bool:
    return re.search(rf"(?:^|[{{,\s])[\"']?{re.escape(key)}[\"']?\s*=", text) is not None


def _parts(dotted: str) -> KeyPath:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _document(name: str, text: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        msg = f"{name}: not TOML: {error}"
        raise ConfigError(msg) from error


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except OSError as error:
        msg = f"{file}: cannot be read: {error.strerror}"
        raise ConfigError(msg, hint=_UNREAD[isinstance(error, PermissionError)]) from error
    except UnicodeDecodeError as error:
        msg = f"{file}: not UTF-8 text"
        raise ConfigError(msg) from error


def _merge(into: dict[str, object], document: Mapping[str, object]) -> None:
    for key, value in document.items():
        present = into.get(key)
        if isinstance(present, dict) and isinstance(value, Mapping):
            _merge(present, value)
        else:
            into[key] = value


def _paths(document: Mapping[str, object], prefix: KeyPath = ()) -> Iterable[KeyPath]:
    for key, value in document.items():
        yield (*prefix, key)
        if isinstance(value, Mapping):
            yield from _paths(value, (*prefix, key))


def _resolved(
    sink: SinkSettings, environment: Mapping[str, str], where: Where
) -> Mapping[str, object]:
    """Replace ``{ file = ... }``, ``{ env = ... }`` and ``{ credential = ... }`` by the secret."""
    options = dict(sink.options)
    for key, value in options.items():
        if isinstance(value, Mapping) and len(value) == 1 and set(value) < set(_SECRET_HINTS):
            ((source, reference),) = value.items()
            try:
                options[key] = _secret(source, str(reference), environment)
            except (OSError, UnicodeDecodeError, KeyError) as error:
                place = where(("sinks", sink.name, key))
                said = f"no secret in {source} {reference!r}: {_why_no_secret(error)}"
                msg = f"{place}: sinks.{sink.name}: {said}"
                raise ConfigError(msg, hint=_SECRET_HINTS[source]) from error
    return options


def _why_no_secret(error: OSError | UnicodeDecodeError | KeyError) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, UnicodeDecodeError):
        return "it is no text"
    return f"{error.args[0]} is not set"


def _secret(source: str, reference: str, environment: Mapping[str, str]) -> Secret:
    if source == "env":
        return Secret(environment[reference])
    if source == "credential":
        reference = os.path.join(environment["CREDENTIALS_DIRECTORY"], reference)  # noqa: PTH118
    with Path(reference).open("rb") as file:
        return Secret(file.read(limits.SECRET_MAX_BYTES).decode().rstrip("\r\n"), reference)
