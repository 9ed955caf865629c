"""Game days: faults injected at the sink's port of a route, on the user's own configuration.

Each is asked for (``wald route fault``), ends by itself, is held in memory only, and shows in
status as long as it lasts. What it causes is real: retries, an open breaker, dead letters.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from threading import Lock
from typing import cast

from wald import limits
from wald.errors import InputError
from wald.model import (
    Attempt,
    Capabilities,
    Delivered,
    Finding,
    LaneKey,
    Outcome,
    ProgressRow,
    Record,
    Rejected,
    RejectedRecord,
    Systemic,
    SystemicKind,
    Unknown,
)
from wald.ports import Chance, Clock, EncodingSink, Sink

_NS = limits.CLOCK_NS_PER_S
_REJECTED = "game-day"


class FaultKind(Enum):
    """What is injected."""

    DOWN = "down"
    SLOW = "slow"
    REJECT = "reject"
    LOSE_ANSWERS = "lose-answers"


_AMOUNT_MAX = {
    FaultKind.DOWN: 0.0,
    FaultKind.SLOW: limits.FAULT_MAX_S,
    FaultKind.REJECT: 1.0,
    FaultKind.LOSE_ANSWERS: 1.0,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of one route.

    Attributes:
        kind: what happens.
        amount: seconds of ``slow``; the share of records (``reject``) or of answers
            (``lose-answers``); nothing of ``down``.
        until_ns: when it ends, by the monotonic clock.
        seed: which records are refused: always the same ones.
    """

    kind: FaultKind
    amount: float
    until_ns: int
    seed: int = 0

    def text(self, now_ns: int) -> str:
        """Say it for status."""
        left_s = max(0, (self.until_ns - now_ns) // _NS)
        what = {
            FaultKind.DOWN: "down",
            FaultKind.SLOW: f"slower by {self.amount * 1000:g} ms",
            FaultKind.REJECT: f"refuses {self.amount:.2%} of the records",
            FaultKind.LOSE_ANSWERS: f"loses {self.amount:.2%} of the answers",
        }
        return f"game day: {what[self.kind]}, for {left_s} s more"


class FaultBoard:
    """The faults of all routes, by name. Any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._faults: dict[str, tuple[Fault, ...]] = {}

    def add(self, route: str, fault: Fault) -> None:
        """Begin a fault; one of the same kind is replaced."""
        with self._lock:
            others = [each for each in self._faults.get(route, ()) if each.kind is not fault.kind]
            self._faults[route] = (*others, fault)

    def clear(self, route: str) -> None:
        """End all faults of a route."""
        with self._lock:
            self._faults.pop(route, None)

    def of(self, route: str, now_ns: int) -> tuple[Fault, ...]:
        """Return the faults of a route that last."""
        held = self._faults.get(route)
        if not held:
            return ()
        with self._lock:
            lasting = tuple(each for each in self._faults.get(route, ()) if each.until_ns > now_ns)
            if lasting:
                self._faults[route] = lasting
            else:
                self._faults.pop(route, None)
        return lasting


class FaultySink:
    """A sink with the faults of its route before it: the sink as it is while there are none."""

    def __init__(
        self, inner: Sink, route: str, board: FaultBoard, clock: Clock, chance: Chance
    ) -> None:
        self.inner = inner
        self._route = route
        self._board = board
        self._clock = clock
        self._chance = chance

    @property
    def capabilities(self) -> Capabilities:
        """Those of the sink."""
        return self.inner.capabilities

    @property
    def encoder(self) -> str:
        """That of the sink; empty if it freezes nothing."""
        return str(getattr(self.inner, "encoder", ""))

    def read_row(self, key: LaneKey) -> ProgressRow | Outcome | None:
        """Ask, unless the target plays dead."""
        return self._down() or self.inner.read_row(key)

    def deliver(self, attempt: Attempt) -> Outcome:
        """Deliver, with the faults that last."""
        down = self._down()
        if down is not None:
            return down
        faults = self._faults()
        for slow in _of(faults, FaultKind.SLOW):
            self._clock.sleep(slow.amount)
        refused = _refused(faults, attempt.records)
        if refused:
            return Rejected(tuple(refused), refused[0].message)
        outcome = self.inner.deliver(attempt)
        for losing in _of(faults, FaultKind.LOSE_ANSWERS):
            if isinstance(outcome, Delivered) and self._chance.uniform(0.0, 1.0) < losing.amount:
                return Unknown("game day: the answer was lost")
        return outcome

    def probe(
        self, attempt: Attempt, records: Sequence[Record]
    ) -> Sequence[RejectedRecord] | Outcome:
        """Probe; what a fault refuses is named first."""
        return (
            self._down() or _refused(self._faults(), records) or self.inner.probe(attempt, records)
        )

    def encode(self, attempt: Attempt) -> bytes:
        """Encode as the sink does."""
        return cast("EncodingSink", self.inner).encode(attempt)

    def check(self) -> Sequence[Finding]:
        """Verify at the target."""
        return self.inner.check()

    def close(self) -> None:
        """Close the sink."""
        self.inner.close()

    def _faults(self) -> tuple[Fault, ...]:
        return self._board.of(self._route, self._clock.monotonic_ns())

    def _down(self) -> Systemic | None:
        if _of(self._faults(), FaultKind.DOWN):
            return Systemic(SystemicKind.UNREACHABLE, "game day: the target plays dead")
        return None


def _of(faults: Sequence[Fault], kind: FaultKind) -> list[Fault]:
    return [each for each in faults if each.kind is kind]


def _refused(faults: Sequence[Fault], records: Sequence[Record]) -> list[RejectedRecord]:
    """Return the records that a fault refuses: by LSN, so that a probe says the same."""
    return [
        RejectedRecord(record.lsn, _REJECTED, "game day: refused")
        for fault in _of(faults, FaultKind.REJECT)
        for record in records
        if _draw(record.lsn, fault.seed) < fault.amount
    ]


def _draw(lsn: int, seed: int) -> float:
    return zlib.crc32(lsn.to_bytes(8, "big"), seed) / 2**32


def asked_fault(request: Mapping[str, object], now_ns: int, chance: Chance) -> Fault:
    """Return the fault that a request asks for: {"kind", "amount", "for_s"}.

    Raises:
        InputError: the kind is unknown, or a number is not within its bounds.
    """
    try:
        kind = FaultKind(request.get("kind"))
    except ValueError as error:
        msg = f"there is no fault {request.get('kind')!r}"
        raise InputError(msg, hint=", ".join(each.value for each in FaultKind)) from error
    amount = _number(request, "amount", _AMOUNT_MAX[kind])
    for_s = _number(request, "for_s", limits.FAULT_MAX_S)
    seed = int.from_bytes(chance.randbytes(4), "big")
    return Fault(kind, amount, now_ns + round(for_s * _NS), seed)


def _number(request: Mapping[str, object], name: str, most: float) -> float:
    value = request.get(name, 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        msg = f"{name} is {value!r}, not a number from 0 to {most:g}"
        raise InputError(msg)
    return float(value)
