"""Identifiers, records, and places in the log."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, TypeAlias

Lsn: TypeAlias = int  # log sequence number: orders the records, is never used twice; 0 is "none"
StreamId: TypeAlias = int  # durable, u32, given by ingest; 0 is "none"
RouteId: TypeAlias = int  # durable, u32, given by ingest; 0 is "none"
RevisionId: TypeAlias = bytes  # 16 random bytes
NO_REVISION: RevisionId = bytes(16)  # the prev_rev of a lane's first batch
REVISION_BYTES = 16


class Content(IntEnum):
    """How a record's value is encoded: the content code."""

    BYTES = 0
    MSGPACK = 1
    JSON = 2


class Record(NamedTuple):
    """One record as the drainer and the sinks see it.

    Attributes:
        lsn: its log sequence number.
        time_ns: wall clock of the commit of its group, nanoseconds since the epoch.
        content: a ``Content`` code (a plain int, for speed).
        value: the encoded value, as the producer sent it.
        key: text or bytes, at most ``limits.KEY_MAX_BYTES`` encoded.
        headers: names to text or bytes.
        dedup_id: the producer's own identifier of the record.
    """

    lsn: Lsn
    time_ns: int
    content: int
    value: bytes
    key: str | bytes | None = None
    headers: Mapping[str, str | bytes] | None = None
    dedup_id: str | bytes | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """The answer to an append: what was promised, and where the record stands.

    ``duplicate``: its dedup id is that of an earlier record, whose LSN this is.
    """

    stream: str
    lsn: Lsn
    level: str
    durable_lsn: Lsn
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """One refused record of a request: its index in the request, a stable code, why, what to do."""

    index: int
    code: str
    message: str
    hint: str = ""


class Frontier(NamedTuple):
    """The end of what is known to be durable.

    A position and not an LSN alone: an abandoned segment may still show a block (a ghost) whose
    LSN lies below it.
    """

    segment: int
    end_bytes: int  # offset just behind the last durable block of that segment
    lsn: Lsn  # the highest durable LSN; 0 for an empty log


class Anchor(NamedTuple):
    """What tells one history of the log from another: of the block that holds an LSN."""

    payload_crc: int
    commit_time_ns: int


NO_ANCHOR = Anchor(0, 0)


@dataclass(frozen=True, slots=True)
class LostRange:
    """LSNs below the frontier that damage took; all else was kept.

    ``records`` is how many of them were of the stream that is read, where that is known.
    """

    first_lsn: Lsn
    last_lsn: Lsn
    segment: int
    offset_bytes: int
    reason: str
    records: int | None = None


@dataclass(frozen=True, slots=True)
class PackedRange:
    """A packed file, as ledger and directory know it: the records of a stream from a range of LSNs.

    Attributes:
        stream_id: the stream.
        lo: it answers for every LSN above this one
        hi: up to this one.
        segment: the last segment that it was made of.
        size_bytes: what it takes on disk.
        raw_bytes: what was compressed.
        records: how many records it holds.
        archive: whether it is kept on purpose, in ``archive/``.
    """

    stream_id: StreamId
    lo: Lsn
    hi: Lsn
    segment: int
    size_bytes: int
    raw_bytes: int
    records: int
    archive: bool = False
