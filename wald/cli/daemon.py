"""A daemon of a command's own: started, asked, and ended by ``wald run`` and ``wald demo``."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from wald.cli.ask import Control
from wald.errors import Unavailable, WaldError, reported
from wald.limits import CLOCK_NS_PER_S
from wald.ports import Clock

_START_S = 60.0
_STOP_S = 60.0
_POLL_S = 0.01
_LOG_READ_BYTES = 4_000
_STARTS_MAX = 4  # of a child that says the same each time


class OwnDaemon:
    """``wald serve`` as a child of this process, which it does not outlive.

    Args:
        arguments: of ``wald serve``, without the socket.
        socket: its data socket.
        log: the file that gets what it says.
        clock: for the bounds on waiting.
    """

    def __init__(self, arguments: Sequence[str], socket: str, log: Path, clock: Clock) -> None:
        self.socket = socket
        self._arguments = [*arguments, "--socket", socket]
        self._log = log
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id of the supervisor."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until both of its children serve.

        Raises:
            WaldError: what it said before it ended.
            Unavailable: it is not ready in time.
        """
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter, no shell
                [sys.executable, "-P", "-m", "wald", "serve", "--with-parent", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for the command, not for its daemon
            )
        try:
            self._wait_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop it cleanly; harmless to repeat."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def wait_ended(self) -> None:
        """Wait for the end of a supervisor that was killed."""
        assert self._process is not None
        self._process.wait(_STOP_S)

    def status(self) -> dict[str, Any]:
        """Ask for its status."""
        with Control(self.socket) as control:
            return control.ask("status")

    def ready_pid(self, role: str) -> int | None:
        """Return the process id of a child that serves; None while there is none."""
        try:
            process = self.status()["processes"][role]
        except Unavailable:
            return None
        return process["pid"] if process["ready"] else None

    def _wait_ready(self) -> None:
        assert self._process is not None
        deadline_ns = self._clock.monotonic_ns() + int(_START_S * CLOCK_NS_PER_S)
        while self._clock.monotonic_ns() < deadline_ns:
            if self._process.poll() is not None:
                raise self._why_ended(self._process.returncode)
            try:
                processes = self.status()["processes"]
            except Unavailable:
                processes = {}
            if processes and all(process["ready"] for process in processes.values()):
                return
            for process in processes.values():
                if process["error"] and process["starts"] >= _STARTS_MAX:
                    raise reported(process["error"])
            self._clock.sleep(_POLL_S)
        msg = f"the daemon was not ready within {_START_S:g} s"
        raise Unavailable(msg, hint=self._last_line())

    def _why_ended(self, exit_code: int) -> WaldError:
        """Return the error that the daemon printed before it ended."""
        lines = self._log_tail().splitlines()
        for index, line in reversed(list(enumerate(lines))):
            if line.startswith("error["):
                code, _, message = line.removeprefix("error[").partition("]: ")
                hints = [one for one in lines[index:] if one.startswith("hint: ")]
                hint = hints[0].removeprefix("hint: ") if hints else ""
                said = {"code": code, "message": message, "hint": hint, "exit_code": exit_code}
                return reported(said)
        msg = f"the daemon ended with exit code {exit_code}"
        return Unavailable(msg, hint=self._last_line())

    def _last_line(self) -> str:
        lines = self._log_tail().split("\n")
        return next((f"its last words: {line}" for line in reversed(lines) if line.strip()), "")

    def _log_tail(self) -> str:
        return self._log.read_bytes()[-_LOG_READ_BYTES:].decode(errors="replace")
