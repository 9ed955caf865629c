"""What ingest tells the other processes of itself, and hears from the drainer, over pages."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict

from wald import limits
from wald.core.frame import BlockKind, SegmentKind
from wald.core.state import LogState
from wald.errors import FormatDamaged
from wald.ingest.catalogue import Held, Oldest
from wald.ingest.quotas import Quotas
from wald.model import Lsn, RouteId
from wald.ports import FileSystem
from wald.storage.log import Log
from wald.storage.progress import TwoSlotPage
from wald.storage.segment import BlockReader, read_header, segment_number
from wald.storage.start import RecoveryReport

_log = logging.getLogger("wald.ingest")

PROGRESS_SLOT_BYTES = limits.PROGRESS_SLOT_BYTES


class Figures:
    """The figures page: how many, how far, refused why; written seldom, read by anybody."""

    def __init__(
        self, fs: FileSystem, data_dir: str, log: Log, *, pid: int, started_ns: int
    ) -> None:
        self._log = log
        self._unwritten = False
        self._about: dict[str, object] = {
            "pid": pid,
            "log_id": log.log_id.hex(),
            "started_ns": started_ns,
            "recovery": _about_recovery(log.recovery),
        }
        self._page = TwoSlotPage.open(
            fs,
            f"{data_dir}/ingest.page",
            offset=limits.FIGURES_OFFSET_BYTES,
            slot_bytes=limits.FIGURES_SLOT_BYTES,
            write=True,
        )

    def write(
        self,
        *,
        groups: int,
        connections: int,
        refused: Counter[str],
        quotas: Quotas | None = None,
        duplicates: int = 0,
        no_room: Mapping[str, object] | None = None,
    ) -> None:
        """Write what is true now. A page that cannot be written is not worth a failure."""
        state = self._log.state
        statement: dict[str, object] = {
            **self._about,
            "frontier": list(self._log.frontier),
            "groups": groups,
            "connections": connections,
            "sessions": len(state.sessions),
            "refused": dict(refused),
            "duplicates": duplicates,
            "no_room": no_room,
            "dedup": _about_ids(self._log),
            "write_failures": [self._log.write_failures, self._log.last_write_failure],
            "quotas": quotas.figures() if quotas else {},
            "marks": quotas.marks() if quotas else {},
            "streams": [
                [each.stream_id, each.name, each.records, each.bytes, each.last_lsn]
                for each in state.streams.values()
            ],
            "routes": [
                [
                    each.route_id,
                    each.name,
                    each.stream_id,
                    each.sink,
                    each.birth_lsn,
                    each.birth_records,
                ]
                for each in state.routes.values()
            ],
            # what a start needs besides, to know the routes again without any snapshot
            "births": [
                [each.route_id, each.digest, each.birth_bytes] for each in state.routes.values()
            ],
        }
        try:
            self._page.write(statement, sync=False)
        except (OSError, ValueError) as error:
            if not self._unwritten:
                _log.warning("the figures cannot be written: %s", error)
            self._unwritten = True
        else:
            self._unwritten = False

    def close(self) -> None:
        """Let go of the page."""
        self._page.close()


def _about_ids(log: Log) -> dict[str, dict[str, int]]:
    """Return what is remembered of the dedup ids of streams, by name."""
    return {
        log.state.streams[stream_id].name: {
            "ids": len(ids),
            "max_ids": ids.policy.max_ids,
            "oldest_ns": ids.oldest_ns,
            "crowded_out": ids.crowded_out,
        }
        for stream_id, ids in log.ids.table
    }


class Progress:
    """Reads up to where the drainer has finished each route."""

    def __init__(self, fs: FileSystem, data_dir: str) -> None:
        self._fs = fs
        self._path = f"{data_dir}/progress"
        self._page: TwoSlotPage | None = None

    def read(self) -> dict[RouteId, Lsn]:
        """Return the checkpoints; empty while there are none."""
        return _lsns(self._said().get("routes"))

    def floors(self) -> dict[RouteId, Lsn]:
        """Return of each route below what segments may retire for its sake.

        That is its checkpoint, or more, where packed files hold what it needs.
        """
        said = self._said()
        return _lsns(said.get("routes")) | _lsns(said.get("floors"))

    def dropped(self) -> list[RouteId]:
        """Return the routes that a person gave up; their death is to be written."""
        said = self._said().get("dropped")
        return [int(route) for route in said] if isinstance(said, list) else []

    def _said(self) -> dict[str, object]:
        try:
            if self._page is None:
                self._page = TwoSlotPage.open(
                    self._fs, self._path, slot_bytes=PROGRESS_SLOT_BYTES, write=False
                )
            return self._page.read() or {}
        except OSError:
            return {}

    def close(self) -> None:
        """Let go of the page."""
        if self._page is not None:
            self._page.close()


def _lsns(said: object) -> dict[RouteId, Lsn]:
    if not isinstance(said, dict):
        return {}
    return {int(route): int(lsn) for route, lsn in said.items()}


def pending_records(fs: FileSystem, data_dir: str, state: LogState) -> dict[RouteId, int]:
    """Return how many records of each route are not known to be delivered, where there are any.

    By what the drainer said last; where it has said nothing of a route, all that was accepted.
    """
    progress = Progress(fs, data_dir)
    checkpoints = progress.read()
    progress.close()
    said = _drained(fs, data_dir)
    found = {}
    for route in state.routes.values():
        stream = state.streams.get(route.stream_id)
        if stream is None:
            continue  # damage took the snapshot that named it: the loss report says so
        accepted = stream.records - route.birth_records
        finished, through = said.get(route.route_id, (0, 0))
        through = max(through, checkpoints.get(route.route_id, 0), route.birth_lsn)
        if accepted > 0 and through < stream.last_lsn:
            found[route.route_id] = max(accepted - finished, 1)
    return found


def _drained(fs: FileSystem, data_dir: str) -> dict[RouteId, tuple[int, Lsn]]:
    """Return of each route how many records are finished, and through which LSN."""
    path = f"{data_dir}/drain.page"
    slot_bytes = limits.FIGURES_SLOT_BYTES
    try:
        page = TwoSlotPage.open(fs, path, slot_bytes=slot_bytes, write=False)
    except OSError:
        return {}
    try:
        said = (page.read() or {}).get("routes")
    except OSError:
        return {}
    finally:
        page.close()
    rows = said.values() if isinstance(said, dict) else ()
    return {
        int(row["route_id"]): (
            int(row.get("delivered", 0)) + int(row.get("dead_letters", 0)),
            int(row.get("through_lsn", 0)),
        )
        for row in rows
        if isinstance(row, dict) and "route_id" in row
    }


def oldest_retained(fs: FileSystem, data_dir: str, log: Log) -> Oldest:
    """Return the oldest point of the log: the head of its first segment that was used."""
    directory = f"{data_dir}/log"
    for name in fs.list_directory(directory):
        number = segment_number(name)
        if number is None:
            continue
        file = fs.open(f"{directory}/{name}")
        try:
            header = read_header(file).header
            if header is None or header.kind is SegmentKind.PREP:
                continue
            state = LogState()
            for block in BlockReader(file, number, log.log_id, header):
                if block.header.kind is not BlockKind.SNAPSHOT or block.payload is None:
                    break
                for section in block.sections():
                    state.apply(section, 0, 0)
        except FormatDamaged:
            continue
        finally:
            file.close()
        held = {each.stream_id: Held(each.records, each.bytes) for each in state.streams.values()}
        # not first_lsn - 1: a start that jumps copies the group in doubt below its first LSN
        return Oldest(header.pred_last_lsn, held)
    return Oldest(log.frontier.lsn, {})


def _about_recovery(report: RecoveryReport) -> object:
    """Return what a start found: no more of a long list than the page has room for."""
    said = asdict(report) | {"losses_count": len(report.losses), "alarms": report.alarms()}
    for name in ("losses", "notes"):
        said[name] = said[name][: limits.RECOVERY_LISTED_MAX]
    return _plain(said)


def _plain(value: object) -> object:
    """Return what msgpack takes: enumerations and tuples as their values and lists."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, int | float | str | bytes | None) else str(value)
