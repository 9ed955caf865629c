"""A real daemon for tests: `wald serve` on a private socket in a directory of the test."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tests.commands import call


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """Poll until a condition holds; the time is a bound on failure, not a pace.

    What takes long is asked seldom: most conditions are a question to a daemon, which answers with
    the processor time that what is waited for needs.
    """
    start = time.monotonic()
    while not condition():
        waited_s = time.monotonic() - start
        if waited_s > timeout_s:
            message = f"not within {timeout_s} s: {what}"
            raise AssertionError(message)
        time.sleep(min(0.02, 0.002 + waited_s / 16))


def ended(process: psutil.Process) -> bool:
    """Tell whether a process is gone, buried by its parent or not."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Daemon:
    """`wald serve` for the length of a with block; may be killed and started again inside.

    Args:
        directory: short enough for a socket path.
        to: a target for ``--to``; or
        config: the text of a configuration file.
        data_dir: where the data directory is, if not in ``directory``.
        environment: more of the daemon's environment.
        launcher: the command that ``serve`` and its arguments are given to.
        needs: the roles that must be ready before it counts as started.
        stdin: a descriptor for its standard input.
    """

    def __init__(
        self,
        directory: Path,
        *,
        to: str = "",
        config: str = "",
        data_dir: Path | None = None,
        environment: Mapping[str, str] | None = None,
        launcher: Sequence[str] = (sys.executable, "-m", "wald"),
        needs: Collection[str] = ("ingest", "drain"),
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self.stdin = stdin
        self.launcher = launcher
        self.needs = set(needs)
        self.directory = directory
        self.data_dir = data_dir or directory / "data"
        self.environment = {"NOTIFY_SOCKET": "", **(environment or {})}
        self.socket = directory / "w.sock"
        self.log = directory / "serve.log"
        self.arguments = ["--data-dir", str(self.data_dir), "--socket", str(self.socket)]
        if config:
            (directory / "wald.toml").write_text(config)
            self.arguments += ["--config", str(directory / "wald.toml")]
        else:
            self.arguments += ["--to", to]
        self.patience_s = 30.0  # with who answers on the control socket
        self.process: subprocess.Popen[bytes] | None = None
        self.family: list[psutil.Process] = []

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)  # a with block leaves only then
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()
        if error is not None:
            print(self.log.read_text()[-4000:], file=sys.stderr)

    def end(self) -> None:
        """Stop it in order, by force if it does not; nothing of it is left running."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def start(self) -> None:
        """Start the supervisor and wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.launcher, "serve", *self.arguments],
                stdout=log,
                stderr=log,
                stdin=self.stdin,
                env={**os.environ, **self.environment},
            )
        wait_until(self._ready, "the daemon is ready")

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        return self.ask(op="status") is not None and self.needs <= self.pids().keys()

    def ask(self, **request: object) -> dict[str, Any] | None:
        """Ask the control socket; None while nobody answers."""
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(self.patience_s)
            try:
                asking.connect(f"{self.socket}.ctl")
                asking.sendall(json.dumps(request).encode() + b"\n")
                with asking.makefile("rb") as lines:
                    answer: dict[str, Any] | None = json.loads(lines.readline() or b"null")
            except OSError:
                return None
        return answer

    def pids(self) -> dict[str, int]:
        """The process ids of those that run: supervisor, ingest, drain."""
        assert self.process is not None
        answer = self.ask(op="status") or {}
        found: dict[str, int] = {"supervisor": self.process.pid}
        processes = answer.get("processes")
        if isinstance(processes, dict):
            for role, figures in processes.items():
                if figures.get("pid") and figures.get("ready"):
                    found[role] = figures["pid"]
        self.family = []
        for pid in found.values():
            with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended since it was asked
                self.family.append(psutil.Process(pid))
        return found

    def wait_dead(self) -> None:
        """Wait until a killed supervisor and the children that die with it are gone."""
        assert self.process is not None
        self.process.wait(60)
        wait_until(lambda: all(map(ended, self.family)), "its children end")

    def command(self, name: str, *arguments: str, expect: int = 0) -> str:
        """Run a command of wald against this daemon and return what it printed."""
        done = call(name, *arguments, socket=self.socket)
        assert done.returncode == expect, done.stderr + done.stdout
        return done.stdout
