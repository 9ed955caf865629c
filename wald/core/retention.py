"""Which segments may go: drained by every route, behind the frontier, kept long enough."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from wald import limits
from wald.core.state import RouteState
from wald.model import Lsn, RouteId


class FinishedSegment(NamedTuple):
    """A segment that is not written any more.

    Attributes:
        number: its number.
        before_lsn: the last LSN before it.
        last_lsn: the last LSN in it; equal to ``before_lsn`` if it holds no records.
        size_bytes: what it takes on disk.
        drained_s: when it was first seen to be drained, by a monotonic clock; None if never.
    """

    number: int
    before_lsn: Lsn
    last_lsn: Lsn
    size_bytes: int
    drained_s: float | None = None


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How long what is delivered stays, for targets that go back in time: until either bound."""

    after_delivery_s: float = limits.RETAIN_AFTER_DELIVERY_S
    after_delivery_bytes: int = limits.RETAIN_AFTER_DELIVERY_BYTES


def floor_lsn(routes: Iterable[RouteState], through: Mapping[RouteId, Lsn]) -> Lsn:
    """Return the lowest LSN that a route still needs; the block that holds it stays.

    A route of which nothing was heard needs everything since its birth. Without a route nothing
    is needed.
    """
    return min(
        (through.get(route.route_id, route.birth_lsn) for route in routes),
        default=limits.LSN_MAX,
    )


def is_drained(segment: FinishedSegment, floor: Lsn) -> bool:
    """Tell whether no route needs the segment.

    The block of a checkpoint is still needed: it is the anchor that tells our history of the log
    from another's.
    """
    return segment.last_lsn < floor or segment.last_lsn == segment.before_lsn


def retirable(
    finished: Sequence[FinishedSegment],
    floor: Lsn,
    now_s: float,
    policy: RetentionPolicy,
    *,
    at_least: int = 0,
) -> list[int]:
    """Return the numbers that may go, oldest first; a segment never goes before an older one.

    Args:
        finished: the segments before the frontier's own, in order. Theirs alone may go: only
            then is a later segment's header, snapshot and first group durable.
        floor: of ``floor_lsn``.
        now_s: the monotonic clock.
        policy: how long what is delivered stays.
        at_least: so many of those that nobody needs go whatever the policy says: new records
            need their room.
    """
    drained: list[FinishedSegment] = []
    for segment in finished:
        if not is_drained(segment, floor):
            break
        drained.append(segment)
    kept_bytes = sum(segment.size_bytes for segment in drained)
    gone: list[int] = []
    for segment in drained:
        since_s = now_s if segment.drained_s is None else segment.drained_s
        young = now_s - since_s < policy.after_delivery_s
        if young and kept_bytes <= policy.after_delivery_bytes and len(gone) >= at_least:
            break
        gone.append(segment.number)
        kept_bytes -= segment.size_bytes
    return gone
