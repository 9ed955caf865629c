"""``wald torture``: blows under load, and a count that finds every kind of wrong."""

import json
import random
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.commands import run
from wald.cli.torturing import Plan, Torture
from wald.system import SystemClock


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wd") as path:
        yield Path(path)


def test_blows_under_load_cost_no_record_and_leave_a_report(directory: Path) -> None:
    place = directory / "t"
    arguments = ["--for", "4s", "--every", "500ms", "--stop-max", "1s", "--damage", "1"]
    done = run("torture", str(place), *arguments, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["passed"]
    assert said["blows"]
    assert json.loads((place / "report.json").read_text())["acked"] == said["acked"]
    assert ElementTree.parse(place / "report.svg").getroot().tag.endswith("svg")


def test_a_directory_that_is_there_is_refused(directory: Path) -> None:
    done = run("torture", str(directory))
    assert done.returncode == 2
    assert "does not exist yet" in done.stderr


@pytest.mark.parametrize(
    ("statement", "field"),
    [
        ("SELECT 1", ""),
        ("DELETE FROM torture WHERE lsn = 3", "missing"),
        ("INSERT INTO torture SELECT 99, value FROM torture WHERE lsn = 3", "doubled"),
        ("UPDATE torture SET lsn = 98 WHERE lsn = 2", "wrong_lsn"),
        ("""INSERT INTO torture VALUES (97, '{"p": 0, "n": 400}')""", "unsent"),
        ("UPDATE torture SET rowid = 1000 WHERE lsn = 2", "out_of_order"),
    ],
)
def test_the_count_finds(directory: Path, statement: str, field: str) -> None:
    torture = Torture(
        directory, Plan(producers=1), SystemClock(), random.Random(1), lambda *_: None
    )
    torture._producers[0].lsns.extend(range(1, 6))
    with closing(sqlite3.connect(directory / "target.db")) as database:
        database.execute("CREATE TABLE torture (lsn INTEGER, value TEXT)")
        rows = [(n + 1, json.dumps({"p": 0, "n": n})) for n in range(5)]
        database.executemany("INSERT INTO torture VALUES (?, ?)", rows)
        database.execute(statement)
        database.commit()
    torture._count()
    found = torture._report
    wrong = {
        name
        for name in ("missing", "doubled", "unsent", "wrong_lsn", "out_of_order")
        if getattr(found, name)
    }
    assert field in wrong if field else not wrong
