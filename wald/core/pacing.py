"""When a lane may go on, and how fast: rates, shares, hours, timeouts, workers. Pure.

Durations are of the monotonic clock; only hours of the day look at the wall clock.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from wald import limits
from wald.ports import Chance

_NS = limits.CLOCK_NS_PER_S
_DAY_S = 86_400
_HOUR_S = 3_600
_MINUTE_S = 60

# --- a rate that is not to be exceeded ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket that may go into debt: a batch goes out whole, and what it took is paid back.

    In any time t no more than ``per_s * (t + RATE_BURST_S)`` records begin, and one batch.
    """

    per_s: float
    tokens: float
    at_ns: int

    def wait_s(self, now_ns: int) -> float:
        """Return how long until the next batch may go out; 0 for now."""
        return max(0.0, -self._tokens(now_ns) / self.per_s)

    def taken(self, records: int, now_ns: int) -> "Bucket":
        """Return the bucket after a batch went out."""
        return replace(self, tokens=self._tokens(now_ns) - records, at_ns=now_ns)

    def _tokens(self, now_ns: int) -> float:
        grown = self.tokens + self.per_s * max(0, now_ns - self.at_ns) / _NS
        return min(grown, self.per_s * limits.RATE_BURST_S)


def bucket(per_s: float, now_ns: int) -> Bucket:
    """Return an empty bucket: a start is no burst."""
    return Bucket(per_s, 0.0, now_ns)


def largest_batch(per_s: float) -> int:
    """Return the largest batch at a rate: what it gives in the time of a burst."""
    return max(1, int(per_s * limits.RATE_BURST_S))


# --- room for others ----------------------------------------------------------------------------


def is_live(oldest_s: float | None, goal_age_s: float | None) -> bool:
    """Tell whether a route keeps up: nothing waits, or not for longer than its goal."""
    goal_s = limits.LIVE_AGE_S if goal_age_s is None else goal_age_s
    return oldest_s is None or oldest_s <= goal_s


def pause_for_others_s(seconds: float, live_share: float) -> float:
    """Return how long a lane with a backlog rests behind an attempt, for the live ones beside it.

    So that over attempts and rests together ``live_share`` of the target's time is left.
    """
    if live_share <= 0:
        return 0.0
    if live_share >= 1:
        return limits.LIVE_PAUSE_MAX_S
    return min(seconds * live_share / (1 - live_share), limits.LIVE_PAUSE_MAX_S)


# --- hours --------------------------------------------------------------------------------------


class Schedule(NamedTuple):
    """When a route delivers: daily hours of local time, and how often; None for no such bound.

    ``opens_s`` and ``closes_s`` are seconds of the day; a window may pass midnight. ``every_s``
    counts from the opening, or from midnight.
    """

    opens_s: int | None = None
    closes_s: int = 0
    every_s: float | None = None


class Turn(NamedTuple):
    """Whether a route may deliver now.

    Attributes:
        number: names the turn; None outside the window. Only equality means anything: the wall
            clock may go back, and then a turn comes a second time, which delivers nothing twice.
        wait_s: until the next turn, no longer than ``limits.SCHEDULE_LOOK_S``: then it is asked
            again, for clock and offset may have changed since.
    """

    number: int | None
    wait_s: float


def schedule(window: str | None, every_s: float | None) -> Schedule:
    """Return the hours that ``deliver = { window, every }`` says, as in ``"22:00-06:00"``."""
    if window is None:
        return Schedule(every_s=every_s)
    opens, closes = (_seconds_of_day(text) for text in window.split("-"))
    return Schedule(opens, closes, every_s)


def turn(hours: Schedule, wall_ns: int, utc_offset_s: int) -> Turn:
    """Return whether it is time to deliver, by the wall clock and its offset from UTC now."""
    local_s = wall_ns / _NS + utc_offset_s
    day, since_midnight_s = divmod(local_s, _DAY_S)
    opens_s = hours.opens_s or 0
    since_opening_s = (since_midnight_s - opens_s) % _DAY_S
    if hours.opens_s is not None:
        length_s = (hours.closes_s - opens_s) % _DAY_S or _DAY_S
        if since_opening_s >= length_s:
            return Turn(None, _look(_DAY_S - since_opening_s))
    opening_day = int(day) - (since_midnight_s < opens_s)
    if hours.every_s is None:
        return Turn(opening_day, limits.SCHEDULE_LOOK_S)
    nth, passed_s = divmod(since_opening_s, hours.every_s)
    return Turn(opening_day * _DAY_S + int(nth), _look(hours.every_s - passed_s))


def _look(seconds: float) -> float:
    return min(seconds, limits.SCHEDULE_LOOK_S)


def _seconds_of_day(text: str) -> int:
    hours, minutes = text.split(":")
    return int(hours) * _HOUR_S + int(minutes) * _MINUTE_S


# --- age ----------------------------------------------------------------------------------------


def drawn_age_s(max_age_s: float, jitter_s: float, chance: Chance) -> float:
    """Return at which age a batch is sealed: hosts that began together do not beat in step."""
    return max_age_s + chance.uniform(0.0, jitter_s) if jitter_s else max_age_s


# --- timeouts -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an attempt may take, by what attempts took: mean and mean deviation, as in TCP."""

    mean_s: float | None = None
    deviation_s: float = 0.0
    factor: float = limits.ATTEMPT_TIMES_COUNT

    def after(self, seconds: float) -> "Patience":
        """Return it after an attempt that was answered."""
        if self.mean_s is None:
            return Patience(seconds, seconds / 2)
        off_s = abs(seconds - self.mean_s)
        return Patience(
            self.mean_s + (seconds - self.mean_s) / 8,
            self.deviation_s + (off_s - self.deviation_s) / 4,
        )

    def after_silence(self) -> "Patience":
        """Return it after an attempt that was not answered: the next gets twice as long."""
        return replace(self, factor=min(2 * self.factor, limits.ATTEMPT_TIMES_MAX))

    def timeout_s(self, cap_s: float) -> float:
        """Return how long the next attempt may take; the cap before anything is known."""
        if self.mean_s is None:
            return cap_s
        nearly_all_s = self.mean_s + limits.ATTEMPT_DEVIATIONS_COUNT * self.deviation_s
        return min(cap_s, max(limits.ATTEMPT_TIMEOUT_FLOOR_S, self.factor * nearly_all_s))


# --- figures ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rate:
    """Events a second, as a mean over about ``limits.RATE_MEMORY_S``."""

    weighed: float = 0.0
    at_ns: int = 0
    began_ns: int | None = None

    def after(self, events: int, now_ns: int) -> "Rate":
        """Return the rate after so many events came."""
        if self.began_ns is None:
            return Rate(events / limits.RATE_MEMORY_S, now_ns, now_ns)
        weighed = self._faded(now_ns) + events / limits.RATE_MEMORY_S
        return Rate(weighed, now_ns, self.began_ns)

    def per_s(self, now_ns: int) -> float:
        """Return the rate now. A young one counts the time that there was."""
        if self.began_ns is None:
            return 0.0
        age_s = max(_SECOND, (now_ns - self.began_ns) / _NS)
        return self._faded(now_ns) / -math.expm1(-age_s / limits.RATE_MEMORY_S)

    def _faded(self, now_ns: int) -> float:
        return faded(self.weighed, (now_ns - self.at_ns) / _NS)


_SECOND = 1.0  # the first batch of a route makes no rate


def faded(weighed: float, seconds: float) -> float:
    """Return what is left of a rate behind a time without events."""
    return weighed * math.exp(-max(0.0, seconds) / limits.RATE_MEMORY_S)


def eta_s(pending: int, per_s: float) -> float | None:
    """Return when what is pending now is delivered at the present rate; None if never."""
    if pending <= 0:
        return 0.0
    return pending / per_s if per_s * limits.ETA_MAX_S > pending else None


# --- workers ------------------------------------------------------------------------------------


class Workers(NamedTuple):
    """How many lanes of a route are at work; when that last changed, when it last lagged."""

    number: int
    changed_ns: int
    lagged_ns: int


def workers_at_work(
    workers: Workers, lag_s: float, *, lowest: int, highest: int, now_ns: int
) -> Workers:
    """Return how many lanes should be at work.

    One more at a time, soon; one fewer at a time, after a long time without a lag: a lull is no
    reason to leave. Between the two bounds of the lag nothing changes.

    Args:
        workers: what was returned last.
        lag_s: how long the backlog would take at the present rate, as ``lag_s`` tells.
        lowest: always so many.
        highest: never more.
        now_ns: the monotonic clock.
    """
    number = max(lowest, min(workers.number, highest))
    lagged_ns = now_ns if lag_s >= limits.WORKERS_SHRINK_LAG_S else workers.lagged_ns
    held_s = (now_ns - workers.changed_ns) / _NS
    quiet_s = min(held_s, (now_ns - lagged_ns) / _NS)
    if lag_s > limits.WORKERS_GROW_LAG_S and held_s >= limits.WORKERS_GROW_AFTER_S:
        number = min(number + 1, highest)
    elif quiet_s >= limits.WORKERS_SHRINK_AFTER_S:
        number = max(number - 1, lowest)
    changed_ns = workers.changed_ns if number == workers.number else now_ns
    return Workers(number, changed_ns, lagged_ns)


def lag_s(pending: int, per_s: float) -> float:
    """Return how long what is pending would take; without a rate, all the time there is."""
    if pending <= 0:
        return 0.0
    return pending / per_s if per_s > 0 else math.inf
