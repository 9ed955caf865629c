"""A SQLite sink whose driver a record can kill: what `tests/integration/test_poison.py` installs.

A value with ``{"poison": how}`` ends the process, takes memory without end, never returns, panics
as a driver in another language does, or leaves the interpreter.
"""

import os
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wald.model import (
    Attempt,
    Capabilities,
    Finding,
    LaneKey,
    Outcome,
    ProgressRow,
    Record,
    RejectedRecord,
)
from wald.sinks.sqlite import make as make_sqlite
from wald.sinks.sqlite.sink import SqliteSink


class PanicException(BaseException):
    """As the bindings of Rust raise it: no ``Exception``."""


@dataclass
class PoisonSink:
    inner: SqliteSink

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    def read_row(self, key: LaneKey) -> ProgressRow | Outcome | None:
        return self.inner.read_row(key)

    def deliver(self, attempt: Attempt) -> Outcome:
        _touch(attempt.records)
        return self.inner.deliver(attempt)

    def probe(
        self, attempt: Attempt, records: Sequence[Record]
    ) -> Sequence[RejectedRecord] | Outcome:
        _touch(records)
        return self.inner.probe(attempt, records)

    def check(self) -> Sequence[Finding]:
        return self.inner.check()

    def close(self) -> None:
        self.inner.close()


def _touch(records: Sequence[Record]) -> None:
    for record in records:
        if b"poison" in record.value:
            _fall_to(record.value)


def _fall_to(value: bytes) -> None:
    if b"exit" in value:
        os._exit(3)
    if b"memory" in value:
        if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
            os._exit(9)  # where nothing bounds us the kernel would end somebody else first
        hoard = [bytearray(1 << 20) for _ in range(1 << 20)]  # a tebibyte: the bound is met first
        del hoard
    if b"panic" in value:
        msg = "index out of bounds"
        raise PanicException(msg)
    if b"leave" in value:
        sys.exit("the driver gives up")
    while b"loop" in value:
        pass


def transform(records: list[Record]) -> list[Record]:
    """Send what it is given; poison does to it what it does to the sink."""
    _touch(records)
    return records


def make(route: str, stream: str, settings: Mapping[str, object]) -> PoisonSink:
    return PoisonSink(make_sqlite(route, stream, settings))
