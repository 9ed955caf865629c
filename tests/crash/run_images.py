"""Crash images by the thousand: ``python -m tests.crash.run_images --images 20000 --seed 1``.

Each workload is recorded once a round; images are made at random operations of it, started on and
judged: one in fifty by real processes, which go on appending. Exit code 1 if one is wrong.
"""

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.images import Disk
from tests.crash.journal import Kind, build_recorder
from tests.crash.verdict import PATIENCE_S, judge
from tests.crash.workloads import WORKLOADS, Recorded, record
from wald.testing.simnames import Names

REAL_SHARE = 50  # one image in so many is started on by real processes
PER_ROUND = 200


@dataclass(slots=True)
class Tally:
    """What came of the images of one workload."""

    images: int = 0
    by_real_processes: int = 0
    acked: int = 0
    wrong: list[str] = field(default_factory=list)


def try_images(
    run: Recorded,
    count: int,
    seed: int,
    *,
    believes: Callable[[str], bool] = lambda _: True,
    ack_early: int = 0,
    real_share: int = 0,
    patience_s: float = PATIENCE_S,
) -> Tally:
    """Judge images at ``count`` operations of a recorded run.

    Args:
        run: what was recorded.
        count: how many.
        seed: decides which, and what becomes of what was not synced.
        believes: see ``Disk``: to plant a bug.
        ack_early: answers count as given so many operations before they were: to plant a bug.
        real_share: one in so many is judged with real processes; 0 for none.
        patience_s: how long a target may make no progress.
    """
    chance, tally = random.Random(seed), Tally()
    disk = Disk(str(run.root), chance.choice(list(Names)), believes)
    points = _points(run, count, chance)
    for number, entry in enumerate(run.entries):
        disk.apply(entry)
        if number not in points:
            continue
        durable = run.durable[min(number + ack_early, len(run.durable) - 1)]
        real = bool(real_share) and tally.images % real_share == real_share - 1
        fate = random.Random(f"{seed} {number}")
        for problem in judge(run, disk, durable, fate, patience_s, real=real):
            tally.wrong.append(f"seed {seed}, operation {number} of {entry.kind.name}: {problem}")
        tally.images += 1
        tally.by_real_processes += real
        tally.acked += sum(lsn <= durable for lsn in run.acked)
    return tally


def _points(run: Recorded, count: int, chance: random.Random) -> set[int]:
    """Return operations to cut at: half of them any, half where more than a target is at work."""
    every = range(len(run.entries))
    ours = [n for n in every if run.entries[n].kind is not Kind.WRITE or n % 16 == 0]
    points = set(chance.sample(ours, min(len(ours), count - count // 2)))
    while len(points) < min(count, len(every)):
        points.add(chance.choice(every))
    return points


def main() -> int:
    """Run and print; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--json", action="store_true", help="a line of JSON a workload")
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)
    failed, began_s = False, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wd") as directory:
        recorder = build_recorder(Path(directory))
        per_workload = -(-chosen.images // len(WORKLOADS))
        for name, workload in WORKLOADS.items():
            tally, round_ = Tally(), 0
            while tally.images < per_workload:
                seed = chosen.seed + round_
                with record(workload, recorder, seed) as run:
                    count = min(PER_ROUND, per_workload - tally.images)
                    found = try_images(run, count, seed, real_share=REAL_SHARE)
                tally.images += found.images
                tally.by_real_processes += found.by_real_processes
                tally.acked += found.acked
                tally.wrong += found.wrong
                round_ += 1
            failed = failed or bool(tally.wrong)
            _tell(name, tally, chosen.seed, time.monotonic() - began_s, as_json=chosen.json)
    return int(failed)


def _tell(name: str, tally: Tally, seed: int, seconds: float, *, as_json: bool) -> None:
    if as_json:
        said = {"workload": name, "seed": seed, "images": tally.images, "acked": tally.acked}
        said |= {"by_real_processes": tally.by_real_processes, "wrong": tally.wrong}
        print(json.dumps(said), flush=True)
        return
    print(
        f"{tally.images:>7,} images ({tally.by_real_processes} by real processes), "
        f"{tally.acked:>10,} acknowledged records looked for, {len(tally.wrong)} wrong, "
        f"{seconds:6.0f} s, seed {seed}: {name}",
        flush=True,
    )
    for problem in tally.wrong[:20]:
        print(f"        {problem}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
