"""The frontier as the lanes see it: a board that the newest one is pinned to, and who pins it.

``Subscription`` is a client of ingest's socket with the capability ``frontier``. Without it, as
while ingest is down or has no room for one more connection, the hint in ``ingest.page`` does, which
is read now and then: what is durable stays durable.
"""

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from typing import NamedTuple

from wald import limits
from wald.core.delivery import backoff_s
from wald.core.events import Capability, Failed, FrontierMoved, Hello, Welcome
from wald.core.wire import FrameReader, Side
from wald.errors import WaldError
from wald.model import Frontier
from wald.ports import Chance, FileSystem
from wald.storage.progress import TwoSlotPage

_log = logging.getLogger("wald.drain")
_COALESCE_S = 0.005  # lanes wake at most so often, however small the groups are
_RECONNECT_CAP_S = 1.0


class Turn(NamedTuple):
    """How often the frontier moved, and how often all were woken."""

    moves: int
    wakes: int


class FrontierBoard:
    """The newest frontier, and what lanes wait on. Any thread."""

    def __init__(self) -> None:
        lock = threading.Lock()
        self._moved = threading.Condition(lock)
        self._woken = threading.Condition(lock)  # who waits here does not care for new records
        self._frontier: Frontier | None = None
        self._turn = Turn(0, 0)

    def current(self) -> Frontier | None:
        """Return the newest frontier; None before the first."""
        return self._frontier

    def pin(self, frontier: Frontier) -> None:
        """Take a frontier; an older one, as of a hint, changes nothing."""
        with self._moved:
            before = self._frontier
            if before is None or _order(frontier) > _order(before):
                self._frontier = frontier
                self._turn = Turn(self._turn.moves + 1, self._turn.wakes)
                self._moved.notify_all()

    def wake(self) -> None:
        """Wake all who wait: a flush, a stop."""
        with self._moved:
            self._turn = Turn(self._turn.moves, self._turn.wakes + 1)
            self._moved.notify_all()
            self._woken.notify_all()

    def turn(self) -> Turn:
        """Return what changes with each ``pin`` and ``wake``."""
        return self._turn

    def wait(self, turn: Turn, timeout_s: float, *, follows: bool = True) -> bool:
        """Wait until the turn is another one than ``turn``; False if the time has passed.

        Who does not follow the frontier is not woken where only that moved.
        """
        if follows:
            with self._moved:
                return self._moved.wait_for(lambda: self._turn != turn, timeout_s)
        with self._woken:
            return self._woken.wait_for(lambda: self._turn.wakes != turn.wakes, timeout_s)


def _order(frontier: Frontier) -> tuple[int, int, int]:
    return frontier.lsn, frontier.segment, frontier.end_bytes


def read_hint(fs: FileSystem, data_dir: str) -> Frontier | None:
    """Return the frontier that ingest hinted at last; None if there is none."""
    try:
        page = TwoSlotPage.open(
            fs, f"{data_dir}/ingest.page", slot_bytes=limits.PAGE_SLOT_BYTES, write=False
        )
    except OSError:
        return None
    try:
        said = page.read() or {}
    finally:
        page.close()
    segment, end, lsn = said.get("segment"), said.get("end"), said.get("lsn")
    if type(segment) is not int or type(end) is not int or type(lsn) is not int:
        return None
    return Frontier(segment, end, lsn)


class Subscription:
    """A thread that keeps a connection to ingest and pins what it says; reconnects for ever."""

    def __init__(
        self, path: str, board: FrontierBoard, chance: Chance, is_ours: Callable[[bytes], bool]
    ) -> None:
        self._path = path
        self._board = board
        self._chance = chance
        self._is_ours = is_ours
        self.is_welcome = False  # for other threads: the frontier comes this way
        self.has_told = False  # a frontier came this way, and is pinned: no hint of long ago
        self._stopped = threading.Event()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="frontier", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the connection and the thread."""
        self._stopped.set()
        connection = self._socket
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _run(self) -> None:
        failures = 0
        while not self._stopped.is_set():
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                    self._socket = connection
                    connection.settimeout(limits.CONNECT_TIMEOUT_S)
                    connection.connect(self._path)
                    connection.sendall(Hello(request=1, capabilities=Capability.FRONTIER).encode())
                    if self._follow(connection):
                        failures = 0
            except (OSError, WaldError) as error:
                _log.debug("no frontier from ingest: %r", error)
            finally:
                self._socket = None
                self.is_welcome = False
            failures += 1
            self._stopped.wait(backoff_s(failures, self._chance, cap_s=_RECONNECT_CAP_S))

    def _follow(self, connection: socket.socket) -> bool:
        """Pin frontiers until the connection ends; True if there was one."""
        reader = FrameReader(Side.CLIENT)
        welcome = False
        while not self._stopped.is_set():
            try:
                data = connection.recv(limits.PAGE_SLOT_BYTES)
            except TimeoutError:
                if not welcome:
                    return False
                continue  # an idle daemon says nothing
            if not data:
                return welcome
            reader.receive_data(data)
            welcome, newest = self._take(reader, welcome=welcome)
            self.is_welcome = welcome
            if newest is not None:
                self._board.pin(newest)
                self.has_told = True
                self._stopped.wait(_COALESCE_S)
        return welcome

    def _take(self, reader: FrameReader, *, welcome: bool) -> tuple[bool, Frontier | None]:
        newest: Frontier | None = None
        while (event := reader.next_event()) is not None:
            match event:
                case Welcome():
                    welcome = self._is_ours(event.log_id)
                case FrontierMoved() if welcome:
                    newest = event.frontier
                case Failed():
                    _log.warning("ingest refuses the frontier: %r", event.message)
                case _:
                    pass  # a goodbye: the end of the connection follows
        return welcome, newest
