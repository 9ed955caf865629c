"""``wald run``: a daemon for the life of one command."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

from wald.cli.ask import Control
from wald.cli.daemon import OwnDaemon
from wald.cli.options import Duration, config_option, data_dir_option, load_settings, to_option
from wald.cli.output import books, say
from wald.cli.status import say_alarms, wait_for_routes
from wald.errors import (
    EXIT_INTERRUPTED,
    EXIT_TIMEOUT,
    InputError,
    Undeliverable,
    WaitTimeout,
    WaldError,
)
from wald.ports import Clock


@click.command(context_settings={"ignore_unknown_options": True})
@config_option
@to_option
@data_dir_option
@click.option(
    "--deliver-for",
    "deliver_for_s",
    type=Duration(),
    default="60s",
    show_default=True,
    help="How long to go on delivering after the command ended.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    config: str | None,
    target: str | None,
    data_dir: str | None,
    deliver_for_s: float,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND with a daemon of its own, then deliver and print the books.

    COMMAND finds the daemon by WALD_SOCKET. The exit code is the command's; 75 if it succeeded
    and something could not be delivered in time: that stays in the data directory and is
    delivered by the next run.
    """
    from wald.system import SystemClock

    if shutil.which(command[0]) is None:
        msg = f"cannot run {command[0]!r}: there is no such command"
        raise InputError(msg)
    clock = SystemClock()
    with _socket_directory() as directory:
        socket = f"{directory}/wald.sock"
        settings = load_settings(config, target, data_dir, socket).settings
        names = {settings.auto_sink: target} if settings.auto_sink else {}
        where = {"--to": target, "--config": None if target else config}
        arguments = [word for option, said in where.items() if said for word in (option, said)]
        arguments += ["--data-dir", settings.data_dir]
        with OwnDaemon(arguments, socket, Path(directory, "serve.log"), clock) as daemon:
            code = _run_command(command, socket)
            status, undelivered = _deliver(daemon, deliver_for_s, clock)
    for name, route in sorted(status["routes"].items()):
        to = names.get(route["sink"], route["sink"])
        say(f"wald: {books(route['stream'] if name == route['stream'] else name, to, route)}")
    say_alarms(status)
    if undelivered is not None:
        why = f" ({undelivered.hint})" if undelivered.hint else ""
        say(f"wald: {undelivered.message}{why}; kept in {settings.data_dir}")
        say("wald: the next run delivers it; so does 'wald replay' with the same options")
        return code or (EXIT_INTERRUPTED if isinstance(undelivered, _Interrupted) else EXIT_TIMEOUT)
    return code


def _deliver(
    daemon: OwnDaemon, deliver_for_s: float, clock: Clock
) -> tuple[Mapping[str, Any], WaldError | None]:
    """Wait until everything is delivered; return the status, and what prevented it if so."""
    undelivered: WaldError | None = None
    with Control(daemon.socket) as control:
        try:
            wait_for_routes(control, None, deliver_for_s, clock, tell=_say_delivering)
        except (WaitTimeout, Undeliverable) as error:
            undelivered = error
        except KeyboardInterrupt:
            control.close()  # a question may be under way
            undelivered = _Interrupted("interrupted before everything was delivered")
        return control.status(), undelivered


def _say_delivering(left: str) -> None:
    say(f"wald: delivering {left}; Ctrl-C leaves the rest to the next run")


class _Interrupted(WaldError):
    exit_code = EXIT_INTERRUPTED


@contextmanager
def _socket_directory() -> Iterator[str]:
    """Make a private directory whose path is short enough for a socket."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = runtime if runtime and Path(runtime).is_dir() else None
    with tempfile.TemporaryDirectory(prefix="wald-", dir=base) as directory:
        yield directory


def _run_command(command: Sequence[str], socket: str) -> int:
    """Run the command in the foreground; signals that reach us are its to answer."""

    def pass_on(number: int, _: FrameType | None) -> None:
        if child is not None and number != signal.SIGINT:  # a terminal sent it Ctrl-C already
            child.send_signal(number)

    child: subprocess.Popen[bytes] | None = None
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, pass_on) for number in signals}
    try:
        child = subprocess.Popen(command, env={**os.environ, "WALD_SOCKET": socket})  # noqa: S603
        code = child.wait()
    except OSError as error:
        msg = f"cannot run {command[0]!r}: {error.strerror}"
        raise InputError(msg) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
