"""Dedup ids with the real daemon and the real command: a job that fires twice appends once."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.commands import call
from tests.daemon import Daemon, wait_until
from tests.doorkeeper import short_directory
from wald import connect
from wald.model import Receipt, Refused

CONFIG = """
[sinks.db]
type = "sqlite"
path = "{path}/x.db"
[routes.bills]
stream = "bills"
sink = "db"
batch = {{ max_age = "10ms" }}
[streams.bills.dedup]
window = "1d"
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as path:
        yield path


@pytest.fixture
def daemon(directory: Path) -> Iterator[Daemon]:
    with Daemon(directory, config=CONFIG.format(path=directory)) as running:
        yield running


def job(daemon: Daemon, first: int = 0, count: int = 1_200) -> dict[str, object]:
    """What cron runs: the bills of the night, each with its number."""
    lines = "".join(json.dumps({"number": at, "sum": at * 3}) + "\n" for at in range(first, count))
    done = call("append", "bills", "--dedup", "number", "--json", socket=daemon.socket, stdin=lines)
    assert done.returncode == 0, done.stderr
    said: dict[str, object] = json.loads(done.stdout)
    return said


def kill_ingest(daemon: Daemon) -> None:
    before = daemon.pids()["ingest"]
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: daemon.pids().get("ingest") not in (None, before), "ingest is back")


def test_a_cron_job_that_fires_twice_appends_once(daemon: Daemon, directory: Path):
    first = job(daemon)
    assert (first["accepted"], first["duplicates"]) == (1_200, 0)
    again = job(daemon)
    assert (again["accepted"], again["duplicates"]) == (0, 1_200)
    kill_ingest(daemon)
    again = job(daemon, 0, 1_300)  # the next night's are among them
    assert (again["accepted"], again["duplicates"]) == (100, 1_200)
    daemon.end()
    # a command that opens the log with no daemon leaves the ids where the next one finds them
    done = call("replay", *daemon.arguments[:2], *daemon.arguments[4:])
    assert done.returncode == 0, done.stderr
    daemon.start()
    again = job(daemon, 1_000, 1_301)
    assert (again["accepted"], again["duplicates"]) == (1, 300)
    daemon.command("wait", "--all")
    with closing(sqlite3.connect(directory / "x.db")) as database:
        table = "bills"
        ((rows, lsns),) = database.execute(f"SELECT count(*), count(DISTINCT lsn) FROM {table}")
    assert (rows, lsns) == (1_301, 1_301)
    said = call("status", "--json", socket=daemon.socket)
    figures = json.loads(said.stdout)
    assert figures["dedup"]["bills"]["ids"] == 1_301
    assert figures["duplicates"] == 300
    assert "bills: 1,301 dedup ids remembered since" in daemon.command("status", "-v")


def test_two_jobs_at_once_that_are_killed_and_run_again_append_each_record_once(
    daemon: Daemon, directory: Path
):
    count = 20_000
    night = directory / "night.ndjson"
    night.write_text("".join(f'{{"number": {at}}}\n' for at in range(count)))
    command = [sys.executable, "-m", "wald", "append", "bills", str(night), "--dedup", "number"]
    environment = {**os.environ, "WALD_SOCKET": str(daemon.socket)}
    kills = 0
    for _ in range(2):
        jobs = [
            subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for _ in range(2)
        ]
        while kills < 4 and goes_on(daemon, jobs[0]):
            kill_ingest(daemon)
            kills += 1
        jobs[1].kill()  # in the middle of its answers, or long done
        assert jobs[0].wait(60) == 0
        jobs[1].wait(60)
    again = job(daemon, 0, count)
    assert (again["accepted"], again["duplicates"]) == (0, count)
    daemon.command("wait", "--all")
    with closing(sqlite3.connect(directory / "x.db")) as database:
        ((rows, numbers),) = database.execute(
            "SELECT count(*), count(DISTINCT json_extract(value, '$.number')) FROM bills"
        )
    assert (rows, numbers) == (count, count)
    print(f"{kills} kills")


def goes_on(daemon: Daemon, at_work: subprocess.Popen[bytes]) -> bool:
    """Wait until something more is stored; False if the job has ended."""
    before = appended(daemon)
    wait_until(lambda: appended(daemon) > before or at_work.poll() is not None, "the job goes on")
    return at_work.poll() is None


def appended(daemon: Daemon) -> int:
    """How far the log is, as the daemon says."""
    status = daemon.ask(op="status") or {}
    return int(str(status.get("frontier_lsn", 0)))


def test_a_producer_is_told_of_which_record_its_record_is_a_duplicate(daemon: Daemon):
    with connect(str(daemon.socket)) as producer:
        first = producer.append("bills", {"n": 1}, dedup_id="n-1")
        again = producer.append("bills", {"n": 1}, dedup_id="n-1")
        assert (again.lsn, again.duplicate, first.duplicate) == (first.lsn, True, False)
        values: list[object] = [{"n": at} for at in range(50)]
        values[47] = b"x" * (2 << 20)  # the client sees this one
        results = producer.append_many("bills", values, dedup_ids=[f"n-{at}" for at in range(50)])
        assert [each.index for each in results.refused] == [47]
        assert [at for at, each in enumerate(results) if duplicate(each)] == [1]
        assert len(results.accepted) == 49
        fresh = [each.lsn for each in results.accepted if not each.duplicate]
        assert fresh == list(range(first.lsn + 1, first.lsn + 49))
        pending = [producer.submit("bills", {"n": at}, dedup_id=f"n-{at}") for at in (49, 50, 50)]
        found = [each.result() for each in pending]
        assert [each.duplicate for each in found] == [True, False, True]
        assert found[1].lsn == found[2].lsn


def duplicate(each: Receipt | Refused) -> bool:
    return isinstance(each, Receipt) and each.duplicate
