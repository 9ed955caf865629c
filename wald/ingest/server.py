"""The ingest process: opens the log, serves the socket in one loop, stops cleanly."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable

import uvloop

from wald import limits
from wald.config import Settings
from wald.core.access import Access, Caller
from wald.core.events import Goodbye
from wald.core.frame import Section
from wald.errors import DiskFull, LogFailed, WaldError
from wald.ingest.catalogue import deaths, plan_start
from wald.ingest.committer import Committer, Statement
from wald.ingest.connection import Connection
from wald.ingest.doorman import Doorman, raise_file_limit
from wald.ingest.doorway import Rules
from wald.ingest.figures import Figures, Progress, oldest_retained, pending_records
from wald.ingest.house import House
from wald.ingest.preallocate import PreallocatorThread
from wald.ingest.quotas import Quotas
from wald.ingest.room import Room
from wald.ingest.streams import dedup_policies, stream_rules
from wald.ports import Chance, Clock, FileSystem
from wald.storage.log import Log, LogOptions
from wald.storage.start import RecoveryReport

_log = logging.getLogger("wald.ingest")

_STOP_S = 2.0  # for clients to take their last answers


def run(  # noqa: PLR0913 - the doors of a process
    settings: Settings,
    *,
    listening: socket.socket,
    stop_fd: int | None = None,
    fs: FileSystem,
    clock: Clock,
    chance: Chance,
    ready: Callable[[dict[str, object]], None],
    access: Access | None = None,
    who: Callable[[socket.socket], Caller] | None = None,
) -> int:
    """Serve until SIGTERM, SIGINT or the end of ``stop_fd``; return the exit code.

    Args:
        settings: data directory, streams, routes.
        listening: the bound socket; it stays open in the supervisor.
        stop_fd: a pipe that ends with the supervisor.
        fs: the file system of the data directory.
        clock: time.
        chance: for the ids of sessions and of the log.
        ready: called once with facts when clients are served.
        access: who may do what; None: whoever may open the socket may do everything.
        who: says who connected, if there is ``access``.

    Raises:
        WaldError: the log cannot be opened, a route contradicts the log, or the log failed; in the
            last case nothing of what was in doubt has been answered.
    """
    options = LogOptions(
        segment_bytes=settings.segment_bytes,
        retain_after_delivery_s=settings.retain_after_delivery_s,
        retain_after_delivery_bytes=settings.retain_after_delivery_bytes,
        reserve_bytes=settings.reserve_bytes,
        dedup=dedup_policies(settings),
    )
    log = Log.open(fs, settings.data_dir, clock, chance, options)
    try:
        _tell(log.recovery)
        _agree_with_settings(log, settings, fs)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            ingest = Ingest(settings, log, fs, clock, chance, access)
            runner.run(ingest.serve(listening, stop_fd, ready, who if access else None))
    finally:
        log.close()
    return 0


def _tell(recovery: RecoveryReport) -> None:
    """Log what the start found: what is lost is never set aside in silence."""
    for line in recovery.alarms():
        _log.error("%s", line)
    for line in recovery.notes:
        _log.warning("%s", line)


def _agree_with_settings(log: Log, settings: Settings, fs: FileSystem) -> None:
    """Write births and deaths of routes before anything is accepted; first what was given up.

    Raises:
        ConfigError: a route contradicts the log.
        DiskFull: there is no room for it; the supervisor tries again.
    """
    progress = Progress(fs, settings.data_dir)
    dropped = deaths(log.state, progress.dropped())
    progress.close()
    _write(log, settings, fs, dropped)
    oldest = oldest_retained(fs, settings.data_dir, log)
    pending = pending_records(fs, settings.data_dir, log.state)
    sections = plan_start(log.state, settings, log.frontier.lsn, oldest, pending)
    _write(log, settings, fs, sections)


def _write(log: Log, settings: Settings, fs: FileSystem, sections: list[Section]) -> None:
    if not sections:
        return
    try:
        log.append_group(sections)
    except DiskFull:
        # only an ingest retires what is delivered: it must not wait for room that it makes itself
        progress = Progress(fs, settings.data_dir)
        log.retire(progress.floors(), at_least=1)
        progress.close()
        _try_once_more(log, sections)


def _try_once_more(log: Log, sections: list[Section]) -> None:
    try:
        log.append_group(sections)
    except DiskFull as error:
        msg = f"no room to write which routes begin: {error.message}"
        raise DiskFull(msg, retry_after_s=error.retry_after_s) from error


class Ingest:
    """The loop of ingest and what runs in it.

    Args:
        settings: data directory, streams, routes.
        log: the open log.
        fs: the file system of the data directory.
        clock: time.
        chance: for the ids of sessions.
        access: who may do what.
    """

    def __init__(
        self,
        settings: Settings,
        log: Log,
        fs: FileSystem,
        clock: Clock,
        chance: Chance,
        access: Access | None = None,
    ) -> None:
        self._access = access
        self._settings = settings
        self._log = log
        self._fs = fs
        self._clock = clock
        self._chance = chance
        self._failure: BaseException | None = None
        self._figures_due = False
        self._figures_ns = 0
        self._room = Room(clock)
        self._figures_of: object = None  # what was written that no group changes
        self._failures_told = 0

    async def serve(
        self,
        listening: socket.socket,
        stop_fd: int | None,
        ready: Callable[[dict[str, object]], None],
        who: Callable[[socket.socket], Caller] | None = None,
    ) -> None:
        """Serve until told to stop.

        Raises:
            LogFailed: the log failed; nothing was answered after that.
        """
        self._loop = loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._empty = asyncio.Event()
        self._preallocator = PreallocatorThread(self._log.preallocator, self._clock)
        self._progress = Progress(self._fs, self._settings.data_dir)
        self._figures = Figures(
            self._fs,
            self._settings.data_dir,
            self._log,
            pid=os.getpid(),
            started_ns=self._clock.wall_ns(),
        )
        committer: Committer[Connection] = Committer(loop, self._log, self._committed, self._fatal)
        self._committer = committer
        self._quotas = Quotas(self._log.state, self._settings, self._fs, self._clock)
        rules = Rules(
            self._log.state,
            self._access,
            self._quotas,
            stream_rules(self._settings),
            self._log.ids.table,
        )
        self._house: House[Connection] = House(
            self._log,
            self._settings,
            committer,
            self._clock,
            self._chance,
            self._empty.set,
            rules=rules,
        )
        # the supervisor's socket: its name is not ours to remove
        most = self._settings.clients.connections + limits.CONNECTIONS_SPARE_COUNT
        doorman = Doorman(loop, listening, self._house, who, raise_file_limit(most))
        doorman.open()
        self._watch(stop_fd)
        self._preallocator.start()
        self._tick()
        self._write_figures()
        ready({"pid": os.getpid(), "log_id": self._log.log_id.hex()})
        try:
            await self._stop.wait()
            doorman.close()
            if self._failure is not None:
                raise self._failure
            await self._say_goodbye()
        finally:
            doorman.close()
            self._house.stopping = True
            await doorman.settle()  # what was accepted in this turn is made, and ended
            for connection in list(self._house.connections):
                connection.abort()
            await asyncio.sleep(0)
            self._preallocator.stop()
            self._write_figures()
            self._figures.close()
            self._quotas.close()
            self._progress.close()

    def _watch(self, stop_fd: int | None) -> None:
        """Let signals and the end of the supervisor's pipe stop the loop."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self._stop.set)
        if stop_fd is None:
            return
        stop, loop = self._stop, self._loop

        def read() -> None:
            if not os.read(stop_fd, limits.PAGE_SLOT_BYTES):
                loop.remove_reader(stop_fd)
                stop.set()

        loop.add_reader(stop_fd, read)

    async def _say_goodbye(self) -> None:
        """Commit and answer everything that was accepted, then close every connection."""
        self._committer.commit(mentioned=True)
        if self._failure is not None:
            raise self._failure
        self._empty.clear()
        if not self._house.connections:
            return
        for connection in list(self._house.connections):
            connection.finish(Goodbye().encode())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await self._empty.wait()

    # --- called by the committer ----------------------------------------------------------------

    def _fatal(self, error: BaseException) -> None:
        """The log failed: answer nobody, end."""
        _log.critical("the log failed: %s", error)
        if not isinstance(error, WaldError):
            message = f"a bug: {type(error).__name__}: {error}"
            failure = LogFailed(message)
            failure.__cause__ = error
            error = failure
        self._failure = error
        self._stop.set()

    def _committed(self) -> None:
        self._quotas.committed()
        self._house.notify()
        if self._log.write_failures != self._failures_told:
            self._failures_told = self._log.write_failures
            said = self._log.last_write_failure
            self._house.tell("a write or a flush of the log failed, look at the disk", said)
        self._preallocator.group_in(self._log.frontier.segment)
        if not self._figures_due:
            self._figures_due = True
            age_s = (self._clock.monotonic_ns() - self._figures_ns) / limits.CLOCK_NS_PER_S
            # behind the reads that are ready: figures are never in a client's way
            self._loop.call_later(max(limits.FIGURES_EVERY_S - age_s, 0.0), self._write_due_figures)

    # --- figures, time --------------------------------------------------------------------------

    def _write_due_figures(self) -> None:
        if not self._house.stopping:  # else its page may be closed
            self._write_figures()

    def _write_figures(self) -> None:
        self._figures_due = False
        self._figures_ns = self._clock.monotonic_ns()
        refused: Counter[str] = self._house.refused + self._committer.refused
        connections, no_room = self._figures_of = self._without_group()
        self._figures.write(
            groups=self._committer.groups,
            connections=connections,
            refused=refused,
            quotas=self._quotas,
            duplicates=self._committer.duplicates,
            no_room=no_room,
        )

    def _without_group(self) -> tuple[int, dict[str, object] | None]:
        return len(self._house.connections), self._room.figures()

    def _bury(self) -> None:
        """Write the death of routes that a person gave up: from then on they keep nothing.

        One that the settings name is left to the next start, which begins it anew.
        """
        routes = self._log.state.routes
        gone = [
            route_id
            for route_id in self._progress.dropped()
            if route_id in routes and routes[route_id].name not in self._settings.routes
        ]
        for section in deaths(self._log.state, gone):
            self._committer.state(Statement(section, lambda: None, lambda _: None))

    def _tick(self) -> None:
        """Every second: time-outs, and segments that nobody needs."""
        if self._house.stopping:
            return
        self._house.tick()
        self._log.ids.table.forget_old(self._clock.wall_ns(), self._clock.boot_ns())
        self._quotas.look()
        self._bury()
        is_low = self._failure is None and self._log.is_low()
        refused = self._committer.refused[DiskFull.code]
        is_wanted = self._room.look(self._committer.no_room, refused, is_low=is_low)
        if is_low:
            self._log.release_one()
        through = self._progress.floors()
        if through and self._failure is None:
            # what is kept for targets that go back must not keep new records out, nor the drainer
            # from its ledger
            retired = self._log.retire(through, at_least=int(is_wanted))
            if retired:
                _log.info("%d segments were retired", retired)
        if self._figures_of != self._without_group():
            self._write_figures()
        self._loop.call_later(1.0, self._tick)
