"""The steps of ARCHITECTURE.md, "Add a sink", followed as a reader would."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

import wald
from tests.commands import run
from tests.daemon import Daemon

ARCHITECTURE = Path(__file__).parents[2] / "ARCHITECTURE.md"


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="ws"))
    yield path
    shutil.rmtree(path)


def install_package(directory: Path) -> Path:
    """What `pip install` of a package with the document's sink and entry point leaves behind."""
    chapter = ARCHITECTURE.read_text().split("### Add a sink", 1)[1]
    found = re.search(r"```python\n(.*?)```", chapter, re.DOTALL)
    assert found
    site = directory / "site"
    info = site / "packfile-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "packfile.py").write_text(found[1])
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: packfile\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[wald.sinks]\npackfile = packfile:make\n")
    return site


def test_the_documented_sink_delivers_every_record_once_and_in_order(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = install_package(directory)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
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
    assert [lsn for lsn, _, _ in values] == [receipt.lsn for receipt in results.accepted]
    assert [msgpack.unpackb(value)["n"] for _, _, value in values] == list(range(50))
