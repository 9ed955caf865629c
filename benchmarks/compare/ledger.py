"""The size of the ledger behind ten thousand batches, against its size behind one thousand.

    python -m benchmarks.compare.ledger [BATCHES]

The real LMDB, each batch sealed with the end of the one before (T5 with T2), each tenth tried again
(T4), as a lane does.
"""

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Comparison, report, short_directory
from wald import limits
from wald.model import (
    NO_REVISION,
    AttemptStamp,
    Checkpoint,
    FinishedBatch,
    LaneKey,
    Manifest,
    Revision,
    RouteBirth,
)
from wald.ports import Ledger
from wald.storage.lmdb_store import open_ledger
from wald.system import PosixFileSystem

BATCHES, EARLY = 10_000, limits.HISTORY_BATCHES_PER_LANE
RECORDS = 2_000
RETRIED_EVERY = 10
GOAL = 1.25  # of the size when the history is full for the first time
LOG_ID = bytes(range(16))
LANE = LaneKey(LOG_ID, 1, 0, 0)


def batches() -> Iterator[Manifest]:
    """Yield the batches of a lane, one behind the other."""
    prev = NO_REVISION
    for number in itertools.count(1):
        rev_id = number.to_bytes(16, "big")
        lo, hi = (number - 1) * RECORDS + 1, number * RECORDS
        yield Manifest(number, lo, prev, 1, (Revision(rev_id, hi),), RECORDS, 1)
        prev = rev_id


def finish(ledger: Ledger, batch: Manifest, following: Manifest) -> None:
    """Close a batch and seal the one behind it; some are tried twice."""
    rev_id, hi = batch.current.rev_id, batch.current.hi
    if batch.number % RETRIED_EVERY == 0:
        assert ledger.attempt(LANE, rev_id, AttemptStamp("boot", 5, 6, "connection refused"))
    after = Checkpoint(batch.number, rev_id, hi, delivered=hi)
    line = FinishedBatch(batch.number, rev_id, batch.lo, hi, RECORDS, 0, 1, 1, 2)
    assert ledger.finish(LANE, rev_id, after, line, (), following)


def sizes(place: Path, *counts: int) -> list[int]:
    """Return the bytes of the ledger's file behind so many batches each; counts in order."""
    ledger = open_ledger(PosixFileSystem(), str(place), LOG_ID)
    found: list[int] = []
    try:
        ledger.birth(RouteBirth(1, "orders", 1, "orders", "db", 0, 1))
        sealed = batches()
        batch = next(sealed)
        assert ledger.seal(LANE, batch)
        for count in counts:
            while batch.number <= count:
                following = next(sealed)
                finish(ledger, batch, following)
                batch = following
            found.append((place / "ledger" / "data.mdb").stat().st_size)
    finally:
        ledger.close()
    return found


def main(count: int) -> int:
    with short_directory() as place:
        began = time.perf_counter()
        early, late = sizes(place, EARLY, count)
        print(f"{count:,} batches in {time.perf_counter() - began:.0f} s")
    name = f"ledger behind {count:,} batches, against {EARLY:,}"
    rows = [Comparison(name, "KiB", [late / 1024], [early / 1024], GOAL, smaller_is_better=True)]
    return report(rows, "ledger")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else BATCHES))
