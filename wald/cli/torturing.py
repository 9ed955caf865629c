"""What ``wald torture`` does: a load, and what befalls the processes under it.

Every record is a number of its producer's, and each producer keeps for its numbers the LSNs that it
was told: 8 bytes a record, so that a run of days is counted to the last one.
"""

import contextlib
import json
import random
import sqlite3
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from wald.cli.ask import Control
from wald.cli.daemon import OwnDaemon
from wald.cli.status import wait_for_routes
from wald.errors import Unavailable, WaldError
from wald.limits import CLOCK_NS_PER_S
from wald.model import Receipt
from wald.ports import Clock

if TYPE_CHECKING:
    from wald import Producer as Sender

STREAM = "torture"
ROLES = ("ingest", "drain", "supervisor")
_PAD_BYTES = 100
_TIMEOUT_S = 120.0
_POLL_S = 0.01
_SAMPLE_S = 0.25
_DRAIN_S = 600.0
_MEMORY_LIMIT_BYTES = 8 << 20
_MEMORY_WAIT_S = 5.0
_MEMORY_ROOTS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))
_ROWS = (
    "SELECT lsn, json_extract(value, '$.p'), json_extract(value, '$.n') FROM torture ORDER BY rowid"
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done.

    Attributes:
        seconds: how long there is load.
        every_s: the mean time between two blows.
        stop_max_s: the longest that a process is stopped (SIGSTOP).
        producers: how many producers append.
        rate: records a second that they make together at most.
        damage: so many bit flips and truncations of files at rest, spread over the run.
    """

    seconds: float = 60.0
    every_s: float = 2.0
    stop_max_s: float = 15.0
    producers: int = 4
    rate: int = 4_000
    damage: int = 0


@dataclass(slots=True)
class Blow:
    """What befell a process or a file: when, what, and how long it took to serve again."""

    at_s: float
    kind: str  # "kill" | "stop" | "memory" | "flip" | "cut"
    role: str
    back_after_s: float = 0.0


@dataclass(slots=True)
class Report:
    """What a run found.

    Attributes:
        samples: (seconds, records acknowledged, records delivered) four times a second.
        lost: acknowledged records that a loss report or a dead letter names, of damage on request.
        missing: those that nothing names: must be 0.
        unsent: records at the target that nobody sent.
    """

    seconds: float = 0.0
    blows: list[Blow] = field(default_factory=list)
    samples: list[tuple[float, int, int]] = field(default_factory=list)
    acked: int = 0
    unanswered: int = 0
    found: int = 0
    lost: int = 0
    missing: int = 0
    doubled: int = 0
    unsent: int = 0
    wrong_lsn: int = 0
    out_of_order: int = 0
    audit: list[dict[str, Any]] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        wrong = self.missing + self.doubled + self.unsent + self.wrong_lsn + self.out_of_order
        balanced = bool(self.audit) and all(each["balanced"] for each in self.audit)
        return self.acked > 0 and not wrong and balanced

    def as_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {**asdict(self), "passed": self.passed}


class _Producer(threading.Thread):
    """Appends records of its own numbers until it is told to end; goes on after any answer."""

    def __init__(self, socket: str, number: int, pace_s: float, clock: Clock) -> None:
        super().__init__(name=f"producer-{number}", daemon=True)
        self.number = number
        self.lsns = array("q")  # by the record's number: 0 while it has no answer
        self.end = threading.Event()
        self._socket = socket
        self._pace_s = pace_s
        self._chance = random.Random(number)  # noqa: S311 - sizes and bytes of a load
        self._clock = clock

    def run(self) -> None:
        """Connect, append, and connect anew whatever happens."""
        import wald

        while not self.end.is_set():
            with contextlib.suppress(WaldError):
                producer = wald.connect(self._socket, timeout=_TIMEOUT_S)
                with producer:
                    while not self.end.is_set():
                        self._request(producer)
            self.end.wait(_POLL_S)

    def _request(self, producer: "Sender") -> None:
        first, count = len(self.lsns), self._chance.randint(1, 40)
        values = [
            {"p": self.number, "n": n, "pad": self._chance.randbytes(_PAD_BYTES)}
            for n in range(first, first + count)
        ]
        self.lsns.extend([0] * count)
        results = producer.append_many(STREAM, values, key=self.name)
        for n, result in enumerate(results, first):
            if isinstance(result, Receipt):
                self.lsns[n] = result.lsn
        self.end.wait(self._pace_s * count)


class Torture:
    """A run.

    Args:
        directory: where everything goes; empty, and short enough for a socket.
        plan: what to do.
        clock: real time.
        chance: decides what befalls whom, and when.
        tell: told what happens: (what, seconds so far).
    """

    def __init__(
        self,
        directory: Path,
        plan: Plan,
        clock: Clock,
        chance: random.Random,
        tell: Callable[[str, float], None],
    ) -> None:
        self._directory = directory
        self._plan = plan
        self._clock = clock
        self._chance = chance
        self._tell = tell
        self._target = directory / "target.db"
        self._data = directory / "data"
        arguments = ["--to", f"sqlite:{self._target}", "--data-dir", str(self._data)]
        self._daemon = OwnDaemon(
            arguments, str(directory / "wald.sock"), directory / "serve.log", clock
        )
        pace_s = plan.producers / plan.rate
        self._producers = [
            _Producer(self._daemon.socket, number, pace_s, clock)
            for number in range(plan.producers)
        ]
        self._began_ns = 0
        self._report = Report()
        self._dead: set[int] = set()

    def run(self) -> Report:
        """Load, strike, lift everything, drain, audit and count.

        Raises:
            WaldError: the daemon did not start, or did not come back.
        """
        report = self._report
        with self._daemon:
            self._began_ns = self._clock.monotonic_ns()
            for producer in self._producers:
                producer.start()
            for at_s in self._moments():
                self._wait(at_s)
                self._strike()
            self._wait(self._plan.seconds)
            for producer in self._producers:
                producer.end.set()
            for producer in self._producers:
                producer.join(_TIMEOUT_S)
            report.seconds = self._since()
            self._tell("delivering", report.seconds)
            self._settle()
        self._count()
        return report

    def _moments(self) -> Iterator[float]:
        at_s = 0.0
        while True:
            at_s = max(at_s, self._since()) + self._chance.expovariate(1 / self._plan.every_s)
            if at_s >= self._plan.seconds:
                return
            yield at_s

    def _wait(self, until_s: float) -> None:
        """Let the load run, and note how far it is."""
        while self._since() < until_s:
            samples = self._report.samples
            if not samples or self._since() >= samples[-1][0] + _SAMPLE_S:
                self._sample()
            self._clock.sleep(_POLL_S)

    def _sample(self) -> None:
        delivered = self._report.samples[-1][2] if self._report.samples else 0
        with contextlib.suppress(WaldError):
            routes = self._daemon.status()["routes"]
            delivered = max(delivered, sum(each["delivered"] for each in routes.values()))
        acked = sum(len(each.lsns) - each.lsns.count(0) for each in self._producers)
        self._report.samples.append((round(self._since(), 3), acked, delivered))
        self._tell("", self._since())

    # --- the blows ------------------------------------------------------------------------------

    def _strike(self) -> None:
        struck = sum(blow.kind in {"flip", "cut"} for blow in self._report.blows)
        share = self._since() / self._plan.seconds
        if struck < self._plan.damage and share > struck / self._plan.damage:
            self._damage()
            return
        kind = self._chance.choices(("kill", "stop", "memory"), (6, 3, 1))[0]
        role = self._chance.choice(ROLES if kind == "kill" else ROLES[:2])
        if kind == "memory" and not self._starve(role):
            kind = "kill"
        if kind == "kill":
            self._kill(role)
        elif kind == "stop":
            self._stop(role)

    def _kill(self, role: str) -> None:
        pid = self._pid(role)
        blow = self._blow("kill", role)
        psutil.Process(pid).kill()
        if role == "supervisor":
            self._daemon.wait_ended()
            self._daemon.start()
        self._back(role, pid, blow)

    def _stop(self, role: str) -> None:
        pid = self._pid(role)
        blow = self._blow("stop", role)
        seconds = self._chance.uniform(0.1, 1.0) ** 2 * self._plan.stop_max_s
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).suspend()
        self._wait(min(self._since() + seconds, self._plan.seconds))
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).resume()
        blow.back_after_s = round(self._since() - blow.at_s, 3)

    def _starve(self, role: str) -> bool:
        """Let a process run out of memory, where this machine has groups with limits; else False.

        The kernel kills it when it wants more; one that wants no more for a time goes free.
        """
        pid = self._pid(role)
        for root in _MEMORY_ROOTS:
            limit = next(
                (name for name in ("memory.max", "memory.limit_in_bytes") if _offers(root, name)),
                "",
            )
            group = root / f"wald-torture-{pid}"
            if not limit:
                continue
            try:
                group.mkdir()
                (group / limit).write_text(str(_MEMORY_LIMIT_BYTES))
                (group / "cgroup.procs").write_text(str(pid))
            except OSError:
                with contextlib.suppress(OSError):
                    group.rmdir()
                continue
            blow = self._blow("memory", role)
            end_s = self._since() + _MEMORY_WAIT_S
            while psutil.pid_exists(pid) and self._since() < end_s:
                self._wait(self._since() + _POLL_S)
            with contextlib.suppress(OSError):
                (root / "cgroup.procs").write_text(str(pid))
            with contextlib.suppress(OSError):
                group.rmdir()
            self._back(role, None, blow)
            return True
        return False

    def _damage(self) -> None:
        """Flip a bit, or cut a file, of what lies at rest while no daemon runs."""
        files = sorted(self._data.glob("log/seg-*.wal"))[:-1] + sorted(self._data.glob("packed/*"))
        if not files:
            files = sorted(self._data.glob("log/seg-*.wal"))
        self._daemon.stop()
        path = self._chance.choice(files)
        size = path.stat().st_size
        at = self._chance.randrange(size) if size else 0
        kind = self._chance.choice(("flip", "flip", "cut"))
        with path.open("r+b") as file:
            if kind == "cut":
                file.truncate(at)
            elif size:
                file.seek(at)
                byte = file.read(1)[0] ^ (1 << self._chance.randrange(8))
                file.seek(at)
                file.write(bytes((byte,)))
        blow = self._blow(kind, path.name)
        self._daemon.start()
        blow.back_after_s = round(self._since() - blow.at_s, 3)

    def _blow(self, kind: str, role: str) -> Blow:
        blow = Blow(round(self._since(), 3), kind, role)
        self._report.blows.append(blow)
        self._tell(f"{kind} {role}", blow.at_s)
        return blow

    def _back(self, role: str, pid: int | None, blow: Blow) -> None:
        """Wait until another process of a role serves."""
        end_s = self._since() + _TIMEOUT_S
        while role != "supervisor" and self._ready_pid(role) in {None, pid}:
            if self._since() > end_s:
                msg = f"{role} did not come back within {_TIMEOUT_S:g} s"
                raise Unavailable(msg, hint=f"see {self._directory / 'serve.log'}")
            self._wait(self._since() + _POLL_S)
        blow.back_after_s = round(self._since() - blow.at_s, 3)

    def _pid(self, role: str) -> int:
        if role == "supervisor":
            return self._daemon.pid
        end_s = self._since() + _TIMEOUT_S
        while (pid := self._ready_pid(role)) is None and self._since() < end_s:
            self._clock.sleep(_POLL_S)
        if pid is None:
            msg = f"{role} does not serve"
            raise Unavailable(msg, hint=f"see {self._directory / 'serve.log'}")
        return pid

    def _ready_pid(self, role: str) -> int | None:
        try:
            return self._daemon.ready_pid(role)
        except WaldError:
            return None

    # --- the count ------------------------------------------------------------------------------

    def _settle(self) -> None:
        with Control(self._daemon.socket) as control:
            wait_for_routes(control, None, _DRAIN_S, self._clock)
            said = control.ask("drain.audit", route=None)
            while not said["finished"]:
                self._clock.sleep(_POLL_S)
                said = control.ask("drain.audit", number=said["number"])
            self._report.audit = said["routes"]
            letters = control.ask("drain.dlq", limit=1_000)["entries"]
        self._dead = {int(letter["lsn"]) for letter in letters}
        self._sample()

    def _count(self) -> None:
        """Compare the target with what was acknowledged, record by record."""
        report = self._report
        seen = [bytearray(len(each.lsns)) for each in self._producers]
        last = [-1] * len(self._producers)
        with closing(sqlite3.connect(self._target)) as database:
            for lsn, producer, number in database.execute(_ROWS):
                report.found += 1
                lsns = self._producers[producer].lsns
                if number >= len(lsns):
                    report.unsent += 1
                    continue
                report.doubled += seen[producer][number]
                seen[producer][number] = 1
                report.wrong_lsn += lsns[number] not in {0, lsn}
                report.out_of_order += number < last[producer]
                last[producer] = number
        lost = _lost_ranges(self._data)
        for producer, held in zip(self._producers, seen, strict=True):
            report.unanswered += producer.lsns.count(0)
            report.acked += len(producer.lsns) - producer.lsns.count(0)
            for lsn, here in zip(producer.lsns, held, strict=True):
                if lsn and not here:
                    named = lsn in self._dead or any(lo <= lsn <= hi for lo, hi in lost)
                    report.lost += named
                    report.missing += not named

    def _since(self) -> float:
        return (self._clock.monotonic_ns() - self._began_ns) / CLOCK_NS_PER_S


def _offers(root: Path, name: str) -> bool:
    """Tell whether groups below a root have a file of this name."""
    return (root / "cgroup.procs").exists() and any(root.glob(f"*/{name}"))


def _lost_ranges(data: Path) -> Sequence[tuple[int, int]]:
    """Return the LSN ranges that loss reports name."""
    reports = [json.loads(path.read_text()) for path in sorted(data.glob("reports/loss-*.json"))]
    losses = [loss for report in reports for loss in report["lost"]]
    return [(int(loss["first_lsn"]), int(loss["last_lsn"])) for loss in losses]
