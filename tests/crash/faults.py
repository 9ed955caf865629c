"""One fault of the system in one process of a real daemon, by strace, and what came of it.

The n-th call of a kind in a thread fails, is delayed or kills, once or for ever after. Calls that
make things durable are counted from the start of the process, so that starts and recoveries are hit
too; the others from when it is ready. What it struck is read from the trace: a segment, the ledger,
a socket; ``tests.crash.expected`` says what may come of that.
"""

import contextlib
import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import psutil

import wald
from tests.crash.workloads import PICKY, Bench, is_refused, numbers
from tests.daemon import Daemon, wait_until
from wald.errors import WaldError

REQUESTS = 8
GIVE_UP_S = 2.0  # a producer, while a process fails for ever
_ANSWER_S = 5.0  # who asks for the status
_EFFECT_S = 20.0  # what a fault does shows within it
_RETRIED = " route db: "
_FAILED = "a write or a flush of the log failed"
_CONFIG = """
[daemon]
segment_bytes = "16MiB"
[sinks.db]
type = "sqlite"
path = "{directory}/events.db"
[routes.db]
stream = "readings"
sink = "db"
mode = "columns"
table = "picky"
batch = {{ max_records = 5, max_age = "10ms" }}
"""
_WRAPPER = """#!/bin/sh
# the interpreter that the supervisor starts its children with; a pipe gets each line at once
here={directory}
case "$*" in *"wald.app {role}"*)
  if [ ! -e $here/lifted ] && {{ [ {for_ever} = 1 ] || mkdir $here/begun 2>/dev/null; }}; then
    exec strace -D -f -y -qq -e signal=none -o "|cat >>$here/strace" \\
      -e trace={call} -e inject={inject} {python} "$@"
  fi;;
esac
exec {python} "$@"
"""
NAMES = ("renameat2", "rename", "link", "unlink", "mkdir")
WRITES = ("pwritev2", "pwrite64", "writev")
SYNCS = ("fdatasync", "fsync")
ROOM = ("fallocate", "ftruncate")
FROM_THE_START = frozenset({*NAMES, *WRITES, *SYNCS, *ROOM})


PLACES = {
    "segment begun": r"/data/log/fresh-",
    "segment ahead": r"/data/log/(prep-|pool/)",
    "segment": r"/data/log/seg-\d+\.wal",
    "page": r"/data/(ingest|drain)\.page",
    "progress": r"/data/progress",
    "identity": r"/data/(identity|owner)",
    "ledger": r"/data/ledger",
    "dedup ids": r"/data/ids/",
    "dead log": r"/data/dead/",
    "batches": r"/data/(batches|packed|archive)/",
    "lock": r"\.lock\b",
    "directory": r"/data(/\w+)?[>\"/]|<{directory}>|\"{directory}\"",
    "target": r"/events\.db",
    "socket": r"<(UNIX|socket)",
    "module": r"\.(py|pyc|so)\b|/site-packages|/lib/",
    "system": r"/(proc|sys|dev|etc)/",
}
_STRUCK = ("INJECTED", "DELAYED", "= ?")


class Fault(NamedTuple):
    """The ``when``-th ``call`` in ``role`` meets ``action``; for ever after if ``for_ever``."""

    role: str
    call: str
    action: str
    when: int = 1
    for_ever: bool = False

    @property
    def inject(self) -> str:
        """What strace is told."""
        how = {"kill": "signal=SIGKILL", "delay": "delay_enter=700000"}
        action = how.get(self.action, f"error={self.action}")
        return f"{self.call}:{action}:when={self.when}{'+' if self.for_ever else ''}"

    def __str__(self) -> str:
        """Say it."""
        ever = " and ever after" if self.for_ever else ""
        return f"{self.role}: {self.call} number {self.when}{ever} meets {self.action}"


@dataclass(slots=True)
class Outcome:
    """What came of a fault.

    Attributes:
        hit: whether it struck at all.
        struck: what it struck before anybody looked: names of ``PLACES``. Empty: later, while the
            rest was delivered, or at the stop.
        seen: what was seen of it: words of ``tests.crash.expected``; empty: nobody noticed.
        alarmed: whether the status says of a write or flush of the log that it failed.
        acked: how many records were acknowledged.
        wrong: what is wrong; must be empty.
    """

    alarmed: bool = False
    hit: bool = False
    struck: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    acked: int = 0
    wrong: list[str] = field(default_factory=list)


def meet(fault: Fault, planted: str = "") -> Outcome:
    """Run a daemon with a fault, lift it, deliver everything, and say what came of it.

    Args:
        fault: what happens.
        planted: a program that each process runs first: to plant a bug.
    """
    directory = Path(tempfile.mkdtemp(prefix="wd"))
    (directory / "sitecustomize.py").write_text(planted)
    try:
        return _Meeting(fault, directory).run()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class _Meeting:
    def __init__(self, fault: Fault, directory: Path) -> None:
        self.fault = fault
        self.directory = directory
        self.outcome = Outcome()
        self.maybe: set[int] = set()
        self.trace = directory / "strace"
        launcher = (sys.executable, "-m", "wald")
        if fault.call in FROM_THE_START:
            wrapper = directory / "python"
            wrapper.write_text(
                _WRAPPER.format(
                    role=fault.role,
                    directory=directory,
                    for_ever=int(fault.for_ever),
                    call=fault.call,
                    inject=fault.inject,
                    python=sys.executable,
                )
            )
            wrapper.chmod(0o755)
            program = f"import sys; sys.executable = {str(wrapper)!r}; from wald.cli import main; "
            launcher = (sys.executable, "-c", program + "sys.exit(main())")
        config = _CONFIG.format(directory=directory)
        first = {"PYTHONPATH": str(directory)}  # the children have it of their supervisor
        self.daemon = Daemon(
            directory, config=config, launcher=launcher, needs=(), environment=first
        )
        self.bench = Bench(self.daemon, Random(1))
        with closing(sqlite3.connect(directory / "events.db")) as target:
            target.execute(PICKY)

    def run(self) -> Outcome:
        with self.daemon:
            if self.fault.call in FROM_THE_START:
                self._produce()
            else:
                self._ready()
                with self._traced(self.daemon.pids()[self.fault.role]):
                    self._produce()
            self._look()
            self._lift()
            self._settle()
        # the trace is whole only when strace has ended; whom we killed ourselves does not count
        self.outcome.hit = bool(self.outcome.struck) or (
            not self.fault.for_ever and bool(self._strikes())
        )
        return self.outcome

    def _strikes(self) -> set[str]:
        """Return what was struck so far."""
        found, begun = set(), dict[str, str]()
        lines = self.trace.read_text(errors="replace").splitlines() if self.trace.exists() else []
        for line in lines:
            thread = line.split(maxsplit=1)[0]
            if "<unfinished ...>" in line:
                begun[thread] = line
            if any(mark in line for mark in _STRUCK):
                found.add(self._place(begun[thread] if " resumed>" in line else line))
        return found

    def _place(self, line: str) -> str:
        """Say what a line of the trace is about."""
        named = re.findall(r"<[^>]*>|\"[^\"]*\"", line)
        about = "".join(named if self.fault.call in NAMES else named[:2])
        for place, pattern in PLACES.items():
            if re.search(pattern.replace("{directory}", re.escape(str(self.directory))), about):
                return place
        return "other"

    def _ready(self) -> None:
        wait_until(lambda: {"ingest", "drain"} <= self.daemon.pids().keys(), "it is ready")

    @contextlib.contextmanager
    def _traced(self, pid: int) -> Iterator[None]:
        fault = self.fault
        what = ["-e", "signal=none", "-e", f"trace={fault.call}", "-e", f"inject={fault.inject}"]
        command = ["strace", "-f", "-y", *what, "-o", f"|cat >>{self.trace}"]
        tracer = subprocess.Popen([*command, "-p", str(pid)], stderr=subprocess.PIPE, text=True)
        assert tracer.stderr is not None
        try:
            first = tracer.stderr.readline()
            assert "attached" in first, first
            yield
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(60)
            tracer.stderr.close()

    def _produce(self) -> None:
        timeout_s = GIVE_UP_S if self.fault.for_ever else 30.0
        for _ in range(REQUESTS):
            if self.fault.role == "supervisor":
                self._ask()
            first = len(self.bench.sent)
            try:
                with wald.connect(str(self.daemon.socket), timeout=timeout_s) as producer:
                    self.bench.append(producer, 3)
            except WaldError as error:
                self.maybe.update(range(first, len(self.bench.sent)))
                if self.fault.for_ever and not self._strikes():
                    continue  # this machine is slow, that is all
                self.outcome.seen.add("unknown" if error.code == "outcome-unknown" else "refused")
                if self.fault.for_ever:
                    return

    def _ask(self) -> None:
        answer = self._status(_ANSWER_S)
        if answer is None:
            self.outcome.seen.add("no answer")
        elif not answer["ok"]:
            self.outcome.seen.add("error told")

    def _status(self, patience_s: float) -> dict[str, Any] | None:
        self.daemon.patience_s = patience_s
        return self.daemon.ask(op="status")

    def _look(self) -> None:
        """Say what was struck, and what is to be seen of it."""
        if self.fault.role == "drain":
            self._await_effect()
        self.outcome.struck = self._strikes()
        if self.fault.role == "ingest" and self.outcome.struck and not self.outcome.seen:
            self._produce()  # one more group: what was struck behind the last shows now
            self.outcome.struck |= self._strikes()
        status = self._status(_ANSWER_S) or {}
        if status.get("processes", {}).get(self.fault.role, {}).get("starts", 1) > 1:
            self.outcome.seen.add("restarted")
            if " ended: " not in self.daemon.log.read_text():
                self.outcome.wrong.append("nobody said what ended")
        said = self.daemon.log.read_text()
        if _RETRIED in said:
            self.outcome.seen.add("retried")
        if _FAILED in said:
            self.outcome.seen.add("fresh segment")
            self._await("its alarm", self._alarmed)
        if "restarted" in self.outcome.seen and not self.outcome.struck:
            self._await("the end of the trace", lambda: bool(self._strikes()))
            self.outcome.struck = self._strikes()

    def _await_effect(self) -> None:
        """Wait until the drainer was struck and it shows, or nothing is left to be struck."""

        def over() -> bool:
            status = self._status(_ANSWER_S) or {}
            drain = status.get("processes", {}).get("drain", {})
            routes = status.get("routes", {}).values()
            drained = any(route["accepted"] and not route["pending"] for route in routes)
            if self.fault.for_ever and _RETRIED in self.daemon.log.read_text():
                return True
            return drain.get("starts", 1) > 1 or (drained and drain.get("ready"))

        self._await("it shows", over)

    def _await(self, what: str, condition: Callable[[], bool]) -> None:
        with contextlib.suppress(AssertionError):
            wait_until(condition, what, _EFFECT_S)

    def _alarmed(self) -> bool:
        status = self._status(_ANSWER_S) or {}
        self.outcome.alarmed = bool(status.get("write_failures", {}).get("count"))
        return self.outcome.alarmed

    def _lift(self) -> None:
        (self.directory / "lifted").touch()
        assert self.daemon.process is not None
        if self.daemon.process.poll() is not None:
            self.outcome.seen.add("supervisor ended")
            self.daemon.start()
        elif self.fault.for_ever and self.fault.role != "supervisor":
            self._end_the_struck()
        self._ready()
        if self._starts() > 1 and not self.fault.for_ever:
            self.outcome.seen.add("restarted")

    def _starts(self) -> int:
        status = self._status(30.0) or {}
        return int(status["processes"].get(self.fault.role, {}).get("starts", 1))

    def _end_the_struck(self) -> None:
        """Let a process without the fault take its place; one more may be on its way with it."""

        def over() -> bool:
            status = self._status(30.0) or {}
            pid = status["processes"][self.fault.role].get("pid")
            if pid and _is_traced(pid):
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(pid).kill()
                return False
            return bool(pid) and self.daemon.pids().get(self.fault.role) == pid

        wait_until(over, "a process without the fault is ready")

    def _settle(self) -> None:
        """Go on without the fault: everything acknowledged is delivered once, and in order."""
        with self.bench.connect() as producer:
            self.bench.append(producer, 3)
        self.bench.drained()
        self.daemon.command("audit")
        self.outcome.acked = len(self.bench.acked)
        held = numbers(self.directory / "events.db", "picky", "n")
        owed = {n for n in self.bench.acked.values() if not is_refused(n)}
        wrong = self.outcome.wrong
        if missing := owed - set(held):
            wrong.append(f"{len(missing)} records missing")
        if len(set(held)) != len(held):
            wrong.append("records doubled")
        if others := set(held) - owed - self.maybe:
            wrong.append(f"{len(others)} records that nobody sent, or that were refused")
        if [number for number in held if number in owed] != sorted(owed):
            wrong.append("records out of order")
        self._settle_books(len(held))

    def _settle_books(self, held: int) -> None:
        status = json.loads(self.daemon.command("status", "--json"))
        route, wrong = status["routes"]["db"], self.outcome.wrong
        dead = sum(map(is_refused, self.bench.acked.values()))
        if not dead <= route["dead_letters"] <= dead + sum(map(is_refused, self.maybe)):
            wrong.append(f"{route['dead_letters']} dead letters, and not {dead}")
        settled = route["delivered"] + route["dead_letters"]
        if route["accepted"] != settled or route["delivered"] != held or route["lost"]:
            wrong.append(f"the books: {route}")
        if any("loss" in path for path in status["unseen"]):
            wrong.append("a loss was reported, and no disk was damaged")
        if any(self.daemon.data_dir.glob("ledger.damaged-*")):
            wrong.append("the ledger was set aside, and no disk was damaged")


def _is_traced(pid: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    return not any(line.split() == ["TracerPid:", "0"] for line in lines)
