"""A program that serves on a loopback port, which a test starts, ends and kills."""

import os
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.backlog import eventually

_END_S = 60


class LocalServer:
    """One server; subclasses say how it is started, and whether it answers.

    Args:
        place: a directory of its own, which has its files and what it says.
    """

    patience_s: float = 120.0

    def __init__(self, place: Path) -> None:
        self.place = place
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        """The program and its arguments."""
        raise NotImplementedError

    @property
    def environment(self) -> Mapping[str, str]:
        """What it is told beside that of this process."""
        return {}

    def answers(self) -> bool:
        """Whether it does; OSError: it does not."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5.0) as link:
            link.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return bool(link.recv(1))

    def start(self) -> Self:
        """Begin to serve what lies in the directory; returns once it answers."""
        environment = {**os.environ, **self.environment}
        with (self.place / "said").open("ab") as said:
            self.process = subprocess.Popen(
                self.command, cwd=self.place, env=environment, stdout=said, stderr=said
            )
        eventually(self._is_up, self._said, self.patience_s)
        return self

    def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self._said()
        try:
            return self.answers()
        except OSError:
            return False

    def _said(self) -> str:
        return (self.place / "said").read_text(errors="replace")[-2_000:]

    def end(self, how: signal.Signals) -> None:
        """End it, and wait until it is gone; harmless to repeat."""
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(how)
            process.wait(_END_S)

    def kill(self) -> None:
        """End it at once; harmless to repeat. What it had written to its files stays."""
        self.end(signal.SIGKILL)


def free_port() -> int:
    """Return a loopback port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
