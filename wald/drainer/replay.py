"""``replay``: deliver in-flight batches and the backlog with no daemon running."""

import contextlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Protocol

from wald import limits
from wald.config import Settings
from wald.core.books import balance
from wald.core.state import LogState, StreamState
from wald.drainer.figures import fitting_the_page
from wald.drainer.fleet import Fleet
from wald.drainer.frontier import FrontierBoard
from wald.drainer.opening import Doors, locked, open_shared
from wald.drainer.released import ProgressPage
from wald.drainer.route import MakeSink
from wald.model import Frontier, RouteId, StreamId
from wald.ports import Chance, Clock, FileSystem
from wald.storage.progress import TwoSlotPage

_POLL_MIN_S, _POLL_MAX_S = 0.01, 0.05
_POLL_SHARE = 0.01  # of the time so far: a look costs the lanes a quarter of a millisecond
_NS = limits.CLOCK_NS_PER_S


class LogLike(Protocol):
    """What ``replay`` needs of an open log."""

    @property
    def log_id(self) -> bytes:
        """The log's id."""
        ...

    @property
    def frontier(self) -> Frontier:
        """The end of what is durable."""
        ...

    @property
    def state(self) -> LogState:
        """Streams and routes."""
        ...


def replay(  # noqa: PLR0913 - a composition of ports
    settings: Settings,
    log: LogLike,
    *,
    make_sink: MakeSink,
    fs: FileSystem,
    clock: Clock,
    chance: Chance,
    patience_s: float = limits.RETRY_CAP_S,
    on_progress: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Deliver in-flight batches and the backlog up to the log's frontier, with no daemon.

    Args:
        settings: the daemon's.
        log: opened by the caller, who holds ``log.lock``.
        make_sink: makes the sinks of routes.
        fs: the door to the files.
        clock: time.
        chance: randomness.
        patience_s: how long a route that makes no progress is tried.
        on_progress: called a few times a second with the routes' figures.

    Returns:
        {"routes": {name: figures with accepted, pending}, "pending": all of them,
        "seconds": what the delivery took}.

    Raises:
        DataDirectoryHeld: a drainer holds ``ledger.lock``.
        WaldError: ledger or directory cannot be used.
    """
    doors = Doors(settings, make_sink, fs, clock, chance)
    with locked(doors), ExitStack() as stack:
        board, state = FrontierBoard(), log.state
        board.pin(log.frontier)
        progress = ProgressPage(fs, settings.data_dir)
        stack.callback(progress.close)
        shared = open_shared(doors, log.log_id, board, lambda: len(state.streams), progress, stack)
        fleet = Fleet(settings, shared, partial(_stream_name, state))
        began_ns = clock.monotonic_ns()
        fleet.follow(state.routes)
        fleet.flush(log.frontier.lsn)
        try:
            _wait_until_done(fleet, log.frontier, patience_s, on_progress)
        finally:
            fleet.stop(0.0)
            fleet.join(limits.CHILD_STOP_S)
            progress.write(fleet.checkpoints(), fleet.route_ids())
            progress.stands.write(fleet.stands(), fleet.route_ids())
            _show(fs, settings.data_dir, fleet)
        return _books(fleet, state) | {"seconds": (clock.monotonic_ns() - began_ns) / _NS}


def _wait_until_done(
    fleet: Fleet,
    frontier: Frontier,
    patience_s: float,
    on_progress: Callable[[Mapping[str, Any]], None],
) -> None:
    clock, board = fleet.shared.clock, FrontierBoard()
    began_ns = clock.monotonic_ns()
    moved_ns = dict.fromkeys(fleet.routes, began_ns)
    before: dict[RouteId, object] = {}
    while True:
        fleet.poll()
        now_ns = clock.monotonic_ns()
        waiting = False
        for route_id, route in fleet.routes.items():
            figures = [(lane.route.key, lane.figures) for lane in route.each()]
            now = [(key, each.through_lsn, each.redrives) for key, each in figures]
            if now != before.get(route_id):
                before[route_id], moved_ns[route_id] = now, now_ns
            patient = now_ns - moved_ns[route_id] < patience_s * _NS
            waiting = waiting or (route.is_unfinished(frontier.lsn) and patient)
        on_progress(fleet.figures())
        if not waiting:
            return
        elapsed_s = (now_ns - began_ns) / _NS
        board.wait(board.turn(), min(_POLL_MAX_S, max(_POLL_MIN_S, _POLL_SHARE * elapsed_s)))


def _show(fs: FileSystem, data_dir: str, fleet: Fleet) -> None:
    """Leave the routes' figures where a drainer does: who asks with no daemon reads them there."""
    with contextlib.suppress(OSError, ValueError):
        page = TwoSlotPage.open(
            fs, f"{data_dir}/drain.page", slot_bytes=limits.FIGURES_SLOT_BYTES, write=True
        )
        try:
            said = {**(page.read() or {}), "routes": fitting_the_page(fleet.figures())}
            page.write(said, sync=False)
        finally:
            page.close()


def _stream_name(state: LogState, stream_id: StreamId) -> str:
    """Return a stream's name; its id as text if its statement was lost."""
    stream = state.streams.get(stream_id)
    return str(stream_id) if stream is None else stream.name


def _books(fleet: Fleet, state: LogState) -> dict[str, Any]:
    routes = fleet.figures()
    for figures in routes.values():
        route = state.routes[figures["route_id"]]
        stream = state.streams.get(route.stream_id, StreamState(route.stream_id, ""))
        figures["accepted"] = max(0, stream.records - route.birth_records)
        settled = figures["delivered"] + figures["dead_letters"] + figures["purged"]
        rest = max(0, figures["accepted"] - settled)
        figures["pending"], figures["lost"] = balance(rest, figures["through_lsn"], stream.last_lsn)
    return {"routes": routes, "pending": sum(item["pending"] for item in routes.values())}
