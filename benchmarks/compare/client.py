"""The Python client against the disk's own flush.

python -m benchmarks.compare.client [ALTERNATIONS]
"""

import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import wald
from benchmarks.harness import Comparison, alternate, report
from benchmarks.harness import short_directory as directory
from tests.daemon import Daemon

APPENDS = 50  # a turn: the disk's speed drifts within a second, so the turns are short
APPEND_TURNS = 12  # for each alternation asked for
APPEND_GOAL = 2.5
PAGE = bytes(range(256)) * 16
MANY = 1_000
MANY_REQUESTS = 300
MANY_GOAL_PER_S = 600_000.0


@contextmanager
def zero_filled(path: Path) -> Iterator[int]:
    """A file of ``APPENDS`` pages whose blocks are on the disk, open for writing."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(handle, bytes(len(PAGE) * APPENDS), 0)
        os.fsync(handle)
        yield handle
    finally:
        os.close(handle)
        path.unlink()


def bare_flush_us(handle: int) -> float:
    """The median of a pwrite and fdatasync of 4 KiB into a file that is zero-filled ahead."""
    took = []
    for number in range(APPENDS):
        start = time.perf_counter_ns()
        os.pwrite(handle, PAGE, number * len(PAGE))
        os.fdatasync(handle)
        took.append(time.perf_counter_ns() - start)
    return statistics.median(took) / 1_000


def append_us(daemon: wald.Producer) -> float:
    """The median of Producer.append of one value of 128 bytes."""
    value = b"v" * 128
    took = []
    for _ in range(APPENDS):
        start = time.perf_counter_ns()
        daemon.append("bench", value)
        took.append(time.perf_counter_ns() - start)
    return statistics.median(took) / 1_000


def append_many_per_s(daemon: wald.Producer) -> float:
    """Records a second of append_many with 1,000 values of 128 bytes."""
    values = [b"v" * 128] * MANY
    start = time.perf_counter()
    for _ in range(MANY_REQUESTS):
        daemon.append_many("bench", values)
    return MANY * MANY_REQUESTS / (time.perf_counter() - start)


def main(times: int) -> int:
    with (
        directory() as place,
        Daemon(place, to=f"sqlite:{place}/absent/x.db") as daemon,
        wald.connect(str(daemon.socket)) as producer,
        zero_filled(place / "bare") as bare,
    ):
        producer.append("bench", b"first")
        append = Comparison(
            "append against a bare flush",
            "us",
            *alternate(
                lambda: append_us(producer), lambda: bare_flush_us(bare), times * APPEND_TURNS
            ),
            APPEND_GOAL,
            smaller_is_better=True,
        )
        rates = [append_many_per_s(producer) for _ in range(times)]
        many = Comparison(
            "append_many of 1,000 against the goal",
            "rec/s",
            rates,
            [MANY_GOAL_PER_S] * times,
            1.0,
        )
    return report([append, many], "client")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
