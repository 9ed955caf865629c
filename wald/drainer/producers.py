"""Who sent a record: looked up in the log once it is refused, by the section that holds it.

A record carries no producer on its way to a target: few are ever asked for. What cannot be found
any more is left empty, and nothing depends on it.
"""

import logging
import threading
from bisect import bisect_left
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from wald import limits
from wald.core.frame import BlockFlag, BlockHeader, BlockKind, Section, SectionKind
from wald.errors import WaldError
from wald.model import Frontier, LostRange, Lsn, Record
from wald.ports import FileSystem
from wald.storage.tail import TailBlock, TailReader

_log = logging.getLogger("wald.drain")
_TRACE_HEADER = "traceparent"


class LogPlace(NamedTuple):
    """Which log, and how far it may be read."""

    fs: FileSystem
    data_dir: str
    log_id: bytes
    frontier: Frontier


class Producers:
    """Names of producers by session; any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: dict[int, str] = {}

    def of(self, place: LogPlace, lsns: Collection[Lsn]) -> Mapping[Lsn, str]:
        """Return the producer of each record: its name, or its session where it has none.

        Records that the log does not hold any more are left out.
        """
        try:
            with self._lock:
                return self._look_up(place, lsns)
        except (OSError, WaldError) as error:
            _log.warning("the producers of refused records cannot be read: %r", error)
            return {}

    def _look_up(self, place: LogPlace, lsns: Collection[Lsn]) -> dict[Lsn, str]:
        wanted = sorted(lsns)
        if not wanted:
            return {}
        sessions, heads = _sessions_of(place, wanted)
        for head in heads if any(each not in self._names for each in sessions.values()) else ():
            self._learn(place, head, wanted[-1])
        return {lsn: self._name(session) for lsn, session in sessions.items()}

    def _name(self, session: int) -> str:
        name = self._names.get(session, "")
        return name[: limits.PRODUCER_TEXT_MAX_CHARS] or f"session {session:016x}"

    def _learn(self, place: LogPlace, head: Lsn, through: Lsn) -> None:
        """Take in the names that a segment's snapshot and its statements say."""
        reader = TailReader(
            place.fs, place.data_dir, place.log_id, after=head, wants_block=_has_statements
        )
        try:
            for item in reader.read(place.frontier):
                for _, section in item.sections if isinstance(item, TailBlock) else ():
                    self._take_in(section)
                if reader.cursor >= through:
                    break
        finally:
            reader.close()
        while len(self._names) > limits.SESSIONS_MAX:
            del self._names[next(iter(self._names))]

    def _take_in(self, section: Section) -> None:
        if section.kind is SectionKind.SESSION:
            said: Mapping[str, Any] = section.statement()
            self._names[said["session"]] = said["name"]
        elif section.kind is SectionKind.SNAPSHOT:
            rows: Any = section.statement().get("sessions", ())
            self._names.update((row[0], row[1]) for row in rows)


def trace_of(record: Record) -> str:
    """Return a record's trace context; empty if it has none."""
    found = (record.headers or {}).get(_TRACE_HEADER, "")
    text = found.decode(errors="replace") if isinstance(found, bytes) else found
    return text[: limits.TRACE_TEXT_MAX_CHARS]


def _sessions_of(place: LogPlace, wanted: list[Lsn]) -> tuple[dict[Lsn, int], list[Lsn]]:
    """Return the sessions of records, and the LSNs before the segments that were looked into."""
    asked = frozenset(wanted)
    found: dict[Lsn, int] = {}
    heads: dict[int, Lsn] = {}

    def wants(header: BlockHeader) -> bool:
        if header.kind is BlockKind.SNAPSHOT:
            heads.setdefault(header.segment, header.prev_lsn)
        at = bisect_left(wanted, header.first_lsn)
        return at < len(wanted) and wanted[at] <= header.last_lsn

    reader = TailReader(
        place.fs, place.data_dir, place.log_id, after=wanted[0] - 1, wants_block=wants
    )
    try:
        for item in reader.read(place.frontier):
            for first_lsn, section in () if isinstance(item, LostRange) else item.sections:
                if section.kind is SectionKind.APPEND:
                    held = range(first_lsn, first_lsn + section.records)
                    found.update((lsn, section.session) for lsn in held if lsn in asked)
            if reader.cursor >= wanted[-1]:
                break
    finally:
        reader.close()
    return found, sorted(heads.values())


def _has_statements(header: BlockHeader) -> bool:
    return header.kind in {BlockKind.SNAPSHOT, BlockKind.CONTROL} or bool(
        header.flags & BlockFlag.HAS_CONTROL
    )
