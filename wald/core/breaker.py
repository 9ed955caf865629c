"""When to stop asking a target, and when to ask again: a labelled table, and what opens it.

One breaker stands before each target for what concerns all of it, and one before each route for
what concerns that route alone, as a missing table: a route that is wrong harms no other.

Pure: values in, values out. While a breaker is open nothing is sent, so nothing is refused and
nothing becomes a dead letter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple, TypeAlias

from wald import limits
from wald.model import Outcome, Systemic, SystemicKind, Unknown
from wald.ports import Chance

_NS = limits.CLOCK_NS_PER_S
_EXPONENT_MAX = 32


class Scope(Enum):
    """Whom a failure concerns."""

    TARGET = "target"  # every route to it
    ROUTE = "route"  # the lanes of one route


class BreakerState(Enum):
    """Whether attempts are let through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class BreakerEvent(Enum):
    """What happens to a breaker."""

    WORKS = "it works"  # the target took it, or judged its records
    FAILS = "it fails"
    FAILS_ENOUGH = "it fails, often enough"
    BUSY = "it is busy"
    DUE = "the pause is over"
    GIVEN_BACK = "no attempt was made"


class BreakerRow(NamedTuple):
    """A row of the table: in ``state``, at ``event``, be ``then``; ``what`` is done besides."""

    label: str
    state: BreakerState
    event: BreakerEvent
    then: BreakerState
    what: str


_CLOSED, _OPEN, _HALF = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN

BREAKER: tuple[BreakerRow, ...] = (
    BreakerRow("healthy", _CLOSED, BreakerEvent.WORKS, _CLOSED, "the failures are forgotten"),
    BreakerRow("counted", _CLOSED, BreakerEvent.FAILS, _CLOSED, "the failure is counted"),
    BreakerRow("tripped", _CLOSED, BreakerEvent.FAILS_ENOUGH, _OPEN, "a pause is drawn"),
    BreakerRow("busy", _CLOSED, BreakerEvent.BUSY, _CLOSED, "the batch size contracts"),
    BreakerRow("probe", _OPEN, BreakerEvent.DUE, _HALF, "one lane goes ahead, all others wait"),
    BreakerRow("probe-works", _HALF, BreakerEvent.WORKS, _CLOSED, "lanes begin with small batches"),
    BreakerRow("probe-fails", _HALF, BreakerEvent.FAILS, _OPEN, "a longer pause is drawn"),
    BreakerRow("probe-busy", _HALF, BreakerEvent.BUSY, _OPEN, "a pause as long as before"),
    BreakerRow("probe-unused", _HALF, BreakerEvent.GIVEN_BACK, _OPEN, "another lane may try"),
)

_BY_STATE_AND_EVENT = {(row.state, row.event): row for row in BREAKER}
assert len(_BY_STATE_AND_EVENT) == len(BREAKER)


class Trip(NamedTuple):
    """What one kind of failure does: whom it concerns, how many in a row open, what to do."""

    scope: Scope
    failures: int  # 0: never
    hint: str


_BLIP = limits.BREAKER_FAILURES_COUNT

TRIPS: Mapping[SystemicKind, Trip] = {
    SystemicKind.UNREACHABLE: Trip(
        Scope.TARGET, _BLIP, "start the target, or look at its address and the network"
    ),
    SystemicKind.BUSY: Trip(Scope.TARGET, 0, "nothing: batches become smaller until it keeps up"),
    SystemicKind.FULL: Trip(Scope.TARGET, 1, "make room at the target"),
    SystemicKind.AUTHENTICATION: Trip(
        Scope.TARGET, 1, "renew the password, token or grant of the sink; then restart wald"
    ),
    SystemicKind.CONFIGURATION: Trip(
        Scope.ROUTE, 1, "correct the route, or make at the target what it names: see 'wald check'"
    ),
    SystemicKind.DAMAGED: Trip(Scope.TARGET, 1, "repair or restore the target's store"),
    SystemicKind.OWNED: Trip(Scope.ROUTE, 1, "let the route write to a target of its own"),
}
PROVEN_BY_AN_ANSWER = frozenset({SystemicKind.UNREACHABLE, SystemicKind.AUTHENTICATION})
_NO_ANSWER = SystemicKind.UNREACHABLE  # how a lost answer counts


@dataclass(frozen=True, slots=True)
class Breaker:
    """What stands before a target, or before one route of it. Times are of the monotonic clock.

    Attributes:
        state: whether attempts are let through.
        failures: in a row, while closed.
        openings: in a row, without a success between: the pauses grow with it.
        times_closed: how often a probe worked: a lane that sees another number begins small.
        due_ns: when an open one lets a probe through.
        since_ns: since when it is not closed.
        kind, message, hint: the failure that opened it, the target's words, what to do.
    """

    state: BreakerState = _CLOSED
    failures: int = 0
    openings: int = 0
    times_closed: int = 0
    due_ns: int = 0
    since_ns: int = 0
    kind: SystemicKind | None = None
    message: str = ""
    hint: str = ""


class Permit(NamedTuple):
    """Leave to make one attempt; ``is_probe``: the one that a half-open breaker lets through."""

    is_probe: bool


PERMIT, PROBE = Permit(is_probe=False), Permit(is_probe=True)
Admission: TypeAlias = tuple[Breaker, Permit | None]


def admit(breaker: Breaker, now_ns: int) -> Admission:
    """Return leave to go ahead, or None; and the breaker after it. A probe is let through once."""
    if breaker.state is _CLOSED:
        return breaker, PERMIT
    if breaker.state is _OPEN and now_ns >= breaker.due_ns:
        return replace(breaker, state=_after(_OPEN, BreakerEvent.DUE)), PROBE
    return breaker, None


def asked(breaker: Breaker, now_ns: int) -> Breaker:
    """Return the breaker when a person wants the target asked now: the probe is due."""
    return replace(breaker, due_ns=min(breaker.due_ns, now_ns))


def wait_s(breaker: Breaker, now_ns: int) -> float:
    """Return how long until it is worth asking for leave; 0 to ask now.

    Behind a probe that is under way it is looked at again now and then; its end wakes those who
    wait.
    """
    if breaker.state is _CLOSED:
        return 0.0
    if breaker.state is _OPEN:
        return max(0.0, (breaker.due_ns - now_ns) / _NS)
    return limits.BREAKER_LOOK_S


def event_of(breaker: Breaker, outcome: Outcome, scope: Scope) -> BreakerEvent | None:
    """Return what an outcome is to a breaker of this scope; None if it concerns the other one.

    A target that refuses records, or moved its row, answers: it works. A lost answer counts as a
    target out of reach.
    """
    if not isinstance(outcome, Systemic | Unknown):
        return BreakerEvent.WORKS
    trip = TRIPS[outcome.kind if isinstance(outcome, Systemic) else _NO_ANSWER]
    if trip.scope is not scope:
        return BreakerEvent.WORKS if scope is Scope.TARGET else None
    if not trip.failures:
        return BreakerEvent.BUSY
    enough = breaker.state is _CLOSED and breaker.failures + 1 >= trip.failures
    return BreakerEvent.FAILS_ENOUGH if enough else BreakerEvent.FAILS


def after(
    breaker: Breaker, permit: Permit, outcome: Outcome, now_ns: int, chance: Chance, scope: Scope
) -> Breaker:
    """Return the breaker after an attempt that it let through.

    Of an attempt that was let through before it opened it learns nothing: the probe decides.
    """
    event = event_of(breaker, outcome, scope)
    if event is None:
        return given_back(breaker, permit)
    if breaker.state is not _CLOSED and not permit.is_probe:
        return breaker
    if _after(breaker.state, event) is _OPEN:
        return _opened(breaker, outcome, event, now_ns, chance)
    return _closed(breaker, event)


def _closed(breaker: Breaker, event: BreakerEvent) -> Breaker:
    if event is BreakerEvent.FAILS:
        return replace(breaker, failures=breaker.failures + 1)
    if breaker.state is _HALF:
        return Breaker(times_closed=breaker.times_closed + 1)
    forgets = event is BreakerEvent.WORKS and breaker.failures
    return replace(breaker, failures=0) if forgets else breaker


def answered(breaker: Breaker, permit: Permit) -> Breaker:
    """Return the breaker when its probe has nothing to send, but the target answered a question.

    That proves a target that was out of reach, or did not let us in; one that is full or damaged
    is proven by a batch only.
    """
    if permit.is_probe and breaker.state is _HALF and breaker.kind in PROVEN_BY_AN_ANSWER:
        return Breaker(times_closed=breaker.times_closed + 1)
    return given_back(breaker, permit)


def given_back(breaker: Breaker, permit: Permit) -> Breaker:
    """Return the breaker when its leave was not used: another lane may probe at once."""
    if not permit.is_probe or breaker.state is not _HALF:
        return breaker
    return replace(breaker, state=_after(_HALF, BreakerEvent.GIVEN_BACK))


def _after(state: BreakerState, event: BreakerEvent) -> BreakerState:
    return _BY_STATE_AND_EVENT[state, event].then


def _opened(
    breaker: Breaker, outcome: Outcome, event: BreakerEvent, now_ns: int, chance: Chance
) -> Breaker:
    """Full jitter, growing with each opening; at least what the target asks for, bounded."""
    openings = breaker.openings + (event is not BreakerEvent.BUSY)
    longest_s = limits.BREAKER_BASE_S * 2.0 ** min(openings - 1, _EXPONENT_MAX)
    drawn_s = chance.uniform(limits.BREAKER_FLOOR_S, min(limits.BREAKER_CAP_S, longest_s))
    asked_s = outcome.retry_after_s if isinstance(outcome, Systemic | Unknown) else None
    pause_s = max(drawn_s, min(asked_s or 0.0, limits.RETRY_AFTER_MAX_S))
    kind = outcome.kind if isinstance(outcome, Systemic) else _NO_ANSWER
    hint = outcome.hint if isinstance(outcome, Systemic) else ""
    message = outcome.message if isinstance(outcome, Systemic | Unknown) else ""
    return Breaker(
        state=_OPEN,
        openings=openings,
        times_closed=breaker.times_closed,
        due_ns=now_ns + round(pause_s * _NS),
        since_ns=now_ns if breaker.state is _CLOSED else breaker.since_ns,
        kind=kind,
        message=message[: limits.ERROR_TEXT_MAX_CHARS],
        hint=hint or TRIPS[kind].hint,
    )
