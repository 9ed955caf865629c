"""A real ingest on a private socket, in a thread of the test: its loop, log and files are real."""

import os
import random
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from wald.config import Settings, SinkSettings
from wald.core import body as bodies
from wald.core.events import Event, Hello, OpenStream, StreamOpened, Welcome
from wald.core.frame import request_entries
from wald.core.wire import FrameReader, Side
from wald.ingest.server import run
from wald.ports import FileSystem
from wald.storage.log import Log
from wald.storage.tail import TailReader
from wald.system import PosixFileSystem, SystemClock

DEADLINE_S = 60.0


@contextmanager
def short_directory() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's name."""
    path = tempfile.mkdtemp(prefix="w")
    try:
        yield Path(path)
    finally:
        shutil.rmtree(path)


class Door:
    """Ingest in a thread. ``stop`` and ``start`` restart it over the same data and socket."""

    def __init__(
        self, directory: Path, *, settings: Settings | None = None, fs: FileSystem | None = None
    ) -> None:
        self.path = str(directory / "s")
        self.data_dir = str(directory / "data")
        self.settings = settings or Settings(
            self.data_dir,
            self.path,
            sinks={"to": SinkSettings("to", "sqlite", {"path": str(directory / "x.db")})},
            auto_sink="to",
            segment_bytes=16 << 20,
        )
        self.fs = fs or PosixFileSystem()
        self.error: BaseException | None = None
        self.code: int | None = None
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(self.path)
        self.listening.listen(64)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.listening.close()

    def start(self) -> None:
        self.ready = threading.Event()
        self.error = None
        self._lifeline, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self.ready.wait(DEADLINE_S), "ingest did not start"
        error = self._error()
        if error is not None:
            self.join()
            raise error

    def _error(self) -> BaseException | None:
        return self.error

    def _run(self) -> None:
        try:
            with socket.socket(fileno=os.dup(self.listening.fileno())) as listening:
                self.code = run(
                    self.settings,
                    listening=listening,
                    stop_fd=self._lifeline,
                    fs=self.fs,
                    clock=SystemClock(),
                    chance=random.Random(1),
                    ready=lambda _: self.ready.set(),
                )
        except BaseException as error:  # noqa: BLE001 - shown to the test
            self.error = error
        finally:
            self.ready.set()

    def stop(self) -> None:
        """Stop cleanly: the supervisor's pipe ends."""
        if self._stop >= 0:
            os.close(self._stop)
            self._stop = -1
        self.join()

    def join(self) -> None:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "ingest did not stop"
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        if self._stop >= 0:
            os.close(self._stop)
            self._stop = -1

    def stored_bodies(self) -> list[bodies.Body]:
        """Stop; return the bodies in the log, in order, read as the drainer does."""
        self.stop()
        fs = PosixFileSystem()
        log = Log.open(fs, self.data_dir, SystemClock(), random.Random(3))
        log_id, frontier = log.log_id, log.frontier
        log.close()
        reader = TailReader(fs, self.data_dir, log_id, after=0)
        found: list[bodies.Body] = []
        for item in reader.read(frontier):
            for _, section in item.sections:  # type: ignore[union-attr]
                at = 0
                for entry in request_entries(section):
                    found.append(bodies.decode(section.bodies[at : at + entry.body_length]))
                    at += entry.body_length
        reader.close()
        return found

    def stored_values(self) -> list[bytes]:
        """Stop; return the values in the log, in order."""
        return [value for body in self.stored_bodies() for value in body.values]

    def peer(self) -> "Peer":
        return Peer(self.path)


class Peer:
    """A client made of frames, to send what no client of ours would."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(path)
        self._reader = FrameReader(Side.CLIENT)
        self.log_id = b""
        self.session = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def next(self) -> Event | None:
        """The next event; None when the daemon has closed."""
        while (event := self._reader.next_event()) is None:
            data = self.socket.recv(1 << 16)
            if not data:
                return None
            self._reader.receive_data(data)
        return event

    def rest(self) -> list[Event]:
        """Everything up to the end of the connection."""
        events: list[Event] = []
        while (event := self.next()) is not None:
            events.append(event)
        return events

    def hello(self, name: str = "", session: int = 0, capabilities: int = 0) -> Welcome:
        self.send(Hello(1, name, session, capabilities).encode())
        welcome = self.next()
        assert isinstance(welcome, Welcome), welcome
        self.log_id = welcome.log_id
        self.session = welcome.session
        return welcome

    def open(self, name: str = "s") -> int:
        self.send(OpenStream(2, name).encode())
        opened = self.next()
        assert isinstance(opened, StreamOpened), opened
        return opened.stream
