"""A daemon made of frames, to misbehave as no real one would."""

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.doorkeeper import DEADLINE_S
from wald.core.events import Event, Hello, Welcome
from wald.core.wire import FrameReader, Side


class Impostor:
    """Listens, and answers connections as the test says."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "i")
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(self.path)
        self.listening.listen(8)
        self.listening.settimeout(DEADLINE_S)

    def accept(self, session: int = 5, last: int = 0) -> socket.socket:
        connection, _ = self.listening.accept()
        connection.settimeout(DEADLINE_S)
        hello = self.read(connection)
        assert isinstance(hello, Hello)
        connection.sendall(Welcome(hello.request, session, last, bytes(16)).encode())
        return connection

    def read(self, connection: socket.socket) -> object:
        """The next event, of a client that sends one and waits; None at the end."""
        return next(self.reader(connection), None)

    def reader(self, connection: socket.socket) -> Iterator[Event]:
        """All events up to the end of the connection."""
        reader = FrameReader(Side.DAEMON)
        while True:
            while (event := reader.next_event()) is None:
                try:
                    data = connection.recv(1 << 16)
                except ConnectionResetError:
                    data = b""
                if not data:
                    return
                reader.receive_data(data)
            yield event


def answered_by(script: Callable[[], None]) -> threading.Thread:
    """Play a script in a thread."""
    thread = threading.Thread(target=script)
    thread.start()
    return thread
