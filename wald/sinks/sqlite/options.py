"""The settings of the SQLite sink, checked; names become quoted identifiers."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from wald.core.units import parse_duration_s
from wald.errors import ConfigError, UnknownSetting, WrongSetting

PROGRESS_TABLE = "wald_progress"
BUSY_TIMEOUT = "5s"
KEYS = ("path", "mode", "table", "columns", "busy_timeout")
BUSY_TIMEOUT_MAX_S = 600.0


@dataclass(frozen=True, slots=True)
class Options:
    """What a route of this sink is told. ``columns`` maps a column to the field it is filled by;
    empty: every column of the table by the field of its own name.
    """  # noqa: D205

    path: str
    table: str
    mode: Literal["document", "columns"] = "document"
    columns: Mapping[str, str] = field(default_factory=dict)
    busy_timeout_s: float = 5.0


def read_options(route: str, stream: str, settings: Mapping[str, object]) -> Options:
    """Check the merged tables of sink and route.

    Raises:
        ConfigError: a setting is unknown, missing or wrong.
    """
    _refuse_unknown(route, settings)
    mode = settings.get("mode", "document")
    if mode not in {"document", "columns"}:
        raise _wrong(route, "mode", mode, "'document' or 'columns'")
    return Options(
        path=_path(route, settings),
        table=_table(route, settings.get("table", stream)),
        mode=mode,
        columns=_columns(route, settings.get("columns", {}), str(mode)),
        busy_timeout_s=_duration_s(route, settings.get("busy_timeout", BUSY_TIMEOUT)),
    )


def quote(name: str) -> str:
    """Return a name as an identifier, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def _refuse_unknown(route: str, settings: Mapping[str, object]) -> None:
    for name in settings:
        if name not in KEYS:
            close = difflib.get_close_matches(name, KEYS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(KEYS)}"
            msg = f"route {route!r}: unknown setting {name!r} of a sqlite sink"
            raise UnknownSetting(msg, hint=hint)


def _path(route: str, settings: Mapping[str, object]) -> str:
    path = settings.get("path")
    if path is None:
        msg = f"route {route!r}: a sqlite sink needs a 'path'"
        raise ConfigError(msg, hint='path = "/var/lib/app/events.db"')
    if not isinstance(path, str) or not path or "\0" in path:
        raise _wrong(route, "path", path, "the path of a file")
    if path == ":memory:":
        raise _wrong(route, "path", path, "a file: a database in memory does not outlive us")
    return path


def _table(route: str, table: object) -> str:
    if not _is_name(table):
        raise _wrong(route, "table", table, "the name of a table")
    name = str(table)
    if name.lower() == PROGRESS_TABLE or name.lower().startswith("sqlite_"):
        raise _wrong(route, "table", table, "a name that is not reserved; say another 'table'")
    return name


def _columns(route: str, columns: object, mode: str) -> Mapping[str, str]:
    if not isinstance(columns, Mapping) or not all(
        _is_name(column) and isinstance(name, str) for column, name in columns.items()
    ):
        raise _wrong(route, "columns", columns, "a table of column = field")
    if columns and mode != "columns":
        msg = f"route {route!r}: columns are of mode 'columns', and the mode is 'document'"
        raise WrongSetting(msg, hint='set mode = "columns", or leave columns out')
    return dict(columns)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and bool(name) and "\0" not in name


def _duration_s(route: str, value: object) -> float:
    try:
        seconds = parse_duration_s(value) if isinstance(value, str) else BUSY_TIMEOUT_MAX_S + 1
    except ValueError:
        seconds = BUSY_TIMEOUT_MAX_S + 1
    if seconds > BUSY_TIMEOUT_MAX_S:
        raise _wrong(route, "busy_timeout", value, 'a duration up to "10min", such as "5s"')
    return seconds


def _wrong(route: str, name: str, value: object, wanted: str) -> WrongSetting:
    return WrongSetting(f"route {route!r}: {name} is {value!r}, not {wanted}")
