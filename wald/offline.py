"""Commands that open the data directory themselves, where no daemon holds it.

Each composes what a process of the daemon is made of, takes the lock that this process would take,
and gives it back. While a daemon runs its lock is found held, and the command asks the daemon.
"""

import logging
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from wald.app import calm_garbage_collector, make_sink
from wald.config import Settings
from wald.errors import DataDirectoryHeld, DataDirectoryUnusable, FormatDamaged
from wald.model import Record
from wald.ports import File, FileSystem, Ledger
from wald.system import PosixFileSystem, SystemClock

if TYPE_CHECKING:
    from wald.drainer.batch_desk import BatchDesk
    from wald.drainer.letter_desk import LetterDesk
    from wald.drainer.range_replay import Asked
    from wald.drainer.route_offline import OfflineRoutes
    from wald.drainer.tail_desk import TailDesk
    from wald.drainer.where import Sources, Where
    from wald.storage.log import Log

_log = logging.getLogger("wald")
_AS_THE_USER = "run the command as the user of the daemon: sudo -u USER wald ..."


def replay(settings: Settings, patience_s: float) -> dict[str, Any]:
    """Deliver what is pending with no daemon; return the books of the routes.

    Raises:
        DataDirectoryHeld: a daemon, or what is left of one, holds a lock.
        WaldError: the directory cannot be used.
    """
    from wald.drainer.replay import replay as deliver

    calm_garbage_collector()
    fs, clock, chance = PosixFileSystem(), SystemClock(), random.SystemRandom()
    with _log_alone(settings, fs, clock, chance) as log:
        return deliver(
            settings,
            log,
            make_sink=make_sink,
            fs=fs,
            clock=clock,
            chance=chance,
            patience_s=patience_s,
        )


def replay_range(
    settings: Settings,
    asked: "Asked",
    patience_s: float,
    on_progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Deliver a past range again with no daemon; return what came of it.

    Raises:
        DataDirectoryHeld: a daemon, or what is left of one, holds a lock.
        WaldError: as ``wald.drainer.range_replay.replay_range``.
    """
    from wald.drainer import range_replay

    calm_garbage_collector()
    fs, clock, chance = PosixFileSystem(), SystemClock(), random.SystemRandom()
    with _log_alone(settings, fs, clock, chance) as log:
        return range_replay.replay_range(
            settings,
            log,
            asked,
            make_sink=make_sink,
            fs=fs,
            clock=clock,
            chance=chance,
            patience_s=patience_s,
            on_progress=on_progress,
        )


@contextmanager
def _log_alone(
    settings: Settings, fs: FileSystem, clock: SystemClock, chance: random.Random
) -> Iterator["Log"]:
    """Open the log of a data directory that no daemon uses, and recover it."""
    from wald.ingest.streams import dedup_policies
    from wald.storage.log import Log, LogOptions
    from wald.supervisor.claim import claim_data_directory

    if fs.stat(settings.data_dir) is None:
        msg = f"there is no data directory {settings.data_dir}"
        raise DataDirectoryUnusable(msg, hint="name it with --data-dir, or in the configuration")
    serve_lock = claim_data_directory(fs, settings.data_dir, pid=os.getpid())
    try:
        options = LogOptions(
            segment_bytes=settings.segment_bytes,
            retain_after_delivery_s=settings.retain_after_delivery_s,
            retain_after_delivery_bytes=settings.retain_after_delivery_bytes,
            dedup=dedup_policies(settings),
        )
        log = Log.open(fs, settings.data_dir, clock, chance, options)
        for line in (*log.recovery.alarms(), *log.recovery.notes):
            _log.error("%s", line)
        try:
            yield log
        finally:
            log.close()
    finally:
        serve_lock.close()


def salvage(data_dir: str) -> Sequence[str]:
    """Do about damage what a start does, and deliver nothing; return what was done, a line each.

    Raises:
        DataDirectoryHeld: a daemon, or what is left of one, holds a lock.
        WaldError: the directory cannot be used.
    """
    from wald.drainer.opening import whole_ledger
    from wald.storage.notices import unseen

    fs, clock, chance = PosixFileSystem(), SystemClock(), random.SystemRandom()
    before = set(unseen(fs, data_dir)) if fs.stat(data_dir) else set()
    settings = Settings(data_dir=data_dir, socket="")
    with _log_alone(settings, fs, clock, chance) as log:
        done = [*log.recovery.alarms(), *log.recovery.notes]
        if fs.stat(f"{data_dir}/ledger") is not None:
            with closing(_ledger_lock(fs, data_dir)):
                whole_ledger(fs, data_dir, log.log_id).close()
    return [*done, *(f"see {path}" for path in unseen(fs, data_dir) if path not in before)]


@contextmanager
def dead_letter_desk(data_dir: str) -> Iterator["LetterDesk"]:
    """Open the dead letters of a data directory that no daemon uses, to be asked as a daemon is.

    Raises:
        DataDirectoryHeld: a drainer holds the ledger: ask the daemon.
        DataDirectoryUnusable: there is no data directory, or nothing was delivered from it yet.
        WaldError: the ledger cannot be read.
    """
    from wald.drainer.letter_desk import LetterDesk
    from wald.storage.deadlog import DeadLog

    fs = PosixFileSystem()
    with _ledger_alone(fs, data_dir) as (ledger, _), closing(DeadLog(fs, data_dir)) as dead_log:
        yield LetterDesk(ledger, dead_log, SystemClock(), random.SystemRandom(), ledger.births)


@contextmanager
def batch_desk(data_dir: str) -> Iterator["BatchDesk"]:
    """Open the batches of a data directory that no daemon uses; raises as ``dead_letter_desk``."""
    from wald.drainer.batch_desk import BatchDesk

    with _ledger_alone(PosixFileSystem(), data_dir) as (ledger, _):
        yield BatchDesk(ledger, ledger.births)


@contextmanager
def route_desk(data_dir: str) -> Iterator["OfflineRoutes"]:
    """Open the routes of a data directory that no daemon uses, to be asked as a daemon is.

    Raises:
        DataDirectoryHeld, DataDirectoryUnusable, WaldError: as ``dead_letter_desk``.
    """
    from wald.drainer.route_offline import OfflineRoutes
    from wald.supervisor.observe import build_status, read_figures

    fs, clock = PosixFileSystem(), SystemClock()

    def figures() -> dict[str, Any]:
        return build_status(read_figures(fs, data_dir), {}, clock.wall_ns())

    with _ledger_alone(fs, data_dir) as (ledger, _):
        yield OfflineRoutes(fs, data_dir, ledger, clock, figures, random.SystemRandom())


@contextmanager
def where_desk(data_dir: str) -> Iterator["Where"]:
    """Open a data directory that no daemon uses, to be asked where records are.

    Raises:
        DataDirectoryHeld, DataDirectoryUnusable, WaldError: as ``dead_letter_desk``.
    """
    from wald.drainer.where import Where

    with _sources(data_dir) as sources:
        yield Where(sources)


@contextmanager
def tail_desk(data_dir: str) -> Iterator["TailDesk"]:
    """Open a data directory that no daemon uses, to be asked what its streams hold.

    Raises:
        DataDirectoryHeld, DataDirectoryUnusable, WaldError: as ``dead_letter_desk``.
    """
    from wald.drainer.tail_desk import TailDesk

    with _sources(data_dir) as sources:
        yield TailDesk(sources)


@contextmanager
def _sources(data_dir: str) -> Iterator["Sources"]:
    from wald.drainer.frontier import read_hint
    from wald.drainer.views import views_of_ledger
    from wald.drainer.where import Sources

    fs = PosixFileSystem()
    with _ledger_alone(fs, data_dir) as (ledger, log_id):
        views = views_of_ledger(ledger, log_id)
        streams = {view.birth.stream_id: view.birth.stream for view in views}
        hint = read_hint(fs, data_dir)
        yield Sources(
            fs, data_dir, log_id, SystemClock(), ledger,
            lambda: views, lambda: streams, lambda _: hint,
        )  # fmt: skip


@contextmanager
def _ledger_alone(fs: FileSystem, data_dir: str) -> Iterator[tuple[Ledger, bytes]]:
    """Hold the ledger of a data directory that no daemon uses; yields the log's id with it."""
    from wald.storage import directory, identity
    from wald.storage.lmdb_store import open_ledger

    try:
        directory.check(fs, data_dir)
        known = identity.required(fs, data_dir)
        if fs.stat(f"{data_dir}/ledger") is None:
            msg = f"{data_dir} has no ledger: nothing was delivered from it yet"
            raise DataDirectoryUnusable(msg, hint="'wald log inspect' shows what its log holds")
        lock = _ledger_lock(fs, data_dir)
    except OSError as error:
        msg = f"{data_dir}: {error.strerror}"
        hint = _AS_THE_USER if isinstance(error, PermissionError) else ""
        raise DataDirectoryUnusable(msg, hint=hint) from error
    try:
        ledger = open_ledger(fs, data_dir, known.log_id)
        try:
            yield ledger, known.log_id
        finally:
            ledger.close()
    finally:
        lock.close()


def _ledger_lock(fs: FileSystem, data_dir: str) -> File:
    lock = fs.open(f"{data_dir}/ledger.lock", write=True)
    if lock.lock():
        return lock
    lock.close()
    msg = f"{data_dir}: a drainer holds the ledger"
    raise DataDirectoryHeld(msg, hint="ask its daemon: leave --data-dir out")


def dead_letter_body(data_dir: str, file: int, offset: int, lsn: int) -> Record:
    """Read the record of a dead letter out of the dead log; entries never change, no lock is taken.

    Raises:
        FormatDamaged: it is not there, or not whole.
        DataDirectoryUnusable: this user may not read it.
    """
    from wald.storage.deadlog import DeadLog, DeadPlace

    try:
        entry = DeadLog(PosixFileSystem(), data_dir).read(DeadPlace(file, offset))
    except PermissionError as error:
        msg = f"{data_dir}/dead: {error.strerror}"
        raise DataDirectoryUnusable(msg, hint=_AS_THE_USER) from error
    for record in entry.excluded:
        if record.lsn == lsn:
            return record
    msg = f"the dead log's file {file} does not hold LSN {lsn} at offset {offset}"
    raise FormatDamaged(msg, file=file, offset=offset)
