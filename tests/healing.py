"""A route over a real log, a real ledger and a real SQLite file, which are copied and put back."""

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.backlog import CLOCK, FS, OWNER, Backlog, Impatient, end, eventually
from wald.drainer.fleet import Fleet
from wald.drainer.route import Shared
from wald.model import Attempt, DeadLetter, LaneKey, Outcome, Unknown
from wald.ports import Sink
from wald.sinks.sqlite import make as make_sqlite
from wald.storage.lmdb_store import open_ledger
from wald.storage.log import Log, LogOptions
from wald.storage.owner import load_owner


class LateSink:
    """Passes everything on, one call at a time, while nobody exchanges the files of the target.

    An attempt that is told to be late is not answered, and waits.
    """

    def __init__(self, inner: Sink, site: "Site") -> None:
        self._inner = inner
        self._site = site

    def __getattr__(self, name: str) -> Any:
        with self._site.calling:
            found = getattr(self._inner, name)

        def call(*arguments: Any) -> Any:
            with self._site.calling:
                return found(*arguments)

        return call if callable(found) else found

    def deliver(self, attempt: Attempt) -> Outcome:
        with self._site.calling:
            if self._site.delayed > 0 or self._site.delays(attempt):
                self._site.delayed -= 1
                self._site.late.append(attempt)
                return Unknown("no answer in time")
            return self._inner.deliver(attempt)


class Site:
    """One route to one SQLite file."""

    def __init__(self, place: Path, *, options: LogOptions | None = None, **route: Any) -> None:
        self.place = place
        self.backlog = Backlog(place, "events", batch=4, options=options)
        settings = self.backlog.settings
        routes = {"events": replace(settings.routes["events"], **route)}
        self.backlog.settings = replace(settings, routes=routes)
        self.database = place / "target.db"
        self.owner = OWNER
        self.released = 0
        self.lsns: list[int] = []
        self.delayed = 0  # so many attempts are not answered
        self.delays: Callable[[Attempt], bool] = lambda _: False
        self.late: list[Attempt] = []
        self.calling = threading.RLock()  # held by who calls the target, or exchanges its files
        self.fleet: Fleet | None = None

    @property
    def key(self) -> LaneKey:
        return LaneKey(self.backlog.log.log_id, 1, 0, 0)

    def append(self, count: int) -> None:
        for _ in range(count):
            self.lsns += self.backlog.append(b"%05d" % len(self.lsns))
        if self.fleet is not None:
            self.fleet.shared.board.pin(self.backlog.log.frontier)
            self.fleet.flush(self.lsns[-1])

    # --- the drainer ----------------------------------------------------------------------------

    def sink(self) -> Sink:
        return make_sqlite("events", "events", {"path": str(self.database)})

    @contextmanager
    def delivering(self) -> Iterator[Fleet]:
        """Lanes at work over the ledger as it is on the disk."""
        ledger = open_ledger(FS, self.backlog.data_dir, self.backlog.log.log_id)
        make: Any = lambda *_: LateSink(self.sink(), self)  # noqa: E731
        shared = self.backlog.shared(make, ledger=ledger, owner=self.owner)
        shared = replace(shared, released=lambda _: self.released)
        self.fleet = self.backlog.fleet(shared)
        try:
            yield self.fleet
        finally:
            fleet, self.fleet = self.fleet, None
            end(fleet)
            shared.dead_log.close()
            ledger.close()

    def figures(self) -> dict[str, Any]:
        assert self.fleet is not None
        return self.fleet.figures()["events"]

    @property
    def shared(self) -> Shared:
        assert self.fleet is not None
        return self.fleet.shared

    def letters(self) -> list[DeadLetter]:
        return list(self.shared.ledger.dead_letters(1))

    def wait_parked(self, code: str) -> None:
        eventually(lambda: self.figures()["parked"] == code, self.figures)

    def wait_whole(self, *aside: int) -> None:
        """Wait until the target holds every record once, but for some, and the books say so."""
        wanted = [(lsn,) for lsn in self.lsns if lsn not in aside]

        def whole() -> bool:
            figures = self.figures()
            return (
                sorted(self.held()) == wanted
                and figures["state"] == "idle"
                and figures["through_lsn"] >= self.lsns[-1]
                and figures["delivered"] == len(wanted)
                and figures["dead_letters"] + figures["purged"] == len(aside)
            )

        eventually(whole, lambda: (self.figures(), self.held()))

    # --- copies ---------------------------------------------------------------------------------

    def held(self) -> list[tuple[int]]:
        """What the target holds, in the order in which it came."""
        with closing(sqlite3.connect(self.database)) as reading:
            try:
                return reading.execute("SELECT lsn FROM events ORDER BY rowid").fetchall()
            except sqlite3.OperationalError:
                return []

    def copy_target(self, name: str = "backup") -> Path:
        """Copy the database file, and the log of it that is not in it yet."""
        backup = self.place / name
        shutil.rmtree(backup, ignore_errors=True)
        backup.mkdir()
        with self.calling:
            for path in self.place.glob("target.db*"):
                if not path.name.endswith("-shm"):
                    shutil.copy(path, backup)
        return backup

    def restore_target(self, backup: Path) -> None:
        """Put a copy in the place of the file, while lanes have it open.

        Not inside a call, as a person who does it waits for the application to come to rest:
        SQLite maps one of the files, and under who is connecting it dies or never returns.
        """
        with self.calling:
            for path in self.place.glob("target.db*"):
                path.unlink()
            for path in backup.iterdir():
                shutil.copy(path, self.place)

    def refuse(self, *lsns: int) -> None:
        """Let the target refuse records for good; with none it takes everything."""
        with closing(sqlite3.connect(self.database, isolation_level=None)) as writing:
            writing.execute("CREATE TABLE IF NOT EXISTS refused (lsn INTEGER)")
            writing.execute(
                "CREATE TRIGGER IF NOT EXISTS refusing BEFORE INSERT ON events "
                "WHEN NEW.lsn IN (SELECT lsn FROM refused) "
                "BEGIN SELECT RAISE(ABORT, 'not here'); END"
            )
            writing.execute("DELETE FROM refused")
            writing.executemany("INSERT INTO refused VALUES (?)", [(lsn,) for lsn in lsns])

    def redrive(self, *lsns: int) -> None:
        self.shared.ledger.ask_redrive(1, lsns, "", 0)
        self._look_again()

    def purge(self, *lsns: int) -> None:
        self.shared.ledger.purge(1, lsns, 0)
        self._look_again()

    def _look_again(self) -> None:
        assert self.fleet is not None
        for lane in self.fleet.each_lane():
            lane.look_again()

    def copy_ledger(self) -> Path:
        backup = self.place / "ledger.backup"
        shutil.copytree(Path(self.backlog.data_dir) / "ledger", backup)
        return backup

    def restore_ledger(self, backup: Path) -> None:
        ledger = Path(self.backlog.data_dir) / "ledger"
        shutil.rmtree(ledger)
        shutil.copytree(backup, ledger)

    def land(self) -> list[Outcome]:
        """Let the attempts that were not answered arrive."""
        sink = self.sink()
        try:
            return [sink.deliver(attempt) for attempt in self.late]
        finally:
            self.late.clear()
            sink.close()

    @contextmanager
    def under_load(self, *, often_s: float = 0.002) -> Iterator[None]:
        """Append all the while."""
        over = threading.Event()

        def load() -> None:
            while not over.wait(often_s):
                self.append(1)

        thread = threading.Thread(target=load)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def copied(self) -> "Site":
        """Return a second host with a copy of the whole data directory, and the same target."""
        other, backlog = copy(self), copy(self.backlog)
        backlog.data_dir = f"{self.backlog.data_dir}.copy"
        shutil.copytree(self.backlog.data_dir, backlog.data_dir)
        backlog.chance = Impatient(12)
        backlog.log = Log.open(FS, backlog.data_dir, CLOCK, backlog.chance, LogOptions())
        self.backlog.at_close(backlog.log.close)
        backlog.settings = replace(backlog.settings, data_dir=backlog.data_dir)
        other.backlog, other.lsns, other.late = backlog, list(self.lsns), []
        other.owner = load_owner(FS, backlog.data_dir, backlog.chance).value
        return other

    def close(self) -> None:
        self.backlog.close()
