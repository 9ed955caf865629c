"""A drain process that kills itself at a named point of its packing.

python packer.py DATA_DIR POINT
"""

import os
import signal
import sys
import threading
from random import Random

from wald import limits
from wald.config import BatchSettings, RouteSettings, Settings, SinkSettings
from wald.drainer import process
from wald.drainer.packed_files import PackedFiles
from wald.drainer.released import ProgressPage
from wald.model import Systemic, SystemicKind
from wald.storage.packed_index import PackedIndex
from wald.system import PosixFileSystem, SystemClock
from wald.testing.recording_sink import RecordingSink, RecordingTarget

POINTS = (
    "file before its name",
    "name before its directory",
    "directory before the ledger",
    "ledger before the lanes",
    "ledger before the floor",
    "floor",
)


def settings(data_dir: str) -> Settings:
    """Two routes; what a stuck one needs is packed at once."""
    names = ("stuck", "healthy")
    return Settings(
        data_dir=data_dir,
        socket=f"{data_dir}/../w.sock",
        sinks={name: SinkSettings(name, "test") for name in names},
        routes={
            name: RouteSettings(name, name, name, batch=BatchSettings(100, 1 << 20, 0.05))
            for name in names
        },
        repack_after_s=0.0,
        retain_after_delivery_s=0.0,
        retain_after_delivery_bytes=0,
        stop_deliver_for_s=0.0,
    )


def hurry() -> None:
    """Let nothing wait for time to pass."""
    for name in ("PACK_EVERY_S", "PROGRESS_EVERY_S", "ADVANCE_EVERY_S"):
        setattr(limits, name, 0.01)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DyingFileSystem(PosixFileSystem):
    """Dies around the rename of a packed file."""

    point = ""

    def rename(self, source: str, target: str) -> None:
        if target.endswith(".wpk") and self.point == POINTS[0]:
            die()
        super().rename(source, target)
        if target.endswith(".wpk") and self.point == POINTS[1]:
            die()


def dying(method, when, *, before: bool):
    """Return a method that dies before or behind its effect, when something holds."""

    def call(*arguments):
        if before and when(*arguments):
            die()
        method(*arguments)
        if when(*arguments):
            die()

    return call


def names_files(_self, _gone, come=()) -> bool:
    return bool(come)


def tells_a_floor(_self, checkpoints, _living, floors, *_rest) -> bool:
    return bool(floors.get("1", 0) > checkpoints.get("1", 0))


def arm(point: str) -> None:
    """Die before or behind a step of packing."""
    DyingFileSystem.point = point
    places = {
        POINTS[2]: (PackedIndex, "replace", names_files),
        POINTS[3]: (PackedIndex, "replace", names_files),
        POINTS[4]: (PackedFiles, "change", names_files),
        POINTS[5]: (ProgressPage, "write", tells_a_floor),
    }
    if point in places:
        owner, name, when = places[point]
        setattr(owner, name, dying(getattr(owner, name), when, before=point == POINTS[2]))


def main(data_dir: str, point: str) -> None:
    hurry()
    arm(point)
    down = RecordingTarget(down=Systemic(SystemicKind.UNREACHABLE, "it is down"))
    targets = {"stuck": down, "healthy": RecordingTarget()}
    process.run(
        settings(data_dir),
        make_sink=lambda route, _: RecordingSink(targets[route.name]),
        fs=DyingFileSystem(),
        clock=SystemClock(),
        chance=Random(1),
        ready=lambda _: None,
        stop=threading.Event(),
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
