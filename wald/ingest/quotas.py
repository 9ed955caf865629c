"""The quotas of streams at the door: what ingest knows of how far the drainer is.

The drainer says it in ``drain.page``; while it is down, what it said last counts, and what is
accepted adds to it: a dead drainer makes nothing unbounded. Looked at seldom, and only for streams
that have a quota.
"""

from collections.abc import Mapping
from typing import Any

from wald import limits
from wald.config import Settings, StreamSettings
from wald.core.quota import Mark, Marks, Pending, Quota, Reach, StreamQuota, pending_of
from wald.core.state import LogState, StreamState
from wald.model import RouteId, StreamId
from wald.ports import Clock, FileSystem
from wald.storage.progress import TwoSlotPage

_LOOK_NS = int(limits.QUOTA_LOOK_S * limits.CLOCK_NS_PER_S)


class Quotas:
    """All quotas; one loop, one thread.

    Args:
        state: of the log.
        settings: the bounds.
        fs: the file system of the data directory.
        clock: wall clock for ages, monotonic for how often the drainer's page is read.
    """

    def __init__(self, state: LogState, settings: Settings, fs: FileSystem, clock: Clock) -> None:
        self._state = state
        self._clock = clock
        self._bounds = {
            name: quota
            for name, stream in settings.streams.items()
            if (quota := _quota(stream)).is_set
        }
        self._held: dict[StreamId, StreamQuota] = {}
        self._page = DrainPage(fs, settings.data_dir)
        self._looked_ns = -_LOOK_NS
        self._marks = _marks_said(fs, settings.data_dir) if self._bounds else {}
        for stream in list(state.streams.values()):
            self.of(stream.stream_id)

    def of(self, stream_id: StreamId) -> StreamQuota | None:
        """Return the quota of a stream that was opened; None if it has none."""
        if not self._bounds:
            return None
        held = self._held.get(stream_id)
        if held is None:
            stream = self._state.streams[stream_id]
            bounds = self._bounds.get(stream.name)
            if bounds is None:
                return None
            held = StreamQuota(bounds, Marks(self._known_marks(stream)))
            self._held[stream_id] = held
            self._looked_ns = -_LOOK_NS
            self.look()
        return held

    def _known_marks(self, stream: StreamState) -> list[Mark]:
        """Return what is known for certain of a stream's past; what is not so any more is left."""
        births = [
            Mark(route.birth_lsn, route.birth_records, route.birth_bytes)
            for route in self._state.routes.values()
            if route.stream_id == stream.stream_id
        ]
        said = [
            mark
            for mark in self._marks.get(stream.name, ())
            if mark.lsn <= stream.last_lsn
            and mark.records <= stream.records
            and mark.bytes <= stream.bytes
        ]
        return births + said

    def committed(self) -> None:
        """What was accepted is durable, or refused."""
        for stream_id, held in self._held.items():
            if held.settle():
                held.hold(self._mark(stream_id))
        self.look()

    def _mark(self, stream_id: StreamId) -> Mark:
        """Return what a stream holds now."""
        stream = self._state.streams[stream_id]
        return Mark(stream.last_lsn, stream.records, stream.bytes, self._clock.wall_ns())

    def look(self) -> None:
        """Hear how far the drainer is, if that is not known as of a moment ago."""
        now_ns = self._clock.monotonic_ns()
        if not self._held or now_ns - self._looked_ns < _LOOK_NS:
            return
        self._looked_ns = now_ns
        said = self._page.routes()
        for stream_id, held in self._held.items():
            now = self._mark(stream_id)
            held.marks.note(now)
            pending = self._pending(now, stream_id, said, held.marks)
            held.marks.forget(now.records - pending.records)
            held.look(pending)

    def _pending(
        self,
        now: Mark,
        stream_id: StreamId,
        said: Mapping[RouteId, Mapping[str, Any]],
        marks: Marks,
    ) -> Pending:
        reaches = []
        for route in self._state.routes.values():
            if route.stream_id == stream_id:
                row = said.get(route.route_id, {})
                settled = sum(int(row.get(key, 0)) for key in _SETTLED)
                through = max(int(row.get("through_lsn", 0)), route.birth_lsn)
                oldest_ns = int(row.get("oldest_pending_ns") or 0)
                reaches.append(Reach(route.name, route.birth_records, settled, through, oldest_ns))
        return pending_of(now, reaches, marks)

    def figures(self) -> dict[str, dict[str, object]]:
        """Return what status says of the quotas, by stream, and the marks for the next start."""
        return {
            self._state.streams[stream_id].name: {
                "used": round(held.used, 4),
                "pending_records": held.pending.records,
                "pending_bytes": held.pending.bytes,
                "pending_age_s": round(held.pending.age_s, 3),
                "slowest": held.pending.route,
                "pause_s": round(held.pause_s, 3),
                "full": held.is_full,
                "refused": held.refused,
                "throttled": held.throttled,
                "says": held.says(),
            }
            for stream_id, held in self._held.items()
        }

    def marks(self) -> dict[str, list[list[int]]]:
        """Return the marks of all streams, as many as the page has room for."""
        each = limits.PAGE_MARKS_MAX_COUNT // max(1, len(self._held))
        return {
            self._state.streams[stream_id].name: [list(mark) for mark in list(held.marks)[-each:]]
            for stream_id, held in self._held.items()
        }

    def close(self) -> None:
        """Let go of the drainer's page."""
        self._page.close()


_SETTLED = ("delivered", "dead_letters", "purged")


def _quota(stream: StreamSettings) -> Quota:
    return Quota(
        stream.quota_pending_bytes, stream.quota_records, stream.quota_age_s, stream.quota_soft
    )


class DrainPage:
    """Reads what the drainer says of its routes; nothing while it has said nothing."""

    def __init__(self, fs: FileSystem, data_dir: str) -> None:
        self._fs = fs
        self._path = f"{data_dir}/drain.page"
        self._page: TwoSlotPage | None = None

    def routes(self) -> dict[RouteId, Mapping[str, Any]]:
        """Return the rows by the id of the route."""
        try:
            if self._page is None:
                self._page = TwoSlotPage.open(
                    self._fs, self._path, slot_bytes=limits.FIGURES_SLOT_BYTES, write=False
                )
            said = (self._page.read() or {}).get("routes")
        except OSError:
            return {}
        rows = said.values() if isinstance(said, dict) else ()
        return {
            int(row["route_id"]): row for row in rows if isinstance(row, dict) and "route_id" in row
        }

    def close(self) -> None:
        """Let go of the page."""
        if self._page is not None:
            self._page.close()


def _marks_said(fs: FileSystem, data_dir: str) -> dict[str, list[Mark]]:
    """Return the marks that an earlier ingest of this directory noted; they are only figures."""
    try:
        page = TwoSlotPage.open(
            fs,
            f"{data_dir}/ingest.page",
            offset=limits.FIGURES_OFFSET_BYTES,
            slot_bytes=limits.FIGURES_SLOT_BYTES,
            write=False,
        )
    except OSError:
        return {}
    try:
        said = (page.read() or {}).get("marks")
        if not isinstance(said, dict):
            return {}
        return {str(name): [Mark(*map(int, row)) for row in rows] for name, rows in said.items()}
    except (OSError, TypeError, ValueError):
        return {}
    finally:
        page.close()
