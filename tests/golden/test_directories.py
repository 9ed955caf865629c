"""Whole data directories of every format that ever was: each is read, delivered, and balanced."""

import json
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import chdir, closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.commands import call
from wald import offline
from wald.core import frame
from wald.storage import identity, owner
from wald.system import PosixFileSystem

HERE = Path(__file__).parent
ARCHIVES = sorted(HERE.glob("directories-*/*.tar.xz"))
FS = PosixFileSystem()


@pytest.fixture(params=ARCHIVES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wg") as directory:
        path = Path(directory)
        with tarfile.open(request.param) as archive:
            archive.extractall(path, filter="data")
        at_home(path / "data")
        with chdir(path):  # the target's path stands in the route's birth as it was said
            yield path


def at_home(data: Path) -> None:
    """Let identity and owner say that the directory was always here: it is no copy."""
    known, inode = identity.required(FS, str(data)), data.stat().st_ino
    here = replace(known, inode=inode, machine=FS.machine_id())
    identity.write_whole_file(FS, str(data), identity.NAME, identity.encode(here))
    said = owner._read(FS, str(data / owner.NAME))
    assert said is not None
    body = frame.pack_statement({**said, "inode": inode, "machine": FS.machine_id()})
    crc = frame.crc32c(body).to_bytes(4, "little")
    identity.write_whole_file(FS, str(data), owner.NAME, body + crc)


def test_a_directory_of_any_format_is_read_and_delivered(place: Path) -> None:
    data, expected = place / "data", json.loads((place / "expected.json").read_text())
    assert call("log", "verify", str(data)).returncode == 0
    call("route", "resume", "db", "--data-dir", str(data))
    done = call("replay", "--config", str(place / "wald.toml"), "--json")
    assert done.returncode == 0, done.stderr
    with closing(sqlite3.connect(place / "orders.db")) as database:
        held = [number for (number,) in database.execute("SELECT n FROM picky ORDER BY n")]
    assert held == expected["target"]
    with offline.dead_letter_desk(str(data)) as desk:
        letters = desk.ask("drain.dlq", limit=1_000)["entries"]
    assert len(letters) == len(expected["dead"])
    for letter in letters:
        at = (letter["dead_file"], letter["dead_offset"], letter["lsn"])
        assert offline.dead_letter_body(str(data), *at).value


def test_there_are_directories_of_each_kind() -> None:
    assert {path.name.removesuffix(".tar.xz") for path in ARCHIVES} >= {
        "clean",
        "backlog",
        "torn",
        "packed",
        "redriven",
    }
