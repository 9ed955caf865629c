"""What the delivery policy costs, and what it keeps for a route whose neighbours are in trouble.

    python -m benchmarks.compare.policy [ALTERNATIONS]

Lanes in this process over a real log and ledger, into SQLite: flights of 19 columns, 2,000 rows a
batch. The policy's own time is all the time inside the gate, its timers included, and is set
against the time inside the sink. Then one stream goes to three sinks: the rate of one route is
compared with its rate alone, over the same log, while one neighbour's target is down and another's
takes 100 times as long; and so is the processor time of the process for each of its rows, which is
the steadier of both. Last, what a route costs whose target is down while records come, beside the
one that delivers them.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeAlias
from unittest.mock import patch

import msgpack

from benchmarks import flights
from benchmarks.compare.drain import make_table
from benchmarks.harness import Comparison, alternate, report, short_directory
from tests.backlog import CLOCK, FS, Backlog
from wald.app import calm_garbage_collector
from wald.config import BatchSettings, RouteSettings, SinkSettings
from wald.core import state
from wald.drainer import steps
from wald.drainer.gate import Gate
from wald.drainer.replay import replay
from wald.model import Attempt, Content, Outcome, Systemic, SystemicKind
from wald.ports import Sink
from wald.sinks.sqlite import make as make_sqlite
from wald.testing.recording_sink import RecordingSink, RecordingTarget

Make: TypeAlias = Callable[[Path, RouteSettings], Sink]
ROWS, REQUEST, COPIES = 2_000, 500, 2
COST_GOAL, KEPT_GOAL, DEAD_GOAL = 0.03, 0.9, 0.05
GROUPS_BEFORE, GROUPS, GROUP_EVERY_S = 100, 400, 0.005
SLOWER = 100
DOWN = Systemic(SystemicKind.UNREACHABLE, "connection refused")
BATCH = BatchSettings(ROWS, 4 << 20, 1.0)


class Stopwatch:
    """Adds up the time inside calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **named)
            finally:
                self.seconds += time.perf_counter() - began

        return wrapped


@contextmanager
def timing_gates(watch: Stopwatch) -> Iterator[None]:
    """Let lanes have gates whose public methods are timed; nested calls are not counted twice."""
    names = [name for name in vars(Gate) if not name.startswith("_") and callable(vars(Gate)[name])]

    def make(*args: Any) -> Gate:
        gate = Gate(*args)
        for name in names:
            if name not in {"rest", "leave"}:  # called by the others
                setattr(gate, name, watch.timed(getattr(gate, name)))
        return gate

    with patch.object(steps, "Gate", make):
        yield


def fill(backlog: Backlog, stream: int, values: Sequence[bytes]) -> None:
    sections = [
        backlog.section(*values[start : start + REQUEST], stream=stream, content=Content.MSGPACK)
        for start in range(0, len(values), REQUEST)
    ]
    for start in range(0, len(sections), 8):
        backlog.log.append_group(sections[start : start + 8])


def sqlite_sink(place: Path, route: RouteSettings, watch: Stopwatch) -> Sink:
    sink = make_sqlite(
        route.name,
        route.stream,
        {"path": str(place / f"{route.name}.db"), "mode": "columns", "table": "flights"},
    )
    sink.deliver = watch.timed(sink.deliver)  # type: ignore[method-assign]
    return sink


def slow_sink(place: Path, route: RouteSettings) -> Sink:
    """Return a sink that takes 100 times as long."""
    sink = sqlite_sink(place, route, Stopwatch())
    deliver = sink.deliver

    def slowly(attempt: Attempt) -> Outcome:
        began = time.perf_counter()
        outcome = deliver(attempt)
        time.sleep((SLOWER - 1) * (time.perf_counter() - began))
        return outcome

    sink.deliver = slowly  # type: ignore[method-assign]
    return sink


class Through(Exception):
    """The route is through."""


class Took(NamedTuple):
    """What a drain took: seconds, and seconds of all processors."""

    seconds: float
    processor_s: float


@contextmanager
def fanned_out(names: Sequence[str]) -> Iterator[tuple[Path, Backlog]]:
    """A log of one stream with routes of these names; the first is the stream's, too."""
    with short_directory() as place:
        backlog = Backlog(place, names[0])
        for number, name in enumerate(names[1:], 2):
            birth = state.RouteState(number, name, 1, name, "digest", 0, 0, 0)
            backlog.log.append_group([state.route_birth(birth)])
        yield place, backlog
        backlog.close()


def drain(values: Sequence[bytes], sinks: Mapping[str, Make], delivered: Collection[str]) -> Took:
    """Drain a stream to sinks side by side, until the first of them has it all.

    All of the routes are in the log, and those ``delivered`` in the settings.
    """
    names = list(sinks)
    with fanned_out(names) as (place, backlog):
        fill(backlog, 1, values)
        for name in names:
            make_table(place / f"{name}.db")
        took: list[Took] = []
        began, began_processor = time.perf_counter(), time.process_time()

        def look(figures: Mapping[str, Any]) -> None:
            if figures[names[0]]["delivered"] >= len(values):
                seconds = time.perf_counter() - began  # the others end their attempts yet
                took.append(Took(seconds, time.process_time() - began_processor))
                raise Through

        routes = {name: RouteSettings(name, names[0], name, batch=BATCH) for name in delivered}
        known = {name: SinkSettings(name, "test") for name in names}
        with suppress(Through):
            replay(
                replace(backlog.settings, routes=routes, sinks=known),
                backlog.log,
                make_sink=lambda route, _: sinks[route.name](place, route),
                fs=FS,
                clock=CLOCK,
                chance=Random(1),
                on_progress=look,
            )
    return took[0]


def cost(values: Sequence[bytes]) -> tuple[float, float]:
    """Return the seconds inside the gate and inside the sink, of one drain."""
    inside_gate, inside_sink = Stopwatch(), Stopwatch()
    with timing_gates(inside_gate):
        drain(values, {"one": partial(sqlite_sink, watch=inside_sink)}, ["one"])
    return inside_gate.seconds * 1e6, inside_sink.seconds * 1e6


SINKS: Mapping[str, Make] = {
    "third": partial(sqlite_sink, watch=Stopwatch()),
    "dead": lambda *_: RecordingSink(RecordingTarget(down=DOWN)),
    "slow": slow_sink,
}


def coming() -> tuple[float, float]:
    """Return the milliseconds of processor time a second of a dead and of a healthy route's lane.

    Both are of one stream, to which 150 groups a second or so come.
    """
    with fanned_out(["well", "dead"]) as (_, backlog):
        well, dead = RecordingTarget(), RecordingTarget(down=DOWN)
        backlog.settings = replace(
            backlog.settings,
            routes={name: RouteSettings(name, "well", name) for name in ("well", "dead")},
            sinks={name: SinkSettings(name, "test") for name in ("well", "dead")},
        )
        shared = replace(
            backlog.shared(lambda route, _: RecordingSink(well if route.name == "well" else dead)),
            chance=Random(1),
        )
        backlog.fleet(shared)
        clocks = {
            thread.name: time.pthread_getcpuclockid(thread.ident)
            for thread in threading.enumerate()
            if thread.ident and thread.name.startswith("lane ")
        }

        def come(groups: int) -> float:
            began = time.perf_counter()
            for _ in range(groups):
                backlog.append(b"v" * 100)
                shared.board.pin(backlog.log.frontier)
                time.sleep(GROUP_EVERY_S)
            return time.perf_counter() - began

        come(GROUPS_BEFORE)
        before = {name: time.clock_gettime(clock) for name, clock in clocks.items()}
        took = come(GROUPS)
        spent = {name: time.clock_gettime(clock) - before[name] for name, clock in clocks.items()}
        return spent["lane dead"] / took * 1e3, spent["lane well"] / took * 1e3


def main(times: int) -> int:
    values = [msgpack.packb(record) for record in flights.read()] * COPIES
    calm_garbage_collector()  # as every process of wald that delivers does
    logging.disable(logging.WARNING)  # a target is down: that is meant
    costs = [cost(values) for _ in range(times)]
    kept, bare = alternate(
        lambda: drain(values, SINKS, SINKS), lambda: drain(values, SINKS, ["third"]), times
    )
    idle, busy = zip(*(coming() for _ in range(times)), strict=True)
    return report(
        [
            Comparison(
                "policy against the sink's own time",
                "us",
                [policy for policy, _ in costs],
                [sink for _, sink in costs],
                COST_GOAL,
                smaller_is_better=True,
            ),
            Comparison(
                "one route beside a dead and a slow one",
                "rows/s",
                [len(values) / took.seconds for took in kept],
                [len(values) / took.seconds for took in bare],
                KEPT_GOAL,
            ),
            Comparison(
                "the same, processor time of the process",
                "ns/row",
                [took.processor_s * 1e9 / len(values) for took in kept],
                [took.processor_s * 1e9 / len(values) for took in bare],
                1 / KEPT_GOAL,
                smaller_is_better=True,
            ),
            Comparison(
                "a dead route beside one that delivers",
                "us/s",
                [each * 1e3 for each in idle],
                [each * 1e3 for each in busy],
                DEAD_GOAL,
                smaller_is_better=True,
            ),
        ],
        "policy",
    )


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
