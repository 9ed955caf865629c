"""The composition root: settings become a supervisor, an ingest or a drain process.

Nothing else names concrete sinks. Each process imports only what it runs, so that a supervisor
stays small and a driver is loaded where it is used. ``python -m wald.app ingest|drain`` is how the
supervisor starts its children.
"""

import gc
import json
import logging
import os
import random
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO, cast

from wald.clock import SystemClock
from wald.config import RouteSettings, Settings, SinkSettings
from wald.config.people import access_of, opens, socket_manner
from wald.core import guarantees
from wald.errors import (
    ConfigError,
    DataDirectoryUnusable,
    WaldError,
    WrongSetting,
)
from wald.model import Finding, Severity
from wald.ports import Sink, SinkFactory
from wald.system import (
    PosixFileSystem,
    caller_of,
    end_with_parent,
    listen_fds,
    own_uid,
    sd_notify,
)

SINKS: Mapping[str, str] = {
    "dynamodb": "wald.sinks.dynamodb",
    "files": "wald.sinks.files",
    "http": "wald.sinks.http",
    "null": "wald.sinks.null",
    "postgres": "wald.sinks.postgres",
    "redis": "wald.sinks.redis",
    "sqlite": "wald.sinks.sqlite",
}
ENTRY_POINT_GROUP = "wald.sinks"
_PIPE_READ_BYTES = 65_536
_LINE_MAX_BYTES = 16 << 20
_CALM = (100_000, 50, 100)
_log = logging.getLogger("wald")


# --- sinks --------------------------------------------------------------------------------------


def sink_factory(sink: SinkSettings) -> SinkFactory:
    """Return the factory of a sink's type: one of ours, or an entry point of ``wald.sinks``.

    Raises:
        ConfigError: there is no such type, or its module cannot be imported.
    """
    kind = sink.type
    try:
        if kind in SINKS:
            return cast("SinkFactory", import_module(SINKS[kind]).make)
        from importlib.metadata import entry_points  # costs as much as half of an interpreter

        for found in entry_points(group=ENTRY_POINT_GROUP, name=kind):
            return cast("SinkFactory", found.load())
    except ImportError as error:
        msg = f"sink {sink.name!r}: its type {kind!r} cannot be loaded: {error}"
        raise ConfigError(msg, hint=f"pip install 'wald[{kind}]'") from error
    others = sorted({*SINKS, *entry_points(group=ENTRY_POINT_GROUP).names})
    msg = f"sink {sink.name!r}: there is no type {kind!r}"
    raise WrongSetting(msg, hint=f"known types: {', '.join(others)}")


def make_sink(route: RouteSettings, sink: SinkSettings) -> Sink:
    """Make the sink of a route from the merged tables of sink and route.

    Raises:
        ConfigError: a setting is unknown, missing or wrong.
    """
    options = {**sink.options, **route.options}
    return sink_factory(sink)(route.name, route.stream, options)


def check_sinks(settings: Settings) -> None:
    """Let every route's factory check its settings; nothing is connected.

    Raises:
        ConfigError: of the first route with a mistake, or that asks for more than its sink gives.
    """
    routes = settings.routes_to_check()
    routes += [fallen_back(route) for route in routes if route.fallback is not None]
    for route in routes:
        with closing(make_sink(route, settings.sinks[route.sink])) as sink:
            errors = [each for each in promised(route, sink) if each.severity is Severity.ERROR]
        for found in errors:
            msg = f"route {route.name!r}: {found.message}"
            raise WrongSetting(msg, hint=found.hint)


def fallen_back(route: RouteSettings) -> RouteSettings:
    """Return a route as it is while its fallback takes its records."""
    assert route.fallback is not None
    return replace(route, sink=route.fallback, options={})


def promised(route: RouteSettings, sink: Sink) -> Sequence[Finding]:
    """Return what is wrong or doubtful about the guarantee that a route asks of its sink."""
    able, encodes = sink.capabilities, bool(getattr(sink, "encoder", ""))
    timeout_s = route.attempt_timeout_s
    wish = guarantees.Wish(able, encodes, route.guarantee, route.on_unknown, timeout_s)
    return guarantees.findings(wish)


# --- the supervisor -----------------------------------------------------------------------------


def serve(settings: Settings, on_ready: Callable[[], None] = lambda: None) -> None:
    """Run the supervisor until a signal ends it; returns after a clean stop.

    Raises:
        WaldError: it cannot start, or a child says that it never will.
    """
    from wald.supervisor.claim import Manner
    from wald.supervisor.process import Surroundings, run

    check_sinks(settings)  # before the log learns of routes that cannot be
    access = access_of(settings, own_uid())
    automatic = settings.sinks.get(settings.auto_sink or "")
    if automatic is not None and "path" in automatic.options:
        # beside the target, whose directory nobody makes
        _require_directory(Path(settings.data_dir).parent)
    passed = tuple(listen_fds(os.environ))
    around = Surroundings(
        fs=PosixFileSystem(),
        clock=SystemClock(),
        chance=random.SystemRandom(),
        environment=dict(os.environ),
        notify=lambda *lines: sd_notify(os.environ, *lines),
        passed_fds=passed,
        on_ready=on_ready,
        manner=Manner(*socket_manner(settings)),
        access=access,
        who=caller_of,
    )
    if access is not None and access.admits_others and not passed and not opens(settings):
        _log.warning("[access] names others, and daemon.socket_mode lets none of them connect")
    run(settings, around)


def _require_directory(path: Path) -> None:
    if not path.is_dir():
        msg = f"{path}: no such directory"
        raise DataDirectoryUnusable(msg, hint="make it, or correct the path of the target")


# --- the children -------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """Run a child process; its settings come as a line on standard input."""
    gc.set_threshold(*_CALM)  # before the modules that it needs, a tenth of the time of a start
    answers = _private_stdout()
    configure_logging()
    end_with_parent(signal.SIGTERM)  # beside the pipe: for a parent that is killed
    role = arguments[0] if len(arguments) == 1 else ""
    roles: dict[str, Callable[[Settings, Mapping[str, Any], TextIO], int]] = {
        "ingest": _ingest,
        "drain": _drain,
        "sink": _sink,
    }
    if role not in roles:
        sys.stderr.write(
            "usage: python -m wald.app ingest|drain|sink   (started by 'wald serve')\n"
        )
        return 2
    try:
        said = _read_line(sys.stdin.fileno())
        return roles[role](Settings.from_json(said["settings"]), said, answers)
    except PermissionError as error:
        msg = f"{error.filename}: {error.strerror}"
        hint = "the user of wald must own the data directory and what is in it"
        return _report(answers, DataDirectoryUnusable(msg, hint=hint))
    except WaldError as error:
        return _report(answers, error)


def _report(answers: TextIO, error: WaldError) -> int:
    """Tell the supervisor, which logs it, why this process ends; return the exit code."""
    said = {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }
    _say(answers, {"error": said})
    return error.exit_code


def _ingest(settings: Settings, said: Mapping[str, Any], answers: TextIO) -> int:
    from wald.ingest.server import run

    calm_garbage_collector()
    with socket.socket(fileno=int(said["listen_fd"])) as listening:
        return run(
            settings,
            listening=listening,
            stop_fd=sys.stdin.fileno(),
            fs=PosixFileSystem(),
            clock=SystemClock(),
            chance=random.SystemRandom(),
            ready=lambda facts: _say(answers, {"ready": True, **facts}),
            access=access_of(settings, own_uid()),
            who=caller_of,
        )


def _drain(settings: Settings, _: Mapping[str, Any], answers: TextIO) -> int:
    from wald.drainer.process import run
    from wald.drainer.watchdog import watch_process

    calm_garbage_collector()
    parent = os.getppid()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(
        target=_watch_lifeline, args=(sys.stdin.fileno(), stop), name="lifeline", daemon=True
    ).start()
    clock = SystemClock()
    return run(
        settings,
        make_sink=make_sink,
        fs=PosixFileSystem(),
        clock=clock,
        chance=random.SystemRandom(),
        ready=lambda facts: _say(answers, {"ready": True, **facts}),
        stop=stop,
        # its successor waits for the locks
        hurried=lambda: os.getppid() != parent,
        watch=watch_process(clock),
    )


def _sink(settings: Settings, said: Mapping[str, Any], _: TextIO) -> int:
    from wald.drainer.guarded import serve_sink

    (route,) = settings.routes.values()
    sink = make_sink(route, settings.sinks[route.sink])
    return serve_sink(int(said["sink_fd"]), sink)


def _watch_lifeline(fd: int, stop: threading.Event) -> None:
    """Wait for the end of the pipe: the supervisor is gone."""
    while os.read(fd, _PIPE_READ_BYTES):
        pass
    stop.set()


def _read_line(fd: int) -> Mapping[str, Any]:
    """Read the one line that the supervisor writes, and not a byte of what it never will."""
    parts: list[bytes] = []
    size = 0
    while not parts or not parts[-1].endswith(b"\n"):
        part = os.read(fd, _PIPE_READ_BYTES)
        size += len(part)
        if not part or size > _LINE_MAX_BYTES:
            msg = "no settings on standard input"
            raise ConfigError(msg, hint="this process is started by 'wald serve'")
        parts.append(part)
    return cast("Mapping[str, Any]", json.loads(b"".join(parts)))


def _private_stdout() -> TextIO:
    """Keep the pipe to the supervisor for ourselves: what others print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _say(answers: TextIO, statement: Mapping[str, object]) -> None:
    answers.write(json.dumps(statement, separators=(",", ":"), default=str) + "\n")
    answers.flush()


def calm_garbage_collector() -> None:
    """Let the collector look at much garbage at once, and never at what was imported.

    A batch is thousands of tuples and maps that live for milliseconds and hold no cycles; at the
    default thresholds they are walked several times each, a fifth of the time of a drain.
    """
    gc.freeze()
    gc.set_threshold(*_CALM)


def configure_logging(level: int = logging.INFO) -> None:
    """Log to standard error; the journal adds the time itself."""
    stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    logging.basicConfig(level=level, format=f"{stamp}%(levelname)s %(name)s: %(message)s")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
