"""What a producer is told of its records behind the log: where they are, when they are delivered.

Asked over the control socket with pauses that grow: nothing is kept at the daemon for who waits,
so that a restart of any part of it costs the wait nothing but time.
"""

import contextlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

from wald import limits
from wald.client.asking import Asks
from wald.client.link import Deadline
from wald.core.where import REFUSED, Fate, Standing, Verdict, judge
from wald.errors import (
    DeliveryPending,
    DeliveryRefused,
    DeliveryTimeout,
    InputError,
    Unavailable,
)
from wald.model import Lsn, Receipt
from wald.ports import Chance

_Error = TypeVar("_Error", DeliveryTimeout, DeliveryRefused, DeliveryPending)
Ack: TypeAlias = Literal["durable", "delivered"]
OneAck: TypeAlias = Literal["received", "durable", "delivered"]  # of a single record
DELIVERED: Final = "delivered"
_GROWTH = 1.5
_REFUSED = frozenset(each.value for each in REFUSED)


@dataclass(frozen=True, slots=True)
class RouteStatus:
    """Where a record is at one route.

    Attributes:
        fate: durable, sealed, taken, uncertain, delivered, superseded, dead-letter, redriving,
            redriven, purged, lost, given-up, not-ours.
        batch: the number of its batch; None if it has none, or longer ago than is told.
        attempts: of that batch.
        time_ns: when it was finished, or attempted last; wall clock.
        reason: the target's words: of a dead letter, or of the last attempt.
        blocked: why its lane waits for a person; empty if it does not.
    """

    fate: str
    batch: int | None = None
    attempts: int = 0
    time_ns: int | None = None
    reason: str = ""
    blocked: str = ""


@dataclass(frozen=True, slots=True)
class RecordStatus:
    """Where a record is.

    Attributes:
        lsn: the record.
        stream: its stream; None if it left the log, and nobody can tell any more.
        durable_ns: when it became durable; None if it left the log.
        trace: its trace context; empty if it has none.
        routes: by name.
    """

    lsn: Lsn
    stream: str | None
    durable_ns: int | None
    trace: str
    routes: Mapping[str, RouteStatus] = field(default_factory=dict)

    @property
    def delivered(self) -> bool:
        """Whether every route of its stream has delivered it."""
        found = [Standing(Fate(route.fate), route.blocked) for route in self.routes.values()]
        return judge(found) is Verdict.DELIVERED


def check_ack(ack: str) -> None:
    """Refuse a level that there is not.

    Raises:
        InputError: it is neither "durable" nor "delivered".
    """
    if ack not in {"durable", DELIVERED}:
        msg = f"ack is {ack!r}, not 'durable' or 'delivered'"
        raise InputError(msg, hint="'received' is for the 'append' of one record")


def check_receipt(receipt: object) -> None:
    """Refuse what names no record to wait for.

    Raises:
        InputError: it is no receipt, or one without an LSN.
    """
    if not isinstance(receipt, Receipt):
        msg = f"wait takes a Receipt, not {type(receipt).__name__}"
        hint = "'append' and a Pending's 'result' return one; 'status' takes an LSN"
        raise InputError(msg, hint=hint)
    if not receipt.lsn:
        msg = f"a receipt of level {receipt.level!r} names no record yet"
        raise InputError(msg, hint="append with ack='durable', or 'delivered'")


def read_status(said: Mapping[str, Any]) -> RecordStatus:
    """Return what ``drain.where`` answered."""
    routes = {
        name: RouteStatus(
            route["fate"],
            route.get("batch"),
            route.get("attempts", 0),
            route.get("time_ns"),
            _reason(route),
            route.get("blocked", ""),
        )
        for name, route in said["routes"].items()
    }
    return RecordStatus(said["lsn"], said["stream"], said["durable_ns"], said["trace"], routes)


def _reason(route: Mapping[str, Any]) -> str:
    letter = route.get("letter")
    if letter:
        return f"{letter['code']}: {letter['message']}"
    return str(route.get("held") or route.get("last_error", ""))


class Question(NamedTuple):
    """What to ask of the control socket: answered by ``send`` with what it said."""

    op: str
    request: dict[str, Any]


class Pause(NamedTuple):
    """How long to wait before the next question."""

    seconds: float


Waiting: TypeAlias = Generator[Question | Pause, Mapping[str, Any] | None, None]


def waiting(
    receipts: Sequence[Receipt], deadline: Deadline, chance: Chance, results: object = None
) -> Waiting:
    """Ask until every route of the stream has delivered the records, all of one stream.

    Whoever runs this asks what it yields, and sends the answer, or throws what came instead:
    ``Unavailable`` or ``PermissionError``.

    Args:
        receipts: of the records, in order.
        deadline: how long; past it once, all the same.
        chance: for the pauses.
        results: what an error carries beside the receipt.

    Raises:
        DeliveryTimeout: not within the time.
        DeliveryPending: a lane waits for a person.
        DeliveryRefused: a record became a dead letter.
    """
    left, pause_s = list(receipts), limits.DELIVERED_POLL_S
    while left:
        why, routes = "", {}
        lsns = [each.lsn for each in left[: limits.WHERE_LSNS_MAX]]
        try:
            said = yield Question("drain.delivered", {"stream": left[0].stream, "lsns": lsns})
        except Unavailable as error:  # a restart: it is durable, so there is time
            why = error.message
        except PermissionError as error:
            msg = f"{_named(left[0])} is durable; this user may not ask for its delivery"
            raise _told(DeliveryPending(msg), left[0], {}, results) from error
        else:
            assert said is not None
            if said["delivered"]:
                left, pause_s = left[said["delivered"] :], limits.DELIVERED_POLL_S
            if said["next"] is None:
                continue
            routes = said["next"]["routes"]
            _raise_if_over(Verdict(said["next"]["verdict"]), left[0], routes, results)
        left_s = deadline.left_s()
        if left_s <= 0:
            raise _too_late(left[0], deadline, routes, why, results)
        yield Pause(min(chance.uniform(pause_s / 2, pause_s), left_s))
        pause_s = min(pause_s * _GROWTH, limits.DELIVERED_POLL_CAP_S)


def wait_for(asker: Asks, steps: Waiting, deadline: Deadline) -> None:
    """Ask and pause as the steps say, in this thread."""
    with contextlib.suppress(StopIteration):
        step = next(steps)
        while True:
            if isinstance(step, Pause):
                asker.rest(step.seconds)
                step = next(steps)
                continue
            try:
                answer = asker.ask(step.op, deadline, **step.request)
            except (Unavailable, PermissionError) as error:
                step = steps.throw(error)
            else:
                step = steps.send(answer)


def _raise_if_over(
    verdict: Verdict, receipt: Receipt, routes: Mapping[str, Mapping[str, Any]], results: object
) -> None:
    """Raise where waiting changes nothing."""
    if verdict is Verdict.REFUSED:
        said = [
            ": ".join(filter(None, (name, route["fate"], route["why"])))
            for name, route in routes.items()
            if route["fate"] in _REFUSED
        ]
        msg = f"{_named(receipt)} was not delivered: {'; '.join(said)}"
        raise _told(DeliveryRefused(msg), receipt, routes, results)
    if verdict is Verdict.BLOCKED:
        said = [
            f"{name}: {route['blocked'] or route['why'] or route['fate']}"
            for name, route in routes.items()
            if route["blocked"] or route["fate"] == Fate.UNCERTAIN
        ]
        msg = f"{_named(receipt)} is durable, delivery pending: {'; '.join(said)}"
        raise _told(DeliveryPending(msg), receipt, routes, results)


def _too_late(
    receipt: Receipt,
    deadline: Deadline,
    routes: Mapping[str, Mapping[str, Any]],
    why: str,
    results: object,
) -> DeliveryTimeout:
    said = [f"{name}: {route['fate']}" for name, route in routes.items()]
    said += [why] if why else []
    left = f" ({'; '.join(said)})" if said else ""
    msg = (
        f"{_named(receipt)} is durable, and was not delivered within {deadline.timeout_s:g} s{left}"
    )
    return _told(DeliveryTimeout(msg), receipt, routes, results)


def _told(
    error: _Error,
    receipt: Receipt,
    routes: Mapping[str, Mapping[str, Any]],
    results: object,
) -> _Error:
    error.receipt, error.routes, error.results = receipt, routes, results
    return error


def _named(receipt: Receipt) -> str:
    return f"LSN {receipt.lsn:,} of stream {receipt.stream!r}"
