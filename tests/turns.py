"""A house over a real log, without sockets, turn by turn."""

import random
from collections.abc import Callable, Mapping
from typing import Any

from tests.logtools import DATA, first_group, new_fs, open_log
from wald.config import RouteSettings, Settings, SinkSettings
from wald.core.events import Event, Hello, Welcome
from wald.core.rules import StreamRules
from wald.core.wire import FrameReader, Side
from wald.ingest.committer import Committer
from wald.ingest.connection import Connection
from wald.ingest.doorway import Rules
from wald.ingest.house import House
from wald.storage.log import LogOptions
from wald.testing.clock import ManualClock
from wald.testing.simfs import SimFileSystem

OPTIONS = LogOptions(reserve_bytes=0, segment_bytes=16 << 20)


class Turns:
    """A loop whose turns the test takes."""

    def __init__(self) -> None:
        self._ready: list[Callable[[], None]] = []

    def call_soon(self, call: Callable[[], None]) -> None:
        self._ready.append(call)

    def turn(self) -> None:
        ready, self._ready = self._ready, []
        for call in ready:
            call()


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self._reader = FrameReader(Side.CLIENT)
        self.closed = False
        self.reads = True

    def write(self, data: bytes) -> None:
        self._reader.receive_data(data)

    def events(self) -> list[Event]:
        return list(iter(self._reader.next_event, None))

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def set_write_buffer_limits(self, **_: int) -> None:
        pass


class Client:
    """A connection of the house, and its other end."""

    def __init__(self, site: "Site") -> None:
        self.site = site
        self.wire = Wire()
        self.connection = Connection(site.house)
        self.connection.connection_made(self.wire)  # type: ignore[arg-type]

    def send(self, *frames: bytes) -> None:
        data = b"".join(frames)
        at = 0
        while at < len(data):
            view = self.connection.get_buffer(-1)
            size = min(len(view), len(data) - at)
            view[:size] = data[at : at + size]
            self.received(size)
            at += size

    def received(self, size: int) -> None:
        self.connection.buffer_updated(size)

    def turn(self) -> None:
        self.site.loop.turn()

    def hello(self, name: str = "", session: int = 0, capabilities: int = 0) -> Welcome:
        self.send(Hello(1, name, session, capabilities).encode())
        self.turn()
        (welcome,) = self.wire.events()
        assert isinstance(welcome, Welcome), welcome
        return welcome

    def leave(self) -> None:
        """Lose the connection without a word."""
        self.connection.connection_lost(None)


class Site:
    """A house over a real log, without sockets."""

    def __init__(
        self,
        options: LogOptions = OPTIONS,
        fs: SimFileSystem | None = None,
        clock: ManualClock | None = None,
        *,
        rules: Mapping[str, StreamRules] | None = None,
        data_dir: str = DATA,
        quotas: Any = None,
    ) -> None:
        self.options = options
        self.rules = rules or {}
        self.quotas = quotas
        self.fs = fs or new_fs()
        self.clock = clock or ManualClock()
        self.loop = Turns()
        self.log = open_log(self.fs, clock=self.clock, options=options, data_dir=data_dir)
        if not self.log.state.streams:
            self.log.append_group(first_group())
        self.failures: list[BaseException] = []
        loop: Any = self.loop
        self.committer: Committer[Connection] = Committer(
            loop, self.log, lambda: None, self.failures.append
        )
        sinks = {"to": SinkSettings("to", "sqlite", {"path": "/x"})}
        routes = {"orders": RouteSettings("orders", "orders", "to")}
        settings = Settings("/var/wald", "/s", sinks=sinks, routes=routes, auto_sink="to")
        chance = random.Random(len(self.log.state.sessions) + 1)
        self.house: House[Connection] = House(
            self.log,
            settings,
            self.committer,
            self.clock,
            chance,
            lambda: None,
            rules=Rules(self.log.state, streams=self.rules, ids=self.log.ids.table, quotas=quotas),
        )

    def client(self) -> Client:
        return Client(self)

    def restarted(self) -> "Site":
        self.log.close()
        return Site(self.options, self.fs, self.clock, rules=self.rules, quotas=self.quotas)

    def killed(self, *, cut: bool = False) -> "Site":
        """Start again behind a kill, or a power cut."""
        if cut:
            self.fs.crash()
        else:
            self.fs.kill()
        return Site(self.options, self.fs, self.clock, rules=self.rules, quotas=self.quotas)
