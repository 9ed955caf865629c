"""``progress``: what the drainer tells ingest may be released, and has ever told it.

    {"routes": {route: checkpoint},
     "released": {route: the highest checkpoint ever told},
     "floors": {route: what lies below may retire},
     "dropped": [route, ...],
     "layouts": {route: [[number, lanes, since], ...]}}    and what stands for the fallback's name

Ingest retires by ``floors``, and by ``routes`` where a route has none: a floor above the
checkpoint says that packed files hold what lies between. ``released`` outlives a ledger that went
back: what lies behind a checkpoint and is not in the log any more was either released after it was
delivered, or damage took it. ``layouts`` outlives it too: a ledger that does not know of a change
of lanes would deliver again, through the former lanes, what those behind them have delivered.
"""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from wald import limits
from wald.core.lanes import Layout, told_sink
from wald.drainer.stands import StandsPage
from wald.model import Lsn, RouteId
from wald.ports import FileSystem
from wald.storage.progress import TwoSlotPage

SLOT_BYTES = limits.PROGRESS_SLOT_BYTES
_ROW = 3


class ProgressPage:
    """The page and its memory. Written by one thread, read by any."""

    def __init__(self, fs: FileSystem, data_dir: str) -> None:
        self._fs = fs
        self._path = f"{data_dir}/progress"
        self._unsynced = 0
        self.stands = StandsPage(fs, data_dir)
        page = self._open()
        self._page: TwoSlotPage | None = page
        said = page.read() or {}
        layouts = said.get("layouts")
        self._layouts: dict[str, list[list[int]]] = layouts if isinstance(layouts, dict) else {}
        self._released: dict[str, Lsn] = {}
        for part in (said.get("routes"), said.get("released")):
            self._raise(part if isinstance(part, dict) else {})

    def all_released(self) -> dict[RouteId, Lsn]:
        """Return what ``released`` does of every route."""
        return {int(route): lsn for route, lsn in self._released.items()}

    def released(self, route_id: RouteId) -> Lsn:
        """Return up to where the log may have let a route's records go; 0 if nothing was told."""
        return self._released.get(str(route_id), 0)

    def write(
        self,
        checkpoints: Mapping[str, Lsn],
        living: Collection[RouteId] | None,
        floors: Mapping[str, Lsn] = MappingProxyType({}),
        dropped: Collection[RouteId] = (),
    ) -> None:
        """Tell the checkpoints and floors, durable in the ledger; durable here on return.

        Ingest writes the death of the routes that were ``dropped``.

        Of routes that live no more nothing is remembered; where ``living`` is None, of all.

        Raises:
            OSError, ValueError: it cannot be written; the next call tries anew.
        """
        self._raise(checkpoints)
        names = self._released.keys() | self._layouts.keys()
        if living is not None:
            names &= {str(route_id) for route_id in living}
        self._released = {route: lsn for route, lsn in self._released.items() if route in names}
        said: dict[str, Any] = {"routes": dict(checkpoints), "released": dict(self._released)}
        said["floors"] = dict(floors)
        said["layouts"] = self._layouts = {
            route: rows for route, rows in self._layouts.items() if route in names
        }
        if dropped:
            said["dropped"] = sorted(dropped)
        self._write(said)

    def told_layouts(self, route_id: RouteId) -> list[Layout]:
        """Return the newest layouts of a route that were ever told, the one at work last.

        One that delivered to a fallback has what ``core.lanes.told_sink`` makes of its name.
        """
        return [
            Layout(row[0], row[1], row[2], sink=f"*{row[_ROW]}" if len(row) > _ROW else "")
            for row in self._layouts.get(str(route_id), ())
        ]

    def tell_layouts(self, route_id: RouteId, layouts: Sequence[Layout]) -> None:
        """Tell the layouts of a route; durable on return. One lane from the start says nothing.

        Raises:
            OSError, ValueError: it cannot be written; the next call tries anew.
        """
        kept = layouts[-limits.LAYOUTS_TOLD_MAX :]
        rows = [[each.number, each.lanes, each.since, *_told(each.sink)] for each in kept]
        plain = len(rows) == 1 and rows[0][:2] == [0, 1]
        if plain or rows == self._layouts.get(str(route_id)):
            return
        told = {**self._layouts, str(route_id): rows}
        self._write({**self._read(), "layouts": told})
        self._layouts = told

    def drop(self, route_id: RouteId) -> None:
        """Tell that a route was given up, and nothing else anew: while no drainer runs.

        Raises:
            OSError, ValueError: it cannot be written.
        """
        said = self._read()
        before = said.get("dropped")
        told = [*before, route_id] if isinstance(before, list) else [route_id]
        self._write({**said, "dropped": sorted(set(told))})

    def close(self) -> None:
        """Close the file; harmless to repeat."""
        self.stands.close()
        if self._page is not None:
            self._page.close()
            self._page = None

    def _read(self) -> dict[str, Any]:
        page = self._page = self._page or self._open()
        return page.read() or {}

    def _write(self, said: dict[str, Any]) -> None:
        """Write all of it, durably; behind a failure the page is opened anew."""
        page = self._page = self._page or self._open()
        try:
            page.write(said, sync=True)
        except OSError:
            self._unsynced = page.unsynced or self._unsynced
            self.close()
            raise
        self._unsynced = 0

    def _open(self) -> TwoSlotPage:
        """Open the page, anew after a failure: one that passes must not end retention for good."""
        return TwoSlotPage.open(
            self._fs, self._path, slot_bytes=SLOT_BYTES, write=True, instead_of=self._unsynced
        )

    def _raise(self, told: Mapping[str, Lsn]) -> None:
        for route, lsn in told.items():
            if type(lsn) is int:
                self._released[route] = max(lsn, self._released.get(route, 0))


def _told(sink: str) -> list[int]:
    return [int(told_sink(sink)[1:])] if sink else []
