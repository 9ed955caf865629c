"""Transforms that the tests of shaping name in settings: "tests.transforms:NAME"."""

import threading
from collections.abc import Iterable, Iterator

from wald.model import Record

BAD: set[bytes] = set()  # values at which ``upper`` raises ``RAISED``
RAISED: list[type[BaseException]] = [ValueError]


class PanicException(BaseException):
    """As the bindings of Rust raise it: no ``Exception``."""


def upper(records: list[Record]) -> Iterator[Record]:
    for record in records:
        if record.value in BAD:
            msg = f"cannot take {record.value!r}"
            raise RAISED[0](msg)
        yield record._replace(value=record.value.upper())


GATE = threading.Event()


def waits(records: list[Record]) -> Iterable[Record]:
    """Return when the gate is opened, as a function that asks something on the network may."""
    GATE.wait(60.0)
    return records


def without_drops(records: list[Record]) -> Iterable[Record]:
    return [record for record in records if record.value != b"drop"]


def twice(records: list[Record]) -> Iterator[Record]:
    for record in records:
        yield record
        yield record._replace(value=record.value + b"!")


def backwards(records: list[Record]) -> Iterable[Record]:
    return reversed(records)


def count(records: list[Record]) -> Iterator[tuple[list[Record], Record]]:
    """Of each key one record, whose value is the number of records that it stands for."""
    by_key: dict[str | bytes | None, list[Record]] = {}
    for record in records:
        by_key.setdefault(record.key, []).append(record)
    for group in by_key.values():
        yield group, group[-1]._replace(value=b"%d" % len(group))


def wrong(records: list[Record]) -> list[str]:
    return ["text" for _ in records]


NOT_A_FUNCTION = 7
