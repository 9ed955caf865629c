"""What lanes bring: four of them against one, to a target that takes 20 ms a batch.

    python -m benchmarks.compare.lanes [ALTERNATIONS]

In this process, over a real log and ledger (LMDB): half of the records have a key. Each lane reads
the whole stream and keeps its share, so that the reading is done four times over. Beside it the
same with workers that begin at one and follow the lag, and the reading alone.
"""

import logging
import random
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.harness import Comparison, alternate, report, short_directory
from tests.backlog import CLOCK, FS, Backlog
from wald.config import BatchSettings
from wald.config.settings import WorkerSettings
from wald.core.batching import Bounds
from wald.core.lanes import Share
from wald.drainer.reader import LaneReader
from wald.drainer.replay import replay
from wald.model import Attempt, Delivered, LaneKey, Outcome, ProgressRow
from wald.testing.recording_sink import RecordingSink, RecordingTarget

GOAL, ELASTIC_GOAL, READING_GOAL = 3.6, 1.5, 0.5
SLEEP_S, ROWS, RECORDS, REQUEST = 0.02, 100, 40_000, 500


class Counting(RecordingSink):
    """Takes 20 ms for a batch and counts what it was given."""

    def __init__(self, target: RecordingTarget, counted: list[int]) -> None:
        super().__init__(target)
        self._counted = counted

    def read_row(self, key: LaneKey) -> ProgressRow | Outcome | None:
        return self.target.rows.get(key)

    def deliver(self, attempt: Attempt) -> Outcome:
        threading.Event().wait(SLEEP_S)
        attempt.await_seal()
        self.target.rows[attempt.key] = attempt.row
        self._counted.append(len(attempt.records))
        return Delivered()


def filled(place: Path) -> Backlog:
    backlog, draw = Backlog(place, "events", batch=ROWS), random.Random(1)
    for start in range(0, RECORDS, REQUEST):
        values = [b"%0128d" % number for number in range(start, start + REQUEST)]
        keys: list[str | bytes | None] = [
            f"key-{draw.randrange(10_000)}" if draw.random() < 0.5 else None for _ in values
        ]
        backlog.append(*values, keys=keys)
    return backlog


def rate(lanes: int, workers: WorkerSettings) -> float:
    """Deliver the backlog; records a second."""
    with short_directory() as place:
        backlog = filled(place)
        batch = BatchSettings(ROWS, 1 << 20, 0.05, adaptive=False)
        route = replace(
            backlog.settings.routes["events"], lanes=lanes, workers=workers, batch=batch
        )
        target, counted = RecordingTarget(), list[int]()
        done = replay(
            replace(backlog.settings, routes={"events": route}),
            backlog.log,
            make_sink=lambda *_: Counting(target, counted),
            fs=FS,
            clock=CLOCK,
            chance=backlog.chance,
        )
        backlog.close()
        assert sum(counted) == RECORDS
        assert done["pending"] == 0
        return RECORDS / float(done["seconds"])


def reading(lanes: int) -> float:
    """Read the backlog as one of so many lanes; records of the stream a second."""
    with short_directory() as place:
        backlog = filled(place)
        log, bounds, read = backlog.log, Bounds(ROWS), 0
        reader = LaneReader(
            FS, backlog.data_dir, log.log_id, CLOCK, stream=1, after=0, share=Share(lanes, 0)
        )
        began = time.perf_counter()
        while reader.fill(log.frontier, bounds).records:
            read += len(reader.take(bounds).records)
        took = time.perf_counter() - began
        reader.close()
        backlog.close()
        assert abs(read * lanes / RECORDS - 1) < 0.1
        return RECORDS / took


def main(times: int) -> int:
    logging.disable(logging.INFO)
    all_of_them, growing = WorkerSettings(min=64), WorkerSettings(min=1)
    four, one = alternate(lambda: rate(4, all_of_them), lambda: rate(1, all_of_them), times)
    elastic, alone = alternate(lambda: rate(4, growing), lambda: rate(1, growing), times)
    share, whole = alternate(lambda: reading(4), lambda: reading(1), times)
    return report(
        [
            Comparison("four lanes against one, 20 ms a batch", "rec/s", four, one, GOAL),
            Comparison(
                "the same, workers follow the lag from one", "rec/s", elastic, alone, ELASTIC_GOAL
            ),
            Comparison(
                "one of four lanes reads the whole stream", "rec/s", share, whole, READING_GOAL
            ),
        ],
        "lanes",
    )


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
