"""What a drainer begins with: its doors, the lock, the ledger, what all lanes share."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from wald import limits
from wald.config import Settings
from wald.drainer.frontier import FrontierBoard
from wald.drainer.packed_files import PackedFiles
from wald.drainer.recalling import begin_life, noticed_ns
from wald.drainer.released import ProgressPage
from wald.drainer.route import MakeSink, Shared
from wald.errors import DataDirectoryHeld, DataDirectoryUnusable, LedgerDamaged, LedgerFailed
from wald.model import Lsn
from wald.ports import Chance, Clock, File, FileSystem
from wald.storage import identity
from wald.storage.batches import FrozenFiles, open_revisions
from wald.storage.deadlog import DeadLog
from wald.storage.directory import unusable
from wald.storage.inspect import inspect_log
from wald.storage.ledger import StoreLedger
from wald.storage.ledger_aside import set_aside
from wald.storage.lmdb_store import open_ledger
from wald.storage.owner import load_owner
from wald.storage.packed_index import PackedIndex

_log = logging.getLogger("wald.drain")
_LOCK = "ledger.lock"
_POLL_S = 0.05
_NS = limits.CLOCK_NS_PER_S

OpenLedger: TypeAlias = Callable[[FileSystem, str, bytes], StoreLedger]


@dataclass(frozen=True, slots=True)
class Doors:
    """What the process was given."""

    settings: Settings
    make_sink: MakeSink
    fs: FileSystem
    clock: Clock
    chance: Chance
    open_ledger: OpenLedger = open_ledger

    def path(self, name: str) -> str:
        """Return where a file of the data directory lies."""
        return f"{self.settings.data_dir}/{name}"


def open_shared(
    doors: Doors,
    log_id: bytes,
    board: FrontierBoard,
    count_streams: Callable[[], int],
    progress: ProgressPage,
    stack: ExitStack,
) -> Shared:
    """Open ledger and dead log; ``stack`` closes them.

    Raises:
        WaldError: ledger or directory cannot be used.
    """
    data_dir = doors.settings.data_dir
    owner = load_owner(doors.fs, data_dir, doors.chance)
    if owner.moved:
        _log.error("the data directory was moved or copied: its lanes are parked as diverged")
    ledger = whole_ledger(doors.fs, data_dir, log_id, doors.open_ledger)
    stack.callback(ledger.close)
    FrozenFiles(doors.fs, data_dir).sweep(open_revisions(ledger))
    dead_log = DeadLog(doors.fs, data_dir)
    stack.callback(dead_log.close)
    through = partial(_end_of_log, doors.fs, data_dir, board)
    told = begin_life(
        ledger, dead_log, progress.stands, progress.all_released(), through, doors.chance
    )
    packed = PackedFiles(PackedIndex(ledger.store))
    try:
        packed.settle(doors.fs, data_dir, log_id)  # before a lane takes for lost what is packed
    except OSError as error:
        msg = f"the packed files cannot be read: {error.strerror}"
        raise LedgerFailed(msg, path=data_dir) from error
    return Shared(
        doors.fs,
        data_dir,
        log_id,
        owner.value,
        doors.clock,
        doors.chance,
        ledger,
        dead_log,
        board,
        doors.make_sink,
        count_streams,
        progress.released,
        told_layouts=progress.told_layouts,
        tell_layouts=progress.tell_layouts,
        told=told,
        went_back_ns=noticed_ns(ledger, told, doors.clock.wall_ns()),
        reserve=progress.stands.reserve,
        tell_paused=progress.stands.hold,
        packed=packed,
        trace_sample=doors.settings.trace_sample,
    )


def _end_of_log(fs: FileSystem, data_dir: str, board: FrontierBoard) -> Lsn:
    """Return an LSN above which nothing was delivered.

    A hint does not say it: it is not flushed, and behind a power cut it may be older.
    """
    frontier, report = board.current(), inspect_log(fs, data_dir)
    return max(report.end_lsn, report.hint_lsn, frontier.lsn if frontier else 0)


def whole_ledger(
    fs: FileSystem, data_dir: str, log_id: bytes, opened: OpenLedger = open_ledger
) -> StoreLedger:
    """Open the ledger; one that is damaged is set aside, and a new one begins."""
    try:
        return opened(fs, data_dir, log_id)
    except LedgerDamaged as error:
        try:
            name = set_aside(fs, data_dir)
        except OSError:
            raise error from None
        _log.error("%s; it is kept as %s, and made anew from log and targets", error.message, name)
        return opened(fs, data_dir, log_id)


@contextlib.contextmanager
def locked(doors: Doors) -> Iterator[None]:
    """Hold ``ledger.lock``; an orphan that finishes an attempt is waited for.

    What the system refuses within is raised as ours: LedgerFailed, StartFailed, DiskFull. None of
    them is final: delivery waits, and what acknowledges goes on.
    """
    try:
        with closing(_lock_file(doors)) as file:
            _wait_for(doors, file)
            yield
    except OSError as error:
        said = unusable(doors.settings.data_dir, error)
        if isinstance(said, DataDirectoryUnusable):
            raise LedgerFailed(said.message, hint=said.hint, path=error.filename) from error
        raise said from error


def _lock_file(doors: Doors) -> File:
    path = doors.path(_LOCK)
    try:
        return doors.fs.open(path, write=True)
    except FileNotFoundError:
        return doors.fs.create(path)


def _wait_for(doors: Doors, file: File) -> None:
    end_ns = doors.clock.monotonic_ns() + round(limits.LOCK_WAIT_S * _NS)
    while not file.lock():
        if doors.clock.monotonic_ns() >= end_ns:
            path = doors.path(_LOCK)
            msg = f"{path}: another drainer holds it"
            raise DataDirectoryHeld(msg, hint="stop the daemon first", path=path)
        doors.clock.sleep(_POLL_S)


def wait_for_log_id(doors: Doors, stop: threading.Event) -> bytes | None:
    """Return the log's id, made by ingest at the first start; None if told to stop."""
    while True:
        known = identity.read(doors.fs, doors.settings.data_dir)
        if known is not None:
            return known.log_id
        if stop.wait(_POLL_S):
            return None
