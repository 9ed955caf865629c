"""A real log on a real directory, and lanes over it: what the tests of delivery share."""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random

from wald.config import BatchSettings, RouteSettings, Settings, SinkSettings
from wald.core import body, frame, state
from wald.core.frame import Section, SectionKind
from wald.drainer import replay
from wald.drainer.fleet import Fleet
from wald.drainer.frontier import FrontierBoard
from wald.drainer.route import Shared
from wald.model import Content
from wald.storage.deadlog import DeadLog
from wald.storage.log import Log, LogOptions
from wald.system import PosixFileSystem, SystemClock
from wald.testing.memory_ledger import MemoryLedger

FS = PosixFileSystem()
CLOCK = SystemClock()
OWNER = 77


class Impatient(Random):
    """Draws no pauses, so that a retry comes at once."""

    def uniform(self, a: float, _b: float, /) -> float:
        return a


class Backlog:
    """A log with streams, one route each, appended to by hand.

    ``close`` also ends what a test left at work over it; ``at_close`` adds to that.
    """

    def __init__(
        self, path: Path, *streams: str, batch: int = 10, options: LogOptions | None = None
    ) -> None:
        self.data_dir = str(path / "data")
        self._left = ExitStack()
        self.at_close = self._left.callback
        self.chance = Impatient(11)
        self.log = Log.open(FS, self.data_dir, CLOCK, self.chance, options or LogOptions())
        self.batch = batch
        self.sequence = 0
        self.settings = Settings(
            data_dir=self.data_dir,
            socket=str(path / "w.sock"),
            sinks={name: SinkSettings(name, "test") for name in streams},
            routes={
                name: RouteSettings(name, name, name, batch=BatchSettings(batch, 1 << 20, 0.05))
                for name in streams
            },
            stop_deliver_for_s=5.0,
        )
        for number, name in enumerate(streams, 1):
            route = state.RouteState(number, name, number, name, "digest", 0, 0, 0)
            self.log.append_group([state.stream_opened(number, name), state.route_birth(route)])
        self.log.append_group([state.session_issued(7, "")])

    def section(
        self,
        *values: bytes,
        stream: int = 1,
        content: int = Content.BYTES,
        keys: list[str | bytes | None] | None = None,
    ) -> Section:
        """Return a request as a section, the next of its session."""
        data = body.encode(body.Body(int(content), list(values), keys))
        table = frame._REQUEST.pack(len(values), len(values), len(data), frame.crc32c(data))
        self.sequence += 1
        return Section(
            SectionKind.APPEND, 1, stream, 7, self.sequence, 0, len(values), table, (), data
        )

    def append(
        self,
        *values: bytes,
        stream: int = 1,
        content: int = Content.BYTES,
        keys: list[str | bytes | None] | None = None,
    ) -> list[int]:
        """Append one request as a group; returns its LSNs."""
        section = self.section(*values, stream=stream, content=content, keys=keys)
        first = self.log.append_group([section]).first_lsn
        return list(range(first, first + len(values)))

    def replay(self, make_sink, *, patience_s: float = 20.0, settings: Settings | None = None):
        return replay.replay(
            settings or self.settings,
            self.log,
            make_sink=make_sink,
            fs=FS,
            clock=CLOCK,
            chance=self.chance,
            patience_s=patience_s,
        )

    def shared(self, make_sink, *, ledger=None, dead_log=None, owner: int = OWNER) -> Shared:
        board = FrontierBoard()
        board.pin(self.log.frontier)
        dead_log = dead_log or DeadLog(FS, self.data_dir)
        self.at_close(dead_log.close)
        return Shared(
            FS,
            self.data_dir,
            self.log.log_id,
            owner,
            CLOCK,
            self.chance,
            ledger or MemoryLedger(self.log.log_id),
            dead_log,
            board,
            make_sink,
            lambda: len(self.log.state.streams),
            lambda _: 0,
        )

    def fleet(self, shared: Shared) -> Fleet:
        fleet = Fleet(self.settings, shared, lambda number: self.log.state.streams[number].name)
        self.at_close(end, fleet)
        fleet.follow(self.log.state.routes)
        fleet.flush(self.log.frontier.lsn)
        return fleet

    def deliver_all(self, shared: Shared, *routes: str) -> Fleet:
        """Run lanes until the named routes are through; they are stopped on return."""
        fleet = self.fleet(shared)
        try:
            wanted = routes or tuple(self.settings.routes)

            def through() -> bool:
                figures = fleet.figures()
                last = self.log.frontier.lsn
                return all(figures[name]["through_lsn"] >= last for name in wanted)

            eventually(through, fleet.figures)
        finally:
            end(fleet)
        return fleet

    def close(self) -> None:
        self._left.close()
        self.log.close()


def end(fleet: Fleet) -> None:
    fleet.stop(0.0)
    assert fleet.join(60.0) == []


def eventually(
    holds: Callable[[], bool], explain: Callable[[], object] = str, timeout_s: float = 60.0
) -> None:
    """Wait until something holds that other threads bring about."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not holds():
        assert time.monotonic() < deadline, explain()
        pause.wait(0.002)
