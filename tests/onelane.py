"""One lane over a real log, stepped by a test with a clock of its own, with deaths and restarts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.backlog import FS
from wald.core import body, frame
from wald.core.delivery import Step
from wald.core.frame import Section, SectionKind
from wald.drainer.lane import Lane
from wald.drainer.route import Route
from wald.model import RouteBirth
from wald.storage.deadlog import DeadLog
from wald.testing.clock import ManualClock
from wald.testing.memory_ledger import MemoryLedger
from wald.testing.recording_sink import RecordingSink, RecordingTarget

WINDOW_S = 300.0
STEPS_MAX = 3_000


class Killed(BaseException):
    """The process ended here."""


class Bench:
    """A lane that a test steps, its clock, and what outlives the process: log, ledger, target."""

    def __init__(self, backlog, replay, **settings):
        self.backlog = backlog
        self.replay = replay
        self.clock = ManualClock()
        self.ledger = MemoryLedger(backlog.log.log_id)
        self.dead_log = DeadLog(FS, backlog.data_dir)
        self.target = RecordingTarget(now_s=lambda: self.clock.boot_ns() / 1e9)
        self.kind: type[RecordingSink] = RecordingSink
        self.options: dict[str, Any] = {"window_s": WINDOW_S, "encoder": "plain/1"}
        self.settings = settings
        self.lane = self.start()

    def start(self):
        """Begin a new process."""
        backlog, name = self.backlog, "events"
        shared = replace(
            backlog.shared(self.make_sink, ledger=self.ledger, dead_log=self.dead_log),
            clock=self.clock,
        )
        settings = replace(backlog.settings.routes[name], attempt_timeout_s=30.0, **self.settings)
        birth = self.ledger.birth(_birth(backlog, shared))
        self.lane = Lane(Route(shared, birth, settings, backlog.settings.sinks[name]))
        self.lane.flush(backlog.log.frontier.lsn)
        backlog.at_close(close_files, self.lane)
        return self.lane

    def make_sink(self, *_):
        return self.kind(self.target, replay=self.replay, **self.options)

    @property
    def key(self):
        return self.lane.route.key

    @property
    def held(self):
        return self.ledger.lane(self.key)

    @property
    def step(self):
        return self.lane._step

    def run(self, until: Callable[[], bool]) -> None:
        """Step, time passing as the lane asks, until something holds."""
        for _ in range(STEPS_MAX):
            if until():
                return
            self.clock.advance(min(self.lane.step(), 60.0))
        raise AssertionError(self.lane.figures)

    def through(self) -> None:
        """Run until all of the log is delivered or set aside."""
        last = self.backlog.log.frontier.lsn
        self.run(lambda: self.held.checkpoint.lsn >= last and self.held.manifest is None)
        self.check_books()

    def parked(self) -> None:
        self.run(lambda: self.step is Step.PARKED)

    def check_books(self) -> None:
        checkpoint = self.held.checkpoint
        accepted = sum(1 for _ in self.dead) + checkpoint.delivered
        assert accepted == self.backlog.log.state.streams[1].records
        assert checkpoint.dead_letters == len(self.dead)

    @property
    def dead(self):
        return {each.lsn: each.code for each in self.ledger.dead_letters(1, limit=10_000)}


def append_keyed(backlog, pairs):
    """Append (key, value) pairs as one request; returns their LSNs."""
    keys, found = [key for key, _ in pairs], [value for _, value in pairs]
    data = body.encode(body.Body(0, found, keys))
    table = frame._REQUEST.pack(len(found), len(found), len(data), frame.crc32c(data))
    backlog.sequence += 1
    kind = SectionKind.APPEND
    section = Section(kind, 1, 1, 7, backlog.sequence, 0, len(found), table, (), data)
    first = backlog.log.append_group([section]).first_lsn
    return list(range(first, first + len(found)))


def close_files(lane):
    """As the end of its process does."""
    if lane._steps.memory.reader is not None:
        lane._steps.memory.reader.close()


def _birth(backlog, shared):
    route = backlog.log.state.routes[1]
    return RouteBirth(1, "events", 1, "events", "events", route.birth_lsn, shared.owner)


def values(count):
    return [b"%05d" % number for number in range(count)]


class Dying:
    """Ends the process at the n-th of some calls, before or behind its effect."""

    def __init__(self, at, *, behind):
        self.left, self.behind, self.died = at, behind, False

    def around(self, method):
        def call(*args, **kwargs):
            self.left -= 1
            if self.left == 0 and not self.behind:
                self.died = True
                raise Killed
            result = method(*args, **kwargs)
            if self.left == 0:
                self.died = True
                raise Killed
            return result

        return call
