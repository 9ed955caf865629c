"""A route that starts with the oldest record: nothing that is retained is left out."""

import sqlite3
from pathlib import Path
from random import Random

from tests.logtools import append, open_log, records_on_disk
from wald.app import make_sink
from wald.config import RouteSettings, Settings, SinkSettings
from wald.core.state import session_issued
from wald.drainer.replay import replay
from wald.ingest.server import _agree_with_settings
from wald.storage.log import Log
from wald.system import PosixFileSystem, SystemClock

CLOCK = SystemClock()


def settings(place: Path, *routes: str) -> Settings:
    return Settings(
        str(place / "data"),
        str(place / "s"),
        sinks={n: SinkSettings(n, "sqlite", {"path": str(place / f"{n}.db")}) for n in routes},
        routes={n: RouteSettings(n, "orders", n, start="oldest") for n in routes},
    )


def opened(place: Path) -> Log:
    return open_log(PosixFileSystem(), data_dir=str(place / "data"), clock=CLOCK, chance=Random(2))


def deliver(told: Settings, log: Log) -> dict[str, dict[str, int]]:
    fs = PosixFileSystem()
    done = replay(
        told, log, make_sink=make_sink, fs=fs, clock=CLOCK, chance=Random(3), patience_s=5
    )
    routes: dict[str, dict[str, int]] = done["routes"]
    return routes


def test_the_group_that_an_unclean_start_copied_is_among_the_oldest(tmp_path: Path) -> None:
    place, fs = tmp_path, PosixFileSystem()
    log = opened(place)
    _agree_with_settings(log, settings(place, "a"), fs)
    log.append_group([session_issued(7, "p")])
    for sequence in (1, 2, 3):
        log.append_group([append(sequence, b"v%d" % sequence)])
    log._failed = True
    log.close()  # as a kill leaves it: no idle-close
    log = opened(place)
    assert not log.recovery.clean
    log.append_group([append(4, b"v4")])
    done = deliver(settings(place, "a"), log)
    log.retire({1: done["a"]["through_lsn"]})
    log.close()
    log = opened(place)
    both = settings(place, "a", "b")
    _agree_with_settings(log, both, fs)
    kept = records_on_disk(fs, log.log_id, log.frontier, str(place / "data"))
    done = deliver(both, log)
    log.close()
    database = sqlite3.connect(place / "b.db")
    got = {lsn for (lsn,) in database.execute("select lsn from orders")}
    database.close()
    assert got >= set(kept)
    assert (done["b"]["pending"], done["b"]["dead_letters"]) == (0, 0)
