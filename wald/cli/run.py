"""``wald run``: a daemon for the life of one command."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self

import click

from wald.cli.ask import Control
from wald.cli.options import Duration, config_option, data_dir_option, load_settings, to_option
from wald.cli.output import books, say
from wald.cli.status import wait_for_routes
from wald.errors import (
    EXIT_TIMEOUT,
    DataDirectoryUnusable,
    InputError,
    Unavailable,
    WaitTimeout,
    WaldError,
    reported,
)
from wald.limits import CLOCK_NS_PER_S
from wald.ports import Clock

_START_S = 60.0
_STOP_S = 60.0
_POLL_S = 0.01


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
        arguments = _serve_arguments(config, target, settings.data_dir, socket)
        with _Daemon(arguments, socket, clock) as daemon:
            code = _run_command(command, socket)
            routes, undelivered = daemon.deliver(deliver_for_s)
    for name, route in sorted(routes.items()):
        figures = (route[key] for key in ("accepted", "delivered", "pending", "dead_letters"))
        to = names.get(route["sink"], route["sink"])
        say(f"wald: {books(route['stream'] if name == route['stream'] else name, to, *figures)}")
    if undelivered is not None:
        say(f"wald: {undelivered.message}; kept in {settings.data_dir}")
        return code or EXIT_TIMEOUT
    return code


class _Daemon:
    """``wald serve`` as a child of this process, which it does not outlive."""

    def __init__(self, arguments: Sequence[str], socket: str, clock: Clock) -> None:
        self._socket = socket
        self._clock = clock
        self._error_log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter, no shell
            [sys.executable, "-P", "-m", "wald", "serve", "--with-parent", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._error_log,
            start_new_session=True,  # a Ctrl-C is for the command, not for its daemon
        )

    def __enter__(self) -> Self:
        try:
            self._wait_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def deliver(self, deliver_for_s: float) -> tuple[Mapping[str, Any], WaldError | None]:
        """Wait until everything is delivered; return the routes, and what prevented it if so."""
        undelivered: WaldError | None = None
        with Control(self._socket) as control:
            try:
                wait_for_routes(control, None, deliver_for_s, self._clock)
            except WaitTimeout as error:
                undelivered = error
            return control.ask("status")["routes"], undelivered

    def _wait_ready(self) -> None:
        deadline_ns = self._clock.monotonic_ns() + int(_START_S * CLOCK_NS_PER_S)
        while self._clock.monotonic_ns() < deadline_ns:
            if self._process.poll() is not None:
                raise self._why_ended()
            try:
                with Control(self._socket) as control:
                    processes = control.ask("status")["processes"].values()
                if all(process["ready"] for process in processes):
                    return
            except Unavailable:
                pass
            self._clock.sleep(_POLL_S)
        msg = f"the daemon was not ready within {_START_S:g} s"
        raise Unavailable(msg, hint=self._log_tail())

    def _why_ended(self) -> WaldError:
        """Return the error that the daemon printed before it ended."""
        lines = self._log_tail().splitlines()
        for line in reversed(lines):
            if line.startswith("error["):
                code, _, message = line.removeprefix("error[").partition("]: ")
                hints = [h.removeprefix("hint: ") for h in lines if h.startswith("hint: ")]
                hint = hints[-1] if hints else ""
                return reported({"code": code, "message": message, "hint": hint})
        msg = f"the daemon ended with exit code {self._process.returncode}"
        return DataDirectoryUnusable(msg, hint=self._log_tail())

    def _log_tail(self) -> str:
        self._error_log.seek(0)
        return self._error_log.read().decode(errors="replace")[-2_000:]

    def _stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._error_log.close()


@contextmanager
def _socket_directory() -> Iterator[str]:
    """Make a private directory whose path is short enough for a socket."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = runtime if runtime and Path(runtime).is_dir() else None
    with tempfile.TemporaryDirectory(prefix="wald-", dir=base) as directory:
        yield directory


def _serve_arguments(
    config: str | None, target: str | None, data_dir: str, socket: str
) -> list[str]:
    where = ["--to", target] if target is not None else ["--config", str(config)]
    return [*where, "--data-dir", data_dir, "--socket", socket]


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
