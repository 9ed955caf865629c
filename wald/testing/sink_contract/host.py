"""One host: a log, and a lane over it that is stepped under a clock of its own, with deaths."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, cast

import msgpack

from wald.config import BatchSettings, RouteSettings, Settings, SinkSettings
from wald.core import body, frame, state
from wald.core.delivery import Step
from wald.core.frame import Section, SectionKind
from wald.drainer.frontier import FrontierBoard
from wald.drainer.lane import Lane
from wald.drainer.lane_figures import LaneFigures
from wald.drainer.route import Route, Shared
from wald.model import (
    Attempt,
    Content,
    DeadLetter,
    LaneKey,
    Outcome,
    ReplayClass,
    RouteBirth,
    Unknown,
)
from wald.ports import Sink
from wald.storage.deadlog import DeadLog
from wald.storage.log import Log, LogOptions
from wald.system import SystemClock
from wald.testing.clock import ManualClock
from wald.testing.memory_ledger import MemoryLedger
from wald.testing.quick_files import QuickFileSystem
from wald.testing.sink_contract.workbench import Held, Workbench

STREAM = ROUTE = "events"
PROCESS_TIMEOUT_S = 120.0
STEP_MAX_S = 60.0
_ROUTE_ID = _STREAM_ID = 1
_SESSION = 7
_SEGMENT_BYTES = 4 << 20  # a start writes no more zeros than that


_FS = QuickFileSystem()
_OPTIONS = LogOptions(segment_bytes=_SEGMENT_BYTES)


class Impatient(Random):
    """Draws no pauses, so that a retry comes at once."""

    def uniform(self, a: float, _b: float, /) -> float:
        """Return the lower end."""
        return a


class WatchedSink:
    """Passes everything on; keeps what was tried and said, and loses answers as it is told."""

    def __init__(self, inner: Sink, host: "Host") -> None:
        self._inner = inner
        self._host = host

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the sink has
        return getattr(self._inner, name)

    def deliver(self, attempt: Attempt) -> Outcome:
        """Deliver, or keep the attempt for later and say that nothing was answered."""
        host = self._host
        host.attempts.append(attempt)
        if host.late_attempts > 0:
            host.late_attempts -= 1
            host.late.append(attempt)
            return Unknown("the contract: no answer, and it may arrive later")
        host.before_attempt()
        outcome = self._inner.deliver(attempt)
        host.outcomes.append(outcome)
        host.behind_attempt()
        if host.lost_answers > 0:
            host.lost_answers -= 1
            return Unknown("the contract: the answer was lost")
        return outcome


class Host:
    """A data directory with one stream, and one route of it to the workbench's target.

    Args:
        place: an empty directory, or one with the data of a former host.
        bench: the target.
        name: stands in every value as ``host``.
        owner: whose lane it is; another one is another data directory.
        route: settings of the route.
        batch: settings of its batches.

    Attributes:
        sent: what was appended, as the target should hold it.
        steps_max: behind so many steps of the lane a test has failed.
        attempts, outcomes: what was tried, and what the sink said of it.
        late_attempts: so many attempts are kept back, see ``land``, and not answered.
        lost_answers: so many attempts are made, and not answered.
        before_attempt, behind_attempt: called around each attempt.
        sink_settings: what sinks are made of; None for the workbench's settings.
    """

    steps_max: int = 5_000

    def __init__(
        self,
        place: Path,
        bench: Workbench,
        *,
        name: str = "a",
        owner: int = 77,
        route: Mapping[str, Any] | None = None,
        batch: Mapping[str, Any] | None = None,
    ) -> None:
        self.bench = bench
        self.name = name
        self.owner = owner
        self.clock = ManualClock()
        self.chance = Impatient(f"{name}{owner}")
        place.mkdir(parents=True, exist_ok=True)
        self.data_dir = str(place / "data")
        self.sent: list[Held] = []
        self.attempts: list[Attempt] = []
        self.outcomes: list[Outcome] = []
        self.late: list[Attempt] = []
        self.late_attempts = 0  # so many attempts are kept for later
        self.lost_answers = 0  # so many answers are lost
        self.before_attempt: Callable[[], None] = lambda: None
        self.behind_attempt: Callable[[], None] = lambda: None
        self.settings = self._settings(route or {}, {"max_age_s": 0.05, **(batch or {})})
        self.sink_settings: Mapping[str, object] | None = None  # None: the bench's
        self._sequence = 0
        self.log = Log.open(_FS, self.data_dir, SystemClock(), self.chance, _OPTIONS)
        if not self.log.state.streams:
            self._begin()
        self.ledger = MemoryLedger(self.log.log_id)
        self.dead_log = DeadLog(_FS, self.data_dir)
        self.lane = self.restart()

    def _settings(self, route: Mapping[str, Any], batch: Mapping[str, Any]) -> Settings:
        settings = RouteSettings(
            ROUTE, STREAM, "target", batch=BatchSettings(**batch), attempt_timeout_s=30.0
        )
        return Settings(
            data_dir=self.data_dir,
            socket=f"{self.data_dir}.sock",
            sinks={"target": SinkSettings("target", "contract", dict(self.bench.settings))},
            routes={ROUTE: replace(settings, **route)},
        )

    def with_batches_of(self, records: int) -> Settings:
        """Return the settings with batches of no more than so many records."""
        route = self.settings.routes[ROUTE]
        batch = replace(route.batch, max_records=records)
        return replace(self.settings, routes={ROUTE: replace(route, batch=batch)})

    def _begin(self) -> None:
        born = state.RouteState(_ROUTE_ID, ROUTE, _STREAM_ID, STREAM, "digest", 0, 0, 0)
        opened = state.stream_opened(_STREAM_ID, STREAM)
        self.log.append_group([opened, state.route_birth(born)])
        self.log.append_group([state.session_issued(_SESSION, "")])

    # --- appending ------------------------------------------------------------------------------

    def append(self, count: int, *, keys: int = 7, **more: object) -> list[int]:
        """Append numbered values, over some keys; returns their LSNs."""
        first = len(self.sent)
        values = [{"host": self.name, "n": first + n, **more} for n in range(count)]
        return self.append_values(values, [f"k{(first + n) % keys}" for n in range(count)])

    def append_values(
        self, values: Sequence[Mapping[str, Any]], keys: Sequence[str | bytes | None]
    ) -> list[int]:
        """Append maps, as one request."""
        lsns = self.append_raw([self.packed(value) for value in values], keys=keys)
        named = zip(lsns, keys, values, strict=True)
        self.sent += [Held(self.log.log_id, lsn, key, value) for lsn, key, value in named]
        return lsns

    def append_raw(
        self,
        values: Sequence[bytes],
        *,
        content: Content = Content.MSGPACK,
        keys: Sequence[str | bytes | None] | None = None,
    ) -> list[int]:
        """Append values that are encoded already; ``sent`` does not know of them."""
        data = body.encode(body.Body(int(content), list(values), list(keys) if keys else None))
        count = len(values)
        table = frame._REQUEST.pack(count, count, len(data), frame.crc32c(data))  # noqa: SLF001
        self._sequence += 1
        section = Section(
            SectionKind.APPEND,
            1,
            _STREAM_ID,
            _SESSION,
            self._sequence,
            0,
            count,
            table,
            (),
            data,
        )
        first = self.log.append_group([section]).first_lsn
        return list(range(first, first + count))

    @staticmethod
    def packed(value: object) -> bytes:
        """Return a value as it is appended."""
        return cast("bytes", msgpack.packb(value))

    # --- delivering -----------------------------------------------------------------------------

    def forget_ledger(self) -> Lane:
        """Begin a new process without a ledger: only log and target tell where it is."""
        self.ledger = MemoryLedger(self.log.log_id)
        return self.restart()

    def restart(self) -> Lane:
        """Begin a new process: what it holds is what ledger, log and target say."""
        if hasattr(self, "lane"):
            self.lane._steps.let_go()  # noqa: SLF001
        board = FrontierBoard()
        board.pin(self.log.frontier)
        shared = Shared(
            _FS,
            self.data_dir,
            self.log.log_id,
            self.owner,
            self.clock,
            self.chance,
            self.ledger,
            self.dead_log,
            board,
            lambda *_: WatchedSink(self.bench.make(self.sink_settings), self),
            lambda: len(self.log.state.streams),
            lambda _: 0,
        )
        born = self.log.state.routes[_ROUTE_ID]
        birth = RouteBirth(
            _ROUTE_ID, ROUTE, _STREAM_ID, STREAM, "target", born.birth_lsn, self.owner
        )
        self._board = board
        birth = self.ledger.birth(birth)
        settings = self.settings
        self.lane = Lane(Route(shared, birth, settings.routes[ROUTE], settings.sinks["target"]))
        return self.lane

    def run(self, until: Callable[[], bool]) -> None:
        """Step, time passing as the lane asks, until something holds."""
        self._board.pin(self.log.frontier)
        self.lane.flush(self.log.frontier.lsn)
        for _ in range(self.steps_max):
            if until():
                return
            self.clock.advance(min(self.lane.step(), STEP_MAX_S))
        raise AssertionError(self.lane.figures)

    def through(self) -> None:
        """Run until all is delivered or set aside."""
        last = self.log.frontier.lsn
        self.run(lambda: self._checkpoint() >= last and self._is_closed())

    def run_steps(self, count: int) -> None:
        """Run so many steps, whatever comes of them."""
        left = iter(range(count))
        self.run(lambda: next(left, None) is None)

    def parked(self) -> str:
        """Run until the lane is parked; returns why."""
        self.run(lambda: self.lane._step is Step.PARKED)  # noqa: SLF001
        return str(self.figures.parked)

    def land(self) -> list[Outcome]:
        """Let the attempts that were kept arrive, by a connection of their own."""
        sink = self.bench.make(self.sink_settings)
        try:
            return [sink.deliver(attempt) for attempt in self.late]
        finally:
            self.late.clear()
            sink.close()

    def in_a_process(self, dies: "tuple[int, str] | None") -> int:
        """Let a drain process of its own deliver the backlog; returns its exit code.

        Args:
            dies: (n, "before" | "behind"): it kills itself around the n-th attempt that takes
                effect; see ``wald.testing.dying_drain``.
        """
        self.log.close()
        said = {
            "settings": self.settings.to_json(),
            "factory": self.bench.factory,
            "dies": dies,
        }
        done = subprocess.run(
            [sys.executable, "-m", "wald.testing.dying_drain"],
            input=json.dumps(said),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=PROCESS_TIMEOUT_S,
            check=False,
        )
        self.bench.said.append(done.stdout + done.stderr)
        assert done.returncode in {0, -signal.SIGKILL}, done.stderr
        if done.returncode == 0:
            books = json.loads(done.stdout)["routes"][ROUTE]
            assert (books["pending"], books["dead_letters"]) == (0, 0), done.stdout + done.stderr
        self.log = Log.open(_FS, self.data_dir, SystemClock(), self.chance, _OPTIONS)
        return done.returncode

    @property
    def replay(self) -> ReplayClass:
        """The class of the target."""
        return self.bench.make().capabilities.replay

    @property
    def key(self) -> LaneKey:
        """The lane."""
        return self.lane.route.key

    @property
    def figures(self) -> LaneFigures:
        """What the lane says of itself."""
        return self.lane.figures

    @property
    def dead(self) -> dict[int, DeadLetter]:
        """The dead letters, by LSN."""
        return {each.lsn: each for each in self.ledger.dead_letters(_ROUTE_ID, limit=10_000)}

    def _checkpoint(self) -> int:
        return self.ledger.lane(self.key).checkpoint.lsn

    def _is_closed(self) -> bool:
        return self.ledger.lane(self.key).manifest is None

    def close(self) -> None:
        """Let go of lane, dead log and log."""
        self.lane._steps.let_go()  # noqa: SLF001
        self.dead_log.close()
        self.log.close()


def numbers(held: Iterable[Held]) -> list[tuple[str, int]]:
    """Return host and number of records."""
    return [(str(each.value["host"]), int(each.value["n"])) for each in held]
