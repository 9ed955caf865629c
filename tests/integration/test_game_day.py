"""A game day on a real daemon: the faults are loud, what they cause is real, and they end."""

import json
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import wald
from tests.daemon import Daemon, wait_until

VALUES = [{"n": n} for n in range(200)]


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    directory = Path(tempfile.mkdtemp(prefix="wg"))
    with Daemon(directory, to=f"sqlite:{directory}/out.db") as running:
        with wald.connect(str(running.socket)) as producer:
            producer.append_many("things", VALUES[:1])
        running.command("wait", "--all", "--timeout", "30s")
        yield running
    shutil.rmtree(directory)


def route(daemon: Daemon) -> dict[str, object]:
    found = json.loads(daemon.command("status", "--json"))["routes"]["things"]
    assert isinstance(found, dict)
    return found


def append(daemon: Daemon) -> None:
    with wald.connect(str(daemon.socket)) as producer:
        producer.append_many("things", VALUES)


def delivered(daemon: Daemon) -> int:
    connection = sqlite3.connect(daemon.directory / "out.db")
    try:
        (count,) = connection.execute("SELECT count(*) FROM things").fetchone()
    finally:
        connection.close()
    return int(count)


def seconds_left(daemon: Daemon) -> int:
    """What status says in words, read back."""
    found = re.search(r"things: GAME DAY: down, for (\d+) s more", daemon.command("status"))
    assert found is not None
    return int(found[1])


def test_a_target_that_plays_dead_is_loud_in_status_and_comes_back_when_told(
    daemon: Daemon,
) -> None:
    said = json.loads(daemon.command("route", "fault", "things", "--down", "1h", "--json"))
    assert said["faults"] == ["game day: down, for 3600 s more"]
    # nothing is sent and no lane says anything: the time that is left goes down all the same
    wait_until(lambda: seconds_left(daemon) < 3600, "the countdown begins")
    left_s = seconds_left(daemon)
    wait_until(lambda: seconds_left(daemon) < left_s, "the countdown goes on")
    append(daemon)
    wait_until(lambda: "plays dead" in str(route(daemon)["last_error"]), "the fault is felt")
    assert "GAME DAY: down, for" in daemon.command("status")
    assert (route(daemon)["pending"], route(daemon)["dead_letters"]) == (200, 0)
    assert delivered(daemon) == 1
    daemon.command("route", "fault", "things", "--clear")
    daemon.command("route", "probe", "things")
    daemon.command("wait", "--all", "--timeout", "60s")
    assert delivered(daemon) == 201
    assert "GAME DAY" not in daemon.command("status")


def test_refused_records_become_dead_letters_that_can_be_sent_again(daemon: Daemon) -> None:
    daemon.command("route", "fault", "things", "--reject", "5%", "--for", "1h")
    append(daemon)
    daemon.command("wait", "--all", "--timeout", "30s")
    letters = json.loads(daemon.command("dlq", "list", "--json"))["dead_letters"]
    assert letters
    assert {letter["code"] for letter in letters} == {"game-day"}
    assert delivered(daemon) == 201 - len(letters)
    daemon.command("route", "fault", "things", "--clear")
    daemon.command("dlq", "redrive", "--route", "things", "--wait", "30s")
    assert delivered(daemon) == 201


def test_lost_answers_double_nothing(daemon: Daemon) -> None:
    daemon.command("route", "fault", "things", "--lose-answers", "100%", "--for", "1h")
    append(daemon)
    daemon.command("wait", "--all", "--timeout", "60s")
    assert delivered(daemon) == 201


def test_faults_end_by_themselves(daemon: Daemon) -> None:
    daemon.command("route", "fault", "things", "--down", "3s")
    daemon.command("route", "fault", "things", "--slow", "200ms", "--for", "4s")
    wait_until(lambda: "GAME DAY" in daemon.command("status"), "the faults told")
    append(daemon)
    daemon.command("wait", "--all", "--timeout", "60s")
    assert delivered(daemon) == 201
    wait_until(lambda: "GAME DAY" not in daemon.command("status"), "the end of the faults")
