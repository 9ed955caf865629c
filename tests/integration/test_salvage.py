"""Damage in a data directory, its ledger too: planned, set aside, reported, read, acknowledged."""

import json
import os
import random
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import lmdb
import pytest

import wald
from tests.commands import call
from tests.daemon import Daemon

RECORDS = 30


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wd") as path:
        yield Path(path)


def append(daemon: Daemon, name: str, first: int = 0) -> list[int]:
    lsns = []
    with wald.connect(str(daemon.socket), name=name) as producer:
        for number in range(first, first + RECORDS):
            receipt = producer.append("orders", {"n": number, "by": name}, key=name)
            lsns.append(receipt.lsn)
    return lsns


def rows(directory: Path) -> list[int]:
    with closing(sqlite3.connect(directory / "orders.db")) as database:
        return [lsn for (lsn,) in database.execute("SELECT lsn FROM orders ORDER BY rowid")]


def segment_with(data: Path, needle: bytes) -> Path:
    """The segment that holds a value; others may be prepared beside it."""
    paths = (data / "log").glob("seg-*.wal")
    return next(path for path in paths if needle in path.read_bytes())


def spoil_segment(data: Path, needle: bytes) -> Path:
    """Change a byte of a record's value, as a bad disk does."""
    path = segment_with(data, needle)
    with path.open("r+b") as file:
        file.seek(path.read_bytes().find(needle))
        file.write(bytes([needle[0] ^ 1]))
    return path


def test_damage_is_planned_set_aside_reported_read_and_acknowledged(directory: Path) -> None:
    daemon = Daemon(directory, to=f"sqlite:{directory}/orders.db")
    data = daemon.data_dir
    with daemon:
        daemon.command("wait", "--all")
        lsns = append(daemon, "till-1") + append(daemon, "till-2")
        daemon.command("wait", "--all")
    needle = b"\xa1n\x14\xa2by\xa6till-2"  # {"n": 20, "by": "till-2"}
    segment = spoil_segment(data, needle)
    lost = lsns[RECORDS + 20]

    plan = call("log", "salvage", str(data), "--json")
    (step,) = json.loads(plan.stdout)["steps"]
    assert plan.returncode == 1
    assert (step["what"], step["facts"]["LSNs"]) == (segment.name, f"{lost} .. {lost}")
    assert step["facts"]["streams"] == ["orders"]
    assert step["facts"]["producers"] == ["till-2"]
    assert "salvage" in call("log", "salvage", str(data)).stderr

    done = call("log", "salvage", str(data), "--do")
    assert done.returncode == 0
    assert f"LSN {lost} .. {lost} are lost" in done.stdout
    (report,) = data.glob("reports/loss-*.json")
    (damage,) = json.loads(report.read_text())["damages"]
    assert (damage["first_lsn"], damage["producers"]) == (lost, ["till-2"])
    assert damage["size_bytes"] > 0
    assert call("log", "salvage", str(data)).returncode == 0

    cat = call("log", "cat", str(data / "quarantine" / segment.name))
    said = [json.loads(line) for line in cat.stdout.splitlines()]
    assert [each["lsn"] for each in said] == [lsn for lsn in lsns if lsn != lost]
    assert said[0] | {"time": ""} == {
        "lsn": lsns[0],
        "stream": "orders",
        "time": "",
        "key": "till-1",
        "headers": {},
        "dedup_id": None,
        "content": "msgpack",
        "value": {"n": 0, "by": "till-1"},
    }
    assert (cat.returncode, f"LSN {lost} .. {lost}" in cat.stderr) == (1, True)

    with daemon:
        alarm = f"ALARM: records were lost: {data}/reports/{report.name}"
        assert alarm in call("status", socket=daemon.socket).stderr
        assert json.loads(call("log", "acknowledge", str(data), "--json").stdout) == {
            "acknowledged": [f"reports/{report.name}"]
        }
        assert "ALARM" not in call("status", socket=daemon.socket).stderr
        more = append(daemon, "till-3")
        daemon.command("wait", "--all")
    assert rows(directory) == lsns + more


def test_a_copied_segment_without_a_header_says_what_is_to_be_put_beside_it(
    directory: Path,
) -> None:
    daemon = Daemon(directory, to=f"sqlite:{directory}/orders.db")
    with daemon:
        lsns = append(daemon, "till-1")
    segment = segment_with(daemon.data_dir, b"\xa1n\x00\xa2by\xa6till-1")
    copy = directory / "copied" / "log" / segment.name
    copy.parent.mkdir(parents=True)
    copy.write_bytes(bytes(64) + segment.read_bytes()[64:])
    alone = call("log", "cat", str(copy))
    assert (alone.returncode, "identity beside" in alone.stderr) == (74, True), alone.stderr
    (directory / "copied" / "identity").write_bytes((daemon.data_dir / "identity").read_bytes())
    cat = call("log", "cat", str(copy))
    assert [json.loads(line)["lsn"] for line in cat.stdout.splitlines()] == lsns, cat.stderr


def change_a_value(path: Path, _: random.Random) -> None:
    environment = lmdb.open(str(path.parent), max_dbs=32, lib_version=0)
    with environment.begin(write=True) as txn:
        table = environment.open_db(b"lanes", txn=txn)
        ((key, value),) = list(txn.cursor(table))
        txn.put(key, value[:-1] + bytes([value[-1] ^ 1]), db=table)
    environment.close()


DAMAGES = {
    "cut to nothing": lambda path, _: os.truncate(path, 0),
    "cut in the middle": lambda path, _: os.truncate(path, 3 * 4096),
    "overwritten with zeros": lambda path, _: path.write_bytes(bytes(path.stat().st_size)),
    "overwritten with noise": lambda path, chance: path.write_bytes(
        chance.randbytes(path.stat().st_size)
    ),
    "gone": lambda path, _: path.unlink(),
    "a value that is another one": change_a_value,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_ledger_costs_no_record_and_no_start(directory: Path, name: str) -> None:
    seed = int(os.environ.get("WALD_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
    daemon = Daemon(directory, to=f"sqlite:{directory}/orders.db")
    data = daemon.data_dir
    with daemon:
        lsns = append(daemon, "till-1")
        daemon.command("wait", "--all")
    DAMAGES[name](data / "ledger" / "data.mdb", random.Random(seed))

    plan = json.loads(call("log", "salvage", str(data), "--json").stdout)
    assert [step["what"] for step in plan["steps"]] == ["ledger"], f"WALD_TEST_SEED={seed}"
    with daemon:
        lsns += append(daemon, "till-2", RECORDS)
        daemon.command("wait", "--all")
        daemon.command("audit")
        status = call("status", socket=daemon.socket).stderr
        assert f"a ledger was damaged and set aside: {data}/ledger.damaged-1" in status
    assert rows(directory) == lsns, f"WALD_TEST_SEED={seed}"
    assert (data / "ledger.damaged-1").is_dir()


def test_only_so_many_damaged_ledgers_are_kept(directory: Path) -> None:
    daemon = Daemon(directory, to=f"sqlite:{directory}/orders.db")
    data = daemon.data_dir
    with daemon:
        append(daemon, "till-1")
        daemon.command("wait", "--all")
    for _ in range(6):
        os.truncate(data / "ledger" / "data.mdb", 100)
        assert call("log", "salvage", str(data), "--do").returncode == 0
    kept = sorted(path.name for path in data.glob("ledger.damaged-*"))
    assert kept == [f"ledger.damaged-{number}" for number in (3, 4, 5, 6)]
    assert call("log", "acknowledge", str(data)).returncode == 0
    assert json.loads(call("log", "salvage", str(data), "--json").stdout)["unseen"] == []


def test_a_file_that_is_none_of_wald_is_refused(directory: Path) -> None:
    (directory / "notes.txt").write_text("x")
    said = call("log", "cat", str(directory / "notes.txt"))
    assert (said.returncode, "no file of a log" in said.stderr) == (2, True)
    assert call("log", "cat", str(directory / "absent.wal")).returncode != 0
