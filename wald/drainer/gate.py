"""What stands between a lane and its target: how much goes at a time, and when to hold back."""

import time
from collections.abc import Mapping
from enum import Enum
from typing import Any

from wald import limits
from wald.core import breaker, pacing
from wald.core.adaptive import Adaptive, adaptive
from wald.core.batching import Bounds
from wald.core.breaker import PERMIT, Breaker, BreakerState, Permit
from wald.core.pacing import Patience
from wald.drainer.route import Route
from wald.drainer.targets import Guard
from wald.model import Capabilities, Delivered, Lsn, Outcome, Partial, Systemic, Unknown

_NS = limits.CLOCK_NS_PER_S
_SOON_S = 0.01
_DIGITS_NS = -8  # tenths of a second
_UNTIL_WOKEN_S = 60.0


class Held(Enum):
    """Why a lane holds back; the words of status."""

    PAUSED = "paused"
    FORMER_LANES = "former lanes"
    BREAKER = "breaker"
    HOURS = "hours"
    RATE = "rate"
    OTHERS = "others"
    PLACES = "places"


class Gate:
    """Asked by one lane before it seals, asks or sends, and told what came of each attempt."""

    def __init__(self, route: Route) -> None:
        shared, settings = route.shared, route.settings
        self._shared, self._settings, self._route_id = shared, settings, route.birth.route_id
        self._crew, self._layout = route.crew, route.layout
        self._hours = pacing.schedule(settings.deliver.window, settings.deliver.every_s)
        self._target = shared.targets.target(settings.sink)
        self._pace = shared.targets.pace(self._route_id, settings, self._now_ns())
        self._guards = (self._pace.guard, self._target.guard)
        self._permits: list[tuple[Guard, Permit]] = []
        self._size = _first_size(route)
        self._closings = self._times_closed()
        self._patience = Patience()
        self._age_s = self._drawn_age_s()
        self._rest_until_ns = 0
        self._held: Held | None = None
        self._turn: int | None = None
        self._turn_through: Lsn = 0
        self._through: Lsn = 0
        self._live = True

    # --- before ---------------------------------------------------------------------------------

    def bounds(self, able: Capabilities) -> Bounds:
        """Return when the next batch is sealed."""
        batch, per_s = self._settings.batch, self._settings.max_records_per_s
        highest = min(batch.max_records, able.max_records)
        if per_s is not None:
            highest = min(highest, pacing.largest_batch(per_s))
        self._target.bound(able, self._now_ns())
        self._look_for_closing()
        self._size = self._size.within(highest)
        return Bounds(self._size.size, min(batch.max_bytes, able.max_bytes), self._age_s)

    def wait_s(self) -> float:
        """Return how long to hold back before the target is asked or sent anything; 0 to go on.

        With 0 the lane has leave for one attempt, until it says how that ``ended``, or rests.
        """
        now_ns = self._now_ns()
        self._look_for_closing()
        for held, seconds in (
            (Held.PAUSED, 0.0 if self._crew.paused_ns is None else _UNTIL_WOKEN_S),
            (Held.FORMER_LANES, _UNTIL_WOKEN_S if self._must_wait() else 0.0),
            (Held.HOURS, self._until_hours_s()),
            (Held.OTHERS, (self._rest_until_ns - now_ns) / _NS),
            (Held.RATE, self._pace.bucket.wait_s(now_ns) if self._pace.bucket else 0.0),
            (Held.RATE, self._target.wait_s(now_ns)),
        ):
            if seconds > 0:
                self._held = held  # first: its turn for a place is another's meanwhile
                self.rest()
                return seconds
        if self._permits:
            self._held = None
            return 0.0
        if not self._crew.enter(self):
            self._held = Held.PLACES
            return _UNTIL_WOKEN_S
        wait_s = self._ask_leave(now_ns)
        self._held = Held.BREAKER if wait_s > 0 else None
        if wait_s > 0:
            self._crew.leave(self)
        return wait_s

    @property
    def is_shut(self) -> bool:
        """Whether a breaker, the hours or a person hold the lane back, as was last asked."""
        if self._held is Held.BREAKER:  # another lane's probe may have closed it
            return any(guard.breaker.state is not BreakerState.CLOSED for guard in self._guards)
        return self._held in {Held.HOURS, Held.PAUSED, Held.FORMER_LANES}

    def ask_now(self) -> None:
        """Let a probe through although an open breaker says later."""
        for guard in self._guards:
            guard.ask_now(self._now_ns())

    def begins(self, records: int) -> float:
        """Take in that an attempt begins; returns how long it may take."""
        self._pace.begins(records, self._now_ns())
        self._target.begins(records, self._now_ns())
        self._age_s = self._drawn_age_s()
        return self._patience.timeout_s(self._settings.attempt_timeout_s)

    # --- behind ---------------------------------------------------------------------------------

    def ended(self, outcome: Outcome, records: int, seconds: float) -> None:
        """Take in what an attempt with so many records came to, and how long it took."""
        now_ns, chance = self._now_ns(), self._shared.chance
        permits = self._permits or [(guard, PERMIT) for guard in self._guards]
        self._permits = []
        closed = [guard.ended(permit, outcome, now_ns, chance) for guard, permit in permits]
        self._size = self._size.after(outcome, seconds, records)
        if isinstance(outcome, Unknown):
            self._patience = self._patience.after_silence()
        elif not isinstance(outcome, Systemic):
            self._patience = self._patience.after(seconds)
        if isinstance(outcome, Partial):
            self._pace.delivered(records - len(outcome.rejected) - len(outcome.retry), now_ns)
        elif isinstance(outcome, Delivered):
            self._pace.delivered(records, now_ns)
        self._make_room(seconds, now_ns)
        if any(permit.is_probe for _, permit in permits):
            self._closings = self._begin_small()  # it goes on at once: the others spread
        if any(closed):
            self._shared.board.wake()
        if any(guard.breaker.state is BreakerState.OPEN for guard in self._guards):
            self._held = Held.BREAKER
        self._crew.leave(self)

    def answered(self) -> None:
        """Take in that the target answered a question, and that there is nothing to send."""
        permits, self._permits = self._permits, []
        probes = [(guard, permit) for guard, permit in permits if permit.is_probe]
        closed = [guard.answered(permit, self._now_ns()) for guard, permit in probes]
        if any(closed):
            self._closings = self._begin_small()  # it goes on at once: the others spread
            self._shared.board.wake()
        self._crew.leave(self)

    def rest(self) -> None:
        """Give leave back that was not used: the lane has nothing to send, or has failed."""
        permits, self._permits = self._permits, []
        for guard, permit in permits:
            guard.give_back(permit)
        if any(permit.is_probe for _, permit in permits):
            self._shared.board.wake()
        if self._held is not Held.PLACES:  # who waits for a place keeps its turn
            self._crew.leave(self)

    def leave(self) -> None:
        """Give everything back, a turn too: the lane begins anew, or ends."""
        self.rest()
        self._crew.leave(self)

    def note(self, through: Lsn, oldest_ns: int | None) -> None:
        """Take in how far the lane is, and since when by the wall clock its oldest record waits."""
        self._through = through
        oldest_s = None
        if oldest_ns is not None:
            oldest_s = (self._shared.clock.wall_ns() - oldest_ns) / _NS
        self._live = pacing.is_live(oldest_s, self._settings.goal_age_s)

    def flush(self, through: Lsn) -> None:
        """Let what is there up to an LSN pass before the next turn; the hours stay. Any thread.

        Somebody waits for it: a target that was down is asked at once.
        """
        self._turn_through = max(self._turn_through, through)
        self.ask_now()

    # --- what others see ------------------------------------------------------------------------

    def figures(self) -> Mapping[str, Any]:
        """Return what status says of it: times by the wall clock, rates as of ``rate_ns``."""
        rate = self._pace.rate
        said: dict[str, Any] = {
            "batch_size": self._size.size,
            "batch_reason": self._size.reason.value,
            "rate_per_s": round(rate.per_s(rate.at_ns), 1),
            "rate_ns": self._wall_ns(rate.at_ns),
            "timeout_s": round(self._patience.timeout_s(self._settings.attempt_timeout_s), 1),
        }
        if self._settings.goal_age_s is not None:
            said["goal_age_s"] = self._settings.goal_age_s
        if self._held is not None:
            said["held"] = self._held.value
        for guard in self._guards:
            if guard.breaker.state is not BreakerState.CLOSED:
                said["breaker"] = self._breaker_said(guard.breaker, guard.scope.value)
        return said

    def _breaker_said(self, value: Breaker, scope: str) -> dict[str, Any]:
        return {
            "state": value.state.value,
            "scope": scope,
            "kind": value.kind.value if value.kind else "",
            "message": value.message,
            "hint": value.hint,
            "since_ns": self._wall_ns(value.since_ns),
            "due_ns": self._wall_ns(value.due_ns),
        }

    def _wall_ns(self, monotonic_ns: int) -> int:
        """Rounded, so that what stands still is not told anew."""
        return round(self._shared.clock.wall_ns() - (self._now_ns() - monotonic_ns), _DIGITS_NS)

    # --- parts ----------------------------------------------------------------------------------

    def _now_ns(self) -> int:
        return self._shared.clock.monotonic_ns()

    def _must_wait(self) -> bool:
        return self._crew.must_wait(self._layout, self._settings.sink)

    def _drawn_age_s(self) -> float:
        batch = self._settings.batch
        return pacing.drawn_age_s(batch.max_age_s, batch.jitter_s, self._shared.chance)

    def _ask_leave(self, now_ns: int) -> float:
        """Ask the route's breaker, then the target's; keep leave only if both give it."""
        for guard in self._guards:
            permit = guard.admit(now_ns)
            if permit is None:
                for other, given in self._permits:
                    other.give_back(given)
                self._permits = []
                return max(_SOON_S, breaker.wait_s(guard.breaker, now_ns))
            self._permits.append((guard, permit))
        return 0.0

    def _until_hours_s(self) -> float:
        hours, clock = self._hours, self._shared.clock
        if hours.opens_s is None and hours.every_s is None:
            return 0.0
        wall_ns = clock.wall_ns()
        offset_s = time.localtime(wall_ns // _NS).tm_gmtoff
        turn = pacing.turn(hours, wall_ns, offset_s)
        if turn.number is None:
            return turn.wait_s
        if hours.every_s is None:
            return 0.0
        frontier = self._shared.board.current()
        if turn.number != self._turn and frontier is not None:
            self._turn, self._turn_through = turn.number, max(self._turn_through, frontier.lsn)
        return turn.wait_s if self._through >= self._turn_through else 0.0

    def _make_room(self, seconds: float, now_ns: int) -> None:
        """Rest behind an attempt while a backlog drains beside live routes."""
        self._target.worked(self._route_id, now_ns, live=self._live)
        if not self._live and self._target.has_live(self._route_id, now_ns):
            pause_s = pacing.pause_for_others_s(seconds, self._settings.live_share)
            self._rest_until_ns = now_ns + round(pause_s * _NS)

    def _times_closed(self) -> int:
        return sum(guard.breaker.times_closed for guard in self._guards)

    def _look_for_closing(self) -> None:
        """Begin small behind an outage, and not all lanes at once."""
        if self._times_closed() != self._closings:
            self._closings = self._begin_small()
            pause_s = self._shared.chance.uniform(0.0, limits.BREAKER_SPREAD_S)
            self._rest_until_ns = max(self._rest_until_ns, self._now_ns() + round(pause_s * _NS))

    def _begin_small(self) -> int:
        closings = self._times_closed()
        if closings != self._closings:
            self._size = self._size.restarted()
        return closings


def _first_size(route: Route) -> Adaptive:
    batch = route.settings.batch
    lowest = 1 if batch.adaptive else batch.max_records
    return adaptive(batch.max_records, lowest=lowest, goal_s=batch.latency_goal_s)
