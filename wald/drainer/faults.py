"""Game days: faults injected at the sink's port of a route, on the user's own configuration.

Each is asked for (``wald route fault``), ends by itself, is held in memory only, and shows in
status as long as it lasts. What it causes is real: retries, an open breaker, dead letters.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from threading import Lock

from wald import limits
from wald.errors import InputError
from wald.model import (
    Record,
    RejectedRecord,
)
from wald.ports import Chance

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


def of_kind(faults: Sequence[Fault], kind: FaultKind) -> list[Fault]:
    """Return the faults of one kind."""
    return [each for each in faults if each.kind is kind]


def refused_by(faults: Sequence[Fault], records: Sequence[Record]) -> list[RejectedRecord]:
    """Return the records that a fault refuses: by LSN, so that a probe says the same."""
    return [
        RejectedRecord(record.lsn, _REJECTED, "game day: refused")
        for fault in of_kind(faults, FaultKind.REJECT)
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
