"""The settings of the tables ``[daemon]`` and ``[routes.NAME]``: name, meaning, reader.

``sinks`` and the rest of a route are checked by the sink's own factory, which knows its target.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wald import limits
from wald.core.units import parse_duration_s, parse_size_bytes

DAY_S = 86_400.0
SEGMENT_MIN_BYTES = 16 * limits.MIB
SEGMENT_MAX_BYTES = 1024 * limits.MIB
RETAIN_MAX_BYTES = 1 << 50
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

assert (
    SEGMENT_MIN_BYTES
    > limits.SNAPSHOT_MAX_BYTES + limits.GROUP_MAX_BYTES + 4 * limits.ALIGNMENT_MAX_BYTES
)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: the field it fills, how it is read, what it means.

    ``read`` raises ``ValueError`` with a message that says what was expected.
    """

    field: str
    read: Callable[[object], object]
    meaning: str


def text(value: object) -> str:
    """Read a non-empty string."""
    if not isinstance(value, str) or not value:
        raise _expected(value, "a text")
    return value


def duration(low_s: float, high_s: float) -> Callable[[object], float]:
    """Return a reader of durations between two bounds."""

    def read(value: object) -> float:
        if not isinstance(value, str):
            raise _expected(value, 'a duration in quotes, such as "200ms"')
        seconds = parse_duration_s(value)
        if not low_s <= seconds <= high_s:
            msg = f"{value!r} is not between {low_s:g} s and {high_s:g} s"
            raise ValueError(msg)
        return seconds

    return read


def size(low_bytes: int, high_bytes: int, multiple_of: int = 1) -> Callable[[object], int]:
    """Return a reader of sizes between two bounds."""

    def read(value: object) -> int:
        if not isinstance(value, str):
            raise _expected(value, 'a size in quotes, such as "4MiB"')
        size_bytes = parse_size_bytes(value)
        if not low_bytes <= size_bytes <= high_bytes:
            msg = f"{value!r} is not between {low_bytes:,} and {high_bytes:,} bytes"
            raise ValueError(msg)
        if size_bytes % multiple_of:
            msg = f"{value!r} is not a multiple of {multiple_of:,} bytes"
            raise ValueError(msg)
        return size_bytes

    return read


def count(low: int, high: int) -> Callable[[object], int]:
    """Return a reader of whole numbers between two bounds."""

    def read(value: object) -> int:
        if type(value) is not int:
            raise _expected(value, "a whole number")
        if not low <= value <= high:
            msg = f"{value:,} is not between {low:,} and {high:,}"
            raise ValueError(msg)
        return value

    return read


def one_of(*words: str) -> Callable[[object], str]:
    """Return a reader of one of some words."""

    def read(value: object) -> str:
        if value not in words:
            raise _expected(value, " or ".join(map(repr, words)))
        return str(value)

    return read


def name(value: object) -> str:
    """Read the name of a stream, a route or a sink."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise _expected(value, "a name of 1 to 64 of a-z 0-9 . _ -")
    return value


def _expected(value: object, what: str) -> ValueError:
    return ValueError(f"expected {what}, got {_shown(value)}")


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)[:80]


DAEMON: Mapping[str, Setting] = {
    "data_dir": Setting("data_dir", text, "the data directory"),
    "socket": Setting("socket", text, "the data socket; the control socket is this path + .ctl"),
    "segment_bytes": Setting(
        "segment_bytes",
        size(SEGMENT_MIN_BYTES, SEGMENT_MAX_BYTES, limits.ALIGNMENT_MAX_BYTES),
        "size of a file of the log",
    ),
    "stop_deliver_for": Setting(
        "stop_deliver_for_s", duration(0, DAY_S), "how long a clean stop goes on delivering"
    ),
}

RETAIN: Mapping[str, Setting] = {
    "after_delivery": Setting(
        "retain_after_delivery_s",
        duration(0, 366 * DAY_S),
        "how long delivered records stay, for targets that go back in time",
    ),
    "max_bytes": Setting(
        "retain_after_delivery_bytes",
        size(0, RETAIN_MAX_BYTES),
        "how much of delivered records stays at most",
    ),
}

ROUTE: Mapping[str, Setting] = {
    "stream": Setting("stream", name, "the stream that is delivered"),
    "sink": Setting("sink", name, "the name of a table [sinks.NAME]"),
    "start": Setting(
        "start", one_of("oldest", "now"), "where a new route of a stream in use begins"
    ),
    "abandon": Setting(
        "abandon",
        count(0, limits.LSN_MAX),
        "how many records that were not delivered a change of the target may give up",
    ),
}

BATCH: Mapping[str, Setting] = {
    "max_records": Setting(
        "max_records", count(1, limits.REQUEST_MAX_RECORDS), "seal at this many records"
    ),
    "max_bytes": Setting(
        "max_bytes", size(1, limits.SEGMENT_BYTES), "seal at this many bytes of values"
    ),
    "max_age": Setting("max_age_s", duration(0, DAY_S), "seal when the oldest record is this old"),
}
