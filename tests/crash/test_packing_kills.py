"""kill -9 of a real drainer between each two steps of packing: nothing is lost, nothing twice."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backlog import CLOCK, FS, Backlog, eventually
from tests.crash import packer
from wald import limits
from wald.drainer import process
from wald.ingest.figures import Progress
from wald.storage.log import LogOptions
from wald.testing.recording_sink import RecordingSink, RecordingTarget

OPTIONS = LogOptions(
    segment_bytes=256 * limits.KIB,
    retain_after_delivery_s=0.0,
    retain_after_delivery_bytes=0,
    pool_max_segments=1,
    reserve_bytes=0,
)


@pytest.fixture
def backlog(monkeypatch) -> Iterator[Backlog]:
    for name in ("PACK_EVERY_S", "PROGRESS_EVERY_S", "ADVANCE_EVERY_S"):
        monkeypatch.setattr(limits, name, 0.01)
    place = Path(tempfile.mkdtemp(prefix="w"))
    opened = Backlog(place, "stuck", "healthy", options=OPTIONS)
    yield opened
    opened.close()
    shutil.rmtree(place)


def fill(backlog: Backlog, segments: int) -> list[int]:
    """Return the LSNs of the stuck stream."""
    lsns, number = [], 0
    until = backlog.log.frontier.segment + segments
    while backlog.log.frontier.segment < until:
        number += 1
        backlog.append(b"%06d" % number, stream=2)
        if number % 8 == 0:
            lsns += backlog.append(b"%06d" % number, stream=1)
        backlog.log.preallocator.step()
    lsns += backlog.append(b"last", stream=1)
    backlog.append(b"last", stream=2)
    return lsns


def floors(backlog: Backlog) -> dict[int, int]:
    progress = Progress(FS, backlog.data_dir)
    try:
        return progress.floors()
    finally:
        progress.close()


@pytest.mark.parametrize("point", packer.POINTS)
def test_killed_at_any_point_of_packing_no_record_is_lost_or_doubled(backlog, point):
    lsns = fill(backlog, 3)
    command = [sys.executable, packer.__file__, backlog.data_dir, point]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": root},
        timeout=60,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    backlog.log.retire(floors(backlog))  # ingest goes on meanwhile, by what it was told
    targets = {"stuck": RecordingTarget(), "healthy": RecordingTarget()}
    stop = threading.Event()

    def serve() -> None:
        process.run(
            packer.settings(backlog.data_dir),
            make_sink=lambda route, _: RecordingSink(targets[route.name]),
            fs=FS,
            clock=CLOCK,
            chance=backlog.chance,
            ready=lambda _: None,
            stop=stop,
        )

    serving = threading.Thread(target=serve)
    serving.start()
    try:
        # once the target is back all that was pending comes, from wherever it lies
        assert targets["stuck"].wait_for(lambda: len(targets["stuck"].lsns) >= len(lsns))
        lsns += backlog.append(b"behind", stream=1)
        assert targets["stuck"].wait_for(lambda: targets["stuck"].lsns == lsns)
        packed = Path(backlog.data_dir, "packed")
        eventually(lambda: not packed.exists() or list(packed.iterdir()) == [])
    finally:
        stop.set()
        serving.join(60.0)
    assert not serving.is_alive()
    assert targets["stuck"].lsns == lsns
