"""wald-client: the client as a distribution of its own, in an environment with msgpack alone."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import msgpack
import pytest

import wald
from tests.doorkeeper import DEADLINE_S, Door, short_directory

ROOT = Path(__file__).parents[2]
BUILD = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this tree."""
    into = tmp_path_factory.mktemp("wheel")
    subprocess.run([*BUILD, "-w", into, ROOT / "packaging/wald-client"], check=True, timeout=120)
    (built,) = into.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the wheel and msgpack."""
    place = tmp_path_factory.mktemp("venv")
    venv.create(place, with_pip=False, symlinks=True)
    site = next(place.glob("lib/python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    package = Path(msgpack.__file__).parent
    shutil.copytree(package, site / "msgpack")
    return place / "bin/python"


def run(python: Path, code: str, *arguments: str) -> str:
    done = subprocess.run(
        [python, "-c", code, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        cwd="/",
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


_USE = """
import asyncio, importlib.util, logging, sys, wald, wald.logging
assert not any(map(importlib.util.find_spec, ("google_crc32c", "click", "lmdb")))
with wald.connect(sys.argv[1]) as producer:
    assert producer.append("s", {"n": 1}, key="k").lsn == 1
    assert producer.append_many("s", [b"2", b"3"]).accepted[-1].lsn == 3
    assert producer.submit("s", b"4").result().lsn == 4
async def main():
    async with wald.connect_async(sys.argv[1]) as producer:
        assert (await producer.append("s", b"5")).lsn == 5
asyncio.run(main())
handler = wald.logging.Handler("logs", path=sys.argv[1])
logging.getLogger("app").addHandler(handler)
logging.getLogger("app").error("it broke")
handler.close()
from wald.testing import FakeProducer, assert_delivered
with FakeProducer() as fake:
    fake.append("s", 1)
    assert_delivered(fake, "s", [1])
print(wald.__file__)
"""


def test_it_appends_to_a_real_daemon_with_msgpack_alone(python: Path):
    with short_directory() as directory, Door(directory) as door:
        used = run(python, _USE, door.path)
        assert str(python.parent.parent) in used
        assert len(door.stored_values()) == 6


def test_every_public_name_is_there(python: Path):
    run(python, "import wald; [getattr(wald, name) for name in wald.__all__]; import wald.aio")


def test_it_says_that_it_needs_msgpack_only_and_has_the_version_of_this_tree(wheel: Path):
    with zipfile.ZipFile(wheel) as files:
        name = next(each for each in files.namelist() if each.endswith("METADATA"))
        lines = files.read(name).decode().splitlines()
    required = [line for line in lines if line.startswith("Requires-Dist")]
    assert required == ["Requires-Dist: msgpack>=1.1"]
    assert f"Version: {wald.__version__}" in lines


def test_its_files_are_those_of_wald_so_that_beside_each_other_they_agree(wheel: Path):
    with zipfile.ZipFile(wheel) as files:
        names = [each for each in files.namelist() if each.startswith("wald/")]
        assert "wald/py.typed" in names
        assert not [each for each in names if each.startswith(("wald/cli/", "wald/storage/"))]
        for name in names:
            assert files.read(name) == (ROOT / name).read_bytes(), name
