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
PRICE_MAX = 1e9
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
PERSON = re.compile(r"@?[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}\$?")
PEOPLE_MAX = 1_024
CONNECTIONS_LIMIT = 4_096

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


def share(value: object) -> float:
    """Read a share between 0 and 1, as a number or as text with a percent sign."""
    number = value
    if isinstance(value, str) and value.endswith("%"):
        try:
            number = float(value[:-1]) / 100
        except ValueError:
            number = None
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1:
        raise _expected(value, 'a share from 0 to 1, or such as "10%"')
    return float(number)


def price(value: object) -> float:
    """Read a price: a number that is not negative."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= PRICE_MAX:  # type: ignore[operator]
        raise _expected(value, "a number that is not negative")
    return float(value)  # type: ignore[arg-type]


def switch(value: object) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise _expected(value, "true or false")
    return value


def matching(pattern: str, what: str) -> Callable[[object], str]:
    """Return a reader of text of a form."""
    form = re.compile(pattern)

    def read(value: object) -> str:
        if not isinstance(value, str) or not form.fullmatch(value):
            raise _expected(value, what)
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


def mode(value: object) -> int:
    """Read the mode of a socket, as text of octal digits."""
    if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value):
        raise _expected(value, 'three octal digits in quotes, such as "0660"')
    return int(value, 8)


def people(value: object) -> tuple[str, ...]:
    """Read a list of users and groups: names or ids, groups as ``@name``."""
    if not isinstance(value, list) or len(value) > PEOPLE_MAX:
        raise _expected(value, f"a list of at most {PEOPLE_MAX} users and @groups")
    for each in value:
        if not isinstance(each, str) or not PERSON.fullmatch(each):
            raise _expected(each, 'a user such as "ann" or "1000", or a group such as "@web"')
    return tuple(value)


def _expected(value: object, what: str) -> ValueError:
    return ValueError(f"expected {what}, got {_shown(value)}")


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)[:80]


COST: Mapping[str, Setting] = {
    "per_request": Setting("cost_per_request", price, "what one request of the target costs"),
    "per_kib": Setting("cost_per_kib", price, "what 1 KiB of values costs"),
}

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
    "reserve": Setting(
        "reserve_bytes",
        size(0, RETAIN_MAX_BYTES),
        "room that new records leave on the disk, so that delivery goes on when it is full",
    ),
    "socket_mode": Setting("socket_mode", mode, "who may open the sockets, as chmod says it"),
    "socket_owner": Setting("socket_owner", text, "the user that the sockets belong to"),
    "socket_group": Setting("socket_group", text, "the group that the sockets belong to"),
}

CLIENTS: Mapping[str, Setting] = {
    "connections": Setting(
        "connections", count(1, CONNECTIONS_LIMIT), "producers that may be connected at a time"
    ),
    "hello_timeout": Setting(
        "hello_timeout_s", duration(1, DAY_S), "the longest that a HELLO may take"
    ),
    "frame_timeout": Setting(
        "frame_timeout_s",
        duration(1, DAY_S),
        "the longest that a frame may take, first byte to last, or an answer to be read",
    ),
    "idle": Setting(
        "idle_s", duration(1, 366 * DAY_S), "a connection that says nothing for so long is closed"
    ),
}

# (``wald.core.rules`` knows what they mean; a test compares the two)
CONTENT_NAMES = ("bytes", "msgpack", "json")
FIELD_TYPES = (
    *("any", "text", "bytes", "integer", "number", "boolean", "list", "map"),
    *("datetime", "date", "decimal", "uuid"),
)
FIELDS_MAX = 256


def contents(value: object) -> tuple[str, ...]:
    """Read one name of a kind of content, or a list of them."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not set(map(str, names)) <= {*CONTENT_NAMES}:
        raise _expected(value, f"one or some of {', '.join(map(repr, CONTENT_NAMES))}")
    return tuple(map(str, names))


def fields(value: object) -> dict[str, str]:
    """Read a table of the fields that a record must have: name = type."""
    if not isinstance(value, dict) or len(value) > FIELDS_MAX:
        raise _expected(value, 'a table such as { user = "text", amount = "number" }')
    for kind in value.values():
        if kind not in FIELD_TYPES:
            raise _expected(kind, f"a type: {', '.join(FIELD_TYPES)}")
    return {str(name): str(kind) for name, kind in value.items()}


STREAM: Mapping[str, Setting] = {
    "max_record_bytes": Setting(
        "max_record_bytes", size(1, limits.RECORD_MAX_BYTES), "the largest value that is taken"
    ),
    "content": Setting("content", contents, "the kinds of values that are taken"),
    "key": Setting("key", one_of("optional", "required"), "whether each record needs a key"),
    "fields": Setting("fields", fields, "the fields that each record must have, and their types"),
    "quota_pending": Setting(
        "quota_pending_bytes",
        size(1, RETAIN_MAX_BYTES),
        "bytes of requests that the slowest route may leave undelivered",
    ),
    "quota_records": Setting(
        "quota_records", count(1, limits.LSN_MAX), "records that it may leave undelivered"
    ),
    "quota_age": Setting(
        "quota_age_s", duration(0.1, 366 * DAY_S), "how old the oldest of them may get"
    ),
    "quota_soft": Setting(
        "quota_soft", share, "from this share of a quota on producers are asked to pause"
    ),
}

STREAM_DEDUP: Mapping[str, Setting] = {
    "window": Setting(
        "window_s",
        duration(1, 366 * DAY_S),
        "for how long a record's dedup id is remembered; without it ids are not compared",
    ),
    "max_ids": Setting(
        "max_ids", count(1, limits.DEDUP_IDS_MAX), "how many ids are remembered at most"
    ),
}

ACCESS: Mapping[str, Setting] = {
    "append": Setting("append", people, "who may append"),
    "read": Setting("read", people, "who may see status, records and dead letters"),
    "operate": Setting("operate", people, "who may do everything that commands do"),
}

STREAM_ACCESS: Mapping[str, Setting] = {
    "append": Setting("append", people, "who may append to this stream, instead of the list above"),
    "read": Setting("read", people, "who may see this stream, instead of the list above"),
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

REPACK: Mapping[str, Setting] = {
    "after": Setting(
        "repack_after_s",
        duration(1, 366 * DAY_S),
        "a segment that a route needs for longer is packed: its other records make room",
    ),
    "max_bytes": Setting(
        "repack_after_bytes",
        size(0, RETAIN_MAX_BYTES),
        "so is what a route needs of the log beyond this",
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
    "lanes": Setting(
        "lanes", count(1, limits.LANES_MAX), "partitions by key: in order inside, side by side"
    ),
    "max_records_per_s": Setting(
        "max_records_per_s", count(1, 10**9), "no more records a second than this"
    ),
    "live_share": Setting(
        "live_share",
        share,
        "of its time, what a route with a backlog leaves to others at its target that keep up",
    ),
    "fallback": Setting("fallback", name, "a sink that takes over while this one is down"),
    "fallback_after": Setting(
        "fallback_after_s", duration(1, 366 * DAY_S), "after being down for so long"
    ),
    "on_reject": Setting(
        "on_reject",
        one_of("dead-letter", "halt"),
        "what becomes of a record that the target refuses for good",
    ),
    "on_unknown": Setting(
        "on_unknown",
        one_of("resend", "hold"),
        "what becomes of a batch without an answer, at a target that cannot tell it again",
    ),
    "on_rewind": Setting(
        "on_rewind", one_of("redeliver", "park"), "what follows when the target went back in time"
    ),
    "guarantee": Setting(
        "guarantee",
        one_of("exactly-once", "at-least-once"),
        "refused at the start if the sink cannot give it",
    ),
    "goal_age": Setting("goal_age_s", duration(0, DAY_S), "how old the oldest record should get"),
    "coalesce": Setting(
        "coalesce", one_of("last"), "of a batch only the newest record of each key is sent"
    ),
    "transform": Setting(
        "transform",
        matching(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", 'a function as "module:function"'),
        "a function that makes the records that are sent of those of a batch",
    ),
    "archive": Setting(
        "archive_bytes",
        size(1, RETAIN_MAX_BYTES),
        "all records of the stream are kept, packed, until they take more than this",
    ),
    "attempt_timeout": Setting(
        "attempt_timeout_s", duration(0.1, DAY_S), "the longest that one attempt may take"
    ),
}

WORKERS: Mapping[str, Setting] = {
    "min": Setting("min", count(1, limits.LANES_MAX), "so many lanes are always at work"),
    "max": Setting("max", count(1, limits.LANES_MAX), "and no more, however far the route lags"),
}

DELIVER: Mapping[str, Setting] = {
    "window": Setting(
        "window",
        matching(
            r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d",
            'two times of day, such as "22:00-06:00"',
        ),
        "local time of day in which the route delivers",
    ),
    "every": Setting("every_s", duration(1, DAY_S), "how often it delivers what has come"),
}

DEAD_LETTERS: Mapping[str, Setting] = {
    "quota": Setting(
        "quota_records",
        count(0, limits.LSN_MAX),
        "with more dead letters than this the route is parked",
    ),
    "max_age": Setting("max_age_s", duration(60, 10_000 * DAY_S), "older dead letters are purged"),
    "alarm": Setting("alarm_records", count(1, limits.LSN_MAX), "from so many on status says so"),
}

TRACE: Mapping[str, Setting] = {
    "sample": Setting("trace_sample", share, "of which share of the records the trace is kept"),
}

BATCH: Mapping[str, Setting] = {
    "max_records": Setting(
        "max_records", count(1, limits.REQUEST_MAX_RECORDS), "seal at this many records"
    ),
    "max_bytes": Setting(
        "max_bytes", size(1, limits.SEGMENT_BYTES), "seal at this many bytes of values"
    ),
    "max_age": Setting("max_age_s", duration(0, DAY_S), "seal when the oldest record is this old"),
    "jitter": Setting(
        "jitter_s", duration(0, DAY_S), "up to so much is added to max_age: hosts not in step"
    ),
    "adaptive": Setting(
        "adaptive", switch, "make batches smaller while the target is slower than latency_goal"
    ),
    "latency_goal": Setting(
        "latency_goal_s", duration(0.001, DAY_S), "how long one attempt should take"
    ),
}

ROUTE_TABLES: Mapping[str, Mapping[str, Setting]] = {
    "batch": BATCH,
    "workers": WORKERS,
    "deliver": DELIVER,
    "dead_letters": DEAD_LETTERS,
}
