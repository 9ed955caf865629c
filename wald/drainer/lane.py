"""One lane: a machine of steps that carries out what the tables of ``core.delivery`` decide.

``step`` does one thing and says how long to wait for news before the next; a thread calls it, or
a test with a clock of its own.

Commit points: T2 before the first attempt, T4 before each further one, the dead log and T3 before
an attempt without the refused records, the target's own commit, T5 (with the next T2) behind it.
Whatever ends between two of them, the next start finds the manifest, asks the target for its row,
and goes on. An error of ours restarts the lane after a pause; it never ends the process.
"""

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from wald import limits
from wald.core import delivery
from wald.core.batching import Bounds, why_seal
from wald.core.delivery import Event, Parked, Step
from wald.drainer.adopting import follow_healing, recall_healing
from wald.drainer.checking import check_row
from wald.drainer.doubt import count_again, leave_word, still_held, take_back
from wald.drainer.freezing import to_send
from wald.drainer.gate import Gate
from wald.drainer.lane_figures import LaneFigures, Shown, Stance, lane_figures
from wald.drainer.reader import Batch
from wald.drainer.recalling import is_to_recall, reserve, take_unsure
from wald.drainer.redriving import Redrives
from wald.drainer.route import LaneMemory, Route
from wald.drainer.sending import (
    advance,
    close_sink,
    finish,
    foregone,
    seal,
    search,
    send,
)
from wald.drainer.settling import settle
from wald.drainer.sinks import TendedSink, fit_sink, is_guarded
from wald.errors import DiskFull, WaldError
from wald.model import Lsn, ProgressRow, ReplayClass

_log = logging.getLogger("wald.drain")
_NS = limits.CLOCK_NS_PER_S
_IDLE_S = limits.LANE_IDLE_S
_AHEAD = frozenset({Step.COLLECTING, Step.SENDING})  # may follow T5 before it is durable
_SETTLES = frozenset({Step.SEARCHING, Step.SETTLING})


class Lane:
    """Delivers one lane of a route until it is stopped."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self.shown = Shown()
        self._shared = route.shared
        self._memory = LaneMemory()
        self._redrives = Redrives(route)
        self._redrive_wait_s = 0.0
        self._ledger_changed = False  # by a command
        self._gate = Gate(route)
        self._thread = threading.Thread(
            target=self._run, name=f"lane {route.birth.name}", daemon=True
        )
        self._leave_by_ns: int | None = None  # set once: seal and deliver what is there until then
        self._flush_through: Lsn = 0
        self._failures = 0
        self._step = Step.CHECKING
        self._hurried = False
        self._due_ns = 0
        self._held_back_s = 0.0
        self._advance_ns = 0
        self._look_ns = 0  # when an idle lane looks at its row again
        self._steps: dict[Step, Callable[[], Event | float]] = {
            Step.CHECKING: self._check,
            Step.COLLECTING: self._collect,
            Step.SENDING: self._send,
            Step.SEARCHING: self._search,
            Step.SETTLING: lambda: settle(self.route, self._memory),
            Step.WAITING: self._wait,
            Step.PARKED: self._wait,
        }

    @property
    def name(self) -> str:
        """The route's name, and which of its lanes it is if there are several."""
        route = self.route
        several = route.settings.lanes > 1 or route.layout
        return f"{route.birth.name}/{route.layout}.{route.lane}" if several else route.birth.name

    @property
    def busy_since_ns(self) -> int:
        """When the sink was called that has not returned; 0 if none is, or another bounds it."""
        sink = self._memory.sink
        return sink.busy_since_ns if isinstance(sink, TendedSink) and not is_guarded(sink) else 0

    @property
    def figures(self) -> LaneFigures:
        """What it shows of itself. Any thread."""
        return self.shown.now

    @property
    def has_looked(self) -> bool:
        """Whether it has looked at its row since it was begun or hurried."""
        return self._look_ns > 0

    @property
    def attempt_timeout_s(self) -> float:
        """How long an attempt may take."""
        return self.route.settings.attempt_timeout_s

    # --- from other threads ---------------------------------------------------------------------

    def start(self) -> None:
        """Begin, unless it has begun; returns at once."""
        if self._thread.ident is None:
            self._thread.start()

    def flush(self, through: Lsn) -> None:
        """Seal at once what waits up to an LSN."""
        self._flush_through = max(self._flush_through, through)
        self._gate.flush(through)
        self._shared.board.wake()

    def look_again(self) -> None:
        """Say that a command changed what the ledger holds of the lane."""
        self._ledger_changed = True
        self._redrives.look()
        self._shared.board.wake()

    def hurry(self) -> None:
        """Try at once what waits for its next try, or is parked: a person asks for it."""
        self._gate.ask_now()
        self._hurried = True
        if self._memory.replay is ReplayClass.TRANSACTIONAL:  # others have no row to look at
            self._look_ns = 0
        self._shared.board.wake()

    def pardon(self) -> Lsn:
        """Set aside what is refused of the records there are, however many; return the last."""
        self.route.crew.pardoned_through = getattr(self.route.frontier(), "lsn", 0)
        self.hurry()
        return self.route.crew.pardoned_through

    def stop(self, deliver_for_s: float) -> None:
        """Ask the lane to leave once what is there is delivered, or after so long.

        An attempt under way is never abandoned: the lane leaves behind its outcome.
        """
        if self._leave_by_ns is None:
            self._leave_by_ns = self._now_ns() + round(deliver_for_s * _NS)
        self._shared.board.wake()

    def join(self, timeout_s: float) -> bool:
        """Wait for the lane to leave; False if it has not."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # --- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        board = self._shared.board
        try:
            while not self.must_leave():
                turn = board.turn()
                try:
                    rest_s = self.step()
                except BaseException as error:  # noqa: BLE001 - a driver's panic, or its exit
                    self._fail(error)  # as if the process had died: no verdict, and a crash counts
                    rest_s = 0.0
                if rest_s > 0 and not self.must_leave():
                    if self._leave_by_ns is not None:
                        rest_s = min(rest_s, (self._leave_by_ns - self._now_ns()) / _NS)
                    board.wait(turn, rest_s)
        finally:
            self._settle_seal()
            leave_word(self.route, self._memory)
            self._let_go()

    def step(self) -> float:
        """Do one step; returns how long to wait for news before the next, 0 for at once."""
        try:
            if self._ledger_changed or self._step not in _AHEAD:
                self._memory.settle_seal()
            if self._ledger_changed:
                self._ledger_changed = False
                self._take_in_change()
            came = self._steps[self._step]()
            if isinstance(came, Event):
                self._move(came)
                came = 0.0
            self._publish()
        except DiskFull as error:
            return self._find_no_room(error)
        except Exception as error:  # noqa: BLE001 - a lane's failure is its own
            self._fail(error)
            return 0.0
        return came

    def _take_in_change(self) -> None:
        """Read what a command changed; what waits for a person is tried again at once."""
        self._memory.held = self._shared.ledger.lane(self.route.key)
        waits = {Parked.HALTED, Parked.QUOTA, Parked.UNCERTAIN}
        if self._step is Step.PARKED and self._memory.parked in waits:
            self._due_ns = 0

    def _move(self, event: Event) -> None:
        transition = delivery.after(self._step, event)
        self._step = transition.then
        if event is Event.ADOPTED:
            self._failures = 0
            self._due_ns = self._now_ns() + round(self._memory.pause_s * _NS)
        elif self._step is Step.WAITING:
            outcome = self._memory.outcome
            self._rest_after_failure(getattr(outcome, "retry_after_s", None))
            if self._failures == 1:
                text = self._memory.last_error
                _log.warning("route %s: %s: %r", self.route.birth.name, transition.label, text)
        elif self._step is Step.PARKED:
            self._due_ns = self._now_ns() + round(limits.PARKED_REREAD_S * _NS)

    def _find_no_room(self, error: DiskFull) -> float:
        """Do T3 again later where nobody but this memory knows what the target said."""
        if self._step not in _SETTLES or self._memory.replay is ReplayClass.TRANSACTIONAL:
            self._fail(error)
            return 0.0
        self._memory.say(error.message)
        self._rest_after_failure(error.retry_after_s)
        self._publish()
        return max(0.0, (self._due_ns - self._now_ns()) / _NS)

    def _fail(self, error: BaseException) -> None:
        """Begin anew after a pause: ledger and log say where we are."""
        expected = isinstance(error, WaldError)
        text = error.message if isinstance(error, WaldError) else repr(error)
        trace = None if expected else error
        _log.error("route %s failed: %s", self.route.birth.name, text, exc_info=trace)
        self._let_go()
        self._memory.say(text)
        self._step = Step.WAITING
        self._rest_after_failure(None)
        failed = replace(self.figures, last_error=self._memory.last_error, failures=self._failures)
        self.shown.put(replace(failed, state="failed"))

    def _rest_after_failure(self, floor_s: float | None) -> None:
        self._failures += 1
        pause_s = 0.0  # an open breaker says when: one lane is to try for all
        if not self._gate.is_shut:
            pause_s = delivery.backoff_s(self._failures, self._shared.chance, floor_s=floor_s)
        self._due_ns = self._now_ns() + round(pause_s * _NS)

    def _let_go(self) -> None:
        """Forget all that can be found again: in the ledger, the log, and at the target."""
        self._gate.leave()
        self._settle_seal()
        memory = self._memory
        take_back(self.route, memory)
        if memory.reader is not None:
            memory.reader.close()
        close_sink(self.route, memory)
        self._memory = memory.afresh()

    def _settle_seal(self) -> None:
        with contextlib.suppress(Exception):  # the ledger says what holds
            self._memory.settle_seal()

    def must_leave(self) -> bool:
        """Tell whether the lane was asked to leave, and may."""
        if self._leave_by_ns is None:
            return False
        resting = self._step in {Step.WAITING, Step.PARKED} or self._gate.is_shut
        return resting or self._now_ns() >= self._leave_by_ns or self._has_nothing_left()

    def _has_nothing_left(self) -> bool:
        frontier, reader = self.route.frontier(), self._memory.reader
        if frontier is None:
            return True
        return (
            self._step is Step.COLLECTING
            and self._memory.held.manifest is None
            and reader is not None
            and reader.is_empty
            and reader.through >= min(frontier.lsn, self.route.share.until or frontier.lsn)
        )

    def _now_ns(self) -> int:
        return self._shared.clock.monotonic_ns()

    # --- the steps ------------------------------------------------------------------------------

    def _check(self) -> Event | float:
        """Read the ledger, then ask the target for its row, and judge it."""
        memory = self._memory
        if self.route.frontier() is None:
            return _IDLE_S
        memory.held = self._shared.ledger.lane(self.route.key)
        if still_held(self.route, memory) and not is_to_recall(self.route, memory):
            return Event.UNCERTAIN
        if memory.reader is None:
            memory.reader = self.route.reader(memory.held.checkpoint.lsn)
            manifest = memory.held.manifest  # a restart does not begin anew to knock
            self._failures = max(self._failures, manifest.attempts - 1 if manifest else 0)
        held_back_s = self._gate.wait_s()
        if held_back_s > 0:
            self._look_ahead()
            return held_back_s
        fit_sink(self.route, memory)
        recall_healing(self.route, memory)
        self._look_ns = self._now_ns() + round(limits.REREAD_S * _NS)
        event, row = self._ask()
        if event is Event.ROW_APPLIED:
            if not self._load_batch():
                self._gate.rest()
                return _IDLE_S
            assert row is not None
            self._finish(row.rev_id)
        if event is not Event.ROW_STRANGE:
            memory.parked = None
        return event

    def _ask(self) -> tuple[Event, ProgressRow | None]:
        """Ask the target for the row; the gate is told how that went."""
        memory, began_ns = self._memory, self._now_ns()
        event, row = check_row(self.route, memory)
        if event is Event.SYSTEMIC:
            assert memory.outcome is not None
            self._gate.ended(memory.outcome, 0, (self._now_ns() - began_ns) / _NS)
        elif memory.replay is ReplayClass.TRANSACTIONAL and (
            event is not Event.ROW_FITS or memory.held.manifest is None
        ):
            self._gate.answered()
        return event, row

    def _collect(self) -> Event | float:
        memory = self._memory
        if memory.held.manifest is not None:
            return self._take_up()
        fit_sink(self.route, memory)
        if self._seal_redrive():
            return self._take_up()
        batch = self._next_batch()
        if batch is not None:
            return seal(self.route, memory, batch)
        self._gate.rest()
        self._advance()
        if memory.replay is ReplayClass.TRANSACTIONAL and self._now_ns() >= self._look_ns:
            return Event.LOOK
        waits_s = self._held_back_s or self._redrive_wait_s
        return waits_s or memory.rest_s(self._bounds(), self._now_ns(), self._look_ns)

    def _take_up(self) -> Event | float:
        """Go on with the open manifest: sealed just now with T5, or found."""
        memory = self._memory
        if not self._load_batch():
            self._gate.rest()
            return _IDLE_S
        held_back_s = self._gate.wait_s()
        if held_back_s > 0:
            memory.settle_seal()
            return held_back_s
        if memory.manifest.is_redrive and not memory.manifest.held:
            self._redrives.refuse_unsendable(memory)
        rev_id = memory.manifest.current.rev_id
        if memory.counted == rev_id:
            return Event.SEALED
        if not count_again(self.route, memory):
            self._gate.rest()
            return Event.UNCERTAIN
        fit_sink(self.route, memory)
        return Event.OPEN_FOUND

    def _load_batch(self) -> bool:
        """Read the open manifest's records unless they are at hand; False: not readable yet."""
        memory, frontier = self._memory, self.route.frontier()
        assert memory.reader is not None
        if memory.batch is None and memory.manifest.is_redrive:
            memory.batch = self._redrives.load(memory)
        elif memory.batch is None and frontier is not None:
            memory.batch = memory.reader.take_through(memory.manifest.current.hi, frontier)
        return memory.batch is not None

    def _seal_redrive(self) -> bool:
        """T7: seal what is asked to be sent again, where that may go on now."""
        self._redrive_wait_s = 0.0
        if self._leave_by_ns is not None or not self._redrives.are_asked():
            return False
        self._redrive_wait_s = self._gate.wait_s()
        if self._redrive_wait_s > 0:
            return False
        return self._redrives.seal(self._memory, self._bounds())

    def _next_batch(self) -> Batch | None:
        """Return a batch to be sealed now; None to wait for more."""
        reader, frontier, bounds = self._memory.reader, self.route.frontier(), self._bounds()
        assert reader is not None
        assert frontier is not None
        if self._memory.unsure_through:
            unsure = take_unsure(self.route, self._memory)
            if unsure is not None:
                return unsure
        waiting = reader.fill(frontier, bounds)
        flush = self._leave_by_ns is not None or reader.through < self._flush_through
        self._held_back_s = 0.0
        if why_seal(waiting, bounds, self._now_ns(), flush=flush) is None:
            return None
        self._held_back_s = self._gate.wait_s()
        if self._held_back_s > 0:
            return None
        batch = reader.take(bounds)
        reserve(self.route, self._memory, batch)
        return batch

    def _bounds(self) -> Bounds:
        sink = self._memory.sink
        assert sink is not None
        return self._gate.bounds(sink.capabilities)

    def _advance(self) -> None:
        """T6: now and then move an idle lane's checkpoint over what is not its."""
        memory, reader = self._memory, self._memory.reader
        assert reader is not None
        checkpoint = memory.held.checkpoint
        due = self._now_ns() >= self._advance_ns or self._leave_by_ns is not None
        until = self.route.share.until
        due = due or reader.has_lost  # a loss is told at once
        due = due or (until is not None and reader.through >= until)  # as is a layout's end
        if not due or not reader.is_empty or reader.through <= checkpoint.lsn:
            return
        self._advance_ns = self._now_ns() + round(limits.ADVANCE_EVERY_S * _NS)
        advance(self.route, memory, reader)

    def _send(self) -> Event:
        memory = self._memory
        known = foregone(self.route, memory)
        took_effect = memory.manifest.current.rev_id
        if known is not None:
            self._gate.rest()
            if known is Event.DELIVERED:
                self._finish(took_effect)
            return known
        began_ns, records = self._now_ns(), len(to_send(memory))
        memory.timeout_s = self._gate.begins(records)
        event = send(self.route, memory)
        assert memory.outcome is not None
        self._gate.ended(memory.outcome, records, (self._now_ns() - began_ns) / _NS)
        if event is Event.DELIVERED:
            self._finish(took_effect)
        return event

    def _search(self) -> Event:
        began_ns = self._now_ns()
        event = search(self.route, self._memory)
        if event in {Event.SYSTEMIC, Event.UNKNOWN}:
            assert self._memory.outcome is not None
            self._gate.ended(self._memory.outcome, 0, (self._now_ns() - began_ns) / _NS)
        return event

    def _finish(self, took_effect: bytes) -> None:
        manifest = self._memory.manifest
        # ordinary batches and redrives in turn: neither waits for all of the other
        alone = self._leave_by_ns is not None
        alone = alone or (not manifest.is_redrive and self._redrives.are_asked())
        following = None if alone else self._next_batch()
        finish(self.route, self._memory, took_effect, following)
        if manifest.is_redrive:
            self._redrives.ended(manifest.records)
        self._failures = 0  # only now: a ledger without room is a failure again and again

    def _wait(self) -> Event | float:
        self._look_ahead()
        if self._hurried:
            self._hurried = False
            if self._memory.parked is not Parked.UNCERTAIN:  # sending that again may double
                self._due_ns = self._now_ns()
        left_s = (self._due_ns - self._now_ns()) / _NS
        return Event.DUE if left_s <= 0 else left_s

    def _look_ahead(self) -> None:
        """Read what is next, so that it is known since when it waits."""
        memory, frontier = self._memory, self.route.frontier()
        if memory.reader is None or memory.sink is None or frontier is None:
            return
        if memory.held.manifest is not None:
            self._load_batch()
        elif memory.reader.is_empty:
            memory.reader.fill(frontier, self._bounds())
        self._publish()

    # --- what others see ------------------------------------------------------------------------

    def _publish(self) -> None:
        follow_healing(self.route, self._memory)
        stance = Stance(self._step, self._failures, self._redrives.count(self._memory))
        figures = lane_figures(self._memory, self._gate, stance, self.figures)
        sealing = self._memory.sealing
        self.shown.put(figures, once=sealing and sealing.underway)
