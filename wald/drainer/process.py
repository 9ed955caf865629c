"""The drain process, and ``replay``, which delivers with no daemon running.

The main thread learns routes from the log, begins their lanes, publishes ``drain.page`` and
``progress``, and answers ``drain.sock``. It does no delivery, so that it answers while targets
stall. Holds ``ledger.lock`` from before the first byte it reads to after the last it writes.
"""

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Protocol

from wald import limits
from wald.config import Settings
from wald.core.books import balance
from wald.core.state import LogState, StreamState
from wald.drainer.asks import Asks
from wald.drainer.catalogue import Catalogue
from wald.drainer.fleet import Fleet, fitting_the_page
from wald.drainer.frontier import FrontierBoard, Subscription, read_hint
from wald.drainer.released import ProgressPage
from wald.drainer.route import MakeSink, Shared
from wald.errors import DataDirectoryHeld, InputError
from wald.model import Frontier, LaneKey, Lsn, StreamId
from wald.ports import Chance, Clock, FileSystem
from wald.storage import identity
from wald.storage.deadlog import DeadLog
from wald.storage.lmdb_store import open_ledger
from wald.storage.owner import load_owner
from wald.storage.progress import TwoSlotPage

_log = logging.getLogger("wald.drain")
_LOCK = "ledger.lock"
_POLL_S = 0.05
_REPLAY_POLL_S = 0.01
_JOIN_GRACE_S = 5.0  # an attempt under way is waited for, but the supervisor does not wait for ever
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


def run(  # noqa: PLR0913 - a composition of ports
    settings: Settings,
    *,
    make_sink: MakeSink,
    fs: FileSystem,
    clock: Clock,
    chance: Chance,
    ready: Callable[[dict[str, Any]], None],
    stop: threading.Event,
    hurried: Callable[[], bool] = lambda: False,
) -> int:
    """Deliver until ``stop`` is set; returns the exit code of a clean end.

    What is there is then delivered for as long as the settings say, unless it is ``hurried``:
    then only an attempt under way is brought to its end.

    Raises:
        DataDirectoryHeld: another process holds ``ledger.lock``.
        WaldError: ledger or directory cannot be used.
    """
    doors = Doors(settings, make_sink, fs, clock, chance)
    with _locked(doors):
        log_id = _wait_for_log_id(doors, stop)
        if log_id is None:
            return 0
        with ExitStack() as stack:
            drainer = Drainer(doors, log_id, stack)
            ready({"log_id": log_id.hex()})
            drainer.serve(stop, hurried)
    return 0


@dataclass(frozen=True, slots=True)
class Doors:
    """What the process was given."""

    settings: Settings
    make_sink: MakeSink
    fs: FileSystem
    clock: Clock
    chance: Chance

    def path(self, name: str) -> str:
        """Return where a file of the data directory lies."""
        return f"{self.settings.data_dir}/{name}"


class Drainer:
    """The parts of a running drain process; ``stack`` closes them, newest first."""

    def __init__(self, doors: Doors, log_id: bytes, stack: ExitStack) -> None:
        self._doors = doors
        settings, fs = doors.settings, doors.fs
        self._board = FrontierBoard()
        self._catalogue = Catalogue(fs, settings.data_dir, log_id)
        stack.callback(self._catalogue.close)
        self._progress = ProgressPage(fs, settings.data_dir)
        stack.callback(self._progress.close)
        self._fleet = Fleet(
            settings,
            _open_shared(
                doors, log_id, self._board, self._catalogue.count_streams, self._progress, stack
            ),
            self._catalogue.stream_name,
        )
        self._page = TwoSlotPage.open(
            fs, doors.path("drain.page"), slot_bytes=limits.FIGURES_SLOT_BYTES, write=True
        )
        stack.callback(self._page.close)
        self._said: dict[str, Any] = {}
        self._said_progress: dict[str, Lsn] = {}
        self._progress_ns = 0
        self._trouble = ""
        self._unwritten = ""
        self._hint_ns = 0
        self._started_ns = doors.clock.wall_ns()
        self._source = Subscription(
            settings.socket, self._board, doors.chance, lambda other: other == log_id
        )
        self._asks = Asks(doors.path("drain.sock"), self.answer)
        stack.callback(self._asks.close)

    def serve(self, stop: threading.Event, hurried: Callable[[], bool]) -> None:
        """Deliver until told to stop, then for as long as the settings allow."""
        self._pin_hint()
        self._publish()
        self._source.start()
        try:
            while not stop.is_set():
                self._round(_POLL_S)
        finally:
            self._source.stop()
            self._pin_hint()  # exact: what ingest acknowledged last, before it ended
            self._leave(0.0 if hurried() else self._doors.settings.stop_deliver_for_s)

    def _round(self, timeout_s: float) -> None:
        now_ns = self._doors.clock.monotonic_ns()
        if not self._source.is_welcome and now_ns >= self._hint_ns:
            self._hint_ns = now_ns + round(limits.HINT_EVERY_S * _NS)
            self._pin_hint()
        try:
            self._follow()
            self._trouble = ""
        except Exception as error:  # noqa: BLE001 - lanes go on, and the next round tries again
            self._catalogue.close()
            if self._trouble != repr(error):
                self._trouble = repr(error)
                _log.error("routes cannot be read or begun: %r", error, exc_info=error)
        self._asks.poll(timeout_s)
        self._publish()

    def _follow(self) -> None:
        frontier = self._board.current()
        if frontier is not None:
            self._catalogue.update(frontier)
            self._fleet.follow(self._catalogue.routes)

    def _leave(self, deliver_for_s: float) -> None:
        with contextlib.suppress(Exception):
            self._follow()
        self._fleet.stop(deliver_for_s)
        staying = self._fleet.join(deliver_for_s + _JOIN_GRACE_S)
        if staying:
            _log.warning("still in an attempt, which its target will settle: %s", staying)
        self._progress_ns = 0
        self._publish()

    def _pin_hint(self) -> None:
        hint = read_hint(self._doors.fs, self._doors.settings.data_dir)
        if hint is not None:
            self._board.pin(hint)

    def _publish(self) -> None:
        """Write the pages where they changed; a full disk delays figures, not delivery.

        Each by itself: retention must not stand still because a figure cannot be written.
        """
        unwritten = ""
        for write in (self._publish_figures, self._publish_progress):
            try:
                write()
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or str(error)
                unwritten = f"its figures cannot be written: {why}"
        if unwritten and unwritten != self._unwritten:
            _log.warning("%s", unwritten)
        self._unwritten = unwritten

    def _publish_figures(self) -> None:
        routes = fitting_the_page(self._fleet.figures())
        said = {"pid": os.getpid(), "started_ns": self._started_ns, "routes": routes}
        if said != self._said:
            self._page.write(said, sync=False)
            self._said = said

    def _publish_progress(self) -> None:
        now_ns = self._doors.clock.monotonic_ns()
        said = self._fleet.checkpoints()
        if said and said != self._said_progress and now_ns >= self._progress_ns:
            self._progress_ns = now_ns + round(limits.PROGRESS_EVERY_S * _NS)
            self._progress.write(said, self._fleet.route_ids())
            self._said_progress = said

    # --- asks -----------------------------------------------------------------------------------

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one request of ``drain.sock``."""
        match request.get("op"):
            case "drain.ping":
                return {"trouble": self._unwritten}
            case "drain.flush":
                return self._flush(request)
            case "drain.dlq":
                return {"entries": self._dead_letters(request)}
            case "drain.batches":
                return {"routes": self._batches(request)}
            case other:
                msg = f"unknown operation {other!r}"
                raise InputError(msg, hint="drain.flush, drain.dlq, drain.batches")

    def _flush(self, request: Mapping[str, Any]) -> dict[str, Any]:
        frontier = self._board.current()
        lsn = _natural(request, "through_lsn", frontier.lsn if frontier else 0)
        self._fleet.flush(lsn)
        return {"through_lsn": lsn}

    def _route_ids(self, request: Mapping[str, Any]) -> dict[str, int]:
        name = request.get("route")
        if name is None:
            return {name: figures["route_id"] for name, figures in self._fleet.figures().items()}
        route_id = self._fleet.route_id(str(name))
        if route_id is None:
            msg = f"there is no route {str(name)!r}"
            raise InputError(msg, hint=f"routes: {', '.join(sorted(self._fleet.figures()))}")
        return {str(name): route_id}

    def _dead_letters(self, request: Mapping[str, Any]) -> list[dict[str, Any]]:
        limit = min(_natural(request, "limit", 100), limits.DEAD_LETTERS_PER_ANSWER)
        after = _natural(request, "after", 0)
        entries: list[dict[str, Any]] = []
        for route_id in self._route_ids(request).values():
            letters = self._fleet.shared.ledger.dead_letters(route_id, after=after, limit=limit)
            entries += [asdict(letter) | {"rev_id": letter.rev_id.hex()} for letter in letters]
        return _fitting_a_line(entries[:limit])

    def _batches(self, request: Mapping[str, Any]) -> dict[str, Any]:
        shared = self._fleet.shared
        said: dict[str, Any] = {}
        for name, route_id in self._route_ids(request).items():
            key = LaneKey(shared.log_id, route_id, 0, 0)
            held = shared.ledger.lane(key)
            finished = shared.ledger.history(key)[-_natural(request, "limit", 20) :]
            manifest = held.manifest
            said[name] = {
                "finished": [asdict(line) | {"rev_id": line.rev_id.hex()} for line in finished],
                "open": None
                if manifest is None
                else {
                    "number": manifest.number,
                    "lo": manifest.lo,
                    "hi": manifest.current.hi,
                    "records": manifest.records,
                    "attempts": manifest.attempts,
                    "excluded": list(manifest.current.excluded),
                    "last_error": manifest.last_error,
                },
            }
        return said


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
    with _locked(doors), ExitStack() as stack:
        board, state = FrontierBoard(), log.state
        board.pin(log.frontier)
        progress = ProgressPage(fs, settings.data_dir)
        stack.callback(progress.close)
        shared = _open_shared(doors, log.log_id, board, lambda: len(state.streams), progress, stack)
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
        return _books(fleet, state) | {"seconds": (clock.monotonic_ns() - began_ns) / _NS}


def _wait_until_done(
    fleet: Fleet,
    frontier: Frontier,
    patience_s: float,
    on_progress: Callable[[Mapping[str, Any]], None],
) -> None:
    clock, board = fleet.shared.clock, FrontierBoard()
    moved_ns = dict.fromkeys(fleet.lanes, clock.monotonic_ns())
    before = {route_id: lane.figures.through_lsn for route_id, lane in fleet.lanes.items()}
    while True:
        now_ns = clock.monotonic_ns()
        waiting = False
        for route_id, lane in fleet.lanes.items():
            figures = lane.figures
            if figures.through_lsn != before[route_id]:
                before[route_id], moved_ns[route_id] = figures.through_lsn, now_ns
            patient = now_ns - moved_ns[route_id] < patience_s * _NS
            unfinished = figures.through_lsn < frontier.lsn and figures.parked is None
            waiting = waiting or (unfinished and patient)
        on_progress(fleet.figures())
        if not waiting:
            return
        board.wait(board.turn(), _REPLAY_POLL_S)


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
        rest = max(0, figures["accepted"] - figures["delivered"] - figures["dead_letters"])
        figures["pending"], figures["lost"] = balance(rest, figures["through_lsn"], stream.last_lsn)
    return {"routes": routes, "pending": sum(item["pending"] for item in routes.values())}


def _fitting_a_line(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first entries that an answer has room for: at least one; the next ask goes on."""
    sizes = accumulate(len(json.dumps(entry)) + 2 for entry in entries)
    count = sum(size <= limits.CONTROL_LINE_MAX_BYTES // 2 for size in sizes)
    return entries[: max(1, count)]


def _natural(request: Mapping[str, Any], name: str, default: int) -> int:
    value = request.get(name, default)
    if type(value) is not int or not 0 <= value < limits.LSN_MAX:
        msg = f"{name} is {value!r}, not a number from 0 to {limits.LSN_MAX - 1}"
        raise InputError(msg)
    return value


# --- beginning ----------------------------------------------------------------------------------


def _open_shared(
    doors: Doors,
    log_id: bytes,
    board: FrontierBoard,
    count_streams: Callable[[], int],
    progress: ProgressPage,
    stack: ExitStack,
) -> Shared:
    data_dir = doors.settings.data_dir
    owner = load_owner(doors.fs, data_dir, doors.chance)
    if owner.moved:
        _log.error("the data directory was moved or copied: its lanes are parked as diverged")
    ledger = open_ledger(doors.fs, data_dir, log_id)
    stack.callback(ledger.close)
    dead_log = DeadLog(doors.fs, data_dir)
    stack.callback(dead_log.close)
    return Shared(
        doors.fs,
        data_dir,
        log_id,
        owner.value,
        doors.clock,
        doors.chance,
        ledger,
        dead_log,
        board,
        doors.make_sink,
        count_streams,
        progress.released,
    )


@contextlib.contextmanager
def _locked(doors: Doors) -> Iterator[None]:
    """Hold ``ledger.lock``; an orphan that finishes an attempt is waited for."""
    path = doors.path(_LOCK)
    try:
        file = doors.fs.open(path, write=True)
    except FileNotFoundError:
        file = doors.fs.create(path)
    try:
        end_ns = doors.clock.monotonic_ns() + round(limits.LOCK_WAIT_S * _NS)
        while not file.lock():
            if doors.clock.monotonic_ns() >= end_ns:
                msg = f"{path}: another drainer holds it"
                raise DataDirectoryHeld(msg, hint="stop the daemon first", path=path)
            doors.clock.sleep(_POLL_S)
        yield
    finally:
        file.close()


def _wait_for_log_id(doors: Doors, stop: threading.Event) -> bytes | None:
    """Return the log's id, made by ingest at the first start; None if told to stop."""
    while True:
        known = identity.read(doors.fs, doors.settings.data_dir)
        if known is not None:
            return known.log_id
        if stop.wait(_POLL_S):
            return None
