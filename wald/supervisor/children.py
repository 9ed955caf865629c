"""A child process: started anew when it ends, told to end in time, never left behind.

A child reads one line from its standard input (settings, and the descriptor it serves) and keeps
reading: the end of that pipe means that the supervisor is gone. On its standard output it says one
line: ``{"ready": true}`` when it serves, or ``{"error": ...}`` when it cannot start.
"""

import asyncio
import json
import logging
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum

from wald import limits
from wald.errors import EXIT_CONFIG, DataDirectoryHeld, StartFailed, WaldError, reported
from wald.ports import Chance, Clock

log = logging.getLogger("wald.supervisor")


class ChildState(Enum):
    """Where a child is in its life."""

    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"  # between two attempts
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(slots=True)
class Command:
    """What a child is started with."""

    role: str
    line: bytes
    pass_fds: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


class Child:
    """One child and the attempts to keep it running. All in the supervisor's loop.

    Args:
        command: what to start.
        clock: for the length of a run.
        chance: for the jitter of the back-off.
        on_change: called after each change of ``state``.
    """

    def __init__(
        self,
        command: Command,
        clock: Clock,
        chance: Chance,
        on_change: Callable[[], None],
    ) -> None:
        self.role = command.role
        self.state = ChildState.STARTING
        self.starts = 0
        self.last_error = ""
        self.error: WaldError | None = None  # what it told before its last end
        self._command = command
        self._clock = clock
        self._chance = chance
        self._on_change = on_change
        self._process: Process | None = None
        self._ready_ns: int | None = None  # since when this attempt serves
        self._stop = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def figures(self) -> dict[str, object]:
        """Return what ``status`` says of the child."""
        return {
            "pid": self.pid,
            "state": self.state.value,
            "ready": self.state is ChildState.READY,
            "starts": self.starts,
            "last_error": self.last_error,
            "error": self.error.as_dict() | {"exit_code": self.error.exit_code}
            if self.error
            else None,
        }

    async def keep_running(self) -> WaldError | None:
        """Run until ``stop``; return the error if the child says that starting again is no use."""
        failures = 0
        while not self._stop.is_set():
            error = await self._run_once()
            if error is not None and is_final(error, self.role):
                self._enter(ChildState.STOPPED)
                return error
            if self._stop.is_set():
                break
            failures = failures_after(failures, self._served_s(), killed=self._was_killed())
            self._enter(ChildState.WAITING)
            await self._pause(backoff_s(failures, self._chance))
        self._enter(ChildState.STOPPED)
        return None

    async def stop(self, within_s: float) -> None:
        """Ask it to end (SIGTERM), and end it (SIGKILL) if it has not in time."""
        self._stop.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        self._enter(ChildState.STOPPING)
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), within_s)
        except TimeoutError:
            log.warning("%s did not end within %.0f s: killed", self.role, within_s)
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _run_once(self) -> WaldError | None:
        self._enter(ChildState.STARTING)
        self.starts += 1
        self._ready_ns = None
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "wald.app", self.role),
                stdin=PIPE,
                stdout=PIPE,
                pass_fds=self._command.pass_fds,
                env=self._command.environment,
                start_new_session=True,  # Ctrl-C is the supervisor's to pass on, in order
                limit=limits.CONTROL_LINE_MAX_BYTES,
            )
        except (OSError, RuntimeError) as refused:  # no descriptor, process, thread: it passes
            return self._not_made(refused)
        self._process = process
        if self._stop.is_set():  # asked to end while it was being made
            process.kill()
        assert process.stdin is not None
        assert process.stdout is not None
        error = None
        try:
            process.stdin.write(self._command.line)
            with suppress(ConnectionError):
                await process.stdin.drain()
            error = self._heard(await _line(process.stdout))
            while await _line(process.stdout):
                pass  # a child says one line; more is not ours to keep
            await process.wait()
        finally:
            process.stdin.close()
        self.error = error
        if process.returncode and not self._stop.is_set():
            self.last_error = error.message if error else _ending(process.returncode)
            if error is None or not is_final(error, self.role):  # that is said by our own end
                log.warning("%s ended: %s", self.role, self.last_error)
        return error

    def _not_made(self, refused: Exception) -> WaldError:
        """Take in that the system gives no process now; what runs goes on."""
        why = f"no process for it: {getattr(refused, 'strerror', None) or refused}"
        self.error, self.last_error = StartFailed(f"{self.role}: {why}"), why
        log.warning("%s cannot be started yet: %s", self.role, why)
        return self.error

    def _heard(self, line: bytes) -> WaldError | None:
        try:
            said = json.loads(line) if line else {}
        except ValueError:
            said = {}
        if isinstance(said, dict) and said.get("ready"):
            self._ready_ns = self._clock.monotonic_ns()
            if not self._stop.is_set():
                self._enter(ChildState.READY)
            return None
        report = said.get("error") if isinstance(said, dict) else None
        return reported(report) if isinstance(report, dict) else None

    def _served_s(self) -> float:
        """Return for how long the last attempt was ready."""
        if self._ready_ns is None:
            return 0.0
        return (self._clock.monotonic_ns() - self._ready_ns) / limits.CLOCK_NS_PER_S

    def _was_killed(self) -> bool:
        return self._process is not None and self._process.returncode == -signal.SIGKILL

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    def _enter(self, state: ChildState) -> None:
        if state is not self.state:
            self.state = state
            self._on_change()


def backoff_s(failures: int, chance: Chance) -> float:
    """Return how long to wait before the next attempt: doubling, bounded, with jitter."""
    bound_s = _pause_max_s(failures)
    return chance.uniform(bound_s / 2, bound_s)


def failures_after(failures: int, served_s: float, *, killed: bool = False) -> int:
    """Return how many attempts in a row have failed, now that another one has ended.

    Args:
        failures: how many before it.
        served_s: for how long it was ready. Only one that is long beside the last pause ends the
            row: what dies after each start would else start at the shortest pause for ever.
        killed: by SIGKILL: who was ready then has not failed, and is wanted at once.
    """
    longest_s = limits.CHILD_SETTLED_PAUSES_COUNT * _pause_max_s(failures)
    is_settled = served_s > 0 if killed else served_s >= longest_s
    return 0 if is_settled else failures + 1


def _pause_max_s(failures: int) -> float:
    doublings = min(max(failures - 1, 0), 16)
    return min(limits.CHILD_BACKOFF_CAP_S, limits.CHILD_BACKOFF_BASE_S * 2.0**doublings)


def is_final(error: WaldError, role: str) -> bool:
    """Tell whether a child that could not start for this reason will not start again either.

    Who holds the ledger (a command, what is left of an earlier daemon) delays delivery: that must
    not end what acknowledges.
    """
    if role == "drain" and error.code == DataDirectoryHeld.code:
        return False
    return error.exit_code == EXIT_CONFIG or error.code.startswith("data.")


def _ending(returncode: int) -> str:
    if returncode == -signal.SIGBUS:  # of a mapped file: LMDB's, and every one of a Btrfs
        return "killed by SIGBUS (the disk has no room for a mapped file, or fails)"
    if returncode < 0:
        try:
            return f"killed by {signal.Signals(-returncode).name}"
        except ValueError:
            return f"killed by signal {-returncode}"
    return f"exit code {returncode}"


async def _line(stream: asyncio.StreamReader) -> bytes:
    try:
        return await stream.readline()
    except (ValueError, ConnectionError):  # a line beyond the limit is not ours
        return b""
