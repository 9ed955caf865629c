"""What the lanes of one target, and of one route, share: breakers, rates, who is live. Any thread.

Decided by ``core.breaker`` and ``core.pacing``; here are only the locks around them.
"""

import logging
import threading
from dataclasses import dataclass, field

from wald import limits
from wald.config import RouteSettings
from wald.core import breaker
from wald.core.breaker import Breaker, BreakerState, Permit, Scope
from wald.core.pacing import Bucket, Rate, bucket
from wald.model import Capabilities, Outcome, RouteId
from wald.ports import Chance

_log = logging.getLogger("wald.drain")
_NS = limits.CLOCK_NS_PER_S


class Guard:
    """A breaker that lanes share; ``name`` is that of the sink or of the route, for the log."""

    def __init__(self, scope: Scope, name: str) -> None:
        self.scope = scope
        self._name = name
        self._lock = threading.Lock()
        self._breaker = Breaker()

    @property
    def breaker(self) -> Breaker:
        """How it stands now."""
        return self._breaker

    def admit(self, now_ns: int) -> Permit | None:
        """Return leave for one attempt, or None: ``core.breaker.wait_s`` says for how long."""
        with self._lock:
            self._breaker, permit = breaker.admit(self._breaker, now_ns)
        return permit

    def ask_now(self, now_ns: int) -> None:
        """Let the probe of an open breaker through now: a person asks."""
        with self._lock:
            self._breaker = breaker.asked(self._breaker, now_ns)

    def ended(self, permit: Permit, outcome: Outcome, now_ns: int, chance: Chance) -> bool:
        """Take in what an attempt came to; True if the breaker closed by it."""
        with self._lock:
            before = self._breaker
            self._breaker = breaker.after(before, permit, outcome, now_ns, chance, self.scope)
            return self._tell(before, self._breaker, now_ns)

    def answered(self, permit: Permit, now_ns: int) -> bool:
        """Take in that the target answered a question; True if the breaker closed by it."""
        with self._lock:
            before = self._breaker
            self._breaker = breaker.answered(before, permit)
            return self._tell(before, self._breaker, now_ns)

    def _tell(self, before: Breaker, after: Breaker, now_ns: int) -> bool:
        """Log an outage once at its beginning and once at its end."""
        closed = after.times_closed != before.times_closed
        if closed:
            lasted_s = (now_ns - before.since_ns) / _NS
            _log.info("%s %s works again, after %.1f s", self.scope.value, self._name, lasted_s)
        elif before.state is BreakerState.CLOSED and after.state is BreakerState.OPEN:
            kind = after.kind.value if after.kind else ""
            _log.warning(
                "%s %s: %s: %r: nothing is sent until it is over; %s",
                *(self.scope.value, self._name, kind, after.message, after.hint),
            )
        return closed

    def give_back(self, permit: Permit) -> None:
        """Return leave that was not used."""
        with self._lock:
            self._breaker = breaker.given_back(self._breaker, permit)


class Target:
    """What all lanes to one target share."""

    def __init__(self, sink: str) -> None:
        self.guard = Guard(Scope.TARGET, sink)
        self._live_ns: dict[RouteId, int] = {}
        self._lock = threading.Lock()
        self._requests: Bucket | None = None
        self._records: Bucket | None = None

    def worked(self, route: RouteId, now_ns: int, *, live: bool) -> None:
        """Take in that a route had an attempt, and whether it keeps up."""
        if live:
            self._live_ns[route] = now_ns
        else:
            self._live_ns.pop(route, None)

    def bound(self, able: Capabilities, now_ns: int) -> None:
        """Take in what the target takes at most, as one of its sinks says."""
        with self._lock:
            self._requests = _rated(self._requests, able.max_requests_per_s, now_ns)
            self._records = _rated(self._records, able.max_records_per_s, now_ns)

    def wait_s(self, now_ns: int) -> float:
        """Return how long until the target takes another request; 0 for now."""
        buckets = (self._requests, self._records)
        return max((each.wait_s(now_ns) for each in buckets if each), default=0.0)

    def begins(self, records: int, now_ns: int) -> None:
        """Take in that a request with so many records goes out."""
        with self._lock:
            if self._requests is not None:
                self._requests = self._requests.taken(1, now_ns)
            if self._records is not None:
                self._records = self._records.taken(records, now_ns)

    def has_live(self, beside: RouteId, now_ns: int) -> bool:
        """Tell whether another route has lately been at work here and keeps up."""
        since_ns = now_ns - round(limits.LIVE_AGE_S * _NS)
        return any(
            route != beside and at_ns >= since_ns for route, at_ns in list(self._live_ns.items())
        )


def _rated(before: Bucket | None, per_s: float | None, now_ns: int) -> Bucket | None:
    """Return the bucket of a rate: the one there is, unless the rate is another one."""
    if per_s is None:
        return None
    return before if before is not None and before.per_s == per_s else bucket(per_s, now_ns)


class Pace:
    """What all lanes of one route share."""

    def __init__(self, name: str, max_records_per_s: int | None, now_ns: int) -> None:
        self.guard = Guard(Scope.ROUTE, name)
        self._lock = threading.Lock()
        self._bucket = None if max_records_per_s is None else bucket(max_records_per_s, now_ns)
        self._rate = Rate()

    @property
    def bucket(self) -> Bucket | None:
        """What ``max_records_per_s`` leaves; None without one."""
        return self._bucket

    @property
    def rate(self) -> Rate:
        """How fast the route delivers."""
        return self._rate

    def begins(self, records: int, now_ns: int) -> None:
        """Take in that a batch goes out."""
        if self._bucket is not None:
            with self._lock:
                self._bucket = self._bucket.taken(records, now_ns)

    def delivered(self, records: int, now_ns: int) -> None:
        """Take in that a batch took effect."""
        with self._lock:
            self._rate = self._rate.after(records, now_ns)


@dataclass(slots=True)
class Targets:
    """The targets and routes of a drainer, each made when it is first asked for."""

    _targets: dict[str, Target] = field(default_factory=dict)
    _paces: dict[tuple[RouteId, str], Pace] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def target(self, sink: str) -> Target:
        """Return what the lanes to a sink's target share."""
        with self._lock:
            return self._targets.setdefault(sink, Target(sink))

    def pace(self, route: RouteId, settings: RouteSettings, now_ns: int) -> Pace:
        """Return what the lanes of a route to one sink share; a new life is another route."""
        with self._lock:
            made = Pace(settings.name, settings.max_records_per_s, now_ns)
            return self._paces.setdefault((route, settings.sink), made)
