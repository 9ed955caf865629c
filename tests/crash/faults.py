"""One fault of the system in one process of a real daemon, by strace, and what came of it.

The n-th call of a kind fails, is delayed or kills, once or for ever after. Calls that make things
durable are counted from the start of the process, so that starts and recoveries are hit too; the
others from when it is ready.
"""

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

import psutil

import wald
from tests.crash.workloads import Bench, numbers
from tests.daemon import Daemon, wait_until
from wald.errors import WaldError

REQUESTS = 8
GIVE_UP_S = 3.0  # a producer, while a process fails for ever
_JSON = "json_extract(value, '$.n')"
_CONFIG = """
[daemon]
segment_bytes = "16MiB"
[sinks.db]
type = "sqlite"
path = "{directory}/events.db"
[routes.db]
stream = "readings"
sink = "db"
batch = {{ max_records = 5, max_age = "10ms" }}
"""
_WRAPPER = """#!/bin/sh
# the interpreter that the supervisor starts its children with
here={directory}
case "$*" in *"wald.app {role}"*)
  if [ ! -e $here/lifted ] && {{ [ {for_ever} = 1 ] || mkdir $here/begun 2>/dev/null; }}; then
    exec strace -D -f -qq -A -e signal=none -o $here/strace \\
      -e trace={call} -e inject={inject} {python} "$@"
  fi;;
esac
exec {python} "$@"
"""
FROM_THE_START = frozenset(
    {"pwritev2", "pwrite64", "writev", "fdatasync", "fsync", "fallocate", "ftruncate"}
    | {"renameat2", "rename", "link", "unlink", "mkdir"}
)


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
        seen: what was seen of it: ``restarted``, ``fresh segment``, ``refused``, ``unknown``,
            ``supervisor ended``; empty: nobody noticed.
        acked: how many records were acknowledged.
        wrong: what is wrong; must be empty.
    """

    hit: bool = False
    seen: set[str] = field(default_factory=set)
    acked: int = 0
    wrong: list[str] = field(default_factory=list)


def meet(fault: Fault) -> Outcome:
    """Run a daemon with a fault, lift it, deliver everything, and say what came of it."""
    directory = Path(tempfile.mkdtemp(prefix="wd"))
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
        self.daemon = Daemon(directory, config=config, launcher=launcher, needs=())
        self.bench = Bench(self.daemon, Random(1))

    def run(self) -> Outcome:
        with self.daemon:
            if self.fault.call in FROM_THE_START:
                self._produce()
            else:
                self._ready()
                with self._traced(self.daemon.pids()[self.fault.role]):
                    self._produce()
            self._lift()
            self._settle()
        log = self.directory / "strace"  # whole only when strace has ended
        said = log.read_text() if log.exists() else ""
        self.outcome.hit = any(mark in said for mark in ("INJECTED", "DELAYED", "= ?"))
        return self.outcome

    def _ready(self) -> None:
        wait_until(lambda: {"ingest", "drain"} <= self.daemon.pids().keys(), "it is ready")

    @contextlib.contextmanager
    def _traced(self, pid: int) -> Iterator[None]:
        fault, log = self.fault, self.directory / "strace"
        command = ["strace", "-f", "-e", "signal=none", "-o", str(log), "-e", f"trace={fault.call}"]
        tracer = subprocess.Popen(
            [*command, "-e", f"inject={fault.inject}", "-p", str(pid)],
            stderr=subprocess.PIPE,
            text=True,
        )
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
                self.daemon.ask(op="status")
            first = len(self.bench.sent)
            try:
                with wald.connect(str(self.daemon.socket), timeout=timeout_s) as producer:
                    self.bench.append(producer, 3)
            except WaldError as error:
                self.outcome.seen.add("unknown" if error.code == "outcome-unknown" else "refused")
                self.maybe.update(range(first, len(self.bench.sent)))
                if self.fault.for_ever:
                    return

    def _lift(self) -> None:
        (self.directory / "lifted").touch()
        assert self.daemon.process is not None
        if self._starts() > 1:
            self.outcome.seen.add("restarted")
        if self.daemon.process.poll() is not None:
            self.outcome.seen.add("supervisor ended")
            self.daemon.start()
        elif self.fault.for_ever and self.fault.role != "supervisor":
            self._end_the_struck()
        self._ready()
        if self._starts() > 1 and not self.fault.for_ever:
            self.outcome.seen.add("restarted")
        segments = len(list((self.daemon.data_dir / "log").glob("*.wal")))
        if segments > 2 and self.fault.role == "ingest" and not self.outcome.seen:
            self.outcome.seen.add("fresh segment")

    def _starts(self) -> int:
        processes = (self.daemon.ask(op="status") or {}).get("processes")
        assert isinstance(processes, dict)
        return int(processes.get(self.fault.role, {}).get("starts", 1))

    def _end_the_struck(self) -> None:
        """Let a process without the fault take its place."""
        status = self.daemon.ask(op="status") or {}
        processes = status["processes"]
        assert isinstance(processes, dict)
        pid = processes[self.fault.role].get("pid")
        if pid:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()

    def _settle(self) -> None:
        """Go on without the fault: everything acknowledged is delivered once, and in order."""
        with self.bench.connect() as producer:
            self.bench.append(producer, 3)
        self.bench.drained()
        self.daemon.command("audit")
        self.outcome.acked = len(self.bench.acked)
        held = numbers(self.directory / "events.db", "readings", _JSON)
        owed = set(self.bench.acked.values())
        wrong = self.outcome.wrong
        if missing := owed - set(held):
            wrong.append(f"{len(missing)} records missing")
        if len(set(held)) != len(held):
            wrong.append("records doubled")
        if others := set(held) - owed - self.maybe:
            wrong.append(f"{len(others)} records that nobody sent, or that were refused")
        if [number for number in held if number in owed] != sorted(owed):
            wrong.append("records out of order")
