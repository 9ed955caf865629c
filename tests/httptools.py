"""Attempts, records and options of the HTTP sink, for its tests."""

import json
from typing import Any

import msgpack

from wald.model import NO_REVISION, Anchor, Attempt, Content, LaneKey, ProgressRow, Record
from wald.sinks.http.options import Options
from wald.sinks.http.settings import read_options

LOG_ID = bytes(range(16))
KEY = LaneKey(LOG_ID, 4, 0, 0)
REVISION = bytes([9]) * 16
TIME_NS = 1_763_806_443_120_456_789
URL = "http://127.0.0.1:9/in"


def options(**settings: Any) -> Options:
    return read_options("r", "events", {"url": URL, **settings})


def record(lsn: int, value: Any, content: Content = Content.MSGPACK, **rest: Any) -> Record:
    """A record of a value; of bytes as they are, if it is one of another content than msgpack."""
    if content is Content.JSON and not isinstance(value, bytes):
        value = json.dumps(value, separators=(",", ":")).encode()
    elif content is Content.MSGPACK:
        value = msgpack.packb(value, datetime=True)
    return Record(lsn, TIME_NS, int(content), value, **rest)


def records(count: int) -> list[Record]:
    return [record(lsn, {"n": lsn}) for lsn in range(1, count + 1)]


def attempt(*sent: Record, **rest: Any) -> Attempt:
    row = ProgressRow(1, REVISION, sent[-1].lsn, Anchor(1, TIME_NS), 77, NO_REVISION)
    return Attempt(KEY, "events", NO_REVISION, row, sent, **{"timeout_s": 30.0, **rest})
