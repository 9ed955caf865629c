"""When a lane seals a batch, and how much goes into it: by count, bytes, age, or at once."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate

from wald import limits

_NS = limits.CLOCK_NS_PER_S


@dataclass(frozen=True, slots=True)
class Bounds:
    """A batch is sealed at whichever of these comes first."""

    max_records: int = limits.BATCH_MAX_RECORDS
    max_bytes: int = limits.BATCH_MAX_BYTES
    max_age_s: float = limits.BATCH_MAX_AGE_S


@dataclass(frozen=True, slots=True)
class Waiting:
    """Records read and not sealed: how many, their bytes, when the oldest was first seen.

    ``oldest_ns`` is of the monotonic clock: a jump of the wall clock seals nothing. ``is_urgent``:
    one of them has the header ``limits.URGENT_HEADER_NAME``, whatever its value.
    """

    records: int
    bytes: int
    oldest_ns: int
    is_urgent: bool = False


class SealReason(Enum):
    """Why a batch is sealed now."""

    RECORDS = "records"
    BYTES = "bytes"
    AGE = "age"
    FLUSH = "flush"
    URGENT = "urgent"


def is_full(waiting: Waiting, bounds: Bounds) -> bool:
    """Tell whether reading on would not change the next batch."""
    return waiting.records >= bounds.max_records or waiting.bytes >= bounds.max_bytes


def why_seal(
    waiting: Waiting, bounds: Bounds, now_ns: int, *, flush: bool = False
) -> SealReason | None:
    """Return why what waits is a batch now; None to wait for more."""
    if not waiting.records:
        return None
    if waiting.records >= bounds.max_records:
        return SealReason.RECORDS
    if waiting.bytes >= bounds.max_bytes:
        return SealReason.BYTES
    if flush or waiting.is_urgent:
        return SealReason.FLUSH if flush else SealReason.URGENT
    return SealReason.AGE if due_in_s(waiting, bounds, now_ns) <= 0 else None


def due_in_s(waiting: Waiting, bounds: Bounds, now_ns: int) -> float:
    """Return the time until age alone seals what waits; 0 or less if it is sealed already."""
    if waiting.is_urgent:
        return 0.0
    return bounds.max_age_s - (now_ns - waiting.oldest_ns) / _NS


def fitting(sizes_bytes: Sequence[int], bounds: Bounds) -> int:
    """Return how many of the records, in order, the next batch takes.

    At least one, however large: a record over the bound of bytes is a batch of its own.
    """
    sizes = sizes_bytes[: bounds.max_records]
    return max(1, bisect_right(list(accumulate(sizes)), bounds.max_bytes)) if sizes else 0
