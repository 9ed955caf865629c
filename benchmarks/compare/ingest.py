"""Appends acknowledged as durable, against Redis that syncs each write, with one load generator.

python -m benchmarks.compare.ingest [ALTERNATIONS]
"""

import sys

from benchmarks.harness import Comparison, alternate, build_load, echo, redis, report, run_load
from benchmarks.harness import short_directory as directory
from tests.daemon import Daemon

CEILING = 1.5
SHAPES = {"64 connections x 1 in flight": ((64, 1, 1), 1.1), "16 x 64": ((16, 64, 1), 3.0)}


def main(times: int) -> int:
    build_load()
    rows: list[Comparison] = []
    with (
        directory() as place,
        redis(place) as rival,
        echo(place) as ceiling,
        # the records stay undelivered: what is measured is the door, not the target
        Daemon(place, to=f"sqlite:{place}/absent/x.db") as daemon,
    ):
        for name, (shape, goal) in SHAPES.items():

            def ours(shape: tuple[int, int, int] = shape) -> float:
                return run_load("wald", daemon.socket, shape)["records_per_s"]

            def theirs(shape: tuple[int, int, int] = shape) -> float:
                return run_load("redis", rival, shape)["records_per_s"]

            def highest(shape: tuple[int, int, int] = shape) -> float:
                return run_load("wald", ceiling, shape)["records_per_s"]

            rows.append(
                Comparison(f"{name}, Redis", "rec/s", *alternate(ours, theirs, times), goal)
            )
            best = [max(rows[-1].ours)] * 3
            ceilings = [highest() for _ in best]
            rows.append(
                Comparison(f"{name}, the generator's ceiling", "rec/s", ceilings, best, CEILING)
            )
    return report(rows, "ingest")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
