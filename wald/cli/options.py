"""Options that commands share, and how they become settings."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from wald.config import EACH_STREAM, Loaded, default_places, load_file, load_target
from wald.config.places import ROOT_CONFIG
from wald.core.units import parse_duration_s, parse_size_bytes
from wald.errors import ConfigError, WaldError, reported

_OF_TO = re.compile(rf"^(?:route '{EACH_STREAM}'|sink '[^']*'): ")
_Command = TypeVar("_Command", bound=Callable[..., Any])

config_option = click.option(
    "--config",
    "config",
    metavar="FILE",
    envvar="WALD_CONFIG",
    help="Configuration file (TOML); conf.d/*.toml beside it is merged. [env: WALD_CONFIG]",
)
to_option = click.option(
    "--to",
    "target",
    metavar="TYPE:TARGET",
    help="Deliver every stream there, without any file: sqlite:events.db, postgresql://me@db/app",
)
data_dir_option = click.option(
    "--data-dir",
    metavar="DIR",
    help="Data directory; overrides the file. With --to: FILE.wald beside it, or the URL's own.",
)
socket_option = click.option(
    "--socket",
    metavar="PATH",
    envvar="WALD_SOCKET",
    help="Socket of the daemon. [env: WALD_SOCKET]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


def settings_options(command: _Command) -> _Command:
    """Add the options that say which daemon is meant."""
    for option in (socket_option, data_dir_option, to_option, config_option):
        command = option(command)
    return command


def socket_path(given: str | None) -> str:
    """Return the data socket of a command that talks to a running daemon."""
    return given or default_places(os.environ, os.getuid()).socket


def load_settings(
    config: str | None, target: str | None, data_dir: str | None, socket: str | None
) -> Loaded:
    """Return the settings that the options ask for.

    Raises:
        ConfigError: neither file nor target is named, or something in them is wrong.
    """
    places = default_places(os.environ, os.getuid())
    if target is not None:
        if config is not None and not _from_environment("config"):
            msg = "--config and --to exclude each other"
            raise ConfigError(msg)
        loaded = load_target(target, places, data_dir)
    else:
        file = config or (ROOT_CONFIG if Path(ROOT_CONFIG).exists() else None)
        if file is None:
            msg = "nothing says where records go"
            hint = "name a target, --to sqlite:events.db, or a file, --config wald.toml"
            raise ConfigError(msg, hint=hint)
        loaded = load_file(file, places, os.environ)
        loaded = loaded.override("--data-dir", data_dir=_absolute(data_dir))
    return loaded.override("--socket", socket=_absolute(socket))


def placed(error: WaldError, loaded: Loaded) -> WaldError:
    """Return an error of a sink's factory with the place of the setting that it speaks of."""
    settings, message = loaded.settings, error.message
    if settings.auto_sink is not None and error.code.startswith(ConfigError.code):
        place, message = "--to", _OF_TO.sub("", message)
    else:
        place = next(filter(None, map(loaded.origins.get, _spoken_of(error, loaded))), "")
    if not place:
        return error
    return reported({"code": error.code, "message": f"{place}: {message}", "hint": error.hint})


def _spoken_of(error: WaldError, loaded: Loaded) -> Iterator[str]:
    """Yield what an error of a factory may speak of, named as in the file; the best first."""
    settings = loaded.settings
    route = settings.routes.get(str(error.facts.get("route", "")))
    named = str(error.facts.get("setting", "")).split(".")
    if route is not None and named[0]:
        of_route = named[0] in route.options
        table = f"routes.{route.name}" if of_route else f"sinks.{route.sink}"
        yield from (".".join((table, *named[:count])) for count in range(len(named), -1, -1))
    for kind, table, names in (
        ("route", "routes", settings.routes),
        ("sink", "sinks", settings.sinks),
    ):
        yield from (
            f"{table}.{name}" for name in names if error.message.startswith(f"{kind} {name!r}")
        )


def _absolute(path: str | None) -> str | None:
    return str(Path(path).absolute()) if path else None


def _from_environment(parameter: str) -> bool:
    context = click.get_current_context()
    return context.get_parameter_source(parameter) is click.core.ParameterSource.ENVIRONMENT


class Duration(click.ParamType[float]):
    """A duration with a unit, as in the configuration file."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return seconds."""
        if isinstance(value, float):
            return value
        try:
            return parse_duration_s(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Size(click.ParamType[int]):
    """A number of bytes with a unit, as in the configuration file; at least one."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return bytes."""
        if isinstance(value, int):
            return value
        try:
            return max(1, parse_size_bytes(str(value)))
        except ValueError as error:
            self.fail(str(error), param, ctx)
