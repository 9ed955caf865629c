"""The settings of the SQLite sink, checked; names become quoted identifiers."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from wald.errors import ConfigError, UnknownSetting, WrongSetting

PROGRESS_TABLE = "wald_progress"
BUSY_TIMEOUT_S = 5.0
_KEYS = ("path", "mode", "table", "columns", "busy_timeout")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0}
_BUSY_TIMEOUT_MAX_S = 600.0


@dataclass(frozen=True, slots=True)
class Options:
    """What a route of this sink is told. ``columns`` maps a column to the field it is filled by;
    empty: every column of the table by the field of its own name.
    """  # noqa: D205

    path: str
    table: str
    mode: Literal["document", "columns"] = "document"
    columns: Mapping[str, str] = field(default_factory=dict)
    busy_timeout_s: float = BUSY_TIMEOUT_S


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
        busy_timeout_s=_duration_s(route, settings.get("busy_timeout", BUSY_TIMEOUT_S)),
    )


def quote(name: str) -> str:
    """Return a name as an identifier, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def _refuse_unknown(route: str, settings: Mapping[str, object]) -> None:
    for name in settings:
        if name not in _KEYS:
            close = difflib.get_close_matches(name, _KEYS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(_KEYS)}"
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
        raise _wrong(route, "columns", columns, "left out in mode 'document'")
    return dict(columns)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and bool(name) and "\0" not in name


def _duration_s(route: str, value: object) -> float:
    seconds = -1.0
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and (found := _DURATION.fullmatch(value.strip())):
        seconds = float(found[1]) * _SECONDS[found[2]]
    if not 0 <= seconds <= _BUSY_TIMEOUT_MAX_S:
        raise _wrong(route, "busy_timeout", value, "a duration up to 10 minutes, as '5s'")
    return seconds


def _wrong(route: str, name: str, value: object, wanted: str) -> WrongSetting:
    return WrongSetting(f"route {route!r}: {name} is {value!r}, not {wanted}")
