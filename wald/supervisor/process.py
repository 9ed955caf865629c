"""The supervisor: holds the sockets and the lock, keeps two children running, answers ``status``.

It touches no data. The listening socket outlives every ingest, so that clients that connect while
one starts wait in the kernel's queue instead of failing.
"""

import asyncio
import json
import logging
import os
import posixpath
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from wald import limits
from wald.config import Settings
from wald.core.access import Access, Caller
from wald.errors import WaldError
from wald.ports import Chance, Clock, FileSystem
from wald.supervisor.asking import Patient, greet_ingest
from wald.supervisor.calm import Calm
from wald.supervisor.children import Child, ChildState, Command
from wald.supervisor.claim import (
    Manner,
    Sockets,
    claim_data_directory,
    claim_sockets,
    release_sockets,
)
from wald.supervisor.control import ControlServer
from wald.supervisor.guard import Guard
from wald.supervisor.observe import build_status, is_gone, read_figures, resident_bytes

log = logging.getLogger("wald.supervisor")

_DRAIN_SOCKET = "drain.sock"
_HUNG_HINT = (
    "it runs and stands still: a disk that does not come back, or somebody stopped it; see its "
    "log, and restart the daemon if it stays so: nothing that was acknowledged is lost"
)
_OWN_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")  # not the children's


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a supervisor is given beside its settings.

    Attributes:
        environment: the process's variables; the children get them too.
        notify: sends lines to the service manager (``sd_notify``).
        passed_fds: listening sockets that the service manager opened for us.
        on_ready: called once, when both children serve.
        manner: mode and owner of the sockets.
        access: who may do what; None: whoever may open the sockets may do everything.
        who: says who connected.
    """

    fs: FileSystem
    clock: Clock
    chance: Chance
    environment: Mapping[str, str]
    notify: Callable[..., object]
    passed_fds: tuple[int, ...] = ()
    on_ready: Callable[[], None] = lambda: None
    manner: Manner = Manner()  # noqa: RUF009 - a frozen value
    access: Access | None = None
    who: Callable[[Any], Caller] | None = None


def run(settings: Settings, around: Surroundings) -> None:
    """Serve until SIGTERM or SIGINT, or the terminal hangs up; returns after a clean stop.

    Raises:
        WaldError: it cannot start, or a child says that it never will.
    """
    fs, pid = around.fs, os.getpid()
    serve_lock = claim_data_directory(fs, settings.data_dir, pid=pid)
    try:
        passed = socket.socket(fileno=around.passed_fds[0]) if around.passed_fds else None
        sockets, socket_lock = claim_sockets(
            fs, settings.socket, passed, pid=pid, manner=around.manner
        )
        try:
            error = asyncio.run(_Supervisor(settings, around, sockets).run())
        finally:
            release_sockets(fs, sockets)
            socket_lock.close()
    finally:
        serve_lock.close()
    if error is not None:
        raise error


def _no_reload() -> None:
    """A SIGHUP without a terminal: somebody wants the configuration to be read again."""
    log.warning("the configuration is read at a start only: wald check, then restart the daemon")


class _Supervisor:
    """The loop of one supervisor; made outside of it, started inside."""

    def __init__(self, settings: Settings, around: Surroundings, sockets: Sockets) -> None:
        self._settings = settings
        self._around = around
        self._sockets = sockets
        self._announced = False
        self._ingest_served = asyncio.Event()
        self._stopping = False

    async def run(self) -> WaldError | None:
        """Keep both children running until a signal, or until one of them gives up."""
        ending = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ending.set)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            at_terminal = sys.stdin is not None and sys.stdin.isatty()
            loop.add_signal_handler(signal.SIGHUP, ending.set if at_terminal else _no_reload)
        self._ingest = self._child("ingest", (self._sockets.data.fileno(),))
        self._drain = self._child("drain", ())
        loop.set_exception_handler(Calm(self._around.clock))
        self._guard = Guard(self._around.access, self._around.who, self._settings)
        control = ControlServer(
            {"status": self._status, "ping": self._ping},
            posixpath.join(self._settings.data_dir, _DRAIN_SOCKET),
            self._guard,
        )
        self._asked = {
            "ingest": Patient(self._around.clock, self._greet_ingest, keeps=True),
            "drain": Patient(self._around.clock, control.ask_drain),
        }
        errors: list[WaldError] = []

        async def keep(child: Child, after: asyncio.Event | None = None) -> None:
            if after is not None:
                await after.wait()
            error = await child.keep_running()
            if error is not None:
                errors.append(error)
                ending.set()

        async with asyncio.TaskGroup() as group:
            answering = group.create_task(control.serve(self._sockets.control))
            group.create_task(keep(self._ingest))
            # drain behind the first ingest that serves: a directory that ingest refuses stays as
            # it is, and the first acknowledgement has the machine for itself
            group.create_task(keep(self._drain, self._ingest_served))
            await ending.wait()
            await self._stop()
            self._ingest_served.set()
            answering.cancel()
        return errors[0] if errors else None

    async def _stop(self) -> None:
        """In order: ingest answers what it accepted, then drain delivers for a while."""
        self._stopping = True
        log.info("stopping")
        self._around.notify("STOPPING=1", "STATUS=answering what was accepted")
        await self._ingest.stop(limits.CHILD_STOP_S)
        self._around.notify("STATUS=delivering what is pending")
        await self._drain.stop(self._settings.stop_deliver_for_s + limits.CHILD_STOP_S)
        figures = await asyncio.to_thread(read_figures, self._around.fs, self._settings.data_dir)
        routes = build_status(figures, {}, self._around.clock.wall_ns())["routes"]
        log.info("stopped, %d pending", sum(route["pending"] for route in routes.values()))

    def _child(self, role: str, pass_fds: tuple[int, ...]) -> Child:
        said: dict[str, Any] = {"settings": self._settings.to_json()}
        if pass_fds:
            said["listen_fd"] = pass_fds[0]
        command = Command(
            role=role,
            line=json.dumps(said, separators=(",", ":")).encode() + b"\n",
            pass_fds=pass_fds,
            environment={
                name: value
                for name, value in self._around.environment.items()
                if name not in _OWN_VARIABLES
            },
        )
        return Child(command, self._around.clock, self._around.chance, self._changed)

    def _changed(self) -> None:
        """Tell the service manager what changed; READY once, when both children serve."""
        if self._stopping:
            return
        states = {child.role: child.state for child in (self._ingest, self._drain)}
        if states["ingest"] is ChildState.READY:
            self._ingest_served.set()
        serving = all(state is ChildState.READY for state in states.values())
        status = ", ".join(f"{role} {state.value}" for role, state in states.items())
        if serving and not self._announced:
            self._announced = True
            self._around.notify("READY=1", f"STATUS={status}")
            self._around.on_ready()
        else:
            self._around.notify(f"STATUS={status}")

    async def _status(self, _: Mapping[str, Any]) -> dict[str, Any]:
        fs, data_dir = self._around.fs, self._settings.data_dir
        # a disk that stalls must not keep the loop from its children
        figures = await asyncio.to_thread(read_figures, fs, data_dir)
        gone = await asyncio.to_thread(is_gone, fs, data_dir)
        processes = {child.role: child.figures() for child in (self._ingest, self._drain)}
        children = (self._ingest, self._drain)
        async with asyncio.TaskGroup() as group:
            doing = {each.role: group.create_task(self._how_it_does(each)) for each in children}
        for role, said in doing.items():
            processes[role] |= said.result()
        status = build_status(figures, processes, self._around.clock.wall_ns())
        return {
            **status,
            "refused": dict(Counter(status["refused"]) + self._guard.refused),
            "data_dir": data_dir,
            "data_dir_gone": gone and self._ingest.state is ChildState.READY,
            "socket": self._settings.socket,
            "pid": os.getpid(),
            "resident_bytes": resident_bytes(os.getpid()),
        }

    async def _how_it_does(self, child: Child) -> dict[str, Any]:
        """Ask a child how it does; one that does not answer may be starting, or ending."""
        ready = child.state is ChildState.READY
        told = await self._asked[child.role].ask() if ready else None
        hung = ready and told is None and child.state is ChildState.READY
        return {
            "answers": told is not None,
            "trouble": (told or {}).get("trouble"),
            "hint": _HUNG_HINT if hung else "",
        }

    async def _greet_ingest(self) -> Mapping[str, Any] | None:
        return {} if await greet_ingest(self._settings.socket) else None

    async def _ping(self, _: Mapping[str, Any]) -> dict[str, Any]:
        return {"pid": os.getpid()}
