"""A real daemon for an application's tests: in a directory of its own, delivering to SQLite."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wald.client.asking import Asker
from wald.client.blocking import Producer
from wald.client.encoding import encode_value
from wald.client.link import Deadline
from wald.clock import SystemClock
from wald.errors import StartFailed, Unavailable, WaitTimeout, WaldError
from wald.model import Record
from wald.sinks.values import json_text

_START_S = 60.0
_STOP_S = 60.0
_POLL_S = 0.005
_LAST_WORDS_CHARS = 4_000


class LocalDaemon:
    """``wald serve --to sqlite:...`` for the length of a with block.

    Attributes:
        socket: where producers connect; say it to the application as ``WALD_SOCKET``.
        database: what is delivered, a table for each stream; for reading, also while it runs.
        log: what the daemon says.
    """

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="wald"))  # short: a socket's path is
        self.socket = str(self._directory / "w.sock")
        self.database = self._directory / "delivered.db"
        self.log = self._directory / "serve.log"
        self._clock = SystemClock()
        self._process: subprocess.Popen[bytes] | None = None
        self._children: list[int] = []

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self._directory)

    def connect(self, *, name: str = "", timeout: float = 30.0) -> Producer:
        """Return a producer of this daemon."""
        return Producer(self.socket, name=name, timeout=timeout, wait_for_daemon=True)

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            StartFailed: it ended; with its last words.
        """
        to = f"sqlite:{self.database}"
        data = str(self._directory / "data")
        command = ["serve", "--to", to, "--data-dir", data, "--socket", self.socket]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter, no shell
                [sys.executable, "-m", "wald", *command],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "NOTIFY_SOCKET": ""},
            )
        deadline = Deadline(self._clock, _START_S)
        while not self._is_ready():
            if self._process.poll() is not None or not deadline.left_s():
                msg = f"the daemon did not start: {self.log.read_text()[-_LAST_WORDS_CHARS:]}"
                raise StartFailed(msg)
            self._clock.sleep(_POLL_S)

    def stop(self) -> None:
        """Stop it in order; by force if it takes too long."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill all of its processes at once, as a crash of the machine does; ``start`` it again."""
        assert self._process is not None
        self._process.kill()
        for pid in self._children:  # they end with it where the system can tell them
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()

    def delivered(self, stream: str, timeout: float = 30.0) -> list[object]:
        """Wait until all that is durable was delivered; return a stream's values, in order.

        A value comes back as JSON has it, bytes as they were.

        Raises:
            WaitTimeout: not within the time.
        """
        self._wait_delivered(timeout)
        if not self.database.exists():
            return []
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as database:
            known = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
            if database.execute(known, (stream,)).fetchone() is None:
                return []
            rows = database.execute(f'SELECT value FROM "{stream}" ORDER BY lsn')  # noqa: S608 - a known table
            return [value if isinstance(value, bytes) else json.loads(value) for (value,) in rows]

    def _wait_delivered(self, timeout: float) -> None:
        deadline = Deadline(self._clock, timeout)
        goal_lsn = self._ask("status")["frontier_lsn"]
        self._ask("drain.flush")
        while True:
            said = self._ask("status")
            routes = said["routes"].values()
            known = said["figures_lsn"] >= goal_lsn
            if known and all(route["through_lsn"] >= goal_lsn for route in routes):
                return
            if not deadline.left_s():
                errors = [route["last_error"] for route in routes if route["last_error"]]
                msg = f"not delivered within {timeout:g} s: {errors or 'see log'}"
                raise WaitTimeout(msg)
            self._clock.sleep(_POLL_S)

    def _is_ready(self) -> bool:
        try:
            processes = self._ask("status")["processes"]
        except WaldError:
            return False
        ready = {role: one["pid"] for role, one in processes.items() if one.get("ready")}
        self._children = [pid for role, pid in ready.items() if role != "supervisor"]
        return {"ingest", "drain"} <= ready.keys()

    def _ask(self, op: str) -> dict[str, Any]:
        asker = Asker(self.socket)
        try:
            return asker.ask(op, Deadline(self._clock, _START_S))
        except PermissionError as error:
            msg = f"the control socket of {self.socket!r}: {error.strerror}"
            raise Unavailable(msg) from error
        finally:
            asker.close()


def as_delivered(values: Sequence[object]) -> list[object]:
    """Return values as a database has them: what JSON makes of them, and bytes as they are."""
    found: list[object] = []
    for value in values:
        content, data = encode_value(value)
        text = None if isinstance(value, bytes) else json_text(Record(0, 0, content, data))
        found.append(data if text is None else json.loads(text))
    return found
