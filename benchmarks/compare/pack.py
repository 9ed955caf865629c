"""Bytes on disk per byte of payload, in the log and packed, and how fast packing is.

python -m benchmarks.compare.pack [ALTERNATIONS]
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from benchmarks.harness import Comparison, report
from benchmarks.harness import short_directory as directory
from tests.backlog import CLOCK, FS, Backlog
from wald import limits
from wald.core.packing import PackJob
from wald.storage.finished import FinishedSegments
from wald.storage.log import LogOptions
from wald.storage.repack import PackRun
from wald.storage.stream import no_files

SEGMENT_BYTES = 32 * limits.MIB
RECORD_BYTES = 128
SHAPES = (1, 64)  # records in a group
LOG_GOAL = {1: 1 / 20, 64: 1 / 1.1}  # of what the log takes
OPTIONS = LogOptions(segment_bytes=SEGMENT_BYTES, pool_max_segments=1, reserve_bytes=0)
PACE_MIB_PER_S = 20.0  # a step of 1 MiB in each round of the drainer's main thread
Make = Callable[[Random, int], bytes]


def noise(chance: Random, _: int) -> bytes:
    """Nothing of it can be compressed."""
    return chance.randbytes(RECORD_BYTES)


def booking(chance: Random, number: int) -> bytes:
    """JSON as applications write it."""
    value = {
        "booking": 4_000_000 + number,
        "user": f"user-{chance.randrange(50_000)}",
        "room": chance.choice(("single", "double", "suite")),
        "nights": chance.randrange(1, 15),
        "price": chance.randrange(4_000, 90_000) / 100,
        "at": f"2026-11-22T{chance.randrange(24):02}:{chance.randrange(60):02}:00Z",
    }
    return json.dumps(value).encode()[:RECORD_BYTES].ljust(RECORD_BYTES)


def measure(place: Path, group: int, make: Make) -> tuple[float, float, float]:
    """Return bytes on disk per byte of payload in the log and packed, and MiB of log a second."""
    backlog = Backlog(place, "events", options=OPTIONS)
    try:
        chance, number = Random(7), 0
        found = FinishedSegments(FS, backlog.data_dir, backlog.log.log_id)
        while len(found.find(backlog.log.frontier).segments) < 1:
            for _ in range(64):
                values = [make(chance, number + index) for index in range(group)]
                number += group
                backlog.append(*values)
            backlog.log.preallocator.step()
        (segment,) = found.find(backlog.log.frontier).segments
        run = PackRun(
            FS,
            backlog.data_dir,
            backlog.log.log_id,
            PackJob(1, segment.before_lsn, segment.last_lsn, segment.number),
            files=no_files,
            frontier=backlog.log.frontier,
            created_ns=CLOCK.wall_ns(),
        )
        begun = time.perf_counter()
        packed = None
        while packed is None:
            packed = run.step(limits.PACK_STEP_BYTES)
        took_s = time.perf_counter() - begun
        payload = packed.records * RECORD_BYTES
        speed = segment.size_bytes / took_s / limits.MIB
        return segment.size_bytes / payload, packed.size_bytes / payload, speed
    finally:
        backlog.close()


def main(times: int) -> int:
    rows = []
    for group in SHAPES:
        for make in (noise, booking):
            log, packed, speeds = [], [], []
            for _ in range(times):
                with directory() as place:
                    before, after, speed = measure(place, group, make)
                log.append(100 * before)
                packed.append(100 * after)
                speeds.append(speed)
            what = f"on disk for 100 bytes, groups of {group}, {make.__name__}: packed, log"
            rows.append(
                Comparison(what, "bytes", packed, log, LOG_GOAL[group], smaller_is_better=True)
            )
            what = f"log read for packing, groups of {group}, {make.__name__}: alone, its pace"
            rows.append(Comparison(what, "MiB/s", speeds, [PACE_MIB_PER_S] * times, 1.0))
    return report(rows, "pack")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
