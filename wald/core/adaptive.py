"""How many records the next batch may hold: additive growth, multiplicative contraction.

Steers what an attempt takes to a goal. Between two thresholds around the goal the size rests, and
it takes two slow attempts in a row to contract, so that noise moves nothing. Where smaller batches
save no time (a target with a long fixed time per request) the size does not fall for nothing: the
goal is then twice the fixed time, at which half of the time is work.
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from wald import limits
from wald.model import Delivered, Outcome, Partial, Systemic, SystemicKind, TooLarge, Unknown

_HALF = 0.5


class SizeReason(Enum):
    """Why the size is what it is; the words of status."""

    START = "the first batches"
    LIGHT = "light traffic"
    GROWN = "grown"
    AT_GOAL = "at the latency goal"
    AT_MOST = "at its largest"
    SLOW = "above the latency goal"
    FIXED_TIME = "smaller would save no time"
    AT_LEAST = "at its smallest"
    BUSY = "the target is busy"
    NO_ANSWER = "an answer was lost"
    TOO_LARGE = "too large for the target"
    OUTAGE = "after an outage"


class Sample(NamedTuple):
    """What one attempt told: so many records took so long."""

    records: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Adaptive:
    """The size of the next batch, and what it was learned from. Make one with ``adaptive``.

    Attributes:
        size: how many records the next batch may hold; a lane with less waiting seals by age.
        lowest, highest: its bounds; equal ones switch adapting off.
        goal_s: what an attempt should take.
        former: the size that is known to be right: up to it growth doubles, beyond it is additive.
        reason: why ``size`` is what it is.
        fixed_s: what an attempt takes however few its records, as far as that matters.
        last: the attempt before, since the size last fell.
        slowest: the slowest attempt of a run of slow ones, for which the size falls.
        refused_at: the smallest batch that the target called too large; 0 if none. The size stays
            well below it, or every few batches would be cut again.
    """

    size: int
    lowest: int
    highest: int
    goal_s: float
    former: int
    reason: SizeReason = SizeReason.START
    fixed_s: float = 0.0
    last: Sample | None = None
    slowest: Sample | None = None
    refused_at: float = 0.0

    @property
    def effective_goal_s(self) -> float:
        """The goal, or twice the fixed time where that is longer."""
        return max(self.goal_s, 2 * self.fixed_s)

    def after(self, outcome: Outcome, seconds: float, records: int) -> "Adaptive":
        """Return the size after an attempt with so many records that took so long.

        Failures that say nothing of the size change nothing: the breaker is their judge.
        """
        match outcome:
            case Delivered() | Partial(retry=()):
                changed = _measured(self, Sample(records, seconds)) if records else self
            case Partial() | Systemic(kind=SystemicKind.BUSY):
                changed = _cut(self, SizeReason.BUSY)
            case TooLarge() if records == 1:  # the record's own fault, as what led to it may be
                changed = replace(self, refused_at=0.0, former=self.highest)
            case TooLarge():
                changed = _cut(_refused(self, records), SizeReason.TOO_LARGE, records)
            case Unknown():  # mostly not for its size: it may double again
                changed = replace(_cut(self, SizeReason.NO_ANSWER), former=self.former)
            case _:
                changed = self
        return changed

    def restarted(self) -> "Adaptive":
        """Return a small size that doubles up to the former one: behind an outage."""
        size = min(self.size, max(self.lowest, limits.SLOW_START_RECORDS))
        return replace(
            self,
            size=size,
            former=max(self.size, self.former),
            reason=SizeReason.OUTAGE,
            fixed_s=0.0,
            last=None,
            slowest=None,
        )

    def within(self, highest: int) -> "Adaptive":
        """Return it with another upper bound: what the sink's target can take."""
        if highest == self.highest:
            return self
        lowest = min(self.lowest, highest)
        return replace(
            self,
            size=max(lowest, min(self.size, highest)),
            lowest=lowest,
            highest=highest,
            former=min(self.former, highest),
        )


def _measured(value: Adaptive, now: Sample) -> Adaptive:
    known = replace(value, last=now, fixed_s=_doubted(value, now))
    if value.last is not None:  # one slow attempt alone may be chance
        faster = min(value.last, now, key=lambda sample: sample.seconds)
        known = _weighed(known, faster)
        if faster.seconds > limits.ADAPTIVE_CONTRACT_SHARE * known.effective_goal_s:
            return _contracted(known, faster)
        if known.slowest is not None:
            known = replace(known, slowest=None)
    if now.seconds > limits.ADAPTIVE_GROW_SHARE * known.effective_goal_s:
        is_fixed = known.fixed_s > value.goal_s
        return _because(known, SizeReason.FIXED_TIME if is_fixed else SizeReason.AT_GOAL)
    if now.records < value.size:
        return _because(known, SizeReason.LIGHT)
    return _grown(known, now.seconds)


def _because(value: Adaptive, reason: SizeReason) -> Adaptive:
    return value if value.reason is reason else replace(value, reason=reason)


def _weighed(value: Adaptive, faster: Sample) -> Adaptive:
    """Return what is known of the fixed time once the size fell far enough to tell."""
    fixed_s = _fixed_time_s(value.slowest, faster)
    if fixed_s is None:
        return value
    if 2 * fixed_s <= value.goal_s:
        return replace(value, fixed_s=0.0, slowest=None)
    before = value.slowest.records if value.slowest else value.size
    former = max(value.size, min(before, value.highest))
    return replace(value, fixed_s=fixed_s, former=former, slowest=None)


def _doubted(value: Adaptive, now: Sample) -> float:
    """Return the fixed time as far as it is still believed: so that a wrong one is found out.

    No attempt is quicker than its fixed time; one quick attempt may be chance. While the size
    still grows nothing speaks against it.
    """
    fixed_s = value.fixed_s
    if now.seconds > limits.ADAPTIVE_GROW_SHARE * value.effective_goal_s:
        fixed_s *= limits.ADAPTIVE_BELIEF_SHARE
    if value.last is not None:
        fixed_s = min(fixed_s, max(value.last.seconds, now.seconds))
    return fixed_s


def _grown(value: Adaptive, seconds: float) -> Adaptive:
    """Grow; double only where the work, doubled, still ends within the goal."""
    if value.size >= value.highest:
        return _because(value, SizeReason.AT_MOST)
    highest = value.highest
    if value.refused_at:
        highest = min(highest, int(value.refused_at * limits.ADAPTIVE_LEFT_MAX_SHARE))
        if value.size >= highest:  # it may have been a few large records: doubted slowly
            refused_at = value.refused_at * (1 + limits.ADAPTIVE_DOUBT_SHARE)
            return replace(value, refused_at=refused_at, reason=SizeReason.TOO_LARGE)
    if value.size < value.former and 2 * seconds - value.fixed_s <= value.effective_goal_s:
        size = min(2 * value.size, value.former)
    else:
        size = value.size + max(1, min(value.size, value.former) // limits.ADAPTIVE_STEP_SHARE)
    size = min(size, highest)
    # at twice the size of the last contraction, that one says nothing any more
    former = size if size >= 2 * value.former else value.former
    return replace(value, size=size, former=former, reason=SizeReason.GROWN)


def _contracted(value: Adaptive, slow: Sample) -> Adaptive:
    slowest = value.slowest
    if slowest is None or slow.seconds >= slowest.seconds:
        slowest = slow
    share = value.effective_goal_s / slow.seconds
    share = min(limits.ADAPTIVE_LEFT_MAX_SHARE, max(limits.ADAPTIVE_LEFT_MIN_SHARE, share))
    if value.fixed_s:
        share = limits.ADAPTIVE_LEFT_MIN_SHARE  # tell work from fixed time once more
    size = max(value.lowest, int(min(value.size, slow.records) * share))
    reason = SizeReason.SLOW if size < value.size else SizeReason.AT_LEAST
    return replace(value, size=size, former=size, reason=reason, slowest=slowest, last=None)


def _refused(value: Adaptive, records: int) -> Adaptive:
    refused_at = min(value.refused_at or records, records)
    return replace(value, refused_at=refused_at)


def _cut(value: Adaptive, reason: SizeReason, tried: int | None = None) -> Adaptive:
    """Halve: the target itself says that it is too much."""
    size = value.size if tried is None else min(value.size, max(1, tried))
    size = max(value.lowest, int(size * _HALF))
    return replace(value, size=size, former=size, reason=reason, last=None, slowest=None)


def _fixed_time_s(slowest: Sample | None, now: Sample) -> float | None:
    """Return what is left of the time when the records are taken off, by two attempts.

    None where the two are too much alike to tell; 0 where most of the time is work.
    """
    if now.records == 1:
        return now.seconds
    if slowest is None or now.records > slowest.records * limits.ADAPTIVE_LEFT_MIN_SHARE:
        return None
    per_record_s = (slowest.seconds - now.seconds) / (slowest.records - now.records)
    fixed_s = now.seconds - max(0.0, per_record_s) * now.records
    return fixed_s if fixed_s > _HALF * now.seconds else 0.0


def adaptive(
    highest: int,
    *,
    lowest: int = 1,
    goal_s: float = limits.LATENCY_GOAL_S,
    start: int = limits.ADAPTIVE_START_RECORDS,
) -> Adaptive:
    """Return the size for a target that is not known yet: a small start that doubles upwards."""
    assert 1 <= lowest <= highest
    return Adaptive(max(lowest, min(start, highest)), lowest, highest, goal_s, former=highest)
