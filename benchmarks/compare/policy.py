"""What the delivery policy costs, and what it keeps for a route whose neighbours are in trouble.

    python -m benchmarks.compare.policy [ALTERNATIONS]

Lanes in this process over a real log and ledger, into SQLite: flights of 19 columns, 2,000 rows a
batch. The policy's own time is all the time inside the gate, its timers included, and is set
against the time inside the sink. Then the rate of one route is compared with its rate alone while
one neighbour's target is down and another's takes 100 times as long.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeAlias
from unittest.mock import patch

import msgpack

from benchmarks import flights
from benchmarks.compare.drain import make_table
from benchmarks.harness import Comparison, alternate, report, short_directory
from tests.backlog import CLOCK, FS, Backlog
from wald.config import BatchSettings, RouteSettings
from wald.drainer import lane
from wald.drainer.gate import Gate
from wald.drainer.replay import replay
from wald.model import Attempt, Content, Outcome, Systemic, SystemicKind
from wald.ports import Sink
from wald.sinks.sqlite import make as make_sqlite
from wald.testing.recording_sink import RecordingSink, RecordingTarget

Make: TypeAlias = Callable[[Path, RouteSettings], Sink]
ROWS, REQUEST, RECORDS = 2_000, 500, 200_000
COST_GOAL, KEPT_GOAL = 0.03, 0.9
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

    with patch.object(lane, "Gate", make):
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


def drain(values: Sequence[bytes], sinks: Mapping[str, Make]) -> float:
    """Drain a stream for each sink in lanes side by side; rows a second of the first of them."""
    names = list(sinks)
    with short_directory() as place:
        backlog = Backlog(place, *names)
        for number, name in enumerate(names, 1):
            fill(backlog, number, values)
            make_table(place / f"{name}.db")
        took = Stopwatch()
        began = time.perf_counter()

        def look(figures: Mapping[str, Any]) -> None:
            if figures[names[0]]["delivered"] >= len(values):
                took.seconds = time.perf_counter() - began  # the others end their attempts yet
                raise Through

        routes = {name: RouteSettings(name, name, name, batch=BATCH) for name in names}
        with suppress(Through):
            replay(
                replace(backlog.settings, routes=routes),
                backlog.log,
                make_sink=lambda route, _: sinks[route.name](place, route),
                fs=FS,
                clock=CLOCK,
                chance=Random(1),
                on_progress=look,
            )
        backlog.close()
        return len(values) / took.seconds


def cost(values: Sequence[bytes]) -> tuple[float, float]:
    """Return the seconds inside the gate and inside the sink, of one drain."""
    inside_gate, inside_sink = Stopwatch(), Stopwatch()
    with timing_gates(inside_gate):
        drain(values, {"one": partial(sqlite_sink, watch=inside_sink)})
    return inside_gate.seconds * 1e6, inside_sink.seconds * 1e6


def alone(values: Sequence[bytes]) -> float:
    return drain(values, {"third": partial(sqlite_sink, watch=Stopwatch())})


def with_others(values: Sequence[bytes]) -> float:
    return drain(
        values,
        {
            "third": partial(sqlite_sink, watch=Stopwatch()),
            "dead": lambda *_: RecordingSink(RecordingTarget(down=DOWN)),
            "slow": slow_sink,
        },
    )


def main(times: int) -> int:
    values = [msgpack.packb(record) for record in flights.read()[:RECORDS]]
    logging.disable(logging.WARNING)  # a target is down: that is meant
    costs = [cost(values) for _ in range(times)]
    kept, bare = alternate(lambda: with_others(values), lambda: alone(values), times)
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
            Comparison("one route beside a dead and a slow one", "rows/s", kept, bare, KEPT_GOAL),
        ],
        "policy",
    )


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
