"""``wald dlq`` against a real daemon: looked at, exported, sent again, purged, set aside."""

import json
import os
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import wald
from tests import commands
from tests.commands import Said
from tests.daemon import Daemon, wait_until
from tests.integration.test_commands import rows

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
CONFIG = """
[sinks.db]
type = "sqlite"
path = "{path}/x.db"
[routes.seats]
stream = "seats"
sink = "db"
mode = "columns"
table = "seats"
{more}
"""
SEATS = "CREATE TABLE {name} (seat TEXT, price INTEGER CHECK (price > {least}))"


def make_table(path: Path, least: int = 0) -> None:
    with closing(sqlite3.connect(path / "x.db", isolation_level=None)) as database:
        database.execute(SEATS.format(name="seats", least=least))


def mend(path: Path, least: int = -1000) -> None:
    """Make the table anew, with a weaker constraint."""
    with closing(sqlite3.connect(path / "x.db", isolation_level=None, timeout=30)) as database:
        database.executescript(
            "BEGIN IMMEDIATE; ALTER TABLE seats RENAME TO old;"
            + SEATS.format(name="seats", least=least)
            + "; INSERT INTO seats SELECT * FROM old; DROP TABLE old; COMMIT;"
        )


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A daemon with dead letters: of seats 1B, 1D and, with a key of bytes, 1F."""
    path = Path(tempfile.mkdtemp(prefix="w"))
    make_table(path)
    with Daemon(path, config=CONFIG.format(path=path, more="")) as daemon:
        with wald.connect(str(daemon.socket), name="box-office") as producer:
            headers: dict[str, str | bytes] = {"traceparent": TRACE, "raw": b"\xff"}
            for seat, price in (("1A", 5), ("1B", -5), ("1C", 7), ("1D", -7)):
                producer.append("seats", {"seat": seat, "price": price}, key=seat, headers=headers)
            producer.append("seats", b"no map", key=b"\xfe")
        daemon.command("wait", "seats", "--timeout", "30s")
        yield daemon
    shutil.rmtree(path)


def call(daemon: Daemon, *arguments: str) -> Said:
    """Run a command of ``wald dlq``."""
    return commands.call("dlq", *arguments, socket=daemon.socket)


def listed(daemon: Daemon, *arguments: str) -> list[dict[str, Any]]:
    done = call(daemon, "list", "--json", *arguments)
    said = json.loads(done.stdout)
    assert (done.returncode, said["more"]) == (0, 0)
    letters: list[dict[str, Any]] = said["dead_letters"]
    return letters


def test_list_narrows_by_reason_key_lsn_and_time(daemon: Daemon) -> None:
    first, second, third = listed(daemon)
    assert [each["key"] for each in (first, second, third)] == ["1B", "1D", None]
    assert third["key_base64"] == "/g=="
    assert [first["producer"], third["producer"]] == ["box-office"] * 2
    assert (first["trace"], third["trace"]) == (TRACE, "")
    assert first["record_time_ns"] <= first["time_ns"]
    assert listed(daemon, "--key", "1D") == [second]
    assert listed(daemon, "--key", "1D", "--key", "1B") == [first, second]
    assert listed(daemon, "--lsn", str(third["lsn"])) == [third]
    assert listed(daemon, "--reason", "record.value") == [third]
    assert listed(daemon, "--reason", "record.value", "--key", "1B") == []
    assert listed(daemon, "--since", "1h") == [first, second, third]
    assert listed(daemon, "--until", "1h") == []
    assert listed(daemon, "--since", "2001-02-03T04:05:06Z", "--until", "2001-02-04") == []
    assert listed(daemon, "--route", "seats") == [first, second, third]
    table = call(daemon, "list").stdout.splitlines()
    assert table[0].split() == ["ROUTE", "LSN", "KEY", "REASON", "MESSAGE"]
    assert "CHECK constraint failed: price > 0" in table[1]
    assert "the value is bytes, not a map of fields" in table[3]


def test_show_tells_everything_of_one_letter(daemon: Daemon) -> None:
    letter = listed(daemon, "--key", "1B")[0]
    shown = call(daemon, "show", str(letter["lsn"])).stdout
    for words in ("route:         seats", "box-office", TRACE, '"price": -5', "CHECK constraint"):
        assert words in shown
    (said,) = json.loads(call(daemon, "show", str(letter["lsn"]), "--json").stdout)["dead_letters"]
    assert said["value"] == {"seat": "1B", "price": -5}


def test_export_is_a_line_of_json_a_letter_with_all_that_is_known(daemon: Daemon) -> None:
    lines = [json.loads(line) for line in call(daemon, "export").stdout.splitlines()]
    assert len(lines) == 3
    first = lines[0]
    assert first["value"] == {"seat": "1B", "price": -5}
    assert (first["key"], first["content"], first["producer"]) == ("1B", "msgpack", "box-office")
    assert first["headers"] == {"traceparent": TRACE, "raw": {"base64": "/w=="}}
    assert (first["route"], first["attempts"], first["trace"]) == ("seats", 1, TRACE)
    assert first["reason"].startswith("SQLITE_CONSTRAINT")
    assert first["record_time"].endswith("Z")
    assert first["set_aside_at"] >= first["record_time"]
    assert (len(first["revision"]), first["batch"] >= 1) == (32, True)
    assert lines[2]["value_base64"] == "bm8gbWFw"
    assert lines[2]["key_base64"] == "/g=="
    assert "value" not in lines[2]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["list", "--route", "other"], 2, "there is no route 'other'"),
        (["show", "--route", "other", "1"], 2, "there is no route 'other'"),
        (["export", "--route", "other"], 2, "there is no route 'other'"),
        (["redrive", "--route", "other"], 2, "there is no route 'other'"),
        (["purge", "--route", "other", "--yes"], 2, "there is no route 'other'"),
        (["set-aside", "other"], 2, "there is no route 'other'"),
        (["list", "--lsn", "0"], 2, "0 is not in the range"),
        (["list", "--lsn", "x"], 2, "is not a valid integer"),
        (["show", str(1 << 63)], 2, "is not in the range"),
        (["list", "--since", "yesterday"], 2, "'yesterday' is no time"),
        (["list", "--until", "2026-13-01"], 2, "is no time"),
        (["list", "--since", "5 parsecs"], 2, "is no time"),
        (["show", "1"], 1, "there is no dead letter with LSN 1"),
        (["redrive", "--route", "seats", "--key", "9Z"], 1, "'seats' with key '9Z'"),
        (["purge", "--route", "seats", "--key", "9Z", "--yes"], 1, "with key '9Z'"),
        (["purge", "--route", "seats", "--reason", "none", "--yes"], 1, "with reason none"),
        (["redrive"], 2, "name the route"),
        (["purge", "--yes"], 2, "name the route"),
        (["purge", "--route", "seats"], 2, "purging cannot be taken back: give --yes"),
        (["redrive", "--route", "seats", "--transform", "x"], 2, "'x' names no function"),
        (["redrive", "--route", "seats", "--transform", "no.such:f"], 2, "cannot be loaded"),
        (["redrive", "--route", "seats", "--wait", "soon"], 2, "is not a duration"),
        (["set-aside", "seats"], 2, "no lane of route 'seats' stops at refused records"),
        (["set-aside", "seats", "--lsn", "5"], 2, "stops at refused records at LSN 5"),
        (["list", "--data-dir", "/nothing/here"], 78, "there is no such directory"),
    ],
)
def test_what_cannot_be_meant_is_told_in_two_lines(
    daemon: Daemon, arguments: list[str], code: int, words: str
) -> None:
    done = call(daemon, *arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert words in done.stderr
    assert len(listed(daemon)) == 3


def test_a_dry_run_changes_nothing_and_says_how_many(daemon: Daemon) -> None:
    again = call(daemon, "redrive", "--route", "seats", "--dry-run")
    assert again.stderr == "3 dead letters of route seats would be sent again\n"
    gone = call(daemon, "purge", "--route", "seats", "--key", "1B", "--dry-run")
    assert gone.stderr == "1 dead letter of route seats would be purged\n"
    assert len(listed(daemon)) == 3


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="w"))
    yield path
    shutil.rmtree(path)


def append(daemon: Daemon, *prices: int, start: int = 0) -> None:
    values = [{"seat": f"{start + n}", "price": price} for n, price in enumerate(prices)]
    with wald.connect(str(daemon.socket)) as producer:
        producer.append_many("seats", values)


def route_of(daemon: Daemon) -> dict[str, Any]:
    said: Any = daemon.ask(op="status")
    figures: dict[str, Any] = said["routes"]["seats"]
    return figures


def test_redrive_purge_and_the_books_with_a_daemon_and_without(directory: Path) -> None:
    make_table(directory)
    more = "[routes.seats.dead_letters]\nalarm = 3\n"
    with Daemon(directory, config=CONFIG.format(path=directory, more=more)) as daemon:
        append(daemon, 1, -1, 2, -2, -3, -500, -600)
        daemon.command("wait", "seats", "--timeout", "30s")
        assert "seats: ALARM: 5 dead letters: wald dlq list --route seats" in daemon.command(
            "status"
        )
        mend(directory, least=-100)
        done = call(daemon, "redrive", "--route", "seats", "--wait", "30s")
        assert done.stderr.startswith("5 dead letters of route seats sent again: 2 refused again")
        assert done.returncode == 1
        assert "they come late" in done.stderr
        assert sorted(rows(directory / "x.db", "SELECT price FROM seats")) == [
            (-3,), (-2,), (-1,), (1,), (2,)
        ]  # fmt: skip
        first, second = listed(daemon)
        assert "price > -100" in first["message"]
        gone = call(daemon, "purge", "--route", "seats", "--lsn", str(first["lsn"]), "--yes")
        assert gone.stderr == "1 dead letter of route seats purged\n"
        wait_until(lambda: route_of(daemon)["purged"] == 1, "the purge shows")
        figures = route_of(daemon)
        assert (figures["accepted"], figures["delivered"], figures["dead_letters"]) == (7, 5, 1)
        assert (figures["pending"], figures["lost"], figures["alarm"]) == (0, 0, None)
        assert "seats: 1 dead letter purged" in daemon.command("status")
        offline = ["--data-dir", str(daemon.data_dir)]
        held = call(daemon, "redrive", "--route", "seats", *offline)
        assert (held.returncode, "error[data.held]" in held.stderr) == (69, True)
    (line,) = call(daemon, "export", *offline).stdout.splitlines()
    assert json.loads(line)["lsn"] == second["lsn"]
    mend(directory)
    asked = call(daemon, "redrive", "--route", "seats", *offline)
    assert "will be sent again when a daemon runs" in asked.stderr
    with Daemon(directory, config=CONFIG.format(path=directory, more="")) as daemon:
        wait_until(lambda: route_of(daemon)["delivered"] == 6, "asked for without a daemon")
        assert listed(daemon) == []
    assert len(rows(directory / "x.db", "SELECT * FROM seats")) == 6
    assert call(daemon, "purge", "--route", "seats", "--yes", *offline).returncode == 1


def test_a_route_that_halts_goes_on_when_a_person_lets_it_set_the_record_aside(
    directory: Path,
) -> None:
    make_table(directory)
    config = CONFIG.format(path=directory, more='on_reject = "halt"')
    with Daemon(directory, config=config) as daemon:
        append(daemon, 1, -1, 2)
        wait_until(lambda: route_of(daemon)["parked"] == "halted", "the route halts")
        figures = route_of(daemon)
        assert figures["last_error"].startswith("halted at LSN ")
        assert "CHECK constraint failed" in figures["last_error"]
        assert "wald dlq set-aside seats" in figures["last_error"]
        assert listed(daemon) == []
        assert rows(directory / "x.db", "SELECT * FROM seats") == []
        assert call(daemon, "set-aside", "seats", "--lsn", "999").returncode == 2
        done = call(daemon, "set-aside", "seats")
        assert done.stderr.startswith("route seats sets aside LSN ")
        wait_until(lambda: route_of(daemon)["delivered"] == 2, "it goes on")
        assert len(listed(daemon)) == 1
        append(daemon, -5, start=3)
        wait_until(lambda: route_of(daemon)["parked"] == "halted", "it halts at the next")


def is_back(daemon: Daemon, victim: int) -> bool:
    return daemon.pids().get("drain", victim) != victim


def test_a_drainer_killed_in_a_redrive_goes_on_with_it_and_sends_nothing_twice(
    directory: Path,
) -> None:
    make_table(directory)
    with Daemon(directory, config=CONFIG.format(path=directory, more="")) as daemon:
        count = 4_000
        append(daemon, *[-1 if n % 4 == 0 else 1 for n in range(count)])
        daemon.command("wait", "seats", "--timeout", "60s")
        assert route_of(daemon)["dead_letters"] == count // 4
        mend(directory)
        with closing(sqlite3.connect(directory / "x.db")) as database:
            daemon.ask(op="drain.dlq.redrive", route="seats")
            for _ in range(3):
                victim = daemon.pids()["drain"]
                os.kill(victim, signal.SIGKILL)
                wait_until(partial(is_back, daemon, victim), "the drainer is back")
            wait_until(lambda: route_of(daemon)["delivered"] == count, "all are delivered", 60.0)
            found = database.execute("SELECT count(*), count(DISTINCT seat) FROM seats").fetchone()
        assert found == (count, count)
        figures = route_of(daemon)
        assert (figures["dead_letters"], figures["pending"], figures["purged"]) == (0, 0, 0)
