"""docs/how-to/write-a-sink.md, followed as a reader would: a package of its own, and the suite."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

import wald
from tests.commands import run
from tests.daemon import Daemon
from tests.sites import install_sink
from wald.model import ReplayClass
from wald.testing.sink_contract import PROMISES, Line
from wald.testing.sink_contract.promises import AT_LEAST_ONCE, HOLDS

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "write-a-sink.md"
LINES_PASSED_MIN = 18


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="ws"))
    (project,) = map(tomllib.loads, blocks("toml"))
    ((name, factory),) = project["project"]["entry-points"]["wald.sinks"].items()
    site = install_sink(path, name, factory, blocks("python")[0])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    yield path
    shutil.rmtree(path)


def test_the_documented_sink_delivers_every_record_once_and_in_order(directory: Path) -> None:
    config = f"""
[sinks.out]
type = "packfile"
path = "{directory}/out.msgpack"
[routes.copy]
stream = "things"
sink = "out"
batch = {{ max_records = 7 }}
"""
    with Daemon(directory, config=config) as daemon:
        checked = run("check", "--config", str(directory / "wald.toml"))
        with wald.connect(str(daemon.socket)) as producer:
            results = producer.append_many("things", [{"n": n} for n in range(50)], key="k")
        daemon.command("wait", "--all", "--timeout", "30s")
        status = json.loads(daemon.command("status", "--json"))
    assert "transactional" in checked.stdout
    assert status["routes"]["copy"]["delivered"] == 50
    values = msgpack.unpackb((directory / "out.msgpack").read_bytes())["values"]
    assert [lsn for _, lsn, _, _ in values] == [receipt.lsn for receipt in results.accepted]
    assert [msgpack.unpackb(value)["n"] for *_, value in values] == list(range(50))


def test_the_documented_sink_passes_the_contract(directory: Path) -> None:
    tests = directory / "packfile"
    tests.mkdir()
    (tests / "test_packfile.py").write_text(blocks("python")[1])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        command, cwd=tests, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) >= LINES_PASSED_MIN


def test_the_page_prints_what_each_class_promises() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if line.startswith("| ") and line.count("|") == len(ReplayClass) + 2
    ]
    assert rows[0] == ["line", *(f"`{each.value}`" for each in ReplayClass)]
    shown = {HOLDS: HOLDS, AT_LEAST_ONCE: AT_LEAST_ONCE}
    assert rows[1:] == [
        [line.value, *(shown.get(PROMISES[line][each], "no") for each in ReplayClass)]
        for line in Line
    ]


def test_a_sink_that_breaks_the_contract_is_told_so(directory: Path) -> None:
    """The suite of a third party can fail: the sink forgets to look at the row."""
    tests = directory / "packfile"
    tests.mkdir()
    (tests / "test_packfile.py").write_text(blocks("python")[1])
    module = directory / "site" / "packfile.py"
    source = module.read_text()
    module.write_text(source.replace("return RowMoved(row)", "pass"))
    assert module.read_text() != source
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, "-k", "twice"],
        cwd=tests,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "the row tells what was applied" in done.stdout
