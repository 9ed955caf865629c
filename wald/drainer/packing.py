"""Packing, carried out beside delivery: a step in each round of the drainer's main thread.

Order: the new file, its directory, the ledger (T10), then the floor that ingest is told. Whatever
ends between two of them leaves a file that the next start takes in or deletes, and a log that
still holds what the file holds. Nothing here ends the process: a disk that is full or fails
leaves everything as it was, and it is tried again.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from wald import limits
from wald.config import Settings
from wald.core import packing
from wald.core.packing import Needed, PackJob, Passed, RepackPolicy, RouteStanding, Standing
from wald.core.retention import RetentionPolicy
from wald.core.state import RouteState
from wald.drainer.fill import payload_share
from wald.drainer.packed_files import PackedFiles
from wald.drainer.route import Shared
from wald.drainer.unread import Unread
from wald.errors import WaldError
from wald.model import Frontier, Lsn, PackedRange, RouteId
from wald.ports import Clock, FileSystem
from wald.storage.finished import Finished, FinishedSegments
from wald.storage.packed import delete_packed
from wald.storage.repack import PackRun, Stale

_log = logging.getLogger("wald.drain")
_NS = limits.CLOCK_NS_PER_S


@dataclass(frozen=True, slots=True)
class PackingDoors:
    """What packing works with; ``released`` says up to where ``progress`` told a route to be."""

    fs: FileSystem
    data_dir: str
    log_id: bytes
    clock: Clock
    files: PackedFiles
    released: Callable[[RouteId], Lsn] = lambda _: limits.LSN_MAX


class Packing:
    """One thread. ``step`` is cheap where there is nothing to do.

    Args:
        doors: what it works with.
        policy: when a route counts as stuck.
        retention: how long what is delivered stays.
        archive_bytes: how much of its stream a route keeps on purpose.
    """

    def __init__(
        self,
        doors: PackingDoors,
        policy: RepackPolicy,
        retention: RetentionPolicy,
        archive_bytes: Callable[[RouteState], int] = lambda _: 0,
    ) -> None:
        self._doors = doors
        self._policy = policy
        self._retention = retention
        self._archive_bytes = archive_bytes
        self._segments = FinishedSegments(doors.fs, doors.data_dir, doors.log_id)
        self._standing: Standing | None = None
        self._run: PackRun | None = None
        self._unread = Unread()
        self._pinning: dict[RouteId, tuple[int, int]] = {}  # the segment it is in, since when
        self._births: Mapping[RouteId, Lsn] = {}
        self._asked: object = None
        self._told: dict[str, Lsn] = {}
        self._passed: dict[PackedRange, float] = {}
        self._fills: dict[int, float] = {}
        self._due_ns = 0
        self._paid_ns = doors.clock.monotonic_ns()
        self._settled = True
        self.trouble = ""
        self.made = 0
        self._log_bytes = 0
        self._pinned: Mapping[str, int] = {}  # what the worst routes keep on disk

    @property
    def is_due(self) -> bool:
        """Whether a step would do anything: a file is being made, or it is time to look."""
        return self._run is not None or self.will_look

    @property
    def will_look(self) -> bool:
        """Whether the next step looks at routes and segments."""
        return self._run is None and self._doors.clock.monotonic_ns() >= self._due_ns

    def step(
        self,
        frontier: Frontier,
        routes: Mapping[RouteId, RouteState],
        checkpoints: Mapping[RouteId, Lsn],
        resting: Collection[RouteId],
    ) -> None:
        """Do what is due, no more than a step of it.

        Args:
            frontier: the newest.
            routes: those that live.
            checkpoints: up to where each is finished, durable.
            resting: those that nobody expects to go on by themselves; only asked for by a look.
        """
        if not self.is_due:
            return
        now_ns = self._doors.clock.monotonic_ns()
        try:
            if self._run is None:
                self._plan(frontier, routes, checkpoints, resting, now_ns)
            if self._run is not None:
                self._go_on(self._run, now_ns)
            self.trouble = ""
        except Exception as error:  # noqa: BLE001 - delivery goes on, whatever packing meets
            self._fail(error, now_ns)

    def floors(self, checkpoints: Mapping[str, Lsn]) -> dict[str, Lsn]:
        """Return what ingest is told of routes beside their checkpoints, as ``progress`` has both.

        Of a route that was not looked at yet nothing: its checkpoint stands for itself.
        """
        if self._standing is None:
            return {}
        asked = (self._standing, self._doors.files.all, checkpoints)
        if asked == self._asked:
            return self._told
        told = [
            route._replace(
                checkpoint=checkpoints.get(str(route.route_id), self._births[route.route_id])
            )
            for route in self._standing.routes
        ]
        floors = packing.floors(replace(self._now(self._standing), routes=told))
        self._asked = (*asked[:2], dict(checkpoints))
        self._told = {str(route_id): lsn for route_id, lsn in floors.items()}
        return self._told

    def close(self) -> None:
        """Give up a file that is being made; harmless to repeat."""
        if self._run is not None:
            self._run.abandon()
            self._run = None

    # --- what to do -----------------------------------------------------------------------------

    def _plan(
        self,
        frontier: Frontier,
        routes: Mapping[RouteId, RouteState],
        checkpoints: Mapping[RouteId, Lsn],
        resting: Collection[RouteId],
        now_ns: int,
    ) -> None:
        self._due_ns = now_ns + round(limits.PACK_EVERY_S * _NS)
        doors = self._doors
        if not self._settled:
            doors.files.settle(doors.fs, doors.data_dir, doors.log_id)
            self._settled = True
        finished = self._segments.find(frontier)
        self._log_bytes = finished.log_bytes
        needed = Needed(finished.segments)
        stand = [
            self._route(route, checkpoints, resting, needed, now_ns) for route in routes.values()
        ]
        self._births = {route.route_id: route.birth_lsn for route in routes.values()}
        self._standing = Standing(
            finished.segments,
            stand,
            doors.files.all,
            frontier.lsn,
            self._fills_of(finished, stand),
            finished.complete,
        )
        self._delete(now_ns / _NS)
        now = self._now(self._standing)
        pinned = {
            routes[route_id].name: size_bytes
            for route_id, size_bytes in packing.pinned_bytes(now).items()
        }
        worst = sorted(pinned, key=lambda name: (-pinned[name], name))
        self._pinned = {
            name: pinned[name] for name in worst[: limits.PINNING_ROUTES_MAX] if pinned[name]
        }
        job = packing.next_job(now, self._policy)
        if job is not None:
            self._begin(job, frontier)

    def _now(self, standing: Standing) -> Standing:
        """Return what was seen last, with the packed files of this moment."""
        return replace(standing, files=self._doors.files.all)

    def _route(
        self,
        route: RouteState,
        checkpoints: Mapping[RouteId, Lsn],
        resting: Collection[RouteId],
        needed: Needed,
        now_ns: int,
    ) -> RouteStanding:
        number = route.route_id
        checkpoint = checkpoints.get(number, route.birth_lsn)
        first = needed.first(checkpoint)
        needs = first.number if first is not None else 0
        before, since_ns = self._pinning.get(number, (0, now_ns))
        if needs != before or not needs:
            since_ns = now_ns
        self._pinning[number] = (needs, since_ns)
        return RouteStanding(
            number,
            route.stream_id,
            checkpoint,
            number in resting,
            (now_ns - since_ns) / _NS,
            self._archive_bytes(route),
        )

    def _fills_of(self, finished: Finished, stand: Sequence[RouteStanding]) -> Mapping[int, float]:
        """Measure the oldest segment that somebody waits for; one at a time, once."""
        numbers = {segment.number for segment in finished.segments}
        self._fills = {number: share for number, share in self._fills.items() if number in numbers}
        waiting = [each for each in stand if each.pinning_s >= limits.PACK_POOR_AFTER_S]
        oldest = min((self._pinning[each.route_id][0] for each in waiting), default=0)
        if oldest and oldest not in self._fills:
            doors = self._doors
            self._fills[oldest] = payload_share(doors.fs, doors.data_dir, doors.log_id, oldest)
        return self._fills

    # --- making a file --------------------------------------------------------------------------

    def _begin(self, job: PackJob, frontier: Frontier) -> None:
        doors = self._doors
        self._run = PackRun(
            self._unread.files(doors.fs),  # what is packed as lost is gone with its segment
            doors.data_dir,
            doors.log_id,
            job,
            files=partial(doors.files.of, job.stream_id),
            frontier=frontier,
            created_ns=doors.clock.wall_ns(),
        )
        self._paid_ns = doors.clock.monotonic_ns()

    def _go_on(self, run: PackRun, now_ns: int) -> None:
        due = (now_ns - self._paid_ns) * limits.PACK_BYTES_PER_S // _NS
        if due <= 0:
            return
        self._paid_ns = now_ns
        try:
            made = run.step(min(due, limits.PACK_STEP_BYTES))
        except Stale:
            self.close()
            return
        if made is None:
            return
        self._run = None
        self._due_ns = 0  # there may be more
        self._take_in(run.job, made)

    def _take_in(self, job: PackJob, made: PackedRange) -> None:
        """The file is durable: tell the ledger, then the lanes, then delete what it replaces."""
        doors = self._doors
        doors.files.change(job.takes_in, [made])  # COMMIT POINT: T10
        self.made += 1
        _log.info(
            "packed%s: stream %d, LSN %d to %d: %d records in %d bytes",
            " for the archive" if made.archive else "",
            made.stream_id, made.lo + 1, made.hi, made.records, made.size_bytes,
        )  # fmt: skip
        for old in job.takes_in:
            delete_packed(doors.fs, doors.data_dir, old)

    def _delete(self, now_s: float) -> None:
        """Delete what every route has passed, long enough ago, and as it was told.

        What is deleted before that is told would be taken for damage by a lane that has to go back.
        """
        assert self._standing is not None
        doors = self._doors
        routes = [
            route._replace(checkpoint=min(route.checkpoint, doors.released(route.route_id)))
            for route in self._standing.routes
        ]
        self._passed = {
            file: self._passed.get(file, now_s)
            for file in doors.files.all
            if packing.is_passed(file, routes)
        }
        rows = [Passed(file, since_s) for file, since_s in self._passed.items()]
        gone = packing.deletable(
            rows,
            now_s,
            after_s=self._retention.after_delivery_s,
            after_bytes=self._retention.after_delivery_bytes,
        )
        gone += packing.beyond_the_archive(rows, doors.files.all, routes)
        if not gone:
            return
        doors.files.change(gone)  # COMMIT POINT: T10
        for file in gone:
            delete_packed(doors.fs, doors.data_dir, file)

    def _fail(self, error: Exception, now_ns: int) -> None:
        """Leave all as it was, say so once, and try again later."""
        expected = isinstance(error, OSError | WaldError)
        text = error.message if isinstance(error, WaldError) else str(error)
        text = text if expected else repr(error)
        if text != self.trouble:
            _log.warning("packing: %s", text, exc_info=None if expected else error)
        self.trouble = text
        self._settled = False  # a file may have got its name before the failure
        self._due_ns = now_ns + round(limits.RETRY_CAP_S * _NS)
        try:
            self.close()
        except OSError:
            self._run = None  # what is left of it is deleted when all is settled

    # --- figures --------------------------------------------------------------------------------

    def figures(self) -> dict[str, Any]:
        """Return what packing says of the disk: bytes of log, packed files and archive.

        ``pinned`` names the routes that keep most of it, with their bytes.
        """
        files = self._doors.files.all
        return {
            "log_bytes": self._log_bytes,
            "packed_bytes": sum(file.size_bytes for file in files if not file.archive),
            "archive_bytes": sum(file.size_bytes for file in files if file.archive),
            "packed_files": len(files),
            "pinned": dict(self._pinned),
            "trouble": self.trouble,
        }


_RESTING = frozenset({"orphan", "dropped", "parked", "paused", "halted"})


def resting(figures: Mapping[str, Mapping[str, Any]]) -> set[RouteId]:
    """Return the routes that nobody expects to go on by themselves, by what they publish."""
    return {
        row["route_id"]
        for row in figures.values()
        if row["state"] in _RESTING or row["parked"] is not None
    }


def open_packing(settings: Settings, shared: Shared) -> Packing:
    """Return what packs the log of a drainer, by its settings."""
    doors = PackingDoors(
        shared.fs, shared.data_dir, shared.log_id, shared.clock, shared.packed, shared.released
    )

    def archive_bytes(route: RouteState) -> int:
        known = settings.routes.get(route.name)
        return known.archive_bytes if known is not None else 0

    return Packing(
        doors,
        RepackPolicy(settings.repack_after_s, settings.repack_after_bytes),
        RetentionPolicy(settings.retain_after_delivery_s, settings.retain_after_delivery_bytes),
        archive_bytes,
    )
