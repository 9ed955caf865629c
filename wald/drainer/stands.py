"""How far lanes are at targets without a progress row, told beside the ledger.

A second page in the file ``progress``, behind the slots of the first:

    {"life": the number of the drainer, one more at each start,
     "sealed": {route: no batch that may double was sealed beyond this LSN},
     "stands": {route: [[layout, lane, LSN, batch], ...]},    see ``core.told``
     "paused": {route: since when, ns}}    what is held back, 0 for all; absent if never told

``life`` stands in the ledger too: a ledger with a lower one is older than what is told here. The
bound on what was sealed is durable before a batch is, and some way ahead, so that few batches wait
for it.
"""

import threading
from collections.abc import Collection, Mapping, Sequence

from wald import limits
from wald.core.told import Stand, ToldRoute, stands_of
from wald.model import Lsn, RouteId
from wald.ports import FileSystem
from wald.storage.progress import TwoSlotPage

_OFFSET_BYTES = 2 * limits.PROGRESS_SLOT_BYTES


class StandsPage:
    """The page and its memory; any thread."""

    def __init__(self, fs: FileSystem, data_dir: str) -> None:
        self._fs = fs
        self._path = f"{data_dir}/progress"
        self._lock = threading.RLock()
        self._unsynced = 0
        page = self._open()
        self._page: TwoSlotPage | None = page
        said = page.read() or {}
        life, sealed, stands = (said.get(name) for name in ("life", "sealed", "stands"))
        self.life = life if isinstance(life, int) else 0
        self._sealed: dict[str, Lsn] = sealed if isinstance(sealed, dict) else {}
        self._stands: dict[str, list[list[int]]] = stands if isinstance(stands, dict) else {}
        paused = said.get("paused")
        self._paused: dict[str, int] | None = paused if isinstance(paused, dict) else None

    def told(self, released: Mapping[RouteId, Lsn]) -> dict[RouteId, ToldRoute]:
        """Return what was told of each route, with where every lane of it was at least."""
        names = {*self._sealed, *self._stands, *map(str, released)}
        return {
            int(name): ToldRoute(
                released.get(int(name), 0),
                self._sealed.get(name),
                stands_of(self._stands.get(name)),
            )
            for name in names
        }

    def begin_life(self, life: int, sealed: Mapping[RouteId, Lsn]) -> None:
        """Tell the number of this drainer; durable on return.

        Args:
            life: the number.
            sealed: bounds of routes for which an older release told none.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock:
            told = {str(route_id): lsn for route_id, lsn in sealed.items()}
            self._write(life, {**told, **self._sealed}, self._stands)

    def reserve(self, route_id: RouteId, lsn: Lsn) -> None:
        """Say that batches up to an LSN may be sealed; durable on return.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock:
            if self._sealed.get(str(route_id), 0) < lsn:
                ahead = {str(route_id): lsn + limits.SEALED_AHEAD_LSN}
                self._write(self.life, {**self._sealed, **ahead}, self._stands)

    @property
    def paused(self) -> dict[RouteId, int] | None:
        """What is held back, and since when; None if that was never told."""
        if self._paused is None:
            return None
        return {int(route): since_ns for route, since_ns in self._paused.items()}

    def hold(self, paused: Mapping[RouteId, int]) -> None:
        """Tell what is held back; durable on return.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock:
            held = sorted(paused, key=lambda each: (each != 0, -each))  # all, then the newest
            told = {str(each): paused[each] for each in held[: limits.ROUTES_MAX]}
            if told != self._paused:
                before, self._paused = self._paused, told
                try:
                    self._write(self.life, self._sealed, self._stands)
                except OSError:
                    self._paused = before
                    raise

    def write(
        self, stands: Mapping[str, Sequence[Stand]], living: Collection[RouteId] | None
    ) -> None:
        """Tell how far lanes are, durably; routes that are not named stay as they were told.

        Of routes that live no more nothing is kept; where ``living`` is None, of all.

        Raises:
            OSError: it cannot be written; the next call tries anew.
        """
        rows = {route: [list(stand) for stand in those] for route, those in stands.items()}
        with self._lock:
            told = {**self._stands, **rows}
            names = told.keys() | self._sealed.keys()
            if living is not None:
                names &= {str(route_id) for route_id in living}
            told = {route: each for route, each in told.items() if route in names}
            sealed = {route: lsn for route, lsn in self._sealed.items() if route in names}
            if told != self._stands:
                self._write(self.life, sealed, told)

    def close(self) -> None:
        """Close the file; harmless to repeat."""
        with self._lock:
            if self._page is not None:
                self._page.close()
                self._page = None

    def _write(self, life: int, sealed: dict[str, Lsn], stands: dict[str, list[list[int]]]) -> None:
        page = self._page = self._page or self._open()
        said: dict[str, object] = {"life": life, "sealed": sealed, "stands": _bounded(stands)}
        if self._paused is not None:
            said["paused"] = self._paused
        try:
            page.write(said, sync=True)
        except OSError:
            self._unsynced = page.unsynced or self._unsynced
            self.close()
            raise
        self._unsynced = 0
        self.life, self._sealed, self._stands = life, sealed, stands

    def _open(self) -> TwoSlotPage:
        return TwoSlotPage.open(
            self._fs,
            self._path,
            offset=_OFFSET_BYTES,
            slot_bytes=limits.PROGRESS_SLOT_BYTES,
            write=True,
            instead_of=self._unsynced,
        )


def _bounded(stands: Mapping[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    """Return as many routes as the page has room for; of the others less is known in need."""
    kept: dict[str, list[list[int]]] = {}
    left = limits.STANDS_TOLD_MAX_COUNT
    for route, rows in sorted(stands.items(), key=lambda item: len(item[1])):
        left -= len(rows)
        if left >= 0:
            kept[route] = rows
    return kept
