"""Crash images by the thousand: ``python -m tests.crash.run_images --images 20000 --seed 1``.

Each workload is recorded once a round; images are made at random operations of it, started on and
judged: one in fifty by real processes, which go on appending. Exit code 1 if one is wrong. With
``--notes FILE`` a run that was stopped goes on where it was.
"""

import argparse
import json
import logging
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.crash.images import Disk
from tests.crash.journal import Kind, build_recorder
from tests.crash.notebook import Unit, add_options, work_off
from tests.crash.verdict import PATIENCE_S, judge
from tests.crash.workloads import WORKLOADS, Recorded, record
from wald.testing.simnames import Names

REAL_SHARE = 50  # one image in so many is started on by real processes
PER_ROUND = 100  # of one recorded run; what is wrong is made again with all of its round


@dataclass(slots=True)
class Tally:
    """What came of the images of one workload."""

    images: int = 0
    by_real_processes: int = 0
    acked: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def add(self, said: dict[str, Any] | None) -> None:
        """Take in what came of more of them; None: nothing did."""
        found = Tally(**{key: said[key] for key in said if key != "unit"}) if said else Tally()
        self.images += found.images
        self.by_real_processes += found.by_real_processes
        self.acked += found.acked
        self.seconds += found.seconds
        self.wrong += found.wrong


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
    chance, tally, began_s = random.Random(seed), Tally(), time.monotonic()
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
    tally.seconds = time.monotonic() - began_s
    return tally


def _points(run: Recorded, count: int, chance: random.Random) -> set[int]:
    """Return operations to cut at: half of them any, half where more than a target is at work."""
    every = range(len(run.entries))
    ours = [n for n in every if run.entries[n].kind is not Kind.WRITE or n % 16 == 0]
    points = set(chance.sample(ours, min(len(ours), count - count // 2)))
    while len(points) < min(count, len(every)):
        points.add(chance.choice(every))
    return points


def images(name: str, recorder: Path, seed: int, count: int) -> dict[str, Any]:
    """Record a workload, judge so many images of it, and return what came of it."""
    logging.disable(logging.CRITICAL)
    with record(WORKLOADS[name], recorder, seed) as run:
        return asdict(try_images(run, count, seed, real_share=REAL_SHARE))


def main() -> int:
    """Run and print; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--each", type=int, default=0, help="images of each workload, instead")
    parser.add_argument("--only", default="", help="workloads with this in their name")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--json", action="store_true", help="a line of JSON a workload")
    add_options(parser, workers=1)
    chosen = parser.parse_args()
    per_workload = chosen.each or -(-chosen.images // len(WORKLOADS))
    with tempfile.TemporaryDirectory(prefix="wd") as directory:
        recorder = build_recorder(Path(directory))
        names = [name for name in WORKLOADS if chosen.only in name and _can(name)]
        units = {
            unit: name for name in names for unit in _units(name, recorder, chosen, per_workload)
        }
        left, tallies = Counter(units.values()), {name: Tally() for name in names}
        for unit, said in work_off(units, chosen):
            name = units[unit]
            left[name] -= 1
            tallies[name].add(said)
            if not left[name]:
                _tell(name, tallies[name], chosen.seed, as_json=chosen.json)
    return int(any(tally.wrong for tally in tallies.values()))


def _can(name: str) -> bool:
    if not WORKLOADS[name].disk or os.geteuid() == 0:
        return True
    print(f"left out, for it needs root to mount a file system: {name}", file=sys.stderr)
    return False


def _units(name: str, recorder: Path, chosen: argparse.Namespace, count: int) -> Iterator[Unit]:
    """Yield what is to be done of a workload: so many images at a time, each with a seed."""
    for round_, first in enumerate(range(0, count, PER_ROUND)):
        seed, here = chosen.seed + round_, min(PER_ROUND, count - first)
        yield Unit(f"{here} of {name}, seed {seed}", images, (name, recorder, seed, here))


def _tell(name: str, tally: Tally, seed: int, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"workload": name, "seed": seed, **asdict(tally)}), flush=True)
        return
    print(
        f"{tally.images:>7,} images ({tally.by_real_processes} by real processes), "
        f"{tally.acked:>10,} acknowledged records looked for, {len(tally.wrong)} wrong, "
        f"{tally.seconds:6.0f} s, seed {seed}: {name}",
        flush=True,
    )
    for problem in tally.wrong[:20]:
        print(f"        {problem}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
