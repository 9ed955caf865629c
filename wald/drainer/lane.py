"""One lane: a machine that goes from step to step as the tables of ``core.delivery`` say.

``step`` does one thing and says how long to wait for news before the next; a thread calls it, or
a test with a clock of its own. What is done in each step: ``steps``. An error of ours restarts the
lane after a pause; it never ends the process.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

from wald import limits
from wald.core import delivery
from wald.core.delivery import Event, Parked, Step
from wald.drainer.adopting import follow_healing
from wald.drainer.doubt import leave_word
from wald.drainer.lane_figures import LaneFigures, Shown, Stance, lane_figures
from wald.drainer.route import Route
from wald.drainer.sinks import TendedSink, is_guarded
from wald.drainer.steps import Steps
from wald.drainer.takeover import DECIDABLE
from wald.errors import DiskFull, WaldError
from wald.model import Lsn, ReplayClass

_log = logging.getLogger("wald.drain")
_NS = limits.CLOCK_NS_PER_S
_AHEAD = frozenset({Step.COLLECTING, Step.SENDING})  # may follow T5 before it is durable
_SETTLES = frozenset({Step.SEARCHING, Step.SETTLING})
_RESTING = frozenset({Step.WAITING, Step.PARKED})


class Lane:
    """Delivers one lane of a route until it is stopped."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self.shown = Shown()
        self._shared = route.shared
        self._steps = Steps(route)
        self._ledger_changed = False  # by a command
        self._thread = threading.Thread(
            target=self._run, name=f"lane {route.birth.name}", daemon=True
        )
        self._leave_by_ns: int | None = None  # set once: seal and deliver what is there until then
        self._step = Step.CHECKING
        self._hurried = False
        self._due_ns = 0
        waits = {Step.WAITING: self._wait, Step.PARKED: self._wait}
        self._by_step: Mapping[Step, Callable[[], Event | float]] = {**self._steps.of, **waits}

    @property
    def name(self) -> str:
        """The route's name, and which of its lanes it is if there are several."""
        route = self.route
        several = route.settings.lanes > 1 or route.layout
        return f"{route.birth.name}/{route.layout}.{route.lane}" if several else route.birth.name

    @property
    def busy_since_ns(self) -> int:
        """When somebody's code was called that has not returned: the sink's, or a transform.

        0 if none was, or another process bounds it.
        """
        sink = self._steps.memory.sink
        if not isinstance(sink, TendedSink) or is_guarded(sink):
            return 0
        return self.route.shaping.since_ns or sink.busy_since_ns

    @property
    def figures(self) -> LaneFigures:
        """What it shows of itself. Any thread."""
        return self.shown.now

    @property
    def has_looked(self) -> bool:
        """Whether it has looked at its row since it was begun or hurried."""
        return self._steps.look_ns > 0

    @property
    def is_through(self) -> bool:
        """Whether one of a former layout has delivered all that is its, as far as it knows."""
        figures = self.figures
        through = figures.checkpoint_lsn >= (self.route.share.until or 0)
        return through and not figures.attempts  # nothing is open

    @property
    def is_done(self) -> bool:
        """Whether one of a former layout has nothing to do."""
        figures = self.figures
        return figures.state == "idle" and figures.redrives == 0 and self.is_through

    @property
    def was_through(self) -> bool:
        """Whether it is, or was told to be by a ledger lost since and waits for what its row says.

        What the row does not say is not in the log any more: it would hold the others up for ever.
        One that delivers again, and halts at a record, is not through.
        """
        route, told = self.route, self._shared.told
        if self.is_through or told is None or self.figures.parked not in DECIDABLE:
            return self.is_through
        until = route.share.until or 0
        stand = told.stand(route.birth.route_id, route.layout, route.lane, route.begin_lsn, until)
        return stand.lsn >= until

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
        self._steps.flush(through)
        self._shared.board.wake()

    def look_again(self) -> None:
        """Say that a command changed what the ledger holds of the lane."""
        self._ledger_changed = True
        self._steps.redrives.look()
        self._shared.board.wake()

    def hurry(self) -> None:
        """Try at once what waits for its next try, or is parked: a person asks for it."""
        self._hurried = True
        self._steps.hurry()
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
            self._steps.leaving = True
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
                    board.wait(turn, rest_s, follows=self.follows)
        finally:
            self._steps.settle_seal()
            leave_word(self.route, self._steps.memory)
            self._steps.let_go()

    def step(self) -> float:
        """Do one step; returns how long to wait for news before the next, 0 for at once."""
        try:
            if self._ledger_changed or self._step not in _AHEAD:
                self._steps.memory.settle_seal()
            if self._ledger_changed:
                self._ledger_changed = False
                self._take_in_change()
            came = self._by_step[self._step]()
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
        memory = self._steps.memory
        memory.held = self._shared.ledger.lane(self.route.key)
        waits = {Parked.HALTED, Parked.QUOTA, Parked.UNCERTAIN}
        if self._step is Step.PARKED and memory.parked in waits:
            self._due_ns = 0

    def _move(self, event: Event) -> None:
        transition = delivery.after(self._step, event)
        self._step, memory = transition.then, self._steps.memory
        if event is Event.ADOPTED:
            self._steps.failures = 0
            self._due_ns = self._now_ns() + round(memory.pause_s * _NS)
        elif self._step is Step.WAITING:
            self._rest_after_failure(getattr(memory.outcome, "retry_after_s", None))
            if self._steps.failures == 1:
                name = self.route.birth.name
                _log.warning("route %s: %s: %r", name, transition.label, memory.last_error)
        elif self._step is Step.PARKED:
            self._due_ns = self._now_ns() + round(limits.PARKED_REREAD_S * _NS)

    def _find_no_room(self, error: DiskFull) -> float:
        """Do T3 again later where nobody but this memory knows what the target said."""
        memory = self._steps.memory
        if self._step not in _SETTLES or memory.replay is ReplayClass.TRANSACTIONAL:
            self._fail(error)
            return 0.0
        memory.say(error.message)
        self._rest_after_failure(error.retry_after_s)
        self._publish()
        return max(0.0, (self._due_ns - self._now_ns()) / _NS)

    def _fail(self, error: BaseException) -> None:
        """Begin anew after a pause: ledger and log say where we are."""
        expected = isinstance(error, WaldError)
        text = error.message if isinstance(error, WaldError) else repr(error)
        trace = None if expected else error
        _log.error("route %s failed: %s", self.route.birth.name, text, exc_info=trace)
        self._steps.let_go()
        self._steps.memory.say(text)
        self._step = Step.WAITING
        self._rest_after_failure(None)
        said = self._steps.memory.last_error
        failed = replace(self.figures, last_error=said, failures=self._steps.failures)
        self.shown.put(replace(failed, state="failed"))

    def _rest_after_failure(self, floor_s: float | None) -> None:
        steps = self._steps
        steps.failures += 1
        pause_s = 0.0  # an open breaker says when: one lane is to try for all
        if not steps.gate.is_shut:
            pause_s = delivery.backoff_s(steps.failures, self._shared.chance, floor_s=floor_s)
        self._due_ns = self._now_ns() + round(pause_s * _NS)

    def must_leave(self) -> bool:
        """Tell whether the lane was asked to leave, and may."""
        if self._leave_by_ns is None:
            return False
        resting = self._step in _RESTING or self._steps.gate.is_shut
        if resting or self._now_ns() >= self._leave_by_ns or self.route.frontier() is None:
            return True
        return self._step is Step.COLLECTING and self._steps.has_nothing_left

    @property
    def follows(self) -> bool:
        """Whether new records change what it does next.

        They do not while it waits for its target, or its turn, and has records at hand: to be
        woken by each group of all streams costs what others could deliver with.
        """
        waits = self._step in _RESTING or self._steps.is_held_back
        return not (waits and self._steps.has_at_hand)

    def _now_ns(self) -> int:
        return self._shared.clock.monotonic_ns()

    def _wait(self) -> Event | float:
        self._steps.look_ahead()
        if self._hurried:
            self._hurried = False
            if self._steps.memory.parked is not Parked.UNCERTAIN:  # sending that again may double
                self._due_ns = self._now_ns()
        left_s = (self._due_ns - self._now_ns()) / _NS
        return Event.DUE if left_s <= 0 else left_s

    # --- what others see ------------------------------------------------------------------------

    def _publish(self) -> None:
        steps, memory = self._steps, self._steps.memory
        follow_healing(self.route, memory)
        stance = Stance(self._step, steps.failures, steps.redrives.count(memory))
        figures = lane_figures(memory, steps.gate, stance, self.figures)
        self.shown.put(figures, once=memory.sealing and memory.sealing.underway)
