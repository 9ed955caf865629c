"""The drain process.

The main thread learns routes from the log, begins their lanes, publishes ``drain.page`` and
``progress``, and answers ``drain.sock``. It does no delivery, so that it answers while targets
stall. Holds ``ledger.lock`` from before the first byte it reads to after the last it writes.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Collection
from contextlib import ExitStack
from typing import Any

from wald import limits
from wald.config import Settings
from wald.drainer.answers import Answers
from wald.drainer.asks import Asks
from wald.drainer.burying import Grounds, Undertaker
from wald.drainer.catalogue import Catalogue
from wald.drainer.figures import fitting_the_page
from wald.drainer.fleet import Fleet
from wald.drainer.frontier import FrontierBoard, Subscription, read_hint
from wald.drainer.opening import Doors, locked, open_shared, wait_for_log_id
from wald.drainer.packing import open_packing, resting
from wald.drainer.released import ProgressPage
from wald.drainer.route import MakeSink
from wald.drainer.watchdog import Watchdog
from wald.errors import LedgerFailed, StartFailed, WaldError
from wald.model import Frontier, Lsn, RouteId
from wald.ports import Chance, Clock, FileSystem
from wald.storage.prepare import disk_full, is_full
from wald.storage.progress import TwoSlotPage

_log = logging.getLogger("wald.drain")
_POLL_S = 0.05
_JOIN_GRACE_S = 5.0  # an attempt under way is waited for, but the supervisor does not wait for ever
_NS = limits.CLOCK_NS_PER_S
_NOT_BEGUN = "(some that are not known yet, or cannot begin)"
_UNSURE = (
    "a part of the log that tells them is damaged, and ingest has not told them since: some may "
    "wait; restart the daemon if this stays"
)


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
    watch: Watchdog | None = None,
) -> int:
    """Deliver until ``stop`` is set; returns the exit code of a clean end.

    What is there is then delivered for as long as the settings say, unless it is ``hurried``:
    then only an attempt under way is brought to its end. ``watch`` looks whether all goes on.

    Raises:
        DataDirectoryHeld: another process holds ``ledger.lock``.
        DiskFull, StartFailed: the system refused something; the same may go well later.
        WaldError: ledger or directory cannot be used.
    """
    doors = Doors(settings, make_sink, fs, clock, chance)
    with locked(doors):
        log_id = wait_for_log_id(doors, stop)
        if log_id is None:
            return 0
        with ExitStack() as stack:
            try:
                drainer = Drainer(doors, log_id, stack, watch)
            except PermissionError:
                raise
            except OSError as error:
                raise _refused(settings.data_dir, error) from error
            ready({"log_id": log_id.hex()})
            drainer.serve(stop, hurried)
    return 0


def _refused(data_dir: str, error: OSError) -> WaldError:
    if is_full(error):
        return disk_full(data_dir, "starting delivery")
    msg = f"cannot use the data directory {data_dir}: {error.strerror or error}"
    return StartFailed(msg, path=error.filename or data_dir, errno=error.errno)


class Drainer:
    """The parts of a running drain process; ``stack`` closes them, newest first."""

    def __init__(
        self, doors: Doors, log_id: bytes, stack: ExitStack, watch: Watchdog | None = None
    ) -> None:
        self._doors = doors
        self._watch = watch
        settings, fs = doors.settings, doors.fs
        self._board = FrontierBoard()
        self._catalogue = Catalogue(fs, settings.data_dir, log_id)
        stack.callback(self._catalogue.close)
        self._progress = ProgressPage(fs, settings.data_dir)
        stack.callback(self._progress.close)
        shared = open_shared(
            doors, log_id, self._board, self._catalogue.count_streams, self._progress, stack
        )
        self._fleet = Fleet(settings, shared, self._catalogue.stream_name)
        self._packing = open_packing(settings, shared)
        stack.callback(self._packing.close)
        self._undertaker = Undertaker(shared)
        stack.callback(self._undertaker.close)
        self._page = TwoSlotPage.open(
            fs, doors.path("drain.page"), slot_bytes=limits.FIGURES_SLOT_BYTES, write=True
        )
        stack.callback(self._page.close)
        self._said: dict[str, Any] = {}
        self._said_progress: tuple[dict[str, Lsn], dict[str, Lsn], list[RouteId]] = ({}, {}, [])
        self._progress_ns = self._stands_ns = 0
        self._trouble = ""
        self._knows_all = False  # no hint from before a power cut hides a route that lives
        self._hint_ns = 0
        self._started_ns = doors.clock.wall_ns()
        self._source = Subscription(
            settings.socket, self._board, doors.chance, lambda other: other == log_id
        )
        self._answers = Answers(self._fleet, self._board, self._catalogue.streams, self._catch_up)
        stack.callback(self._answers.audits.close)
        self._asks = Asks(doors.path("drain.sock"), self._answers.answer)
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
        if not self._fleet.shared.ledger.store.is_usable:
            msg = "the ledger cannot be used any more: this process ends, the next opens it anew"
            raise LedgerFailed(msg)
        now_ns = self._doors.clock.monotonic_ns()
        if not self._source.is_welcome and now_ns >= self._hint_ns:
            self._hint_ns = now_ns + round(limits.HINT_EVERY_S * _NS)
            self._pin_hint()
        try:
            self._follow()
        except Exception as error:  # noqa: BLE001 - lanes go on, and the next round tries again
            self._catalogue.close()
            self._say_trouble(repr(error), error)
        if self._watch is not None:
            self._watch.look(self._fleet.each_lane())
        self._pack()
        self._undertaker.look(self._grounds)
        self._asks.poll(timeout_s)
        self._publish()

    def _say_trouble(self, trouble: str, error: Exception | None = None) -> None:
        if trouble and self._trouble != trouble:
            _log.error("routes cannot be read or begun: %s", trouble, exc_info=error)
        self._trouble = trouble

    def _follow(self) -> None:
        is_told, frontier = self._source.has_told, self._board.current()
        if frontier is not None:
            self._catalogue.update(frontier)
            self._fleet.follow(self._catalogue.routes)
            self._answers.followed = frontier
            is_new = self._knows_all or is_told or self._is_as_far_as_before(frontier)
            self._knows_all = is_new and self._catalogue.is_whole and self._catalogue.is_current
            self._say_trouble("" if self._catalogue.is_whole else _UNSURE)

    def _is_as_far_as_before(self, frontier: Frontier) -> bool:
        """Tell whether the log is known as far as it was to earlier drainers.

        A hint is not flushed: behind a power cut it may be from before a route was born.
        """
        shared = self._fleet.shared
        routes = {birth.route_id for birth in shared.ledger.births()}
        routes |= self._progress.all_released().keys()
        is_packed = max((file.hi for file in shared.packed.all), default=0) <= frontier.lsn
        return is_packed and self._catalogue.has_heard_of(routes)

    def _catch_up(self) -> None:
        """Learn at once what ingest acknowledged last."""
        self._pin_hint()
        self._follow()

    def _pack(self) -> None:
        frontier, routes, packing = self._board.current(), self._catalogue.routes, self._packing
        if frontier is None or not packing.is_due or not self._follows_all():
            return
        checkpoints = {int(route): lsn for route, lsn in self._fleet.checkpoints().items()}
        rest = resting(self._fleet.figures()) if packing.will_look else ()
        packing.step(frontier, routes, checkpoints, rest)

    def _follows_all(self) -> bool:
        """Whether each route there is has begun, or is known as an orphan."""
        return self._knows_all and self._catalogue.routes.keys() == set(self._fleet.route_ids())

    def _grounds(self) -> Grounds:
        lanes = {id_: route.template for id_, route in self._fleet.routes.items()}
        running = self._fleet.each_lane()

        def tell(route_id: RouteId) -> None:
            for lane in running:
                if lane.route.birth.route_id == route_id:
                    lane.look_again()

        unasked = self._fleet.unasked() + ([] if self._follows_all() else [_NOT_BEGUN])
        return Grounds(lanes, self._fleet.lane_keys(), unasked, tell)

    def _leave(self, deliver_for_s: float) -> None:
        with contextlib.suppress(Exception):
            self._follow()
        self._fleet.stop(deliver_for_s)
        staying = self._fleet.join(deliver_for_s + _JOIN_GRACE_S)
        if staying:
            _log.warning("still in an attempt, which its target will settle: %s", staying)
        self._progress_ns = self._stands_ns = 0
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
        if unwritten and unwritten != self._answers.trouble:
            _log.warning("%s", unwritten)
        unfollowed = f"routes cannot be read or begun: {self._trouble}" if self._trouble else ""
        self._answers.trouble = unwritten or unfollowed

    def _publish_figures(self) -> None:
        routes = fitting_the_page(self._fleet.figures())
        said = {
            "pid": os.getpid(),
            "started_ns": self._started_ns,
            "routes": routes,
            "paused_all_ns": self._fleet.paused_all_ns,
            "disk": self._packing.figures(),
            "dead_log": self._undertaker.figures(),
            "ledger_went_back_ns": self._fleet.shared.went_back_ns,
        }
        if said != self._said:
            self._page.write(said, sync=False)
            self._said = said

    def _publish_progress(self) -> None:
        now_ns = self._doors.clock.monotonic_ns()
        if now_ns < self._progress_ns:
            return
        checkpoints = self._fleet.checkpoints()
        told = checkpoints, self._packing.floors(checkpoints), self._fleet.unburied()
        if now_ns >= self._stands_ns:
            self._stands_ns = now_ns + round(limits.PROGRESS_EVERY_S * _NS)
            self._progress.stands.write(self._fleet.stands(), self._living())
            self._progress.stands.hold(self._fleet.paused)
        if any(told) and told != self._said_progress:
            self._progress_ns = now_ns + round(limits.PROGRESS_EVERY_S * _NS)
            self._progress.write(checkpoints, self._living(), *told[1:])
            self._said_progress = told

    def _living(self) -> Collection[RouteId] | None:
        """Return the routes that live; None until all are known: then nothing is forgotten."""
        ids = self._fleet.route_ids()
        is_known = self._knows_all and self._catalogue.routes.keys() <= set(ids)
        return ids if is_known else None
