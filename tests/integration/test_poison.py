"""Poison that kills the drainer: found by the attempts it did not survive, set aside, alone."""

import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import wald
from tests.backlog import eventually
from tests.commands import call
from tests.daemon import Daemon
from tests.sites import install_sink

ROOT = Path(__file__).parents[2]


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="wp"))
    site = install_sink(path, "poison", "tests.poison_sink:make")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(ROOT)]))
    yield path
    shutil.rmtree(path)


def configuration(directory: Path, kind: str = "poison", route: str = "") -> str:
    return f"""
[sinks.out]
type = "{kind}"
path = "{directory}/out.db"
[sinks.calm]
type = "sqlite"
path = "{directory}/calm.db"
[routes.things]
stream = "things"
sink = "out"
attempt_timeout = "1s"
batch = {{ max_records = 40 }}
{route}
[routes.others]
stream = "others"
sink = "calm"
"""


@pytest.mark.parametrize("how", ["exit", "memory", "loop", "panic", "leave"])
def test_a_record_that_kills_the_drainer_is_set_aside_and_all_others_are_delivered(
    directory: Path, how: str
) -> None:
    with Daemon(directory, config=configuration(directory)) as daemon:
        with wald.connect(str(daemon.socket)) as producer:
            values = [{"n": n} for n in range(8)]
            sent = producer.append_many("things", [*values[:5], {"poison": how}, *values[5:]])
            producer.append_many("others", values)
        daemon.command("wait", "--all", "--timeout", "60s")
        status = json.loads(daemon.command("status", "--json"))["routes"]
        letters = json.loads(daemon.command("dlq", "list", "--json"))["dead_letters"]
    assert (status["things"]["delivered"], status["things"]["dead_letters"]) == (8, 1)
    assert status["others"]["delivered"] == 8
    assert [(each["lsn"], each["code"]) for each in letters] == [(sent.accepted[5].lsn, "crashed")]
    with closing(sqlite3.connect(directory / "out.db")) as database:
        lsns = [lsn for (lsn,) in database.execute("SELECT lsn FROM things ORDER BY rowid")]
    accepted = [receipt.lsn for receipt in sent.accepted]
    assert lsns == accepted[:5] + accepted[6:]


def said(daemon: Daemon) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(daemon.command("status", "--json"))["routes"]
    return found


@pytest.mark.parametrize("how", ["exit", "loop"])
def test_a_record_that_kills_the_transform_is_set_aside_and_all_others_are_delivered(
    directory: Path, how: str
) -> None:
    route = 'transform = "tests.poison_sink:transform"'
    with Daemon(directory, config=configuration(directory, "sqlite", route)) as daemon:
        with wald.connect(str(daemon.socket)) as producer:
            sent = producer.append_many("things", [{"n": 0}, {"poison": how}, {"n": 1}])
            producer.append_many("others", [{"n": 0}])
        daemon.command("wait", "--all", "--timeout", "60s")
        letters = json.loads(daemon.command("dlq", "list", "--json"))["dead_letters"]
        first, poisoned, last = [receipt.lsn for receipt in sent.accepted]
        assert [(each["lsn"], each["code"]) for each in letters] == [(poisoned, "transform-failed")]
        assert "process" in letters[0]["message"]
        if how == "exit":  # a redrive that it is sent through dies of it as well
            redrive = ("--route", "things", "--transform", "tests.poison_sink:transform")
            call("dlq", "redrive", *redrive, socket=daemon.socket)  # or before it answers
            eventually(lambda: said(daemon)["things"]["batch_no"] == 2)
        status = said(daemon)
    assert (status["things"]["delivered"], status["things"]["dead_letters"]) == (2, 1)
    assert status["others"]["delivered"] == 1
    with closing(sqlite3.connect(directory / "out.db")) as database:
        lsns = [lsn for (lsn,) in database.execute("SELECT lsn FROM things ORDER BY rowid")]
    assert lsns == [first, last]
