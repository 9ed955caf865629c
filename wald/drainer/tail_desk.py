"""What a stream holds, up to the frontier: ``drain.tail``, a page at a time.

The drainer reads, since it alone knows the packed files, and since its answers pass by the rules of
access. It keeps nothing for who asks: each question says after which LSN to go on, so that a
restart of any part costs the follower nothing. What is not durable lies above the frontier and is
never told.
"""

import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wald import limits
from wald.drainer.asks import Request, natural, wrong_value
from wald.drainer.records import open_records
from wald.drainer.where import Sources
from wald.model import Frontier, LostRange, Lsn, Record, StreamId


@dataclass(slots=True)
class _Page:
    """What is told at once, bounded by records, by bytes, and by what was looked at for it."""

    limit: int
    key: bytes | None
    since_ns: int
    through: Lsn
    records: list[dict[str, Any]] = field(default_factory=list)
    lost: list[dict[str, Any]] = field(default_factory=list)
    size: int = 0
    seen: int = 0

    @property
    def is_full(self) -> bool:
        return (
            len(self.records) >= self.limit
            or self.size >= limits.TAIL_ANSWER_BYTES
            or self.seen >= limits.TAIL_LOOKED_AT_RECORDS
        )

    def take(self, record: Record) -> None:
        self.seen += 1
        self.through = record.lsn
        if record.time_ns < self.since_ns or not _has_key(record, self.key):
            return
        said = record_as_json(record)
        self.records.append(said)
        self.size += len(json.dumps(said))


class TailDesk:
    """Answers; one thread."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self.operations: Mapping[str, Callable[[Request], dict[str, Any]]] = {
            "drain.tail": self.tail
        }

    def tail(self, request: Request) -> dict[str, Any]:
        """Return records of a stream behind an LSN, or from its oldest on, or from now on.

        Raises:
            InputError: the request says none of these, or there is no such stream.
        """
        stream, begins = _text_of(request, "stream"), _text_of(request, "from")
        if begins not in {None, "oldest", "now"}:
            name = "from"
            raise wrong_value(name, begins, "'oldest' or 'now'")
        after = natural(request, "after", 0)
        frontier = self._sources.frontier(limits.LSN_MAX) or Frontier(0, 0, 0)  # the newest
        known = {name: number for number, name in self._sources.streams().items()}
        stream_id = known.get(stream or "")
        said = {"stream": stream, "frontier_lsn": frontier.lsn, "exists": stream_id is not None}
        if stream_id is None or begins == "now" or after >= frontier.lsn:
            through = frontier.lsn if begins == "now" else max(after, 0)
            return {**said, "records": [], "lost": [], "through": through}
        page = _Page(
            min(natural(request, "limit", limits.TAIL_PAGE_RECORDS), limits.TAIL_PAGE_RECORDS),
            _key_of(request),
            natural(request, "since_ns", 0),
            after,
        )
        self._fill(page, stream_id, frontier, from_oldest=begins == "oldest")
        return {**said, "records": page.records, "lost": page.lost, "through": page.through}

    def _fill(
        self, page: _Page, stream_id: StreamId, frontier: Frontier, *, from_oldest: bool
    ) -> None:
        sources = self._sources
        items = open_records(
            sources.fs,
            sources.data_dir,
            sources.log_id,
            sources.clock,
            stream_id=stream_id,
            after=page.through,
            until=frontier.lsn,
            frontier=frontier,
        )
        for item in items:
            if isinstance(item, Record):
                page.take(item)
            elif not from_oldest or page.records:  # what went before the oldest is not missed
                page.lost.append(_lost_as_json(item))
                page.through = item.last_lsn
            if page.is_full or len(page.lost) >= limits.TAIL_LOST_MAX:
                return
        page.through = frontier.lsn


def _text_of(request: Request, name: str) -> str | None:
    text = request.get(name)
    if text is not None and not isinstance(text, str):
        raise wrong_value(name, text, "a text")
    return text


def _key_of(request: Request) -> bytes | None:
    key = _text_of(request, "key")
    return None if key is None else key.encode("utf-8", "surrogatepass")


def _has_key(record: Record, key: bytes | None) -> bool:
    if key is None:
        return True
    own = record.key
    return (own.encode() if isinstance(own, str) else own) == key


def record_as_json(record: Record) -> dict[str, Any]:
    """Return a record as it lies in the log; bytes are base64, a long value is cut and says so."""
    value = record.value[: limits.TAIL_VALUE_MAX_BYTES]
    said: dict[str, Any] = {
        "lsn": record.lsn,
        "time_ns": record.time_ns,
        "content": record.content,
        "value_base64": b64encode(value).decode("ascii"),
    }
    if len(value) < len(record.value):
        said["value_bytes"] = len(record.value)
    for name, text in (("key", record.key), ("dedup_id", record.dedup_id)):
        if text is not None:
            said |= _named(name, text)
    if record.headers:
        said["headers"] = {
            name: text if isinstance(text, str) else {"base64": b64encode(text).decode("ascii")}
            for name, text in record.headers.items()
        }
    return said


def _named(name: str, text: str | bytes) -> dict[str, str]:
    if isinstance(text, str):
        return {name: text}
    return {f"{name}_base64": b64encode(text).decode("ascii")}


def _lost_as_json(lost: LostRange) -> dict[str, Any]:
    return {"first_lsn": lost.first_lsn, "last_lsn": lost.last_lsn, "why": lost.reason}
