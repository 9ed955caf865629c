"""The Python client against the disk's own flush, and against redis-py.

python -m benchmarks.compare.client [ALTERNATIONS]
"""

import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis

import wald
from benchmarks.harness import Comparison, alternate, redis, report
from benchmarks.harness import short_directory as directory
from tests.daemon import Daemon

APPENDS = 50  # a turn: the disk's speed drifts within a second, so the turns are short
APPEND_TURNS = 12  # for each alternation asked for
APPEND_GOAL = 2.5
PAGE = bytes(range(256)) * 16
MANY = 1_000
MANY_REQUESTS = 100  # a turn
MANY_GOAL_PER_S = 800_000.0
MAPS_GOAL_PER_S = 250_000.0
SUBMITS = 20_000  # a turn
SUBMIT_GOAL = 3.0
PIPELINE = 1_000  # commands of redis-py that go out together
FLIGHT = {
    "year": 2013, "month": 1, "day": 1, "dep_time": 517, "sched_dep_time": 515, "dep_delay": 2,
    "arr_time": 830, "sched_arr_time": 819, "arr_delay": 11, "carrier": "UA", "flight": 1545,
    "tailnum": "N14228", "origin": "EWR", "dest": "IAH", "air_time": 227, "distance": 1400,
    "hour": 5, "minute": 15, "time_hour": "2013-01-01T10:00:00Z",
}  # fmt: skip


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


def append_many_per_s(daemon: wald.Producer, value: object) -> float:
    """Records a second of append_many with 1,000 values."""
    values = [value] * MANY
    start = time.perf_counter()
    for _ in range(MANY_REQUESTS):
        daemon.append_many("bench", values)
    return MANY * MANY_REQUESTS / (time.perf_counter() - start)


def submit_per_s(daemon: wald.Producer) -> float:
    """Records a second of Producer.submit, one by one, until all are known to be durable."""
    value = b"v" * 128
    start = time.perf_counter()
    pendings = [daemon.submit("bench", value) for _ in range(SUBMITS)]
    daemon.flush()
    took = time.perf_counter() - start
    assert all(each.is_known for each in pendings)
    return SUBMITS / took


def pipelined_per_s(rival: Redis) -> float:
    """Records a second of redis-py, XADD one by one in pipelines, until all are synced."""
    value = b"v" * 128
    start = time.perf_counter()
    for _ in range(SUBMITS // PIPELINE):
        pipeline = rival.pipeline(transaction=False)
        for _ in range(PIPELINE):
            pipeline.xadd("bench", {"v": value})
        pipeline.execute()
    return SUBMITS / (time.perf_counter() - start)


def main(times: int) -> int:
    with (
        directory() as place,
        Daemon(place, to=f"sqlite:{place}/absent/x.db") as daemon,
        wald.connect(str(daemon.socket)) as producer,
        zero_filled(place / "bare") as bare,
        redis(place) as rival_socket,
        Redis(unix_socket_path=str(rival_socket)) as rival,
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
        submit = Comparison(
            "submit one by one against redis-py pipelined",
            "rec/s",
            *alternate(lambda: submit_per_s(producer), lambda: pipelined_per_s(rival), times),
            SUBMIT_GOAL,
        )
        plain, maps = alternate(
            lambda: append_many_per_s(producer, b"v" * 128),
            lambda: append_many_per_s(producer, FLIGHT),
            times,
        )
        many = [
            Comparison(f"append_many of 1,000, {what}", "rec/s", rates, [goal] * times, 1.0)
            for what, rates, goal in (
                ("128 bytes, against its goal", plain, MANY_GOAL_PER_S),
                ("maps of 19 fields, against its goal", maps, MAPS_GOAL_PER_S),
            )
        ]
    return report([append, submit, *many], "client")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
