"""A database of the shared server for one test: sinks into it, attempts, and SQL beside them."""

from collections.abc import Sequence
from typing import Any

import msgpack

from tests.servers.postgres import Postgres
from wald.model import (
    NO_REVISION,
    Anchor,
    Attempt,
    Content,
    LaneKey,
    Outcome,
    ProgressRow,
    Record,
    Rejected,
    RejectedRecord,
)
from wald.sinks.postgres import PostgresSink, make

LOG_ID = bytes(range(16))
KEY = LaneKey(LOG_ID, 4, 0, 0)
OWNER = 2**64 - 5
TIME_NS = 1_763_806_443_120_456_789
A, B, C = (bytes([n]) * 16 for n in (1, 2, 3))


def pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, datetime=True)
    return packed


def record(lsn: int, value: object, content: Content = Content.MSGPACK, **rest: Any) -> Record:
    data = pack(value) if content is Content.MSGPACK else value
    assert isinstance(data, bytes)
    return Record(lsn, TIME_NS, int(content), data, **rest)


def attempt(
    *records: Record,
    number: int = 1,
    rev_id: bytes = A,
    prev: bytes = NO_REVISION,
    key: LaneKey = KEY,
    owner: int = OWNER,
    **rest: Any,
) -> Attempt:
    hi = records[-1].lsn if records else 0
    row = ProgressRow(number, rev_id, hi, Anchor(2**32 - 1, TIME_NS), owner, NO_REVISION)
    return Attempt(key, "events", prev, row, records, **rest)


class Place:
    """A database, and sinks into it; a context manager."""

    def __init__(self, server: Postgres, name: str) -> None:
        self.server, self.name = server, name
        self.sinks: list[PostgresSink] = []
        self.connection = server.connect(name)
        self.number = 0

    def url(self, user: str = "postgres", **parameters: object) -> str:
        return self.server.url(user, self.name, **parameters)

    def sink(self, stream: str = "events", **settings: Any) -> PostgresSink:
        made = make("route", stream, {"url": self.url(), **settings})
        self.sinks.append(made)
        return made

    def into(self, ddl: str, mode: str = "columns", **settings: Any) -> PostgresSink:
        """A sink into the table ``t``, which is made."""
        self.sql(ddl)
        return self.sink(mode=mode, table="t", **settings)

    def sql(self, statement: str, *values: object) -> list[Any]:
        cursor = self.connection.execute(statement.encode(), values or None)
        return cursor.fetchall() if cursor.description else []

    def deliver(self, sink: PostgresSink, *values: object, lsn: int = 1, **rest: Any) -> Outcome:
        """Deliver values as a batch of a lane of its own."""
        self.number += 1
        key = KEY._replace(lane=self.number, **rest)
        records = [record(lsn + n, value) for n, value in enumerate(values)]
        return sink.deliver(attempt(*records, key=key))

    def probe(self, sink: PostgresSink, *values: object) -> Sequence[RejectedRecord] | Outcome:
        records = [record(n, value) for n, value in enumerate(values, 1)]
        return sink.probe(attempt(*records), records)

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()
        self.connection.close()


def named(outcome: object) -> list[tuple[int, str]]:
    """LSN and code of the records that an outcome names."""
    found = outcome.records if isinstance(outcome, Rejected) else outcome
    assert isinstance(found, Sequence), outcome
    return [(item.lsn, item.code) for item in found]
