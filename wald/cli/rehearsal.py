"""What ``wald demo`` does: real records, real kills, and a count at the end that must be right."""

import json
import random
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from wald.cli.ask import Control
from wald.cli.daemon import OwnDaemon
from wald.cli.status import wait_for_routes
from wald.errors import Unavailable, WaldError
from wald.limits import CLOCK_NS_PER_S
from wald.model import Receipt
from wald.ports import Clock

STREAM = "airports"
PRODUCERS = 4
RECORDS_PER_REQUEST = 20
_ROWS = "SELECT lsn, key, value FROM airports ORDER BY lsn"
# after which share of the requests; producers go on while drain starts again, so it comes late
_KILLS = (("ingest", 0.3), ("supervisor", 0.5), ("drain", 0.7), ("ingest", 0.85))
_JITTER = 0.05
_POLL_S = 0.002
_TIMEOUT_S = 60.0
_TRIES = 500  # to catch a process with something in flight

Row = Mapping[str, object]


@dataclass(slots=True)
class Kill:
    """One SIGKILL: of whom, after how many answers, and what it interrupted."""

    role: str
    answered: int
    interrupted: str
    back_after_s: float = 0.0


@dataclass(slots=True)
class Result:
    """What a rehearsal found."""

    records: int
    kills: list[Kill] = field(default_factory=list)
    append_s: float = 0.0
    drained_s: float = 0.0
    calm_rate: float = 0.0  # records a second acknowledged before the first kill
    route: Mapping[str, Any] = field(default_factory=dict)
    found: int = 0
    missing: int = 0
    doubled: int = 0
    wrong: int = 0
    out_of_order: int = 0

    @property
    def balanced(self) -> bool:
        """Whether every record is there once, in order, through a kill of each process."""
        route = self.route
        return (
            {kill.role for kill in self.kills} == {role for role, _ in _KILLS}
            and self.found == self.records
            and not (self.missing or self.doubled or self.wrong or self.out_of_order)
            and route.get("accepted") == route.get("delivered") == self.records
            and not (route.get("pending") or route.get("dead_letters"))
        )

    def as_dict(self) -> dict[str, object]:
        """Return what ``--json`` prints."""
        return {
            "records": self.records,
            "kills": [
                {
                    "process": kill.role,
                    "after_requests": kill.answered,
                    "in_flight": kill.interrupted,
                    "back_after_s": round(kill.back_after_s, 3),
                }
                for kill in self.kills
            ],
            "append_s": round(self.append_s, 3),
            "drained_s": round(self.drained_s, 3),
            "append_rate_before_kills": round(self.calm_rate),
            "append_rate": round(self.records / self.append_s),
            "drained_rate": round(self.records / self.drained_s),
            "route": dict(self.route),
            "target": {
                "records": self.found,
                "missing": self.missing,
                "doubled": self.doubled,
                "wrong": self.wrong,
                "out_of_order": self.out_of_order,
            },
            "balanced": self.balanced,
        }


class Producer(threading.Thread):
    """One producer: its share of the records, in requests, each answered before the next.

    It makes none while ``may_send`` is not set.
    """

    def __init__(
        self, socket: str, number: int, share: Sequence[Row], may_send: threading.Event
    ) -> None:
        super().__init__(name=f"producer-{number}", daemon=True)
        self.sent = 0
        self.answered = 0
        self.lsns: list[int] = []
        self.error: WaldError | None = None
        self._socket = socket
        self.share = share
        self._may_send = may_send

    def run(self) -> None:
        """Append all; a record that is not acknowledged is an error."""
        import wald

        try:
            with wald.connect(self._socket, name=self.name, timeout=_TIMEOUT_S) as daemon:
                for start in range(0, len(self.share), RECORDS_PER_REQUEST):
                    values = self.share[start : start + RECORDS_PER_REQUEST]
                    self._may_send.wait(_TIMEOUT_S)
                    self.sent += 1
                    results = daemon.append_many(STREAM, values, key=self.name)
                    self.answered += 1
                    results.raise_for_refused()
                    self.lsns += [one.lsn for one in results if isinstance(one, Receipt)]
        except WaldError as error:
            self.error = error


class Rehearsal:
    """A run of the demo.

    Args:
        directory: where data, socket and target go; empty and short enough for a socket.
        records: the records to send.
        clock: real time.
        chance: decides when to kill.
        progress: told the number of records answered so far, and what happens.
    """

    def __init__(
        self,
        directory: Path,
        records: Sequence[Row],
        clock: Clock,
        chance: random.Random,
        progress: Callable[[int, str], None],
    ) -> None:
        self._target = directory / f"{STREAM}.db"
        self._clock = clock
        self._chance = chance
        self._progress = progress
        self._records = records
        self._began_ns = 0
        self._calm_rate = 0.0
        arguments = ["--to", f"sqlite:{self._target}", "--data-dir", str(directory / "data")]
        log = directory / "serve.log"
        self._daemon = OwnDaemon(arguments, str(directory / "wald.sock"), log, clock)
        self._may_send = threading.Event()
        self._may_send.set()
        self._producers = [
            Producer(self._daemon.socket, number, records[number::PRODUCERS], self._may_send)
            for number in range(PRODUCERS)
        ]

    def run(self) -> Result:
        """Send, kill, wait, count.

        Raises:
            WaldError: the daemon did not start, or a producer could not go on.
        """
        result = Result(len(self._records))
        with self._daemon:
            began_ns = self._began_ns = self._clock.monotonic_ns()
            for producer in self._producers:
                producer.start()
            result.kills = self._kill_all()
            self._wait(lambda: not self._running(), "sending")
            result.append_s = self._since(began_ns)
            result.calm_rate = self._calm_rate
            for producer in self._producers:
                if producer.error is not None:
                    raise producer.error
            self._progress(len(self._records), "delivering")
            with Control(self._daemon.socket) as control:
                wait_for_routes(control, None, _TIMEOUT_S, self._clock)
            result.drained_s = self._since(began_ns)
            result.route = self._settled_route()
        self._progress(len(self._records), "counting")
        self._count(result)
        return result

    def _kill_all(self) -> list[Kill]:
        """Kill one process after the other, at moments spread over the run."""
        kills: list[Kill] = []
        requests = sum(-(-len(p.share) // RECORDS_PER_REQUEST) for p in self._producers)
        for role, share in _KILLS:
            goal = int(requests * (share + self._chance.uniform(-_JITTER, _JITTER)))
            self._wait(partial(self._has_answered, goal), "sending")
            if not kills:
                self._calm_rate = self._answered_records() / self._since(self._began_ns)
            if self._running():
                kills.append(self._kill(role))
        return kills

    def _kill(self, role: str) -> Kill:
        pid = self._pid(role)
        process = psutil.Process(pid)
        interrupted = self._stop_in_flight(role, process)
        process.kill()
        kill = Kill(role, self._answered(), interrupted)
        self._progress(self._answered_records(), f"killed {role}")
        began_ns = self._clock.monotonic_ns()
        if role == "supervisor":
            self._may_send.clear()  # else ingest, back first, has all before the last kill
            try:
                self._daemon.wait_ended()
                self._daemon.start()  # what is left of the old one ends beside it
            finally:
                self._may_send.set()
        else:
            self._wait(lambda: self._daemon.ready_pid(role) not in (None, pid), f"{role} starts")
        kill.back_after_s = self._since(began_ns)
        return kill

    def _stop_in_flight(self, role: str, process: psutil.Process) -> str:
        """Stop the process at a moment at which it has something in flight; say what."""
        for _ in range(_TRIES):
            process.suspend()
            interrupted = self._in_flight(role)
            if interrupted or not self._running():
                return interrupted
            process.resume()
            self._clock.sleep(self._chance.uniform(0, _POLL_S))
        return ""

    def _in_flight(self, role: str) -> str:
        """Say what waits for the process: unanswered requests, or records not yet delivered."""
        if role == "drain":
            pending = sum(r["pending"] for r in self._daemon.status()["routes"].values())
            return f"{pending:,} records accepted and not delivered" if pending else ""
        unanswered = sum(producer.sent - producer.answered for producer in self._producers)
        return f"{unanswered} requests unanswered" if unanswered else ""

    def _count(self, result: Result) -> None:
        """Compare the target with what was acknowledged, record by record."""
        expected = {
            lsn: (producer.name, value)
            for producer in self._producers
            for lsn, value in zip(producer.lsns, producer.share, strict=True)
        }
        with closing(sqlite3.connect(self._target)) as database:
            rows = database.execute(_ROWS).fetchall()
        seen = {lsn for lsn, _, _ in rows}
        result.found = len(rows)
        result.doubled = len(rows) - len({value for _, _, value in rows})
        result.missing = len(expected.keys() - seen)
        result.wrong = sum(
            expected.get(lsn) != (key, json.loads(value)) for lsn, key, value in rows
        )
        result.out_of_order = sum(
            one > next_one
            for producer in self._producers
            for one, next_one in zip(producer.lsns, producer.lsns[1:], strict=False)
        )

    def _settled_route(self) -> Mapping[str, Any]:
        """Return the route's figures once the pages of both processes have caught up."""

        def settled() -> bool:
            return bool(self._daemon.status()["routes"][STREAM]["accepted"] >= len(self._records))

        self._wait(settled, "the figures settle")
        route: Mapping[str, Any] = self._daemon.status()["routes"][STREAM]
        return route

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline_ns = self._clock.monotonic_ns() + int(_TIMEOUT_S * CLOCK_NS_PER_S)
        while not condition():
            if self._clock.monotonic_ns() > deadline_ns:
                msg = f"not within {_TIMEOUT_S:g} s: {what}"
                raise Unavailable(msg)
            self._progress(self._answered_records(), what)
            self._clock.sleep(_POLL_S)

    def _pid(self, role: str) -> int:
        if role == "supervisor":
            return self._daemon.pid
        self._wait(lambda: self._daemon.ready_pid(role) is not None, f"{role} starts")
        pid = self._daemon.ready_pid(role)
        assert pid is not None
        return pid

    def _has_answered(self, goal: int) -> bool:
        return self._answered() >= goal or not self._running()

    def _running(self) -> bool:
        return any(producer.is_alive() for producer in self._producers)

    def _answered(self) -> int:
        return sum(producer.answered for producer in self._producers)

    def _answered_records(self) -> int:
        return sum(len(producer.lsns) for producer in self._producers)

    def _since(self, began_ns: int) -> float:
        return (self._clock.monotonic_ns() - began_ns) / CLOCK_NS_PER_S
